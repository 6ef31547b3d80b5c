"""Is a nudge worth it? What is predicted of it, as far as customers confirm it whom the prediction has not seen.

The best of three hundred predictions is too good: what it promises is partly the luck of a short log. So two halves of
the customers predict each other, and what is promised counts by how much of it came true.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy.special import ndtri

from optimizer.actions import HOLD, ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from optimizer.program import DAY
from policies.thompson import Thompson
from simulations.burden import CAUTION
from training.reward_model import fold_of

_LEAST = 0.02
"""The smallest share of what is promised that is believed; below it nothing is nudged for in practice."""


HALF_LIFE = 7 * DAY
"""Age at which a round counts half for what is confirmed."""


class Confirmed(NamedTuple):
    """What came true on held-out customers: `constant` for any nudge, and `share` of what was promised for it.

    The constant is what a nudge brings at least, with a confidence of `CAUTION`: a nudge has to be worth it.
    """

    constant: float = 0.0
    share: float = 1.0


class Patient:
    """Thompson sampling that believes of its predictions what held-out customers confirm.

    A gain counts as confirmed: `constant` for any nudge, and a `share` of what was promised. To the policy inside it
    is the price that changes: what a nudge has to bring, in terms of its promises.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",), features=("bias",))
    >>> Patient(space).probabilities(np.ones((1, 1)), np.ones((1, 2), dtype=bool), np.array([0.0, 99.0])).tolist()
    [[1.0, 0.0]]
    """

    def __init__(self, space: ActionSpace) -> None:
        self.policy, self.halves = Thompson(space), (Thompson(space), Thompson(space))
        self.confirmed, self._seen = Confirmed(), list[Rounds]()

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        asked = (prices - self.confirmed.constant) / self.confirmed.share  # a gain above it is above the price
        asked[..., HOLD] = 0.0
        return self.policy.probabilities(contexts, allowed, asked)

    def learn(self, rounds: Rounds) -> None:
        if not len(rounds):
            return
        self.policy.learn(rounds)
        half = fold_of(rounds.customers, folds=2)
        for i, policy in enumerate(self.halves):
            policy.learn(rounds.take(half == i))
        self._seen.append(rounds)
        self.confirmed = confirmed(self.halves, Rounds.concatenate(self._seen))

    def save(self, folder: Path) -> None:
        self.policy.save(folder)
        (folder / "confirmed.json").write_text(json.dumps(self.confirmed._asdict()), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        patient = cls(space)
        patient.policy = Thompson.load(folder, space)
        patient.confirmed = Confirmed(**json.loads((folder / "confirmed.json").read_text(encoding="utf-8")))
        return patient


def confirmed(halves: Sequence[Thompson], rounds: Rounds) -> Confirmed:
    """Return how much of what two policies promise came true, at least, for customers whom they have not seen.

    Rewards are regressed on the nudge less its chance, and on the gain that was promised for what was drawn less its
    mean over what could be: centred, so that a poor model of what happens by itself does no harm. Recent rounds count
    more, because fatigue builds up for weeks: what counts is what a nudge does now.

    Args:
        halves: policies that learned from one half of the customers each, by `fold_of`.
        rounds: of all customers.
    """
    half = fold_of(rounds.customers, folds=2)
    nudged, promised = np.zeros(len(rounds)), np.zeros(len(rounds))
    for i, policy in enumerate(halves):
        rows = np.flatnonzero(half != i)
        some = rounds.take(rows)
        gains = policy.effects(some.contexts)
        chances = some.probabilities / some.probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
        nudged[rows] = (some.actions != HOLD) - (1.0 - chances[:, HOLD])
        promised[rows] = gains[np.arange(len(rows)), some.actions] - (gains * chances).sum(axis=1)
    recent = np.exp2((rounds.at - rounds.at.max()) / (2.0 * HALF_LIFE))  # the square root of each round's weight
    design = np.column_stack([rounds.contexts, nudged, promised]) * recent[:, None]
    bread = np.linalg.pinv(design.T @ design)
    found = bread @ (design.T @ (rounds.rewards * recent))
    scores = design @ bread[:, -2] * (rounds.rewards * recent - design @ found)
    error = float(np.sqrt((np.bincount(rounds.customers, weights=scores) ** 2).sum()))  # customers are the unit
    constant, share = found[-2:].tolist()
    return Confirmed(constant - float(ndtri(CAUTION)) * error, float(np.clip(share, _LEAST, 1.0)))
