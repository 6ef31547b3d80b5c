"""Intervals: by hand, and by how often they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.intervals import by_customer, clustered


def test_two_customers_by_hand() -> None:
    """Terms 1, 3 of one customer and 2 of another: mean 2, sums of deviations (-1 + 1) = 0 and 0, so no spread.

    With 1, 3 and 5: mean 3, sums -2 and 2, variance 2 / 1 x (4 + 4) / 9 = 16 / 9; t(1) at 97.5 % is 12.7062.
    """
    assert clustered(np.array([1.0, 3.0, 2.0]), np.array([0, 0, 1])).error == 0.0
    found = clustered(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]))
    assert found.value == 3.0
    assert found.error == pytest.approx(4 / 3)
    assert found.high == pytest.approx(3.0 + 12.7062 * 4 / 3, abs=1e-4)
    assert (found.degrees, found.rounds, found.customers) == (1, 3, 2)


def test_with_one_round_a_customer_it_is_students_interval() -> None:
    terms = np.array([0.3, 1.1, -0.4, 2.2, 0.9])
    assert clustered(terms, np.arange(5)).error == pytest.approx(terms.std(ddof=1) / np.sqrt(5))


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_copies_of_rounds_add_no_certainty(seed: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    terms, customers = rng.normal(size=30), rng.integers(0, 10, size=30)
    once = clustered(terms, customers)
    again = clustered(np.tile(terms, copies), np.tile(customers, copies))
    assert again.value == pytest.approx(once.value)
    assert again.error == pytest.approx(once.error)


def test_sums_by_customer_say_the_same_as_rounds() -> None:
    rng = np.random.default_rng(1)
    terms, customers = rng.normal(size=100), rng.integers(0, 20, size=100)
    sums = np.bincount(customers, weights=terms).astype(np.float64)
    assert by_customer(sums, np.bincount(customers).astype(float)) == clustered(terms, customers)


def test_another_level_widens_the_same_interval() -> None:
    found = clustered(np.array([1.0, 3.0, 5.0, 9.0]), np.array([0, 0, 1, 2]))
    wider = found.at_level(0.99)
    assert wider.at_level(0.95) == found
    assert wider.low < found.low < found.value == wider.value


def test_one_customer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two customers, got 3 rounds of 1"):
        clustered(np.ones(3), np.zeros(3, dtype=int))


def test_a_level_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write 0.95 for 95 %"):
        clustered(np.ones(3), np.arange(3), level=95)


def test_intervals_cover_where_customers_repeat_and_unclustered_ones_do_not() -> None:
    """Over 400 logs of 60 customers, 95 % should cover: below 365 has a chance of 1 in 1,000 (binomial)."""
    rng = np.random.default_rng(3)
    covered = naive = 0
    for _ in range(400):
        sizes = rng.integers(1, 20, size=60)
        customers = np.repeat(np.arange(60), sizes)
        terms = rng.normal(size=60)[customers] + rng.normal(size=len(customers))
        found = clustered(terms, customers)
        covered += found.low <= 0 <= found.high
        alone = clustered(terms, np.arange(len(terms)))
        naive += alone.low <= 0 <= alone.high
    assert covered >= 365
    assert naive < 300
