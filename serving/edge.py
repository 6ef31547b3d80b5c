"""What happens to every request before and after its handler? Limits, ids, headers, and a short way to hot calls."""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from itertools import count
from typing import Any, get_args, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.auth import Key
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.wire import HEADERS

log = logging.getLogger("nudge.edge")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

Answers = Callable[[Request], Awaitable[Response]]


class Edge:
    """ASGI middleware: gives each request an id, refuses what is too large, and answers what nobody expected.

    Args:
        app: what it wraps.
        direct: what answers a POST to these paths at once: looking the route up in the framework takes longer than
            validating the request.
        body_bytes: largest body.
        metrics: where answers are counted.
    """

    def __init__(self, app: ASGIApp, *, direct: Mapping[str, APIRoute], body_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._direct: Mapping[str, tuple[APIRoute, Answers]] = {
            path: (route, route.get_route_handler()) for path, route in direct.items()
        }
        self._body_bytes = body_bytes
        self._answered = cache(metrics.requests.labels)
        self._ids = map(f"{os.urandom(6).hex()}{{:x}}".format, count())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given, length = headers.get(b"x-request-id"), headers.get(b"content-length")
        named = given is not None and _REQUEST_ID.fullmatch(given)
        scope["request_id"] = given.decode() if given and named else next(self._ids)
        extra = [(b"x-request-id", scope["request_id"].encode()), *HEADERS]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            if length is None:
                receive = self._limited(scope, receive)
            elif not length.isdigit() or int(length) > self._body_bytes:
                raise self._too_large()
            await self._dispatch(scope, receive, answer)
        except ProblemError as refused:
            await refused.response(instance=scope["request_id"])(scope, receive, answer)
        except ClientDisconnect:
            log.debug("gone before it was read", extra={"request_id": scope["request_id"]})
        except Exception:
            if status:  # too late for another answer
                raise
            log.exception("a request failed", extra={"request_id": scope["request_id"], "method": scope["method"]})
            problem = ProblemError(
                500, "internal-error", "something is wrong with the service; its log has this instance"
            )
            await problem.response(instance=scope["request_id"])(scope, receive, answer)
        finally:
            self._count(scope, status)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, handle = self._direct.get(scope["path"], (None, None))
        if route is None or handle is None or scope["method"] != "POST":
            if scope["method"] in ("POST", "PUT") and _has_body(scope["headers"]):
                _check_kind(scope["headers"])
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)

    def _count(self, scope: Scope, status: int) -> None:
        route = scope.get("route")
        call = getattr(route, "name", "none")
        self._answered(call, str(status)).inc()
        level = logging.DEBUG if status < 500 else logging.WARNING if status == 503 else logging.ERROR
        if log.isEnabledFor(level):
            log.log(level, "answered", extra={"request_id": scope["request_id"], "call": call, "status": status})

    def _too_large(self) -> ProblemError:
        return ProblemError(
            413, "too-large", f"the body is larger than {self._body_bytes} bytes; send it in several requests"
        )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Count a body whose length was not said; what it is refused for is noted, as the framework hides it."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._body_bytes:
                scope["refused"] = self._too_large()
                raise scope["refused"]
            return message

        return counted


class LeanRoute(APIRoute):
    """A route whose handler takes `(request, key, body)`: documented by the framework, read without its machinery.

    The framework parses a body to Python, validates that, and resolves dependencies step by step; here `key` is the one
    dependency, and the bytes are validated at once.
    """

    def get_route_handler(self) -> Answers:  # type: ignore[override]
        """Return what answers a request."""
        hints, endpoint = get_type_hints(self.endpoint, include_extras=True), self.endpoint
        read: Callable[[bytes], Any] = hints["body"].read
        admit: Callable[[Request], Key] = get_args(hints["key"])[1].dependency

        async def handle(request: Request) -> Response:
            key = admit(request)
            _check_kind(request.scope["headers"])
            try:
                body = read(await _body(request.receive))
            except ValidationError as error:
                raise problems.invalid_body(error) from None
            answer: Response = await endpoint(request, key, body)
            return answer

        return handle


class Json(Response):
    """A JSON answer whose bytes are ready: half of the framework's time for one goes into headers it cannot have."""

    media_type = "application/json"

    def __init__(self, body: bytes, *, status: int = 200) -> None:
        self.status_code, self.body, self.background = status, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]


def _check_kind(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise the 415 of a body that is not said to be JSON."""
    kind = next((value.decode("latin-1") for name, value in headers if name == b"content-type"), "")
    if not kind.lower().startswith("application/json"):
        detail = f"the content type is {kind[:64]!r}; send JSON with the header `Content-Type: application/json`"
        raise ProblemError(415, "unsupported-media-type", detail)


def _has_body(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers)


async def _body(receive: Receive) -> bytes:
    """Return a request's body, as large as the edge lets it be."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)
