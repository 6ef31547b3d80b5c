"""What customers are called and what is said about them stays out of logs, metrics, problems and traces."""

import asyncio
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import aiohttp

from serving import auth
from tests.e2e.running import PATIENCE, environment, free_port, wait_until
from tests.serving.running import Client, Reply, write_program

NAME = "zoe.quill@private.example"
SECRET = "quill"

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


async def hostile(client: Client) -> list[Reply]:
    """Send what names a customer wherever something can be put, right and wrong."""
    at = urllib.parse.quote(NAME, safe="")
    right = {"program": "small", "customer_id": NAME}
    outcome = {**right, "outcome_id": NAME, "event": "step"}
    sent: list[tuple[str, str, Any]] = [
        ("PUT", f"/v1/customers/{at}", {"consent": True, "attributes": {"plan": "gold"}}),
        ("PUT", f"/v1/customers/{at}", {"time_zone": NAME}),
        ("PUT", f"/v1/customers/{at}", {"attributes": {"plan": 7, "tenure": NAME}}),
        ("POST", "/v1/decide", {**right, "decision_id": NAME}),
        ("POST", "/v1/decide", {**right, "decision_id": f"/{NAME}"}),
        ("POST", "/v1/decide", {**right, "context": {"tenure": NAME}}),
        ("POST", "/v1/decide", {**right, "context": {"plan": [NAME]}}),
        ("POST", "/v1/decide", {**right, "at": NAME}),
        ("POST", "/v1/decide/batch", {"requests": [right, {**right, "customer_id": f"{NAME}\u0000"}]}),
        ("POST", "/v1/outcomes", outcome),
        ("POST", "/v1/outcomes", {**outcome, "customer_id": f"not-{NAME}"}),
        ("POST", "/v1/outcomes", [{**outcome, "value": NAME}, {**outcome, "revision": NAME}]),
        ("GET", f"/v1/decisions/{at}?program=small&customer_id={at}x", None),
        ("GET", f"/v1/customers/{at}-nobody?program=small", None),
        ("POST", f"/v1/decisions/{at}x/hand-off", {"program": "small", "customer_id": NAME}),
        ("GET", f"/v1/{at}", None),
        ("TRACE", f"/v1/customers/{at}", None),
        ("DELETE", f"/v1/customers/{at}-nobody", None),
        ("DELETE", f"/v1/customers/{at}", None),
    ]
    return [await client.ask(method, path, body) for method, path, body in sent]


async def test_hostile_traffic_leaves_no_trace_of_a_customer_outside_the_answers(tmp_path: Path) -> None:
    write_program(tmp_path / "var")
    token = auth.create(tmp_path / "var" / "keys.json", "app", scopes=["decide", "report", "admin"])
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--no-follow", "--port", str(port)]
    given = {**environment(tmp_path), "NUDGE_LOG": "debug"}
    process = _start(command, given, log=tmp_path / "log")
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            client = Client(session, key=token)
            await asyncio.to_thread(wait_until, lambda: _open(port), what="the service")
            replies = await hostile(client)
            scraped = await Client(session).ask("GET", "/metrics")
            ready = await Client(session).ask("GET", "/readyz")
    finally:
        process.terminate()
        process.wait(PATIENCE)
    refused = [r for r in replies if r.status >= 400]
    assert len(refused) >= 12
    assert not any(r.status >= 500 for r in replies)
    for reply in refused:
        assert SECRET not in reply.raw.decode(), reply.raw
    for reply in replies:
        assert HEADERS.items() <= {k.lower(): v for k, v in reply.headers.items()}.items()
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "server" not in {k.lower() for k in reply.headers}
    log = (tmp_path / "log").read_text()
    for said in (log, scraped.raw.decode(), ready.raw.decode()):
        assert SECRET not in said
        assert token.rpartition("_")[2] not in said
    assert log.count('"request_id"') >= len(replies), "every request is in the log by its id"


def _start(command: list[str], given: dict[str, str], *, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=log.parent, env=given, stdout=out, stderr=out)


def _open(port: int) -> bool:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
