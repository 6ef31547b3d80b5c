"""What is known of a customer once outcomes came late, were corrected or taken back? As if each had come right at once.

A `Ledger` keeps the outcomes of the last eight days of a customer as they finally are, 64 at most, and the customer
before them. In whatever order the revisions of these are delivered, stage, momentum, streaks, counts, pauses and
hours are those after the last revisions in order of time. What is older has become part of the customer for good: a
correction of it is learned at the next training. What becomes of consent is in `consent`.
"""

import math
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from optimizer.consent import STATEMENTS, stated
from optimizer.customer import UNSAID, Customer, Decayed, Trigger
from optimizer.events import Outcome
from optimizer.journey import MEMORY, follow
from optimizer.program import Program

ENTRIES = 64
"""How many outcomes of a customer can be corrected at most."""

_KEPT = ("customer_id", "consent", "said", "time_zone", "attributes", "sent", "nudges", "trigger", "asked_at", "days")
"""What an outcome that is counted anew leaves as it is: the profile, the nudges, and what was asked."""


class Entry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """An outcome as its last revision has it; `id` is a digest of its id."""

    at: float
    id: bytes
    event: str
    value: float | None = None
    revoked: bool = False

    @property
    def place(self) -> tuple[float, str, float]:
        """What entries are in order of: two at the same place do the same, whichever comes first."""
        return self.at, self.event, -math.inf if self.value is None else self.value


class Ledger(msgspec.Struct, frozen=True, array_like=True):
    """The customer before the entries, and the entries in order of time."""

    base: Customer | None = None
    entries: tuple[Entry, ...] = ()


class Heard(NamedTuple):
    """A customer and the ledger after an outcome."""

    customer: Customer
    ledger: Ledger


def hear(program: Program, customer: Customer, ledger: Ledger, *, outcome: Outcome, first: bool) -> Heard:
    """Return the customer after an outcome that is news: in this revision, or at all.

    Args:
        program: declares what events do; ValueError if it does not know this one.
        customer: before it.
        ledger: what can still be corrected.
        outcome: a revision that was not known, and is higher than those that were.
        first: whether no revision of it was known.
    """
    if not program.knows(outcome.event):
        follow(program, customer, outcome.event, at=outcome.at)  # which says what it knows
    moved, spoken = _moved(program, customer, ledger, outcome=outcome, first=first), stated(customer, outcome)
    return moved._replace(customer=replace(moved.customer, consent=spoken.consent, said=spoken.said))


def _moved(program: Program, customer: Customer, ledger: Ledger, *, outcome: Outcome, first: bool) -> Heard:
    """Return the customer where the outcome leads, whatever it says of consent."""
    entry = _entry(program, outcome)
    rest = ledger.entries if first else tuple(e for e in ledger.entries if e.id != entry.id)
    if (first and entry.revoked and not outcome.revoked) or (not first and len(rest) == len(ledger.entries)):
        return Heard(customer, ledger)  # it moves nobody; or it became part of the customer for good
    base = ledger.base or _before(customer)
    in_order = not rest or entry.place >= rest[-1].place
    entries = (*rest, entry) if in_order else tuple(sorted((*rest, entry), key=lambda e: e.place))
    if first and entry.revoked:
        after = customer
    elif first and in_order:
        after = follow(program, customer, entry.event, at=entry.at, value=entry.value)
    else:
        news = follow(program, customer, entry.event, at=entry.at, value=entry.value) if first else customer
        after = _again(program, base, entries=entries, as_heard=news)
    after = after if first else replace(after, trigger=_still(after.trigger, ledger, entry))
    return Heard(after, _shortened(program, base, entries=entries))


def _entry(program: Program, outcome: Outcome) -> Entry:
    """Return an outcome as it is kept; what moves nobody (`shown`) is kept as one that was taken back."""
    digest = blake2b(outcome.outcome_id.encode(), digest_size=8).digest()
    moves = program.event(outcome.event) is not None or outcome.event in STATEMENTS
    return Entry(outcome.at, digest, outcome.event, outcome.value, outcome.revoked or not moves)


def _before(customer: Customer) -> Customer:
    """Return a customer without profile and nudges."""
    return replace(
        customer, customer_id="", consent=None, said=UNSAID, time_zone="", attributes={}, sent=(), nudges=Decayed(),
        trigger=None,
    )  # fmt: skip


def _again(program: Program, base: Customer, *, entries: tuple[Entry, ...], as_heard: Customer) -> Customer:
    """Return the customer after the entries that stand, in order of time; the rest of it is as it was heard."""
    after = _after(program, replace(base, time_zone=as_heard.time_zone), entries=entries)
    return replace(after, **{name: getattr(as_heard, name) for name in _KEPT})


def _after(program: Program, customer: Customer, *, entries: tuple[Entry, ...]) -> Customer:
    for e in entries:
        if not e.revoked and program.knows(e.event):
            customer = follow(program, customer, e.event, at=e.at, value=e.value)
    return customer


def _still(trigger: Trigger | None, ledger: Ledger, entry: Entry) -> Trigger | None:
    """Return what asks for a decision, unless it was what has been corrected."""
    was = next(e for e in ledger.entries if e.id == entry.id)
    asked = trigger is not None and (trigger.event, trigger.at) == (was.event, was.at)
    return None if asked and (entry.revoked, entry.event, entry.at) != (False, was.event, was.at) else trigger


def _shortened(program: Program, base: Customer, *, entries: tuple[Entry, ...]) -> Ledger:
    """Return a ledger without what is too old to be corrected, which becomes part of the customer before it."""
    horizon = entries[-1].at - MEMORY
    gone = max(sum(e.at < horizon for e in entries), len(entries) - ENTRIES)
    if not gone:
        return Ledger(base, entries)
    return Ledger(_before(_after(program, base, entries=entries[:gone])), entries[gone:])
