"""How is a commit put to the script? Rows for `commit.lua`, and the keys they point at; pure functions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from optimizer import journey
from optimizer.customer import Customer, Trigger
from optimizer.events import Decision
from optimizer.program import DAY, Program
from serving import hooks, records, reservations
from serving.hooks import Message
from serving.records import Profile
from serving.reservations import Effect, New, Place, Resource
from serving.targets import Target

ROWS = 64
"""Rows a call: a longer one would keep other callers waiting."""

KEEP = int(7 * DAY)
"""Seconds that answers and outcome ids are kept."""

REMEMBERED = 100
"""How many recent decisions a customer's history has."""

_GARBAGE = int(400 * DAY)
"""Seconds after which a budget that nobody touched is garbage: periods run on program time, this does not."""


class Row(NamedTuple):
    """A row of `commit.lua`, field by field. Keys are positions in KEYS, 0 for none; contents are positions in ARGV.

    `control` -1 does not look at the program's control. A claim is (key, seconds, limit, low, high, take), a move
    (key, seconds, amount), an event (kind, payload), an outcome (key, revision), a due reservation (when, member), a
    message (key of the due ones, key of the messages, id, content), a watch (key, when or -1 for never, customer).
    What a row has none of is None: the server makes a table of its own of each empty list.
    """

    customer: int
    rev: int
    decision: int = 0
    answer: int = 0
    control: int = -1
    claims: Sequence[tuple[int, int, int, int, int, int]] | None = None
    moves: Sequence[tuple[int, int, int]] | None = None
    fields: Sequence[tuple[str, int]] | None = None
    events: Sequence[tuple[str, int]] | None = None
    outcomes: Sequence[tuple[int, int]] | None = None
    due: Sequence[tuple[float, int]] | None = None
    done: Sequence[int] | None = None
    history: int = 0
    decision_id: str = ""
    overruns: Sequence[int] | None = None
    messages: Sequence[tuple[int, int, str, int]] | None = None
    watches: Sequence[tuple[int, float, int]] | None = None


class Call:
    """One call being put together for a shard: its keys, each once, its rows, and what they hold, unread."""

    def __init__(self, shard: int, program: str = "") -> None:
        kinds = ("control", "reservations", "overrun")
        first = (records.events_key(shard), *(records.shared_key(shard, kind, program) for kind in kinds))
        self.shard, self.program = shard, program
        self.positions = {key: i for i, key in enumerate(first, 1)}
        self._resources: dict[Resource, tuple[int, int]] = {}
        self.rows: list[Row] = []
        self.contents: list[str | bytes | int | float] = [b"", KEEP, REMEMBERED]

    def key(self, name: str) -> int:
        """Return the position of a key."""
        return self.positions.setdefault(name, len(self.positions) + 1)

    def resource(self, resource: Resource) -> tuple[int, int]:
        """Return the position of a resource's key, and the seconds to keep it; 0 for ever."""
        known = self._resources.get(resource)
        if known is None:
            name = records.shared_key(self.shard, resource.kind, self.program, resource.name)
            known = self._resources[resource] = (self.key(name), _GARBAGE if resource.kind == "budget" else 0)
        return known

    def customer(self, customer_id: str) -> int:
        """Return the position of a customer's key."""
        return self.key(records.customer_key(self.shard, customer_id))

    def content(self, data: bytes) -> int:
        """Return the position of something that the script stores and does not read."""
        self.contents.append(data)
        return len(self.contents)

    def record(self, record: object) -> int:
        """Return the position of a record."""
        return self.content(records.encode(record))

    def queued(self, messages: Iterable[Message]) -> list[tuple[int, int, str, int]] | None:
        """Return messages for targets as a row has them."""
        queued = [
            (
                self.key(hooks.due_key(self.shard, m.target)),
                self.key(hooks.messages_key(self.shard, m.target)),
                m.id,
                self.record(m),
            )
            for m in messages
        ]
        return queued or None

    def watched(self, customer_id: str, at: float | None) -> list[tuple[int, float, int]]:
        """Return by when to look at a customer again, if no step is taken, as a row has it."""
        key = self.key(records.watch_key(self.shard, self.program))
        return [(key, -1.0 if at is None else at, self.content(customer_id.encode()))]

    @property
    def keys(self) -> list[str]:
        """KEYS of the script."""
        return [*self.positions]

    @property
    def args(self) -> list[str | bytes | int | float]:
        """ARGV of the script."""
        return [records.encode(self.rows), *self.contents[1:]]


class Before(NamedTuple):
    """A customer as read before a change: the place in a program, the `rev` then, and the control's."""

    place: Place
    rev: int
    control: int = -1


