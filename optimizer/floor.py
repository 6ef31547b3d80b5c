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
    spreads = np.empty(allowed.shape)
    spreads[:, HOLD] = ~_spread_nudges(space, allowed, out=spreads[:, HOLD + 1 :])
    return spreads


def _spread_nudges(space: ActionSpace, allowed: Bools, *, out: Floats) -> Bools:
    """Write the spread over nudges (n, k - 1); return (n,) whether a row allows any.

    Guardrails block levels, so nearly every mask is a product of levels: there all three factors come to the same, and
    every allowed nudge has an equal share.
    """
    cells = allowed[:, HOLD + 1 :].astype(np.float64)
    counts = cells @ space.joint_membership  # (n, levels of all factors): exact, being whole numbers
    present = np.add.reduceat(counts > 0, space.starts, axis=1, dtype=np.float64)  # (n, 3)
    totals = counts[:, : space.starts[1]].sum(axis=1)
    np.multiply(cells, (1.0 / np.maximum(totals, 1.0))[:, None], out=out)
    other = np.flatnonzero(present[:, 0] * present[:, 1] * present[:, 2] != totals)
    if len(other):
        shares = 1.0 / (3.0 * np.maximum(counts[other], 1.0) * np.repeat(present[other], space.shape, axis=1))
        mixed = shares[:, space.columns[0]]
        mixed += shares[:, space.columns[1]]
        mixed += shares[:, space.columns[2]]
        out[other] = mixed * cells[other]
    some: Bools = totals > 0
    return some


def _even_share(space: ActionSpace, allowed: Bools) -> float:
    """Return the share of each nudge that one mask (k,) allows, where it is a product of levels; otherwise 0."""
    counts = allowed[HOLD + 1 :].astype(np.float64) @ space.joint_membership
    first, second = space.starts[1:].tolist()
    total = float(counts[:first].sum())
    levels = np.count_nonzero(counts[:first]) * np.count_nonzero(counts[first:second])
    return 1.0 / total if total and total == levels * np.count_nonzero(counts[second:]) else 0.0


def apply_floor(probabilities: Floats, space: ActionSpace, *, allowed: Bools, exploration: Exploration) -> Floats:
    """Mix a policy's probabilities (n, k) with the floor: `(1 - e - e_h) policy + e_h hold + e spread`.

    Every allowed action ends up positive, and a row that allows no nudge is hold.

    >>> space = ActionSpace(("a",), ("t",), ("now",))
    >>> mask = np.array([[True, True]])
    >>> apply_floor(np.array([[1.0, 0.0]]), space, allowed=mask, exploration=Exploration()).round(3).tolist()
    [[0.95, 0.05]]
    """
    e, e_hold = exploration.floor, exploration.hold
    if len(allowed) == 1 and (share := _even_share(space, allowed[0])):
        alone: Floats = (1.0 - e - e_hold) * probabilities
        alone[0, HOLD + 1 :] += allowed[0, HOLD + 1 :] * (share * e)
        alone[0, HOLD] += e_hold
        return alone
    floored = np.empty(allowed.shape)
    some = _spread_nudges(space, allowed, out=floored[:, HOLD + 1 :])
    floored[:, HOLD + 1 :] *= e
    floored[:, HOLD] = np.where(some, e_hold, e_hold + e)
    floored += (1.0 - e - e_hold) * probabilities
    return floored
