"""The servers that a store must work on in the same way."""

import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.embedded import our_binary, serve
from serving.store import Store
from tests.conftest import find


@pytest.fixture(scope="session", params=["valkey", "redis", "cluster"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded Valkey; Debian's Redis 7; a cluster, which refuses scripts whose keys are not of one shard."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "cluster":
        with clustered(folder) as address:
            yield address
        return
    with serve(folder, binary=Path(find("redis-server")) if request.param == "redis" else None) as server:
        yield server.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An empty store, created for this test: of four shards on the cluster."""
    async with await Store.open(url) as old:
        await old.command("FLUSHALL")
    async with await Store.open(url, shards=4 if url.startswith("redis:") else 1) as store:
        yield store


@contextmanager
def clustered(folder: Path) -> Iterator[str]:
    """Run a Valkey that is a cluster of one."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, bus = one.getsockname()[1], other.getsockname()[1]
    settings = ["--port", port, "--cluster-port", bus, "--cluster-enabled", "yes", "--appendonly", "yes", "--save", ""]
    command = [our_binary(), *settings, "--bind", "127.0.0.1", "--dir", folder, "--logfile", folder / "log"]
    with subprocess.Popen([str(word) for word in command]) as process:
        try:
            _assigned(port, process)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


def _assigned(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Give every slot to the only node, and wait until it says that the cluster works."""
    said = b""
    while b"cluster_state:ok" not in said:
        assert process.poll() is None, "the cluster does not start"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(b"CLUSTER ADDSLOTSRANGE 0 16383\r\nCLUSTER INFO\r\n")
                time.sleep(0.01)
                said = connection.recv(4096)
        except ConnectionError:
            time.sleep(0.01)
