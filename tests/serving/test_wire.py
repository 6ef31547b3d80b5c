"""What is written in one turn of the loop leaves as one piece, and nothing of it is lost or sent to nobody."""

import asyncio
import json
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from serving import wire as wires
from serving.settings import Settings
from serving.wire import Gathering
from tests.serving.running import Running, running, write_program


class Wire(asyncio.Transport):
    """A transport that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def test_what_is_written_in_a_turn_leaves_as_one_piece_in_its_order(wire: Wire) -> None:
    gathering = Gathering(wire, soon=asyncio.get_running_loop().call_soon)
    gathering.write(b"head")
    gathering.write(b"body")
    assert wire.sent == []
    await asyncio.sleep(0)
    gathering.write(b"another")
    await asyncio.sleep(0)
    assert wire.sent == [b"headbody", b"another"]


async def test_closing_sends_what_was_written_first(wire: Wire) -> None:
    gathering = Gathering(wire, soon=asyncio.get_running_loop().call_soon)
    gathering.write(b"the last words")
    gathering.close()
    await asyncio.sleep(0)
    assert (wire.sent, wire.closed) == ([b"the last words"], True)


async def test_nothing_is_sent_to_who_has_gone_meanwhile(wire: Wire) -> None:
    gathering = Gathering(wire, soon=asyncio.get_running_loop().call_soon)
    gathering.write(b"an answer")
    wire.close()
    await asyncio.sleep(0)
    assert wire.sent == []


async def test_an_answer_of_the_service_arrives_whole(tmp_path: Path) -> None:
    write_program(tmp_path)
    with running(Settings(home=tmp_path, redis_url=f"unix://{tmp_path}/nobody")) as service:
        where = urllib.parse.urlsplit(service.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for _ in range(20):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            head, _, body = (await reader.read(65_536)).partition(b"\r\n\r\n")
            assert b"content-length: %d" % len(body) in head
            assert body
        writer.close()
        await writer.wait_closed()


# Limits.


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    write_program(tmp_path)
    with running(Settings(home=tmp_path, redis_url=f"unix://{tmp_path}/nobody")) as service:
        yield service


@asynccontextmanager
async def connected(service: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = urllib.parse.urlsplit(service.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def refused(reader: asyncio.StreamReader, *, status: int) -> str:
    """Read the last answer of a connection, a problem document with all headers; return its detail."""
    head, _, body = (await asyncio.wait_for(reader.read(), 10.0)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert b"application/problem+json" in head
    assert all(b"%b: %b" % header in head for header in wires.HEADERS)
    document = json.loads(body)
    assert (document["status"], document["type"]) == (status, "urn:nudge:problem:request-refused")
    return str(document["detail"])


async def answered(service: Running) -> bool:
    async with connected(service) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        return (await reader.read()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nX-Big: ", b"GET /", b"GET / HTTP/1.1\r\n"])
async def test_a_head_that_does_not_end_is_not_read_on(service: Running, start: bytes) -> None:
    line, sent = b"a: b\r\n" if start.endswith(b"1.1\r\n") else b"aaaaaa", 0
    async with connected(service) as (reader, writer):
        writer.write(start)
        with suppress(ConnectionError):
            while sent < 20_000_000 and not reader.at_eof():
                writer.write(line * 10_000)
                await writer.drain()
                sent += 60_000
    assert sent < 10_000_000
    assert await answered(service)


async def test_a_large_head_is_told_why(service: Running) -> None:
    async with connected(service) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Big: ")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"a" * (wires.HEAD_BYTES + 1))
        assert "65536 bytes" in await refused(reader, status=431)


async def test_a_head_of_nearly_the_largest_size_is_read_in_parts(service: Running) -> None:
    parts = (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n", b"X: " + b"a" * 60_000 + b"\r\n", b"\r\n")
    async with connected(service) as (reader, writer):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        assert (await reader.read()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "said", [b"BREW / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"\x16\x03"]
)
async def test_what_is_no_request_is_answered_with_a_problem(service: Running, said: bytes) -> None:
    async with connected(service) as (reader, writer):
        writer.write(said)
        assert "HTTP/1.1" in await refused(reader, status=400)


@pytest.mark.parametrize("head", [b"Content-Le", b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"])
async def test_a_request_that_does_not_end_is_given_up(
    service: Running, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(wires, "STALLED", 0.3)
    async with connected(service) as (reader, writer):
        writer.write(b"POST /v1/decide HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head)
        assert "did not come whole" in await refused(reader, status=408)


async def test_who_says_nothing_is_told_nothing(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "STALLED", 0.1)
    async with connected(service) as (reader, _):
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10.0) == b""


async def test_a_connection_that_is_idle_between_requests_stays(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "STALLED", 0.1)
    async with connected(service) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.read(65_536)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.4)


async def test_more_connections_than_there_may_be_are_closed_and_the_others_answered(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "MOST", 5)
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connected(service)) for _ in range(5)]
        for _ in range(20):
            async with connected(service) as (reader, _):
                with suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 10.0) == b""
        for reader, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert await answered(service)
