"""Who has missed a step, or has an anniversary? Found when it is due, and a decision is asked for, by webhook.

Every commit keeps, for each shard, the customers by when something falls due if they take no step (`journey.missed`).
One process holds a lease and looks at those that are due, a handful at a time, nobody else; what it asks for is queued
by the commit that notes it was asked, so each is asked once, whoever ends in between.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from optimizer.customer import Customer, Trigger, cohort
from optimizer.engine import HOLDOUT, Optimizer
from optimizer.guardrails import Shared, allowed
from optimizer.journey import missed, settle
from optimizer.program import DAY, Program
from serving import hooks, records
from serving.calls import ROWS, Before, Watched
from serving.leading import leads
from serving.store import Store

STALE = 7 * DAY
"""What fell due longer ago than this is let be: nobody is asked back all at once after a history is imported."""

LATER = 1_800.0
"""Seconds until a customer is looked at again who may not be nudged now: in the quiet hours, or after a nudge."""


class Watch(NamedTuple):
    """What came of a pass: how many were looked at, and about how many a decision was asked for."""

    looked: int
    asked: int


async def step(store: Store, program: Program, *, who: str, now: float) -> Watch | None:
    """Look at those who are due, at most `ROWS`; return what came of it, or None where another process leads.

    Args:
        store: where customers, those who are due, and messages are.
        program: declares what asks.
        who: names this process among those that could lead.
        now: program time, seconds since the epoch.
    """
    if not await leads(store, "watcher", program, who=who):
        return None
    due = await _due(store, program, now=now)
    if not due:
        return Watch(0, 0)
    befores = await _known(store, program, due, now=now)
    shared = [f.shared for f in await store.watched(program, [b.place.customer.customer_id for b in befores], at=now)]
    rows = [_row(store, program, b, shared=s, now=now) for b, s in zip(befores, shared, strict=True)]
    done = await store.note(program, rows)
    asked = sum(kept and bool(row.messages) for kept, row in zip(done, rows, strict=True))
    return Watch(len(due), asked)


async def _due(store: Store, program: Program, *, now: float) -> list[str]:
    """Return the customers who are due, those of each shard in order of time."""
    keys = [records.watch_key(shard, program.name) for shard in range(store.shards)]
    found = await store.commands([("ZRANGEBYSCORE", key, "-inf", now, "LIMIT", 0, ROWS) for key in keys])
    return [name.decode() for names in found for name in names][:ROWS]


async def _known(store: Store, program: Program, due: Sequence[str], *, now: float) -> list[Before]:
    """Return those who are due as they were left; who has been forgotten since is not looked at again."""
    befores = await store.standing(program, due, at=now)
    gone = [name for name, before in zip(due, befores, strict=True) if not before.rev]
    await store.commands([("ZREM", records.watch_key(store.shard(n), program.name), n) for n in gone])
    return [before for before in befores if before.rev]


def _row(store: Store, program: Program, before: Before, *, shared: Shared, now: float) -> Watched:
    """Return what becomes of somebody who is due: asked about, let be, or looked at again later."""
    customer = before.place.customer
    due = missed(program, customer)
    if due is None or due.at > now:
        return Watched(before, customer, None if due is None else due.at)
    asked = replace(customer, asked_at=due.at)
    further = missed(program, asked)
    next_at = None if further is None else further.at
    if now - due.at > STALE or not _welcome(program, customer) or _held_out(store, program, customer):
        return Watched(before, asked, next_at)
    if not _may_be_nudged(program, asked, due, shared=shared, now=now):
        return Watched(before, customer, now + LATER)
    asked = replace(asked, trigger=replace(due, at=now))
    return Watched(before, asked, next_at, tuple(_messages(store, program, asked, due, now=now)))


def _welcome(program: Program, customer: Customer) -> bool:
    return program.guardrails.consent == "opt-out" if customer.consent is None else customer.consent


def _held_out(store: Store, program: Program, customer: Customer) -> bool:
    return Optimizer(program, {}, store.salt).arm(customer.customer_id) == HOLDOUT


def _may_be_nudged(program: Program, customer: Customer, due: Trigger, *, shared: Shared, now: float) -> bool:
    """Whether any nudge is allowed now, once this asks for one."""
    asking = replace(settle(program, customer, at=now), trigger=replace(due, at=now))
    guarded = allowed(program, cohort(program, [asking], at=[now]), shared=shared)
    return bool(guarded.mask[0, 1:].any())


def _messages(
    store: Store, program: Program, customer: Customer, due: Trigger, *, now: float
) -> Sequence[hooks.Message]:
    return [*hooks.after_time(store.targets, program, customer_id=customer.customer_id, due=due, now=now)]
