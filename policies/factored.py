"""What do rounds say about the effect of an action? The factored linear model, from sums that add up.

The reward of action `a` in context `x` is a baseline, the same for every action, plus the action's effect `tau(x, a)`,
which is 0 for hold and otherwise

    tau(x, a) = x . (w_nudge + w_incentive + w_tone + w_timing) + c_incentive,tone + c_incentive,timing + c_tone,timing

so a round teaches every action that shares a level with the one drawn. Effects are action-centred (Greenewald et al.
2017): `r - m(x)`, with `m(x)` cross-fitted over folds of customers, is regressed on the features of the action drawn
less their mean under the logged probabilities. No baseline, however wrong, correlates with those. All of it is found
from sums over rounds, so shards add up exactly, whatever their number.
"""

from dataclasses import dataclass

import numpy as np

from optimizer.actions import ActionSpace, Floats, Ints
from optimizer.policy import Rounds
from policies.inputs import check_rounds
from policies.layout import Layout, layout
from policies.threads import one_thread

FOLDS = 5
_BLOCK = 2048
"""Rounds whose products are formed at once: bounds the memory, and fits the cache."""


@dataclass(frozen=True)
class Statistics:
    """All that the model keeps of the rounds: sums over them, per fold of customers where the baseline needs it.

    With features `z` of an action (p,), centred, and context `x` (d,); weights halve every `half_life` seconds
    before `as_of`.

    Args:
        layout: the names of z and x.
        half_life: in seconds; None never forgets.
        as_of: the time of the latest round; -inf without one.
        fingerprint: sum of a hash of each round, modulo 2**64: the same however the rounds were sharded.
        zz: (p, p) sum of z z'. seen: (d,) weight of the rounds in which a column is not 0.
        zx: (folds, p, d) of z x'. zr: (folds, p) of z r. xx: (folds, d, d). xr: (folds, d). rr, n: (folds,).
    """

    layout: Layout
    half_life: float | None
    as_of: float
    fingerprint: int
    zz: Floats
    seen: Floats
    zx: Floats
    zr: Floats
    xx: Floats
    xr: Floats
    rr: Floats
    n: Floats

    @classmethod
    def empty(cls, layout: Layout, *, half_life: float | None = None) -> "Statistics":
        """Return the sums over no rounds."""
        p, d = len(layout.parameters), len(layout.columns)
        shapes = ((p, p), (d,), (FOLDS, p, d), (FOLDS, p), (FOLDS, d, d), (FOLDS, d), (FOLDS,), (FOLDS,))
        return cls(layout, half_life, -np.inf, 0, *(np.zeros(shape) for shape in shapes))

    @property
    def sums(self) -> dict[str, Floats]:
        """The arrays, by name."""
        return {name: getattr(self, name) for name in ("zz", "seen", "zx", "zr", "xx", "xr", "rr", "n")}

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the sums over both: aligned by name, the older ones forgotten to the later time."""
        if self.half_life != other.half_life:
            raise ValueError(
                f"half-lives differ: {self.half_life!r} and {other.half_life!r}; sum rounds up with one of them"
            )
        joint = self.layout.union(other.layout)
        as_of = max(self.as_of, other.as_of)
        ours, theirs = self._at(as_of, joint), other._at(as_of, joint)
        return Statistics(
            joint,
            self.half_life,
            as_of,
            (self.fingerprint + other.fingerprint) % 2**64,
            **{name: ours[name] + theirs[name] for name in ours},
        )

    def _at(self, as_of: float, joint: Layout) -> dict[str, Floats]:
        faded = 1.0
        if self.half_life and np.isfinite(self.as_of):
            faded = 2.0 ** ((self.as_of - as_of) / self.half_life)
        z = joint.positions(self.layout) if joint != self.layout else None
        if z is None:
            return {name: faded * array for name, array in self.sums.items()}
        index = {name: i for i, name in enumerate(self.layout.columns)}
        x = np.array([index.get(name, -1) for name in joint.columns])
        axes = {"zz": (z, z), "seen": (x,), "zx": (None, z, x), "zr": (None, z), "xx": (None, x, x), "xr": (None, x)}
        return {name: faded * _spread(array, axes.get(name, ())) for name, array in self.sums.items()}


def _spread(array: Floats, axes: tuple[Ints | None, ...]) -> Floats:
    """Take each axis's positions; 0 where a position is -1."""
    for axis, at in enumerate(axes):
        if at is not None:
            array = np.take(array, at, axis=axis)
            array[(slice(None),) * axis + (at < 0,)] = 0.0
    return array


def summarise(space: ActionSpace, rounds: Rounds, *, half_life: float | None = None) -> Statistics:
    """Sum rounds up; the sums of several shards are added with `+`.

    Memory is bounded by a block of rounds, and time is a few products of matrices a block.

    Args:
        space: the rounds' actions and features.
        rounds: n of them; ValueError if any is malformed.
        half_life: seconds after which a round counts half; None counts all alike.
    """
    check_rounds(space, rounds)
    named = layout(space)
    if not len(rounds):
        return Statistics.empty(named, half_life=half_life)
    as_of = float(rounds.at.max())
    weights = np.ones(len(rounds)) if half_life is None else 2.0 ** ((rounds.at - as_of) / half_life)
    folds = rounds.customers.astype(np.intp) % FOLDS
    sums = _Sums(named)
    with one_thread():
        for start in range(0, len(rounds), _BLOCK):
            rows = start + np.argsort(folds[start : start + _BLOCK], kind="stable")
            sums.add(rounds, rows=rows, weights=weights[rows], folds=folds[rows])
    return Statistics(named, half_life, as_of, _fingerprint(rounds), **sums.expanded())


