"""A service under load, with what it stands on failing at seeded moments; and what came of it.

An API process, the embedded server, clients who ask the same again until it is acknowledged, and a list of faults. A
fault point is a fault at a moment: which one, when, how long and at which byte is drawn from the seed.
"""

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet

from optimizer.program import DAY, Program
from serving import embedded, records, stream
from serving.archive import archiving
from serving.store import Store, StoreError
from tests.e2e.running import free_port
from tests.faults.proxy import Proxy
from tests.faults.replay import Verdict, replayed
from tests.small_program import TOML
from training import events as parquet

CLIENTS = 12
CUSTOMERS = 60
PATIENCE = 40.0

GUARDRAILS = """
[guardrails]
consent = "opt-out"
quiet_from = "02:00"
quiet_until = "03:00"
cap_per_day = 3
cap_per_week = 9
cooldown = "0m"

[guardrails.budget]
amount = 90.0
period = "1d"
"""

TEXT = TOML.replace("stock = 2", "stock = 60").replace("min_momentum = 0.5", "min_momentum = 0.2") + GUARDRAILS

SLOW_SYNC = """
#define _GNU_SOURCE
#include <unistd.h>
#include <sys/syscall.h>
int fdatasync(int fd) { if (access("%s", F_OK) == 0) usleep(30000); return syscall(SYS_fdatasync, fd); }
int fsync(int fd) { if (access("%s", F_OK) == 0) usleep(30000); return syscall(SYS_fsync, fd); }
"""
"""Slows the server down where it makes things durable, while a file exists."""


@dataclass
class Counts:
    """What came of a run."""

    points: Counter[str] = field(default_factory=Counter)
    decided: set[tuple[str, str]] = field(default_factory=set)
    reported: set[tuple[str, str]] = field(default_factory=set)
    degraded: int = 0
    refused: int = 0
    dropped: int = 0
    differed: int = 0
    archived_twice: int = 0
    lost: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    def said(self) -> dict[str, object]:
        """Return it as plain data."""
        return {
            "fault_points": dict(sorted(self.points.items())),
            "acknowledged": len(self.decided) + len(self.reported),
            "degraded": self.degraded,
            "refused": self.refused,
            "dropped": self.dropped,
            "lost": self.lost,
            "doubled": self.verdict.doubled + self.archived_twice,
            "another_answer_to_the_same_id": self.differed,
            "overspent": self.verdict.overspent,
            "over_cap": self.verdict.over_cap,
            "other_mask": self.verdict.other_mask,
            "masks_checked": self.verdict.checked,
        }


