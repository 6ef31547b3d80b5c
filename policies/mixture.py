"""How do several policies share the traffic? `Mixture` decides by each with its weight, anew every decision."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Policy, Rounds
from policies.saved import Kept, Saved, within


class Packable(Policy, Protocol):
    """A policy that can be kept inside another."""

    def packed(self) -> Saved:
        """Return what `save` writes."""
        ...


class Mixture(Kept):
    """Champion and challenger on the same customers: the weighted mean of their probabilities, logged as one vector.

    It re-randomises every decision. For arms that stick to a customer, declare an experiment in the program.

    Args:
        space: the actions and features.
        parts: policies of that space; all of them learn.
        weights: positive, one a part; they are scaled to sum to 1.

    >>> from policies.fixed import Hold, Uniform
    >>> space = ActionSpace(("badge",), ("warm",), ("now",))
    >>> mixed = Mixture(space, parts=[Hold(space), Uniform(space)], weights=[3, 1])
    >>> mixed.probabilities(np.empty((1, 0)), np.array([[True, True]]), np.zeros(2)).round(3).tolist()
    [[0.833, 0.167]]
    """

    name: ClassVar[str] = "mixture"

    def __init__(self, space: ActionSpace, *, parts: Sequence[Packable], weights: Sequence[float]) -> None:
        if not parts or len(parts) != len(weights):
            raise ValueError(f"a mixture needs one weight a policy, got {len(weights)} for {len(parts)} policies")
        if not all(np.isfinite(w) and w > 0 for w in weights):
            raise ValueError(f"weights must be positive, got {list(weights)!r}; leave out a policy that never acts")
        self.space = space
        self.parts = tuple(parts)
        self.weights = tuple(float(w) for w in weights)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        mixed = np.zeros(allowed.shape)
        for part, weight in zip(self.parts, self.weights, strict=True):
            mixed += weight / sum(self.weights) * part.probabilities(contexts, allowed, prices)
        return mixed

    def learn(self, rounds: Rounds) -> None:
        for part in self.parts:
            part.learn(rounds)

    def packed(self) -> Saved:
        settings, arrays = within({f"part-{i}": part.packed() for i, part in enumerate(self.parts)})
        return Saved(self.name, self.space, {"weights": list(self.weights), **settings}, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        from policies import unpacked  # the registry holds this class too

        weights = packed.setting("weights", list)
        parts = [unpacked(packed.part(f"part-{i}"), space) for i in range(len(weights))]
        return cls(space, parts=parts, weights=weights)
