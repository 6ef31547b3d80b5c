"""Do offline estimates from simulated logs cover the truth, and do the diagnostics fail where they should?

`python -m benchmarks.simulation_coverage [replications [customers [days]]]`. In every world a log at random is judged
as `nudge evaluate` does; the truth of each target on the same rounds is worked out from the simulator's own chances.
A target counts where no check of it or of the log fails. Logs that are broken on purpose must fail a check.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.results import Row, write
from optimizer.actions import HOLD
from optimizer.program import Program
from optimizer.programs import read
from policies.fixed import Uniform
from simulations.population import populate
from simulations.rollout import Run, rollout, sole
from simulations.truth import Rows, truth
from simulations.worlds import WORLDS, World
from training import evaluate as judging
from training.dataset import Dataset

START = 1_767_571_200.0
REPLICATIONS, CUSTOMERS, DAYS = 10, 200, 9
TARGETS = ("hold", "rules")


class Judged(NamedTuple):
    """A target on a log: whether the checks pass, and how far the estimate is from the truth, in interval halves."""

    trusted: bool
    off: float


def judged(world: World, *, seed: int, customers: int, days: int) -> Iterator[Judged]:
    """Yield the estimate of each target on one log."""
    run = _run(world, seed=seed, customers=customers, days=days)
    rows = Rows.of(run.population, run.dataset)
    targets = [t for t in judging.baselines(run.population.program) if t.name in TARGETS]
    found = judging.evaluate(run.dataset, [judging.today(), *targets])
    failed = {c.target for c in found.checks if c.status == "fail"}
    for target in targets:
        score = found.score(target.name)
        known = truth(run, sole(Uniform(run.population.program.space)), rows=rows, target=target.vectors(run.rounds))
        reach = (score.value.high - score.value.low) / 2.0
        # The truth has an error of its own, from finite courses of chance.
        yield Judged("" not in failed and target.name not in failed,
                     abs(score.value.value - known.value) / float(np.hypot(reach, 1.96 * known.error)))  # fmt: skip


def _run(world: World, *, seed: int, customers: int, days: int) -> Run:
    program = world.program(
        Program.parse(read("fitness-coaching"), source="fitness-coaching.toml"), customers=customers
    )
    population = populate(program, world, customers=customers, seed=seed, start=START)
    return rollout(population, sole(Uniform(program.space)), days=days)


def broken(log: Dataset) -> dict[str, Dataset]:
    """Return logs that no estimate should be believed of, by what is wrong with them."""
    rounds = log.rounds
    wrong = rounds.probabilities.copy()
    open_ = rounds.allowed[:, 1:].any(axis=1)
    wrong[open_, 1:] *= 0.25  # says that nudges are rarer than they were
    wrong[open_, HOLD] = 1.0 - wrong[open_, 1:].sum(axis=1)
    undrawn = rounds.probabilities.copy()
    undrawn[np.arange(0, len(rounds), 7), rounds.actions[::7]] = 0.0
    return {
        "probabilities that were not drawn from": replace(log, rounds=replace(rounds, probabilities=wrong)),
        "actions that had no chance": replace(log, rounds=replace(rounds, probabilities=undrawn)),
        "a hundred rounds": log.take(slice(0, 100)),
    }


def rows(*, replications: int, customers: int, days: int) -> Iterator[Row]:
    """Yield the coverage in each world, and whether each broken log fails."""
    for name, world in WORLDS.items():
        found = [j for s in range(replications) for j in judged(world, seed=500 + s, customers=customers, days=days)]
        trusted = [j.off <= 1.0 for j in found if j.trusted]
        if trusted:
            # 95 % less three standard errors of so many: one false alarm in 700 worlds.
            least = 0.95 - 3.0 * float(np.sqrt(0.95 * 0.05 / len(trusted)))
            yield _row(
                f"{name}: coverage of {len(trusted)} trusted estimates of {len(found)}",
                float(np.mean(trusted)),
                least=least,
            )
        else:
            print(f"{name}: no estimate was trusted", flush=True)
    log = _run(WORLDS["demo"], seed=9, customers=customers, days=days).dataset
    for what, bad in broken(log).items():
        yield _row(f"{what}: refused by a check", float(_refused(bad)), least=1.0)


def _refused(log: Dataset) -> bool:
    targets = [t for t in judging.baselines(log.program) if t.name in TARGETS]
    try:
        found = judging.evaluate(log, [judging.today(), *targets])
    except ValueError:
        return True
    return any(c.status == "fail" for c in found.checks)


def _row(name: str, ours: float, *, least: float) -> Row:
    print(f"{name}: {ours:.3f} (at least {least:.3f})", flush=True)
    return Row(name=name, ours=ours, peer=None, peer_name=None, unit="share", ratio=None,
               target=f"at least {least:.3f}", met=ours >= least)  # fmt: skip


def main() -> None:
    """Measure and write the rows."""
    given = [int(x) for x in sys.argv[1:4]]
    replications, customers, days = (*given, *(REPLICATIONS, CUSTOMERS, DAYS)[len(given) :])
    write("simulation_coverage", rows(replications=replications, customers=customers, days=days))


if __name__ == "__main__":
    main()
