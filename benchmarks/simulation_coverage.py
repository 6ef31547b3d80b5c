"""Do offline estimates from simulated logs cover the truth, and do the diagnostics fail where they should?

In every world, logs at random are judged as `nudge evaluate` does: no nudge, today's rules, and Thompson sampling that
learned from the earlier half, on the later half. The truth of each target on the same rounds is worked out from the
simulator's own chances. A target counts where no check of it or of the log fails. Logs that are broken on purpose must
fail a check.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from benchmarks.results import Row, write
from optimizer.actions import HOLD
from optimizer.program import Program
from optimizer.programs import read
from policies.fixed import Rules, Uniform
from policies.thompson import Thompson
from simulations.population import populate
from simulations.rollout import Run, rollout, sole
from simulations.truth import Rows, truth
from simulations.worlds import WORLDS, World
from training import evaluate as judging
from training import targets as contenders
from training.dataset import Dataset
from training.train import split

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

REPLICATIONS, CUSTOMERS, DAYS = 20, 500, 17
FIRST_SEED, APART = 500, 1_000
"""Of the first world's logs, and how far from them each further world's are: worlds of one seed share their customers'
luck, so that one odd log would count fourteen times."""
KEPT = Path("var") / "benchmarks"


class Judged(TypedDict):
    """A target on a log: whether the checks pass, and how far the estimate is from the truth, in interval halves."""

    target: str
    trusted: bool
    off: float


def judged(world: World, *, seed: int, customers: int, days: int) -> list[Judged]:
    """Return the estimate of each target on one log."""
    run = _run(world, seed=seed, customers=customers, days=days)
    program, (earlier, later) = run.population.program, split(run.dataset)
    policy = Thompson(program.space, boldness=1.0)  # as `nudge train` fits it
    policy.learn(replace(earlier.rounds, rewards=earlier.with_stage_values().training_rewards))
    targets = [*_plain(program), contenders.deployed(policy.name, policy, program)]
    found = judging.evaluate(later, [contenders.today(), *targets])
    failed = {c.target for c in found.checks if c.status == "fail"}
    rows, logger = Rows.of(run.population, later), sole(Uniform(program.space))

    def one(target: contenders.Target) -> Judged:
        score = found.score(target.name).value
        known = truth(run, logger, rows=rows, target=target.vectors(later.rounds))
        # The truth has an error of its own, from finite courses of chance.
        reach = float(np.hypot((score.high - score.low) / 2.0, 1.96 * known.error))
        return Judged(target=target.name, trusted=not failed & {"", target.name},
                      off=abs(score.value - known.value) / reach)  # fmt: skip

    return [one(target) for target in targets]


def _plain(program: Program) -> list[contenders.Target]:
    return [t for t in contenders.baselines(program) if t.name in ("hold", "rules")]


def _run(world: World, *, seed: int, customers: int, days: int) -> Run:
    program = world.program(
        Program.parse(read("fitness-coaching"), source="fitness-coaching.toml"), customers=customers
    )
    population = populate(program, world, customers=customers, seed=seed, start=START)
    return rollout(population, sole(Uniform(program.space)), days=days)


def gathered(world: World, *, replications: int, customers: int, days: int, fresh: bool) -> list[list[Judged]]:
    """Judge the logs of a world, keeping what is done: a run that was broken off goes on."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"simulation-coverage-{world.name}-{customers}-{days}.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    done: list[list[Judged]] = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    first = FIRST_SEED + APART * list(WORLDS).index(world.name)
    for i in range(len(done), replications):
        done.append(judged(world, seed=first + i, customers=customers, days=days))
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(done[-1]) + "\n")
        print(f"{world.name}: {i + 1} of {replications}", flush=True)
    return done[:replications]


