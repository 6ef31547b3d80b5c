"""How do answers reach the wire? Header and body as one, and those of one turn of the loop one after the other.

The server writes an answer's header and its body each for itself, and the event loop sends every write at once: two
calls of the kernel an answer, and the client is woken for a header that it can do nothing with. A batch answers many
requests in one turn of the loop; what is written meanwhile waits for the end of that turn.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """The server's own protocol, on a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(cast("asyncio.Transport", Gathering(transport, soon=self.loop.call_soon)))


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
