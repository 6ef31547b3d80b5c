"""How is a customer forgotten everywhere? In the store at once; in its file, the archive and what was left over soon.

Erasing writes a tombstone that readers honour at once. What is on disk goes when the log has been archived up to the
tombstone: the archive is rewritten without the customer, what names the customer in the store and had not lapsed yet
is deleted, and the store rewrites its append-only file. `nudge archive --watch` does so within an hour, `nudge erase`
and `nudge archive` before they end. It can be stopped anywhere and run again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import msgspec

from optimizer.erasure import digest
from serving import archive as archiver
from serving import records, vitals
from serving.archive import Archived
from serving.store import Store, StoreError
from training import compaction, erasure
from training import events as parquet

SOON = 3_600.0
"""Seconds within which, while an archiver watches, what is on disk of an erased customer is gone."""

_PATIENCE = 120.0
_PAGE = 1_000


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about erased customers: keys left over, rows and files of the archive; whether the AOF is new."""

    customers: int = 0
    keys: int = 0
    rows: int = 0
    files: int = 0
    rewritten: bool = False


async def archive(store: Store, folder: Path, *, every: float = 0.0) -> Archived:
    """Move the log into the archive, and forget on disk whoever was erased; at most once in `every` seconds."""
    moved = await archiver.archive(store, folder)
    if _due(folder, every=every):
        await forget(store, folder)
    return moved


async def erase(store: Store, folder: Path, customers: Sequence[str], *, at: float) -> Forgotten:
    """Forget customers everywhere, now.

    Raises:
        ValueError: another archiver is at work and did not get as far within two minutes.
        StoreError: the store failed; what was erased stays so, ask again.
    """
    found = [name for name in customers if await store.erase(name, at=at)]
    deadline, oldest = time.monotonic() + _PATIENCE, None
    while time.monotonic() < deadline:
        await archiver.archive(store, folder)
        _, oldest = await vitals.backlog(store)
        if oldest is None or oldest > at:
            break
        await asyncio.sleep(0.2)
    else:
        raise ValueError(
            "they are forgotten in the store and by readers, but another archiver holds the log and has not come to"
            " them yet; run nudge archive when it has ended"
        )
    done = await forget(store, folder)
    return msgspec.structs.replace(done, customers=len(found))


async def forget(store: Store, folder: Path) -> Forgotten:
    """Take out of the archive, the store and its file what tombstones in the archive say is to be forgotten."""
    names = _tombstones(folder)
    compacted = await asyncio.to_thread(compaction.compact, folder)
    keys = await purge(store, await asyncio.to_thread(erasure.tombstones, folder))
    rewritten = await rewrite(store)
    if rewritten:
        await asyncio.to_thread(_remember, folder, names)
    return Forgotten(keys=keys, rows=compacted.rows, files=compacted.rewritten, rewritten=rewritten)


# What is left over in the store: answers beyond the hundred that erasing finds, and reservations that expire.


async def purge(store: Store, known: Iterable[erasure.Tombstones]) -> int:
    """Delete what names an erased customer and has not lapsed yet; return how many entries."""
    until = next((t.until for t in known if t.key == store.erasure_key), {})
    if not until:
        return 0
    gone = 0
    async for key in _keys(store, "decision"):
        customer_id = records.customer_of_decision(key)
        ends = until.get(digest(store.erasure_key, customer_id))
        kept = await store.command("GET", key) if ends is not None else None
        if kept is not None and ends is not None and _decided(kept) <= ends:
            gone += await store.command("DEL", key)
    async for key in _keys(store, "reservations"):
        for member in await store.command("ZRANGE", key, 0, -1):
            customer_id, _ = records.decode_member(member)
            known_here = await store.command("EXISTS", records.customer_key(store.shard(customer_id), customer_id))
            if not known_here and digest(store.erasure_key, customer_id) in until:
                gone += await store.command("ZREM", key, member)
    return gone


async def _keys(store: Store, kind: str) -> AsyncIterator[str]:
    cursor = b"0"
    while True:
        cursor, keys = await store.command("SCAN", cursor, "MATCH", f"{{*}}:{kind}:*", "COUNT", _PAGE)
        for key in keys:
            yield key.decode()
        if cursor == b"0":
            return


class _When(msgspec.Struct, frozen=True):
    at: float


def _decided(kept: bytes) -> float:
    return msgspec.json.decode(kept.partition(b"\n")[2], type=_When).at


async def rewrite(store: Store) -> bool:
    """Have the server write its append-only file anew, from what it holds now; False where it does not let us."""
    try:
        await store.command("BGREWRITEAOF")
        await store.command("SLOWLOG", "RESET")
    except StoreError:
        return False
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        lines = (await store.command("INFO", "persistence")).decode().splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        if info["aof_rewrite_in_progress"] == "0" and info["aof_rewrite_scheduled"] == "0":
            return bool(info["aof_last_bgrewrite_status"] == "ok")
        await asyncio.sleep(0.02)
    return False


# Which tombstones were seen to.


def _tombstones(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in (folder / "erased").glob("*/*.parquet"))


def _marker(folder: Path) -> Path:
    return folder / "erased" / "compacted"


def _due(folder: Path, *, every: float) -> bool:
    try:
        seen, last = _marker(folder).read_text().splitlines(), _marker(folder).stat().st_mtime
    except FileNotFoundError:
        seen, last = [], 0.0
    return bool(set(_tombstones(folder)) - set(seen)) and time.time() - last >= every


def _remember(folder: Path, names: Sequence[str]) -> None:
    _marker(folder).unlink(missing_ok=True)  # a text that is there is never written over
    if names:
        parquet.write_text(_marker(folder), "\n".join(names))
