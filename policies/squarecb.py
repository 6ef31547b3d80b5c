"""Inverse-gap weighting on the factored model: probabilities in closed form, for whoever wants to recompute them."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies import saved
from policies.factored import Statistics, summarise
from policies.inputs import check
from policies.model import Model
from policies.posterior import fit
from policies.saved import Saved


class SquareCB:
    """An action is chosen less often the further its expected gain is behind the best (Foster and Rakhlin 2020).

    Over the `K` allowed actions, with gain less price `s` and the best action `b`,

        p_a = 1 / (K (1 + g (s_b - s_a)))  for a other than b,     p_b = 1 - the rest,

    and `g = scale sqrt(n / freedom) / noise`: gaps count in standard errors of the model, `n` rounds that determine
    `freedom` parameters with rewards that scatter by `noise`. Nothing needs tuning to the reward's unit, and
    exploration fades as 1 / sqrt(n). Every allowed action is possible.

    Args:
        space: the actions and features.
        scale: how many times a gap of one standard error counts; more explores less.
        half_life: seconds after which a round counts half; None never forgets.

    >>> policy = SquareCB(ActionSpace(("badge",), ("warm",), ("now",), features=("bias",)))
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[0.5, 0.5]]
    """

    name: ClassVar[str] = "squarecb"

    def __init__(self, space: ActionSpace, *, scale: float = 10.0, half_life: float | None = None) -> None:
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive, got {scale!r}; `greedy` is what it tends to")
        self.space = space
        self.scale = scale
        self.model = Model.new(space, half_life=half_life)

    @property
    def gamma(self) -> float:
        """`g`: what a unit of reward counts."""
        return self.scale * float(np.sqrt(self.model.n / max(self.model.freedom, 1.0))) / self.model.noise

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return inverse_gap(self.model.effects(contexts) - prices, allowed, gamma=self.gamma)

    def effects(self, contexts: Floats) -> Floats:
        """Return the expected gain (n, k) of each action over hold, in reward units."""
        return self.model.effects(contexts)

    def learn(self, rounds: Rounds) -> None:
        if len(rounds):
            self.absorb(summarise(self.space, rounds, half_life=self.model.statistics.half_life))

    def absorb(self, statistics: Statistics) -> None:
        """Learn from rounds that were summed up elsewhere, perhaps in shards."""
        total = self.model.statistics + statistics
        self.model = self.model.refitted(total, fit(total))

    def packed(self) -> Saved:
        """Return what `save` writes."""
        settings, arrays = self.model.packed()
        return Saved(self.name, self.space, {"scale": self.scale, **settings}, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        """Return what `load` reads."""
        policy = cls(space, scale=packed.setting("scale", float))
        policy.model = Model.unpacked(packed, space)
        return policy

    def save(self, folder: Path) -> None:
        saved.write(folder, self.packed())

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        return cls.unpacked(saved.read(folder, kind=cls.name), space)


def inverse_gap(scores: Floats, allowed: Bools, *, gamma: float) -> Floats:
    """Return the probabilities (n, k) of inverse-gap weighting: `1 / (K (1 + gamma gap))`, the rest to the best.

    Args:
        scores: (n, k), gain less price. allowed: (n, k). gamma: what a unit of gap counts, from 0.

    >>> inverse_gap(np.array([[0.0, 1.0, 9.0]]), np.array([[True, True, False]]), gamma=1.0).tolist()
    [[0.25, 0.75, 0.0]]
    """
    scores = np.where(allowed, scores, -np.inf)
    best = scores.argmax(axis=1)
    rows = np.arange(len(scores))
    counts = allowed.sum(axis=1, keepdims=True)
    gaps = np.where(allowed, scores[rows, best][:, None] - scores, 0.0)
    weighted = np.where(allowed, 1.0 / (counts * (1.0 + gamma * gaps)), 0.0)
    weighted[rows, best] = 0.0
    weighted[rows, best] = 1.0 - weighted.sum(axis=1)
    return weighted
