"""How is it? What is measured now and then rather than in passing, and what `/readyz` says of each part."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from optimizer.engine import Chooser
from optimizer.events import Outcome
from optimizer.program import MINOR_UNITS, Fault, Program
from serving import hooks, records, reservations
from serving.metrics import Metrics
from serving.publishing import Slot
from serving.schemas import Part
from serving.store import Store

EVERY = 5.0
"""Seconds between two looks."""

LATE = 3_600.0
"""Seconds that events may wait to be archived before somebody should look."""

BEAT = 60
"""Seconds that the follower of the registry may be silent."""

_LITTLE, _LEAST = 0.10, 0.01
"""Shares of the disk that are free: below the first it is said, below the second nothing may be acknowledged."""

_SAMPLED = 32
"""Outcomes, between two looks, of which is asked whether a decision's window holds them."""


class _Happened(NamedTuple):
    program: str
    customer_id: str
    at: float
    window: float


class _When(msgspec.Struct, frozen=True):
    at: float


class Vitals:
    """Looks at what no single request shows.

    Args:
        metrics: where it is said.
        home: the folder whose disk is watched.
        clock: seconds since the epoch.
    """

    def __init__(self, metrics: Metrics, *, home: Path, clock: Callable[[], float]) -> None:
        self._metrics, self._home, self._clock = metrics, home, clock
        self._happened: deque[_Happened] = deque(maxlen=_SAMPLED)

    def sample(self, program: Program, outcomes: Iterable[Outcome]) -> None:
        """Remember some outcomes that the program knows, to ask later whether a decision's window holds them."""
        windows = program.windows
        for outcome in outcomes:
            event = program.event_index.get(outcome.event)
            if event is not None and not outcome.revision:
                window = float(windows[event])
                self._happened.append(_Happened(program.name, outcome.customer_id, outcome.at, window))

    async def look(self, store: Store | None, programs: Sequence[Program]) -> None:
        """Say how things are: budgets, stocks, what is not archived yet, the disk, and how many outcomes join."""
        now = self._metrics.now
        now.say("nudge_disk_free_ratio", self._free())
        self._metrics.take_entropy()
        if store is None:
            return
        for program in programs:
            for joined in ("yes", "no"):  # a share of nothing is none, not unknown
                self._metrics.joins.labels(program.name, joined)
            await self._say_left(store, program)
        waiting, oldest = await backlog(store)
        now.say("nudge_stream_backlog", waiting)
        now.say("nudge_stream_lag_seconds", 0.0 if oldest is None else max(self._clock() - oldest, 0.0))
        while self._happened:
            happened = self._happened.popleft()
            joined = "yes" if await _joins(store, happened) else "no"
            self._metrics.joins.labels(happened.program, joined).inc()

    async def _say_left(self, store: Store, program: Program) -> None:
        now, budget = self._metrics.now, program.guardrails.budget
        if budget is not None:
            number = reservations.period(program, self._clock())
            used = await _used(store, "budget", program.name, number)
            now.say("nudge_budget_amount", budget.amount, program=program.name)
            now.say("nudge_budget_left", budget.amount - used / MINOR_UNITS, program=program.name)
        else:  # an edit may have removed it
            now.forget("nudge_budget_amount", program=program.name)
            now.forget("nudge_budget_left", program=program.name)
        for incentive, stock in reservations.stocked(program).items():
            left = stock - await _used(store, "stock", program.name, incentive)
            now.say("nudge_stock_left", left, program=program.name, incentive=incentive)

    def _free(self) -> float:
        there = next(p for p in (self._home.absolute(), *self._home.absolute().parents) if p.exists())
        disk = shutil.disk_usage(there)
        return disk.free / disk.total

    def disk(self) -> Part:
        """Return whether there is room for what is acknowledged."""
        free = self._free()
        detail = f"{free:.1%} of the disk under NUDGE_HOME is free"
        mend = "; make room: archive, or move old archives elsewhere" if free < _LITTLE else ""
        return Part(ok=free >= _LEAST, warning=free < _LITTLE, detail=detail + mend)

    async def log(self, store: Store) -> Part:
        """Return whether the event log is being archived."""
        waiting, oldest = await backlog(store)
        lag = 0.0 if oldest is None else max(self._clock() - oldest, 0.0)
        detail = f"{waiting} events are not archived yet" + (f", the oldest for {lag:.0f} s" if waiting else "")
        late = lag > LATE
        return Part(ok=True, warning=late, detail=detail + ("; run nudge archive --watch" if late else ""))


