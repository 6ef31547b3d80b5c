"""What a key may do, what it is charged, and what a page elsewhere may not: with two programs and several keys."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving import auth, embedded, records
from serving.auth import ANYBODY, Gate
from serving.problems import ProblemError
from serving.settings import Settings
from serving.store import Store
from tests.serving.running import Client, Reply, Running, running, write_program

RATE = 50.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    write_program(home)
    write_program(home, "other", change=("tenure", "visits"))
    with embedded.serve(home / "store") as server:
        settings = Settings(home=home, redis_url=server.url, rate=RATE)
        for name, programs in (("all", ()), ("some", ("other",)), ("busy", ())):
            token = auth.create(settings.keys_file, name, scopes=("decide", "report", "admin"), programs=programs)
            (home / name).write_text(token)
        with running(settings) as service:
            yield service


@pytest.fixture
async def client(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


async def ask(client: Client, service: Running, key: str, call: str, body: Any = None) -> Reply:
    method, path = call.split()
    token = (service.service.settings.home / key).read_text()
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return await client.ask(method, path, data=data, headers=headers)


async def test_a_key_for_some_programs_leaves_what_others_know_as_it_is(client: Client, service: Running) -> None:
    both = {"plan": "gold", "tenure": 3.0, "visits": 9.0}
    assert (await ask(client, service, "all", "PUT /v1/customers/cc", {"attributes": both})).status == 200
    seen = await ask(client, service, "some", "GET /v1/customers/cc?program=other")
    assert seen.json["attributes"] == {"plan": "gold", "visits": 9.0}
    put = await ask(client, service, "some", "PUT /v1/customers/cc", {"attributes": {"visits": 1.0}})
    assert put.json["attributes"] == {"visits": 1.0}
    known = await ask(client, service, "all", "GET /v1/customers/cc?program=small")
    assert known.json["attributes"] == {"tenure": 3.0, "visits": 1.0}
    refused = await ask(client, service, "some", "DELETE /v1/customers/cc")
    assert (refused.status, "every program" in refused.json["detail"]) == (403, True)
    assert (await ask(client, service, "all", "DELETE /v1/customers/cc")).status == 204


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/outcomes", [{}] * 40), ("/v1/decide", {"program": 1}), ("/v1/decide/batch", {"requests": 1})],
)
async def test_what_is_refused_is_charged_like_what_is_taken(
    client: Client, service: Running, path: str, body: Any
) -> None:
    replies = [await ask(client, service, "busy", f"POST {path}", body) for _ in range(300)]
    refused = [r for r in replies if r.status == 429]
    assert refused
    assert all(int(r.headers["Retry-After"]) >= 1 for r in refused)


async def test_a_request_that_fails_is_a_problem_that_the_log_has(
    client: Client, service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    settings = service.service.settings
    assert settings.redis_url
    async with await Store.open(settings.redis_url) as store:
        await store.command("HSET", records.customer_key(0, "broken"), "rev", 1, "profile", b"\\x00secret")
    reply = await ask(client, service, "all", "GET /v1/customers/broken?program=small")
    assert (reply.status, reply.json["type"]) == (500, "urn:nudge:problem:internal-error")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    (failed,) = [r for r in caplog.records if r.message == "a request failed"]
    assert reply.json["instance"].endswith(str(vars(failed)["request_id"]))


async def test_bodies_of_every_call_are_limited_and_said_to_be_json(client: Client, service: Running) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    token = (service.service.settings.home / "all").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    reply = await client.ask("PUT", "/v1/customers/large", data=endless(), headers=headers)
    assert (reply.status, reply.json["type"]) == (413, "urn:nudge:problem:too-large")
    plain = {**headers, "Content-Type": "text/plain"}
    for method, path in (("PUT", "/v1/customers/x"), ("POST", "/v1/programs/small/pause")):
        reply = await client.ask(method, path, data=b"{}", headers=plain)
        assert (reply.status, reply.json["type"]) == (415, "urn:nudge:problem:unsupported-media-type")
    assert (await client.ask("POST", "/v1/decide/", data=b"{}", headers=headers)).status == 404


@pytest.mark.parametrize(
    "origin", [b"http://evil.example", b"null", b"http://[", b"http://127.0.0.1.evil.example:8000"]
)
def test_without_keys_a_page_elsewhere_may_not_send_anything(tmp_path: Path, origin: bytes) -> None:
    gate = Gate(tmp_path / "none.json", rate=1.0)
    asked: dict[str, Any] = {"client": ("127.0.0.1", 1), "headers": [(b"host", b"127.0.0.1:8000")]}
    assert gate.admit(asked, "admin") is ANYBODY
    here = {**asked, "headers": [*asked["headers"], (b"origin", b"http://localhost:3000")]}
    assert gate.admit(here, "admin") is ANYBODY
    with pytest.raises(ProblemError) as refused:
        gate.admit({**asked, "headers": [*asked["headers"], (b"origin", origin)]}, "admin")
    assert refused.value.status == 401
