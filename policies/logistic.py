"""What if the reward is yes or no? The factored model on the log-odds, refitted from rounds: its sums do not merge."""

from typing import ClassVar, NamedTuple, NoReturn, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies import saved
from policies.factored import Statistics
from policies.inputs import check, check_rounds
from policies.layout import BIAS, GROUPS, Layout, layout
from policies.posterior import EXPECTED, Weights, effects, mean_for, weights
from policies.saved import Kept, Saved
from policies.squarecb import inverse_gap
from policies.threads import one_thread

_BLOCK = 4096
_STEPS, _ROUNDS = 12, 4
"""Newton's steps at most for given scales, and how often the scales are found again."""

_SCALES = 2.0 * EXPECTED
"""Expected size of an effect on the log-odds, by group, before any data."""


class Fitted(NamedTuple):
    """The mode: `baseline` (d,) of the log-odds under hold, `mean` (p,) of effects on them; how surely."""

    layout: Layout
    baseline: Floats
    mean: Floats
    freedom: float
    n: int
    noise: float

    @classmethod
    def nothing(cls, named: Layout) -> Self:
        """Return what is known before any round."""
        return cls(named, np.zeros(len(named.columns)), np.zeros(len(named.parameters)), 0.0, 0, 1.0)


class Logistic(Kept):
    """Inverse gaps on the factored model of the log-odds, for rewards that are yes or no, or a share between.

    `log-odds = m(x) + tau(x, a)` with the factored `tau` of `thompson`, at its posterior mode, the scales of the
    effects found by Laplace's approximation (MacKay 1992). Gains are differences of expected rewards; probabilities are
    those of `squarecb`. A logistic reward is refitted, not merged: it learns from the rounds of one call, learning
    again starts anew, and sums from shards are refused.

    Args:
        space: the actions and features.
        lowest, highest: the rewards that stand for no and for yes.
        scale: as in `squarecb`.

    >>> policy = Logistic(ActionSpace(("badge",), ("warm",), ("now",), features=("bias",)))
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[0.5, 0.5]]
    """

    name: ClassVar[str] = "logistic"

    def __init__(self, space: ActionSpace, *, lowest: float = 0.0, highest: float = 1.0, scale: float = 10.0) -> None:
        if not (-np.inf < lowest < highest < np.inf and 0 < scale < np.inf):
            raise ValueError(
                f"lowest = {lowest!r}, highest = {highest!r}, scale = {scale!r}: expected lowest < highest and a "
                "positive scale"
            )
        self.space = space
        self.lowest, self.highest, self.scale = float(lowest), float(highest), float(scale)
        self._become(Fitted.nothing(layout(space)))

    def _become(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self._layout = layout(self.space)
        self._weights: Weights = weights(self._layout, mean_for(self._layout, fitted.mean, of=fitted.layout))
        here = {name: i for i, name in enumerate(fitted.layout.columns)}
        at = np.array([here.get(name, -1) for name in self._layout.columns])
        self._baseline = np.where(at >= 0, fitted.baseline[at], 0.0)

    @property
    def gamma(self) -> float:
        """What a unit of reward counts, as in `squarecb`."""
        return self.scale * float(np.sqrt(self.fitted.n / max(self.fitted.freedom, 1.0))) / self.fitted.noise

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return inverse_gap(self.effects(contexts) - prices, allowed, gamma=self.gamma)

    def effects(self, contexts: Floats) -> Floats:
        """Return the expected gain (n, k) of each action over hold, in reward units."""
        odds = (self._layout.design(contexts) * self._baseline).sum(axis=1)[:, None]
        tau = effects(self._layout, self._weights, contexts)
        return (self.highest - self.lowest) * (_chance(odds + tau) - _chance(odds))

    def learn(self, rounds: Rounds) -> None:
        check_rounds(self.space, rounds)
        if not len(rounds):
            return
        shares = (rounds.rewards - self.lowest) / (self.highest - self.lowest)
        if shares.min() < 0 or shares.max() > 1:
            row = int(np.argmax((shares < 0) | (shares > 1)))
            raise ValueError(
                f"rewards: row {row} is {rounds.rewards[row]:g}, outside {self.lowest:g} to {self.highest:g}; give "
                "Logistic the lowest and highest reward, or use thompson"
            )
        with one_thread():
            fitted = fit(layout(self.space), rounds, shares)
        self._become(fitted._replace(noise=fitted.noise * (self.highest - self.lowest)))

    def absorb(self, statistics: Statistics) -> NoReturn:
        """Refuse: no sums over rounds are enough."""
        raise ValueError(
            "logistic does not add shards up: a logistic reward is refitted; learn from all rounds at once"
        )

    def packed(self) -> Saved:
        f = self.fitted
        settings = {
            "lowest": self.lowest,
            "highest": self.highest,
            "scale": self.scale,
            "trained": saved.names(f.layout.space),
            "freedom": f.freedom,
            "n": f.n,
            "noise": f.noise,
        }
        return Saved(self.name, self.space, settings, {"baseline": f.baseline, "mean": f.mean})

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        own = {name: packed.setting(name, float) for name in ("lowest", "highest", "scale")}
        policy = cls(space, **own)
        named = Layout(saved.space_of(packed.setting("trained", dict)))
        baseline = packed.array("baseline", (len(named.columns),))
        mean = packed.array("mean", (len(named.parameters),))
        sure = packed.setting("freedom", float), packed.setting("n", int), packed.setting("noise", float)
        policy._become(Fitted(named, baseline, mean, *sure))
        return policy


def fit(named: Layout, rounds: Rounds, shares: Floats) -> Fitted:
    """Return the mode and how much the data determine, for shares (n,) of yes."""
    d, p = len(named.columns), len(named.parameters)
    groups = named.groups
    sizes = _column_scales(named, rounds)
    units = np.concatenate([sizes, np.tile(sizes, len(named.levels)), np.ones(p - named.mains)])
    variances = _SCALES**2
    at = np.zeros(d + p)
    freedom = 0.0
    for _ in range(_ROUNDS):
        precision = np.concatenate([np.full(d, 0.01), 1.0 / variances[groups]])
        at, covariance = _mode(named, rounds, shares, units=units, precision=precision, start=at)
        counts = np.bincount(groups, minlength=GROUPS)
        known = np.clip(counts - np.bincount(groups, np.diag(covariance)[d:], GROUPS) / variances, 0.0, counts)
        freedom = float(known.sum())
        variances = (_SCALES**2 + np.bincount(groups, at[d:] ** 2, GROUPS)) / (1.0 + known)
    noise = float(shares.std()) or 1.0
    return Fitted(named, at[:d] / units[:d], at[d:] / units[d:], freedom, len(rounds), noise)


def _column_scales(named: Layout, rounds: Rounds) -> Floats:
    x = named.design(rounds.contexts)
    seen = (x != 0).sum(axis=0)
    sizes: Floats = np.sqrt(np.divide((x**2).sum(axis=0), seen, out=np.ones(x.shape[1]), where=seen > 0))
    sizes[named.columns.index(BIAS)] = 1.0
    return sizes


def _mode(
    named: Layout, rounds: Rounds, shares: Floats, *, units: Floats, precision: Floats, start: Floats
) -> tuple[Floats, Floats]:
    """Return the mode and the inverse of the curvature there, by Newton's method with steps that never lose."""
    at, value = start, -np.inf
    step = np.zeros_like(start)
    for _ in range(_STEPS):
        moved = at + step
        found, slope, curvature = _sums(named, rounds, shares, units=units, at=moved)
        found -= 0.5 * float(moved @ (precision * moved))
        if found < value:
            step = step / 2.0
            continue
        gained, at, value = found - value, moved, found
        curvature[np.diag_indices_from(curvature)] += precision
        step = np.asarray(np.linalg.solve(curvature, slope - precision * at), dtype=np.float64)
        if gained < 1e-6 * max(abs(value), 1.0):
            break
    _, _, curvature = _sums(named, rounds, shares, units=units, at=at)
    curvature[np.diag_indices_from(curvature)] += precision
    return at, np.asarray(np.linalg.inv(curvature), dtype=np.float64)


def _sums(named: Layout, rounds: Rounds, shares: Floats, *, units: Floats, at: Floats) -> tuple[float, Floats, Floats]:
    """Return log likelihood, its slope and its curvature, negated; a block of rounds at a time."""
    value, slope, curvature = 0.0, np.zeros(len(at)), np.zeros((len(at), len(at)))
    for first in range(0, len(rounds), _BLOCK):
        some = slice(first, first + _BLOCK)
        z = _design(named, rounds.take(some)) / units
        odds, y = z @ at, shares[some]
        chance = _chance(odds)
        value += float((y * odds - np.logaddexp(0.0, odds)).sum())
        slope += z.T @ (y - chance)
        curvature += (z * (chance * (1.0 - chance))[:, None]).T @ z
    return value, slope, curvature


def _design(named: Layout, rounds: Rounds) -> Floats:
    """Shape (n, d + p): the context, its products with the levels drawn, and the pairs drawn."""
    x = named.design(rounds.contexts)
    levels = named.level_features[rounds.actions]
    mains = (levels[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return np.concatenate([x, mains, named.pair_features[rounds.actions]], axis=1)


def _chance(odds: Floats) -> Floats:
    """Return 1 / (1 + exp(-odds)), without overflow."""
    small = np.exp(-np.abs(odds))
    chance: Floats = np.where(odds >= 0, 1.0, small) / (1.0 + small)
    return chance