async def backlog(store: Store) -> tuple[int, float | None]:
    """Return how many events are not archived yet, and when the oldest was logged."""
    keys = [records.events_key(shard) for shard in range(store.shards)]
    lengths = await store.commands([("XLEN", key) for key in keys])
    first = await store.commands([("XRANGE", key, "-", "+", "COUNT", 1) for key in keys])
    times = [int(entries[0][0].partition(b"-")[0]) / 1000.0 for entries in first if entries]
    return sum(lengths), min(times, default=None)


async def _used(store: Store, kind: str, program: str, name: object) -> int:
    keys = [records.shared_key(shard, kind, program, name) for shard in range(store.shards)]
    return sum(int(v or 0) for v in await store.commands([("GET", key) for key in keys]))


async def _joins(store: Store, happened: _Happened) -> bool:
    """Whether some decision about the customer that is still known has the outcome in its window."""
    kept = await store.history(happened.program, happened.customer_id, limit=100)
    decided = (msgspec.json.decode(k.partition(b"\n")[2], type=_When).at for k in kept)
    return any(at <= happened.at < at + happened.window for at in decided)


async def webhooks(store: Store, metrics: Metrics, targets: Sequence[str]) -> dict[str, Part]:
    """Return how many messages wait and how many were given up, a part for all targets; nothing without any."""
    if not targets:
        return {}
    said, warning = [], False
    for target in targets:
        keys = [key(s, target) for key in (hooks.messages_key, hooks.dead_key) for s in range(store.shards)]
        counts = await store.commands([("HLEN", key) for key in keys])
        waiting, dead = sum(counts[: store.shards]), sum(counts[store.shards :])
        metrics.now.say("nudge_webhooks_waiting", waiting, target=target)
        metrics.now.say("nudge_webhooks_dead", dead, target=target)
        said.append(f"{target}: {waiting} waiting, {dead} dead")
        warning = warning or dead > 0
    mend = "; see nudge webhooks list --help, then replay or drop them" if warning else ""
    return {"webhooks": Part(ok=True, warning=warning, detail="; ".join(said) + mend)}


async def beat(store: Store, *, at: float) -> None:
    """Say that the registry is being followed."""
    await store.command("SET", records.global_key("follower"), f"{at:.0f}", "EX", BEAT)


async def follower(store: Store) -> Part:
    """Return whether somebody follows the registry; without, policies stay as they are."""
    if await store.command("GET", records.global_key("follower")) is None:
        detail = "nobody publishes the champion when its alias moves in MLflow; run nudge follow"
        return Part(ok=True, warning=True, detail=detail)
    return Part(ok=True, detail="the registry is followed")


def programs(served: Mapping[str, Program], faults: Sequence[Fault]) -> Part:
    """Return what is served, and which edits were refused."""
    names = ", ".join(f"{name} {program.version}" for name, program in served.items())
    refused = "; ".join(f"refused: {fault}" for fault in faults)
    return Part(ok=bool(served), warning=bool(faults), detail=f"{names}; {refused}" if refused else names)


def policies(name: str, choosers: Mapping[str, Chooser], refusals: Mapping[Slot, str]) -> Part:
    """Return the policies of a program, and which were refused."""
    serving = ", ".join(f"{arm}: {c.name} {c.version}" for arm, c in choosers.items())
    refused = [f"{s.arm} {version} was refused, see the log" for s, version in refusals.items() if s.program == name]
    return Part(ok=True, warning=bool(refused), detail="; ".join([serving, *refused]))
