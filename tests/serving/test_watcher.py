"""A missed step asks for a decision by itself: once, about those who may be nudged, whoever is killed in between."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from optimizer.engine import HOLDOUT, Optimizer
from optimizer.program import DAY, Program
from serving import hooks, leading, records, watcher
from serving.embedded import Server
from serving.store import Store
from serving.targets import Target
from tests.contracts import steps
from tests.contracts.steps import decide, outcome
from tests.small_program import NOON, OPEN, TOML

COMEBACK = ('kind = "monetary"\n', 'kind = "monetary"\ncomeback_after = "5d"\n')
YEAR = """[[milestones]]
name = "month"
title = "A month"
reward = "cake"
after = "30d"
requests_decision = true

[[rules]]"""
PROGRAM = Program.parse(TOML.replace(*COMEBACK) + OPEN, source="small.toml")
NIGHTS = replace(PROGRAM.guardrails, quiet_from=type(PROGRAM.guardrails.quiet_from)(18 * 60),
                 quiet_until=type(PROGRAM.guardrails.quiet_from)(10 * 60))  # fmt: skip
CRM = Target(
    "crm", "https://crm.example/", ("whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0",), ("decision.requested",)
)


@pytest.fixture
def store(store: Store) -> Store:
    """An empty store of two shards, which tells a CRM."""
    store.targets = [CRM]
    return store


async def active(store: Store, *names: str, program: Program = PROGRAM, at: float = NOON) -> None:
    """Let customers take three steps."""
    await steps.active(store, *names, program=program, at=at)


async def asked(store: Store) -> list[Any]:
    """Return what the CRM will be told, in order of time."""
    kept = [await store.command("HVALS", hooks.messages_key(shard, "crm")) for shard in range(store.shards)]
    bodies = [msgspec.json.decode(hooks.decode(data).body) for some in kept for data in some]
    return sorted(bodies, key=lambda b: b["timestamp"])


async def look(store: Store, at: float, program: Program = PROGRAM) -> int:
    """Look at all who are due at a moment; return about how many a decision was asked for."""
    total = 0
    while (seen := await watcher.step(store, program, who="me", now=at)) and seen.looked:
        total += seen.asked
    return total


async def test_who_stays_away_is_asked_about_once_and_again_after_the_next_time(store: Store) -> None:
    await active(store, "ada", "bob")
    assert await look(store, NOON + 5 * DAY - 1) == 0
    assert await look(store, NOON + 5 * DAY) == 2
    assert await look(store, NOON + 6 * DAY) == 0, "once for each quiet time"
    first = (await asked(store))[0]
    assert first["type"] == "decision.requested"
    assert (first["data"]["reason"], first["data"]["due_at"]) == ("comeback", "2026-01-06T12:00:00Z")
    assert await store.report(PROGRAM, [outcome("ada", "back", at=NOON + 6 * DAY)]) == ["accepted"]
    assert await look(store, NOON + 11 * DAY) == 1
    assert [m["data"]["customer_id"] for m in await asked(store)].count("ada") == 2


async def test_a_step_in_time_is_no_miss(store: Store) -> None:
    await active(store, "ada")
    await store.report(PROGRAM, [outcome("ada", "next", at=NOON + 4 * DAY)])
    assert await look(store, NOON + 5 * DAY) == 0
    assert await look(store, NOON + 9 * DAY) == 1


async def test_a_step_that_is_taken_back_was_none(store: Store) -> None:
    await active(store, "ada")
    later = outcome("ada", "next", at=NOON + 4 * DAY)
    await store.report(PROGRAM, [later, replace(later, revision=1, revoked=True)])
    assert await look(store, NOON + 5 * DAY) == 1


async def test_nobody_is_asked_about_who_said_no_or_is_held_out(store: Store) -> None:
    await active(store, "ada", "bob")
    await store.put("ada", consent=False)
    assert await look(store, NOON + 5 * DAY) == 1
    held = replace(PROGRAM, experiment=replace(PROGRAM.experiment, holdout=0.5))
    names = [f"c{i}" for i in range(20)]
    await active(store, *names, program=held)
    out = {n for n in names if Optimizer(held, {}, store.salt).arm(n) == HOLDOUT}
    assert 0 < len(out) < 20
    assert await look(store, NOON + 5 * DAY, held) == 20 - len(out)
    assert not out & {m["data"]["customer_id"] for m in await asked(store)}


async def test_in_the_quiet_hours_it_waits(store: Store) -> None:
    nights = replace(PROGRAM, guardrails=NIGHTS, timings=PROGRAM.timings[:1])
    await active(store, "ada", program=nights, at=NOON + DAY / 3)  # at eight in the evening
    due = NOON + DAY / 3 + 5 * DAY
    assert await look(store, due, nights) == 0
    assert await look(store, due + DAY / 4, nights) == 0, "two in the morning"
    assert await look(store, due + 15 * 3600.0, nights) == 1, "eleven in the morning"


async def test_what_was_missed_long_ago_is_let_be(store: Store) -> None:
    await active(store, "ada")
    assert await look(store, NOON + 5 * DAY + watcher.STALE + 1) == 0
    assert await look(store, NOON + 5 * DAY) == 0


async def test_without_a_comeback_it_is_the_lapse_that_asks(store: Store) -> None:
    plain = Program.parse(TOML + OPEN, source="small.toml")
    await active(store, "ada", program=plain)
    assert await look(store, NOON + 6 * DAY, plain) == 0
    assert await look(store, NOON + 7 * DAY + 1, plain) == 1


async def test_an_anniversary_asks_once_also_of_who_was_only_decided_for(store: Store) -> None:
    yearly = Program.parse(TOML.replace("[[rules]]", YEAR, 1) + OPEN, source="small.toml")
    await decide(store, "ada", program=yearly)
    assert await look(store, NOON + 29 * DAY, yearly) == 0
    assert await look(store, NOON + 30 * DAY, yearly) == 1
    assert await look(store, NOON + 31 * DAY, yearly) == 0
    assert (await asked(store))[0]["data"]["reason"] == "milestone"
    found = await store.get(yearly, "ada", at=NOON + 30 * DAY)
    assert found is not None
    assert found.customer.days == 30


async def test_an_erased_customer_is_not_looked_at_and_not_known(store: Store) -> None:
    await active(store, "ada")
    await store.erase("ada", at=NOON + 1)
    keys = [records.watch_key(shard, PROGRAM.name) for shard in range(2)]
    assert await store.commands([("ZCARD", key) for key in keys]) == [0, 0]
    await store.command("ZADD", keys[store.shard("ada")], NOON, "ada")  # as if it came back in between
    assert await look(store, NOON + 5 * DAY) == 0
    assert await store.commands([("ZCARD", key) for key in keys]) == [0, 0]
    assert await store.get(PROGRAM, "ada", at=NOON) is None


async def test_one_leads_and_a_pass_is_bounded(store: Store) -> None:
    await active(store, *(f"c{i}" for i in range(100)))
    seen = await watcher.step(store, PROGRAM, who="a", now=NOON + 5 * DAY)
    assert seen == watcher.Watch(64, 64)
    assert await watcher.step(store, PROGRAM, who="b", now=NOON + 5 * DAY) is None
    await store.command("DEL", leading.key("watcher", PROGRAM))
    assert await watcher.step(store, PROGRAM, who="b", now=NOON + 5 * DAY) == watcher.Watch(36, 36)


KILLED = """
import asyncio, sys
from serving import watcher
from serving.store import Store
from tests.serving.test_watcher import CRM, DAY, NOON, PROGRAM

async def work():
    async with await Store.open(sys.argv[1]) as store:
        store.targets = [CRM]
        while True:
            await watcher.step(store, PROGRAM, who="killed", now=NOON + 5 * DAY)
            print("step", flush=True)

asyncio.run(work())
"""


async def test_whoever_is_killed_in_between_each_is_asked_about_once(store: Store, server: Server) -> None:
    await active(store, *(f"c{i}" for i in range(200)))
    script = textwrap.dedent(KILLED)
    root = Path(__file__).parents[2]
    child = subprocess.Popen(  # noqa: ASYNC220  (a moment, in a test)
        [sys.executable, "-c", script, server.url], stdout=subprocess.PIPE, cwd=root
    )
    assert child.stdout is not None
    await asyncio.to_thread(child.stdout.readline)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    before = len(await asked(store))
    assert before >= 64
    await store.command("DEL", records.global_key("watcher", PROGRAM.name))  # as ten seconds do
    assert await look(store, NOON + 5 * DAY) == 200 - before
    names = [m["data"]["customer_id"] for m in await asked(store)]
    assert sorted(names) == sorted(f"c{i}" for i in range(200))
