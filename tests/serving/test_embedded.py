"""The embedded server's life: started, shared, killed, handed over, and never left behind."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.embedded import Server, ServerError, address, serve
from serving.settings import Settings
from serving.store import Store

PATIENCE = 10.0


def until(reached: Callable[[], bool]) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


async def write(url: str, value: str) -> None:
    """Write something, trying for as long as the server is away."""
    async with await Store.open(url) as store:
        await store.command("SET", "x", value)


async def read(url: str) -> bytes | None:
    """Read it."""
    async with await Store.open(url) as store:
        value: bytes | None = await store.command("GET", "x")
        return value


async def test_a_server_starts_well_within_a_second_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    started = time.monotonic()
    with serve(tmp_path) as server:
        assert time.monotonic() - started < 1.0
        await write(server.url, "kept")
        async with await Store.open(server.url) as store:
            assert await store.durability() == []
    with serve(tmp_path) as server:
        assert await read(server.url) == b"kept"


async def test_a_server_that_was_killed_is_back_at_its_address_with_its_data(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        await write(server.url, "kept")
        before, url = server.pid, server.url
        assert before is not None
        os.kill(before, signal.SIGKILL)
        until(lambda: server.pid != before and _answers(server))
        assert server.url == url
        assert await read(url) == b"kept"
        assert server.starts == 2


def test_only_this_user_can_connect(tmp_path: Path) -> None:
    with serve(tmp_path / "made") as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_an_interrupt_at_the_terminal_is_for_us_and_not_for_the_server(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        assert server.pid is not None
        assert os.getsid(server.pid) != os.getsid(0)


async def test_a_second_caller_uses_the_first_ones_server_and_takes_over_when_it_stops(tmp_path: Path) -> None:
    first, second = Server(tmp_path), Server(tmp_path)
    first.start()
    second.start()
    try:
        assert second.url == first.url
        assert (first.starts, second.starts) == (1, 0)
        await write(second.url, "kept")
        first.stop()
        until(lambda: second.starts == 1 and _answers(second))
        assert await read(second.url) == b"kept"
    finally:
        first.stop()
        second.stop()
    assert not _answers(second)


def test_two_who_start_at_once_share_one_server(tmp_path: Path) -> None:
    servers = [Server(tmp_path) for _ in range(4)]
    programs = [subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)]) for _ in range(2)]
    try:
        for server in servers:
            server.start()
        pids = {_owner(server) for server in servers}
        assert len(pids) == 1
        assert sum(server.starts for server in servers) <= 1
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for server in servers:
            server.stop()


def test_no_server_outlives_a_killed_owner_and_the_folder_is_free_again(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        orphan = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{orphan}").exists())
    with serve(tmp_path) as server:
        assert server.starts == 1


def test_a_paused_server_whose_owner_was_killed_keeps_the_folder_from_being_opened_twice(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        paused = int(owner.stdout.readline())
        os.kill(paused, signal.SIGSTOP)
        os.kill(owner.pid, signal.SIGKILL)
    late = Server(tmp_path)
    with pytest.raises(ServerError):
        late.start(patience=0.3)
    assert late.starts == 0
    os.kill(paused, signal.SIGCONT)
    until(lambda: not Path(f"/proc/{paused}").exists())
    with serve(tmp_path) as server:
        assert server.starts == 1


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("two words", 'a"quote', "per%20cent", "zoë", "-dash", "x" * 150):
        with serve(tmp_path / name) as server:
            await write(server.url, name)
            assert await read(server.url) == name.encode()


async def test_a_copied_folder_has_a_server_of_its_own(tmp_path: Path) -> None:
    import shutil

    one, other = tmp_path / ("a" * 120), tmp_path / ("b" * 120)
    with serve(one) as server:
        await write(server.url, "one")
        shutil.copytree(one, other)
        with serve(other) as copy:
            assert copy.url != server.url
            await write(copy.url, "other")
            assert await read(server.url) == b"one"


def test_a_broken_log_of_writes_is_said_in_the_servers_own_words(tmp_path: Path) -> None:
    with serve(tmp_path):
        pass
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("nonsense\n")
    with pytest.raises(ServerError, match=r"its log ends with: .*manifest"):
        Server(tmp_path).start()


def test_a_program_that_is_not_a_server_is_an_error_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ServerError, match="it wrote no log"):
        Server(tmp_path, binary=Path("/bin/false")).start()
    assert time.monotonic() - started < 5


async def test_the_store_that_is_set_is_used_and_otherwise_an_embedded_one(tmp_path: Path) -> None:
    with address(Settings(redis_url="redis://elsewhere:1")) as url:
        assert url == "redis://elsewhere:1"
    with address(Settings(home=tmp_path)) as url:
        await write(url, "here")
    assert (tmp_path / "store" / "appendonlydir").is_dir()


def _answers(server: Server) -> bool:
    from serving.embedded import _state

    return _state(server.folder) == b"+PONG\r\n"


def _owner(server: Server) -> bytes:
    """Return the pid of the server that answers at an address."""
    import re
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.url.removeprefix("unix://"))
        connection.sendall(b"INFO server\r\n")
        found = re.search(rb"process_id:(\d+)", connection.recv(65_536))
    assert found is not None
    return found[1]


_HOLDER = """
import sys, time
from pathlib import Path
from serving.embedded import serve
with serve(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
