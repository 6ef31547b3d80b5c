"""Wear-out: found where it is, not where it is not, and a rotation is suggested only where it would pay."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.lived import Life, lived
from training import contrasts, dataset, record
from training.wear_out import Wear, slope, wear_out

LIVELY = Life(goal=0.0, goal_lift=0.0, lift=0.3, leaves=0.0, redeems=0.0)


def worn(archive: Path, *, wear: float, seed: int, customers: int = 250, days: int = 20) -> dict[str, Wear]:
    """Return how each incentive of a small archive wears; only the coupon ever does."""
    from dataclasses import replace

    program = lived(archive, customers=customers, days=days, seed=seed, life=replace(LIVELY, wear=wear))
    log = dataset.load(archive, program)
    terms = contrasts.terms(log, contrasts.by_incentive(log))
    return {w.incentive: w for w in wear_out(record.load(archive, program), log, terms)}


def test_wear_is_found_and_a_rotation_suggested_to_what_does_more(tmp_path: Path) -> None:
    found = worn(tmp_path, wear=0.35, seed=1, customers=300)
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
        found = slope(gains, use, who, of="slope")
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.2 <= found.high
    assert covered >= 50


def test_few_customers_and_equal_use_say_what_to_wait_for() -> None:
    said = slope(np.ones(30), np.arange(30.0), np.arange(30) % 5, of="slope")
    assert "5 customers; it takes 20" in said.missing
    assert "equally often" in slope(np.ones(30), np.ones(30), np.arange(30), of="slope").missing


def test_an_effect_over_holding_is_unbiased(tmp_path: Path) -> None:
    """A badge adds 0.3 steps worth 0.5 each on its day; over the window of three days little else changes that."""
    badge = worn(tmp_path, wear=0.0, seed=4)["badge"].effect
    assert badge.low is not None
    assert badge.high is not None
    assert badge.low < 0.15 < badge.high
    assert badge.value == pytest.approx(0.15, abs=0.15)