def broken(log: Dataset) -> dict[str, Dataset]:
    """Return logs that no estimate should be believed of, by what is wrong with them."""
    rounds = log.rounds
    rarer = rounds.probabilities.copy()
    open_ = rounds.allowed[:, 1:].any(axis=1)
    rarer[open_, 1:] *= 0.25  # says that nudges are rarer than they were
    rarer[open_, HOLD] = 1.0 - rarer[open_, 1:].sum(axis=1)
    undrawn = rounds.probabilities.copy()
    undrawn[np.arange(0, len(rounds), 7), rounds.actions[::7]] = 0.0
    certain = np.zeros_like(rounds.probabilities)
    certain[np.arange(len(rounds)), rounds.actions] = 1.0
    return {
        "probabilities that were not drawn from": replace(log, rounds=replace(rounds, probabilities=rarer)),
        "probabilities that say it was certain": replace(log, rounds=replace(rounds, probabilities=certain)),
        "actions that had no chance": replace(log, rounds=replace(rounds, probabilities=undrawn)),
        "a hundred rounds": log.take(slice(0, 100)),
    }


def unexplored() -> Dataset:
    """Return a log of rules that were followed without exception: it cannot tell what anything else would do."""
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    population = populate(program, WORLDS["demo"], customers=200, seed=9, start=START)
    log = rollout(population, sole(Rules.of(program)), days=9).dataset
    mine = Rules.of(program).probabilities(log.rounds.contexts, log.rounds.allowed, log.rounds.prices(program.space))
    followed = np.flatnonzero(mine[np.arange(len(log)), log.rounds.actions] == 1.0)
    kept = log.take(followed)
    return replace(kept, rounds=replace(kept.rounds, probabilities=mine[followed].astype(np.float32)))


def rows(*, worlds: Sequence[str], replications: int, customers: int, days: int, fresh: bool = False) -> Iterator[Row]:
    """Yield the coverage in each world and over all of them, and whether each broken log fails."""
    every: list[Judged] = []
    for name in worlds:
        logs = gathered(WORLDS[name], replications=replications, customers=customers, days=days, fresh=fresh)
        found = [one for log in logs for one in log]
        every += found
        yield from _coverage(name, found)
    yield from _coverage("all worlds", every)
    log = _run(WORLDS["demo"], seed=9, customers=200, days=9).dataset
    for what, bad in {**broken(log), "rules without exploration": unexplored()}.items():
        yield _row(f"{what}: refused by a check", float(_refused(bad)), least=1.0)


def _coverage(name: str, found: Sequence[Judged]) -> Iterator[Row]:
    trusted = [j["off"] <= 1.0 for j in found if j["trusted"]]
    if not trusted:
        print(f"{name}: none of {len(found)} estimates was trusted", flush=True)
        return
    # 95 % less three standard errors of so many: one false alarm in 700 worlds.
    least = max(0.95 - 3.0 * float(np.sqrt(0.95 * 0.05 / len(trusted))), 0.0)
    what = f"{name}: coverage of {len(trusted)} trusted estimates of {len(found)}"
    yield _row(what, float(np.mean(trusted)), least=least)


def _refused(log: Dataset) -> bool:
    """Whether the checks stop every target, or the evaluation refuses the log."""
    targets = _plain(log.program)
    try:
        found = judging.evaluate(log, [contenders.today(), *targets])
    except ValueError:
        return True
    failed = {c.target for c in found.checks if c.status == "fail"}
    return "" in failed or failed >= {t.name for t in targets}


def _row(name: str, ours: float, *, least: float) -> Row:
    print(f"{name}: {ours:.3f} (at least {least:.3f})", flush=True)
    return Row(name=name, ours=ours, peer=None, peer_name=None, unit="share", ratio=None,
               target=f"at least {least:.3f}", met=ours >= least)  # fmt: skip


def main() -> None:
    """Measure and write the rows; only the whole of it is written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    parser.add_argument("--days", type=int, default=DAYS, help="with the evaluation horizon, three days")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run kept")
    asked = parser.parse_args()
    found = list(rows(**vars(asked)))
    if asked.worlds == list(WORLDS):
        write("simulation_coverage", found)


if __name__ == "__main__":
    main()
