"""What would each action have been worth? Cross-fitted q(x, a), folds by customer.

A factored ridge model: `q(x, a) = z . (b + w_nudge + w_incentive + w_tone + w_timing) + pairs`, where `z` is
    the
context with a constant before it and each pair of levels has a number of its own: an action that was seldom
    drawn borrows from those that share its levels. What predicts a customer's rounds has seen none of them,
    and that is what lets DR keep its interval.

Everything is learned from Gram matrices by fold and action. They add up: shards merge exactly, and leaving a
fold out is a subtraction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve

from optimizer.actions import ActionSpace, Floats, Ints
from optimizer.policy import Rounds

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Ridge penalties that cross-validation chooses among: contexts are of order one, effects well below the noise."""

_CAUTION = 4.0
"""How much more a level's dependence on the context, and a pair, are shrunk than a level's own effect."""


@dataclass(frozen=True)
class Moments:
    """Sums over rounds by fold and action, with `z = (1, context)` and m outcomes: all that models learn from.

    Args:
        zz: (folds, k, d + 1, d + 1), `z` with itself.
        zr: (folds, k, d + 1, m), `z` with the outcomes.
        rr: (folds, m), squared outcomes.
    """

    zz: Floats
    zr: Floats
    rr: Floats

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.zz + other.zz, self.zr + other.zr, self.rr + other.rr)


@dataclass(frozen=True)
class RewardModel:
    """q(x, a), once without each fold.

    Args:
        coefficients: (folds, k, d + 1), on `(1, context)`.
        penalty: the ridge penalty that was chosen.
        explained: share of the rewards' variance predicted for customers left out; below 0 is worse than the
            mean.
    """

    coefficients: Floats
    penalty: float
    explained: float

    def predict(self, rounds: Rounds) -> Floats:
        """Return q (n, k), each row from the model that left its customer out."""
        q = np.empty((len(rounds), self.coefficients.shape[1]))
        folds = fold_of(rounds.customers, folds=len(self.coefficients))
        for fold, weights in enumerate(self.coefficients):
            rows = folds == fold
            q[rows] = rounds.contexts[rows] @ weights[:, 1:].T + weights[:, 0]
        return q


def cross_fit(rounds: Rounds, space: ActionSpace, *, folds: int = 5) -> RewardModel:
    """Learn q(x, a) from matured rounds.

    >>> import numpy as np
    >>> n, space = 4_000, ActionSpace(("badge",), ("warm",), ("now",), features=("bias",))
    >>> rounds = Rounds(
    ...     contexts=np.ones((n, 1)), allowed=np.ones((n, 2), dtype=bool),
    ...     probabilities=np.full((n, 2), 0.5, dtype=np.float32), actions=np.arange(n) % 2,
    ...     rewards=np.arange(n) % 2 * 3.0, customers=np.arange(n), at=np.zeros(n), cost_prices=np.zeros(n),
    ...     burdens=np.zeros(n), loggers=np.zeros(n, dtype=np.intp))
    >>> cross_fit(rounds, space).predict(rounds)[0].round(1).tolist()
    [0.0, 3.0]
    """
    return fit(moments(rounds, rounds.rewards[:, None], k=space.k, folds=folds), space)[0]


def fold_of(customers: Ints, *, folds: int) -> Ints:
    """Return the fold (n,) of customers' codes (n,): a fixed scramble, so that a fold is like any other.

    >>> fold_of(np.array([0, 1, 2, 3, 0]), folds=2).tolist()
    [1, 1, 0, 1, 1]
    """
    # The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    z = customers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % np.uint64(folds)).astype(np.intp)


def moments(rounds: Rounds, outcomes: Floats, *, k: int, folds: int = 5) -> Moments:
    """Sum up rounds and their outcomes (n, m) by fold and action."""
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}: a customer is predicted from others")
    width, m = 1 + rounds.contexts.shape[1], outcomes.shape[1]
    zz, zr = np.zeros((folds * k, width, width)), np.zeros((folds * k, width, m))
    rr = np.zeros((folds, m))
    fold = fold_of(rounds.customers, folds=folds)
    np.add.at(rr, fold, outcomes**2)
    for cell, rows in _groups(fold * k + rounds.actions):
        z = np.column_stack([np.ones(len(rows)), rounds.contexts[rows]])
        zz[cell], zr[cell] = z.T @ z, z.T @ outcomes[rows]
    return Moments(zz.reshape(folds, k, width, width), zr.reshape(folds, k, width, m), rr)


