"""What do we ask of a policy, and what does it learn from?"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Bools, Floats, Floats32, Ints


@dataclass(frozen=True)
class Rounds:
    """Logged decisions joined with their rewards: `n` rows over `k` actions and `d` features.

    Rewards are matured: a round whose window is still open has no row here.

    Args:
        contexts: (n, d), the context as seen when deciding.
        allowed: (n, k), the mask in force; hold is always allowed.
        probabilities: (n, k) float32, the vector drawn from: 0 where blocked.
        actions: (n,), the action drawn.
        rewards: (n,), in reward units, higher is better.
        customers: (n,), a code per customer: the unit of clustering.
        at: (n,), seconds since the epoch, program time.
        cost_prices: (n,), shadow price of a unit of cost in force (lambda).
        burdens: (n,), price of the burden of any nudge in force, in reward units (eta x dosage).
        loggers: (n,), a code per policy version that chose.
    """

    contexts: Floats
    allowed: Bools
    probabilities: Floats32
    actions: Ints
    rewards: Floats
    customers: Ints
    at: Floats
    cost_prices: Floats
    burdens: Floats
    loggers: Ints

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def propensities(self) -> Floats:
        """Shape (n,): the probability of the action drawn, as the draw normalised it."""
        rows = np.arange(len(self))
        totals = self.probabilities.sum(axis=1, dtype=np.float64)
        chances: Floats = self.probabilities[rows, self.actions].astype(np.float64) / totals
        return chances

    def prices(self, space: ActionSpace) -> Floats:
        """Shape (n, k): prices in force, to be subtracted from the predicted reward."""
        return prices(space, cost_prices=self.cost_prices, burdens=self.burdens)

    def take(self, rows: Ints | Bools | slice) -> "Rounds":
        """Return some of the rounds, by index, mask or slice."""
        return Rounds(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence["Rounds"]) -> "Rounds":
        """Return the rounds of several logs, which must share codes, features and actions."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def prices(space: ActionSpace, *, cost_prices: Floats, burdens: Floats) -> Floats:
    """Shape (n, k): lambda x expected cost + burden for every nudge, 0 for hold.

    >>> space = ActionSpace(("badge", "coupon"), ("warm",), ("now",), costs=(0.0, 3.0))
    >>> prices(space, cost_prices=np.array([0.5]), burdens=np.array([0.1])).tolist()
    [[0.0, 0.1, 1.6]]
    """
    priced = np.multiply.outer(cost_prices, space.action_costs)
    priced[:, HOLD + 1 :] += burdens[:, None]
    return priced


class Policy(Protocol):
    """A way to choose. Pure: no clock, no generator, no memory of the last call."""

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        """Return the chance of each action, before the floor.

        Args:
            contexts: (n, d).
            allowed: (n, k); `allowed[:, 0]` (hold) is always true.
            prices: (n, k) or (k,), reward units to subtract from each action.

        Returns:
            (n, k): rows sum to 1 over the allowed actions and are 0 elsewhere. A row does not depend on its batch.
        """
        ...

    def learn(self, rounds: Rounds) -> None:
        """Learn from matured rounds; an empty batch changes nothing."""
        ...

    def save(self, folder: Path) -> None:
        """Write plain data (JSON and npz, never pickle) into an existing, empty folder."""
        ...

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        """Read a saved policy, aligned by name to the actions and features of `space`."""
        ...
