"""`nudge` as a person runs it: processes of its own, in a folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

PATIENCE = 60.0


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a process that keeps everything in `home`."""
    mine = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "MLFLOW_TRACKING_URI")}
    patient = {"NUDGE_DECIDE_SECONDS": "20", "NUDGE_STORE_SECONDS": "20"}  # a machine that stands still is not tested
    return {**mine, **patient, "NUDGE_HOME": str(home / "var"), "PYTHONPATH": str(Path(__file__).parents[2])}


def nudge(*words: str, home: Path, code: int = 0) -> str:
    """Run a command in `home` and return what it prints; its exit code must be `code`."""
    command = [sys.executable, "-m", "serving.cli", *words]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words} ended {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def nudge_json(*words: str, home: Path) -> Any:
    """Run a command with `--json` and return its result."""
    return msgspec.json.decode(nudge(*words, "--json", home=home))


@contextmanager
def served(home: Path, *options: str) -> Iterator[str]:
    """Run `nudge serve` for as long as the block lasts; yield its address once it is ready."""
    with serving(home, "--no-follow", *options) as (_, url):
        yield url


@contextmanager
def serving(home: Path, *options: str) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """Run `nudge serve` with all that belongs to it; yield the process, and its address once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=home, env=environment(home))
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _ready(url), what="the service to be ready")
        assert process.poll() is None, "the service ended"
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(done: Any, *, what: str) -> None:
    """Poll until something is so; fail after a minute."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def call(method: str, url: str, body: object = None) -> tuple[int, Any]:
    """Call the service and return the status and what it answers."""
    data = None if body is None else msgspec.json.encode(body)
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            return answer.status, msgspec.json.decode(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, msgspec.json.decode(error.read() or b"null")


def _ready(url: str) -> bool:
    try:
        return call("GET", f"{url}/readyz")[0] == 200
    except OSError:
        return False
