"""Thompson sampling on the factored model, by a committee of posterior draws: exact probabilities."""

from collections.abc import Callable
from functools import cache
from typing import ClassVar, Self

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Bools, Floats, Floats32, Ints
from optimizer.floor import spread
from optimizer.policy import Rounds
from policies.changes import learned
from policies.compiled import compile_loops, filled, plain
from policies.factored import Statistics
from policies.inputs import check
from policies.ladders import Ladders
from policies.model import Model
from policies.posterior import Weights, committee, committee_for, prior_draws, weights
from policies.saved import Kept, Saved

FEWEST_MEMBERS = 64

_NO_LADDERS = Ladders(np.zeros(0, dtype=np.intp), np.zeros(1, dtype=np.intp), np.zeros(0))


class Thompson(Kept):
    """Each of `members` draws from the posterior votes for its best action; shares of the votes are probabilities.

    The draws are made when learning, by a generator keyed by the rounds, so serving holds no chance and the logged
    propensity is exact (Thompson 1933; committee in place of one draw a decision). Before any round, and where nothing
    has a price, no nudge is likelier than another: all are spread evenly, as so few draws would not. Not for effects
    that are far from linear in the context: see `boosted`.

    Args:
        space: the actions and features.
        members: draws in the committee, at least 64.
        boldness: how far members stray from the mean, in posterior standard deviations. 1 is Thompson's rule, which
            explores too much where effects have hundreds of parameters and the floor explores as well: at 0.25
            regret was a tenth lower than at 0.5 in additive and pairwise worlds of 300 nudges.
        half_life: seconds after which a round counts half; infinite never forgets. None leaves out what was before a
            change of effects, where the rounds tell of one: see `changes`.

    >>> space = ActionSpace(("badge",), ("warm",), ("now", "later"), features=("bias",))
    >>> policy = Thompson(space)
    >>> mask = np.array([[True, True, False]])
    >>> policy.probabilities(np.ones((1, 1)), mask, np.zeros(3)).sum().item()
    1.0
    >>> policy.probabilities(np.ones((1, 1)), mask, np.array([0.0, 99.0, 0.0])).tolist()
    [[1.0, 0.0, 0.0]]
    """

    name: ClassVar[str] = "thompson"

    def __init__(
        self, space: ActionSpace, *, members: int = 128, boldness: float = 0.1, half_life: float | None = None
    ) -> None:
        if members < FEWEST_MEMBERS:
            raise ValueError(f"members = {members!r}: a committee needs at least {FEWEST_MEMBERS} to be exact enough")
        if not (np.isfinite(boldness) and boldness > 0):
            raise ValueError(f"boldness must be positive, got {boldness!r}; use greedy for none")
        self.space = space
        self.members = members
        self.boldness = boldness
        model = Model.new(space, half_life=half_life)
        everything = range(len(model.layout.parameters))
        self._become(model, prior_draws(model.layout, model.prior, rows=everything, members=members))

    def _become(self, model: Model, drawn: Floats32) -> None:
        self.model = model
        self._drawn = drawn
        members = committee_for(model.layout, drawn, prior=model.prior)
        self._weights = weights(model.layout, members, costs=model.costs)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        x = self.model.layout.design(contexts)
        shape, ladders = self.space.shape, self.model.ladders
        shares = votes(self._weights, x, sizes=shape, allowed=allowed, prices=prices, ladders=ladders) / self.members
        if not self.model.n:
            free = ~np.broadcast_to(prices, allowed.shape).any(axis=1)
            shares[free] = spread(self.space, allowed[free])
        return shares

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
        found = learned(self.model.statistics + statistics)
        drawn = committee(found.posterior, members=self.members, boldness=self.boldness)
        self._become(self.model.refitted(found), drawn)

    def packed(self) -> Saved:
        settings, arrays = self.model.packed()
        return Saved(
            self.name,
            self.space,
            {"members": self.members, "boldness": self.boldness, **settings},
            {**arrays, "drawn": self._drawn},
        )

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        members = packed.setting("members", int)
        model = Model.unpacked(packed, space)
        drawn = packed.array("drawn", (len(model.mean), members)).astype(np.float32)
        boldness = packed.setting("boldness", float)
        policy = cls(space, members=members, boldness=boldness, half_life=model.statistics.half_life)
        policy._become(model, drawn)
        return policy


def votes(
    used: Weights,
    x: Floats,
    *,
    sizes: tuple[int, int, int],
    allowed: Bools,
    prices: Floats,
    ladders: Ladders | None = None,
) -> Floats:
    """Return how many members would choose each action, (n, k): the best of effect less price among the allowed.

    Args:
        used: float32; levels (d, l, members), cells (k - 1, members).
        x: (n, d). sizes: levels of each factor. allowed: (n, k). prices: (n, k) or (k,).
        ladders: along which a member's predictions rise, if any.
    """
    counts = np.zeros(allowed.shape)
    priced = filled(prices, allowed.shape, np.float32)
    rising = ladders or _NO_LADDERS
    rungs, costs = rising.rungs, rising.costs.astype(np.float32)
    asked = plain(x, np.float32), plain(allowed, np.bool_), priced
    _kernel()(used.levels, used.cells, *asked, sizes, rungs, rising.edges, costs, counts)
    return counts


