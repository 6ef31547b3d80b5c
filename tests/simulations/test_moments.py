"""The calibrated world is near to published trials, within tolerances that stand beside the figures; others are not.

Seeds are fixed: the draws of a replay are part of what is tested.
"""

from dataclasses import replace

import pytest

from simulations import trials
from simulations.moments import Moment, _coupons, _gym, _leaving, _progress, _suggestions
from simulations.worlds import CALIBRATED, WORLDS

SEED = 1


def _near(found: list[Moment]) -> None:
    for m in found:
        assert m.met, f"{m.figure}: published {m.published:g}, here {m.ours:g}, may be {m.tolerance:g} off"


@pytest.mark.slow
def test_the_gym_trial_finds_as_many_arms_of_such_a_size_and_as_few_that_last() -> None:
    _near(_gym(CALIBRATED, seed=SEED, members=trials.MEMBERS))


@pytest.mark.slow
def test_a_daily_suggestion_adds_much_at_first_and_little_over_six_weeks() -> None:
    _near(_suggestions(CALIBRATED, seed=SEED))


def test_coupons_lift_purchases_as_much_and_what_they_bring_comes_as_late() -> None:
    _near(_coupons(CALIBRATED, seed=SEED))


def test_messages_make_as_many_leave_and_daily_ones_more() -> None:
    _near(_leaving(CALIBRATED, seed=SEED))


def test_a_card_with_two_stamps_given_is_filled_more_often() -> None:
    _near(_progress(CALIBRATED, seed=SEED))


def test_a_world_that_was_not_calibrated_is_told_from_one_that_was() -> None:
    for found in (_coupons(WORLDS["demo"], seed=SEED), _progress(WORLDS["demo"], seed=SEED)):
        assert not all(m.met for m in found)


def test_without_a_goal_gradient_the_stamps_that_were_given_hardly_matter() -> None:
    flat = trials.progress(replace(CALIBRATED, gradient=0.0), seed=SEED)
    assert abs(flat.endowed - flat.plain) < 0.03


def test_without_fatigue_and_repetition_a_suggestion_goes_on_helping() -> None:
    fresh = replace(CALIBRATED, blunting=0.0, burden=0.0, repetition=0.0, habit_gain=0.0)
    found = trials.suggestions(fresh, seed=SEED, people=2_000)
    assert found.average > 0.7 * found.first


def test_a_dearer_coupon_does_more_but_less_for_each_euro() -> None:
    none, base, better = trials.coupons(CALIBRATED, seed=SEED, customers=120_000).high
    assert none < base < better
    assert (better - none) / 8.75 < (base - none) / 3.5


def test_most_who_use_a_coupon_would_have_bought_anyway() -> None:
    """Subsidy: among those likely to buy, more than half of the buyers with a coupon buy without one too."""
    none, base, _ = trials.coupons(CALIBRATED, seed=SEED, customers=120_000).high
    assert none / base > 0.5
