"""Is what a policy is given what it can answer? Checked once, where data enter; trusted inside."""

from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.actions import HOLD, ActionSpace, Bools, Floats
from optimizer.policy import Rounds

LARGEST = 1e9
"""No feature, price or reward is as large: beyond it float32 arithmetic stops being safe."""


def check(space: ActionSpace, contexts: Floats, *, allowed: Bools, prices: Floats) -> None:
    """Raise ValueError, naming the row and the column, unless a policy of this space can decide on these.

    Args:
        space: the policy's actions and features.
        contexts: (n, d), finite.
        allowed: (n, k), hold always.
        prices: (n, k) or (k,), finite.
    """
    rows, k = len(contexts), len(space.names)
    _shape("contexts", contexts, (rows, space.d))
    _shape("allowed", allowed, (rows, k))
    if allowed.dtype != np.bool_:
        raise ValueError(f"allowed is {allowed.dtype}, expected bool")
    if not allowed[:, HOLD].all():
        row = int(np.argmin(allowed[:, HOLD]))
        raise ValueError(f"allowed: row {row} blocks hold, but hold is always allowed; set allowed[:, 0] to True")
    _shape("prices", prices, (k,) if prices.ndim == 1 else (rows, k))
    _finite("contexts", contexts, space.features)
    _finite("prices", prices, space.names)


def check_rounds(space: ActionSpace, rounds: Rounds) -> None:
    """Raise ValueError, naming the row, unless a policy of this space can learn from these rounds."""
    n = len(rounds)
    _shape("contexts", rounds.contexts, (n, space.d))
    _shape("allowed", rounds.allowed, (n, space.k))
    _shape("probabilities", rounds.probabilities, (n, space.k))
    for name in ("rewards", "at", "customers"):
        _shape(name, getattr(rounds, name), (n,))
    _finite("contexts", rounds.contexts, space.features)
    _finite("rewards", rounds.rewards[:, None], ("reward",))
    if n and (rounds.actions.min() < 0 or rounds.actions.max() >= space.k):
        row = int(np.argmax((rounds.actions < 0) | (rounds.actions >= space.k)))
        raise ValueError(f"actions: row {row} is {rounds.actions[row]}, expected 0 to {space.k - 1}")
    if not np.isfinite(rounds.at).all():
        row = int(np.argmin(np.isfinite(rounds.at)))
        raise ValueError(f"at: row {row} is {rounds.at[row]}, expected seconds since the epoch")
    _check_draws(rounds)


def _check_draws(rounds: Rounds) -> None:
    """Raise ValueError, naming the row, unless each vector is a distribution that its action may come from."""
    each = np.arange(len(rounds))
    propensities = rounds.probabilities[each, rounds.actions]
    totals = rounds.probabilities.sum(axis=1)
    wrong = ~((propensities > 0) & (np.abs(totals - 1) < 1e-3))  # the vectors are float32
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"probabilities: row {row} sums to {totals[row]:g} and gives {propensities[row]:g} to the action that "
            "was drawn; expected the whole vector that the action was drawn from"
        )
    if len(rounds) and rounds.probabilities.min() < 0.0:
        row = int(np.argmin(rounds.probabilities.min(axis=1)))
        raise ValueError(
            f"probabilities: row {row} holds {rounds.probabilities[row].min():g}, expected shares of 0 or more"
        )
    blocked = ~rounds.allowed[each, rounds.actions]
    if blocked.any():
        row = int(np.argmax(blocked))
        raise ValueError(
            f"actions: row {row} drew action {rounds.actions[row]}, which its mask blocks; "
            "expected the mask that it was drawn under"
        )


def _shape(name: str, array: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {array.shape}, expected {expected}: one column a feature or action of this program"
        )


def _finite(name: str, array: Floats, columns: tuple[str, ...]) -> None:
    flat = array.ravel()
    if flat @ flat < LARGEST**2:  # false for NaN too; one call in place of two
        return
    found = np.argwhere(~(np.abs(array) < LARGEST))
    if not len(found):
        return
    at = found[0]
    place = f"row {at[0]}, column {columns[at[-1]]!r}" if array.ndim > 1 else f"column {columns[at[-1]]!r}"
    raise ValueError(
        f"{name}: {place} is {array[tuple(at)]!r}, expected a finite number below {LARGEST:g}; "
        "encode what is missing as a feature of its own"
    )
