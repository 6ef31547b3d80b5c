"""How do requests reach the app, and answers the wire? Whole, in time, within limits; as one piece.

The server itself limits neither a request's head nor how long it may take to come, nor how many wait: whoever begins
requests and does not end them would keep everybody else out.

It writes an answer's header and its body each for itself, and the event loop sends every write at once: two calls of
the kernel an answer, and the client is woken for a header that it can do nothing with. A batch answers many requests in
one turn of the loop; what is written meanwhile waits for the end of that turn.
"""

import asyncio
import logging
import resource
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.problems import MEDIA_TYPE, ProblemError

HEAD_BYTES = 65_536
"""Largest head of a request; what comes with its first bytes, a quarter of a megabyte at most, is not counted."""

STALLED = 30.0
"""Seconds after which a request that has begun and not ended is given up, at the latest after twice as many."""

MOST = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256, 64)
"""Connections at once: files for the store, the log and the programs are left over."""

HEADERS: Sequence[tuple[bytes, bytes]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
)
"""What every answer has."""

_SAY_AGAIN = 10.0

log = logging.getLogger("nudge.wire")


class Protocol(HttpToolsProtocol):
    """The server's own protocol, with limits, on a transport that gathers."""

    _full_said = -_SAY_AGAIN

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, unless there are too many."""
        super().connection_made(cast("asyncio.Transport", Gathering(transport, soon=self.loop.call_soon)))
        self._head, self._in_head, self._began, self._open = 0, False, False, False
        self._whole = 0
        self._timer = self.loop.call_later(STALLED, self._look, -1)
        if len(self.connections) > MOST:
            if self.loop.time() - Protocol._full_said >= _SAY_AGAIN:
                Protocol._full_said = self.loop.time()
                log.warning("too many connections: the newest are closed", extra={"connections": MOST})
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; refuse a head that does not end."""
        super().data_received(data)
        if self._in_head and not self._began:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self._refuse(431, f"the head of the request is larger than {HEAD_BYTES} bytes")
        self._began = False

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._head, self._in_head, self._began, self._open = 0, True, True, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End the head of a request."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request."""
        self._open = False
        self._whole += 1
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        self._refuse(400, f"{msg[:1].lower()}{msg[1:].rstrip('.')}; send HTTP/1.1")

    def _look(self, whole: int) -> None:
        """Give up a request that has not come any further since the last look."""
        if self.transport.is_closing():
            return
        if whole == self._whole and self._open:
            self._refuse(408, f"the request did not come whole within {STALLED:g} seconds; send it again")
        elif whole == self._whole == 0:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(STALLED, self._look, self._whole)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer for the app, which has not seen the request, and close."""
        if self.transport.is_closing():
            return
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = msgspec.json.encode(ProblemError(status, "request-refused", detail).document())
            length, kind = b"%d" % len(body), MEDIA_TYPE.encode()
            fields = ((b"content-type", kind), (b"content-length", length), (b"connection", b"close"), *HEADERS)
            head = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
            lines = b"".join([b"%b: %b\r\n" % field for field in fields])
            self.transport.write(head + lines + b"\r\n" + body)
        self.transport.close()


class Gathering:
    """A transport that sends what was written to it as one piece, once the turn of the loop is over.

    Args:
        transport: what it writes to; whatever is not said here is done by it.
        soon: calls a function in the loop's next turn.
    """

    def __init__(self, transport: asyncio.Transport, *, soon: Callable[[Callable[[], None]], object]) -> None:
        self._transport, self._soon = transport, soon
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send data with what else is written in this turn."""
        if not self._written:
            self._soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        """Close once everything is sent."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        if self._written and not self._transport.is_closing():
            self._transport.write(b"".join(self._written))
        self._written.clear()
