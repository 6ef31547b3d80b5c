"""Is the floor the mean over factors, whatever shape the mask has?"""

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.floor import apply_floor, spread
from optimizer.program import Exploration

SPACE = ActionSpace(("a", "b", "c", "d"), ("t", "u", "v"), ("now", "later"))


def _by_definition(allowed: Bools) -> Floats:
    """Return the spread of one row (k,), cell by cell."""
    out = np.zeros(SPACE.k)
    cells = np.flatnonzero(allowed[1:]) + 1
    if not len(cells):
        out[0] = 1.0
        return out
    for factor in range(3):
        levels = SPACE.levels[cells, factor]
        for level in np.unique(levels):
            members = cells[levels == level]
            out[members] += 1.0 / (3.0 * len(np.unique(levels)) * len(members))
    return out


def _masks(n: int) -> Bools:
    """Shape (n, k): of any shape, and products of levels as guardrails make them, in turn; the first allows nothing."""
    rng = np.random.default_rng(1)
    allowed = rng.random((n, SPACE.k)) < rng.random((n, 1))
    for row in range(0, n, 2):
        free = [rng.random(size) < 0.7 for size in SPACE.shape]
        allowed[row, 1:] = (free[0][:, None, None] & free[1][:, None] & free[2]).ravel()
    allowed[:2, 1:] = False
    allowed[:, 0] = True
    return allowed


def test_the_spread_is_the_mean_over_factors_for_masks_of_any_shape() -> None:
    """Products of levels, where it is even over the cells, and others, in one batch."""
    allowed = _masks(400)
    expected = np.array([_by_definition(row) for row in allowed])
    assert spread(SPACE, allowed) == pytest.approx(expected, abs=1e-15)
    alone = np.concatenate([spread(SPACE, row[None]) for row in allowed])
    assert alone == pytest.approx(expected, abs=1e-15)


def test_the_floor_keeps_every_allowed_action_possible_and_rows_whole() -> None:
    """Also where no nudge is allowed: then all of it is hold."""
    allowed, exploration = _masks(100), Exploration()
    certain = np.zeros(allowed.shape)
    certain[:, 0] = 1.0
    p = apply_floor(certain, SPACE, allowed=allowed, exploration=exploration)
    assert ((p > 0) == allowed).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(100))
    assert p[0, 0] == pytest.approx(1.0)
    rest = p[50, 1:][allowed[50, 1:]]
    assert rest.sum() == pytest.approx(exploration.floor if len(rest) else 0.0)


def test_a_row_alone_is_floored_bit_for_bit_as_in_a_batch() -> None:
    """So that a decision does not depend on who asked at the same moment."""
    allowed = _masks(200)
    p = allowed / allowed.sum(axis=1, keepdims=True)
    together = apply_floor(p, SPACE, allowed=allowed, exploration=Exploration())
    rows = [slice(i, i + 1) for i in range(200)]
    alone = [apply_floor(p[row], SPACE, allowed=allowed[row], exploration=Exploration()) for row in rows]
    assert np.array_equal(np.concatenate(alone), together)
