"""The price of money: up when too much is spent, down when too little, and the budget lasts its period."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.pacing import Purse, gain, pace, repriced
from optimizer.program import DAY, Program
from tests.small_program import GUARDRAILS, NOON, small

MINUTE = 60.0
PROGRAM = small(GUARDRAILS + 'budget = { amount = 2000, period = "1w" }\n')
WHOLE, WEEK = 200_000.0, 7 * DAY
START = NOON // WEEK * WEEK


def test_spending_what_is_due_leaves_the_price_as_it_is() -> None:
    assert pace(PROGRAM, spent=WHOLE / 7, elapsed=DAY, price=1.3) == pytest.approx(1.3)


def test_the_price_rises_with_what_is_spent_too_fast_and_is_never_negative() -> None:
    # By hand: after a seventh the gain is 3 + 30 / (1 + 28 / 7) = 9, and 1 % of the budget more than is due raises the
    # price by 9 x (1 + 1) x 0.01.
    assert pace(PROGRAM, spent=WHOLE / 7 + 2000, elapsed=DAY, price=1.0) == pytest.approx(1.18)
    assert pace(PROGRAM, spent=0, elapsed=6 * DAY, price=0.5) == 0.0
    # With half of the money and a day left, a tenth of a day and a tenth of the money are even.
    assert pace(PROGRAM, spent=WHOLE / 20, elapsed=DAY / 10, price=2.0, left=WHOLE / 2, remaining=DAY) == pytest.approx(
        2
    )


def test_without_a_budget_money_has_no_price() -> None:
    assert pace(small(), spent=1e9, elapsed=1.0, price=3.0) == 0.0
    assert repriced(small(), 3.0, before=Purse(1.0, 0.0), now=Purse(0.0, 60.0)) == 0.0


@given(
    spent=st.floats(-1e4, 3e5), elapsed=st.floats(0, 2 * WEEK), price=st.floats(0, 50), left=st.floats(-1e3, WHOLE),
    remaining=st.floats(0, WEEK),
)  # fmt: skip
def test_the_price_is_finite_whatever_the_purse_says(
    spent: float, elapsed: float, price: float, left: float, remaining: float
) -> None:
    after = pace(PROGRAM, spent=spent, elapsed=elapsed, price=price, left=left, remaining=remaining)
    assert 0 <= after <= price + gain(0.0) * (1 + price) * abs(spent) / (0.02 * WHOLE)


def test_a_new_period_counts_only_its_own_spending() -> None:
    before, now = Purse(100.0, START - MINUTE), Purse(WHOLE - 500, START + MINUTE)
    expected = pace(PROGRAM, spent=500, elapsed=MINUTE, price=2.0)
    assert repriced(PROGRAM, 2.0, before=before, now=now) == pytest.approx(expected)


def test_a_purse_seen_twice_at_once_changes_nothing() -> None:
    assert repriced(PROGRAM, 2.0, before=Purse(5e4, START + DAY), now=Purse(4e4, START + DAY)) == 2.0


def spend_a_week(program: Program, *, seed: int, demand: float, price: float = 0.0, later: float = 1.0) -> list[Purse]:
    """Return the purse minute by minute, where customers take a nudge of 4 EUR if it brings more than its price.

    What it brings is exponential with a mean of 6 EUR; by day (7 to 22) more of them come than by night (none).
    `demand` is how many budgets would be spent at price 0; it changes to `later` times that at half-time.
    """
    chance = np.random.Generator(np.random.Philox(key=seed))
    minutes = int(WEEK / MINUTE)
    hour = np.arange(minutes) / 60.0 % 24
    rates = np.where((hour >= 7) & (hour < 22), 24 / 15 * (1 + 0.6 * np.sin((hour - 7) / 15 * 2 * np.pi)), 0.0)
    rates *= demand * WHOLE / 400 / minutes * np.where(np.arange(minutes) < minutes / 2, 1.0, later)
    purses = [Purse(WHOLE, START)]
    for minute, visitors in enumerate(chance.poisson(rates).tolist()):
        takers = int((chance.exponential(6.0, visitors) > price * 4.0).sum())
        left = purses[-1].left - 400.0 * min(takers, purses[-1].left // 400)
        purses.append(Purse(left, START + (minute + 1) * MINUTE))
        price = repriced(program, price, before=purses[-2], now=purses[-1])
    return purses


@pytest.mark.parametrize(
    ("demand", "price"), [(3.0, 0.0), (3.0, 1.6), (3.0, 6.0), (20.0, 4.5), (20.0, 0.0), (1.5, 0.0)]
)
def test_a_budget_that_would_not_last_is_spent_to_two_per_cent_and_lasts(demand: float, price: float) -> None:
    for seed in range(2):
        purses = spend_a_week(PROGRAM, seed=seed, demand=demand, price=price)
        assert purses[-1].left <= 0.02 * WHOLE
        empty = next((p.at for p in purses if p.left < 400), START + WEEK)
        assert empty >= START + 0.97 * WEEK


def test_a_price_that_has_been_learned_spends_evenly() -> None:
    purses = spend_a_week(PROGRAM, seed=0, demand=3.0, price=1.6)
    left = np.array([p.left for p in purses[:: len(purses) // 7]]) / WHOLE
    assert np.abs(left - np.linspace(1.0, 0.0, len(left))).max() <= 0.08


def ahead(purses: list[Purse]) -> float:
    """Return how far the spending is from even at the most, as a share of the budget."""
    spent = 1.0 - np.array([p.left for p in purses]) / WHOLE
    return float(np.abs(spent - np.linspace(0.0, 1.0, len(spent))).max())


@pytest.mark.parametrize("demand", [1.5, 3.0, 20.0, 100.0])
def test_from_no_price_at_all_a_budget_is_spent_within_a_tenth_of_even(demand: float) -> None:
    # With a constant gain of 3 these are 0.11, 0.21, 0.39 and 0.47.
    assert max(ahead(spend_a_week(PROGRAM, seed=seed, demand=demand)) for seed in range(2)) <= 0.1


def test_a_change_of_demand_is_followed() -> None:
    more = spend_a_week(PROGRAM, seed=0, demand=2.0, later=3.0)
    assert more[-1].left <= 0.02 * WHOLE
    assert next((p.at for p in more if p.left < 400), START + WEEK) >= START + 0.95 * WEEK
    less = spend_a_week(PROGRAM, seed=0, demand=4.0, later=0.4)
    assert less[-1].left <= 0.05 * WHOLE


def test_a_budget_that_lasts_anyway_has_no_price() -> None:
    # Nearly all demand is met: the price stays near 0, so what is left is what nobody asked for.
    purses = spend_a_week(PROGRAM, seed=0, demand=0.5)
    assert purses[-1].left == pytest.approx(0.5 * WHOLE, rel=0.1)
