"""Kaplan-Meier: what has not happened yet is neither dropped nor counted as never, and customers are the unit."""

import numpy as np
import pytest

from optimizer.program import DAY
from training.survival import by, curve, median


def test_without_censoring_it_is_the_share_and_the_binomial_spread() -> None:
    durations = np.arange(1.0, 101.0) * DAY
    found = curve(durations, np.ones(100, dtype=np.bool_), np.arange(100))
    place = found.at(30 * DAY)
    assert found.happened[place] == pytest.approx(0.3, abs=0.01)
    error = np.sqrt((found.influence[place] ** 2).sum())
    assert error == pytest.approx(np.sqrt(0.3 * 0.7 / 100), rel=0.03)


def test_repeating_every_row_makes_nothing_surer() -> None:
    rng = np.random.default_rng(0)
    durations, ended = rng.exponential(size=80) * DAY, rng.random(80) < 0.7
    once = curve(durations, ended, np.arange(80))
    twice = curve(np.repeat(durations, 2), np.repeat(ended, 2), np.repeat(np.arange(80), 2))
    assert twice.happened == pytest.approx(once.happened)
    for one, two in zip(once.influence, twice.influence, strict=True):
        assert np.sqrt((two**2).sum()) == pytest.approx(np.sqrt((one**2).sum()), rel=0.02)


def log(rng: np.random.Generator, *, customers: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return redemptions, three a customer, each after a mean of 4 days, followed for 0 to 10 days."""
    who = np.repeat(np.arange(customers), 3)
    pace = np.repeat(rng.gamma(4.0, 0.25, size=customers), 3)
    takes, followed = rng.exponential(4.0 * pace) * DAY, rng.uniform(0.0, 10.0, size=len(who)) * DAY
    return np.minimum(takes, followed), takes <= followed, who


def test_intervals_cover_the_truth_although_most_were_not_followed_to_the_end() -> None:
    """60 logs at 95 %: fewer than 50 that cover has a chance below 1 in 1,000, for each of the two."""
    rng = np.random.default_rng(4)
    pace = np.random.default_rng(9).gamma(4.0, 0.25, size=400_000)
    takes = np.random.default_rng(10).exponential(4.0 * pace)
    share, half = float((takes <= 5.0).mean()), float(np.median(takes))
    shares = halves = 0
    for _ in range(60):
        found = curve(*log(rng))
        one, other = by(found, 5 * DAY, of="share"), median(found, of="half")
        assert one.low is not None
        assert one.high is not None
        assert other.low is not None
        shares += one.low <= share <= one.high
        halves += other.low <= half <= (other.high or np.inf)
    assert shares >= 50
    assert halves >= 50


def test_dropping_the_censored_would_have_been_wrong() -> None:
    durations, ended, who = log(np.random.default_rng(5), customers=4_000)
    honest = median(curve(durations, ended, who), of="half").value
    assert honest is not None
    assert float(np.median(durations[ended])) / DAY < 0.8 * honest


def test_a_median_that_is_not_reached_and_a_time_not_followed_are_said() -> None:
    durations, nothing = np.full(40, 3 * DAY), np.zeros(40, dtype=np.bool_)
    found = curve(durations, nothing, np.arange(40))
    assert "has not" in median(found, of="half").missing or "more than half" in median(found, of="half").missing
    assert by(found, 2 * DAY, of="share").high == pytest.approx(0.0876, abs=1e-3)
    assert "nobody was followed for 14 days; wait 11 more" in by(found, 14 * DAY, of="share").missing


def test_few_customers_are_no_evidence() -> None:
    found = curve(np.ones(100) * DAY, np.ones(100, dtype=np.bool_), np.arange(100) % 7)
    assert "7 customers; it takes 20" in median(found, of="half").missing


def test_half_of_those_to_whom_it_happens_within_a_time() -> None:
    """Half of all never redeem; of those who do, half have after the median of their own times."""
    rng = np.random.default_rng(6)
    takes = np.where(rng.random(4_000) < 0.5, rng.exponential(2.0, size=4_000), np.inf)
    followed = rng.uniform(0.0, 20.0, size=4_000)
    found = curve(np.minimum(takes, followed) * DAY, takes <= followed, np.arange(4_000))
    said = median(found, of="half", within=10 * DAY)
    assert said.value == pytest.approx(2.0 * np.log(2.0), rel=0.12)
    assert said.low is not None
    assert said.value is not None
    assert said.low < said.value
