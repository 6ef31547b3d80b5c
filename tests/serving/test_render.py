"""What an app reads of a decision: words, times and reasons."""

from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from optimizer.customer import Customer
from optimizer.engine import Ask
from optimizer.events import Decision
from optimizer.guardrails import Request, Shared
from optimizer.program import Program
from serving import render, schemas
from tests.small_program import GUARDRAILS, NOON, customer, optimizer, small


def made(program: Program, who: Customer, *, request: Request | None = None) -> Decision:
    asks = [Ask(who, f"d{i}", NOON, {}, request or Request()) for i in range(60)]
    decisions = [optimizer(program).decide([a], Shared.unlimited(program))[0] for a in asks]
    return next((d for d in decisions if d.action), decisions[0])


def answered(program: Program, who: Customer, decision: Decision) -> dict[str, Any]:
    (rendered,) = render.decisions(program, [who], [decision])
    answer: dict[str, Any] = msgspec.json.decode(render.answer_of(rendered.kept))
    return answer


def only(incentive: str) -> Request:
    return Request({"incentive": [incentive], "tone": ["warm"], "timing": ["now"]})


def with_words() -> Program:
    program = small()
    message = replace(
        program.messages["badge"]["warm"], subject="{done} of {of} for {milestone}", body="{reward} and {nothing}"
    )
    return replace(program, messages={**program.messages, "badge": {**program.messages["badge"], "warm": message}})


def test_the_answer_has_the_fields_of_the_contract_and_no_others() -> None:
    program, who = small(), customer(small())
    answer = answered(program, who, made(program, who))
    schemas.Decision.model_validate(answer)
    assert set(answer) == set(schemas.Decision.model_fields) == set(render.Answer.__struct_fields__)
    degraded = msgspec.json.decode(render.degraded("small", "ada", "d"))
    schemas.Decision.model_validate(degraded)
    assert set(degraded) == set(answer)


def test_the_message_is_filled_with_the_progress_and_nothing_else() -> None:
    program = with_words()
    who = customer(program, counts={"step": 3})
    answer = answered(program, who, made(program, who, request=only("badge")))
    assert answer["message"] == {
        "subject": "3 of 10 for Ten steps",
        "body": "a badge and {nothing}",
        "call_to_action": "Take a step",
    }


def test_when_every_milestone_is_reached_the_message_speaks_of_the_last_one() -> None:
    program = with_words()
    who = customer(program, counts={"step": 12}, streak=9)
    answer = answered(program, who, made(program, who, request=only("badge")))
    assert answer["progress"] is None
    assert answer["message"]["subject"] == "7 of 7 for A week in a row"


def test_times_are_local_across_daylight_saving() -> None:
    assert render.local_time(1_774_745_940.0, "Europe/Paris") == "2026-03-29T01:59:00+01:00"
    assert render.local_time(1_774_746_060.0, "Europe/Paris") == "2026-03-29T03:01:00+02:00"


def test_the_propensity_is_that_of_the_vector_drawn_from() -> None:
    program, who = small(), customer(small())
    decision = made(program, who)
    vector = decision.vector.astype(np.float64)
    answer = answered(program, who, decision)
    assert answer["propensity"] == vector[decision.action] / vector.sum()


def test_a_batch_renders_each_row_as_it_would_alone() -> None:
    program = small()
    people = [customer(program, f"c{i}", counts={"step": i}) for i in range(8)]
    decisions = [made(program, who) for who in people]
    together = render.decisions(program, people, decisions)
    assert together == [render.decisions(program, [w], [d])[0] for w, d in zip(people, decisions, strict=True)]
    assert render.decisions(program, [], []) == []


def test_hold_by_a_rule_names_the_rule_as_the_guardrails_do() -> None:
    program = small(GUARDRAILS.replace("opt-out", "opt-in"))
    who = customer(program)
    assert answered(program, who, made(program, who))["hold_reason"] == "consent"
    program = small(GUARDRAILS + '\nquiet_from = "00:00"\nquiet_until = "23:59"')
    who = customer(program)
    held = answered(program, who, made(program, who))
    assert held["hold_reason"] == "quiet_hours"
    assert held["next_eligible_at"] == "2026-01-01T23:59:00+00:00"


def test_a_nudge_has_no_reason_to_hold() -> None:
    program, who = small(), customer(small())
    answer = answered(program, who, made(program, who))
    assert (answer["hold_reason"], answer["next_eligible_at"]) == (None, None)
