"""The price of burden is what a log shows of the days after a nudge, and nothing where a log shows nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.program import DAY, Experiment, Program
from optimizer.programs import read
from policies.fixed import Uniform
from simulations.burden import burden_price
from simulations.population import populate
from simulations.rollout import rollout, sole
from simulations.worlds import WORLDS
from training.dataset import Dataset

START = 1_767_571_200.0
PROGRAM = replaced(
    Program.parse(read("fitness-coaching"), source="fitness-coaching.toml"), experiment=Experiment(holdout=0.0)
)


def _log(world: str, *, seed: int = 101, customers: int = 500) -> Dataset:
    people = populate(PROGRAM, WORLDS[world], customers=customers, seed=seed, start=START)
    return rollout(people, sole(Uniform(PROGRAM.space)), days=20).dataset


@pytest.fixture(scope="module")
def tired() -> Dataset:
    return _log("fatigue")


def test_where_nudges_wear_people_out_the_price_is_above_chance(tired: Dataset) -> None:
    """Three worlds' logs at a one-sided 2.5 % each: together, z of 3.5 or more is no accident."""
    found = [burden_price(tired), *(burden_price(_log("fatigue", seed=s)) for s in (102, 103))]
    z = sum(x.estimate / x.error for x in found) / math.sqrt(len(found))
    assert z > 3.5
    assert all(x.value > PROGRAM.guardrails.burden_price for x in found)
    assert all(x.low < x.estimate < x.high for x in found)


def test_where_nudges_do_nothing_no_price_is_shown() -> None:
    """The estimate is within 3.5 errors of 0: one false alarm in two thousand."""
    found = burden_price(_log("null"))
    assert abs(found.estimate) < 3.5 * found.error


def test_the_price_grows_with_what_later_days_lose(tired: Dataset) -> None:
    """Taking one unit from the day after a nudge's windows adds one for each nudge, spread over the dosage."""
    rounds, window = tired.rounds, float(PROGRAM.windows[PROGRAM.event_index["workout_done"]])
    order = np.lexsort((rounds.at, rounds.customers))
    back = round(window / DAY)
    loss = np.zeros(len(rounds))
    follows = rounds.customers[order][back:] == rounds.customers[order][:-back]
    loss[order[back:]] = np.where(follows, rounds.actions[order[:-back]] > 0, 0)
    counts = tired.events["workout_done"] - loss * window / DAY
    taken = replace(tired, events={**tired.events, "workout_done": counts})
    before, after = burden_price(tired), burden_price(taken)
    assert after.estimate - before.estimate > 0.8  # 1 over a dosage below 1, less what a nudge now takes from nudges


def test_the_price_is_careful_where_the_log_is_short(tired: Dataset) -> None:
    """It lies above the estimate by less, the more is known."""
    short = burden_price(tired.take(tired.rounds.customers < 100))
    long = burden_price(tired)
    assert short.error > long.error
    assert short.value - short.estimate > long.value - long.estimate > 0.0


def test_a_log_that_shows_nothing_leaves_the_programs_own_price(tired: Dataset) -> None:
    for silent in (_log("null", customers=20), tired.take(slice(0, 0))):
        found = burden_price(silent)
        assert found.value == PROGRAM.guardrails.burden_price
        assert math.isnan(found.estimate)
