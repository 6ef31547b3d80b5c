"""How is the server talked to? Commands and scripts in one round trip, in bounded time, and what it says of itself.

Not through redis-py's own client: it takes three times as long as the server does.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError, RedisError, ResponseError

Word = str | bytes | int | float
"""What a command or a script can be given."""


class StoreError(RuntimeError):
    """The store could not do what was asked, or refuses to be used: hold, or answer 503.

    Whether what was to be kept is kept is not known: ask again with the same ids.
    """


class RefusedError(StoreError):
    """The store answers, and must not be used as it is: the message says what to mend. Trying again is of no use."""


class Link:
    """A server, reached over connections that are kept. Every method raises `StoreError` where it fails or is slow.

    Args:
        url: `redis://`, `rediss://` or `unix://`; a `RefusedError` where it is none of these.
        limit: seconds that any one call may take.
    """

    def __init__(self, url: str, *, limit: float) -> None:
        once = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0), "driver_info": None}
        self._address, self._limit = _address(url), limit
        try:
            pool = ConnectionPool.from_url(url, protocol=2, **once)
        except ValueError as error:
            raise RefusedError(f"{self._address!r} is not the address of a store: {error}") from None
        self._connection: Callable[[], Connection] = pool.make_connection
        self._idle: list[Connection] = []

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def ping(self) -> None:
        """Return if the store answers."""
        await self.command("PING")

    # What is sent.

    async def command(self, *words: Word) -> Any:
        """Send one command and return its answer as the server gave it."""
        (answer,) = await self.commands([words])
        return answer

    async def commands(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Send commands in one round trip and return their answers; the first that the server refuses is raised."""
        answers = await self._exchange(commands)
        for refused in (a for a in answers if isinstance(a, ResponseError)):
            raise StoreError(f"the store at {self._address} refuses: {refused}") from refused
        return answers

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Word]) -> Any:
        """Run one of our scripts, by its file's name, and return its answer."""
        (answer,) = await self.run_each(script, [(keys, args)])
        return answer

    async def run_each(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]) -> list[Any]:
        """Run a script once for each (keys, args), in one round trip."""
        text, digest = _script(script)
        words = [("EVALSHA", digest, len(keys), *keys, *args) for keys, args in calls]
        answers = await self._exchange(words)
        if any(isinstance(a, NoScriptError) for a in answers):  # the server is new, or has restarted
            await self.command("SCRIPT", "LOAD", text)
            again = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
            for i, answer in zip(again, await self.commands([words[i] for i in again]), strict=True):
                answers[i] = answer
        for refused in (a for a in answers if isinstance(a, ResponseError)):
            raise StoreError(f"the store at {self._address} refuses: {refused}") from refused
        return answers

    async def _exchange(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        packed = b"".join(hiredis.pack_command(tuple(words)) for words in commands)  # type: ignore[arg-type]  # wrong stub
        try:
            async with asyncio.timeout(self._limit):
                try:
                    return await self._converse(packed, len(commands))
                except Disconnected:  # the server has restarted, perhaps: what we send may be sent twice
                    await self.close()
                    return await self._converse(packed, len(commands))
        except TimeoutError:
            raise StoreError(f"the store at {self._address} did not answer within {self._limit:g} s") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"the store at {self._address} failed: {str(error) or type(error).__name__}") from error

    async def _converse(self, packed: bytes, answers: int) -> list[Any]:
        """Send and listen; a connection that fails, or that nobody listens to any more, is closed and left out."""
        connection = self._idle.pop() if self._idle else self._connection()
        await connection.send_packed_command(packed, check_health=False)
        heard = [await _answer(connection) for _ in range(answers)]
        self._idle.append(connection)
        return heard

    async def snapshot(self) -> AsyncIterator[bytes]:
        """Yield the server's snapshot of one moment (RDB), part by part, as a replica would get it.

        StoreError on a cluster, whose nodes each have their own, and where the server does not let us.
        """
        if (await self._info()).get("cluster_enabled") == "1":
            raise StoreError(f"the store at {self._address} is a cluster: back up each node by its own tools")
        connection = self._connection()
        try:
            async with asyncio.timeout(self._limit):
                await self._converse_on(connection, ("REPLCONF", "capa", "eof"))  # sent at once, from memory
                await connection.send_packed_command(hiredis.pack_command(("SYNC",)), check_health=False)
            reader = connection._reader  # noqa: SLF001  (what follows is no answer that the client can read)
            if reader is None:
                raise StoreError(f"the store at {self._address} closed the connection")
            async for part in _received(reader, limit=self._limit):
                yield part
        except (TimeoutError, OSError, EOFError, RedisError) as error:
            what = str(error) or type(error).__name__
            raise StoreError(f"the store at {self._address} failed while it gave its snapshot: {what}") from error
        finally:
            await connection.disconnect(nowait=True)

    @staticmethod
    async def _converse_on(connection: Connection, words: Sequence[Word]) -> None:
        await connection.send_packed_command(hiredis.pack_command(tuple(words)), check_health=False)  # type: ignore[arg-type]  # wrong stub
        await connection.read_response()

    # What the server says of itself.

    async def durability(self) -> list[str]:
        """Return what is wrong with how the server keeps data, each with what to type; empty where all is well."""
        info = await self._info()
        problems = losses(info)
        if info.get("aof_enabled") == "1" and (policy := await self._fsync_policy()) not in (None, "always"):
            problems.append(
                f"appendfsync is {policy}: about two seconds of what was acknowledged can be lost; "
                "type CONFIG SET appendfsync always"
            )
        if info.get("aof_last_write_status", "ok") != "ok":
            problems.append("the last write to the append-only file failed: look at the server's disk and its log")
        return problems

    async def fullness(self) -> float:
        """Return the share of its memory that the server uses; 0 where it may use all there is."""
        info = _named((await self.command("INFO", "memory")).decode())
        most = int(info.get("maxmemory", 0))
        return int(info["used_memory"]) / most if most else 0.0

    async def _info(self) -> dict[str, str]:
        return _named((await self.command("INFO")).decode())

    async def _fsync_policy(self) -> str | None:
        try:
            return str((await self.command("CONFIG", "GET", "appendfsync"))[1].decode())
        except (StoreError, IndexError):  # a hosted server that does not let us look
            return None


