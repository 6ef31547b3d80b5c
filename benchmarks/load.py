"""Who asks a server as fast as it answers, without being what is measured? And an empty handler to compare with.

The client is a process of its own with requests encoded beforehand, a protocol that looks for nothing but the length
of an answer, and several connections; at the rates measured here it takes a tenth of a core.
"""

import asyncio
import multiprocessing
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import uvloop
from fastapi import FastAPI, Response

from serving.schemas import DecideRequest

READY_SECONDS = 60.0

ANSWER = (
    b'{"decision_id":"0-01KDVDNA000000000000000000","customer_id":"c00042","program":"fitness-coaching","action":{'
    b'"incentive":"achievement-badge","tone":"encouraging","timing":"after-work"},"deliver_at":'
    b'"2026-01-05T17:30:00+01:00","expires_at":"2026-01-06T17:30:00+01:00","message":{"subject":"Step by step to your '
    b'badge","body":"3 of 7 done for First week. The next small step moves the bar, whatever its length. On the day '
    b'you complete it, you get a bronze badge on your profile.","call_to_action":"Move the bar"},"propensity":0.0123,'
    b'"policy":{"name":"thompson","version":"1"},"stage":"experience","progress":{"milestone":"First week","done":3,'
    b'"of":7,"reward":"a bronze badge on your profile"},"hold_reason":null,"next_eligible_at":null,"degraded":false}'
)
"""As long as a decision is."""


def empty() -> FastAPI:
    """Return a service that reads the same requests, does nothing, and answers as much."""
    app = FastAPI()

    @app.post("/v1/decide")
    async def decide(body: DecideRequest) -> Response:  # noqa: ARG001  (read, as a handler would)
        return Response(ANSWER, media_type="application/json")

    return app


class Wave(NamedTuple):
    """What to ask: where, with which bodies, how.

    Args:
        port: of the loopback address.
        path: what is posted to.
        bodies: as many as may be needed; it ends early when they are used up.
        connections: each asks again as soon as it is answered, or at its turn where there is a rate.
        seconds: how long.
        rate: requests a second over all connections, evenly spaced; 0 for as fast as it goes.
    """

    port: int
    path: str
    bodies: Sequence[bytes]
    connections: int
    seconds: float
    rate: float = 0.0


class Answering(NamedTuple):
    """Who answers: the port, and the processes."""

    port: int
    pids: tuple[int, ...]


class Heard(NamedTuple):
    """What came of a wave: answers a second, seconds until each answer, answers that were not what was hoped for.

    `busy` is the processor time of who answered, in seconds.
    """

    rate: float
    latencies: "np.typing.NDArray[np.float64]"
    bad: int
    degraded: int
    busy: float = 0.0


@contextmanager
def clients() -> Iterator[Callable[[Wave], Heard]]:
    """Have a process that asks, for as long as the block lasts."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        yield lambda wave: process.submit(ask, wave).result()


def ask(wave: Wave) -> Heard:
    """Send a wave and return what came of it."""
    return uvloop.run(_ask(wave))


async def _ask(wave: Wave) -> Heard:
    head = f"POST {wave.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    requests = iter([b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body) for body in wave.bodies])
    loop = asyncio.get_running_loop()
    made = [
        loop.create_connection(lambda: _Connection(requests), "127.0.0.1", wave.port) for _ in range(wave.connections)
    ]
    connections = [connection for _, connection in await asyncio.gather(*made)]
    started = loop.time()
    if wave.rate:
        await _paced(connections, wave, started=started)
    else:
        for connection in connections:
            connection.go(until=started + wave.seconds)
    await asyncio.gather(*(connection.finished for connection in connections))
    latencies = np.array([seconds for connection in connections for seconds in connection.latencies])
    last = max(connection.last for connection in connections)
    for connection in connections:
        connection.close()
    return Heard(
        rate=len(latencies) / (last - started),
        latencies=latencies,
        bad=sum(c.bad for c in connections),
        degraded=sum(c.degraded for c in connections),
    )


async def _paced(connections: "list[_Connection]", wave: Wave, *, started: float) -> None:
    """Send each request at its time, on whichever connection is free; what waits for one has its time counted too."""
    loop = asyncio.get_running_loop()
    due = started
    while due < started + wave.seconds:
        if (ahead := due - loop.time()) > 0:
            await asyncio.sleep(ahead)
        free = next((c for c in connections if c.free), None)
        if free is None:
            await asyncio.sleep(0)
            continue
        free.send(due)
        due += 1.0 / wave.rate
    for connection in connections:
        connection.go(until=0.0)


class _Connection(asyncio.Protocol):
    """One connection: sends, waits for the whole answer, notes how long it took."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        self.latencies: list[float] = []
        self.bad = self.degraded = 0
        self.last = 0.0
        self.free = True
        self._until = -1.0
        self._buffer = b""
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is one in all but name

    def close(self) -> None:
        self._transport.close()

    def go(self, *, until: float) -> None:
        """Ask until a moment; with a moment past, finish what is under way."""
        self._until = until
        if self.free:
            self._next()

    def _next(self) -> None:
        if self._until < 0:
            return
        if self._loop.time() >= self._until:
            self._finish()
        else:
            self.send(self._loop.time())

    def send(self, since: float) -> None:
        """Ask now; its time counts from `since`."""
        request = next(self._requests, None)
        if request is None:
            self._until = 0.0
            self._finish()
            return
        self.free, self._since = False, since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        at = self._buffer.find(b"content-length: ", 0, end)
        if end < 0 or len(self._buffer) < end + 4 + int(self._buffer[at + 16 : self._buffer.index(b"\r\n", at)]):
            return
        self.last = self._loop.time()
        self.latencies.append(self.last - self._since)
        self.bad += not self._buffer.startswith(b"HTTP/1.1 200")
        self.degraded += b'"degraded":true' in self._buffer
        self._buffer = b""
        self.free = True
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self.bad += 1
            self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


@contextmanager
def running(command: Sequence[str], *, port: int, path: str, environment: dict[str, str]) -> Iterator[int]:
    """Run a server until the block ends; yield its process once it answers."""
    with subprocess.Popen([sys.executable, *command], env=environment) as process:
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _answers(f"http://127.0.0.1:{port}{path}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} does not answer")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            process.wait(READY_SECONDS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:  # noqa: S310  (our own address)
            return bool(answer.status == 200)
    except OSError:
        return False
