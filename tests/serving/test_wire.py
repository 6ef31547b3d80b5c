"""What is written in one turn of the loop leaves as one piece, and nothing of it is lost or sent to nobody."""

import asyncio
import urllib.parse
from pathlib import Path

import pytest

from serving.settings import Settings
from serving.wire import Gathering
from tests.serving.running import running, write_program


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