def fit(sums: Moments, space: ActionSpace) -> tuple[RewardModel, ...]:
    """Fit the factored ridge model of each outcome without each fold.

    Each takes the penalty that predicts the first fold best from the others.
    """
    design = Design(space, width=sums.zr.shape[2])
    grams = np.stack([design.gram(zz) for zz in sums.zz])
    products = np.stack([design.product(zr) for zr in sums.zr])
    rest = _Rest(grams.sum(axis=0) - grams, products.sum(axis=0) - products)
    tried = np.stack([_ridge(rest, 0, penalty=p * design.caution) for p in PENALTIES])
    errors = np.stack([_squares(w, grams[0], products[0]) for w in tried])
    models = []
    for m, penalty in enumerate(np.asarray(PENALTIES)[errors.argmin(axis=0)]):
        one = _Rest(rest.grams, rest.products[:, :, [m]])
        fits = np.stack([_ridge(one, f, penalty=penalty * design.caution)[:, 0] for f in range(len(grams))])
        models.append(
            RewardModel(
                coefficients=np.stack([design.by_action(w) for w in fits]),
                penalty=float(penalty),
                explained=_explained(sums, fits, grams, products[:, :, m], outcome=m),
            )
        )
    return tuple(models)


class _Rest(NamedTuple):
    """Gram matrices (folds, p, p) and products (folds, p, m) of all other folds."""

    grams: Floats
    products: Floats


def _explained(sums: Moments, fits: Floats, grams: Floats, products: Floats, *, outcome: int) -> float:
    """Share of an outcome's variance that fits (folds, p) predict for the folds they have not seen."""
    n, total, squares = sums.zz[:, :, 0, 0].sum(), sums.zr[:, :, 0, outcome].sum(), sums.rr[:, outcome].sum()
    variance = squares - total**2 / max(n, 1.0)
    left = squares + sum(
        float(_squares(w[:, None], g, b[:, None])[0]) for w, g, b in zip(fits, grams, products, strict=True)
    )
    return float(1.0 - left / variance) if variance > 0 else 0.0


def _groups(codes: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield each code with the rows that have it."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if len(codes) else []:
        yield int(codes[rows[0]]), rows


def _ridge(rest: _Rest, fold: int, *, penalty: Floats) -> Floats:
    """Shape (p, m): ridge coefficients from all but a fold."""
    found: Floats = solve(rest.grams[fold] + np.diag(penalty), rest.products[fold], assume_a="pos")
    return found


def _squares(fits: Floats, gram: Floats, products: Floats) -> Floats:
    """Squared errors (m,) of fits (p, m), less the outcomes' own squares: `w'Gw - 2 w'b`."""
    errors: Floats = ((gram @ fits - 2.0 * products) * fits).sum(axis=0)
    return errors


class Design:
    """The factored model's columns: levels crossed with `z`, then pairs of levels on their own."""

    def __init__(self, space: ActionSpace, *, width: int) -> None:
        self.width = width
        self.crossed, self.pairs = _level_columns(space), _pair_columns(space)
        own = np.array([1e-6, *[1.0] * (width - 1)]), np.array([1.0, *[_CAUTION] * (width - 1)])
        everyone = np.concatenate([own[0], np.ones(width)])
        levels = np.tile(own[1], self.crossed.shape[1] - 2)
        self.caution: Floats = np.concatenate([everyone, levels, np.full(self.pairs.shape[1], _CAUTION)])

    def gram(self, zz: Floats) -> Floats:
        """Shape (p, p), from (k, width, width)."""
        crossed, pairs, width = self.crossed, self.pairs, self.width
        m, c = crossed.shape[1], pairs.shape[1]
        k = len(crossed)
        outer = np.einsum("ap,aq->pqa", crossed, crossed).reshape(m * m, k)
        main = (outer @ zz.reshape(k, -1)).reshape(m, m, width, width).transpose(0, 2, 1, 3)
        mixed = np.einsum("ap,aj,ac->pjc", crossed, zz[:, 0], pairs, optimize=True).reshape(m * width, c)
        alone = pairs.T @ (zz[:, 0, 0, None] * pairs)
        return np.block([[main.reshape(m * width, m * width), mixed], [mixed.T, alone]])

    def product(self, zr: Floats) -> Floats:
        """Shape (p, m), from (k, width, m)."""
        crossed = np.einsum("ap,ajm->pjm", self.crossed, zr).reshape(-1, zr.shape[2])
        return np.concatenate([crossed, self.pairs.T @ zr[:, 0]])

    def by_action(self, weights: Floats) -> Floats:
        """Shape (k, width): what a fit (p,) says of each action."""
        split = self.crossed.shape[1] * self.width
        rows = self.crossed @ weights[:split].reshape(-1, self.width)
        rows[:, 0] += self.pairs @ weights[split:]
        return rows


def _level_columns(space: ActionSpace) -> Floats:
    """Shape (k, 2 + levels): everyone, any nudge, then each level of each factor."""
    nudge = space.levels[:, :1] >= 0
    hot = [space.levels[:, [f]] == np.arange(size) for f, size in enumerate(space.shape)]
    return np.hstack([np.ones_like(nudge), nudge, *hot]).astype(np.float64)


def _pair_columns(space: ActionSpace) -> npt.NDArray[np.float64]:
    """Shape (k, pairs): each pair of levels of two factors."""
    columns = [
        space.levels[:, [f]] * size + space.levels[:, [g]] == np.arange(space.shape[f] * size)
        for (f, g), size in (((f, g), space.shape[g]) for f, g in combinations(range(3), 2))
    ]
    columns = [c & (space.levels[:, :1] >= 0) for c in columns]
    return np.hstack(columns).astype(np.float64)
