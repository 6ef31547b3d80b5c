"""Who has not been seen for long? Such customers leave the store, so that it does not grow for ever.

The archive keeps what it has of them: to forget a customer there too is to erase. Somebody who said no to nudges stays
known for having said no: forgetting that would be asking for trouble.
"""

from collections.abc import AsyncIterator, Sequence

from serving import records
from serving.store import Store

_NO = records.encode(records.Profile(consent=False))
"""All that stays of somebody who said no."""

_PAGE = 200
"""Customers a step: more would keep decisions waiting."""


async def expire(store: Store, *, after: float) -> int:
    """Forget customers without a decision, an outcome or a change for so many seconds; return how many.

    Seconds are of the server's clock, as is when a customer was seen.
    """
    before = float((await store.command("TIME"))[0]) - after
    forgotten = 0
    for shard in range(store.shards):
        async for keys in _idle(store, shard, before=before):
            profiles = await store.commands([("HGET", key, "profile") for key in keys])
            said = [_NO if records.decode_profile(profile).consent is False else b"" for profile in profiles]
            await _let_go(store, shard, [k.decode() for k in keys])
            forgotten += int(await store.run("expire", [k.decode() for k in keys], [before, *said]))
    return forgotten


async def _let_go(store: Store, shard: int, keys: Sequence[str]) -> None:
    """Drop the histories of these customers, and look no more whether they miss a step.

    One who comes back is looked at again from the next step on.
    """
    fields = await store.commands([("HKEYS", key) for key in keys])
    names = [key.removeprefix(records.customer_key(shard, "")) for key in keys]
    dropped: list[tuple[str, ...]] = [
        words
        for name, known in zip(names, fields, strict=True)
        for program in records.programs_of(known)
        for words in (
            ("ZREM", records.watch_key(shard, program), name),
            ("DEL", records.history_key(shard, program, name)),
        )
    ]
    if dropped:
        await store.commands(dropped)


async def _idle(store: Store, shard: int, *, before: float) -> AsyncIterator[list[bytes]]:
    """Yield the keys of customers last seen before a second, some at a time."""
    cursor = b"0"
    while True:
        pattern = records.customer_key(shard, "*")
        cursor, keys = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
        seen = await store.commands([("HGET", key, "seen") for key in keys]) if keys else []
        idle = [key for key, when in zip(keys, seen, strict=True) if when is not None and float(when) < before]
        if idle:
            yield idle
        if cursor == b"0":
            return
