"""Wear-out: found where it is, not where it is not, and a rotation is suggested only where it would pay."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from tests.training.lived import Life, lived
from training import contrasts, dataset, record
from training.wear_out import Wear, luck_before, slope, wear_out, within

LIVELY = Life(goal=0.0, goal_lift=0.0, lift=0.3, leaves=0.0, redeems=0.0)


def worn(archive: Path, *, wear: float, seed: int, customers: int = 250, days: int = 20) -> dict[str, Wear]:
    """Return how each incentive of a small archive wears; only the coupon ever does."""
    program = lived(archive, customers=customers, days=days, seed=seed, life=replace(LIVELY, wear=wear))
    log = dataset.load(archive, program)
    each = contrasts.by_incentive(log)
    terms, luck = contrasts.terms(log, each), luck_before(log.rounds, each)
    return {w.incentive: w for w in wear_out(record.load(archive, program), log, terms, luck=luck)}


def test_wear_is_found_and_a_rotation_suggested_to_what_does_more(tmp_path: Path) -> None:
    found = worn(tmp_path, wear=0.35, seed=1, customers=450)
    coupon = found["coupon"]
    assert coupon.worn
    assert coupon.by_exposure.below
    assert coupon.rotate_to == "badge"
    assert "rotate to badge" in coupon.advice
    assert not found["badge"].worn
    assert next(iter(found)) == "coupon"  # the most worn first


def test_where_nothing_wears_nothing_is_said_to(tmp_path: Path) -> None:
    """Three logs, each at 95 % for all its slopes together: wear in all three has a chance below 1 in 1,000."""
    logs = [worn(tmp_path / str(seed), wear=0.0, seed=seed, customers=60, days=14) for seed in range(3)]
    assert sum(any(w.worn for w in found.values()) for found in logs) <= 2
    assert all(w.rotate_to == "" for found in logs for w in found.values() if not w.worn)


def test_the_slope_is_that_of_a_line_and_its_interval_covers() -> None:
    """Sixty logs at 95 %: fewer than 50 that cover has a chance below 1 in 1,000."""
    rng, covered = np.random.default_rng(2), 0
    for _ in range(60):
        who = np.repeat(np.arange(60), 8)
        use = np.tile(np.arange(8.0), 60)
        gains = 1.0 - 0.2 * use + rng.normal(size=60)[who] + rng.normal(size=len(who)) * (1 + use)
        found = slope(gains, use, who, by=within(use, who), of="slope")
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.2 <= found.high
    assert covered >= 50


@dataclass(frozen=True)
class Chosen:
    """Rounds in which half of the customers are moved more by a coupon, and get it more often for that."""

    rounds: Rounds
    gains: Floats
    exposures: Floats


def chosen(*, wear: float, seed: int, customers: int = 150, times: int = 16) -> Chosen:
    """Return rounds of two kinds of customers: a coupon adds 1 to the moved, 0.2 to others, less `wear` each time.

    The moved get it in six of ten decisions, others in one of ten; and who has just answered well gets it more often.
    """
    rng = np.random.default_rng(seed)
    moved = rng.random(customers) < 0.5
    had, last = np.zeros(customers), np.zeros(customers)
    drawn, chances, gains, seen = (list[Floats]() for _ in range(4))
    for _ in range(times):
        p = np.clip(np.where(moved, 0.6, 0.1) + 0.2 * (last > 1), 0.05, 0.95)
        now = rng.random(customers) < p
        gain = np.where(moved, 1.0, 0.2) - wear * had + rng.normal(size=customers)
        for column, row in ((drawn, now.astype(np.float64)), (chances, p), (gains, gain), (seen, had.copy())):
            column.append(row)
        had, last = had + now, gain
    who = np.tile(np.arange(customers), times)
    p, n = np.concatenate(chances), customers * times
    rounds = Rounds(
        contexts=np.ones((n, 1)),
        allowed=np.ones((n, 2), dtype=np.bool_),
        probabilities=np.column_stack([1 - p, p]).astype(np.float32),
        actions=np.concatenate(drawn).astype(np.intp),
        rewards=np.zeros(n),
        customers=who,
        at=np.repeat(np.arange(times, dtype=np.float64), customers),
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.zeros(n, dtype=np.intp),
    )
    return Chosen(rounds, np.concatenate(gains), np.concatenate(seen))


@pytest.mark.parametrize("wear", [0.0, 0.15])
def test_who_is_given_an_incentive_often_is_told_from_what_often_does(wear: float) -> None:
    """Sixty logs at 95 %: fewer than 50 that cover has a chance below 1 in 1,000."""
    coupon, covered, across, below = np.array([[False], [True]]), 0, 0, 0
    for seed in range(60):
        log = chosen(wear=wear, seed=seed)
        who, use = log.rounds.customers, log.exposures
        found = slope(log.gains, use, who, by=luck_before(log.rounds, coupon)[:, 0], of="wear")
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -wear <= found.high
        below += found.below
        plain = slope(log.gains, use, who, by=use - use.mean(), of="wear")
        across += plain.low is not None and plain.high is not None and plain.low <= -wear <= plain.high
    assert covered >= 50
    assert across <= 5, "across customers, those whom it moves hide the wear"
    assert below >= 30 if wear else below <= 7


def test_luck_is_what_chance_drew_beyond_what_was_to_be_expected() -> None:
    # By hand, of one customer with chances 0.6, 0.8, 0.6: drawn, drawn, not; and of another before: not, drawn.
    log = chosen(wear=0.0, seed=0, customers=1, times=3).rounds
    p = np.array([0.6, 0.8, 0.6, 0.5, 0.1])
    rounds = Rounds(
        contexts=np.ones((5, 1)),
        allowed=np.ones((5, 2), dtype=np.bool_),
        probabilities=np.column_stack([1 - p, p]).astype(np.float32),
        actions=np.array([1, 1, 0, 0, 1]),
        rewards=np.zeros(5),
        customers=np.array([7, 7, 7, 2, 2]),
        at=np.array([1.0, 2.0, 3.0, 1.0, 2.0]),
        cost_prices=np.zeros(5),
        burdens=np.zeros(5),
        loggers=np.zeros(5, dtype=np.intp),
    )
    luck = luck_before(rounds, np.array([[False], [True]]))[:, 0]
    assert luck.tolist() == pytest.approx([0.0, 0.4, 0.6, 0.0, -0.5], abs=1e-6)
    assert luck_before(log, np.array([[False], [True]]))[0, 0] == 0.0


def test_few_customers_and_equal_use_say_what_to_wait_for() -> None:
    use = np.arange(30.0)
    said = slope(np.ones(30), use, np.arange(30) % 5, by=use, of="slope")
    assert "5 customers; it takes 20" in said.missing
    assert "equally often" in slope(np.ones(30), np.ones(30), np.arange(30), by=use, of="slope").missing


def test_an_effect_over_holding_is_unbiased(tmp_path: Path) -> None:
    """A badge adds 0.3 steps worth 0.5 each on its day; over the window of three days little else changes that."""
    badge = worn(tmp_path, wear=0.0, seed=4)["badge"].effect
    assert badge.low is not None
    assert badge.high is not None
    assert badge.low < 0.15 < badge.high
    assert badge.value == pytest.approx(0.15, abs=0.15)