def count(  # noqa: PLR0917  (the same arguments as the compiled one)
    levels: Floats32,
    cells: Floats32,
    x: Floats32,
    allowed: Bools,
    prices: Floats32,
    sizes: tuple[int, int, int],
    ladders: Ladders,
    counts: Floats,
) -> None:
    """Add each member's vote to `counts` (n, k), in plain numpy: what the compiled kernel computes, bit for bit."""
    i, t, _ = sizes
    for row in range(len(x)):
        by_level = np.zeros(levels.shape[1:], dtype=np.float32)
        for column in np.flatnonzero(x[row]):
            by_level += x[row, column] * levels[column]
        grid = by_level[:i, None, None] + by_level[None, i : i + t, None] + by_level[None, None, i + t :]
        scores = np.zeros((allowed.shape[1], cells.shape[1]), dtype=np.float32)
        grid = grid + cells.reshape(grid.shape)
        scores[HOLD + 1 :] = ladders.raised(grid[None])[0].reshape(cells.shape)
        scores -= prices[row][:, None]
        scores[~allowed[row]] = -np.inf
        np.add.at(counts[row], scores.argmax(axis=0), 1.0)


def _count_by_member(  # noqa: C901, PLR0912, PLR0917  (numba takes arguments by position, and wants its loops in one place)
    levels: Floats32,
    cells: Floats32,
    x: Floats32,
    allowed: Bools,
    prices: Floats32,
    sizes: tuple[int, int, int],
    rungs: Ints,
    edges: Ints,
    costs: Floats32,
    counts: Floats,
) -> None:
    """Do what `count` does: a row at a time, whatever its batch, in loops that numba turns into wide instructions."""
    members = cells.shape[1]
    by_level = np.empty((levels.shape[1], members), dtype=np.float32)
    partial, scores = np.empty(members, dtype=np.float32), np.empty(members, dtype=np.float32)
    # Two copies, written in turn: a store that always happens is a wide one, a store that may not is a slow one.
    best = np.empty((2, members), dtype=np.float32)
    chosen = np.empty((2, members), dtype=np.int32)
    each = sizes[1] * sizes[2]
    lifted = np.zeros((len(rungs) * each, members), dtype=np.float32)
    total, least = np.empty(members, dtype=np.float32), np.empty(members, dtype=np.float32)
    place = np.full(sizes[0], -1, dtype=np.int64)  # which rung an incentive is
    for r in range(len(rungs)):
        place[rungs[r]] = r
    for row in range(len(x)):
        by_level[:] = 0.0
        for column in range(len(levels)):
            value = x[row, column]
            if value != 0.0:
                for level in range(levels.shape[1]):
                    for m in range(members):
                        by_level[level, m] += value * levels[column, level, m]
        for ladder in range(len(edges) - 1):
            first, last = edges[ladder], edges[ladder + 1]
            for cell in range(each):
                for r in range(first, last):
                    lifted[r * each + cell] = -np.inf
                for a in range(first, last):
                    least[:] = np.inf
                    total[:] = 0.0
                    for r in range(a, last):
                        i = rungs[r]
                        for m in range(members):
                            total[m] += by_level[i, m] + cells[i * each + cell, m] + costs[i]
                    for r in range(last - 1, a - 1, -1):
                        i, share = rungs[r], np.float32(1.0 / (r - a + 1))
                        for m in range(members):
                            least[m] = min(least[m], total[m] * share)
                            total[m] -= by_level[i, m] + cells[i * each + cell, m] + costs[i]
                            lifted[r * each + cell, m] = max(lifted[r * each + cell, m], least[m])
                for r in range(first, last):
                    i = rungs[r]
                    for m in range(members):
                        lifted[r * each + cell, m] -= by_level[i, m] + cells[i * each + cell, m] + costs[i]
        best[0] = -prices[row, 0]
        chosen[0] = 0
        old = action = 0
        for i in range(sizes[0]):
            for t in range(sizes[1]):
                for m in range(members):
                    partial[m] = by_level[i, m] + by_level[sizes[0] + t, m]
                for timing in range(sizes[0] + sizes[1], levels.shape[1]):
                    action += 1
                    if allowed[row, action]:
                        price, this, new = prices[row, action], np.int32(action), 1 - old
                        if place[i] >= 0:
                            cell = place[i] * each + (action - 1) % each
                            for m in range(members):
                                scores[m] = cells[action - 1, m] + lifted[cell, m]
                        else:
                            for m in range(members):
                                scores[m] = cells[action - 1, m]
                        for m in range(members):
                            score = partial[m] + by_level[timing, m] + scores[m] - price
                            better = score > best[old, m]
                            best[new, m] = score if better else best[old, m]
                            chosen[new, m] = this if better else chosen[old, m]
                        old = new
        for m in range(members):
            counts[row, chosen[old, m]] += 1.0


@cache
def _kernel() -> Callable[..., None]:
    return compile_loops(_count_by_member)
