"""What if a nudge wears out when it is repeated? Duolingo's recovering difference softmax, over the factors' levels."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies import saved
from policies.inputs import check, check_rounds
from policies.layout import Layout, layout
from policies.saved import Kept, Saved

RECENCY = "nudge_recency"
"""The feature that tells how lately any nudge was delivered: exp(-days). `RECENCY=level` tells it of one level."""

STRENGTH = 10.0
"""Rounds of evidence for no difference."""


@dataclass(frozen=True)
class Sums:
    """Sums over rounds by arm, `l` arms: `nudge` and the levels of each factor; they add up over shards.

    Each is weighted by one over the chance of what happened: `taken` where the arm was drawn, `left` where it could
    have been. A level is compared with the other levels of nudges, `nudge` with holding.

    Args:
        taken, left: (3, l): sum of weights, of weights times reward, of squared weights.
        moments: (3,): number of rounds, sum of rewards, sum of their squares.
    """

    taken: Floats
    left: Floats
    moments: Floats

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.taken + other.taken, self.left + other.left, self.moments + other.moments)

    @classmethod
    def nothing(cls, arms: int) -> Self:
        """Return the sums over no rounds."""
        return cls(np.zeros((3, arms)), np.zeros((3, arms)), np.zeros(3))

    @property
    def spread(self) -> float:
        """Return the standard deviation of the reward; 1 where nothing is known of it."""
        n, total, squares = self.moments.tolist()
        variance = squares / n - (total / n) ** 2 if n else 0.0
        return float(np.sqrt(variance)) if variance > 1e-12 else 1.0

    @property
    def differences(self) -> Floats:
        """Shape (l,): mean reward where the arm was taken less where it was eligible and left, drawn towards 0."""
        known = np.minimum(_effective(self.taken), _effective(self.left))
        differences: Floats = (_mean(self.taken) - _mean(self.left)) * known / (known + STRENGTH)
        return differences


def _mean(sums: Floats) -> Floats:
    means: Floats = np.divide(sums[1], sums[0], out=np.zeros(sums.shape[1]), where=sums[0] > 0)
    return means


def _effective(sums: Floats) -> Floats:
    """Shape (l,): how many rounds of equal weight tell as much (Kish 1965)."""
    counts: Floats = np.divide(sums[0] ** 2, sums[2], out=np.zeros(sums.shape[1]), where=sums[2] > 0)
    return counts


class Recovering(Kept):
    """Softmax over what levels bring relative to being eligible and not chosen, less what lately was sent.

    Yancey and Settles (KDD 2020), for sleeping and recovering arms: an arm's score is the difference between the mean
    reward when it was chosen and when it could have been but was not, both weighted by the logged probabilities, so an
    arm that is eligible at good moments is not credited with them. An action's score is that of nudging at all and of
    its levels. A level that was sent `d` days ago loses `penalty x 2 ** (-d / recovery)`. Probabilities are exact:
    the softmax over the allowed of (score - penalty - price) / temperature. Where effects depend on the context
    prefer `thompson`.

    How lately is read from the context: `nudge_recency=coupon`, where the program has such a feature for an
    incentive, tone or timing, otherwise `nudge_recency` for every nudge alike; both exp(-days).

    Args:
        space: the actions and features.
        penalty: of what was just sent, in standard deviations of the reward.
        recovery: days until half of the penalty has worn off.
        temperature: in standard errors of a level's score: less explores less.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",), features=("bias", "nudge_recency"))
    >>> policy, mask = Recovering(space, penalty=1.0), np.array([[True, True]])
    >>> policy.probabilities(np.array([[1.0, 0.0]]), mask, np.zeros(2)).tolist()
    [[0.5, 0.5]]
    """

    name: ClassVar[str] = "recovering"

    def __init__(
        self, space: ActionSpace, *, penalty: float = 0.1, recovery: float = 5.0, temperature: float = 1.0
    ) -> None:
        if not (0 <= penalty < np.inf and 0 < recovery < np.inf and 0 < temperature < np.inf):
            raise ValueError(
                f"penalty = {penalty!r}, recovery = {recovery!r}, temperature = {temperature!r}: expected a penalty of "
                "0 or more, days above 0 and a temperature above 0"
            )
        self.space = space
        self.penalty, self.recovery, self.temperature = penalty, recovery, temperature
        named = layout(space)
        self._become(named, Sums.nothing(len(named.levels)))

    def _become(self, trained: Layout, sums: Sums) -> None:
        """Take sums by the names of a layout; what is new in this space has no difference yet."""
        self._trained, self.sums = trained, sums
        self._layout = layout(self.space)
        place = {name: i for i, name in enumerate(trained.levels)}
        at = np.array([place.get(name, -1) for name in self._layout.levels])
        self._differences = np.where(at >= 0, sums.differences[at], 0.0)
        self._scores = self._layout.level_features @ self._differences

    @property
    def width(self) -> float:
        """The temperature in reward units: infinite before the first round."""
        n = float(self.sums.moments[0])
        return self.temperature * self.sums.spread * float(np.sqrt(len(self._layout.levels) / n)) if n else np.inf

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        scores = self._scores - self.penalties(contexts) - prices
        scores = np.where(
            allowed, (scores - scores.max(axis=1, keepdims=True, where=allowed, initial=-np.inf)), -np.inf
        )
        weights = np.where(allowed, np.exp(scores / self.width) if np.isfinite(self.width) else 1.0, 0.0)
        p: Floats = weights / weights.sum(axis=1, keepdims=True)
        return p

    def penalties(self, contexts: Floats) -> Floats:
        """Return what lately sent levels lose (n, k), in reward units: the most recent of an action's levels counts."""
        recent = np.zeros((len(contexts), self.space.k))
        features = {name: i for i, name in enumerate(self.space.features)}
        if RECENCY in features:
            recent[:, HOLD + 1 :] = self._left(contexts[:, features[RECENCY]])[:, None]
        named = [
            (factor, level, features[f"{RECENCY}={name}"])
            for factor, names in enumerate(self.space.factors)
            for level, name in enumerate(names)
            if f"{RECENCY}={name}" in features
        ]
        if named:
            recent[:] = 0.0
        for factor, level, column in named:
            has = self.space.levels[:, factor] == level
            recent[:, has] = np.maximum(recent[:, has], self._left(contexts[:, column])[:, None])
        return self.penalty * self.sums.spread * recent

    def _left(self, recency: Floats) -> Floats:
        """Return 2 ** (-days / recovery) of exp(-days)."""
        left: Floats = np.clip(recency, 0.0, 1.0) ** (np.log(2.0) / self.recovery)
        return left

    def learn(self, rounds: Rounds) -> None:
        check_rounds(self.space, rounds)
        if not len(rounds):
            return
        joint = self._trained.union(self._layout)
        kept, new = _arranged(self.sums, joint, of=self._trained), _summed(self._layout, rounds)
        self._become(joint, kept + _arranged(new, joint, of=self._layout))

    def packed(self) -> Saved:
        settings = {
            "penalty": self.penalty,
            "recovery": self.recovery,
            "temperature": self.temperature,
            "trained": saved.names(self._trained.space),
        }
        sums = {"taken": self.sums.taken, "left": self.sums.left, "moments": self.sums.moments}
        return Saved(self.name, self.space, settings, sums)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        own = {name: packed.setting(name, float) for name in ("penalty", "recovery", "temperature")}
        policy = cls(space, **own)
        trained = Layout(saved.space_of(packed.setting("trained", dict)))
        arms = len(trained.levels)
        sums = [packed.array(name, (3, arms)) for name in ("taken", "left")]
        policy._become(trained, Sums(sums[0], sums[1], packed.array("moments", (3,))))
        return policy


