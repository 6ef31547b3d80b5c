"""Inverse-gap weighting on the factored model: probabilities in closed form, for whoever wants to recompute them."""

from collections.abc import Callable
from functools import cache
from typing import ClassVar, NamedTuple, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from policies.changes import learned
from policies.compiled import compile_loops, filled, plain
from policies.factored import Statistics
from policies.inputs import check
from policies.ladders import Ladders
from policies.layout import Layout
from policies.model import Model
from policies.posterior import Weights
from policies.saved import Kept, Saved


class SquareCB(Kept):
    """An action is chosen less often the further its expected gain is behind the best (Foster and Rakhlin 2020).

    Over the `K` allowed actions, with gain less price `s` and the best action `b`,

        p_a = 1 / (K (1 + g (s_b - s_a)))  for a other than b,     p_b = 1 - the rest,

    and `g = scale sqrt(n / freedom) / noise`: gaps count in standard errors of the model, `n` rounds that determine
    `freedom` parameters with rewards that scatter by `noise`. Nothing needs tuning to the reward's unit, and
    exploration fades as 1 / sqrt(n). Every allowed action is possible.

    Args:
        space: the actions and features.
        scale: how many times a gap of one standard error counts; more explores less.
        half_life: seconds after which a round counts half; infinite never forgets. None leaves out what was before a
            change of effects, where the rounds tell of one: see `changes`.

    >>> policy = SquareCB(ActionSpace(("badge",), ("warm",), ("now",), features=("bias",)))
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[0.5, 0.5]]
    """

    name: ClassVar[str] = "squarecb"

    def __init__(self, space: ActionSpace, *, scale: float = 100.0, half_life: float | None = None) -> None:
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
        model = self.model
        scale = Scale(per_action=self.gamma)
        to, used, ladders = model.layout, model.weights, model.ladders
        return weigh(to, used, contexts, allowed=allowed, prices=prices, ladders=ladders, scale=scale)

    def effects(self, contexts: Floats) -> Floats:
        """Return the expected gain (n, k) of each action over hold, in reward units."""
        return self.model.effects(contexts)

    @property
    def changed(self) -> float | None:
        """Since when rounds count, where effects were found to have changed."""
        return self.model.changed

    def learn(self, rounds: Rounds) -> None:
        if len(rounds):
            self.absorb(self.model.summed(rounds))

    def absorb(self, statistics: Statistics) -> None:
        """Learn from rounds that were summed up elsewhere, perhaps in shards."""
        self.model = self.model.refitted(learned(self.model.statistics + statistics))

    def packed(self) -> Saved:
        settings, arrays = self.model.packed()
        return Saved(self.name, self.space, {"scale": self.scale, **settings}, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        policy = cls(space, scale=packed.setting("scale", float))
        policy.model = Model.unpacked(packed, space)
        return policy


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


class Scale(NamedTuple):
    """What a unit of gap adds to 1 / p: `per_action` for each allowed action, as here, or `flat`, as in VW.

    Infinite: the best action has it all, the first of those that tie.
    """

    per_action: float = 0.0
    flat: float = 0.0


def weigh(
    to: Layout, used: Weights, contexts: Floats, *, allowed: Bools, prices: Floats, ladders: Ladders, scale: Scale
) -> Floats:
    """Return the inverse-gap probabilities (n, k) of gains that weights give, less prices: scored by factor."""
    p = np.zeros(allowed.shape)
    x, priced = plain(to.design(contexts), np.float64), filled(prices, allowed.shape, np.float64)
    rising = ladders.rungs, ladders.edges, ladders.costs
    _kernel()(used.levels, used.cells, x, plain(allowed, np.bool_), priced, to.space.shape, *rising, scale, p)
    return p


def _weigh(  # noqa: C901, PLR0912, PLR0917  (numba takes arguments by position, and wants its loops in one place)
    levels: Floats,
    cells: Floats,
    x: Floats,
    allowed: Bools,
    prices: Floats,
    sizes: tuple[int, int, int],
    rungs: Ints,
    edges: Ints,
    costs: Floats,
    scale: Scale,
    p: Floats,
) -> None:
    """Score rows of x (n, d) as `effects` does and weigh them as `inverse_gap` does, into `p` (n, k) of zeros."""
    by_level, scores = np.empty(levels.shape[1]), np.empty(allowed.shape[1])
    each = sizes[1] * sizes[2]
    lifted, total = np.zeros(len(cells)), np.zeros(1)
    for row in range(len(x)):
        by_level[:] = 0.0
        for column in range(len(levels)):
            value = x[row, column]
            if value != 0.0:
                for level in range(levels.shape[1]):
                    by_level[level] += value * levels[column, level]
        for ladder in range(len(edges) - 1 if len(rungs) else 0):
            first, last = edges[ladder], edges[ladder + 1]
            for cell in range(each):
                for r in range(first, last):
                    lifted[rungs[r] * each + cell] = -np.inf
                for a in range(first, last):
                    least = np.inf
                    total[0] = 0.0
                    for r in range(a, last):
                        total[0] += by_level[rungs[r]] + cells[rungs[r] * each + cell] + costs[rungs[r]]
                    for r in range(last - 1, a - 1, -1):
                        mean = total[0] / (r - a + 1)
                        least = min(least, mean)
                        total[0] -= by_level[rungs[r]] + cells[rungs[r] * each + cell] + costs[rungs[r]]
                        lifted[rungs[r] * each + cell] = max(lifted[rungs[r] * each + cell], least)
                for r in range(first, last):
                    raw = by_level[rungs[r]] + cells[rungs[r] * each + cell] + costs[rungs[r]]
                    lifted[rungs[r] * each + cell] -= raw
        scores[0] = -prices[row, 0]
        best, count, action = 0, 1, 0
        for i in range(sizes[0]):
            for t in range(sizes[1]):
                for timing in range(sizes[0] + sizes[1], levels.shape[1]):
                    action += 1
                    if allowed[row, action]:
                        gain = by_level[i] + by_level[sizes[0] + t] + by_level[timing] + cells[action - 1]
                        gain += lifted[action - 1]
                        scores[action] = gain - prices[row, action]
                        count += 1
                        if scores[action] > scores[best]:
                            best = action
        slope, rest = scale.per_action * count + scale.flat, 0.0
        if slope < np.inf:
            for action in range(len(scores)):
                if allowed[row, action] and action != best:
                    p[row, action] = 1.0 / (count + slope * (scores[best] - scores[action]))
                    rest += p[row, action]
        p[row, best] = 1.0 - rest


@cache
def _kernel() -> Callable[..., None]:
    return compile_loops(_weigh)
