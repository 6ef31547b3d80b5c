"""A way to a store that can be cut in the middle of a reply."""

import asyncio
from contextlib import suppress
from pathlib import Path


class Proxy:
    """Hands bytes on between a socket of its own and a store's.

    Args:
        path: the socket to listen on.
        store: returns the store's socket: where it listens may change.
    """

    def __init__(self, path: Path, store: Path) -> None:
        self.path, self._store = path, store
        self.cuts = 0
        self._left: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Start to listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def close(self) -> None:
        """Stop."""
        self._server.close()
        for writer in [*self._writers]:
            writer.close()

    def cut(self, after: int) -> None:
        """Hand on so many bytes more of what the store replies, then cut every connection."""
        self._left = after

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, out = await asyncio.open_unix_connection(self._store)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, out}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._hand_on(reader, out, replies=False))
                group.create_task(self._hand_on(there, writer, replies=True))
        except* OSError:
            pass
        finally:
            self._writers -= {writer, out}
            for end in (writer, out):
                end.close()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        while data := await reader.read(65_536):
            if replies and self._left is not None:
                part, self._left = data[: self._left], self._left - len(data)
                if self._left <= 0:
                    self._left = None
                    writer.write(part)
                    with suppress(OSError):
                        await writer.drain()
                    self.cuts += 1
                    for end in [*self._writers]:
                        end.close()
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