def _summed(named: Layout, rounds: Rounds) -> Sums:
    """Sum rounds up by arm: what was taken or left, over its chance given that it was eligible."""
    p = rounds.probabilities.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    chances = p @ named.level_features  # (n, l): of nudging, and of nudging with each level
    taken = named.level_features[rounds.actions] > 0
    nudging = chances[:, :1]
    nudged = taken[:, :1]
    left = nudged & ~taken & (chances > 0)
    left[:, 0] = ~taken[:, 0] & (chances[:, 0] > 0)
    others = np.maximum(nudging - chances, 0.0)
    others[:, 0] = p[:, HOLD]
    comparable = others > 1e-6  # something else was possible
    comparable[:, 0] = True
    return Sums(
        _weighted(taken & comparable, chances, rounds.rewards),
        _weighted(left & comparable, others, rounds.rewards),
        np.array([len(rounds), rounds.rewards.sum(), (rounds.rewards**2).sum()]),
    )


def _weighted(where: Bools, chances: Floats, rewards: Floats) -> Floats:
    weights = np.divide(1.0, chances, out=np.zeros(chances.shape), where=where & (chances > 0))
    return np.stack([weights.sum(axis=0), rewards @ weights, (weights**2).sum(axis=0)])


def _arranged(sums: Sums, joint: Layout, *, of: Layout) -> Sums:
    place = {name: i for i, name in enumerate(of.levels)}
    at = np.array([place.get(name, -1) for name in joint.levels])
    taken, left = (np.where(at >= 0, array[:, at], 0.0) for array in (sums.taken, sums.left))
    return Sums(taken, left, sums.moments)
