"""How does a store of an older layout become one of this? Step by step, at start, while others may still use it.

Each step adds what the next layout has and takes nothing away that an older process reads, and can be done twice: two
processes that start at once, or one that was killed half-way, do no harm. The version is raised last.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from serving import records

_PAGE = 500

log = logging.getLogger("nudge.migration")


class Migrated(Protocol):
    """What a migration needs of the store."""

    @property
    def shards(self) -> int: ...

    async def command(self, *words: str | bytes | float) -> Any: ...

    async def commands(self, commands: Sequence[Sequence[str | bytes | int | float]]) -> list[Any]: ...


async def _seen(store: Migrated) -> None:
    """1 to 2: a customer says when it was last seen. Whoever does not yet was seen now, at the latest."""
    now = int((await store.command("TIME"))[0])
    for shard in range(store.shards):
        cursor = b"0"
        while True:
            pattern = records.customer_key(shard, "*")
            cursor, keys = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
            if keys:
                await store.commands([("HSETNX", key, "seen", now) for key in keys])
            if cursor == b"0":
                break


STEPS: Mapping[int, Callable[[Migrated], Awaitable[None]]] = {1: _seen}
"""What leads from each layout to the next."""


async def migrate(store: Migrated, *, version: int) -> None:
    """Bring a store of an older layout to this one."""
    for step in range(version, records.LAYOUT):
        await STEPS[step](store)
        await store.command("HSET", records.global_key("layout"), "version", step + 1)
        log.warning("the store was migrated", extra={"from": step, "to": step + 1})
