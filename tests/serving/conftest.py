"""A store for tests of the service: a real server, started once a file."""

from collections.abc import AsyncIterator, Iterator

import pytest

from serving.embedded import Server, serve
from serving.store import Store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this file."""
    with serve(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    """An empty store of two shards."""
    async with await Store.open(server.url) as old:
        await old.command("FLUSHALL")
    async with await Store.open(server.url, shards=2) as store:
        yield store