async def _answer(connection: Connection) -> object:
    try:
        return await connection.read_response()
    except ResponseError as refused:  # an answer like any other: those after it must be read too
        return refused


async def _received(reader: asyncio.StreamReader, *, limit: float) -> AsyncIterator[bytes]:
    """Yield a snapshot as a replica gets it: `$<length>` and so many bytes, or `$EOF:<mark>` and all up to the mark."""
    line = b""
    while not line:  # empty lines say that the server is still preparing
        async with asyncio.timeout(limit):
            line = (await reader.readuntil(b"\n")).strip()
    if not line.startswith(b"$"):
        raise EOFError(line.decode())
    mark = line.removeprefix(b"$EOF:") if line.startswith(b"$EOF:") else b""
    left, held = 0 if mark else int(line[1:]), b""
    while mark or left:
        async with asyncio.timeout(limit):
            part = await reader.read(1 << 20)
        if not part:
            raise EOFError("it gave only a part")
        held += part
        if mark and held.endswith(mark):
            yield held.removesuffix(mark)
            return
        ready = held[: -len(mark)] if mark else held[:left]
        left, held = left - len(ready) if not mark else 0, held[len(ready) :] if mark else b""
        yield ready


@cache
def _script(name: str) -> tuple[str, str]:
    """Return the text of a script, and its SHA-1: the name that EVALSHA wants."""
    text = files("serving").joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


def _address(url: str) -> str:
    """Return a URL without what is secret in it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all
        return url.rpartition("@")[2].partition("?")[0]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _named(info: str) -> dict[str, str]:
    """Return what INFO says, by name."""
    lines = (line.partition(":") for line in info.splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def losses(info: Mapping[str, str]) -> list[str]:
    """Return the reasons for which a server would lose what was acknowledged."""
    problems = []
    if info.get("aof_enabled") != "1":
        problems.append("the append-only file is off; type CONFIG SET appendonly yes and CONFIG SET appendfsync always")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        problems.append(f"it evicts keys ({policy}) when memory is full; type CONFIG SET maxmemory-policy noeviction")
    if info.get("role", "master") != "master":
        problems.append("it is a replica; give the address of the primary")
    return problems
