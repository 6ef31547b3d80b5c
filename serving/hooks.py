"""Which messages follow from a decision or an outcome? Made here, queued by the same commit; pure functions."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec

from optimizer import journey
from optimizer.customer import Customer, Trigger
from optimizer.events import Decision, Outcome
from optimizer.program import Program
from serving.targets import Target

_encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message on its way. Its id stays the same however often it is sent, so that a receiver can tell.

    `attempts` is how often it was sent in vain, `error` what came of the last one; `made_at` and `due_at` are seconds
    since the epoch, 0 for at once.
    """

    id: str
    target: str
    kind: str
    customer_id: str
    body: bytes
    made_at: float
    attempts: int = 0
    due_at: float = 0.0
    error: str = ""


_decoder = msgspec.msgpack.Decoder(Message)


def decode(data: bytes) -> Message:
    """Read a message as it is kept."""
    return _decoder.decode(data)


def due_key(shard: int, target: str) -> str:
    """Return the key of the ids of the messages to a target, by when each is to be sent."""
    return f"{{{shard}}}:webhooks:{target}:due"


def messages_key(shard: int, target: str) -> str:
    """Return the key of the messages to a target."""
    return f"{{{shard}}}:webhooks:{target}:messages"


def dead_key(shard: int, target: str) -> str:
    """Return the key of the messages that a target did not take, however often they were sent."""
    return f"{{{shard}}}:webhooks:{target}:dead"


def buried_key(shard: int, target: str) -> str:
    """Return the key of the ids of dead messages, by when they were given up."""
    return f"{{{shard}}}:webhooks:{target}:buried"


def lease_key(shard: int, target: str) -> str:
    """Return the key that whoever sends to a target holds."""
    return f"{{{shard}}}:webhooks:{target}:lease"


def after_outcome(
    targets: Sequence[Target],
    program: Program,
    *,
    outcome: Outcome,
    before: Customer,
    after: Customer,
    trigger: Trigger | None,
) -> Iterator[Message]:
    """Yield what is sent after an outcome: that a decision is asked for, and how far the customer has come."""
    place = (program.name, outcome.customer_id, outcome.outcome_id, str(outcome.revision))
    at = outcome.received_at
    if trigger is not None:
        facts: dict[str, object] = {"event": outcome.event, "outcome_id": outcome.outcome_id, "reason": trigger.reason}
        yield from _messages(targets, "decision.requested", place=place, at=at, facts=facts)
    if any(t.wants("customer.progressed", program.name) for t in targets):
        facts = _progress(program, before, after)
        if facts:
            facts = {"event": outcome.event, "outcome_id": outcome.outcome_id, **facts}
            yield from _messages(targets, "customer.progressed", place=place, at=at, facts=facts)


def after_time(
    targets: Sequence[Target], program: Program, *, customer_id: str, due: Trigger, now: float
) -> Iterator[Message]:
    """Yield what is sent where time alone asks for a decision: a step that was missed, or an anniversary."""
    place = (program.name, customer_id, due.reason, repr(due.at))
    facts: dict[str, object] = {"event": None, "reason": due.reason, "due_at": _written(due.at)}
    yield from _messages(targets, "decision.requested", place=place, at=now, facts=facts)


def after_decision(targets: Sequence[Target], decision: Decision, answer: bytes) -> Iterator[Message]:
    """Yield what is sent after a decision: the answer that the app got."""
    if any(t.wants("decision.made", decision.program) for t in targets):
        place = (decision.program, decision.customer_id, decision.decision_id)
        facts = msgspec.json.decode(answer)
        yield from _messages(targets, "decision.made", place=place, at=decision.at, facts=facts)


def _progress(program: Program, before: Customer, after: Customer) -> dict[str, object]:
    """Return what has changed: stage, progress to the nearest milestone, rewards earned; empty where nothing has."""
    steps = journey.progress(program, after)
    known = {m.name for m in journey.earned(program, before)}
    new = [m for m in journey.earned(program, after) if m.name not in known]
    if after.stage == before.stage and steps == journey.progress(program, before) and not new:
        return {}
    return {
        "stage": after.stage,
        "stage_before": before.stage,
        "progress": steps._asdict() if steps else None,
        "earned": [{"milestone": m.title, "reward": m.reward} for m in new],
    }


def _messages(
    targets: Sequence[Target], kind: str, *, place: tuple[str, ...], at: float, facts: dict[str, object]
) -> Iterator[Message]:
    program, customer_id = place[:2]
    when = _written(at)
    data = {"program": program, "customer_id": customer_id, **facts}
    for target in targets:
        if target.wants(kind, program):
            body = _encode({"type": kind, "timestamp": when, "data": data})
            made = message_id(kind, *place)
            yield Message(id=made, target=target.name, kind=kind, customer_id=customer_id, body=body, made_at=at)


def _written(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def message_id(*words: str) -> str:
    """Return the id of a message about something: the same whenever it is made, and it says nothing of whom.

    >>> message_id("decision.made", "p", "c", "d") == message_id("decision.made", "p", "cd", "")
    False
    """
    text = b"".join(len(word).to_bytes(4, "big") + word for word in (w.encode() for w in words))
    return f"msg_{blake2b(text, digest_size=16).hexdigest()}"
