"""What is a round worth to a target if effects are factored? Weights that ask only for levels, or pairs of them.

A weight `pi(A) / mu(A)` asks how likely the very action drawn was. Where incentive, tone and timing add up, a round of
another action with the same levels says as much, and the pseudo-inverse weight (after Swaminathan et al., 2017, here
for masks and any logged vector) makes use of it.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from optimizer.actions import ActionSpace, Floats, Floats32, Ints
from optimizer.policy import Rounds
from policies.compiled import compile_loops

Order = Literal[1, 2]
Members = npt.NDArray[np.uint32]

_RIDGE = 1e-7
_PASSES = 5
"""Times that the error of the ridge is taken out: each divides it by an eigenvalue over the ridge."""


def pseudo_inverse(rounds: Rounds, space: ActionSpace, *, order: Order) -> Floats:
    """Return what a unit of probability on each action (n, k) adds to a round's weight, if effects are factored.

    The weight of a target is the sum over its probabilities: `w = sum_a pi(a) f(a)' G^+ f(A)` with
    `G = sum_a mu(a) f(a) f(a)'` and f the levels (order 1) or also their pairs (order 2) of an action. In place of
    `pi(A) / mu(A)` it keeps DR unbiased where rewards have no interactions of higher order, with far less spread.

    >>> rounds = Rounds(
    ...     contexts=np.ones((1, 1)), allowed=np.ones((1, 5), dtype=bool),
    ...     probabilities=np.full((1, 5), 0.2, dtype=np.float32), actions=np.array([1]), rewards=np.ones(1),
    ...     customers=np.zeros(1, dtype=np.intp), at=np.zeros(1), cost_prices=np.zeros(1), burdens=np.zeros(1),
    ...     loggers=np.zeros(1, dtype=np.intp))
    >>> space = ActionSpace(("badge", "coupon"), ("warm", "dry"), ("now",))
    >>> pseudo_inverse(rounds, space, order=1).round(2).tolist()  # 5 for the action drawn, if it stood alone
    [[0.0, 3.75, 1.25, 1.25, -1.25]]
    """
    return lever(rounds, space, order=order).of_actions


class Lever(NamedTuple):
    """What each round (n, p) gives to a column of the levels (and pairs), and the columns of each action (k, p)."""

    rows: Floats
    columns: Floats

    @property
    def of_actions(self) -> Floats:
        """Shape (n, k): what a unit of probability on each action adds to a round's weight."""
        added: Floats = self.rows @ self.columns.T
        return added

    def weights(self, target: Floats) -> Floats:
        """Return the weights (n,) of a target's probabilities (n, k)."""
        weights: Floats = np.einsum("np,np->n", target @ self.columns, self.rows)
        return weights


def lever(rounds: Rounds, space: ActionSpace, *, order: Order) -> Lever:
    """Return `G^+ f(A)` for each round: what its weight for any target is found from."""
    design = _design(space, order)
    rows = np.empty((len(rounds), design.columns.shape[1]))
    loops = _compiled()
    probabilities = np.ascontiguousarray(rounds.probabilities)
    actions = np.ascontiguousarray(rounds.actions, dtype=np.intp)
    loops(probabilities, actions, design.members, design.cells, design.sizes, space.shape, order == 1, rows)
    return Lever(rows, design.columns)


class _Design(NamedTuple):
    """The columns of each action (k, p), which of them are 1 (k, most) in order, and how many those are (k,).

    `cells` (k, most, most) is where the product of two of them lies in a flat (p, p); that of a later with an earlier,
    or of none, is not asked for.
    """

    columns: Floats
    members: Members
    cells: Members
    sizes: Ints


@lru_cache(maxsize=8)
def _design(space: ActionSpace, order: Order) -> _Design:
    columns = _columns(space, order=order)
    sizes = columns.sum(axis=1).astype(np.intp)
    members = np.zeros((len(columns), int(sizes.max())), dtype=np.uint32)
    for action, row in enumerate(columns):
        members[action, : sizes[action]] = np.flatnonzero(row)
    cells = members[:, :, None] * np.uint32(columns.shape[1]) + members[:, None, :]
    return _Design(columns, members, cells, sizes)


