"""One process leads, for as long as it says so."""

import asyncio

from serving import leading
from serving.store import Store
from tests.contracts.steps import PROGRAM


async def ask(store: Store, who: str, what: str = "pacer") -> bool:
    return await leading.leads(store, what, PROGRAM, who=who)


async def left(store: Store) -> float:
    """Return the seconds after which the lease lapses."""
    return int(await store.command("PTTL", leading.key("pacer", PROGRAM))) / 1000.0


async def test_one_leads_of_many_who_ask_at_once(store: Store) -> None:
    asked = await asyncio.gather(*(ask(store, f"process {i}") for i in range(20)))
    assert sum(asked) == 1
    assert await ask(store, f"process {asked.index(True)}"), "and goes on leading"
    assert await ask(store, "another", "watcher"), "what it does not lead, another may"


async def test_asking_makes_ones_own_lease_last_and_nobody_elses(store: Store) -> None:
    assert await ask(store, "a")
    await store.command("PEXPIRE", leading.key("pacer", PROGRAM), 5_000)
    assert not await ask(store, "b")
    assert await left(store) <= 5.0
    assert await ask(store, "a")
    assert 5.0 < await left(store) <= leading.HOLD


async def test_a_lease_lapses_and_then_is_anybodys(store: Store) -> None:
    assert await ask(store, "a")
    await store.command("PEXPIRE", leading.key("pacer", PROGRAM), 1)
    await asyncio.sleep(0.02)
    assert await left(store) < 0, "there is none"
    assert await ask(store, "b")
    assert not await ask(store, "a")
