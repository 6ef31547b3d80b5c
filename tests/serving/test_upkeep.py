"""Layouts that are migrated, customers who leave, memory that does not run out, and stores that are refused."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from optimizer.program import DAY
from serving import embedded, pressure, records, stream
from serving.archive import archive
from serving.embedded import Server
from serving.expiry import expire
from serving.metrics import Metrics
from serving.settings import Settings
from serving.store import RefusedError, Store
from serving.vitals import Vitals
from tests.contracts.steps import PROGRAM, active, decide, log, outcome, propose
from tests.e2e.running import environment, nudge
from tests.serving.running import Client, running, until, write_program
from tests.small_program import NOON


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this file."""
    with embedded.serve(tmp_path_factory.mktemp("store")) as server:
        yield server


async def seen(store: Store, name: str) -> float | None:
    """Return when a customer was seen last, by the server's clock."""
    found = await store.command("HGET", records.customer_key(store.shard(name), name), "seen")
    return None if found is None else float(found)


async def long_ago(store: Store, *names: str, days: float = 500.0) -> None:
    """Let customers have been seen last so many days ago."""
    then = float((await store.command("TIME"))[0]) - days * DAY
    for name in names:
        await store.command("HSET", records.customer_key(store.shard(name), name), "seen", int(then))


# Layouts.


async def test_a_store_of_the_older_layout_is_migrated_when_it_is_opened(store: Store, server: Server) -> None:
    names = [f"c{i}" for i in range(1_200)]
    await active(store, *names[:3])
    await decide(store, *names, action="hold", decision_id="d1")
    keys = [records.customer_key(store.shard(name), name) for name in names]
    await store.commands([("HDEL", key, "seen") for key in keys])
    await store.command("HSET", records.global_key("layout"), "version", 1)
    before = await log(store)
    async with await Store.open(server.url) as again:
        assert await store.command("HGET", records.global_key("layout"), "version") == b"%d" % records.LAYOUT
        assert None not in await again.commands([("HGET", key, "seen") for key in keys])
        assert await log(again) == before
        assert await decide(again, "c0", decision_id="d2") == ["committed"]


async def test_two_who_migrate_at_once_do_no_harm(store: Store, server: Server) -> None:
    await decide(store, "ada", action="hold")
    await store.command("HDEL", records.customer_key(store.shard("ada"), "ada"), "seen")
    await store.command("HSET", records.global_key("layout"), "version", 1)
    both = await asyncio.gather(*(Store.open(server.url) for _ in range(2)))
    for one in both:
        await one.close()
    assert await seen(store, "ada") is not None


async def test_a_store_of_a_newer_layout_is_refused(store: Store, server: Server) -> None:
    await store.command("HSET", records.global_key("layout"), "version", records.LAYOUT + 1)
    with pytest.raises(RefusedError, match=f"layout {records.LAYOUT + 1}.*use the release that wrote it"):
        await Store.open(server.url)
    await store.command("HSET", records.global_key("layout"), "version", records.LAYOUT)


# Customers who have not been seen for long.


async def test_only_who_has_not_been_seen_for_long_leaves_the_store(store: Store, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(450)]
    await decide(store, *names, action="badge/warm/now")
    await long_ago(store, *names[:300])
    assert await expire(store, after=400 * DAY) == 300
    assert await store.get(PROGRAM, "c0", at=NOON) is None
    assert await store.get(PROGRAM, "c449", at=NOON) is not None
    assert await expire(store, after=400 * DAY) == 0
    await store.put_program(PROGRAM.name, PROGRAM.version, "text")
    assert (await archive(store, tmp_path)).decisions == 450, "the log keeps what they did"


async def test_whoever_said_no_stays_known_for_that_and_for_nothing_else(store: Store) -> None:
    for name, consent in (("ada", False), ("bob", True)):
        await store.put(name, consent=consent, time_zone="Asia/Tokyo", attributes={"plan": "gold"})
        await decide(store, name, action="hold")
    await long_ago(store, "ada", "bob")
    assert await expire(store, after=400 * DAY) == 2
    found = await store.get(PROGRAM, "ada", at=NOON)
    assert found is not None
    assert (found.customer.consent, found.customer.enrolled_at) == (False, NOON)
    assert (found.customer.attributes, found.customer.time_zone) == ({}, "")
    assert await store.command("KEYS", "*history*") == []
    fields = await store.command("HKEYS", records.customer_key(store.shard("ada"), "ada"))
    assert sorted(fields) == [b"profile", b"rev"]
    assert await store.get(PROGRAM, "bob", at=NOON) is None


async def test_a_decision_is_a_sign_of_life(store: Store) -> None:
    await decide(store, "ada", action="hold", decision_id="d1")
    await long_ago(store, "ada")
    await decide(store, "ada", action="hold", decision_id="d2")
    assert await expire(store, after=400 * DAY) == 0


async def test_a_decision_that_was_read_before_its_customer_left_is_made_again(store: Store) -> None:
    await decide(store, "ada", action="hold", decision_id="d1")
    await decide(store, "ada", action="hold", decision_id="d2")
    rows = await propose(store, "ada", action="hold", decision_id="d3")
    await long_ago(store, "ada")
    assert await expire(store, after=400 * DAY) == 1
    assert [c.status for c in await store.commit(PROGRAM, rows)] == ["stale"]
    assert await decide(store, "ada", action="hold", decision_id="d3") == ["committed"]


