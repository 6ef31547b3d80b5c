"""Who takes part in a comparison? Policies by name, each with how it learns while the days go by.

Every contender starts from the same past: some weeks of nudges at random. Those that learn go on learning from their
own decisions, with the stage values that `nudge train` gives them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace as replaced

from optimizer.actions import Floats, Ints
from optimizer.engine import CHAMPION, Chooser
from optimizer.policy import Policy, Rounds
from optimizer.program import Exploration, Program
from policies import KINDS, load
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from simulations.burden import burden_price
from simulations.choosing import Chosen
from simulations.journeys import Happenings
from simulations.log import History, together
from simulations.patience import Patient
from simulations.population import Population
from simulations.purse import Purse
from simulations.rollout import Asking, Run, Watch, rollout, sole
from simulations.truth import best, scores
from training.dataset import Dataset

FIXED = ("hold", "fixed", "rules", "uniform")
"""Contenders that learn nothing and explore next to nothing; `fixed` is the best single nudge for all."""

LEARNERS = tuple(kind for kind in KINDS if kind not in ("hold", "fixed", "rules", "uniform", "mixture"))
SPECIAL = ("clicks", "patient", "best")
"""`clicks` is greedy for the commonest step; `patient` is Thompson sampling with a price on burden, from its log;
`best` is the simulator's own best, one step ahead."""

NAMES = (*FIXED, *LEARNERS, *SPECIAL)

RELEARN = 14
"""Days after which a learner learns from what it has done since."""

LEAST = 0.001
"""What those who learn nothing explore: the least that a program may ask for."""

SAMPLE, EVERY = 128, 7
"""Customers of a slot, and days, for which regret is worked out."""

_ADDS_UP = ("thompson", "squarecb", "greedy", "clicks", "patient")
"""Learners whose knowledge adds up over batches."""


class Result(NamedTuple):
    """What a contender did: the days, where customers were after them, and its regret per decision."""

    history: History
    run: Run
    regret: float


@dataclass(frozen=True)
class Contender:
    """A policy that takes part: its name, and how it plays the days after a past."""

    name: str
    play: Callable[[Run, int], Result]


def known(name: str) -> bool:
    """Whether there is a contender of a name, or a saved policy in a folder of that name."""
    return name in NAMES or Path(name, "policy.json").is_file()


def contender(name: str) -> Contender:
    """Return a contender by name; ValueError if there is none."""
    if not known(name):
        raise ValueError(
            f"there is no policy {name!r}: expected some of {', '.join(NAMES)}, or the folder of a saved policy"
        )
    if name == "best":
        return Contender(name, _play_best)
    if name in LEARNERS or name in SPECIAL:
        return Contender(name, lambda past, days: _play_learning(name, past, days=days))
    return Contender(name, lambda past, days: _play(past, _unlearned(name, past), days=days))


def _unlearned(name: str, past: Run) -> Policy:
    program = past.population.program
    if name == "fixed":
        return best_fixed(past)
    if name not in FIXED:
        return load(Path(name), program.space)
    if name == "rules":
        return Rules.of(program)
    return Hold(program.space) if name == "hold" else Uniform(program.space)


def _play(past: Run, policy: Policy, *, days: int) -> Result:
    regret = _Regret()
    past = under(past, exploration=Exploration(floor=LEAST, hold=0.0))
    run = rollout(past.population, sole(policy), days=days, since=past, logged=False, watch=regret.see)
    return Result(run.history, run, regret.mean)


def _play_best(past: Run, days: int) -> Result:
    run = best(past.population, days=days, since=past, logged=False)
    return Result(run.history, run, 0.0)


def _play_learning(name: str, past: Run, *, days: int) -> Result:
    """Play in turns of `RELEARN` days, after each of which the policy learns from what it logged."""
    program = past.population.program
    kinds = {**KINDS, "clicks": KINDS["greedy"], "patient": Patient}
    policy = kinds[name](program.space)
    policy.learn(_lesson(name, past.dataset))
    since, seen = past, [past.dataset]
    regret, parts = _Regret(), list[Run]()
    goes_on = name in _ADDS_UP
    for start in range(0, days, RELEARN):
        length = min(RELEARN, days - start)
        choosers = {CHAMPION: Chooser(policy, name, str(len(parts) + 1))}
        last = start + length >= days
        since = _priced(since, seen) if name == "patient" else since
        run = rollout(
            since.population,
            choosers,
            days=length,
            since=since,
            logged=goes_on and not last,
            watch=regret.see,
        )
        parts.append(run)
        if run.log is not None and len(run.log):
            policy.learn(_lesson(name, run.log))
            seen += [run.log] if name == "patient" else []
        since = replace(run, log=None)
    return Result(joined([p.history for p in parts]), parts[-1], regret.mean)


