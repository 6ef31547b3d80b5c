"""Which actions exist? The grid incentive x tone x timing, and `hold`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

HOLD = 0
"""Index of `hold` in every action space."""

FACTORS = ("incentive", "tone", "timing")


class Nudge(NamedTuple):
    """The parts of an action that is not hold, by name."""

    incentive: str
    tone: str
    timing: str


@dataclass(frozen=True)
class ActionSpace:
    """What a policy chooses among, and what it is told: `k` actions, `d` features, by name.

    Action 0 is hold; the others are ordered incentive first, then tone, then timing.

    Args:
        incentives, tones, timings: names of the levels of each factor.
        features: names of the context's columns, in the order of `customer.encode`.
        costs: expected cost of each incentive in reward units; zeros where omitted.
        ladders: incentives that are the same reward in growing sizes, each ladder from the smallest to the largest.

    >>> space = ActionSpace(("badge", "coupon"), ("warm",), ("now", "evening"), costs=(0.0, 3.0))
    >>> space.k, space.names[:3]
    (5, ('hold', 'badge/warm/now', 'badge/warm/evening'))
    >>> space.index(Nudge("coupon", "warm", "evening")), space.nudge(4).incentive, space.nudge(0)
    (4, 'coupon', None)
    >>> space.levels.tolist()
    [[-1, -1, -1], [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    >>> space.action_costs.tolist()
    [0.0, 0.0, 0.0, 3.0, 3.0]
    """

    incentives: tuple[str, ...]
    tones: tuple[str, ...]
    timings: tuple[str, ...]
    features: tuple[str, ...] = ()
    costs: tuple[float, ...] = ()
    ladders: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for factor, names in zip(FACTORS, self.factors, strict=True):
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{factor} needs one or more distinct names, got {names!r}")
        if self.costs and len(self.costs) != len(self.incentives):
            raise ValueError(f"costs has {len(self.costs)} entries for {len(self.incentives)} incentives")
        rungs = [name for ladder in self.ladders for name in ladder]
        if len(set(rungs)) != len(rungs) or not set(rungs) <= set(self.incentives):
            raise ValueError(f"ladders = {self.ladders!r}: expected each of {', '.join(self.incentives)} at most once")

    @property
    def factors(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """The names of the levels, a tuple a factor."""
        return self.incentives, self.tones, self.timings

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many levels each factor has."""
        return len(self.incentives), len(self.tones), len(self.timings)

    @cached_property
    def k(self) -> int:
        """How many actions there are, hold included."""
        return 1 + math.prod(self.shape)

    @property
    def d(self) -> int:
        """How many features a context has."""
        return len(self.features)

    @cached_property
    def levels(self) -> Ints:
        """Shape (k, 3): the level of each factor; -1 for hold."""
        grid = np.indices(self.shape).reshape(3, -1).T
        levels = np.concatenate([np.full((1, 3), -1), grid]).astype(np.intp)
        levels.setflags(write=False)
        return levels

    @cached_property
    def membership(self) -> tuple[Floats, Floats, Floats]:
        """For each factor, shape (k - 1, levels): 1 where a nudge has the level."""
        incentive, tone, timing = (np.eye(n)[self.levels[1:, f]] for f, n in enumerate(self.shape))
        return incentive, tone, timing

    @cached_property
    def joint_membership(self) -> Floats:
        """Shape (k - 1, levels of all factors): those of `membership` side by side."""
        return np.concatenate(self.membership, axis=1)

    @cached_property
    def starts(self) -> Ints:
        """Shape (3,): the first column of each factor in `joint_membership`."""
        return np.cumsum([0, *self.shape[:2]])

    @cached_property
    def columns(self) -> Ints:
        """Shape (3, k - 1): the columns of each nudge in `joint_membership`."""
        return np.ascontiguousarray((self.levels[1:] + self.starts).T)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """`hold`, then `incentive/tone/timing`; shape (k,)."""
        return ("hold", *(f"{i}/{t}/{m}" for i in self.incentives for t in self.tones for m in self.timings))

    @cached_property
    def action_costs(self) -> Floats:
        """Shape (k,): expected cost in reward units; 0 for hold."""
        costs = np.zeros(self.k)
        if self.costs:
            costs[1:] = np.asarray(self.costs)[self.levels[1:, 0]]
        costs.setflags(write=False)
        return costs

    def index(self, nudge: Nudge | None) -> int:
        """Return the index of a nudge, or of hold for None; ValueError if a name is unknown."""
        if nudge is None:
            return HOLD
        at = [_position(names, name, factor) for factor, names, name in zip(FACTORS, self.factors, nudge, strict=True)]
        return 1 + int(np.ravel_multi_index(at, self.shape))

    def nudge(self, index: int) -> Nudge | None:
        """Return the parts of an action, or None for hold."""
        if index == HOLD:
            return None
        i, t, m = self.levels[index]
        return Nudge(self.incentives[i], self.tones[t], self.timings[m])


def _position(names: Sequence[str], name: str, factor: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise ValueError(f"unknown {factor} {name!r}: expected one of {', '.join(names)}") from None
