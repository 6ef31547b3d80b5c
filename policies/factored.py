"""What do rounds say about the effect of an action? The factored linear model, from sums that add up.

The reward of action `a` in context `x` is a baseline, the same for every action, plus the action's effect `tau(x, a)`,
which is 0 for hold and otherwise

    tau(x, a) = x . (w_nudge + w_incentive + w_tone + w_timing) + c_incentive,tone + c_incentive,timing + c_tone,timing

less what the action is declared to cost, so a round teaches every action that shares a level with the one drawn, and
what costs is not thought worth it before rounds say so: rewards, which costs are taken from, are summed up with the
declared cost of the action drawn added back. The baseline `m(x)` is linear in the context and in the squares of its
numbers. Two regressions are kept. In one, effects are action-centred (Greenewald et al. 2017): `r - m(x)`, with `m(x)`
cross-fitted over folds of customers, is regressed on the features of the action drawn less their mean under the logged
probabilities; no baseline, however wrong, correlates with those. In the other, reward is regressed on context and
features jointly, which learns from differences between customers too, and more the surer the policy is, but only if the
baseline is right. `posterior` trusts the second as far as it agrees with the first. All of it is found from sums over
rounds, so shards add up exactly, whatever their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from optimizer.actions import ActionSpace, Floats, Ints
from optimizer.policy import Rounds
from policies.inputs import check_rounds
from policies.layout import BIAS, Layout, layout
from policies.spans import cells
from policies.threads import one_thread

FOLDS = 5
_BLOCK = 2048
"""Rounds whose products are formed at once: bounds the memory, and fits the cache."""


@dataclass(frozen=True)
class Statistics:
    """All that the model keeps of the rounds: sums over them, per fold of customers where the baseline needs it.

    With features `u` of an action (p,), `z` the same but centred, context `x` (d,), and `y` (b,) the context and its
    squares; weights halve every `half_life` seconds before `as_of`. A reward `r` is meant before costs.

    Args:
        layout: the names of z and x.
        half_life: in seconds; infinite never forgets; None keeps the rounds apart by when they were, in `spans`.
        since, as_of: the times of the first and of the latest round; inf and -inf without one.
        fingerprint: sum of a hash of each round, modulo 2**64: the same however the rounds were sharded.
        spans: the same rounds in the order of their times, cut as `spans.cells` says; empty: all in one.
        zz: (p, p) sum of z z'. seen: (d,) weight of the rounds in which a column is not 0.
        zy: (folds, p, b) of z y'. zr: (folds, p) of z r. yy: (folds, b, b). yr: (folds, b). rr, n: (folds,).
        r34: (2,) of r to the third and to the fourth.
        uu: (p, p) of u u'. uy: (p, b). ur: (p,).
    """

    layout: Layout
    half_life: float | None
    since: float
    as_of: float
    fingerprint: int
    spans: "tuple[Statistics, ...]"
    zz: Floats
    seen: Floats
    zy: Floats
    zr: Floats
    yy: Floats
    yr: Floats
    rr: Floats
    n: Floats
    r34: Floats
    uu: Floats
    uy: Floats
    ur: Floats

    @classmethod
    def empty(cls, layout: Layout, *, half_life: float | None = None) -> "Statistics":
        """Return the sums over no rounds."""
        sums = {name: np.zeros(shape) for name, shape in shapes(layout).items()}
        return cls(layout, half_life, np.inf, -np.inf, 0, (), **sums)

    @property
    def sums(self) -> dict[str, Floats]:
        """The arrays, by name."""
        return {name: getattr(self, name) for name in shapes(self.layout)}

    def __add__(self, other: "Statistics") -> "Statistics":
        """Return the sums over both: aligned by name, the older ones forgotten to the later time."""
        if self.half_life != other.half_life:
            raise ValueError(
                f"half-lives differ: {self.half_life!r} and {other.half_life!r}; sum rounds up with one of them"
            )
        both = self.plus(other)
        return replace(both, spans=_joined([*self.apart, *other.apart], both)) if self.half_life is None else both

    @property
    def apart(self) -> "tuple[Statistics, ...]":
        """The same rounds as far as they were kept apart, in the order of their times."""
        return self.spans or ((self,) if self.since <= self.as_of else ())

    def plus(self, other: "Statistics") -> "Statistics":
        """Return the sums over both, all in one."""
        joint = self.layout.union(other.layout)
        as_of = max(self.as_of, other.as_of)
        ours, theirs = self.at(as_of, joint), other.at(as_of, joint)
        return Statistics(
            joint,
            self.half_life,
            min(self.since, other.since),
            as_of,
            (self.fingerprint + other.fingerprint) % 2**64,
            (),
            **{name: ours[name] + theirs[name] for name in ours},
        )

    def at(self, as_of: float, joint: Layout) -> dict[str, Floats]:
        """Return the sums as they count at a time, by the names of another layout."""
        faded = 1.0
        if self.half_life and np.isfinite(self.as_of):
            faded = 2.0 ** ((self.as_of - as_of) / self.half_life)
        z = joint.positions(self.layout) if joint != self.layout else None
        if z is None:
            return {name: faded * array for name, array in self.sums.items()}
        x = _places(joint.columns, self.layout.columns)
        y = _places(joint.baseline, self.layout.baseline)
        axes = {"zz": (z, z), "seen": (x,), "zy": (None, z, y), "zr": (None, z), "yy": (None, y, y), "yr": (None, y)}
        axes |= {"uu": (z, z), "uy": (z, y), "ur": (z,)}
        return {name: faded * _spread(array, axes.get(name, ())) for name, array in self.sums.items()}


def shapes(named: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shape of each sum, by name."""
    p, d, b = len(named.parameters), len(named.columns), len(named.baseline)
    by_fold = {"zy": (FOLDS, p, b), "zr": (FOLDS, p), "yy": (FOLDS, b, b), "yr": (FOLDS, b), "rr": (FOLDS,)}
    return {"zz": (p, p), "seen": (d,), **by_fold, "n": (FOLDS,), "r34": (2,), "uu": (p, p), "uy": (p, b), "ur": (p,)}


