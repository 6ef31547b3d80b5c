"""The best expected action of the factored model, every time: exploration is left to the floor."""

from typing import ClassVar, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies.changes import learned
from policies.factored import Statistics
from policies.inputs import check
from policies.model import Model
from policies.saved import Kept, Saved
from policies.squarecb import Scale, weigh


class Greedy(Kept):
    """Chooses what it expects most of, hold in case of a tie: the peer that every other policy has to beat.

    Args:
        space: the actions and features.
        half_life: seconds after which a round counts half; infinite never forgets. None leaves out what was before a
            change of effects, where the rounds tell of one: see `changes`.

    >>> policy = Greedy(ActionSpace(("badge",), ("warm",), ("now",), features=("bias",)))
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[1.0, 0.0]]
    """

    name: ClassVar[str] = "greedy"

    def __init__(self, space: ActionSpace, *, half_life: float | None = None) -> None:
        self.space = space
        self.model = Model.new(space, half_life=half_life)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        model = self.model
        to, used, ladders = model.layout, model.weights, model.ladders
        scale = Scale(flat=np.inf)
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
        return Saved(self.name, self.space, *self.model.packed())

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        policy = cls(space)
        policy.model = Model.unpacked(packed, space)
        return policy
