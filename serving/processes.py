"""Which processes make up a running service? The store, the API, the follower of the registry; and MLflow's UI."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from serving import auth, embedded, programs, publishing, settings, wire
from serving.metrics import alive
from serving.settings import Settings

_READY_SECONDS = 60.0


@contextmanager
def store_url(given: Settings) -> Iterator[str]:
    """Have a store for as long as the block lasts: the one at REDIS_URL, or the embedded one of the home folder."""
    if given.redis_url:
        yield given.redis_url
        return
    try:
        server = embedded.Server(given.home / "store")
        server.start()
    except embedded.ServerError as error:
        raise ValueError(str(error)) from error
    try:
        yield server.url
    finally:
        server.stop()


def check_store(url: str) -> None:
    """Raise ValueError where the store answers and must not be used; one that does not answer may come later."""
    import asyncio  # noqa: PLC0415  (kept beside its one use)

    from serving.store import RefusedError, Store, StoreError  # noqa: PLC0415

    async def look() -> None:
        async with await Store.open(url):
            pass

    try:
        asyncio.run(look())
    except RefusedError as error:
        raise ValueError(str(error)) from error
    except StoreError as error:
        print(f"nudge: {error}; starting without it: until it answers, every decision is hold", file=sys.stderr)  # noqa: T201


def serve(*, host: str, port: int, workers: int, simulated: bool, follow: bool) -> None:
    """Run the API until interrupted, with the store and, once it is ready, the follower beside it."""
    given = settings.load()
    for warning in settings.unread(os.environ):
        print(f"nudge: {warning}", file=sys.stderr)  # noqa: T201
    auth.refuse_public(host, given.keys_file)
    if workers > 1:  # what one stumbles over ends it; several would be started again and again
        programs.load(given.programs)
        publishing.secret(given.secret_file, given=given.secret)
    with store_url(given) as url, adding_up(given.home / "run", workers=workers):
        os.environ["REDIS_URL"] = url  # what the app, and each of its workers, reads
        if simulated:
            mark_simulated(url)
        check_store(url)
        # uvicorn has the signal do what it did before, once it is done: that must not skip what comes after.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"nudge: serves http://{host}:{port}, described at /docs (interrupt to stop)", file=sys.stderr)  # noqa: T201
        follower = _Follower(host, port) if follow else None
        try:
            uvicorn.run(
                "serving.app:from_environment",
                factory=True,
                host=host,
                port=port,
                workers=workers,
                loop="uvloop",
                http=wire.Protocol,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than clients and proxies keep an idle connection
            )
        finally:
            if follower is not None:
                follower.stop()


@contextmanager
def adding_up(folder: Path, *, workers: int) -> Iterator[None]:
    """Have a folder, named to the workers by a variable, where they add up what they count; one worker needs none."""
    if workers == 1:
        yield
        return
    for left in folder.glob("[0-9]*"):
        if not alive(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    mine = folder / str(os.getpid())
    mine.mkdir(parents=True, exist_ok=True)
    os.environ[settings.SHARED] = str(mine.absolute())
    try:
        yield
    finally:
        del os.environ[settings.SHARED]
        shutil.rmtree(mine, ignore_errors=True)


def mark_simulated(url: str) -> None:
    """Create the store's layout as simulated; ValueError if it exists and is not."""
    import asyncio  # noqa: PLC0415  (kept beside its one use)

    from serving.store import Store  # noqa: PLC0415

    async def create() -> None:
        async with await Store.open(url, simulated=True):
            pass

    asyncio.run(create())


class _Follower:
    """`nudge follow` as a process of its own, started when the API first is ready: the API never waits for MLflow."""

    def __init__(self, host: str, port: int) -> None:
        self._url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/readyz"  # noqa: S104
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and not self._stopping.wait(0.2):
            if _answers(self._url):
                command = embedded.bound([sys.executable, "-m", "serving.cli", "follow"])
                self._process = subprocess.Popen(command)  # noqa: S603  (our own)
                if self._stopping.is_set():
                    self._process.terminate()
                self._process.wait()  # it ends with this thread
                return

    def stop(self) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:  # noqa: S310  (our own address)
            return bool(answer.status == 200)
    except OSError:
        return False


def ui(*, port: int, root: Path) -> None:
    """Run MLflow's UI on the store that the registry uses, by default under `root`."""
    from training.registry import Registry  # noqa: PLC0415  (heavy)

    store = Registry.open(root)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        store.uri,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    if store.artifacts:
        command += ["--default-artifact-root", store.artifacts]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    print(f"MLflow on http://127.0.0.1:{port} (interrupt to stop)")  # noqa: T201
    subprocess.run(command, env=environment, check=False, cwd=Path.cwd())  # noqa: S603