def add_decision(
    call: Call,
    program: Program,
    decision: Decision,
    *,
    before: Before,
    answer: bytes,
    shards: int,
    messages: Iterable[Message] = (),
) -> None:
    """Add the row that commits a decision about a customer who is as read before, and the messages about it."""
    person, made = decision.customer_id, decision.decision_id
    after = reservations.reserve(program, before.place.customer, decision)
    expires = program.guardrails.reports_shown and decision.action
    row = Row(
        customer=call.customer(person),
        rev=before.rev,
        decision=call.key(records.decision_key(call.shard, program.name, person, made)),
        answer=call.content(answer),
        control=before.control,
        claims=[
            (*call.resource(c.resource), c.limit, c.low, c.high, c.take)
            for c in reservations.claims(program, decision, shard=call.shard, shards=shards)
        ]
        or None,
        fields=((records.journey_field(program.name), call.content(records.encode_journey(after))),),
        events=(("decision", call.record(decision)),),
        due=((after.sent[-1].expires_at, call.record((person, made))),) if expires else None,
        history=call.key(records.history_key(call.shard, program.name, person)),
        decision_id=made,
        messages=call.queued(messages),
        watches=_watches(call, program, None, after) if after.enrolled_at == decision.at else None,
    )
    call.rows.append(row)


def add_outcomes(
    call: Call, program: Program, news: Sequence[New], *, before: Before, targets: Sequence[Target] = ()
) -> list[Trigger | None]:
    """Add the row that commits new outcomes of one customer, and all that they lead to; return what each asks for."""
    place, effects, asked = before.place, list[Effect](), list[Trigger | None]()
    messages: list[Message] = []
    for new in news:
        effects.append(reservations.after(program, place, new))
        people = {"before": place.customer, "after": effects[-1].place.customer}
        asked.append(journey.requested(program, **people, now=new.outcome.received_at))
        messages += hooks.after_outcome(targets, program, outcome=new.outcome, trigger=asked[-1], **people)
        place = effects[-1].place
    person, outcomes = place.customer.customer_id, [new.outcome for new in news]
    keys = [records.outcome_key(call.shard, program.name, person, o.outcome_id) for o in outcomes]
    row = Row(
        customer=call.customer(person),
        rev=before.rev,
        moves=_moves(call, effects),
        fields=[*_place(call, program, place, effects), ("profile", call.record(records.profile_of(place.customer)))],
        events=[("outcome", call.record(o)) for o in outcomes],
        outcomes=[(call.key(k), o.revision) for k, o in zip(keys, outcomes, strict=True)],
        overruns=[e.overrun.cost for e in effects if e.overrun is not None] or None,
        messages=call.queued(messages),
        watches=_watches(call, program, before.place if before.place.ledger.entries else None, place.customer),
    )
    call.rows.append(row)
    return asked


class Watched(NamedTuple):
    """What became of a customer who was looked at: as read, as it is now, when to look again, messages about it."""

    before: Before
    customer: Customer
    next_at: float | None
    messages: Sequence[Message] = ()


def add_watched(call: Call, program: Program, watched: Watched) -> None:
    """Add the row that notes what became of a customer who was due."""
    before, after, person = watched.before, watched.customer, watched.customer.customer_id
    changed = after is not before.place.customer
    field = (records.journey_field(program.name), call.content(records.encode_journey(after))) if changed else None
    row = Row(
        customer=call.customer(person),
        rev=before.rev,
        fields=(field,) if field else None,
        messages=call.queued(watched.messages),
        watches=call.watched(person, watched.next_at),
    )
    call.rows.append(row)


def add_release(call: Call, program: Program, effect: Effect, *, before: Before, decision_id: str) -> None:
    """Add the row that releases a reservation, and strikes it off the list of those that expire."""
    person = before.place.customer.customer_id
    row = Row(
        customer=call.customer(person),
        rev=before.rev,
        moves=_moves(call, [effect]),
        fields=_place(call, program, effect.place, [effect]),
        done=(call.record((person, decision_id)),),
    )
    call.rows.append(row)


def add_profile(call: Call, customer_id: str, profile: Profile, *, rev: int) -> None:
    """Add the row that replaces a profile."""
    call.rows.append(Row(call.customer(customer_id), rev, fields=(("profile", call.record(profile)),)))


def _watches(
    call: Call, program: Program, before: Place | None, after: Customer
) -> Sequence[tuple[int, float, int]] | None:
    """Return when to look at a customer again, where that is not what it was."""
    dues = [None if c is None else journey.missed(program, c) for c in (before and before.customer, after)]
    was, due = (None if d is None else d.at for d in dues)
    return None if was == due else call.watched(after.customer_id, due)


def _moves(call: Call, effects: Sequence[Effect]) -> list[tuple[int, int, int]] | None:
    return [(*call.resource(m.resource), m.amount) for effect in effects for m in effect.moves] or None


def _place(call: Call, program: Program, place: Place, effects: Sequence[Effect]) -> list[tuple[str, int]]:
    fields = [(records.journey_field(program.name), call.content(records.encode_journey(place.customer)))]
    if place.released or any(e.overrun for e in effects):
        fields.append((records.released_field(program.name), call.record(place.released)))
    if place.ledger.entries:
        fields.append((records.ledger_field(program.name), call.record(place.ledger)))
    return fields