def _lesson(name: str, log: Dataset) -> Rounds:
    """Return what a contender learns from: rewards with stage values, or clicks alone."""
    if name == "clicks":
        step = _commonest(log.program, log.events)
        return replace(log.rounds, rewards=np.minimum(log.events[step], 1.0))
    return replace(log.rounds, rewards=log.with_stage_values().training_rewards)


def _commonest(program: Program, events: Mapping[str, Floats]) -> str:
    """Return the step that happens most: what a dashboard of clicks would show first."""
    steps = [e.name for e in program.events if e.kind == "micro"]
    return max(steps, key=lambda name: events[name].sum())


def _priced(run: Run, seen: Sequence[Dataset]) -> Run:
    """Return the same run under a program with the price on burden that all that was logged shows, for what follows."""
    price = round(burden_price(together(seen)).value, 4)
    return under(run, guardrails=replaced(run.population.program.guardrails, burden_price=price))


def under(past: Run, **changes: object) -> Run:
    """Return the same past of the same customers, for a program that is changed from here on."""
    program: Program = replaced(past.population.program, **changes)
    population = replace(past.population, program=program)
    left = replace(past.left, program=program)
    if program.guardrails.budget != past.population.program.guardrails.budget:  # a new budget begins full
        left = Purse.full(program, at=past.history.end, gone=left.gone, cuts=left.cuts)
    return replace(past, history=past.history._replace(population=population), left=left)


def joined(parts: Sequence[History]) -> History:
    """Return stretches of days, each going on from the one before, as one."""
    return History(
        population=parts[0].population,
        first=parts[0].first,
        actions=np.concatenate([p.actions for p in parts]),
        stages=np.concatenate([p.stages for p in parts]),
        happened=Happenings.concatenate([p.happened for p in parts]),
    )


class _Regret:
    """What the choices of some customers on some days fall short of the best that was allowed to each."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def see(self, asking: Asking, found: Chosen) -> None:
        if asking.day % EVERY or not len(found.actions):
            return
        size = min(SAMPLE, len(found.actions))
        part, mask = asking.part(0, size), found.guarded.mask[:size]
        worth = scores(part)
        chosen = worth[np.arange(size), found.actions[:size]]
        self.total += float((np.where(mask, worth, -np.inf).max(axis=1) - chosen).sum())
        self.count += size

    @property
    def mean(self) -> float:
        """Regret per decision, reward units."""
        return self.total / self.count if self.count else 0.0


def best_fixed(past: Run, *, tried: int = 3, days: int = 14) -> FixedNudge:
    """Return the single nudge that does most for everybody, tried out on the same customers.

    The few that the simulator's own chances put first, each counted as hold where it is blocked, are lived for some
    days; the one that earns most is it.
    """
    population, space = past.population, past.population.program.space
    worth = _Worth(space.k)
    rollout(population, sole(Uniform(space)), days=2, since=past, logged=False, watch=worth.see)
    ranked = worth.ranked()[:tried]
    policies = [FixedNudge(space, nudge=nudge) for a in ranked.tolist() if (nudge := space.nudge(a))]
    earned = [rollout(population, sole(p), days=days, since=past, logged=False).metrics.reward for p in policies]
    return policies[int(np.argmax(earned))]


class _Worth:
    """What each nudge would be worth for everybody, hold where it is blocked: a sum over those who asked."""

    def __init__(self, k: int) -> None:
        self.total = np.zeros(k)

    def see(self, asking: Asking, found: Chosen) -> None:
        size = min(8 * SAMPLE, len(found.actions))
        worth, mask = scores(asking.part(0, size)), found.guarded.mask[:size]
        self.total += np.where(mask, worth, worth[:, :1]).sum(axis=0)

    def ranked(self) -> Ints:
        """Nudges, the best first."""
        order: Ints = 1 + np.argsort(-self.total[1:], kind="stable")
        return order


__all__ = [
    "FIXED",
    "LEARNERS",
    "NAMES",
    "Contender",
    "Population",
    "Result",
    "Watch",
    "best_fixed",
    "contender",
    "joined",
]
