"""Intervals: by hand, and by how often they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.actions import Ints
from training.intervals import bca, bootstraps, by_customer, clustered, condensed, gathered, likelihood, poisson


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


def test_the_bootstraps_agree_with_student_where_nothing_is_skewed() -> None:
    rng = np.random.default_rng(6)
    customers = np.repeat(np.arange(300), rng.integers(1, 6, size=300))
    terms = rng.normal(size=300)[customers] + rng.normal(size=len(customers))
    student = clustered(terms, customers)
    for bootstrap in (bca, poisson):  # an end's chance error is 0.04 errors at 10,000 resamples: 0.15 is 3.7 of those
        found = bootstrap(terms, customers, rng=rng, resamples=10_000)
        assert found.value == pytest.approx(student.value)
        assert found.low == pytest.approx(student.low, abs=0.15 * student.error)
        assert found.high == pytest.approx(student.high, abs=0.15 * student.error)


def test_skew_moves_the_accelerated_interval_to_the_side_of_the_tail() -> None:
    terms = np.random.default_rng(0).lognormal(sigma=1.5, size=60)
    found = bca(terms, np.arange(60), rng=np.random.default_rng(1))
    student = clustered(terms, np.arange(60))
    assert found.low > student.low
    assert found.high > student.high


def test_bootstraps_repeat_with_their_generator() -> None:
    terms, customers = np.random.default_rng(0).normal(size=50), np.arange(50)
    for bootstrap in (bca, poisson):
        once, again = (bootstrap(terms, customers, rng=np.random.default_rng(3)) for _ in range(2))
        assert once == again


def test_several_rows_share_resamples_and_lose_nothing() -> None:
    """A row's intervals are those it has alone from the same generator, and a copy's are the same."""
    rng = np.random.default_rng(4)
    customers = np.repeat(np.arange(120), rng.integers(1, 6, size=120))
    one, other = rng.exponential(size=(2, len(customers)))
    first, second, copy = bootstraps([one, other, one], customers, rng=np.random.default_rng(9), resamples=500)
    assert first == copy
    assert first != second
    assert first.bca == bca(one, customers, rng=np.random.default_rng(9), resamples=500)
    alone = bootstraps([other], customers, rng=np.random.default_rng(9), resamples=500)[0]
    assert alone == second


def test_resampled_means_spread_as_the_standard_error_says() -> None:
    """Of 20,000 resamples the spread is known to 0.5 %: 2 % is four standard errors."""
    terms = np.random.default_rng(2).normal(size=400)
    few = condensed(terms, np.arange(400))
    student = clustered(terms, np.arange(400))
    for found in (few.bca, few.poisson):
        interval = found(rng=np.random.default_rng(5), level=0.6826895, resamples=20_000)
        assert interval.high - interval.low == pytest.approx(2 * student.error, rel=0.02)


def test_more_customers_than_groups_are_gathered_whole() -> None:
    """Half as many groups as customers: nobody's rounds are torn apart, and the spread stays what it is."""
    customers = np.repeat(np.arange(4_096), 2)
    groups = gathered(customers, most=2_048)
    assert (groups[::2] == groups[1::2]).all()
    assert groups.max() < 2_048
    terms = np.random.default_rng(1).normal(size=4_096)[customers]
    assert clustered(terms, groups).error == pytest.approx(clustered(terms, customers).error, rel=0.08)


@pytest.mark.parametrize(
    "customers", [np.array([-3, 7, 7, -3]), np.array([10**12, 5, 5, 10**12]), np.array([3, 0, 0, 3])]
)
def test_codes_of_customers_may_be_any_numbers(customers: Ints) -> None:
    assert clustered(np.array([1.0, 2.0, 4.0, 8.0]), customers) == clustered(
        np.array([1.0, 2.0, 4.0, 8.0]), np.array([0, 1, 1, 0])
    )


def test_empirical_likelihood_of_equal_weights_is_owens_interval() -> None:
    """One round a customer, rewards 0 and 1: -2 log R(v) of a proportion has a closed form."""
    rewards = np.repeat([0.0, 1.0], [70, 30])
    found = likelihood(np.ones(100), rewards, np.arange(100), low=0.0, high=1.0)
    limit = clustered(rewards, np.arange(100))
    t = (limit.high - limit.value) / limit.error

    def ratio(v: float) -> float:
        return float(2 * (70 * np.log(0.7 / (1 - v)) + 30 * np.log(0.3 / v)))

    assert found.value == pytest.approx(0.3, abs=1e-6)
    for end in (found.low, found.high):
        assert ratio(end) == pytest.approx(t**2, rel=1e-4)


@pytest.mark.slow
def test_empirical_likelihood_covers_where_weights_are_heavy() -> None:
    """100 logs at 95 %: fewer than 87 has a chance below 1 in 1,000; it is no wider than IPS by Student."""
    rng = np.random.default_rng(5)
    covered, width, plain = 0, 0.0, 0.0
    for _ in range(100):
        drawn = rng.random(400) < 0.15
        weights = np.where(drawn, 0.8 / 0.15, 0.2 / 0.85)
        rewards = (rng.random(400) < np.where(drawn, 0.6, 0.3)).astype(float)
        customers = np.arange(400) // 2
        found = likelihood(weights, rewards, customers, low=0.0, high=1.0)
        student = clustered(weights * rewards, customers)
        covered += found.low <= 0.8 * 0.6 + 0.2 * 0.3 <= found.high
        width += found.high - found.low
        plain += student.high - student.low
    assert covered >= 87
    assert width < 0.8 * plain


def test_a_reward_out_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="round 2: reward 3 is out of the declared range 0 to 1"):
        likelihood(np.ones(3), np.array([0.0, 1.0, 3.0]), np.arange(3), low=0.0, high=1.0)
