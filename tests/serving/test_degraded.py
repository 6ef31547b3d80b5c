"""The service while its store is stopped, paused or not there yet, and after it has come back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving import embedded
from serving.embedded import Server
from serving.service import Service
from serving.settings import Settings
from serving.store import StoreError
from tests.serving.running import PATIENCE, Client, running, write_program

BODY = {"program": "small", "customer_id": "ada", "decision_id": "mine"}
OUTCOME = {"outcome_id": "o1", "program": "small", "customer_id": "ada", "event": "step"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_program(tmp_path)
    return tmp_path


@pytest.fixture
def stopped(home: Path) -> str:
    """The address of a store that is not running."""
    with embedded.serve(home / "store") as server:
        return server.url


def settings(home: Path, url: str, **fields: Any) -> Settings:
    return Settings(home=home, redis_url=url, **{"decide_seconds": 0.5, "store_seconds": 1.0, **fields})


@asynccontextmanager
async def asking(given: Settings) -> AsyncIterator[Client]:
    with running(given) as service:
        async with aiohttp.ClientSession(service.url) as session:
            yield Client(session)


async def until_decided(client: Client, body: dict[str, str]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        reply = await client.ask("POST", "/v1/decide", body)
        assert reply.status == 200
        if not reply.json["degraded"]:
            return reply.json
        await asyncio.sleep(0.02)
    raise AssertionError("the service did not come back")


async def check_degraded(client: Client, body: dict[str, str]) -> None:
    """Every call says honestly that nothing can be kept."""
    held = await client.ask("POST", "/v1/decide", body)
    assert (held.status, held.json["degraded"], held.json["action"]) == (200, True, None)
    assert (held.json["decision_id"], held.json["hold_reason"]) == (body["decision_id"], "degraded")
    for method, path, sent in (
        ("POST", "/v1/outcomes", OUTCOME),
        ("PUT", "/v1/customers/ada", {"consent": True}),
        ("GET", "/v1/customers/ada?program=small", None),
        ("POST", "/v1/decide/dry-run", BODY),
    ):
        reply = await client.ask(method, path, sent)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1"), path
    ready = await client.ask("GET", "/readyz")
    assert (ready.status, ready.json["parts"]["store"]["ok"]) == (503, False)
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_a_stopped_store_means_hold_and_the_same_id_is_decided_afterwards(home: Path) -> None:
    with embedded.serve(home / "store") as server:
        url = server.url
        given = settings(home, url)
        with running(given) as service:
            async with aiohttp.ClientSession(service.url) as session:
                client = Client(session)
                before = await client.ask("POST", "/v1/decide", {**BODY, "decision_id": "before"})
                assert before.json["degraded"] is False
                await asyncio.to_thread(server.stop)
                await check_degraded(client, BODY)
                with embedded.serve(home / "store"):
                    decided = await until_decided(client, BODY)
                    assert decided["decision_id"] == "mine"
                    again = await client.ask("POST", "/v1/decide", {**BODY, "decision_id": "before"})
                    assert again.raw == before.raw
                    history = await client.ask("GET", "/v1/customers/ada/decisions?program=small")
                    assert [d["decision_id"] for d in history.json["decisions"]] == ["mine", "before"]
                    assert (await client.ask("POST", "/v1/outcomes", OUTCOME)).json["accepted"] == 1


@pytest.fixture
def paused(home: Path) -> Iterator[Server]:
    with embedded.serve(home / "store") as server:
        yield server
        if server.pid is not None:
            os.kill(server.pid, signal.SIGCONT)


async def test_a_store_that_hangs_costs_no_more_than_the_time_allowed(
    home: Path, paused: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with asking(settings(home, paused.url, batch=2)) as client:
        await client.decide("ada")
        assert paused.pid is not None
        os.kill(paused.pid, signal.SIGSTOP)
        started = time.monotonic()
        asked = [client.ask("POST", "/v1/decide", {**BODY, "customer_id": f"c{i}"}) for i in range(50)]
        replies = await asyncio.gather(*asked)
        # Those who found the store hanging waited for it, half a second each; of the 25 batches most were spared that.
        waited = [r for r in caplog.records if r.message == "store failed while deciding"]
        assert 1 <= len(waited) <= 8
        assert time.monotonic() - started < 2.0 + 0.5 * len(waited)
        assert all(r.status == 200 and r.json["degraded"] for r in replies)
        refused = await client.ask("POST", "/v1/outcomes", OUTCOME)
        assert refused.status == 503
        os.kill(paused.pid, signal.SIGCONT)
        await until_decided(client, {**BODY, "decision_id": "d0"})


async def test_a_service_that_starts_without_its_store_waits_for_it(home: Path, stopped: str) -> None:
    async with asking(settings(home, stopped)) as client:
        await check_degraded(client, BODY)
        with embedded.serve(home / "store"):
            await until_decided(client, BODY)
            assert (await client.ask("GET", "/readyz")).status == 200


async def test_a_store_that_would_lose_data_is_refused_at_start(home: Path) -> None:
    with embedded.serve(home / "store") as server:
        reader, writer = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))
        writer.write(b"CONFIG SET appendonly no\r\n")
        assert await reader.readline() == b"+OK\r\n"
        service = Service(settings(home, server.url))
        with pytest.raises(StoreError, match="CONFIG SET appendonly yes"):
            await service.open()
        await service.close()
        writer.close()
        await writer.wait_closed()


async def test_more_than_may_wait_are_answered_429(home: Path, paused: Server) -> None:
    async with asking(settings(home, paused.url, queue=20, batch=4)) as client:
        await client.decide("ada")
        requests = [{"program": "small", "customer_id": f"c{i}"} for i in range(21)]
        reply = await client.ask("POST", "/v1/decide/batch", {"requests": requests})
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        reply = await client.ask("POST", "/v1/decide/batch", {"requests": requests[:20]})
        assert reply.status == 200
