"""Which policies learn nothing? The logger's `Uniform`, what marketers run (`Rules`), and the two constants."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Bools, Floats, Ints, Nudge
from optimizer.floor import spread
from optimizer.policy import Rounds
from optimizer.program import Program, Rule
from policies.inputs import check
from policies.saved import Kept, Saved

HOLD_SHARE = 1.0 / 3.0
"""How often `Uniform` holds: 1/301 of holds would estimate nothing."""


class Uniform(Kept):
    """Holds a third of the time and spreads the rest evenly over the factors' levels: the first logger.

    >>> space = ActionSpace(("badge", "coupon"), ("warm",), ("now",))
    >>> mask = np.array([[True, True, True], [True, True, False], [True, False, False]])
    >>> Uniform(space).probabilities(np.empty((3, 0)), mask, np.zeros(3)).round(3).tolist()
    [[0.333, 0.333, 0.333], [0.333, 0.667, 0.0], [1.0, 0.0, 0.0]]
    """

    name: ClassVar[str] = "uniform"

    def __init__(self, space: ActionSpace) -> None:
        self.space = space

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        mixed = (1.0 - HOLD_SHARE) * spread(self.space, allowed)
        mixed[:, HOLD] += HOLD_SHARE
        return mixed

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def packed(self) -> Saved:
        return Saved(self.name, self.space)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:  # noqa: ARG003  (nothing was learned)
        return cls(space)


class Hold(Kept):
    """Never nudges: the yardstick of every programme.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",))
    >>> Hold(space).probabilities(np.empty((1, 0)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[1.0, 0.0]]
    """

    name: ClassVar[str] = "hold"

    def __init__(self, space: ActionSpace) -> None:
        self.space = space

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return _one_hot(np.full(len(contexts), HOLD), k=self.space.k)

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def packed(self) -> Saved:
        return Saved(self.name, self.space)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:  # noqa: ARG003  (nothing was learned)
        return cls(space)


class Fits(NamedTuple):
    """A rule as a policy reads it: the nudge, for contexts that have a feature of each group.

    A group is the features of which one must be there: `("stage=new", "stage=loyal")`. No group: for everybody.
    """

    groups: tuple[tuple[str, ...], ...]
    nudge: Nudge


class Rules(Kept):
    """What marketers run today: the first rule that fits and whose nudge is allowed, else hold.

    Args:
        space: the actions and features.
        rules: in order of preference. A rule whose nudge the space does not have is left out, and a feature that it
            does not have fits nobody: a program may retire what an older one named.

    >>> space = ActionSpace(("badge", "coupon"), ("warm",), ("now",), features=("stage=new", "stage=loyal"))
    >>> coupon, badge = Nudge("coupon", "warm", "now"), Nudge("badge", "warm", "now")
    >>> rules = [Fits((("stage=new",),), coupon), Fits((("stage=new",),), badge)]
    >>> mask = np.array([[True, True, True], [True, True, False], [True, True, True]])
    >>> Rules(space, rules=rules).probabilities(np.array([[1.0, 0], [1, 0], [0, 1]]), mask, np.zeros(3)).tolist()
    [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """

    name: ClassVar[str] = "rules"

    def __init__(self, space: ActionSpace, *, rules: Sequence[Fits]) -> None:
        self.space = space
        self.rules = tuple(rules)
        self._columns = [
            ([[space.features.index(f) for f in group if f in space.features] for group in groups], space.index(nudge))
            for groups, nudge in self.rules
            if _has(space, nudge)
        ]

    @classmethod
    def of(cls, program: Program) -> Self:
        """Return the rules that a program declares."""
        return cls(program.space, rules=[_fits(rule) for rule in program.rules])

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        chosen = np.full(len(contexts), HOLD)
        for groups, action in self._columns:
            fits = (chosen == HOLD) & allowed[:, action]
            for group in groups:
                fits &= (contexts[:, group] > 0).any(axis=1)
            chosen[fits] = action
        return _one_hot(chosen, k=self.space.k)

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def packed(self) -> Saved:
        return Saved(self.name, self.space, {"rules": [[list(map(list, r.groups)), list(r.nudge)] for r in self.rules]})

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        rules = [Fits(tuple(map(tuple, groups)), Nudge(*nudge)) for groups, nudge in packed.setting("rules", list)]
        return cls(space, rules=rules)


def _fits(rule: Rule) -> Fits:
    stages = tuple(f"stage={stage}" for stage in rule.stages)
    segments = tuple(tuple(f"{name}={c}" for c in categories) for name, categories in rule.where.items())
    return Fits((*((stages,) if stages else ()), *segments), Nudge(rule.incentive, rule.tone, rule.timing))


class FixedNudge(Kept):
    """Always the same nudge where it is allowed, else hold.

    A nudge that the space does not have is always hold: a program may retire it.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",))
    >>> policy = FixedNudge(space, nudge=Nudge("badge", "warm", "now"))
    >>> policy.probabilities(np.empty((2, 0)), np.array([[True, True], [True, False]]), np.zeros(2)).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, space: ActionSpace, *, nudge: Nudge) -> None:
        self.space = space
        self.nudge = Nudge(*nudge)
        self._action = space.index(self.nudge) if _has(space, self.nudge) else HOLD

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return _one_hot(np.where(allowed[:, self._action], self._action, HOLD), k=self.space.k)

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def packed(self) -> Saved:
        return Saved(self.name, self.space, {"nudge": list(self.nudge)})

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        return cls(space, nudge=Nudge(*packed.setting("nudge", list)))


def _has(space: ActionSpace, nudge: Nudge) -> bool:
    return all(part in names for part, names in zip(nudge, space.factors, strict=True))


def _one_hot(actions: Ints, *, k: int) -> Floats:
    chosen = np.zeros((len(actions), k))
    chosen[np.arange(len(actions)), actions] = 1.0
    return chosen
