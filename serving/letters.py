"""What does an operator ask about customers in files and messages on their way? The commands, on the store in use."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from optimizer.program import Program
from serving import crm, programs, settings, webhooks
from serving.crm import Exported, Imported, Told
from serving.processes import store_url
from serving.settings import Settings
from serving.store import Store, StoreError
from serving.webhooks import Waiting

T = TypeVar("T")


class Done(msgspec.Struct, frozen=True):
    """How many messages something was done to."""

    messages: int


def listed(target: str) -> list[Waiting]:
    """Return messages that have not arrived."""
    given = settings.load()
    return _ask(given, lambda store: webhooks.listed(store, _targets(given, target)))


def replayed(ids: Sequence[str], target: str) -> Done:
    """Send dead messages again."""
    given = settings.load()
    names, now = _targets(given, target), time.time()
    return Done(_ask(given, lambda store: webhooks.replay(store, names, ids=ids, now=now)))


def dropped(ids: Sequence[str], target: str) -> Done:
    """Forget dead messages."""
    given = settings.load()
    return Done(_ask(given, lambda store: webhooks.drop(store, _targets(given, target), ids=ids)))


def exported(program: Program, to: Path, *, progress: Told) -> Exported:
    """Write every customer of a program to a file."""
    now = time.time()
    return _ask(settings.load(), lambda store: crm.export(store, program, to, at=now, progress=progress))


def imported(
    file: Path, columns: Sequence[str], *, resubscribe: bool, rejects: Path | None, progress: Told
) -> Imported:
    """Take customers from a file; attributes are those that any served program declares."""
    given = settings.load()
    declared = [a for source in programs.load(given.programs).values() for a in source.program.attributes]
    mapping = crm.mapped(columns)
    return _ask(
        given,
        lambda store: crm.import_(
            store, file, declared, mapping=mapping, resubscribe=resubscribe, rejects=rejects, progress=progress
        ),
    )


def _targets(given: Settings, name: str) -> list[str]:
    names = [t.name for t in given.targets]
    if not names:
        raise ValueError("no webhook target is set: set NUDGE_WEBHOOK_URL, or write webhooks.toml in NUDGE_HOME")
    if name and name not in names:
        raise ValueError(f"--target {name}: there is no such target; use one of {', '.join(names)}")
    return [name] if name else names


def _ask(given: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """Return what the store in use answers."""

    async def asked(url: str) -> T:
        async with await Store.open(url) as store:
            return await work(store)

    with store_url(given) as url:
        try:
            return asyncio.run(asked(url))
        except StoreError as error:
            raise ConnectionError(str(error)) from error
