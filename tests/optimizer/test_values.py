"""Stages are valued back from the goal: by hand, by simulation, and with intervals that cover what is true."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.actions import Floats
from optimizer.journey import stage_values
from optimizer.program import DAY, Program
from optimizer.values import Happened, Statistics, collect, journey_values
from tests.small_program import NOON, TOML, small

PROGRAM = small()
NEW, ACTIVE, QUIET = range(3)
STEP, UPGRADED = 0, 1
HOUR = 3600.0


def expecting() -> Program:
    """The small program with expectations: a step on 20 % of the days in new, on half of those in active."""
    text = TOML.replace('title = "New"', 'title = "New"\nexpects = { step = 0.2 }')
    text = text.replace('title = "Active"', 'title = "Active"\nexpects = { step = 0.5, upgraded = 0.1, lapse = 0.02 }')
    return Program.parse(text, source="expecting.toml")


def did(customer: str, day: float, event: str | None = None, value: float | None = None) -> Happened:
    return Happened(customer, NOON + day * DAY + HOUR, event, value)


def counts(days: list[list[list[float]]], goals: dict[tuple[int, int, int], float] | None = None) -> Statistics:
    """Statistics of groups with these days (g, s, s), and goals at some of them."""
    table = np.array(days)
    reached = np.zeros_like(table)
    for at, number in (goals or {}).items():
        reached[at] = number
    g, s, _ = table.shape
    return Statistics(
        days=table,
        goals=reached,
        lapses=np.zeros((g, s)),
        events=np.zeros((g, s, len(PROGRAM.events))),
        rewards=10.0 * reached.sum(axis=2),
        customers=np.ones(g),
    )


def test_the_log_is_lived_again_day_by_day() -> None:
    happened = [
        did("ada", 0),  # seen: day 0 is a day in new
        did("ada", 1, "step"),  # day 1: new to active
        did("ada", 2, "step"),
        did("ada", 2.1, "step"),
        did("ada", 3, "upgraded"),
        did("ada", 3.2, "spent", 5.0),
        did("bob", 0, "step"),
        did("bob", 0.1, "survey", 1.0),
        did("ada", 3.5, "no such event"),
    ]
    found = collect(PROGRAM, happened, until=NOON + 13 * DAY)
    assert found.customers.sum() == 2
    days = found.days.sum(axis=0)
    # ada: new-new, new-active, then active until seven days after day 3.2, when she lapses, then quiet.
    # bob: new-active on day 0, active until seven days later, then quiet.
    assert days[NEW].tolist() == [1, 2, 0]
    assert found.lapses.sum(axis=0).tolist() == [0, 2, 0]
    assert days[ACTIVE, QUIET] == 2
    assert days.sum() == 2 * 12  # days that began by NOON + 12 days
    assert found.events.sum(axis=0)[:, STEP].tolist() == [2, 1, 0]  # twice on a day is one day
    assert found.goals.sum() == found.goals.sum(axis=0)[ACTIVE, ACTIVE] == 1
    # Three steps of ada's and one of bob's at 0.5, the upgrade at 10, and 5 spent at 0.1 each.
    assert found.rewards.sum() == pytest.approx(4 * 0.5 + 10 + 0.5)


def test_a_day_that_is_not_over_does_not_count() -> None:
    happened = [did("ada", 0, "step")]
    assert collect(PROGRAM, happened, until=NOON + DAY).days.sum() == 0
    assert collect(PROGRAM, happened, until=NOON + DAY + HOUR).days.sum() == 1


@given(st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(chance: object) -> None:
    happened = [did(c, d, e) for c in "abc" for d, e in ((0, "step"), (1, None), (2, "upgraded"), (9, "step"))]
    shuffled = list(happened)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (collect(PROGRAM, h, until=NOON + 20 * DAY) for h in (happened, shuffled))
    assert all(np.array_equal(getattr(first, n), getattr(second, n)) for n in ("days", "goals", "events", "rewards"))


def test_statistics_of_different_customers_add_up() -> None:
    ada, bob = [did("ada", 0, "step")], [did("bob", 0, "upgraded")]
    both = collect(PROGRAM, ada + bob, until=NOON + 9 * DAY)
    parts = [collect(PROGRAM, part, until=NOON + 9 * DAY) for part in (ada, bob)]
    added = parts[0].plus(parts[1])
    assert np.array_equal(added.days.sum(axis=0), both.days.sum(axis=0))
    assert added.customers.tolist() == [1, 1]


def test_values_chances_and_stays_are_those_worked_out_by_hand() -> None:
    # From new half of the days lead to active, where the goal (10) is reached on a quarter of the days, which stay.
    found = journey_values(PROGRAM, counts([[[2, 2, 0], [0, 4, 0], [0, 0, 4]]], {(0, 1, 1): 1}), horizon=2, prior=0.0)
    gamma = 0.98
    active = 2.5 / (1 - gamma)
    assert found.values.value.tolist() == pytest.approx([gamma * 0.5 * active / (1 - gamma * 0.5), active, 0.0])
    # Within two days: in active 1 - (3/4)^2; in new only by moving first: 1/2 x 1/4.
    assert found.chances.value.tolist() == pytest.approx([1 / 8, 7 / 16, 0])
    assert found.stays.value[NEW] == pytest.approx(2.0)
    assert np.isnan(found.stays.value[ACTIVE])
    # A step in new leads to active: it adds 7/16 - 1/8.
    assert found.adds[NEW, STEP] == pytest.approx(7 / 16 - 1 / 8)
    assert found.worths.value[STEP] == pytest.approx(((7 / 16 - 1 / 8) + 7 / 16) / 2)  # seen in neither stage: evenly
    assert np.isnan(found.worths.value[UPGRADED])
    assert (found.source, found.customers, found.days.tolist()) == ("log", 1, [4, 4, 4])


def test_a_step_is_worth_what_it_adds_where_it_is_taken() -> None:
    seen = counts([[[2, 2, 0], [0, 4, 0], [0, 2, 2]]], {(0, 1, 1): 1})
    seen.events[0, NEW, STEP], seen.events[0, QUIET, STEP] = 1.0, 3.0
    found = journey_values(PROGRAM, seen, prior=0.0)
    by_hand = (found.adds[NEW, STEP] + 3 * found.adds[QUIET, STEP]) / 4
    assert found.worths.value[STEP] == pytest.approx(by_hand)


def test_the_values_are_those_of_the_journey_module() -> None:
    days = np.array([[[7.0, 2, 1], [0, 5, 4], [3, 1, 9]]])
    found = journey_values(PROGRAM, counts(days.tolist(), {(0, 1, 1): 2, (0, 0, 1): 1}), prior=1.0)
    expected = stage_values(PROGRAM, transitions=days[0], rewards=np.array([10.0, 20.0, 0.0]), prior=1.0)
    assert found.values.value.tolist() == pytest.approx(expected.tolist())


def test_what_lapses_is_told_from_what_moves_on() -> None:
    seen = counts([[[2, 2, 0], [0, 6, 4], [0, 0, 4]]])
    seen.lapses[0, ACTIVE] = 4.0
    found = journey_values(PROGRAM, seen, prior=0.0)
    assert found.drop_offs.value[NEW] == 0.0
    assert found.drop_offs.value[ACTIVE] == 1.0


def test_without_log_or_expectation_nothing_is_known() -> None:
    found = journey_values(PROGRAM)
    assert found.source == "unknown"
    assert np.isnan(found.values.value).all()
    assert np.isnan(found.chances.low).all()


def test_without_a_log_a_program_is_valued_by_what_it_expects() -> None:
    found = journey_values(expecting(), horizon=1)
    assert found.source == "declared"
    assert found.chances.value.tolist() == pytest.approx([0, 0.1, 0])
    assert found.flows[NEW].tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert found.flows[ACTIVE].tolist() == pytest.approx([0, 0.98, 0.02])
    assert found.drop_offs.value[ACTIVE] == pytest.approx(1.0)
    assert np.isnan(found.values.low).all()
    assert found.values.value[ACTIVE] > found.values.value[NEW] > 0


def test_a_log_replaces_what_was_expected() -> None:
    seen = counts([[[9, 0, 0], [0, 9, 0], [0, 0, 9]]])
    assert journey_values(expecting(), seen).chances.value.tolist() == [0, 0, 0]


def test_the_same_log_gives_the_same_interval_and_more_customers_a_narrower_one() -> None:
    chance = np.random.Generator(np.random.Philox(key=7))
    few, many = (walks(chance, customers=n) for n in (40, 640))
    first, again, narrow = (journey_values(PROGRAM, s) for s in (few, few, many))
    assert np.array_equal(first.values.low, again.values.low)
    wide, tight = (found.values.high - found.values.low for found in (first, narrow))
    assert (tight < 0.5 * wide)[:2].all()
    assert (first.values.low <= first.values.value).all()
    assert (first.values.value <= first.values.high).all()


# The truth that customers walk by: P with a goal on a tenth of the days in active.
TRUE = np.array([[0.85, 0.15, 0.0], [0.0, 0.9, 0.1], [0.0, 0.05, 0.95]])
GOAL = np.array([0.0, 0.1, 0.0])


def walks(chance: np.random.Generator, *, customers: int, days: int = 20) -> Statistics:
    """Customers who start in new and walk for so many days; each its own group, and its own inclination to the goal."""
    stage = np.zeros(customers, dtype=np.intp)
    keen = chance.choice([0.5, 1.5], customers)  # so that days of a customer are alike
    found = np.zeros((2, customers, 3, 3))
    for _ in range(days):
        onwards = (chance.random(customers)[:, None] > np.cumsum(TRUE, axis=1)[stage]).sum(axis=1)
        reached = chance.random(customers) < keen * GOAL[stage]
        np.add.at(found[0], (np.arange(customers), stage, onwards), 1.0)
        np.add.at(found[1], (np.arange(customers), stage, onwards), reached)
        stage = onwards
    empty = np.zeros((customers, 3))
    events = np.zeros((customers, 3, len(PROGRAM.events)))
    return Statistics(found[0], found[1], empty, events, 10.0 * found[1].sum(axis=2), np.ones(customers))


def truth() -> tuple[Floats, Floats]:
    values = np.linalg.solve(np.eye(3) - 0.98 * TRUE, 10.0 * GOAL).astype(np.float64)
    chances = np.zeros(3)
    for _ in range(30):
        chances = GOAL + (TRUE * (1 - GOAL)[:, None]) @ chances
    return values, chances


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # 200 logs: at a true coverage of 0.95 (here 0.92 is allowed for, the goal being a mixture over customers), fewer
    # than 170 hits of 200 have a chance below 1e-5.
    values, chances = truth()
    hits = np.zeros((2, 3))
    for seed in range(200):
        seen = walks(np.random.Generator(np.random.Philox(key=seed)), customers=150)
        found = journey_values(PROGRAM, seen, prior=0.0)
        hits[0] += (found.values.low <= values) & (values <= found.values.high)
        hits[1] += (found.chances.low <= chances) & (chances <= found.chances.high)
    assert hits.min() >= 170, hits


def test_an_expectation_that_names_nothing_is_refused() -> None:
    text = TOML.replace('title = "New"', 'title = "New"\nexpects = { stepp = 0.2 }')
    with pytest.raises(ValueError, match=r"stages\[new\].expects: 'stepp' is not declared"):
        journey_values(Program.parse(text, source="small.toml"))
