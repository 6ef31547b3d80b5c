"""Traces: spans of requests and batches at a collector on loopback, and nothing at all where none is configured."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving import embedded, settings
from serving.metrics import STAGES
from serving.settings import Settings
from tests.serving.running import Client, running, write_program

TRACE = "0af7651916cd43dd8448eb211c80319c"


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Receive spans over OTLP/HTTP; yield the address and the bodies."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def spans_of(bodies: list[bytes]) -> tuple[list[Any], dict[str, str]]:
    """All spans that came, and what is said of the service."""
    spans: list[Any] = []
    resource: dict[str, str] = {}
    for body in bodies:
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource |= {a.key: a.value.string_value for a in part.resource.attributes}
            spans += [span for scope in part.scope_spans for span in scope.spans]
    return spans, resource


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_batch_is_a_span_with_its_stages_linked_to_the_requests_in_it(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server, collector() as (url, bodies):
        given = Settings(
            home=tmp_path, redis_url=server.url, traces=f"{url}/v1/traces", decide_seconds=20.0, store_seconds=20.0
        )
        with running(given) as service:
            async with aiohttp.ClientSession(service.url) as session:
                client = Client(session)
                named = {"x-request-id": "mine-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
                body = {"program": "small", "customer_id": "secret-person", "decision_id": "secret-decision"}
                await client.ask("POST", "/v1/decide", body, headers=named)
                await asyncio.gather(*(client.decide(f"secret-{i}") for i in range(20)))
                await client.ask("GET", "/v1/customers/secret-person?program=small")
                await client.ask("GET", "/v1/customers/secret-nobody?program=small")
    spans, resource = spans_of(bodies)
    assert resource["service.name"] == "nudge"
    requests = {s.span_id: s for s in spans if "nudge.call" in attributes(s)}
    batches = [s for s in spans if s.name == "decide batch"]
    assert sorted(s.name for s in requests.values()) == ["customer", "customer", *["decide"] * 21]
    (mine,) = [s for s in requests.values() if attributes(s)["nudge.request_id"] == "mine-1"]
    assert (mine.trace_id.hex(), attributes(mine)["http.response.status_code"]) == (TRACE, 200)
    (of_mine,) = [b for b in batches if any(link.span_id == mine.span_id for link in b.links)]
    assert (of_mine.trace_id.hex(), of_mine.parent_span_id) == (TRACE, mine.span_id), "alone, it is under its request"
    linked = [link.span_id for b in batches for link in b.links]
    decided = {i for i, s in requests.items() if s.name == "decide"}
    assert set(linked) == decided
    assert sum(attributes(b)["nudge.rows"] for b in batches) == 21
    for batch in batches:
        inside = [s for s in spans if s.parent_span_id == batch.span_id]
        assert [s.name for s in sorted(inside, key=lambda s: s.start_time_unix_nano)] == list(STAGES[1:])
        assert all(batch.start_time_unix_nano <= s.start_time_unix_nano for s in inside)
        assert max(s.end_time_unix_nano for s in inside) <= batch.end_time_unix_nano + 1_000
    assert not any(b"secret" in body for body in bodies), "no customer's data"


async def test_a_collector_that_is_away_costs_no_decision(tmp_path: Path) -> None:
    write_program(tmp_path)
    with collector() as (url, _):
        away = f"{url}/v1/traces"
    with embedded.serve(tmp_path / "store") as server:
        os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"
        try:
            with running(Settings(home=tmp_path, redis_url=server.url, traces=away)) as service:
                async with aiohttp.ClientSession(service.url) as session:
                    assert (await Client(session).decide("ada"))["degraded"] is False
        finally:
            del os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"]


def test_where_no_exporter_is_configured_nothing_that_traces_is_loaded(tmp_path: Path) -> None:
    """Of OpenTelemetry only what redis-py loads for itself, where it is installed: no exporter, no tracing thread."""
    code = (
        "import sys, threading; from serving.app import from_environment; from_environment();"
        "tracing = ('opentelemetry.exporter', 'opentelemetry.sdk.trace.export');"
        "loaded = [m for m in sys.modules if m.startswith(tracing)];"
        "print(loaded, threading.active_count())"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    environment = {**clean, "NUDGE_HOME": str(tmp_path), "NUDGE_LOG": "error"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[] 1"


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318/"}, "http://127.0.0.1:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/x"}, "http://127.0.0.1:9/x"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
    ],
)
def test_the_exporter_is_configured_by_its_own_variables(given: dict[str, str], endpoint: str) -> None:
    assert settings.load(given).traces == endpoint


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(ValueError, match="http/protobuf only"):
        settings.load(given)