def _columns(space: ActionSpace, *, order: Order) -> Floats:
    """Shape (k, p): a constant, any nudge, all levels but the first of each factor, and with order 2 their products."""
    hot = [space.levels[:, [f]] == np.arange(1, size) for f, size in enumerate(space.shape)]
    pairs = [
        (hot[f][:, :, None] & hot[g][:, None, :]).reshape(space.k, -1)
        for f, g in combinations(range(3), 2)
        if order > 1
    ]
    nudge = space.levels[:, :1] >= 0
    return np.hstack([np.ones_like(nudge), nudge, *hot, *pairs]).astype(np.float64)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., None]:
    return compile_loops(_solve)


def _solve(  # noqa: C901, PLR0912, PLR0915, PLR0917  (numba takes arguments by position, and wants its loops in one place)
    logged: Floats32,
    actions: Ints,
    members: Members,
    cells: Members,
    sizes: Ints,
    shape: tuple[int, int, int],
    levels_only: bool,  # noqa: FBT001
    rows: Floats,
) -> None:
    """Write `G^+ f` into rows (n, p), for f in the range of G: a slight ridge, then its error taken out again."""
    n, p = rows.shape
    k = logged.shape[1]
    flat, factor, left = np.empty(p * p), np.empty((p, p)), np.empty(p)
    gram = flat.reshape(p, p)
    first, second, third = shape
    # Shares of two levels together: incentive and tone, incentive and timing, tone and timing.
    it, im, tm = np.empty((first, second)), np.empty((first, third)), np.empty((second, third))
    tones, timings = first, first + second - 1  # the column of a level is that plus the level
    for row in range(n):
        flat[:] = 0.0
        total = float(logged[row, 0])
        if levels_only:  # all there is to G are shares of two levels, and the nudges lie in a grid
            im[:] = 0.0
            tm[:] = 0.0
            a = 1
            for i in range(first):
                for t in range(second):
                    both = 0.0
                    for m in range(third):
                        both += logged[row, a + m]
                        im[i, m] += logged[row, a + m]
                        tm[t, m] += logged[row, a + m]
                    it[i, t] = both
                    total += both
                    a += third
            gram[0, 0] = total
            for i in range(first):
                for t in range(second):
                    gram[0, 1] += it[i, t]
                    if i > 0:
                        gram[0, 1 + i] += it[i, t]
                    if t > 0:
                        gram[0, tones + t] += it[i, t]
                    if i > 0 and t > 0:
                        gram[1 + i, tones + t] = it[i, t]
            for m in range(1, third):
                for t in range(second):
                    gram[0, timings + m] += tm[t, m]
                    if t > 0:
                        gram[tones + t, timings + m] = tm[t, m]
                for i in range(1, first):
                    gram[1 + i, timings + m] = im[i, m]
            for c in range(1, p):
                gram[1, c] = gram[0, c]
                gram[c, c] = gram[0, c]
        else:
            total = 0.0
            for a in range(k):
                share = float(logged[row, a])
                total += share
                if share > 0.0:
                    for i in range(sizes[a]):
                        for j in range(i, sizes[a]):
                            flat[cells[a, i, j]] += share
        for i in range(p):
            for j in range(i, p):
                gram[i, j] /= total
                factor[i, j] = gram[i, j]
                gram[j, i] = gram[i, j]
            factor[i, i] += _RIDGE
        for c in range(p):  # factor' factor = gram, a row at a time
            root = np.sqrt(factor[c, c])
            for j in range(c, p):
                factor[c, j] /= root
            for i in range(c + 1, p):
                by = factor[c, i]
                if by != 0.0:
                    for j in range(i, p):
                        factor[i, j] -= by * factor[c, j]
        for i in range(p):
            for j in range(i):
                factor[i, j] = factor[j, i]
        found = rows[row]
        found[:] = 0.0
        for again in range(_PASSES):
            left[:] = 0.0
            for i in range(sizes[actions[row]]):
                left[members[actions[row], i]] = 1.0
            if again:
                for i in range(p):
                    for j in range(p):
                        left[j] -= gram[i, j] * found[i]
            for i in range(p):
                left[i] /= factor[i, i]
                for j in range(i + 1, p):
                    left[j] -= factor[i, j] * left[i]
            for i in range(p - 1, -1, -1):
                left[i] /= factor[i, i]
                found[i] += left[i]
                for j in range(i):  # of the copy below the diagonal: side by side, so several at once
                    left[j] -= factor[i, j] * left[i]