class _Sums:
    """Adds up blocks of rounds.

    The products of main effects `x (x) g` are formed from the distinct products of `x` with itself and of `g` with
    itself: a third of the multiplications, and two small factors to form.
    """

    def __init__(self, named: Layout) -> None:
        self.layout = named
        d, levels, q = len(named.columns), len(named.levels), named.pair_features.shape[1]
        self.features = np.concatenate([named.level_features, named.pair_features], axis=1)
        self.xx_gg = np.zeros((d * (d + 1) // 2, levels * (levels + 1) // 2))
        self.xx_g = np.zeros((FOLDS, d * (d + 1) // 2, 1 + levels))
        self.z_h = np.zeros((levels * d, q))
        self.hh = np.zeros((q, q))
        self.x_h = np.zeros((FOLDS, d, q))
        self.x_rg = np.zeros((FOLDS, d, 1 + levels))
        self.rh = np.zeros((FOLDS, q))
        self.rr = np.zeros(FOLDS)
        self.n = np.zeros(FOLDS)
        self.seen = np.zeros(d)

    def add(self, rounds: Rounds, *, rows: Ints, weights: Floats, folds: Ints) -> None:
        """Add rounds given by index, ordered by fold."""
        x = np.ascontiguousarray(self.layout.design(rounds.contexts[rows]).T, dtype=np.float64)  # (d, b)
        p = rounds.probabilities[rows].astype(np.float64)
        mean = (p @ self.features) / p.sum(axis=1, keepdims=True)
        centred = np.ascontiguousarray((self.features[rounds.actions[rows]] - mean).T)  # (l + q, b)
        g, h = centred[: len(self.layout.levels)], centred[len(self.layout.levels) :]
        xx, weighted_h = _products(x), h * weights
        self.xx_gg += xx @ _products(g * np.sqrt(weights)).T
        self.z_h += (g[:, None, :] * x).reshape(-1, len(rows)) @ weighted_h.T
        self.hh += h @ weighted_h.T
        self.seen += (x != 0) @ weights
        self._add_by_fold(x, xx=xx, g=g, weighted_h=weighted_h, r=rounds.rewards[rows], weights=weights, folds=folds)

    def _add_by_fold(
        self, x: Floats, *, xx: Floats, g: Floats, weighted_h: Floats, r: Floats, weights: Floats, folds: Ints
    ) -> None:
        one_g = weights * np.concatenate([np.ones((1, len(r))), g])
        edges = np.searchsorted(folds, np.arange(FOLDS + 1))
        for fold in range(FOLDS):
            at = slice(edges[fold], edges[fold + 1])
            self.xx_g[fold] += xx[:, at] @ one_g[:, at].T
            self.x_h[fold] += x[:, at] @ weighted_h[:, at].T
            self.x_rg[fold] += x[:, at] @ (r[at] * one_g[:, at]).T
            self.rh[fold] += weighted_h[:, at] @ r[at]
            self.rr[fold] += r[at] @ (weights[at] * r[at])
            self.n[fold] += weights[at].sum()

    def expanded(self) -> dict[str, Floats]:
        """Return the sums as `Statistics` has them."""
        d, levels, main = len(self.layout.columns), len(self.layout.levels), self.layout.mains
        x_at, g_at = _symmetric(d), _symmetric(levels)
        zz = np.empty((len(self.layout.parameters),) * 2)
        zz[:main, :main] = self.xx_gg[x_at[None, :, None, :], g_at[:, None, :, None]].reshape(main, main)
        zz[:main, main:] = self.z_h
        zz[main:, :main] = self.z_h.T
        zz[main:, main:] = self.hh
        by_level = self.xx_g[:, x_at].transpose(0, 3, 1, 2)  # (folds, 1 + l, d, d)
        zx = np.concatenate([by_level[:, 1:].reshape(FOLDS, main, d), self.x_h.transpose(0, 2, 1)], axis=1)
        zr = np.concatenate([self.x_rg[:, :, 1:].transpose(0, 2, 1).reshape(FOLDS, main), self.rh], axis=1)
        xx, xr = by_level[:, 0].copy(), self.x_rg[:, :, 0].copy()
        return {"zz": zz, "seen": self.seen, "zx": zx, "zr": zr, "xx": xx, "xr": xr, "rr": self.rr, "n": self.n}


def _products(rows: Floats) -> Floats:
    """Shape (m (m + 1) / 2, b): each distinct product of two of m rows, by first row."""
    m, b = rows.shape
    out = np.empty((m * (m + 1) // 2, b))
    at = 0
    for i in range(m):
        np.multiply(rows[i], rows[i:], out=out[at : at + m - i])
        at += m - i
    return out


def _symmetric(m: int) -> Ints:
    """Shape (m, m): where `_products` has the product of two rows."""
    at = np.zeros((m, m), dtype=np.intp)
    at[np.triu_indices(m)] = np.arange(m * (m + 1) // 2)
    return np.maximum(at, at.T)


def _fingerprint(rounds: Rounds) -> int:
    """Return the sum of a 64-bit hash of each round (splitmix64, Steele et al. 2014): blind to their order."""
    numbers = (rounds.at, rounds.rewards, rounds.actions, rounds.customers)
    mixed = np.zeros(len(rounds), dtype=np.uint64)
    for number in numbers:
        bits = np.ascontiguousarray(number, dtype=np.float64).view(np.uint64)
        mixed = (mixed ^ bits) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return int(mixed.sum(dtype=np.uint64))