def _joined(parts: Sequence[Statistics], whole: Statistics) -> tuple[Statistics, ...]:
    """Return the parts of a whole in the order of their times, those of one cell in one; none where all are."""
    parts = sorted(parts, key=lambda part: (part.since, part.as_of))
    first, last = (
        cells(np.array([getattr(part, end) for part in parts]), since=whole.since, as_of=whole.as_of)
        for end in ("since", "as_of")
    )
    spans: list[Statistics] = []
    reached = -np.inf
    for part, begins, ends in zip(parts, first.tolist(), last.tolist(), strict=True):
        if spans and (begins <= reached or part.since <= spans[-1].as_of):
            spans[-1] = spans[-1].plus(part)
        else:
            spans.append(replace(part, spans=()))
        reached = max(reached, ends)
    return tuple(spans) if len(spans) > 1 else ()


def _places(names: tuple[str, ...], among: tuple[str, ...]) -> Ints:
    """Return where each name is among others; -1 where it is not."""
    index = {name: i for i, name in enumerate(among)}
    return np.array([index.get(name, -1) for name in names], dtype=np.intp)


def _spread(array: Floats, axes: tuple[Ints | None, ...]) -> Floats:
    """Take each axis's positions; 0 where a position is -1."""
    for axis, at in enumerate(axes):
        if at is not None:
            array = np.take(array, at, axis=axis)
            array[(slice(None),) * axis + (at < 0,)] = 0.0
    return array


def summarise(
    space: ActionSpace, rounds: Rounds, *, half_life: float | None = None, since: float = np.inf
) -> Statistics:
    """Sum rounds up; the sums of several shards are added with `+`.

    Memory is bounded by a block of rounds, and time is a few products of matrices a block.

    Args:
        space: the rounds' actions and features, and what actions cost, which their rewards are net of.
        rounds: n of them; ValueError if any is malformed.
        half_life: seconds after which a round counts half; infinite counts all alike; None counts all alike and keeps
            them apart by when they were, so that it can be found since when they count.
        since: when the first of the rounds was that these will be added to: what was long before is kept apart less.
    """
    check_rounds(space, rounds)
    rounds = replace(rounds, rewards=rounds.rewards + space.action_costs[rounds.actions])
    named = layout(space)
    if not len(rounds):
        return Statistics.empty(named, half_life=half_life)
    first, as_of = float(rounds.at.min()), float(rounds.at.max())
    if half_life is not None:
        return _summed(named, rounds, rows=np.arange(len(rounds)), half_life=half_life)
    begins = cells(rounds.at, since=min(first, since), as_of=as_of)
    spans = [_summed(named, rounds, rows=np.flatnonzero(begins == cell)) for cell in np.unique(begins)]
    whole = reduce(Statistics.plus, spans)
    return replace(whole, spans=tuple(spans) if len(spans) > 1 else ())


