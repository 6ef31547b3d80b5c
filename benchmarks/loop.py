"""Does the loop decide right? Forty simulated fortnights, each learned from, judged and gated, beside the truth.

For each seed: customers, what each level does to whom, and all chance are drawn anew in the world `demo`; two weeks of
decisions at random, and on through the evaluation horizon; Thompson sampling learns from the earlier part, doubly
robust estimates judge it on the later one, and the gate decides. Nobody chose the seeds: they are 1 to 40.
"""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from benchmarks.results import Row, write
from optimizer.program import DAY, Program
from optimizer.programs import read
from policies.fixed import Uniform
from policies.thompson import Thompson
from simulations.population import populate
from simulations.rollout import rollout, sole
from simulations.truth import Rows, truth
from simulations.worlds import WORLDS
from training.evaluate import evaluate
from training.promotion import judge
from training.targets import deployed, today
from training.train import split

SEEDS = 40
CUSTOMERS = 2_000
START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

FORTNIGHT = 14

BOLDNESS = 1.0
"""Thompson's own rule. A bolder committee spreads its votes over more actions, so that a log at random resembles it."""

COVER, PROMOTE = 34, 28
"""Of forty: how many intervals must cover the truth, and how many gates must see that the policy is better."""


class Outcome(NamedTuple):
    """One fortnight: what was estimated, what is true, and what the gate said."""

    seed: int
    estimate: float
    low: float
    high: float
    truth: float
    truth_error: float
    lift: float
    true_lift: float
    verdict: str

    @property
    def covers(self) -> bool:
        """Whether the interval has the truth in it."""
        return self.low <= self.truth <= self.high


def fortnight(seed: int) -> Outcome:
    """Simulate, learn, judge and gate once."""
    world = WORLDS["demo"]
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    population = populate(program, world, customers=CUSTOMERS, seed=seed, start=START)
    choosers = sole(Uniform(program.space), name="uniform")
    run = rollout(population, choosers, days=FORTNIGHT + round(program.evaluation_horizon / DAY))
    earlier, later = split(run.dataset)
    shaped = earlier.with_stage_values()
    policy = Thompson(program.space, boldness=BOLDNESS)
    policy.learn(replace(shaped.rounds, rewards=shaped.training_rewards))
    targets = [today(), deployed(policy.name, policy, program)]
    evaluation = evaluate(later, targets, history=earlier)
    estimate = evaluation.score(policy.name).estimates["dr"]
    rows = Rows.of(population, later)
    now, true = (truth(run, choosers, rows=rows, target=t.vectors(later.rounds)) for t in targets)
    return Outcome(
        seed=seed,
        estimate=estimate.value,
        low=estimate.low,
        high=estimate.high,
        truth=true.value,
        truth_error=true.error,
        lift=evaluation.score(policy.name).lift.value,
        true_lift=true.value - now.value,
        verdict=judge(evaluation).choice,
    )


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Yield what was counted, and how large the true lifts were."""
    n = len(outcomes)
    wrong = sum(o.verdict == "promote" and o.true_lift <= 0 for o in outcomes)
    yield _row("intervals that cover the truth", sum(o.covers for o in outcomes), n=n, least=COVER * n // SEEDS)
    yield _row("policies promoted", sum(o.verdict == "promote" for o in outcomes), n=n, least=PROMOTE * n // SEEDS)
    yield _row("policies promoted that are truly no better", wrong, n=n, most=1)
    errors = [(o.estimate - o.truth) / ((o.high - o.low) / 3.92) for o in outcomes]
    yield _row("mean error of the estimate in standard errors", float(np.mean(errors)), n=n, most=0.5)
    yield _row(
        "true lift a decision, median", float(np.median([o.true_lift for o in outcomes])), n=n, unit="EUR", least=0
    )
    width = float(np.median([o.high - o.low for o in outcomes]))
    yield _row("width of the interval, median", width, n=n, unit="EUR", most=1)


def _row(
    name: str, ours: float, *, n: int, unit: str = "", least: float | None = None, most: float | None = None
) -> Row:
    met = (least is None or ours >= least) and (most is None or abs(ours) <= most)
    bound = f"at least {least:g}" if least is not None else f"at most {most:g}"
    return Row(
        name=name,
        ours=ours,
        peer=None,
        peer_name=None,
        unit=unit or f"of {n}",
        ratio=None,
        target=bound,
        met=met,
    )


def main() -> None:
    """Run the fortnights, print each and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=2)
    given, _ = parser.parse_known_args()
    with ProcessPoolExecutor(given.workers) as workers:
        outcomes = []
        for o in workers.map(fortnight, range(1, given.seeds + 1)):
            outcomes.append(o)
            print(
                f"{o.seed:3} dr {o.estimate:.3f} [{o.low:.3f}, {o.high:.3f}] truth {o.truth:.3f} ± {o.truth_error:.3f}"
                f" {'covers' if o.covers else 'MISSES'}; lift {o.lift:+.3f}, truly {o.true_lift:+.3f}: {o.verdict}",
                flush=True,
            )
    write("loop", rows(outcomes))


if __name__ == "__main__":
    main()
