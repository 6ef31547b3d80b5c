"""How does the log become training data? From the store's streams to Parquet, each event exactly once.

The order is what makes it exact: commit a plan (first and last entry), write its files under temporary names, rename
them, and only then advance past the plan and trim. Whoever resumes a plan writes the same files under the same names,
so a crash at any point, or two archivers at once, neither loses nor doubles.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from optimizer.events import Decision, Outcome
from serving import stream
from serving.records import Erased, Event
from serving.store import Store
from serving.stream import Lease, LeaseLostError, Plan
from training import erasure
from training import events as parquet

_LOG = logging.getLogger(__name__)


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What was moved: events by kind, and into how many files."""

    decisions: int = 0
    outcomes: int = 0
    erased: int = 0
    files: int = 0

    def __add__(self, other: "Archived") -> "Archived":
        return Archived(**{f: getattr(self, f) + getattr(other, f) for f in self.__struct_fields__})


class Step(NamedTuple):
    """A step that is done: `taken`, `planned`, `written` (a file) or `advanced` (with what was moved)."""

    name: str
    shard: int
    moved: Archived = Archived()


async def archive(store: Store, folder: Path, *, most: int = 20_000, seconds: float = 60.0) -> Archived:
    """Move all events that are in the log into the archive.

    A shard that another archiver holds is left to that one.

    Args:
        store: where the log is.
        folder: the archive, on a local file system.
        most: entries of one plan, and so rows of one file.
        seconds: for how long an archiver that says nothing keeps its lease.

    Returns:
        What this call has moved.
    """
    moved = Archived()
    async with aclosing(archiving(store, folder, most=most, seconds=seconds)) as steps:
        async for step in steps:
            moved += step.moved
    return moved


async def archiving(store: Store, folder: Path, *, most: int, seconds: float) -> AsyncGenerator[Step, None]:
    """Do what `archive` does, step by step; who stops at one of them leaves the rest to whoever comes next."""
    for shard in range(store.shards):
        lease = await stream.take(store, shard, seconds=seconds)
        if lease is None:
            continue
        yield Step("taken", shard)
        try:
            async for step in _shard(store, folder, lease, most=most):
                yield step
        except LeaseLostError as lost:
            _LOG.warning("left to another archiver", extra={"shard": shard, "reason": str(lost)})
        except Exception:
            await stream.leave(store, lease)
            raise


async def _shard(store: Store, folder: Path, lease: Lease, *, most: int) -> AsyncGenerator[Step, None]:
    """Archive plan after plan, first one that somebody left, until nothing is left."""
    while True:
        plan = await stream.planned(store, lease.shard)
        if plan is not None:
            entries = await stream.of_plan(store, lease.shard, plan)
        elif entries := await stream.fresh(store, lease.shard, most=most):
            plan = Plan(entries[0].id, entries[-1].id, len(entries))
            await stream.commit(store, lease, plan)
        else:
            break
        yield Step("planned", lease.shard)
        events = [entry.event for entry in entries]
        await _keep_words(store, folder, events)
        files = _files(folder, events, name=f"{lease.shard}-{plan.first}-{plan.last}", key=store.erasure_key)
        for path, table in files.items():
            await asyncio.to_thread(parquet.write_file, path, table)
            yield Step("written", lease.shard)
        await stream.advance(store, lease, plan)
        for path in files:
            parquet.sweep(path)
        yield Step("advanced", lease.shard, _moved(events, files=len(files)))
    await stream.leave(store, lease)


def _files(folder: Path, events: Sequence[Event], *, name: str, key: bytes) -> dict[Path, pa.Table]:
    """Return the files that a plan makes: one for each program and day of it, and one of its tombstones."""
    decided: defaultdict[Path, list[Decision]] = defaultdict(list)
    happened: defaultdict[Path, list[Outcome]] = defaultdict(list)
    erased = []
    for event in events:
        if isinstance(event, Erased):
            erased.append((event.digest, event.at))
        elif isinstance(event, Decision):
            decided[parquet.file_of(folder, event.program, at=event.at, name=name)].append(event)
        else:
            happened[parquet.file_of(folder, event.program, at=event.at, name=name)].append(event)
    files = {path: parquet.table(decided[path], happened[path]) for path in sorted({*decided, *happened})}
    if erased:
        files[erasure.file_of(folder, key, name=name)] = erasure.table(erased)
    return files


async def _keep_words(store: Store, folder: Path, events: Iterable[Event]) -> None:
    """Keep what the files cannot be read without: the texts of their programs, the key of their tombstones."""
    if any(isinstance(e, Erased) for e in events):
        parquet.write_text(erasure.key_file(folder, store.erasure_key), store.erasure_key.hex())
    for name, version in sorted({(e.program, e.program_version) for e in events if isinstance(e, Decision)}):
        kept = parquet.version_file(folder, name, version)
        if kept.exists():
            continue
        if (text := (await store.programs(name)).get(version)) is None:
            _LOG.error("the text of a program is missing in the store", extra={"program": name, "version": version})
        else:
            parquet.write_text(kept, text)


def _moved(events: Sequence[Event], *, files: int) -> Archived:
    kinds = Counter(type(event) for event in events)
    return Archived(decisions=kinds[Decision], outcomes=kinds[Outcome], erased=kinds[Erased], files=files)
