"""Over HTTP, the population's own copy of each customer is the service's, and the archive has what was acknowledged."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from optimizer.customer import encode, features
from optimizer.guardrails import allowed
from optimizer.program import DAY, Program
from serving import embedded
from serving.archive import archive
from serving.settings import Settings
from serving.store import Store
from simulations.drive import Driven, drive
from simulations.log import rewards
from simulations.population import Population, populate
from simulations.rollout import replay, standings
from simulations.truth import Rows
from simulations.worlds import WORLDS
from tests.serving.running import running, write_program
from tests.small_program import GUARDRAILS, TOML
from training import dataset, events

START = 1_767_571_200.0
RULES = GUARDRAILS + '\nbudget = { amount = 60, period = "1w" }\n\n[experiment]\nholdout = 0.1\n'
PARTS = (5, 4)
"""Days of the two runs, the second going on from the first."""


class Played(NamedTuple):
    """Two runs over HTTP, one after the other, and the folder of their archive."""

    population: Population
    runs: tuple[Driven, Driven]
    folder: Path


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Forty customers over nine days, by the service that people run."""
    home = tmp_path_factory.mktemp("home")
    program = Program.parse(TOML + RULES, source="small.toml")
    population = populate(program, WORLDS["fatigue"], customers=40, seed=11, start=START)
    write_program(home, extra=RULES)
    with embedded.serve(home / "store") as server:
        asyncio.run(_mark(server.url))
        with running(Settings(home=home, redis_url=server.url)) as service:
            first = asyncio.run(drive(population, service.url, days=PARTS[0]))
            second = asyncio.run(drive(population, service.url, days=PARTS[1], since=first.run))
        asyncio.run(_archive(server.url, home / "archive"))
    return Played(population, (first, second), home / "archive")


async def _mark(url: str) -> None:
    """Create a store whose requests may name their own time."""
    await (await Store.open(url, simulated=True)).close()


async def _archive(url: str, folder: Path) -> None:
    async with await Store.open(url) as store:
        await archive(store, folder)


def test_everything_acknowledged_is_archived_once(played: Played) -> None:
    found = events.read(played.folder, "small")
    acknowledged = sum(run.acknowledged.total for run in played.runs)
    assert len(found) == acknowledged
    assert sum(run.acknowledged.decisions for run in played.runs) == 40 * sum(PARTS)
    ids = list(zip(found["customer_id"].to_pylist(), found["kind"].to_pylist(), found["id"].to_pylist(), strict=True))
    assert len(set(ids)) == len(ids)


def test_each_decision_was_made_on_what_the_population_knows_of_the_customer(played: Played) -> None:
    """Context and mask of every archived decision are those of the customers' own copy, replayed."""
    program, log = played.population.program, dataset.load(played.folder, played.population.program, now=np.inf)
    rows = Rows.of(played.population, log)
    compared, blocked = 0, 0
    for driven in played.runs:
        shared = standings(driven.run)
        for day, turns in replay(driven.run):
            for turn in turns:
                here = np.flatnonzero((rows.days == day) & np.isin(rows.customers, np.r_[turn.rows]))
                at = rows.customers[here] - turn.rows.start
                seen = encode(program, features(program, turn.cohort))[at]
                np.testing.assert_allclose(log.rounds.contexts[here], seen, atol=1e-9, err_msg=f"day {day}")
                for stretch, left in shared[day - driven.run.first]:
                    mask = allowed(program, turn.cohort, shared=left).mask
                    inside = (rows.customers[here] >= stretch.start) & (rows.customers[here] < stretch.stop)
                    np.testing.assert_array_equal(log.rounds.allowed[here][inside], mask[at[inside]])
                    blocked += int((~mask).sum())
                compared += len(here)
    assert compared == len(log) > 300
    assert blocked > 0


def test_rewards_of_the_archive_are_those_of_the_population(played: Played) -> None:
    """What training joins from the archive is what the population counts, for rounds that have matured."""
    log = dataset.load(played.folder, played.population.program, now=START + sum(PARTS) * DAY)
    rows = Rows.of(played.population, log)
    second = played.runs[1].run.history
    whole = second._replace(
        first=0,
        actions=np.concatenate([run.run.history.actions for run in played.runs]),
        stages=np.concatenate([run.run.history.stages for run in played.runs]),
        happened=type(second.happened).concatenate([run.run.history.happened for run in played.runs]),
    )
    np.testing.assert_allclose(log.rounds.rewards, rewards(whole)[rows.days, rows.customers], atol=1e-9)
    assert (log.rounds.rewards != 0).sum() > 100
    assert log.rounds.at.max() <= START + sum(PARTS) * DAY - 3 * DAY


def test_held_out_customers_are_told_from_the_answers(played: Played) -> None:
    arms = played.runs[0].run.arms
    assert played.runs[1].run.arms == arms
    archived = events.read(played.folder, "small").to_pylist()
    held = {row["customer_id"] for row in archived if row["kind"] == "decision" and row["arm"] == "holdout"}
    assert {played.population.name(i) for i, arm in enumerate(arms) if arm == "holdout"} == held
    assert held
