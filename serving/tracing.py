"""Where did the time of a request go? OpenTelemetry traces, where an exporter is configured; otherwise nothing at all.

A request is a span; a batch of decisions is another, linked to the requests in it, with a span for each of its
stages. They say calls, programs, counts and request ids: never a customer, a path or what was sent.
"""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.metrics import STAGES, Laps

_HERE: ContextVar[Any] = ContextVar("nudge_request_span", default=None)

_FAILED = 500


def here() -> Any:
    """Return what the span of the request under way is known by; None where nothing is traced."""
    return _HERE.get()


class Tracer(Protocol):
    """What deciding tells of its batches."""

    def batch(self, program: str, laps: Laps, spans: Sequence[Any]) -> None:
        """Tell of a batch that has just ended, and of the requests (`here()` of each row) that were in it."""

    def close(self) -> None:
        """Send what is left."""


class Silent:
    """Traces nothing: what serves where no exporter is configured."""

    def batch(self, program: str, laps: Laps, spans: Sequence[Any]) -> None:
        return

    def close(self) -> None:
        return


class Traces:
    """Sends spans over OTLP/HTTP. OpenTelemetry is imported here only, so it costs nothing where it is not wanted.

    Args:
        endpoint: where spans are posted, such as `http://127.0.0.1:4318/v1/traces`; headers, timeout, sampling and
            the service's name are read from OpenTelemetry's own variables.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415  (only where traces are wanted)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        named = Resource.create({"service.name": "nudge"})  # OTEL_SERVICE_NAME wins: it is merged over this
        self._provider = TracerProvider(resource=named.merge(_of_environment(Resource)), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("nudge")
        self._trace, self._read = trace, TraceContextTextMapPropagator().extract

    def open(self, headers: Mapping[str, str]) -> Any:
        """Start the span of a request, under the caller's own where it sends a `traceparent`."""
        return self._tracer.start_span("request", context=self._read(headers), kind=self._trace.SpanKind.SERVER)

    def end(self, span: Any, *, call: str, request_id: str, status: int) -> None:
        """End the span of a request."""
        span.update_name(call)
        known = {"http.response.status_code": status, "nudge.call": call, "nudge.request_id": request_id}
        span.set_attributes(known)
        if status >= _FAILED or not status:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    def batch(self, program: str, laps: Laps, spans: Sequence[Any]) -> None:
        now = time.time_ns()
        begun = now - int(sum(laps.seconds.values()) * 1e9)
        requests = {s.get_span_context().span_id: s for s in spans if s is not None}
        parent = self._trace.set_span_in_context(next(iter(requests.values()))) if len(requests) == 1 else None
        batch = self._tracer.start_span(
            "decide batch",
            context=parent,
            start_time=begun,
            links=[self._trace.Link(s.get_span_context()) for s in requests.values()],
            attributes={"nudge.program": program, "nudge.rows": len(spans), "nudge.requests": len(requests)},
        )
        inside = self._trace.set_span_in_context(batch)
        for stage in (s for s in STAGES if s in laps.seconds):
            span = self._tracer.start_span(stage, context=inside, start_time=begun)
            begun += int(laps.seconds[stage] * 1e9)
            span.end(begun)
        batch.end(now)

    def close(self) -> None:
        self._provider.shutdown()


def _of_environment(resource: Any) -> Any:
    """Return what OpenTelemetry's variables say of this service; its own default name is left out."""
    found = resource.create()
    unnamed = str(found.attributes.get("service.name", "")).startswith("unknown_service")
    return resource({k: v for k, v in found.attributes.items() if not (unnamed and k == "service.name")})


def tracer(endpoint: str) -> Silent | Traces:
    """Return what traces to an endpoint; nothing is imported where it is empty."""
    return Traces(endpoint) if endpoint else Silent()


class Spans:
    """ASGI middleware: a span for each request. Outermost, so that it sees what the edge answered."""

    def __init__(self, app: ASGIApp, *, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"] if k in _TRACEPARENT}
        span = self._traces.open(headers)
        token = _HERE.set(span)
        try:
            await self._app(scope, receive, answer)
        finally:
            _HERE.reset(token)
            call = getattr(scope.get("route"), "name", "none")
            self._traces.end(span, call=call, request_id=scope.get("request_id", ""), status=status)


_TRACEPARENT = frozenset({b"traceparent", b"tracestate"})
