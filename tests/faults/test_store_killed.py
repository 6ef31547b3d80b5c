"""The store is killed with -9 under load, again and again: what was acknowledged is in the archive, each once."""

import asyncio
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.e2e.running import nudge_json, served, wait_until
from training import events as archive

KILLS = 3
CLIENTS = 8
PROGRAM = "fitness-coaching"


def store_pid(home: Path) -> int | None:
    """Return the process that runs the embedded server of a folder, by the socket on its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"valkey-server" in words[0] and any(str(home).encode() in word for word in words):
                return int(entry.name)
    return None


class Load:
    """Clients that decide and report until told to stop, and remember what was acknowledged."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.decided: set[tuple[str, str]] = set()
        self.reported: set[tuple[str, str]] = set()
        self.degraded = self.refused = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _all(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            await asyncio.gather(*(self._client(session, i) for i in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            who, which = f"c{number}-{turn % 50}", f"d{turn}"
            ask = {"program": PROGRAM, "customer_id": who, "decision_id": which}
            status, answer = await self._post(session, "/v1/decide", ask)
            assert status == 200, answer
            if answer["degraded"]:
                self.degraded += 1
                continue
            self.decided.add((who, which))
            outcome = {"outcome_id": f"o{turn}", "program": PROGRAM, "customer_id": who, "event": "app_opened"}
            status, answer = await self._post(session, "/v1/outcomes", [outcome])
            if status == 202 and not answer["errors"]:
                self.reported.add((who, f"o{turn}"))
            else:
                assert status == 503, answer
                self.refused += 1

    async def _post(self, session: aiohttp.ClientSession, path: str, body: object) -> tuple[int, Any]:
        async with session.post(f"{self.url}{path}", json=body) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_or_doubled_when_the_store_is_killed(tmp_path: Path) -> None:
    with served(tmp_path) as url, Load(url) as load:
        for _ in range(KILLS):
            before = len(load.reported)
            wait_until(lambda before=before: len(load.reported) > before + 100, what="load")
            pid = store_pid(tmp_path)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: store_pid(tmp_path) not in (None, pid), what="the store to be restarted")
        before = len(load.reported)
        wait_until(lambda: len(load.reported) > before + 100, what="load after the last kill")
    nudge_json("archive", home=tmp_path)
    rows = _archived(tmp_path)
    found = Counter(rows)
    acknowledged = {("decision", *d) for d in load.decided} | {("outcome", *o) for o in load.reported}
    print(f"acknowledged {len(acknowledged)}, archived {len(rows)}, degraded {load.degraded}, refused {load.refused}")
    assert not acknowledged - set(found), "acknowledged, but not archived"
    assert max(found.values()) == 1, "archived twice"


def _archived(home: Path) -> list[tuple[str, str, str]]:
    """Return every row of every file, before readers keep one of each."""
    import pyarrow.parquet

    folder = archive.program_folder(home / "var" / "archive", PROGRAM)
    rows = []
    for file in folder.glob("date=*/*.parquet"):
        table = pyarrow.parquet.read_table(file, partitioning=None).select(["kind", "customer_id", "id"])
        rows += list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return rows
