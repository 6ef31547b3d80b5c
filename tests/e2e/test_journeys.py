"""Rows of docs/journeys.md that are lived: what the texts ask for, on a running service and the command line.

Rows that are measured on a log are in `test_journeys_measured.py`.
"""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import click
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from optimizer.audit import check as audit
from optimizer.customer import Decayed, Sent
from optimizer.engine import Ask
from optimizer.guardrails import Shared
from optimizer.program import DAY, Program
from optimizer.programs import SHIPPED, read
from optimizer.values import journey_values
from policies.thompson import Thompson
from serving.cli import main
from tests.e2e import test_journeys_measured
from tests.e2e.house import BACK, FITNESS, LOOP, WINS, House, Row, level, moment, opened, rows, shipped
from tests.e2e.running import wait_until
from tests.small_program import NOON, TOML, customer, optimizer, small
from tests.training.worlds import made_up


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all rows."""
    with opened(tmp_path_factory.mktemp("home")) as house:
        yield house


CHECKS: dict[str, Callable[[House], None]] = {}


def check(function: Callable[[House], None]) -> Callable[[House], None]:
    """Make a function a check that rows of the table may name."""
    CHECKS[function.__name__] = function
    return function


# 1. The behavioral-momentum journey.


@check
def a_goal_is_valued_back(house: House) -> None:
    for name in SHIPPED:
        program = shipped(name)
        found = journey_values(program).values.value
        goal = program.event(program.goal)
        assert goal is not None
        assert goal.kind == "macro"
        assert goal.value > 0
        nearest = program.stage_index[next(iter(goal.moves.values()))]
        assert found[nearest] > found[0] > 0
    house.run("program", "show", FITNESS, "--map", "map.html")
    assert "Upgraded to premium" in (house.home / "map.html").read_text(encoding="utf-8")


@check
def end_goals_are_macro_actions_with_a_value(house: House) -> None:
    wanted = {FITNESS: {"premium_upgrade", "referral"}, LOOP: {"repeat_purchase"}}
    for name, goals in wanted.items():
        events = {e.name: e for e in shipped(name).events}
        assert all(events[g].kind == "macro" and events[g].value > 0 for g in goals)
        assert goals <= set(house.ask("GET", f"/v1/programs/{name}")["events"])


@check
def the_first_asks_are_small_and_say_what_to_do(house: House) -> None:
    who = house.served(FITNESS)
    answer = house.only(who, FITNESS)
    assert level(shipped(FITNESS), answer["action"]["incentive"]).cost == 0.0
    assert 0 < len(answer["message"]["call_to_action"]) <= 60
    assert house.dry(who, FITNESS, day=2.0)["blocked"]["incentive=refer-a-friend"] == "stage"


@check
def a_quick_win_asks_for_the_next_decision_at_once(house: House) -> None:
    who = house.served(FITNESS)
    asked = house.did(who, "workout_done", FITNESS)["decide_now"]
    assert [(a["customer_id"], a["event"]) for a in asked] == [(who, "workout_done")]
    assert house.did(who, "app_opened", FITNESS)["decide_now"] == []


@check
def recognition_costs_nothing(house: House) -> None:
    for name in SHIPPED:
        badges = [i for i in shipped(name).incentives if i.kind == "recognition"]
        assert badges
        assert all(i.cost == 0.0 and not i.promotional for i in badges)
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    spent = house.ask("GET", f"/v1/programs/{FITNESS}")["budget"]["spent"]
    assert house.only(who, FITNESS, day=0.1, incentive=["achievement-badge"])["message"]["subject"]
    assert house.ask("GET", f"/v1/programs/{FITNESS}")["budget"]["spent"] == spent


@check
def harder_asks_wait_for_momentum(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_converted", FITNESS, day=-9.0)
    assert house.dry(who, FITNESS, day=-2.5)["blocked"]["incentive=streak-discount"] == "momentum"
    house.did(who, "workout_done", FITNESS, day=-2.4)
    house.did(who, "workout_done", FITNESS, day=-2.3)
    assert house.dry(who, FITNESS, day=-2.2)["blocked"]["incentive=streak-discount"] == "ladder"


@check
def one_rung_at_a_time(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_converted", FITNESS, day=-1.0)
    house.did(who, "workout_done", FITNESS, day=0.0)
    house.did(who, "workout_done", FITNESS, day=0.01)
    assert house.dry(who, FITNESS, day=0.02)["blocked"]["incentive=streak-discount"] == "ladder"
    house.only(who, FITNESS, day=0.02, incentive=["achievement-badge"], timing=["now"])
    assert "incentive=streak-discount" not in house.dry(who, FITNESS, day=1.2)["blocked"]


@check
def tips_and_reports_are_offered(house: House) -> None:
    kinds = {i.kind for i in shipped(FITNESS).incentives}
    assert {"content", "convenience", "social"} <= kinds
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    answer = house.only(who, FITNESS, day=0.01, incentive=["progress-report"])
    assert answer["message"]["call_to_action"]
    assert answer["because"].startswith("Because")


@check
def a_progress_report_is_there_for_every_customer(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    seen = house.where(who, FITNESS)
    assert seen["rewards"]["earned"][0]["reward"] == "the First Step badge"
    assert next(m["title"] for m in seen["milestones"] if not m["reached"]) == "ten workouts"
    assert seen["rewards"]["to_come"][0]["milestone"] == "ten workouts"
    assert 0.4 < seen["momentum"] <= 0.5


@check
def a_complaint_stops_promotion(house: House) -> None:
    who = house.served(FITNESS)
    assert "incentive=community-story" not in house.dry(who, FITNESS)["blocked"]
    house.did(who, "complaint", FITNESS)
    blocked = house.dry(who, FITNESS, day=0.1)["blocked"]
    assert blocked["incentive=community-story"] == "complaint"
    assert "incentive=coach-tip" not in blocked


@check
def a_low_score_stops_promotion_and_a_high_one_does_not(house: House) -> None:
    who, content = house.served(FITNESS), house.served(FITNESS)
    house.did(who, "survey_csat", FITNESS, value=2)
    house.did(content, "survey_csat", FITNESS, value=5)
    assert house.dry(who, FITNESS, day=0.1)["blocked"]["incentive=community-story"] == "complaint"
    assert "incentive=community-story" not in house.dry(content, FITNESS, day=0.1)["blocked"]


@check
def milestones_and_streaks_are_in_every_decision(house: House) -> None:
    who = house.served(FITNESS)
    for day in range(5):
        house.did(who, "workout_done", FITNESS, day=-5.0 + day)
    progress = house.decide(who, FITNESS)["progress"]
    assert (progress["milestone"], progress["done"], progress["of"]) == ("ten workouts", 5, 10)  # half of it done
    assert progress["reward"]
    streak = next(m for m in house.where(who, FITNESS)["milestones"] if m["name"] == "thirty-day-streak")
    assert (streak["done"], streak["of"]) == (5, 30)


@check
def advocates_have_incentives_and_goals_of_their_own(house: House) -> None:
    who = house.served(FITNESS)
    assert house.dry(who, FITNESS)["blocked"]["incentive=refer-a-friend"] == "stage"
    house.did(who, "premium_upgrade", FITNESS, day=-1.0)
    house.did(who, "trial_converted", FITNESS, day=-1.1)
    house.did(who, "review_written", FITNESS, day=-0.5)
    house.did(who, "workout_done", FITNESS, day=-0.1)
    assert house.where(who, FITNESS)["stage"] == "advocate"
    blocked = house.dry(who, FITNESS)["blocked"]
    assert "incentive=refer-a-friend" not in blocked
    assert blocked["incentive=five-minute-workout"] == "stage"


@check
def arms_are_assigned_by_customer_and_stay(house: House) -> None:
    names = [house.welcome(f"arm{i}") for i in range(40)]
    for day in (0.0, 2.0):
        body = [{"program": LOOP, "customer_id": n, "decision_id": f"{n}-{day}", "at": moment(day)} for n in names]
        house.ask("POST", "/v1/decide/batch", {"requests": body})
    arms = {
        name: {
            house.ask("GET", f"/v1/decisions/{name}-{day}?program={LOOP}&customer_id={name}")["arm"]
            for day in (0.0, 2.0)
        }
        for name in names
    }
    assert all(len(found) == 1 for found in arms.values())
    assert {"champion", "challenger"} <= {arm for found in arms.values() for arm in found}


@check
def a_missed_step_asks_for_a_comeback_by_itself(house: House) -> None:
    """Nobody comes back first: two days after the last step the app is told, once, to ask for a decision."""
    who, other = house.welcome("away"), house.welcome("here")
    house.decide(who, "back", day=-3.0)
    house.did(who, "step", "back", day=-3.0)
    house.decide(other, "back", day=0.0)  # the clock of a simulated program is that of who asks

    def told() -> list[Any]:
        return [m["data"] for m in list(house.taken) if m["data"].get("reason") == "comeback"]

    wait_until(told, what="the comeback")
    assert {(d["program"], d["customer_id"]) for d in told()} == {("back", who)}
    assert "incentive=badge" not in house.dry(who, "back", day=0.0)["blocked"]


@check
def an_anniversary_is_a_milestone(house: House) -> None:
    who, new = house.served(LOOP), house.served(LOOP)
    house.decide(who, LOOP, day=-366.0)
    house.decide(new, LOOP)
    year, days = (
        next(m for m in house.where(name, LOOP)["milestones"] if m["name"] == "first-year") for name in (who, new)
    )
    assert (year["reached"], days["reached"]) == (True, False)
    assert (days["done"], days["of"]) == (0, 365)
    assert year["reward"] in [r["reward"] for r in house.where(who, LOOP)["rewards"]["earned"]]


@check
def the_fitness_example_ships(house: House) -> None:
    offered = set(house.ask("GET", f"/v1/programs/{FITNESS}")["incentives"])
    assert {
        "five-minute-workout", "free-trial-extension", "achievement-badge", "recommended-workout", "weekly-goal",
        "progress-report", "coach-tip", "streak-discount", "refer-a-friend",
    } <= offered  # fmt: skip
    assert msgspec.json.decode(house.run("program", "check", FITNESS, "--json"))["findings"] == []


@check
def thirty_days_in_a_row_earn_the_discount(house: House) -> None:
    streak = next(m for m in shipped(FITNESS).milestones if m.streak == 30)
    assert "premium" in streak.reward
    who = house.served(FITNESS)
    for day in range(30):
        house.did(who, "workout_done", FITNESS, day=float(day) - 30.0)
    earned = house.where(who, FITNESS)["rewards"]["earned"]
    assert streak.reward in [r["reward"] for r in earned]


# 2. Small wins.


@check
def five_stages_follow_each_other(house: House) -> None:
    assert house.ask("GET", f"/v1/programs/{WINS}")["stages"] == [
        "aware", "consider", "decide", "experience", "advocate",
    ]  # fmt: skip
    who = house.served(WINS)
    seen = []
    for i, event in enumerate(("guide_read", "basket_filled", "order_placed", "review_written")):
        seen.append(house.where(who, WINS)["stage"] if i else "aware")
        house.did(who, event, WINS, day=i * 0.1)
    assert [*seen, house.where(who, WINS)["stage"]] == ["aware", "consider", "decide", "experience", "advocate"]


TACTICS = {
    "aware": {"care-guide", "customer-photos"},
    "consider": {"home-trial", "customer-photos"},
    "decide": {"saved-basket", "thrive-guarantee", "seven-day-discount"},
    "experience": {"first-week-plan", "care-check-in"},
    "advocate": {"invite-a-friend", "two-question-survey"},
}


@check
def each_stage_has_its_tactics(house: House) -> None:
    program = shipped(WINS)
    for stage, wanted in TACTICS.items():
        allowed = program.incentive_stages[program.stage_index[stage]]
        offered = {n for n, yes in zip(program.space.incentives, allowed, strict=True) if yes}
        assert wanted <= offered, stage
    who = house.served(WINS)
    blocked = house.dry(who, WINS)["blocked"]
    assert blocked["incentive=seven-day-discount"] == "stage"
    assert "incentive=care-guide" not in blocked


@check
def the_choice_depends_on_the_customer(house: House) -> None:
    """Badges help new customers only; a policy that learned that offers them to new customers."""
    world = made_up(n=3_000, lift=1.0)
    rounds = world.dataset.rounds
    policy = Thompson(world.dataset.program.space)
    policy.learn(rounds)
    burden = np.full(13, 0.1)  # without one it is all the same whether others get what does nothing for them
    burden[0] = 0.0
    found = policy.probabilities(rounds.contexts, np.ones_like(rounds.allowed), burden)
    badge = found[:, world.dataset.program.space.levels[:, 0] == 0].sum(axis=1)
    assert badge[world.dataset.stages == 0].mean() > badge[world.dataset.stages > 0].mean() + 0.2


@check
def the_same_figures_come_from_simulation(house: House) -> None:
    house.declared()
    words = ("--program", "small", "--policy", "hold", "--customers", "40", "--days", "3", "--replications", "2")
    found = msgspec.json.decode(house.run("simulate", "demo", *words, "--json"))
    (held,) = [p["measured"] for p in found["worlds"][0]["policies"] if p["policy"] == "hold"]
    conversion = held["conversion"]
    assert conversion["low"] <= conversion["value"] <= conversion["high"]
    assert 0.0 <= conversion["value"] <= 1.0
    assert set(held["stages"]) == {"new", "active", "quiet"}


# 3. Persuasive momentum.


@check
def a_small_step_is_worth_what_it_adds_to_the_goal(house: House) -> None:
    program = shipped(FITNESS)
    worths = dict(zip((e.name for e in program.events), journey_values(program).worths.value.tolist(), strict=True))
    assert worths["trial_started"] > worths["tip_read"] > 0
    assert np.isnan(worths["app_opened"])  # it leads nowhere by itself


@check
def a_touch_point_without_relevance_is_named(house: House) -> None:
    report = audit(read(FITNESS), source="mine.toml")
    assert report.share("relevance") == 1.0
    sections = r"\[\[attributes\]\].*?(?=\[\[attributes\]\]|\[\[milestones\]\]|\[\[rules\]\]|\[guardrails)"
    bare = re.sub(sections, "", TOML, flags=re.DOTALL)
    plain = re.sub(
        r"stages = \[.*\]\n|barred_segments = .*\n|min_momentum = .*\n|\[\[rules\]\](.|\n)*?(?=\n\n)", "", bare
    )
    found = audit(plain, source="mine.toml")
    assert found.share("relevance") < 1.0


@check
def a_touch_point_without_value_is_named(house: House) -> None:
    there = 'subject = "Three euros for you"\nbody = "Three euros off your next order."'
    assert there in TOML
    found = _planted(TOML.replace(there, 'subject = "Hello"\nbody = "How are you today?"'))
    assert "messages.coupon.warm" in found


@check
def a_touch_point_without_a_call_to_action_is_named(house: House) -> None:
    found = _planted(read(FITNESS).replace('"Open the story"', '"The full story of a member"', 1))
    assert "messages.community-story.factual.call_to_action" in found


def _planted(text: str) -> dict[str, str]:
    return {f.key: f.problem for f in audit(text, source="mine.toml").findings}


@check
def a_program_is_broken_before_customers_do_it(house: House) -> None:
    house.declared()
    words = ("--premortem", "small", "--policy", "uniform", "--customers", "100", "--days", "14", "--replications", "1")
    found = msgspec.json.decode(house.run("simulate", *words, "--json"))
    hazards = {h["hazard"] for h in found["hazards"]}
    assert {"fatigue", "budget shock", "drift", "outage", "gaming", "lost events"} <= hazards
    assert all(h["says"] for h in found["hazards"])


@check
def dead_ends_leaks_and_unreachable_stages_are_named(house: House) -> None:
    island = '[[stages]]\nname = "island"\ntitle = "Island"\n\n[[stages]]\nname = "at-risk"'
    found = _planted(read(FITNESS).replace('[[stages]]\nname = "at-risk"', island, 1))
    assert "cannot be reached" in found["stages[island]"]
    leak = read(FITNESS).replace(', at-risk = "experience"', "").replace('at-risk = "experience"', "")
    leak = leak.replace(', at-risk = "advocate"', "")
    assert any(key.startswith("stages[at-risk]") for key in _planted(leak))
    file = house.home / "mine.toml"
    file.write_text(read(FITNESS).replace("cap_per_day = 1", "cap_per_dy = 1"))
    assert "cap_per_dy" in house.run("program", "check", str(file), "--json", code=2)


# 4. The loyalty loop.


@check
def customers_enter_straight_into_the_loop(house: House) -> None:
    who = house.served(LOOP)
    assert house.dry(who, LOOP)["stage"] == "consider"
    house.did(who, "joined_at_till", LOOP)
    assert house.where(who, LOOP)["stage"] == "enjoy"


@check
def one_touch_triggers_many_steps(house: House) -> None:
    """One purchase: the stage moves, the milestone counts, a decision is asked for, and the CRM is told, signed."""
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP, day=-1.0)
    answer = house.did(who, "repeat_purchase", LOOP)
    assert [a["event"] for a in answer["decide_now"]] == ["repeat_purchase"]
    seen = house.where(who, LOOP)
    assert seen["stage"] == "bond"
    assert next(m for m in seen["milestones"] if m["name"] == "three-returns")["done"] == 1

    def told() -> bool:
        mine = [m for m in list(house.taken) if who in str(m)]
        return {m["type"] for m in mine} >= {"decision.requested", "customer.progressed"}

    wait_until(told, what="the signed webhooks")


@check
def a_message_is_sent_again_until_it_is_taken(house: House) -> None:
    """The CRM refuses everything once: what it has, it was sent again, under the same id."""
    one_touch_triggers_many_steps(house)
    assert house.taken
    assert sum(tries >= 2 for tries in dict(house.tries).values()) >= 2
    assert house.ask("GET", "/readyz")["parts"]["webhooks"]["ok"]


@check
def why_this_nudge_is_said_in_plain_words(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    answer = house.only(who, FITNESS, day=0.01)
    assert answer["because"].startswith("Because you finished a workout today")


@check
def stage_and_context_are_in_every_decision(house: House) -> None:
    who = house.served(FITNESS, goal="get-fit")
    house.did(who, "trial_started", FITNESS)
    seen = house.dry(who, FITNESS, day=0.01, context={"channel": "push"})
    assert seen["stage"] == "decide"
    assert (seen["context"]["goal"], seen["context"]["channel"]) == ("get-fit", "push")
    assert seen["context"]["momentum"] > 0.4


STAMP = """[[incentives]]
name = "stamp"
title = "Stamp"
kind = "recognition"
earns = "A stamp at once."