def _summed(named: Layout, rounds: Rounds, *, rows: Ints, half_life: float | None = None) -> Statistics:
    """Sum some of the rounds up, given by index, all in one."""
    at = rounds.at[rows]
    since, as_of = float(at.min()), float(at.max())
    weights = np.ones(len(rows)) if half_life is None else 2.0 ** ((at - as_of) / half_life)
    folds = rounds.customers[rows].astype(np.intp) % FOLDS
    sums = _Sums(named)
    with one_thread():
        for start in range(0, len(rows), _BLOCK):
            block = start + np.argsort(folds[start : start + _BLOCK], kind="stable")
            sums.add(rounds, rows=rows[block], weights=weights[block], folds=folds[block])
    return Statistics(named, half_life, since, as_of, _fingerprint(rounds, rows), (), **sums.expanded())


class _Sums:
    """Adds up blocks of rounds.

    The products of main effects `x (x) g` are formed from the distinct products of `x` with itself and of `g` with
    itself: a third of the multiplications, and two small factors to form. What is not centred is summed up by action.
    """

    def __init__(self, named: Layout) -> None:
        self.layout = named
        d, levels, q, b = len(named.columns), len(named.levels), named.pair_features.shape[1], len(named.baseline)
        self.by_action = np.zeros((named.space.k, d, b))
        self.r_by_action = np.zeros((named.space.k, d))
        self.features = np.concatenate([named.level_features, named.pair_features], axis=1)
        self.xx_gg = np.zeros((d * (d + 1) // 2, levels * (levels + 1) // 2))
        self.xx_g = np.zeros((FOLDS, d * (d + 1) // 2, levels))
        self.xs_g = np.zeros((FOLDS, d * (b - d), levels))
        self.z_h = np.zeros((levels * d, q))
        self.hh = np.zeros((q, q))
        self.y_h = np.zeros((FOLDS, b, q))
        self.x_rg = np.zeros((FOLDS, d, levels))
        self.yy = np.zeros((FOLDS, b, b))
        self.yr = np.zeros((FOLDS, b))
        self.rh = np.zeros((FOLDS, q))
        self.rr = np.zeros(FOLDS)
        self.n = np.zeros(FOLDS)
        self.r34 = np.zeros(2)
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
        r, y = rounds.rewards[rows], self.layout.widened(x)
        self.r34 += (weights @ r**3, weights @ r**4)
        self._add_by_fold(y, xx=xx, g=g, weighted_h=weighted_h, r=r, weights=weights, folds=folds)
        self._add_by_action(y * weights, y=y, r=r, actions=rounds.actions[rows])

    def _add_by_fold(
        self, y: Floats, *, xx: Floats, g: Floats, weighted_h: Floats, r: Floats, weights: Floats, folds: Ints
    ) -> None:
        d = len(self.layout.columns)
        xs = (y[:d, None] * y[None, d:]).reshape(-1, len(r))
        weighted_g = weights * g
        edges = np.searchsorted(folds, np.arange(FOLDS + 1))
        for fold in range(FOLDS):
            at = slice(edges[fold], edges[fold + 1])
            weighted_y = weights[at] * y[:, at]
            self.xx_g[fold] += xx[:, at] @ weighted_g[:, at].T
            self.xs_g[fold] += xs[:, at] @ weighted_g[:, at].T
            self.y_h[fold] += y[:, at] @ weighted_h[:, at].T
            self.x_rg[fold] += y[:d, at] @ (r[at] * weighted_g[:, at]).T
            self.yy[fold] += y[:, at] @ weighted_y.T
            self.yr[fold] += weighted_y @ r[at]
            self.rh[fold] += weighted_h[:, at] @ r[at]
            self.rr[fold] += r[at] @ (weights[at] * r[at])
            self.n[fold] += weights[at].sum()

    def _add_by_action(self, weighted: Floats, *, y: Floats, r: Floats, actions: Ints) -> None:
        order = np.argsort(actions, kind="stable")
        x, y, r = weighted[: len(self.layout.columns), order], y[:, order].T.copy(), r[order]
        drawn, starts = np.unique(actions[order], return_index=True)
        for action, start, end in zip(drawn.tolist(), starts.tolist(), [*starts[1:].tolist(), len(r)], strict=True):
            self.by_action[action] += x[:, start:end] @ y[start:end]
            self.r_by_action[action] += x[:, start:end] @ r[start:end]

    def _uncentred(self) -> dict[str, Floats]:
        """Return the sums that are not centred, from those by action."""
        d, levels, main = len(self.layout.columns), len(self.layout.levels), self.layout.mains
        f, h, b = self.layout.level_features, self.layout.pair_features, len(self.layout.baseline)
        bias = self.layout.columns.index(BIAS)
        k = len(f)
        ff = (f[:, :, None] * f[:, None, :]).reshape(k, -1)
        by_pair = (ff.T @ self.by_action[:, :, :d].reshape(k, -1)).reshape(levels, levels, d, d)
        fh = (f[:, :, None] * h[:, None, :]).reshape(k, -1).T @ self.by_action[:, :, bias]  # (l q, d)
        u_h = fh.reshape(levels, -1, d).transpose(0, 2, 1).reshape(main, -1)
        uu = np.empty((len(self.layout.parameters),) * 2)
        uu[:main, :main] = by_pair.transpose(0, 2, 1, 3).reshape(main, main)
        uu[:main, main:], uu[main:, :main] = u_h, u_h.T
        uu[main:, main:] = h.T @ (self.by_action[:, bias, bias, None] * h)
        uy = np.concatenate(
            [(f.T @ self.by_action.reshape(k, -1)).reshape(main, b), h.T @ self.by_action[:, bias]], axis=0
        )
        ur = np.concatenate([(f.T @ self.r_by_action).ravel(), h.T @ self.r_by_action[:, bias]])
        return {"uu": (uu + uu.T) / 2.0, "uy": uy, "ur": ur}  # symmetric to the last bit: half of it is saved

    def expanded(self) -> dict[str, Floats]:
        """Return the sums as `Statistics` has them."""
        d, levels, main = len(self.layout.columns), len(self.layout.levels), self.layout.mains
        x_at, g_at = _symmetric(d), _symmetric(levels)
        zz = np.empty((len(self.layout.parameters),) * 2)
        zz[:main, :main] = self.xx_gg[x_at[None, :, None, :], g_at[:, None, :, None]].reshape(main, main)
        zz[:main, main:] = self.z_h
        zz[main:, :main] = self.z_h.T
        zz[main:, main:] = self.hh
        by_x = self.xx_g[:, x_at].transpose(0, 3, 1, 2).reshape(FOLDS, main, d)
        by_square = self.xs_g.transpose(0, 2, 1).reshape(FOLDS, main, -1)
        zy = np.concatenate([np.concatenate([by_x, by_square], axis=2), self.y_h.transpose(0, 2, 1)], axis=1)
        zr = np.concatenate([self.x_rg.transpose(0, 2, 1).reshape(FOLDS, main), self.rh], axis=1)
        by_fold = {"zy": zy, "zr": zr, "yy": self.yy, "yr": self.yr, "rr": self.rr, "n": self.n, "r34": self.r34}
        return {"zz": zz, "seen": self.seen, **by_fold, **self._uncentred()}


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


def _fingerprint(rounds: Rounds, rows: Ints) -> int:
    """Return the sum of a 64-bit hash of each round (splitmix64, Steele et al. 2014): blind to their order."""
    numbers = (rounds.at, rounds.rewards, rounds.actions, rounds.customers)
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for number in numbers:
        bits = np.ascontiguousarray(number[rows], dtype=np.float64).view(np.uint64)
        mixed = (mixed ^ bits) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return int(mixed.sum(dtype=np.uint64))