class World:
    """Everything that runs, and what has become of it."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder, self.chance, self.counts = folder, random.Random(seed), Counts()
        self.program = Program.parse(TEXT, source="small.toml")
        self.events: dict[tuple[int, int], records.Event] = {}
        self._stopping = False
        self._answers: dict[tuple[str, str], bytes] = {}
        self._port = free_port()
        self._acknowledged = 0

    # What runs.

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the server, the proxy, the API and the clients for as long as the block lasts."""
        (self.folder / "home" / "programs").mkdir(parents=True)
        (self.folder / "home" / "programs" / "small.toml").write_text(TEXT)
        self._ahead = self.folder / "ahead"
        self._ahead.write_text("0")
        binary, self._slow = slowed(self.folder)
        with embedded.serve(self.folder / "store", binary=binary) as self.server:
            self.proxy = Proxy(self.folder / "proxy.sock", Path(self.server.url.removeprefix("unix://")))
            await self.proxy.open()
            self._start_api()
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as self._session:
                tasks = [asyncio.create_task(self._client(i)) for i in range(CLIENTS)]
                try:
                    yield
                finally:
                    self._stopping = True
                    await asyncio.gather(*tasks)
            await asyncio.to_thread(self._stop_api)
            await self._settle()
            await self.proxy.close()

    def _start_api(self) -> None:
        environment = {
            **os.environ,
            "NUDGE_HOME": str(self.folder / "home"),
            "REDIS_URL": f"unix://{self.proxy.path}",
            "NUDGE_DECIDE_SECONDS": "0.4",
            "NUDGE_STORE_SECONDS": "0.5",
        }
        command = [sys.executable, "-m", "tests.faults.api", str(self._port), str(self._ahead)]
        self._api = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])

    def _stop_api(self) -> None:
        self._api.terminate()
        self._api.wait()

    # Who asks.

    async def _client(self, number: int) -> None:
        turn = 0
        while not self._stopping:
            turn += 1
            who, which = f"c{self.chance.randrange(CUSTOMERS)}", f"d{number}-{turn}"
            answer = await self._until_decided(who, which)
            if answer is None:
                continue
            kinds = ["step", "shown", "not_shown"] if answer["action"] else ["step"]
            outcome = {
                "outcome_id": f"o{number}-{turn}",
                "program": "small",
                "customer_id": who,
                "event": self.chance.choice(kinds),
                "decision_id": which,
            }
            await self._until_reported(outcome)

    async def _until_decided(self, who: str, which: str) -> Any:
        """Ask under the same id until it is decided; sometimes once more, for the same answer must come back."""
        body = {"program": "small", "customer_id": who, "decision_id": which}
        while not self._stopping:
            status, raw = await self._post("/v1/decide", body)
            answer = json.loads(raw) if status == 200 else {"degraded": True}
            assert status in (0, 200, 429), raw
            if answer["degraded"]:
                self.counts.degraded += status == 200
                await asyncio.sleep(0.02)
                continue
            self.counts.differed += self._answers.setdefault((who, which), raw) != raw
            self.counts.decided.add((who, which))
            self._acknowledged += 1
            if self.chance.random() < 0.1:
                status, again = await self._post("/v1/decide", body)
                if status == 200 and not json.loads(again)["degraded"]:
                    self.counts.differed += again != raw
            return answer
        return None

    async def _until_reported(self, outcome: dict[str, str]) -> None:
        while not self._stopping:
            status, raw = await self._post("/v1/outcomes", [outcome])
            assert status in (0, 202, 503), raw
            if status == 202:
                assert not json.loads(raw)["errors"], raw
                self.counts.reported.add((outcome["customer_id"], outcome["outcome_id"]))
                self._acknowledged += 1
                return
            self.counts.refused += status == 503
            await asyncio.sleep(0.02)

    async def _post(self, path: str, body: object) -> tuple[int, bytes]:
        """Return status and body; status 0 where the connection broke, so that nobody knows what was kept."""
        try:
            async with self._session.post(f"http://127.0.0.1:{self._port}{path}", json=body) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.counts.dropped += 1
            await asyncio.sleep(0.05)
            return 0, b""

    async def progressed(self, by: int = 5) -> None:
        """Return once so many more have been acknowledged: the service works."""
        aim, deadline = self._acknowledged + by, time.monotonic() + PATIENCE
        while self._acknowledged < aim:
            assert time.monotonic() < deadline, f"nothing is acknowledged any more, after {self.counts.points}"
            if self._api.poll() is not None:
                self._start_api()
            await asyncio.sleep(0.01)

    # What fails.

    async def point(self, fault: str) -> None:
        """Let load run, let one thing fail at a moment of its own, and wait until the service works again."""
        await self.progressed()
        await asyncio.sleep(self.chance.random() * 0.1)
        await FAULTS[fault](self)
        self.counts.points[fault] += 1
        await self.progressed()

    async def api_killed(self) -> None:
        """Kill the API process; it is started again."""
        self._api.kill()
        await asyncio.to_thread(self._api.wait)
        self._start_api()

    async def store_killed(self) -> None:
        """Kill the server; whoever watches over it starts it again."""
        pid = self.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def store_killed_slow(self) -> None:
        """Kill the server while what it makes durable takes long."""
        self._slow.touch()
        await asyncio.sleep(self.chance.uniform(0.05, 0.3))
        await self.store_killed()
        self._slow.unlink()

    async def store_paused(self) -> None:
        """Stop the server for a while, longer than anybody waits for it or not."""
        pid = self.server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(self.chance.choice([0.05, 0.3, 0.8]))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    async def reply_cut(self) -> None:
        """Cut the connection to the server in the middle of a reply."""
        before = self.proxy.cuts
        self.proxy.cut(self.chance.randrange(4_000))
        await _until(lambda: self.proxy.cuts > before)

    async def disk_full(self) -> None:
        """Let the server's log grow by some bytes more and no further: the write that reaches the end falls short."""
        pid, files = self.server.pid, sorted((self.folder / "store" / "appendonlydir").glob("*.incr.aof"))
        assert pid is not None
        room = max(file.stat().st_size for file in files) + self.chance.randrange(20_000)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        await _until(lambda: self.server.pid != pid)

    async def clock_jump(self) -> None:
        """Let the service's clock jump by up to two days, ahead or back."""
        self._ahead.write_text(str(float(self._ahead.read_text()) + self.chance.uniform(-2, 2) * DAY))

    async def archivers(self) -> None:
        """Kill an archiver between two of its steps, and let two others go on at once."""
        stop_after = self.chance.randrange(6)
        with suppress(StoreError):
            async with await self._store() as store:
                await self._archive(store, stop_after=stop_after)
                await store.command("DEL", records.lease_key(0))  # it lapses, but nobody here waits for it
                await asyncio.gather(self._archive(store), self._archive(store))

    async def _archive(self, store: Store, *, stop_after: int = 1_000_000) -> None:
        steps = archiving(store, self.folder / "archive", most=200, seconds=30.0)
        for _ in range(stop_after):
            with suppress(StopAsyncIteration):
                step = await anext(steps)
                if step.name == "planned":  # what is about to be trimmed is looked at before
                    await self._look(store)
                continue
            return

    # What is there afterwards.

    async def _store(self) -> Store:
        return await Store.open(self.server.url)

    async def _look(self, store: Store) -> None:
        """Remember every entry of the log, in its order."""
        start = "-" if not self.events else "({}-{}".format(*max(self.events))
        for name, fields in await store.command("XRANGE", records.events_key(0), start, "+"):
            milliseconds, _, sequence = name.decode().partition("-")
            named = dict(zip(fields[::2], fields[1::2], strict=True))
            event = records.decode_event(named[b"kind"], named[b"payload"])
            self.events[int(milliseconds), int(sequence)] = event

    async def _settle(self) -> None:
        """Archive the rest and compare what is there with what was acknowledged."""
        async with await self._store() as store:
            await self._look(store)
            await store.command("DEL", records.lease_key(0))
            await self._archive(store)
            assert await stream.backlog(store) == 0
        rows = Counter(_archived(self.folder / "archive"))
        acknowledged = {("decision", *d) for d in self.counts.decided} | {("outcome", *o) for o in self.counts.reported}
        self.counts.lost = len(acknowledged - set(rows))
        self.counts.archived_twice = sum(n - 1 for n in rows.values())
        self.counts.verdict = replayed(self.program, [self.events[key] for key in sorted(self.events)])


