"""The sequence: valid at every look, whatever the policy that logs, and it closes in."""

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from tests.training.worlds import rounds_of
from training import sequence
from training.sequence import looks, terms

CHANCES = np.array([0.2, 0.5, 0.3])
TARGET = np.array([0.1, 0.8, 0.1])
VALUE = float(TARGET @ CHANCES)


def adapting_log(rng: np.random.Generator, *, n: int) -> Rounds:
    """Return a log of customers with one to three rounds each, under a policy that shifts away from the target."""
    customers = np.repeat(np.arange(n), rng.integers(1, 4, size=n))[:n]
    drift = np.linspace(0.0, 1.0, n)[:, None]
    logged = (1 - drift) * np.array([0.34, 0.33, 0.33]) + drift * np.array([0.75, 0.1, 0.15])
    actions = (np.cumsum(logged, axis=1) < rng.random((n, 1))).sum(axis=1)
    rewards = (rng.random(n) < CHANCES[actions]).astype(np.float64)
    return rounds_of(logged, actions=actions, rewards=rewards, customers=customers)


def bounds(rounds: Rounds, *, q: Floats, level: float = 0.95) -> sequence.Looks:
    """Return the sequence for the target."""
    n = len(rounds)
    found = terms(rounds, np.tile(TARGET, (n, 1)), np.tile(q, (n, 1)), low=0.0, high=1.0)
    return looks(found, rounds.customers, low=0.0, high=1.0, level=level)


def test_terms_are_bounded_below_and_average_to_the_value() -> None:
    rounds = adapting_log(np.random.default_rng(0), n=40_000)
    n = len(rounds)
    found = terms(rounds, np.tile(TARGET, (n, 1)), np.tile(CHANCES, (n, 1)), low=0.0, high=1.0)
    for side, value in ((found.lower, VALUE), (found.upper, 1 - VALUE)):
        assert side.min() >= -sequence.SLACK - 1e-9
        assert side.mean() == pytest.approx(value, abs=4 * side.std() / np.sqrt(n))


@pytest.mark.parametrize("q", [CHANCES, np.zeros(3), np.array([0.9, 0.1, 0.9])])
def test_every_look_covers(q: Floats) -> None:
    """120 logs, all looks at once at 90 %: more than 23 misses has a chance below 1 in 1,000."""
    rng = np.random.default_rng(7)
    missed = 0
    for _ in range(120):
        found = bounds(adapting_log(rng, n=600), q=q, level=0.9)
        missed += bool((found.low > VALUE).any() or (found.high < VALUE).any())
    assert missed <= 23


def test_it_closes_in_and_never_opens_again() -> None:
    found = bounds(adapting_log(np.random.default_rng(1), n=20_000), q=CHANCES)
    width = found.high - found.low
    assert (np.diff(width) <= 1e-12).all()
    assert width[-1] < 0.12
    assert found.low[-1] < VALUE < found.high[-1]


def test_a_good_model_makes_it_tighter() -> None:
    rounds = adapting_log(np.random.default_rng(2), n=20_000)
    with_, without = bounds(rounds, q=CHANCES), bounds(rounds, q=np.array([0.9, 0.1, 0.9]))
    assert with_.high[-1] - with_.low[-1] < without.high[-1] - without.low[-1]


def test_the_declared_range_scales_everything() -> None:
    rounds = adapting_log(np.random.default_rng(3), n=500)
    n = len(rounds)
    scaled = Rounds(**{**vars(rounds), "rewards": 10.0 * rounds.rewards - 4.0})
    target, q = np.tile(TARGET, (n, 1)), np.tile(CHANCES, (n, 1))
    one = looks(terms(rounds, target, q, low=0.0, high=1.0), rounds.customers, low=0.0, high=1.0)
    ten = looks(terms(scaled, target, 10 * q - 4, low=-4.0, high=6.0), rounds.customers, low=-4.0, high=6.0)
    assert ten.low == pytest.approx(10 * one.low - 4)
    assert ten.high == pytest.approx(10 * one.high - 4)


def test_an_empty_range_is_refused() -> None:
    rounds = adapting_log(np.random.default_rng(4), n=5)
    with pytest.raises(ValueError, match="the range of a reward goes from low to high, got 1 to 1"):
        terms(rounds, np.tile(TARGET, (5, 1)), np.zeros((5, 3)), low=1.0, high=1.0)
