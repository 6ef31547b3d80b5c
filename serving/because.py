"""Why did this nudge come? In words for the customer, from what was declared and what has happened; never a score."""

import re
from collections.abc import Iterator

from optimizer import journey
from optimizer.customer import Customer, local_day, utc_offset
from optimizer.events import Decision
from optimizer.journey import Progress
from optimizer.program import DAY, PROMPT, Event, Incentive, Message, Program

_LATELY = 7 * DAY
"""For so long a step is recent enough to speak of it."""

_PARTS = (
    (5, "late evenings suit"),
    (11, "mornings suit"),
    (14, "the middle of the day suits"),
    (17, "afternoons suit"),
    (22, "evenings suit"),
    (24, "late evenings suit"),
)
"""Until which hour of the day, and what suits whoever takes steps then."""

_PEACE = "You heard from us lately, so we leave you in peace for now."
_NOTHING = "There is nothing that would really fit you right now."
_HOLDS = {
    "chosen": "This seemed a good moment to leave you in peace.",
    "holdout": "This seemed a good moment to leave you in peace.",
    "paused": "We are taking a short break from messages.",
    "consent": "You have not asked for messages, so we do not send any.",
    "pending": "A message is on its way to you already.",
    "complaint": "Something was not right for you, so we hold back with offers until it is.",
    "quiet_hours": "It is quiet time where you are, so we wait.",
    "degraded": "We could not look after this right now, so we leave you in peace.",
    **dict.fromkeys(("cap_per_day", "cap_per_week", "kind_cap", "scarcity", "cooldown", "cadence", "hour"), _PEACE),
}


def hold(reason: str) -> str:
    """Return why nothing came, for the customer.

    >>> hold("cooldown")
    'You heard from us lately, so we leave you in peace for now.'
    """
    return _HOLDS.get(reason, _NOTHING)


def nudge(program: Program, customer: Customer, made: Decision, *, steps: Progress | None) -> str | None:
    """Return why a nudge came; None where the program says nothing of it.

    In another language than English only what the program declares (`because`) is said, word for word.

    Args:
        program: declares the words.
        customer: as found before the decision.
        made: the decision, not hold.
        steps: the customer's progress, as `journey.progress` has it.
    """
    incentive = program.incentives[program.space.levels[made.action, 0]]
    if program.language != "en":
        words = [w for w in (_declared(program, customer, at=made.at), _stage(program, customer)) if w]
        return f"{words[0][0].upper()}{words[0][1:]}." if words else None
    clauses = list(_clauses(program, customer, incentive, made=made, steps=steps))
    *most, last = clauses[:3]
    return f"Because {', '.join(most)}, and {last}." if most else f"Because {last}."


def _clauses(
    program: Program, customer: Customer, incentive: Incentive, *, made: Decision, steps: Progress | None
) -> Iterator[str]:
    zone = customer.time_zone or program.guardrails.time_zone
    yield (step := _step(program, customer, incentive, at=made.at, zone=zone))
    if step.startswith("it has been"):
        yield "you are welcome at any time"
        return
    trigger = customer.trigger
    fresh = trigger is not None and trigger.reason == "milestone" and made.at - trigger.at <= PROMPT
    if fresh and (earned := journey.earned(program, customer)):
        yield f"you have reached {_inside(earned[-1].title)}"
    elif steps is not None and steps.done:
        yield f"you are at {steps.done} of {steps.of} for {_inside(steps.milestone)}"
    elif stage := _stage(program, customer):
        yield stage
    if suits := _suits(customer, at=made.at, deliver_at=made.deliver_at, zone=zone):
        yield f"{suits} you"


def _step(program: Program, customer: Customer, incentive: Incentive, *, at: float, zone: str) -> str:
    """Say what the customer did last, and when; or that it has been a while, or is still to come."""
    if customer.last_step_at is None:
        return "your first step with us is still ahead of you"
    away = at - customer.last_step_at
    if away > _LATELY or (incentive.comeback_after is not None and away >= DAY):
        return f"it has been {round(away / DAY)} days since your last step"
    days = local_day(at, utc_offset(zone, at)) - local_day(
        customer.last_step_at, utc_offset(zone, customer.last_step_at)
    )
    when = ("today", "yesterday")[days] if 0 <= days < 2 else "lately"
    return f"{_said(program.event(customer.last_step))} {when}"


def _said(event: Event | None) -> str:
    """Return an event as the customer would be told: as declared, or from its title.

    >>> _said(Event(name="x", kind="micro", title="Finished a workout")), _said(None)
    ('you finished a workout', 'you took a step')
    """
    if event is not None and event.because:
        return event.because.rstrip(".")
    return f"you {_inside(event.title)}" if event is not None and event.title else "you took a step"


def _declared(program: Program, customer: Customer, *, at: float) -> str:
    recent = customer.last_step_at is not None and at - customer.last_step_at <= _LATELY
    event = program.event(customer.last_step) if recent else None
    return event.because.rstrip(".") if event is not None else ""


def _stage(program: Program, customer: Customer) -> str:
    return program.stages[program.stage_index.get(customer.stage, 0)].because.rstrip(".")


def _suits(customer: Customer, *, at: float, deliver_at: float | None, zone: str) -> str:
    """Say which part of the day suits, if the nudge comes within two hours of when the customer takes steps."""
    own = customer.hours.hour(at=at)
    if own is None or deliver_at is None:
        return ""
    hour = (deliver_at + utc_offset(zone, deliver_at)) % DAY / 3600.0
    if abs((hour - own + 12.0) % 24.0 - 12.0) > 2.0:
        return ""
    return next(words for until, words in _PARTS if hour < until)


def _inside(words: str) -> str:
    """Return words as they stand inside a sentence: a capital that only began them goes."""
    return words if words[1:2].isupper() else f"{words[:1].lower()}{words[1:]}"


def without_progress(message: Message, incentive: Incentive) -> Message:
    """Return a message for somebody without progress to speak of: sentences that would need some are left out.

    >>> whole = Message(subject="{done} done!", body="Well done. {done} of {of}.", call_to_action="Get {reward}")
    >>> badge = Incentive(name="b", title="A badge", kind="recognition", earns="Finish and it is yours.")
    >>> without_progress(whole, badge)
    Message(subject='A badge', body='Well done.', call_to_action='Take the next step')
    """
    sentences = re.split(r"(?<=[.!?])\s+", message.body)
    body = " ".join(s for s in sentences if not _open(s)) or incentive.earns
    action = "Take the next step" if _open(message.call_to_action) else message.call_to_action
    return Message(
        subject=incentive.title if _open(message.subject) else message.subject, body=body, call_to_action=action
    )


def _open(words: str) -> bool:
    """Return whether words wait to be filled from progress."""
    return re.search(r"\{(?:done|of|milestone|reward)\}", words) is not None
