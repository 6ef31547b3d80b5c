"""A larger reward only where a smaller one has not sufficed; comebacks for who was away; a rhythm that is kept."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from optimizer.customer import Customer, Decayed, Sent, cohort, local_day, utc_offset
from optimizer.engine import Ask
from optimizer.guardrails import RULES, Shared, allowed, is_off_beat, next_eligible
from optimizer.journey import follow, receive, release, settle
from optimizer.program import DAY, Program
from tests.small_program import NOON, TOML, customer, optimizer

HOUR = 3600.0
WAITS, MEMORY = 1.0 * DAY, 20.0 * DAY
AWAY = 3.0 * DAY
EVERY, WITHIN = 2.0 * DAY, 6.0 * HOUR

RULES_OF_REWARDS = """
[guardrails]
consent = "opt-out"
cap_per_day = 3
cap_per_week = 20
scarce_per_week = 20
cooldown = "1h"
ladder = { waits = "1d", memory = "20d" }
"""

RHYTHM = """
[guardrails]
consent = "opt-out"
cap_per_day = 1
cap_per_week = 7
cooldown = "1h"
cadence = { every = "2d", within = "6h" }
"""


def climbing_text() -> str:
    """The small program with a ladder of three: badge, coupon, gift; and nothing else in the way."""
    text = TOML.replace('kind = "recognition"', 'kind = "recognition"\nladder = "reward"')
    text = text.replace("cost = 3.0", 'cost = 3.0\nladder = "reward"\ntier = 1')
    text = text.replace("cost = 5.0\nstock = 2\nmin_momentum = 0.5", 'cost = 5.0\nladder = "reward"\ntier = 2')
    return text + RULES_OF_REWARDS


CLIMBING = Program.parse(climbing_text(), source="climbing.toml")
COMING_BACK = Program.parse(
    TOML.replace("cost = 3.0", 'cost = 3.0\ncomeback_after = "3d"') + RHYTHM, source="back.toml"
)
TIERS = {"badge": 0, "coupon": 1, "gift": 2}


def sent(incentive: str, deliver_at: float, *, name: str = "") -> Sent:
    return Sent(
        decision_id=name or f"d{deliver_at}",
        incentive=incentive,
        deliver_at=deliver_at,
        day=local_day(deliver_at, utc_offset("UTC", deliver_at)),
        cost=0,
        period=0,
        expires_at=deliver_at,
    )


def blocked(program: Program, person: Customer, *, at: float) -> dict[str, str]:
    person = settle(program, person, at=at)
    guarded = allowed(program, cohort(program, [person], at=[at]), shared=Shared.unlimited(program))
    return guarded.blocks(program.space)[0]


def active(program: Program, *nudges: Sent) -> Customer:
    return customer(program, stage="active", steps=Decayed(3.0, NOON), last_step_at=NOON, sent=nudges)


def test_a_ladder_is_climbed_one_rung_at_a_time() -> None:
    nobody = active(CLIMBING)
    assert blocked(CLIMBING, nobody, at=NOON) == {"incentive=coupon": "ladder", "incentive=gift": "ladder"}
    badge = active(CLIMBING, sent("badge", NOON - 2 * DAY))
    assert blocked(CLIMBING, badge, at=NOON) == {"incentive=gift": "ladder"}
    both = active(CLIMBING, sent("badge", NOON - 4 * DAY), sent("coupon", NOON - 2 * DAY))
    assert blocked(CLIMBING, both, at=NOON) == {}


def test_a_gift_alone_does_not_open_the_rung_above_a_coupon() -> None:
    assert blocked(CLIMBING, active(CLIMBING, sent("gift", NOON - 2 * DAY)), at=NOON) == {
        "incentive=coupon": "ladder",
        "incentive=gift": "ladder",
    }


@pytest.mark.parametrize(
    ("days", "open_"), [(0.99, False), (1.0, True), (20.0, True), (20.01, False)]
)  # waits = "1d", memory = "20d"
def test_a_smaller_reward_gets_its_time_and_is_forgotten_in_time(days: float, open_: bool) -> None:  # noqa: FBT001
    found = blocked(CLIMBING, active(CLIMBING, sent("badge", NOON - days * DAY)), at=NOON)
    assert ("incentive=coupon" not in found) is open_


def test_a_macro_action_sends_a_customer_back_to_the_first_rung() -> None:
    climbed = active(CLIMBING, sent("badge", NOON - 2 * DAY))
    bought = follow(CLIMBING, climbed, "upgraded", at=NOON - DAY)
    assert bought.last_macro_at == NOON - DAY
    assert blocked(CLIMBING, bought, at=NOON)["incentive=coupon"] == "ladder"
    before = follow(CLIMBING, climbed, "upgraded", at=NOON - 3 * DAY)  # reported late: it came before the badge
    assert "incentive=coupon" not in blocked(CLIMBING, before, at=NOON)
    step = follow(CLIMBING, climbed, "step", at=NOON - DAY)
    assert "incentive=coupon" not in blocked(CLIMBING, step, at=NOON)


def test_a_reward_that_was_not_shown_has_not_been_tried() -> None:
    person = receive(CLIMBING, active(CLIMBING), sent("badge", NOON, name="d"))
    assert "incentive=coupon" not in blocked(CLIMBING, person, at=NOON + 2 * DAY)
    assert blocked(CLIMBING, release(CLIMBING, person, "d"), at=NOON + 2 * DAY)["incentive=coupon"] == "ladder"


def test_what_is_on_a_ladder_is_remembered_for_as_long_as_the_ladder_says() -> None:
    person = active(CLIMBING, sent("badge", NOON))
    assert settle(CLIMBING, person, at=NOON + 20 * DAY).sent == person.sent
    assert settle(CLIMBING, person, at=NOON + 20.1 * DAY).sent == ()


def test_a_short_memory_is_kept_though_caps_remember_longer() -> None:
    text = climbing_text().replace('memory = "20d"', 'memory = "5d"')
    program = Program.parse(text, source="short.toml")
    assert "incentive=coupon" not in blocked(program, active(program, sent("badge", NOON - 4.9 * DAY)), at=NOON)
    assert blocked(program, active(program, sent("badge", NOON - 5.1 * DAY)), at=NOON)["incentive=coupon"] == "ladder"


def test_a_goal_reported_late_does_not_hide_a_later_one() -> None:
    person = follow(CLIMBING, active(CLIMBING, sent("badge", NOON - 3 * DAY)), "upgraded", at=NOON - DAY)
    assert follow(CLIMBING, person, "upgraded", at=NOON - 9 * DAY).last_macro_at == NOON - DAY


def test_a_retired_rung_is_stepped_over() -> None:
    rows = [replace(i, retired=i.name == "coupon") for i in CLIMBING.incentives]
    program = replace(CLIMBING, incentives=tuple(rows))
    found = blocked(program, active(program, sent("badge", NOON - 2 * DAY)), at=NOON)
    assert found == {"incentive=coupon": "retired"}


def test_the_ladder_has_its_place_among_the_rules() -> None:
    assert RULES.index("momentum") < RULES.index("ladder") < RULES.index("comeback") < RULES.index("segment")
    assert RULES.index("cooldown") < RULES.index("cadence") < RULES.index("request")


class Happening(NamedTuple):
    """What comes next in a history: after so many hours."""

    hours: float
    what: str


HISTORIES = st.lists(
    st.builds(
        Happening, st.floats(0.5, 60.0), st.sampled_from(["ask"] * 4 + ["upgraded", "step", "late", "not_shown"])
    ),
    min_size=4,
    max_size=40,
)


@given(history=HISTORIES, salt=st.integers(0, 1000))
def test_no_history_ever_skips_a_rung(history: list[Happening], salt: int) -> None:
    chooser, ada, at = optimizer(CLIMBING), active(CLIMBING), NOON
    delivered: dict[str, tuple[float, int]] = {}
    goals: list[float] = []
    for number, (hours, what) in enumerate(history):
        at += hours * HOUR
        ada = settle(CLIMBING, ada, at=at)
        if what == "ask":
            decision = chooser.decide([Ask(ada, f"{salt}-{number}", at)], Shared.unlimited(CLIMBING))[0]
            if decision.deliver_at is not None:
                incentive = decision.action_name.partition("/")[0]
                _assert_climbed(TIERS[incentive], at=at, delivered=delivered, goals=goals)
                delivered[decision.decision_id] = (decision.deliver_at, TIERS[incentive])
                ada = receive(CLIMBING, ada, sent(incentive, decision.deliver_at, name=decision.decision_id))
        elif what == "not_shown" and delivered:
            decision_id = list(delivered)[-1]
            delivered.pop(decision_id)
            ada = release(CLIMBING, ada, decision_id)
        elif what != "not_shown":
            when = at - 30 * HOUR if what == "late" else at
            goals += [when] if what != "step" else []
            ada = follow(CLIMBING, ada, "step" if what == "step" else "upgraded", at=when)


def _assert_climbed(tier: int, *, at: float, delivered: dict[str, tuple[float, int]], goals: list[float]) -> None:
    """Without a word of the code under test: the rung below was there in time, and nothing good came of it."""
    if tier:
        below = [when for when, rung in delivered.values() if rung == tier - 1]
        assert any(WAITS <= at - when <= MEMORY and not any(goal >= when for goal in goals) for when in below)


@pytest.mark.parametrize(
    ("idle", "open_"), [(None, False), (0.0, False), (AWAY - 1, False), (AWAY, True), (6 * DAY, True)]
)
def test_a_comeback_is_for_who_was_here_and_has_been_away(idle: float | None, open_: bool) -> None:  # noqa: FBT001
    at = NOON
    person = replace(active(COMING_BACK), last_step_at=None if idle is None else at - idle)
    assert (blocked(COMING_BACK, person, at=at).get("incentive=coupon") != "comeback") is open_


@given(history=HISTORIES, salt=st.integers(0, 1000))
def test_no_history_breaks_the_rhythm_or_welcomes_back_who_was_not_away(history: list[Happening], salt: int) -> None:
    chooser, ada, at = optimizer(COMING_BACK), active(COMING_BACK), NOON
    asked: list[float] = []
    delivered: list[float] = []
    step = NOON
    for number, (hours, what) in enumerate(history):
        at += hours * HOUR
        ada = settle(COMING_BACK, ada, at=at)
        if what in ("step", "upgraded"):
            ada, step = follow(COMING_BACK, ada, what, at=at), at
        if what == "ask":
            decision = chooser.decide([Ask(ada, f"{salt}-{number}", at)], Shared.unlimited(COMING_BACK))[0]
            if decision.deliver_at is not None:
                assert not decision.action_name.startswith("coupon/") or at - step >= AWAY
                asked.append(at)
                delivered.append(decision.deliver_at)
                ada = receive(COMING_BACK, ada, sent("badge", decision.deliver_at))
    for (before, after), ask in zip(pairwise(delivered), asked[1:], strict=True):
        beats = max(round((after - before) / EVERY), 1)
        assert ask - before > 8 * DAY or abs(after - before - beats * EVERY) <= WITHIN + 0.01


@given(hours=st.floats(-250, 0), at=st.floats(0, 48), zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]))
def test_the_next_eligible_moment_keeps_the_rhythm(hours: float, at: float, zone: str) -> None:
    now = NOON + 80 * DAY + at * HOUR
    before = now + hours * HOUR
    nudge = replace(sent("badge", before), day=local_day(before, utc_offset(zone, before)))
    ada = replace(active(COMING_BACK, nudge), time_zone=zone)
    when = next_eligible(COMING_BACK, ada, at=now)

    def free(moment: float) -> bool:
        return "timing=now" not in blocked(COMING_BACK, ada, at=moment)

    if when is None:
        assert free(now)
    else:
        assert free(when)
        assert not any(free(t) for t in np.linspace(now, when - 1, 20))


# A quick win off the beat, and the customer's own hour.

WINNING = Program.parse(
    TOML.replace('name = "step"\nkind = "micro"', 'name = "step"\nkind = "micro"\nrequests_decision = true').replace(
        'kind = "recognition"', 'kind = "recognition"\noff_beat = true'
    )
    + RHYTHM.replace("cap_per_day = 1", "cap_per_day = 2"),
    source="winning.toml",
)


def stepped(program: Program, *nudges: Sent, at: float) -> Customer:
    return follow(program, active(program, *nudges), "step", at=at)


def test_a_quick_win_may_come_off_the_beat_and_nothing_else_may() -> None:
    beat = sent("badge", NOON - DAY)
    assert blocked(WINNING, active(WINNING, beat), at=NOON)["timing=now"] == "cadence"
    ada = stepped(WINNING, beat, at=NOON)
    assert blocked(WINNING, ada, at=NOON + 60) == {
        "incentive=coupon": "cadence",
        "incentive=gift": "cadence",
        "timing=evening": "cadence",
    }
    assert blocked(WINNING, ada, at=NOON + 3601)["timing=now"] == "cadence", "it is not fresh any more"
    answered = receive(WINNING, ada, replace(sent("badge", NOON + 60), off_beat=True))
    assert blocked(WINNING, answered, at=NOON + 120)["timing=now"] == "cooldown"


def test_caps_and_cooldown_hold_for_quick_wins() -> None:
    lately = stepped(WINNING, sent("badge", NOON - 1800), at=NOON)
    assert blocked(WINNING, lately, at=NOON + 1)["timing=now"] == "cooldown"


def test_the_rhythm_goes_on_without_what_came_off_the_beat() -> None:
    beat, win = sent("badge", NOON - DAY), replace(sent("badge", NOON), off_beat=True)
    assert is_off_beat(WINNING, active(WINNING, beat), at=NOON, deliver_at=NOON)
    assert not is_off_beat(WINNING, active(WINNING, beat, win), at=NOON + DAY, deliver_at=NOON + DAY)
    assert "timing=now" not in blocked(WINNING, active(WINNING, beat, win), at=NOON + DAY)
    assert blocked(WINNING, active(WINNING, beat, sent("badge", NOON)), at=NOON + DAY)["timing=now"] == "cadence"


HOURLY = Program.parse(
    TOML + RHYTHM.replace('within = "6h"', 'within = "6h", hour_within = "2h"'), source="hourly.toml"
)


def usually_at(hour: float) -> Customer:
    ada = active(HOURLY)
    for day in range(4):
        ada = follow(HOURLY, ada, "step", at=NOON + (hour - 12) * HOUR + day * DAY)
    return ada


@pytest.mark.parametrize(
    ("usual", "now", "free"),
    [(12, 12, True), (12, 14, True), (12, 14.1, False), (12, 9.9, False), (23, 20, True), (23, 18, False), (4, 9, True),
     (4, 11, False)],
)  # fmt: skip
def test_nudges_keep_near_the_customers_own_hour(usual: float, now: float, free: bool) -> None:  # noqa: FBT001
    at = NOON + 4 * DAY + (now - 12) * HOUR
    found = blocked(HOURLY, usually_at(usual), at=at)
    assert found.get("timing=now", "allowed") == ("allowed" if free else "hour")
    when = next_eligible(HOURLY, usually_at(usual), at=at)
    assert (when is None) is free
    if when is not None:
        assert "timing=now" not in blocked(HOURLY, usually_at(usual), at=when)
        assert not any(
            "timing=now" not in blocked(HOURLY, usually_at(usual), at=t) for t in np.linspace(at, when - 1, 9)
        )


def test_an_hour_that_is_not_known_yet_binds_nobody() -> None:
    assert "timing=now" not in blocked(HOURLY, active(HOURLY), at=NOON)
