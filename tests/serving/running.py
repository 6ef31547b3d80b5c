"""A service as people run it: uvicorn on loopback, over a real Valkey, with programs small enough to follow."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from serving import wire
from serving.app import App, create_app
from serving.service import Service
from serving.settings import Settings
from tests.small_program import OPEN, TOML

PATIENCE = 20.0
"""Seconds after which something that should have happened has not."""


@dataclass(frozen=True)
class Running:
    """A service that answers at `url`."""

    url: str
    app: App

    @property
    def service(self) -> Service:
        """The parts of the service."""
        return self.app.service


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """Serve for as long as the block lasts."""
    app = create_app(settings)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, http=wire.Protocol, log_config=None, access_log=False, lifespan="on")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            assert server.started, "the service did not start"
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def until(happened: Callable[[], object]) -> None:
    """Return as soon as something has happened; fail if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def write_program(home: Path, name: str = "small", *, extra: str = OPEN, change: tuple[str, str] = ("", "")) -> None:
    """Put a variation of the small program where a service finds it."""
    folder = home / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    text = TOML.replace('name = "small"', f'name = "{name}"').replace(*change) if change[0] else TOML
    (folder / f"{name}.toml").write_text(text.replace('name = "small"', f'name = "{name}"', 1) + extra)


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any


class Client:
    """Asks a service, one call after the other or many at once."""

    def __init__(self, session: aiohttp.ClientSession, *, key: str = "") -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def ask(self, method: str, path: str, body: object = None, **more: Any) -> Reply:
        """Send a request with a JSON body, or `data=` as it is."""
        headers = {**self._headers, **more.pop("headers", {})}
        if body is not None:
            more["json"] = body
        async with self._session.request(method, path, headers=headers, **more) as response:
            raw = await response.read()
            read = response.content_type.endswith("json") and raw
            return Reply(
                response.status, response.headers, raw, await response.json(content_type=None) if read else None
            )

    async def decide(self, customer_id: str = "ada", **fields: object) -> Any:
        """Return the decision about a customer in the small program."""
        reply = await self.ask("POST", "/v1/decide", {"program": "small", "customer_id": customer_id, **fields})
        assert reply.status == 200, reply.raw
        return reply.json
