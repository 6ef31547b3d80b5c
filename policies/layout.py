"""What are the parameters of the factored model called, and what multiplies each of them?"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np

from optimizer.actions import FACTORS, ActionSpace, Floats, Ints

BIAS = "bias"

PAIRS = ((0, 1), (0, 2), (1, 2))
"""Which factors pair up."""

GROUPS = 15
"""Nudge and three factors, each with its levels and its slopes; three pairs; the slopes by segment of each factor."""

BY = " x "
"""In the name of a column that is a product: a segment's indicator and what it multiplies. See `hierarchical`."""

Parameter = tuple[str, str]
"""A level and the context's column that it multiplies, or a pair of levels."""


@dataclass(frozen=True)
class Layout:
    """The parameters of the model of a space, in order: (level, column) for every level, then the pairs of levels.

    Args:
        space: its features begin with, or contain, `bias`; see `layout`.
    """

    space: ActionSpace

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the context's columns, shape (d,)."""
        return self.space.features

    @cached_property
    def numbers(self) -> Ints:
        """Which of the context's columns are numbers, not marks of a category: those whose squares are known too."""
        marked = [name == BIAS or "=" in name for name in self.columns]
        return np.flatnonzero(~np.array(marked, dtype=np.bool_))

    @cached_property
    def baseline(self) -> tuple[str, ...]:
        """Names of what the baseline is linear in, shape (b,): the columns, and the squares of numbers."""
        return (*self.columns, *(f"{self.columns[i]} squared" for i in self.numbers))

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """`nudge`, then the levels of each factor; shape (l,)."""
        named = [f"{f}={x}" for f, names in zip(FACTORS, self.space.factors, strict=True) for x in names]
        return ("nudge", *named)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Shape (p,)."""
        main = product(self.levels, self.columns)
        split = [[f"{f}={x}" for x in names] for f, names in zip(FACTORS, self.space.factors, strict=True)]
        pairs = [product(split[a], split[b]) for a, b in PAIRS]
        return (*main, *(p for pair in pairs for p in pair))

    @cached_property
    def groups(self) -> Ints:
        """Shape (p,): which prior scale each parameter has: its factor's levels or slopes, or its pair of factors."""
        factor = np.repeat(np.arange(4), (1, *self.space.shape))
        kinds = [2 if BY in column else int(column != BIAS) for column in self.columns]
        groups = np.array([[2 * f, 2 * f + 1, 11 + f] for f in range(4)], dtype=np.intp)
        i, t, m = self.space.shape
        pairs = np.repeat(np.arange(8, 11), (i * t, i * m, t * m))
        return np.concatenate([groups[factor][:, kinds].ravel(), pairs])

    @property
    def mains(self) -> int:
        """How many parameters are not pairs."""
        return len(self.levels) * len(self.columns)

    @cached_property
    def level_features(self) -> Floats:
        """Shape (k, l): which levels each action has; none for hold."""
        return self._one_hots(*((self.space.levels[:, f], n) for f, n in enumerate(self.space.shape)), nudge=True)

    @cached_property
    def pair_features(self) -> Floats:
        """Shape (k, q): which pairs of levels each action has; none for hold."""
        sizes = self.space.shape
        codes = [(self.space.levels[:, a] * sizes[b] + self.space.levels[:, b], sizes[a] * sizes[b]) for a, b in PAIRS]
        return self._one_hots(*codes, nudge=False)

    def _one_hots(self, *codes: tuple[Ints, int], nudge: bool) -> Floats:
        parts = [np.ones((self.space.k, 1))] if nudge else []
        parts += [(code[:, None] == np.arange(n)).astype(float) for code, n in codes]
        features = np.concatenate(parts, axis=1)
        features[0] = 0.0
        return features

    def design(self, contexts: Floats) -> Floats:
        """Return contexts (n, d) with a constant column where the space itself has none."""
        if contexts.shape[1] == len(self.columns):
            return contexts
        return np.concatenate([np.ones((len(contexts), 1)), contexts], axis=1)

    def widened(self, x: Floats) -> Floats:
        """Return columns x (d, n) and the squares of its numbers, shape (b, n): what the baseline is linear in."""
        return np.concatenate([x, x[self.numbers] ** 2])

    def positions(self, other: "Layout") -> Ints:
        """Shape (p,): where each of our parameters is among the other's; -1 where it is not."""
        index = {name: i for i, name in enumerate(other.parameters)}
        return np.array([index.get(name, -1) for name in self.parameters], dtype=np.intp)

    def union(self, other: "Layout") -> "Layout":
        """Return the layout of all names of both, ours first."""
        if self == other:
            return self
        ours, theirs = self.space, other.space
        return Layout(
            ActionSpace(
                incentives=_joined(ours.incentives, theirs.incentives),
                tones=_joined(ours.tones, theirs.tones),
                timings=_joined(ours.timings, theirs.timings),
                features=_joined(ours.features, theirs.features),
            )
        )


def layout(space: ActionSpace) -> Layout:
    """Return the parameters of a space, with a constant column where it has no feature called `bias`.

    >>> layout(ActionSpace(("a", "b"), ("t",), ("m",), features=("x",))).parameters[:4]
    (('nudge', 'bias'), ('nudge', 'x'), ('incentive=a', 'bias'), ('incentive=a', 'x'))
    """
    features = space.features if BIAS in space.features else (BIAS, *space.features)
    return Layout(replace(space, features=features, costs=(), ladders=()))


def _joined(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return ours + tuple(name for name in theirs if name not in ours)