# Memory.


@pytest.mark.slow
async def test_outcomes_are_refused_before_memory_runs_out_and_taken_again_once_archived(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        async with await Store.open(server.url) as store:
            info = (await store.command("INFO", "memory")).decode()
            used = int(info.partition("used_memory:")[2].split()[0])
            await store.command("CONFIG", "SET", "maxmemory", used + 24_000_000)  # a tenth: half a second of reports
            given = Settings(home=tmp_path, redis_url=server.url)
            with running(given) as service:
                async with aiohttp.ClientSession(service.url) as session:
                    client = Client(session)
                    await client.decide("ada")
                    accepted = await _until_refused(client)
                    held = await client.decide("bob")
                    assert (held["degraded"], held["action"]) == (True, None)
                    assert await _refused_by_server(store) == 0, "the store itself had to refuse"
                    kept = {o.outcome_id for o in await log(store) if hasattr(o, "outcome_id")}
                    assert accepted <= kept
                    await archive(store, tmp_path / "archive")
                    until(lambda: not service.service.pressure.full)
                    assert (await client.decide("bob"))["degraded"] is False
                    assert await stream.backlog(store) == 1


@pytest.mark.slow
async def test_a_store_that_is_full_before_anybody_looked_says_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "EVERY", 60.0)
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        async with await Store.open(server.url) as store:
            with running(Settings(home=tmp_path, redis_url=server.url)) as service:
                async with aiohttp.ClientSession(service.url) as session:
                    client = Client(session)
                    await client.decide("ada")
                    _, most = await store.command("CONFIG", "GET", "maxmemory")
                    await store.command("CONFIG", "SET", "maxmemory", 1_000_000)
                    assert (await client.decide("bob"))["degraded"] is True
                    assert await _until_refused(client) == set()
                    assert await _refused_by_server(store) > 0
                    ready = await client.ask("GET", "/readyz")
                    assert (ready.status, ready.json["parts"]["memory"]["ok"]) == (503, False)
                    assert "nudge archive" in ready.json["parts"]["memory"]["detail"]
                    assert await stream.backlog(store) == 1
                    await store.command("CONFIG", "SET", "maxmemory", int(most))
                    assert (await client.decide("bob"))["degraded"] is True, "nobody has looked again"
                    await service.service.pressure.look(store)
                    assert (await client.decide("bob"))["degraded"] is False


async def _until_refused(client: Client) -> set[str]:
    """Report until it is refused; return what was accepted."""
    accepted: set[str] = set()
    for turn in range(2_000):
        names = [f"o{turn}-{i}".ljust(128, "x") for i in range(50)]
        body = [{"outcome_id": n, "program": "small", "customer_id": "ada", "event": "step"} for n in names]
        reply = await client.ask("POST", "/v1/outcomes", body)
        if reply.status == 503:
            assert reply.headers["Retry-After"] == "5"
            assert "nudge archive" in reply.json["detail"]
            return accepted
        assert reply.status == 202, reply.raw
        accepted |= set(names)
    raise AssertionError("it was never refused")


async def _refused_by_server(store: Store) -> int:
    info = (await store.command("INFO", "errorstats")).decode()
    return int(info.partition("errorstat_OOM:count=")[2].split()[0]) if "errorstat_OOM" in info else 0


async def test_the_embedded_server_leaves_memory_to_others(server: Server) -> None:
    async with await Store.open(server.url) as store:
        (_, most) = await store.command("CONFIG", "GET", "maxmemory")
    assert 0 < int(most) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


async def test_the_embedded_server_does_not_rewrite_its_log_every_few_seconds(server: Server) -> None:
    async with await Store.open(server.url) as store:
        info = (await store.command("INFO", "persistence")).decode()
        (_, least) = await store.command("CONFIG", "GET", "auto-aof-rewrite-min-size")
    assert "aof_rewrites:0" in info
    assert int(least) >= 100_000 * 5_000, "as much as 100,000 decisions write"


async def test_a_share_of_outcomes_that_join_none_is_known(store: Store, tmp_path: Path) -> None:
    metrics = Metrics()
    looking = Vitals(metrics, home=tmp_path, clock=lambda: NOON)
    looking.sample(PROGRAM, [outcome("nobody", "o")])
    await looking.look(store, [PROGRAM])
    text = metrics.text().decode()
    assert 'nudge_outcome_joins_total{joined="no",program="small"} 1.0' in text
    assert 'nudge_outcome_joins_total{joined="yes",program="small"} 0.0' in text


# Starting.


@pytest.mark.slow
def test_a_store_that_must_not_be_used_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    with embedded.serve(tmp_path / "store") as server:
        asyncio.run(_switch_off(server.url))
        words = [sys.executable, "-m", "serving.cli", "serve", "--no-follow", "--port", "0"]
        given = {**environment(tmp_path), "REDIS_URL": server.url}
        done = subprocess.run(words, env=given, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "CONFIG SET appendonly yes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_embedded_store_that_does_not_start_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "store" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    said = nudge("serve", "--no-follow", "--port", "0", home=tmp_path, code=2)
    assert "no embedded server" in said
    assert "Traceback" not in said


async def _switch_off(url: str) -> None:
    async with await Store.open(url) as store:
        await store.command("CONFIG", "SET", "appendonly", "no")
