"""How is everything kept twice? One folder with the store, the archive, the keys and the registry, as of one moment.

While a backup is made, the service goes on: the store's part is a snapshot that the server itself takes of one moment,
and the leases of all archivers are held meanwhile, so that no event is on its way from the store to the archive: each
is in one of the two. Every file has its SHA-256 in the manifest, which is written last; a folder without one is not a
backup. Whom you erase after a backup is in it still: erase them again after restoring it.
"""

import asyncio
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from serving import stream
from serving.settings import Settings
from serving.store import Store

FORMAT = 1
MANIFEST, SNAPSHOT = "manifest.json", "store.rdb"

_LEASE, _PATIENCE = 15.0, 120.0
"""Seconds of a lease, which the snapshot holds too, so it is renewed; and that we wait for archivers at work."""

_CHUNK = 1 << 20
_DATABASE = "mlflow.db"
_LEFT_OUT = {"store", "archive", "run"}
"""Folders of the home that are not copied as they are: the first two have their own way, the last is of no use."""


class Part(msgspec.Struct, frozen=True):
    """A file of a backup."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds."""

    format: int
    made_at: str
    files: dict[str, Part]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What was backed up, or restored."""

    folder: str
    files: int
    bytes: int
    made_at: str


async def back_up(settings: Settings, target: Path, *, url: str, registry: Path, now: float) -> Kept:
    """Write a backup into a new folder.

    Args:
        settings: where everything is.
        target: the folder to make; ValueError if it exists.
        url: the store.
        registry: MLflow's folder; left out where there is no database in it.
        now: seconds since the epoch.
    """
    draft = _draft(target)
    try:
        async with await Store.open(url, limit=_PATIENCE) as store, _no_archiver(store):
            await _snapshot(store, draft / SNAPSHOT)
            await asyncio.to_thread(_copy_tree, settings.archive, draft / "archive")
        await asyncio.to_thread(_copy_home, settings.home, draft / "home")
        await asyncio.to_thread(_copy_registry, registry, draft / "registry")
        manifest = await asyncio.to_thread(_sealed, draft, made_at=datetime.fromtimestamp(now, UTC).isoformat())
        draft.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return _kept(target, manifest)


def restore(source: Path, settings: Settings, *, registry: Path) -> Kept:
    """Put a backup into an empty home; ValueError if it is damaged, or if there is anything that it would replace.

    The store comes back as the embedded one. For a store of your own, give `store.rdb` to its server.
    """
    manifest = verified(source)
    home = settings.home
    places = {"archive": settings.archive, "home": home, "registry": registry}
    living = [home / "store", settings.archive, *(home / n for n in ("keys.json", "secret", "programs", "policies"))]
    living.append(registry / _DATABASE)
    if there := next((p for p in living if p.exists()), None):
        raise ValueError(
            f"{there} exists: restore replaces nothing; move it away, or set NUDGE_HOME to an empty folder"
        )
    for name, place in places.items():
        if (source / name).is_dir():
            _copy_tree(source / name, place)
    _give(source / SNAPSHOT, home / "store")
    return _kept(home, manifest)


def verified(source: Path) -> Manifest:
    """Return a backup's manifest once every file is found to be as it was written; ValueError names one that is not."""
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ValueError(
            f"{source}: there is no {MANIFEST}, so this is no backup, or one that was not finished"
        ) from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{source / MANIFEST}: is damaged ({error}); use another backup") from None
    if manifest.format != FORMAT:
        raise ValueError(
            f"{source}: a backup of format {manifest.format}, expected {FORMAT}; use the release that made it"
        )
    there = {str(p.relative_to(source)) for p in _files(source)} - {MANIFEST}
    if strange := sorted(there ^ manifest.files.keys()):
        raise ValueError(f"{source}: {strange[0]!r} is missing, or was added later; use another backup")
    for name, part in manifest.files.items():
        if _part(source / name) != part:
            raise ValueError(f"{source / name}: is not as it was written; use another backup")
    return manifest


