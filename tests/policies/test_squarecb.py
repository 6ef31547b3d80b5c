"""Are inverse gaps those of the formula, and does `gamma` follow its rule?"""

import numpy as np
import pytest

from policies.squarecb import SquareCB, inverse_gap
from tests.checks import SPACE, contexts, logged, masks


def test_inverse_gaps_are_those_worked_out_by_hand() -> None:
    """K = 3, gamma = 2: gaps 1 and 0.25 give 1/(3 x 3) = 1/9 and 1/(3 x 1.5) = 2/9; the best has the rest, 6/9."""
    scores = np.array([[1.0, 2.0, 1.75, 9.0]])
    allowed = np.array([[True, True, True, False]])
    assert inverse_gap(scores, allowed, gamma=2.0) == pytest.approx(np.array([[1, 6, 2, 0]]) / 9)
    assert inverse_gap(scores, allowed, gamma=0.0) == pytest.approx(np.array([[1, 1, 1, 0]]) / 3)


def test_compiled_probabilities_are_those_of_plain_numpy() -> None:
    """Over random contexts, masks and prices, to 1e-12: scored by factor, weighed by gap."""
    policy = SquareCB(SPACE)
    policy.learn(logged(500, seed=2))
    x, allowed = contexts(100, seed=3), masks(100, seed=3)
    prices = np.random.default_rng(3).random((100, SPACE.k))
    expected = inverse_gap(policy.effects(x) - prices, allowed, gamma=policy.gamma)
    assert policy.probabilities(x, allowed, prices) == pytest.approx(expected, abs=1e-12)


def test_gamma_counts_gaps_in_standard_errors() -> None:
    """By scale x sqrt(n / freedom) / noise, as the docstring says: 0 before the first round."""
    policy = SquareCB(SPACE, scale=3.0)
    assert policy.gamma == 0.0
    policy.learn(logged(500, seed=1))
    model = policy.model
    assert policy.gamma == pytest.approx(3.0 * np.sqrt(500 / model.freedom) / model.noise)
    with pytest.raises(ValueError, match=r"scale must be positive, got -1; `greedy`"):
        SquareCB(SPACE, scale=-1)
