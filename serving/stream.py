"""How does the log leave the store? Under a lease, by a plan, and trimmed only once it is kept elsewhere.

A shard is archived by whoever holds its lease. The lease lapses by itself, and each holder has a higher fence than
the one before, which every step must show: whoever was paused for too long finds every step refused.
"""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from serving import records
from serving.records import Event
from serving.store import Store

PAGE = 500
"""Entries a reading: more would keep decisions waiting."""


class Lease(NamedTuple):
    """The right to archive a shard, for some seconds from the last step on."""

    shard: int
    fence: int
    seconds: float


class Plan(NamedTuple):
    """Which entries make the next files: ids of the first and the last, and how many they are."""

    first: str
    last: str
    entries: int


class Entry(NamedTuple):
    """An entry of the log: its id, and the event."""

    id: str
    event: Event


class LeaseLostError(RuntimeError):
    """Another archiver works on this shard, and has got further: leave it to that one."""


async def take(store: Store, shard: int, *, seconds: float) -> Lease | None:
    """Take the lease of a shard, or return None where another holds it."""
    fence = int(await store.run("archive", _keys(shard), ["take", 0, int(seconds * 1000)]))
    return Lease(shard, fence, seconds) if fence else None


async def leave(store: Store, lease: Lease) -> None:
    """Give the lease back, if it still is ours."""
    await _step(store, lease, "leave")


async def hold(store: Store, lease: Lease) -> None:
    """Keep the lease for its seconds from now on; `LeaseLostError` if it is gone."""
    if not await _step(store, lease, "hold"):
        raise LeaseLostError(f"shard {lease.shard}: the lease lapsed while it was held")


async def planned(store: Store, shard: int) -> Plan | None:
    """Return the plan that somebody committed and did not finish, if there is one."""
    first, last, count = await store.command("HMGET", records.archiver_key(shard), "first", "last", "count")
    return Plan(first.decode(), last.decode(), int(count)) if last else None


async def commit(store: Store, lease: Lease, plan: Plan) -> None:
    """Commit a plan before anything is written; `LeaseLostError` if the lease is gone, or there is a plan already."""
    if not await _step(store, lease, "plan", *plan):
        raise LeaseLostError(f"shard {lease.shard}: the lease lapsed before the plan was committed")


async def advance(store: Store, lease: Lease, plan: Plan) -> None:
    """Move past what is archived and trim it; `LeaseLostError` if the lease or the plan is not ours any more."""
    milliseconds, _, sequence = plan.last.partition("-")
    if not await _step(store, lease, "advance", plan.last, f"{milliseconds}-{int(sequence) + 1}"):
        raise LeaseLostError(f"shard {lease.shard}: the lease lapsed before {plan.first} to {plan.last} was finished")


async def fresh(store: Store, shard: int, *, most: int) -> list[Entry]:
    """Return the first entries that are not archived: those that are have been trimmed."""
    return [entry async for entry in _range(store, shard, start="-", end="+", most=most)]


async def of_plan(store: Store, shard: int, plan: Plan) -> list[Entry]:
    """Return the entries of a plan; `LeaseLostError` if some are trimmed already, for then somebody finished it."""
    entries = [e async for e in _range(store, shard, start=plan.first, end=plan.last, most=plan.entries)]
    if len(entries) != plan.entries:
        raise LeaseLostError(f"shard {shard}: {plan.first} to {plan.last} was finished by another archiver")
    return entries


async def backlog(store: Store) -> int:
    """Return how many entries are not archived yet."""
    return sum(await store.commands([("XLEN", records.events_key(shard)) for shard in range(store.shards)]))


async def _range(store: Store, shard: int, *, start: str, end: str, most: int) -> AsyncIterator[Entry]:
    while most > 0:
        page = await store.command("XRANGE", records.events_key(shard), start, end, "COUNT", min(most, PAGE))
        for name, fields in page:
            yield Entry(name.decode(), _event(fields))
        if len(page) < min(most, PAGE):
            return
        most -= len(page)
        start = f"({page[-1][0].decode()}"


def _event(fields: Sequence[bytes]) -> Event:
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return records.decode_event(named[b"kind"], named[b"payload"])


async def _step(store: Store, lease: Lease, step: str, *words: str | int) -> bool:
    args = [step, lease.fence, int(lease.seconds * 1000), *words]
    return bool(await store.run("archive", _keys(lease.shard), args))


def _keys(shard: int) -> list[str]:
    return [records.lease_key(shard), records.archiver_key(shard), records.events_key(shard)]
