"""Why a nudge came, as the customer reads it; and messages that read well without progress."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from msgspec.structs import replace

from optimizer.customer import Customer, new_customer
from optimizer.engine import Ask
from optimizer.events import Decision
from optimizer.guardrails import RULES, Request, Shared
from optimizer.journey import follow, progress, settle
from optimizer.program import DAY, Program
from optimizer.programs import SHIPPED, read
from serving import because
from serving.embedded import Server
from serving.settings import Settings
from serving.store import Store
from tests.serving.running import Client, running, write_program
from tests.small_program import OPEN, optimizer

PROGRAMS = {name: Program.parse(read(name), source=name) for name in SHIPPED}
FITNESS = PROGRAMS["fitness-coaching"]
EVENING = 20_454 * DAY + 17 * 3600
"""Six in the evening in Paris."""


def decided(program: Program, who: Customer, *, at: float, **levels: str) -> Decision:
    """Return a nudge, of some levels where they are given."""
    who = settle(program, who, at=at)
    asked = Request({factor: [level] for factor, level in levels.items() if level})
    asks = [Ask(replace(who, consent=True), f"d{i}", at, {}, asked) for i in range(200)]
    return next(d for a in asks if (d := optimizer(program).decide([a], Shared.unlimited(program))[0]).action)


def stepped(program: Program, *steps: tuple[str, float]) -> Customer:
    """Return a customer who did these, each so many seconds before the evening."""
    who = replace(new_customer(program, "ada", at=EVENING - 90 * DAY), consent=True)
    for event, before in steps:
        who = follow(program, who, event, at=EVENING - before)
    return who


def told(program: Program, who: Customer, made: Decision) -> str | None:
    return because.nudge(program, who, made, steps=progress(program, who))


def why(program: Program, *steps: tuple[str, float], incentive: str = "") -> str:
    who = stepped(program, *steps)
    made = decided(program, who, at=EVENING, incentive=incentive)
    said = told(program, settle(program, who, at=EVENING), made)
    assert said is not None
    return said


def test_a_step_of_today_and_the_progress_are_named() -> None:
    assert why(FITNESS, ("workout_done", 3 * DAY), ("workout_done", 3600), incentive="coach-tip") == (
        "Because you finished a workout today, and you are at 2 of 10 for ten workouts."
    )
    assert why(FITNESS, ("tip_read", DAY), incentive="coach-tip").startswith(
        "Because you read a tip or a story yesterday"
    )


def test_evenings_suit_who_takes_steps_in_the_evening() -> None:
    steps = [("workout_done", day * DAY) for day in (4, 3, 2, 1)]
    who = stepped(FITNESS, *steps)
    made = {timing: decided(FITNESS, who, at=EVENING, timing=timing) for timing in ("evening", "morning", "midday")}
    said = {timing: str(told(FITNESS, who, m)) for timing, m in made.items()}
    assert said["evening"].endswith("and evenings suit you.")
    assert "suit" not in said["morning"] + said["midday"]


def test_a_milestone_that_was_just_reached_is_named() -> None:
    ten = [("workout_done", 60.0)] * 10
    assert "you have reached ten workouts" in why(FITNESS, *ten, incentive="coach-tip")


def test_who_was_away_is_welcome_and_who_is_new_is_told_so() -> None:
    assert why(FITNESS, ("workout_done", 12 * DAY), incentive="coach-tip") == (
        "Because it has been 12 days since your last step, and you are welcome at any time."
    )
    assert why(FITNESS, incentive="coach-tip") == (
        "Because your first step with us is still ahead of you, and you are at the very beginning."
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_whatever_happened_last_the_reason_reads_as_a_sentence(name: str) -> None:
    program = PROGRAMS[name]
    for event in program.events:
        if event.kind == "signal":
            continue
        said = why(program, (event.name, 600.0))
        assert re.fullmatch(r"Because you [a-z][^{}]*\.", said), said
        assert not re.search(r"\b(?:bandit|score|probability|policy|stage|momentum|None)\b", said), said
        assert len(said) < 200


def test_another_language_says_only_what_is_declared() -> None:
    stages = tuple(
        replace(s, because="Sie sind ganz am Anfang" if i == 0 else "") for i, s in enumerate(FITNESS.stages)
    )
    events = tuple(replace(e, because="") for e in FITNESS.events)
    german = replace(FITNESS, language="other", stages=stages, events=events)
    who = stepped(german)
    assert told(german, who, decided(german, who, at=EVENING)) == "Sie sind ganz am Anfang."
    moved = stepped(german, ("tip_read", 60.0))
    assert told(german, moved, decided(german, moved, at=EVENING)) is None


def test_every_rule_has_words_for_the_customer() -> None:
    for rule in (*RULES[1:], "chosen", "holdout", "degraded"):
        said = because.hold(rule)
        assert said.endswith(".")
        assert "_" not in said


@pytest.mark.parametrize("name", SHIPPED)
def test_no_message_shows_a_gap_to_somebody_without_progress(name: str) -> None:
    program = PROGRAMS[name]
    filled = 0
    for incentive in program.incentives:
        for message in program.messages[incentive.name].values():
            plain = because.without_progress(message, incentive)
            filled += plain != message
            for words in (plain.subject, plain.body, plain.call_to_action):
                assert words.strip()
                assert not re.search(r"\{(?:done|of|milestone|reward)\}", words)
    assert filled or name != "fitness-coaching"


def test_caps_and_progress_are_the_customers_whatever_the_channel(server: Server, tmp_path: Path) -> None:
    async def scene(url: str) -> tuple[Any, list[Any]]:
        async with ClientSession(url) as session:
            client = Client(session)
            await client.ask("PUT", "/v1/customers/whoever", {"consent": True, "time_zone": zone_at_noon()})
            ask = {"program": "fitness-coaching", "customer_id": "whoever", "only": {"timing": ["now"]}}
            nudge = None
            for i in range(60):
                body = {**ask, "decision_id": f"d{i}", "context": {"channel": "push"}}
                nudge = (await client.ask("POST", "/v1/decide", body)).json
                if nudge["action"] or nudge["hold_reason"] == "holdout":
                    break
            others = [{**ask, "context": {"channel": c}} for c in ("email", "in-app", "push")]
            return nudge, [(await client.ask("POST", "/v1/decide", body)).json for body in others]

    with running(Settings(home=tmp_path, redis_url=server.url)) as service:
        nudge, others = asyncio.run(scene(service.url))
    if nudge["action"]:  # one customer in twenty is held out, by a secret of the store
        assert {o["hold_reason"] for o in others} == {"cap_per_day"}
        assert {o["because"] for o in others} == {"You heard from us lately, so we leave you in peace for now."}
    assert all(o["progress"] == nudge["progress"] for o in others)


def zone_at_noon() -> str:
    """Return a time zone in which it is about noon now, so that no quiet hours are in the way."""
    hours = (12 - datetime.now(UTC).hour + 12) % 24 - 12
    return f"Etc/GMT{-hours:+d}" if hours else "Etc/GMT"


def test_a_customer_sees_progress_rewards_and_why_the_latest_nudge_came(server: Server, tmp_path: Path) -> None:
    write_program(tmp_path, extra=OPEN, change=("count = 10", "count = 10\nrequests_decision = true"))

    async def scene(url: str) -> tuple[Any, Any]:
        async with await Store.open(server.url) as store:
            await store.command("FLUSHALL")
        async with ClientSession(url) as session:
            client = Client(session)
            await client.decide("ada", without={"timing": ["evening"]})
            steps = [
                {"outcome_id": f"o{i}", "program": "small", "customer_id": "ada", "event": "step"} for i in range(10)
            ]
            assert (await client.ask("POST", "/v1/outcomes", steps)).json["accepted"] == 10
            decision = None
            for i in range(40):
                decision = await client.decide("ada", decision_id=f"d{i}", without={"timing": ["evening"]})
                if decision["action"]:
                    break
            return decision, (await client.ask("GET", "/v1/customers/ada?program=small")).json

    with running(Settings(home=tmp_path, redis_url=server.url)) as service:
        decision, seen = asyncio.run(scene(service.url))
    assert re.fullmatch(
        r"Because you took a step today,(?: and)? you have reached ten steps(?:, and [a-z ]+ you)?\.",
        decision["because"],
    )
    assert seen["latest"]["because"] == decision["because"]
    assert seen["latest"]["decision_id"] == decision["decision_id"]
    assert seen["rewards"] == {
        "earned": [{"milestone": "Ten steps", "reward": "a badge"}],
        "to_come": [{"milestone": "A week in a row", "reward": "a gift"}],
    }
    assert (seen["streak"], seen["longest_streak"]) == (1, 1)
