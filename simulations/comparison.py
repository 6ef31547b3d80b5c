"""How do policies compare in a world? The same customers, the same chance, one policy at a time.

Every policy starts from the same past: some weeks of nudges at random, which those that learn have learned from.
"""

from collections.abc import Mapping, Sequence

import msgspec

from optimizer.engine import CHAMPION, Chooser
from optimizer.program import DAY, Program
from policies import KINDS
from policies.fixed import Hold, Rules, Uniform
from simulations.metrics import metrics
from simulations.population import Population, populate
from simulations.rollout import Progress, Run, rollout, sole
from simulations.truth import best
from simulations.worlds import WORLDS

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

PAST = 14
"""Days at random that every policy starts from, besides the program's evaluation horizon."""

FIXED = ("hold", "rules", "uniform")
BEST = "simulator's best"


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy came to in a world, per customer, over the days after the past at random."""

    world: str
    policy: str
    reward: float
    conversion: float
    nudges: float
    opted_out: float
    cost: float
    retention: dict[str, float]


def run(
    program: Program,
    worlds: Sequence[str],
    *,
    policies: Sequence[str] = (),
    customers: int,
    days: int,
    seed: int,
    progress: Progress | None = None,
) -> list[Compared]:
    """Run each policy in each world and return a row for each pair.

    Args:
        program: any program.
        worlds: names; the first world where none is given.
        policies: kinds that learn; `thompson` where none is given. Hold, rules, chance and the simulator's best are
            always beside them.
        customers, days, seed: how many, for how long after the past, and of which chance.
        progress: told of the policies done.

    Raises:
        ValueError: for a world or a kind that there is not.
    """
    names = list(worlds) or [next(iter(WORLDS))]
    kinds = list(policies) or ["thompson"]
    _known(names, WORLDS, what="world")
    _known(kinds, [k for k in KINDS if k not in ("fixed", "mixture")], what="policy kind")
    rows: list[Compared] = []
    for name in names:
        world = WORLDS[name]
        funded = world.program(program, customers=customers)
        population = populate(funded, world, customers=customers, seed=seed, start=START)
        rows += _compare(population, [k for k in kinds if k not in FIXED], days=days, progress=progress)
    return rows


def _compare(population: Population, kinds: Sequence[str], *, days: int, progress: Progress | None) -> list[Compared]:
    program, world = population.program, population.world.name
    past = rollout(
        population, sole(Uniform(program.space)), days=PAST + round(program.evaluation_horizon / DAY), progress=progress
    )
    choosers = {**_fixed(program), **{kind: _learned(kind, past) for kind in kinds}}
    rows = []
    for done, (name, chooser) in enumerate(choosers.items()):
        if progress is not None:
            progress(f"{world}: policies", done, len(choosers) + 1)
        found = rollout(population, {CHAMPION: chooser}, days=days, since=past, logged=False)
        rows.append(_compared(world, name, found))
    rows.append(_compared(world, BEST, best(population, days=days, since=past, logged=False)))
    if progress is not None:
        progress(f"{world}: policies", len(choosers) + 1, len(choosers) + 1)
    return rows


def _fixed(program: Program) -> Mapping[str, Chooser]:
    policies = (Hold(program.space), Rules.of(program), Uniform(program.space))
    return {policy.name: Chooser(policy, policy.name, "0") for policy in policies}


def _learned(kind: str, past: Run) -> Chooser:
    policy = KINDS[kind](past.population.program.space)  # type: ignore[call-arg]  # learners take a space
    policy.learn(past.rounds)
    return Chooser(policy, kind, "1")


def _compared(world: str, policy: str, found: Run) -> Compared:
    figures = metrics(found.history)
    return Compared(
        world=world,
        policy=policy,
        reward=figures.reward,
        conversion=figures.converted,
        nudges=figures.nudges,
        opted_out=figures.opted_out,
        cost=figures.cost,
        retention={f"day {day}": share for day, share in figures.retained.items()},
    )


def _known(names: Sequence[str], known: Sequence[str] | Mapping[str, object], *, what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: expected some of {', '.join(known)}")
