"""A customer who is erased is nowhere any more: not in the store, its file, the archive or what the service said."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest

from serving import embedded, erasing
from serving.expiry import expire
from serving.settings import Settings
from serving.store import Store
from tests.e2e.running import environment
from tests.serving.running import Client, Running, running, write_program
from tests.small_program import OPEN
from training import events as parquet

GONE, STAYS = "customer-that-goes-4711", "customer-that-stays-0815"

REPORTING = OPEN + "reports_shown = true\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    write_program(tmp_path, extra=REPORTING)
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(
            home=tmp_path,
            redis_url=server.url,
            archive=tmp_path / "archive",
            decide_seconds=60.0,  # a batch of one customer is decided one by one
            store_seconds=30.0,
        )
        with running(settings) as service:
            yield service


@pytest.fixture
async def client(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


@pytest.fixture
async def store(service: Running) -> AsyncIterator[Store]:
    assert service.service.settings.redis_url
    async with await Store.open(service.service.settings.redis_url) as store:
        yield store


async def lived(client: Client, customer_id: str, *, decisions: int = 3) -> None:
    """Have a customer leave traces of every kind: profile, answers, pending nudge, outcomes."""
    await client.ask("PUT", f"/v1/customers/{customer_id}", {"consent": True, "attributes": {"plan": "gold"}})
    row = {"program": "small", "customer_id": customer_id, "only": {"timing": ["now"]}}
    reply = await client.ask("POST", "/v1/decide/batch", {"requests": [row] * decisions})
    assert not any(d["degraded"] for d in reply.json["results"])
    for i in range(3):
        body = {"outcome_id": f"o{i}", "program": "small", "customer_id": customer_id, "event": "step"}
        await client.ask("POST", "/v1/outcomes", body)
    for _ in range(100):
        if (await client.decide(customer_id, only={"timing": ["evening"]}))["action"]:
            return


def naming(home: Path, customer_id: str) -> list[str]:
    """The files under a folder that name a customer, Parquet read as well as searched."""
    found = []
    for file in (f for f in home.rglob("*") if f.is_file()):
        rows: list[Any] = pq.read_table(file, partitioning=None).to_pylist() if file.suffix == ".parquet" else []
        if customer_id.encode() in file.read_bytes() or any(customer_id in map(str, r.values()) for r in rows):
            found.append(str(file.relative_to(home)))
    return found


async def test_a_customer_is_erased_everywhere_and_nobody_else_is(
    client: Client, store: Store, service: Running
) -> None:
    home = service.service.settings.home
    await lived(client, GONE, decisions=60)
    await lived(client, STAYS, decisions=120)
    await erasing.archive(store, home / "archive")
    await lived(client, GONE, decisions=60)  # more than a history keeps; half of it is archived, half of it is not
    assert any("archive" in f for f in naming(home, GONE))
    assert any("store" in f for f in naming(home, GONE))
    assert (await client.ask("DELETE", f"/v1/customers/{GONE}")).status == 204
    assert (await client.ask("GET", f"/v1/customers/{GONE}?program=small")).status == 404
    before = parquet.read(home / "archive", "small")
    await erasing.archive(store, home / "archive")
    await _until_deleted(home)
    assert naming(home, GONE) == []
    after = parquet.read(home / "archive", "small")
    assert set(after["customer_id"].to_pylist()) == {STAYS}
    kept = [c for c in before["customer_id"].to_pylist() if c == STAYS]
    assert after["customer_id"].to_pylist().count(STAYS) == len(kept)
    assert (await client.ask("GET", f"/v1/customers/{STAYS}?program=small")).json["milestones"][0]["done"] == 3
    answers = await client.ask("GET", f"/v1/customers/{STAYS}/decisions?program=small&limit=100")
    assert len(answers.json["decisions"]) == 100


async def _until_deleted(home: Path) -> None:
    """Let the server remove the file that it has replaced: it does so in the background."""
    for _ in range(2_000):
        if len(list((home / "store").rglob("*.aof"))) <= 2:
            return
        await asyncio.sleep(0.005)


async def test_whoever_comes_back_is_new_and_keeps_what_is_new(client: Client, store: Store, service: Running) -> None:
    home = service.service.settings.home
    await lived(client, GONE)
    await client.ask("DELETE", f"/v1/customers/{GONE}")
    body = {"program": "small", "customer_id": GONE, "decision_id": "fresh"}
    fresh = await client.ask("POST", "/v1/decide", body)
    await erasing.archive(store, home / "archive")
    assert parquet.read(home / "archive", "small")["id"].to_pylist() == ["fresh"]
    assert (await client.ask("POST", "/v1/decide", body)).raw == fresh.raw
    assert await erasing.purge(store, []) == 0


async def test_whoever_has_left_the_store_is_erased_from_the_archive(
    client: Client, store: Store, service: Running
) -> None:
    archive = service.service.settings.archive
    for name in (GONE, STAYS):
        await lived(client, name)
    await erasing.archive(store, archive)
    assert await expire(store, after=-60.0) == 2
    reply = await client.ask("DELETE", f"/v1/customers/{GONE}")
    assert (reply.status, "forgotten all the same" in reply.json["detail"]) == (404, True)
    await erasing.archive(store, archive)
    assert naming(archive, GONE) == []
    assert naming(archive, STAYS)


async def test_compaction_waits_for_its_hour_and_is_not_forgotten_by_a_crash(
    client: Client, store: Store, service: Running
) -> None:
    archive = service.service.settings.archive
    for name in (GONE, STAYS):
        await lived(client, name)
    await erasing.archive(store, archive)
    await client.ask("DELETE", f"/v1/customers/{GONE}")
    await erasing.archive(store, archive)
    await client.ask("DELETE", f"/v1/customers/{STAYS}")
    await erasing.archive(store, archive, every=3_600.0)
    assert naming(archive, STAYS), "rewritten at most once an hour"
    assert parquet.read(archive, "small").num_rows == 0, "and left out by readers at once"
    await erasing.archive(store, archive)  # as the next archiver does, whoever was killed before
    assert naming(archive, STAYS) == []


def test_nudge_erase_forgets_from_the_command_line(tmp_path: Path) -> None:
    async def fill(url: str) -> None:
        async with await Store.open(url) as store:
            for name in (GONE, STAYS):
                await store.put(name, attributes={"plan": "gold"})

    with embedded.serve(tmp_path / "var" / "store") as server:
        asyncio.run(fill(server.url))
        command = [sys.executable, "-m", "serving.cli", "erase", GONE, "nobody", "--json"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=True
        )
        said = json.loads(done.stdout)
        assert (said["customers"], said["rewritten"]) == (1, True)
        asyncio.run(_until_deleted(tmp_path / "var"))
        assert naming(tmp_path, GONE) == []
        assert naming(tmp_path, STAYS)