[[tones]]"""
STAMPS = "".join(
    f'[messages.stamp.{tone}]\nsubject = "Stamp"\nbody = "A stamp at once."\ncall_to_action = "Take it"\n\n'
    for tone in ("warm", "playful")
)


def _edited(house: House, text: str, *, until: Callable[[Any], bool]) -> None:
    """Edit the program of a running service, and wait until that is what it serves."""
    (house.home / "var" / "programs" / "back.toml").write_text(text)
    wait_until(lambda: until(house.ask("GET", "/v1/programs/back")), what="the edited program")


def _stamped(*, retired: bool = False) -> str:
    """Return the program with one more incentive."""
    stamp = STAMP.replace('title = "Stamp"', 'title = "Stamp"\nretired = true') if retired else STAMP
    return BACK.replace("[[tones]]", stamp, 1).replace("[messages.badge.warm]", STAMPS + "[messages.badge.warm]", 1)


@check
def a_new_incentive_starts_from_what_is_known_and_is_explored(house: House) -> None:
    """Put into a running program it is offered at once; a policy that learned without it gives it a chance."""
    _edited(house, _stamped(), until=lambda seen: "stamp" in seen["incentives"])
    who = house.welcome("collector")
    assert house.only(who, "back", incentive=["stamp"])["message"]["subject"] == "Stamp"
    world = made_up(n=1_500)
    policy = Thompson(world.dataset.program.space)
    policy.learn(world.dataset.rounds)
    folder = house.home / "policy"
    folder.mkdir(exist_ok=True)
    policy.save(folder)
    program = Program.parse(_stamped().replace('\ncomeback_after = "2d"', ""), source="back.toml")
    engine = optimizer(program, Thompson.load(folder, program.space))
    (made,) = engine.decide([Ask(customer(program, stage="active"), "d", NOON)], Shared.unlimited(program))
    stamp = made.vector[[n.startswith("stamp/") for n in program.space.names]]
    assert (stamp > 0).all()


@check
def a_retired_incentive_is_never_chosen_again(house: House) -> None:
    """Retired in a running program it is blocked from the next decision on; what it was stays readable."""
    _edited(house, _stamped(), until=lambda seen: "stamp" in seen["incentives"])
    who = house.welcome("before")
    had = house.only(who, "back", incentive=["stamp"])
    version = house.ask("GET", "/v1/programs/back")["version"]
    _edited(house, _stamped(retired=True), until=lambda seen: seen["version"] != version)
    assert house.dry(house.welcome("after"), "back")["blocked"]["incentive=stamp"] == "retired"
    seen = house.ask("GET", f"/v1/decisions/{had['decision_id']}?program=back&customer_id={who}")
    assert seen["action"]["incentive"] == "stamp"


# 5. Micro-incentives.


@check
def every_reward_says_how_it_is_earned_and_when(house: House) -> None:
    for name in SHIPPED:
        assert all(len(i.earns) > 20 for i in shipped(name).incentives)
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP)
    answer = house.only(who, LOOP, day=0.01, incentive=["double-points"])
    assert "points" in f"{answer['message']['subject']} {answer['message']['body']}"
    assert answer["deliver_at"]
    assert answer["expires_at"]
    assert "worthless" not in str(audit(read(LOOP), source="x.toml").findings)


@check
def the_rhythm_is_steady(house: House) -> None:
    program = small('[guardrails]\nconsent = "opt-out"\ncadence = { every = "2d", within = "3h" }\ncooldown = "0m"\n')
    engine = optimizer(program)
    who = replace(customer(program, stage="active"), sent=())
    sent = Sent(decision_id="d", incentive="badge", deliver_at=NOON, day=0, cost=0, period=0, expires_at=NOON)
    who = replace(who, sent=(sent,))
    off, on = (
        engine.decide([Ask(who, "x", NOON + days * DAY)], Shared.unlimited(program))[0].blocked for days in (1.0, 2.0)
    )
    assert "cadence" in off.values()
    assert "cadence" not in {on.get("nudge"), on.get("timing=now")}


@check
def a_larger_reward_comes_after_a_smaller_one(house: House) -> None:
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP)
    assert house.dry(who, LOOP, day=0.01)["blocked"]["incentive=five-euro-voucher"] == "ladder"
    house.only(who, LOOP, day=0.01, incentive=["double-points"], timing=["now"])
    assert house.dry(who, LOOP, day=2.0)["blocked"]["incentive=five-euro-voucher"] == "ladder"
    assert "incentive=five-euro-voucher" not in house.dry(who, LOOP, day=7.0)["blocked"]


@check
def scarcity_is_sparing(house: House) -> None:
    program = small('[guardrails]\nconsent = "opt-out"\nscarce_per_week = 1\ncooldown = "0m"\ncap_per_day = 9\n')
    sent = Sent(decision_id="d", incentive="coupon", deliver_at=NOON, day=int(NOON // DAY), cost=0, period=0,
                expires_at=NOON)  # fmt: skip
    who = customer(program, stage="active", steps=Decayed(3.0, NOON), sent=(sent,))
    made = optimizer(program).decide([Ask(who, "x", NOON + DAY)], Shared.unlimited(program))[0]
    assert made.blocked["incentive=coupon"] == "scarcity"
    claimed = read(FITNESS).replace("Five minutes are enough", "Only 3 left: five minutes are enough", 1)
    assert any(key.startswith("messages.five-minute-workout") for key in _planted(claimed))


@check
def what_others_did_is_shown(house: House) -> None:
    for name in SHIPPED:
        assert any(i.kind == "social" for i in shipped(name).incentives)
    who = house.served(WINS)
    answer = house.only(who, WINS, incentive=["customer-photos"])
    assert answer["action"]["incentive"] == "customer-photos"


@check
def the_story_moves_on_with_progress(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    said = []
    for day in (0.0, 2.0):
        house.did(who, "workout_done", FITNESS, day=day)
        answer = house.only(who, FITNESS, day=day + 0.05, incentive=["achievement-badge"], tone=["factual"],
                            timing=["now"])  # fmt: skip
        said.append(answer["message"]["body"])
    assert "1 of 10" in said[0]
    assert "2 of 10" in said[1]


@check
def words_that_press_are_refused(house: House) -> None:
    found = _planted(read(FITNESS).replace("Five minutes are enough", "Hurry, five minutes are enough", 1))
    assert any("which presses" in problem for problem in found.values())
    for name in SHIPPED:
        assert audit(read(name), source=f"{name}.toml").findings == ()


@check
def tones_are_barred_by_stage_and_segment(house: House) -> None:
    who = house.served(FITNESS)
    assert house.dry(who, FITNESS)["blocked"]["tone=celebratory"] == "stage"
    trade = house.served(WINS, customer_type="trade")
    assert house.dry(trade, WINS)["blocked"]["tone=playful"] == "segment"


@check
def the_same_customer_on_every_channel(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    house.only(who, FITNESS, day=0.01, timing=["now"])
    for channel in ("push", "email", "in-app"):
        answer = house.decide(who, FITNESS, day=0.05, context={"channel": channel}, only={"timing": ["now"]})
        assert answer["action"] is None
        assert answer["hold_reason"] in ("cap_per_day", "cooldown")
        assert answer["progress"]["done"] == 1


@check
def customers_go_to_a_crm_and_come_back(house: House) -> None:
    who = house.served(WINS, customer_type="trade")
    house.decide(who, WINS)
    house.run("crm", "export", WINS, "--to", "crm.csv")
    house.run("crm", "export", WINS, "--to", "crm.parquet")
    with (house.home / "crm.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["customer_id"]: row for row in csv.DictReader(file)}
    assert who in listed
    assert who in pq.read_table(house.home / "crm.parquet")["customer_id"].to_pylist()
    (house.home / "back.csv").write_text(f"customer_id,consent,customer_type\n{who},yes,private\n", encoding="utf-8")
    house.run("crm", "import", "back.csv")
    assert house.where(who, WINS)["attributes"]["customer_type"] == "private"


@check
def caps_and_cooldown_hold_on_a_running_service(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    answers = [house.decide(who, FITNESS, day=0.3 * i, decision_id=f"{who}-{i}") for i in range(40)]
    delivered = [np.datetime64(a["deliver_at"][:19], "s") for a in answers if a["action"]]
    assert 3 <= len(delivered) <= 10  # not quite two weeks, at most five in any seven days
    days = [moment.astype("datetime64[D]") for moment in delivered]
    assert len(set(days)) == len(days)
    assert all(later - sooner >= np.timedelta64(12, "h") for sooner, later in pairwise(delivered))
    assert all(np.timedelta64(6, "D") < days[i + 5] - days[i] for i in range(len(days) - 5))


@check
def incentives_have_kinds_and_tiers(house: House) -> None:
    kinds = {i.kind for name in SHIPPED for i in shipped(name).incentives}
    assert kinds == {"content", "convenience", "recognition", "social", "monetary", "access"}
    capped = shipped(FITNESS).guardrails.cap_per_week_by_kind
    assert {"monetary", "access", "social"} <= set(capped)
    tiers = {i.tier for i in shipped(LOOP).incentives if i.ladder == "reward"}
    assert tiers == {1, 2}


@pytest.mark.parametrize(
    "row", [r for r in rows() if r.check in CHECKS], ids=lambda row: f"{row.check}: {row.asks[:40]}"
)
def test_each_row_is_run(row: Row, house: House) -> None:
    CHECKS[row.check](house)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    measured = set(test_journeys_measured.CHECKS)
    assert not measured & set(CHECKS)
    assert {row.check for row in rows()} == measured | set(CHECKS)
    assert len(rows()) > 60


def test_every_command_and_call_in_the_table_exists(house: House) -> None:
    paths = house.ask("GET", "/openapi.json")["paths"]
    known = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(p))) for p in paths]
    for row in rows():
        for method, path in re.findall(r"`(GET|PUT|POST) (/v1/[^`?]+)", row.shows):
            assert any(p.fullmatch(path) for p in known), f"{method} {path}"
        for words in re.findall(r"`nudge ([^`]+)`", row.shows):
            _exists(words.split())


def _exists(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for p in command.params for name in p.opts}
    assert {w for w in words if w.startswith("--")} <= options, (command.name, words)
