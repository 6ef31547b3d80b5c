"""Each rule blocks what it should and says so; and no history, in any interleaving, breaks a cap."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.customer import Customer, Decayed, Sent, cohort, deliveries, local_day, utc_offset
from optimizer.engine import Ask
from optimizer.guardrails import Request, Shared, allowed, next_eligible
from optimizer.journey import receive, settle
from optimizer.program import Program
from tests.small_program import DAY, GUARDRAILS, NOON, TOML, customer, optimizer, small

PROGRAM = small()
ACTIVE = customer(PROGRAM, stage="active", steps=Decayed(3.0, NOON))


def blocked(
    person: Customer, *, at: float = NOON, shared: Shared | None = None, request: Request | None = None
) -> dict[str, str]:
    guarded = allowed(
        PROGRAM,
        cohort(PROGRAM, [person], at=[at]),
        shared=shared or Shared.unlimited(PROGRAM),
        requests=[request or Request()],
    )
    assert guarded.mask[0, 0], "hold is always allowed"
    return guarded.blocks(PROGRAM.space)[0]


def sent(*, deliver_at: float, incentive: str = "badge", zone: str = "UTC") -> Sent:
    day = local_day(deliver_at, utc_offset(zone, deliver_at))
    return Sent(
        decision_id=f"d{deliver_at}",
        incentive=incentive,
        deliver_at=deliver_at,
        day=day,
        cost=0,
        period=0,
        expires_at=deliver_at,
    )


def with_(**fields: object) -> Customer:
    from msgspec.structs import replace

    return replace(ACTIVE, **fields)


def test_an_active_customer_may_get_anything_at_noon() -> None:
    assert blocked(ACTIVE) == {}


@pytest.mark.parametrize(
    ("person", "expected"),
    [
        (with_(consent=False), {"nudge": "consent"}),
        (with_(sent=(sent(deliver_at=NOON + 3600),)), {"nudge": "pending"}),
        (with_(stage="new"), {"incentive=coupon": "stage"}),
        (with_(stage="quiet"), {"tone=playful": "stage"}),
        (with_(steps=Decayed()), {"incentive=gift": "momentum"}),
        (with_(attributes={"plan": "gold"}), {"incentive=gift": "segment"}),
        (with_(promotion_paused_until=NOON + 1), {"incentive=coupon": "complaint"}),
        (with_(time_zone="Asia/Tokyo"), {"timing=now": "quiet_hours"}),  # 21:00 there
        (with_(sent=(sent(deliver_at=NOON - DAY, incentive="coupon"),)), {"incentive=coupon": "scarcity"}),
    ],
)
def test_each_rule_names_what_it_blocks(person: Customer, expected: dict[str, str]) -> None:
    found = blocked(person)
    if "nudge" in expected:  # timings may be blocked as well
        found = {"nudge": found["nudge"]}
    assert found == expected


def test_caps_and_cooldown_count_on_the_day_of_delivery() -> None:
    today = with_(sent=(sent(deliver_at=NOON - 3600),))
    assert blocked(today)["timing=now"] == "cap_per_day"
    late = with_(sent=(sent(deliver_at=NOON - 14 * 3600),))  # 22:00 the evening before
    assert blocked(late) == {}
    soon = with_(sent=(sent(deliver_at=NOON - 14 * 3600),))
    assert blocked(soon, at=NOON - 3 * 3600)["timing=now"] == "cooldown"
    three = with_(sent=tuple(sent(deliver_at=NOON - d * DAY) for d in (1, 3, 6)))
    assert blocked(three)["timing=evening"] == "cap_per_week"
    assert blocked(three, at=NOON + DAY) == {}


def test_quiet_hours_cross_midnight_in_the_customers_zone() -> None:
    for hour, quiet in ((20.9, False), (21.0, True), (23.9, True), (3.0, True), (7.9, True), (8.0, False)):
        at = NOON + (hour - 12) * 3600
        assert ("timing=now" in blocked(ACTIVE, at=at)) is quiet, hour


def test_a_budget_or_stock_that_is_used_up_blocks_what_it_cannot_pay() -> None:
    poor = Shared(budget=400.0, stock=np.array([np.inf, np.inf, 1.0]))
    assert blocked(ACTIVE, shared=poor) == {"incentive=gift": "budget"}
    sold_out = Shared(budget=np.inf, stock=np.array([np.inf, np.inf, 0.0]))
    assert blocked(ACTIVE, shared=sold_out) == {"incentive=gift": "stock"}


def test_pausing_stops_a_program_or_a_level() -> None:
    stock = Shared.unlimited(PROGRAM).stock
    assert blocked(ACTIVE, shared=Shared(np.inf, stock, frozenset({"program"}))) == {"nudge": "paused"}
    level = Shared(np.inf, stock, frozenset({"tone=playful"}))
    assert blocked(ACTIVE, shared=level) == {"tone=playful": "paused"}


def test_a_request_may_limit_itself() -> None:
    only = Request(only={"incentive": ["badge"]}, without={"timing": ["now"]})
    assert blocked(ACTIVE, request=only) == {
        "incentive=coupon": "request",
        "incentive=gift": "request",
        "timing=now": "request",
    }


@given(
    gaps=st.lists(st.floats(0.0, 40.0), min_size=5, max_size=40),
    zone=st.sampled_from(["UTC", "Asia/Tokyo", "America/New_York", "Pacific/Auckland"]),
    salt=st.integers(0, 1000),
)
@settings(deadline=None)
def test_no_history_breaks_a_cap_a_cooldown_or_the_quiet_hours(gaps: list[float], zone: str, salt: int) -> None:
    chooser = optimizer(PROGRAM)
    ada, at, delivered = with_(time_zone=zone), NOON + 80 * DAY, []  # over a change of clocks in New York
    for i, gap in enumerate(gaps):
        at += gap * 3600
        ada = settle(PROGRAM, ada, at=at)
        decision = chooser.decide([Ask(ada, f"{salt}-{i}", at)], Shared.unlimited(PROGRAM))[0]
        if decision.deliver_at is not None:
            delivered.append(decision.deliver_at)
            ada = receive(PROGRAM, ada, sent(deliver_at=decision.deliver_at, zone=zone))
    _assert_kept(PROGRAM, delivered, zone=zone)


def _assert_kept(program: Program, delivered: list[float], *, zone: str) -> None:
    rules = program.guardrails
    local = [t + utc_offset(zone, t) for t in delivered]
    days = np.array([t // DAY for t in local])
    for day in days:
        assert (days == day).sum() <= rules.cap_per_day
        assert ((days > day - 7) & (days <= day)).sum() <= rules.cap_per_week
    assert all(b - a >= rules.cooldown for a, b in pairwise(delivered))
    assert all(8 * 60 <= t % DAY / 60 < 21 * 60 for t in local)


@given(
    hours=st.lists(st.integers(-170, 0), max_size=4, unique=True),
    at=st.floats(0, 48),
    zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]),
)
@settings(deadline=None)
def test_the_next_eligible_moment_is_the_first_that_allows_a_nudge_at_once(
    hours: list[int], at: float, zone: str
) -> None:
    now = NOON + 80 * DAY + at * 3600
    ada = with_(time_zone=zone, sent=tuple(sent(deliver_at=now + h * 3600, zone=zone) for h in sorted(hours)))
    when = next_eligible(PROGRAM, ada, at=now)

    def free(moment: float) -> bool:
        return "timing=now" not in blocked(ada, at=moment)

    if when is None:
        assert free(now)
    else:
        assert free(when)
        assert not any(free(t) for t in np.linspace(now, when - 1, 25))


def test_a_customer_who_opted_out_is_eligible_at_no_time() -> None:
    assert next_eligible(PROGRAM, with_(consent=False), at=NOON) is None


@pytest.mark.parametrize(("zone", "spring"), [("Europe/Paris", 1_806_193_800.0), ("America/New_York", 1_805_005_800.0)])
def test_a_clock_time_that_is_left_out_that_night_is_judged_by_when_it_really_comes(zone: str, spring: float) -> None:
    """Clocks go from 2:00 to 3:00: what is meant for 2:30 comes at 1:30, in the quiet hours that end at 2:00."""
    quiet = 'quiet_from = "22:00"\nquiet_until = "02:00"\n'
    program = Program.parse(TOML.replace('clock = "18:00"', 'clock = "02:30"') + GUARDRAILS + quiet, source="")
    rows = cohort(program, [customer(program, time_zone=zone)], at=[spring - 4 * 3600.0])
    deliver_at, locally = deliveries(program, rows)
    assert float(locally[0, -1]) % DAY == 1.5 * 3600.0
    assert float(locally[0, -1] - deliver_at[0, -1]) == utc_offset(zone, float(deliver_at[0, -1]))
    found = allowed(program, rows, shared=Shared.unlimited(program)).blocks(program.space)
    assert found[0]["timing=evening"] == "quiet_hours"