def _draft(target: Path) -> Path:
    """Make the folder that becomes the target once it is whole."""
    if target.exists():
        raise ValueError(f"{target} exists already: name a folder that does not, such as {target}-2")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.mkdir(parents=True, mode=0o700)
    return draft


# The store.


@asynccontextmanager
async def _no_archiver(store: Store) -> AsyncIterator[None]:
    """Hold the lease of every shard: what is in the log stays there, and the archive as it is."""
    held: list[stream.Lease] = []
    deadline = time.monotonic() + _PATIENCE
    try:
        for shard in range(store.shards):
            while (lease := await stream.take(store, shard, seconds=_LEASE)) is None:
                if time.monotonic() > deadline:
                    raise ValueError(f"an archiver holds shard {shard} for two minutes already: stop it, and try again")
                await asyncio.sleep(0.2)
            held.append(lease)
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(_renewed(store, held))
            yield
            renewing.cancel()
    finally:
        for lease in held:
            await stream.leave(store, lease)


async def _renewed(store: Store, leases: list[stream.Lease]) -> None:
    while True:
        await asyncio.sleep(_LEASE / 3)
        for lease in leases:
            await stream.hold(store, lease)


async def _snapshot(store: Store, file: Path) -> None:
    """Write the server's own snapshot of one moment, as a replica would get it."""
    with file.open("xb") as out:
        async for part in store.snapshot():
            out.write(part)
        out.flush()
        os.fsync(out.fileno())


def _give(snapshot: Path, folder: Path) -> None:
    """Make a folder from which the embedded server starts with a snapshot: it is the base of its append-only file."""
    log = folder / "appendonlydir"
    folder.mkdir(mode=0o700, parents=True)
    log.mkdir(mode=0o700)
    _copy(snapshot, log / "appendonly.aof.1.base.rdb")
    (log / "appendonly.aof.1.incr.aof").touch()
    (log / "appendonly.aof.manifest").write_text(
        "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n"
    )
    for path in (log, folder):
        _sync(path)


# Files.


def _copy_home(home: Path, target: Path) -> None:
    """Copy what else the home holds: keys, secret, programs, policies, targets of webhooks."""
    for path in sorted(home.iterdir()) if home.is_dir() else ():
        if path.is_dir() and path.name not in _LEFT_OUT and not path.name.startswith("."):
            _copy_tree(path, target / path.name)
        elif path.is_file() and path.suffix not in (".lock", ".new"):
            _copy(path, target / path.name)


def _copy_registry(registry: Path, target: Path) -> None:
    """Copy MLflow's database, by SQLite's own way of doing so while it is written to, and its artifacts."""
    if not (registry / _DATABASE).is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    with (
        closing(sqlite3.connect(f"file:{registry / _DATABASE}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(target / _DATABASE)) as new,
    ):
        old.backup(new)
    _copy_tree(registry / "artifacts", target / "artifacts")


def _copy_tree(source: Path, target: Path) -> None:
    """Copy every file; one that is being written under another name is left out."""
    for path in _files(source):
        relative = path.relative_to(source)
        if not any(part.startswith(".") or part.endswith((".tmp", ".partial")) for part in relative.parts):
            _copy(path, target / relative)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.open("rb") as old, target.open("xb") as new:
        os.fchmod(new.fileno(), source.stat().st_mode & 0o777)
        shutil.copyfileobj(old, new, _CHUNK)
        new.flush()
        os.fsync(new.fileno())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sealed(folder: Path, *, made_at: str) -> Manifest:
    """Write the manifest, last of all."""
    files = {str(p.relative_to(folder)): _part(p) for p in _files(folder)}
    manifest = Manifest(format=FORMAT, made_at=made_at, files=files)
    with (folder / MANIFEST).open("xb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        out.flush()
        os.fsync(out.fileno())
    _sync(folder)
    return manifest


def _part(path: Path) -> Part:
    with path.open("rb") as file:
        return Part(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kept(folder: Path, manifest: Manifest) -> Kept:
    size = sum(part.bytes for part in manifest.files.values())
    return Kept(folder=str(folder), files=len(manifest.files), bytes=size, made_at=manifest.made_at)
