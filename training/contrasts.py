"""What does a nudge of some kind add over holding, on the rounds where both were possible? Doubly robust, by round.

Estimand: this decision by an action of the group (its members mixed as the log mixed them) less holding, then the
logging policy. It rests on logged probabilities: no customer chose what to be offered.
"""

from dataclasses import dataclass

import numpy as np

from optimizer.actions import HOLD, Bools, Floats
from training import diagnostics, reward_model
from training.dataset import Dataset

_BLOCK = 8_192


@dataclass(frozen=True)
class Terms:
    """DR terms (n, g) of each group of actions and (n,) of holding: NaN where the log (nearly) never did it."""

    groups: Floats
    hold: Floats

    @property
    def over_hold(self) -> Floats:
        """Shape (n, g): each group less holding."""
        gap: Floats = self.groups - self.hold[:, None]
        return gap


def terms(dataset: Dataset, members: Bools) -> Terms:
    """Return the terms of groups of actions.

    Args:
        dataset: n rounds; the reward model is cross-fitted on them, folds by customer.
        members: (k, g), which actions are in which group.
    """
    rounds, space = dataset.rounds, dataset.program.space
    model = reward_model.cross_fit(rounds, space)
    hold = np.arange(space.k)[:, None] == HOLD
    groups = np.hstack([hold, members]).astype(np.float64)
    found = np.empty((len(rounds), groups.shape[1]))
    for start in range(0, len(rounds), _BLOCK):
        part = rounds.take(slice(start, start + _BLOCK))
        q, rows = model.predict(part), np.arange(len(part))
        logged = part.probabilities / part.probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
        chance = logged @ groups
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = (logged * q) @ groups / chance
            drawn = groups[part.actions] / chance
        block = expected + drawn * (part.rewards - q[rows, part.actions])[:, None]
        block[chance < diagnostics.RARE] = np.nan
        found[start : start + _BLOCK] = block
    return Terms(found[:, 1:], found[:, 0])


def by_incentive(dataset: Dataset) -> Bools:
    """Shape (k, incentives): which actions offer which incentive."""
    space = dataset.program.space
    members: Bools = space.levels[:, [0]] == np.arange(space.shape[0])
    return members