FAULTS: dict[str, Callable[[World], Awaitable[None]]] = {
    "API killed": World.api_killed,
    "store killed": World.store_killed,
    "store killed while it syncs slowly": World.store_killed_slow,
    "store paused": World.store_paused,
    "reply cut": World.reply_cut,
    "disk full": World.disk_full,
    "clock jump": World.clock_jump,
    "archiver killed, two at once": World.archivers,
}


async def run(folder: Path, *, seed: int, points: int) -> Counts:
    """Return what came of so many fault points, each kind as often as the others."""
    world = World(folder, seed=seed)
    kinds = [*FAULTS] * (points // len(FAULTS)) + world.chance.sample([*FAULTS], points % len(FAULTS))
    world.chance.shuffle(kinds)
    async with world.running():
        for kind in kinds:
            await world.point(kind)
    return world.counts


async def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it did not fail"
        await asyncio.sleep(0.005)


def slowed(folder: Path) -> tuple[Path | None, Path]:
    """Return a server whose syncs are slow while a file exists, and that file; None without a C compiler.

    Then a slow disk is not tried, and the server is killed as it is.
    """
    slow, library, source = folder / "slow", folder / "slow.so", folder / "slow.c"
    compiler = shutil.which("cc")
    if compiler is None:
        return None, slow
    source.write_text(SLOW_SYNC % (slow, slow))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    binary = folder / "valkey-server"
    binary.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {embedded.our_binary()} "$@"\n')
    binary.chmod(0o700)
    return binary, slow


def _archived(folder: Path) -> list[tuple[str, str, str]]:
    """Return every row of every file, before readers keep one of each."""
    rows: list[tuple[str, str, str]] = []
    for file in parquet.program_folder(folder, "small").glob("date=*/*.parquet"):
        table = pyarrow.parquet.read_table(file, partitioning=None).select(["kind", "customer_id", "id"])
        rows += list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return rows
