"""How is every allowed action kept possible? The floor, applied once, after the policy and before the draw."""

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Bools, Floats
from optimizer.program import Exploration


def spread(space: ActionSpace, allowed: Bools) -> Floats:
    """Return the exploration that gives each factor's levels equal shares.

    The mean over the three factors of: uniform over the levels that have an allowed cell, then uniform over that
    level's allowed cells. A level is thus explored however many cells it has, and importance weights of factor levels
    stay small. Rows that allow no nudge are hold.

    Args:
        space: the actions.
        allowed: (n, k).

    Returns:
        (n, k): rows sum to 1.

    >>> space = ActionSpace(("a", "b"), ("t",), ("now", "later"))
    >>> spread(space, np.array([[1, 1, 1, 1, 0]], dtype=bool)).round(3).tolist()
    [[0.0, 0.278, 0.361, 0.361, 0.0]]
    """
    cells = allowed[:, 1:].astype(np.float64)
    shares = np.zeros(cells.shape)
    for factor, members in enumerate(space.membership):
        counts = cells @ members  # (n, levels): exact, being whole numbers
        levels = np.count_nonzero(counts, axis=1)[:, None]
        shares += (1.0 / (3.0 * np.maximum(counts, 1.0) * np.maximum(levels, 1)))[:, space.levels[1:, factor]]
    spreads = np.zeros(allowed.shape)
    np.multiply(shares, cells, out=spreads[:, 1:])
    spreads[:, HOLD] = ~allowed[:, 1:].any(axis=1)
    return spreads


def apply_floor(probabilities: Floats, space: ActionSpace, *, allowed: Bools, exploration: Exploration) -> Floats:
    """Mix a policy's probabilities (n, k) with the floor: `(1 - e - e_h) policy + e_h hold + e spread`.

    Every allowed action ends up positive, and a row that allows no nudge is hold.

    >>> space = ActionSpace(("a",), ("t",), ("now",))
    >>> mask = np.array([[True, True]])
    >>> apply_floor(np.array([[1.0, 0.0]]), space, allowed=mask, exploration=Exploration()).round(3).tolist()
    [[0.95, 0.05]]
    """
    e, e_hold = exploration.floor, exploration.hold
    floored = (1.0 - e - e_hold) * probabilities + e * spread(space, allowed)
    floored[:, HOLD] += e_hold
    return floored
