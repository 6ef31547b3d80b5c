"""How do many requests become few round trips?

Those that wait together are decided together: one read, one scoring, one commit, while the next ones gather. A
request is a *lane* of asks. Lanes take turns, so a large one does not keep a small one waiting; a customer is in one
batch at a time, and later asks of the same customer wait for the next. Nobody who stops waiting takes a batch along.
"""

import asyncio
import logging
import math
import time
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import NamedTuple, Protocol

from prometheus_client import Counter

from optimizer.engine import CHAMPION, Ask, Chooser, Optimizer
from optimizer.events import Decision, Salt, Scalar
from optimizer.guardrails import Request
from optimizer.program import Program
from serving import render, tracing
from serving.metrics import Laps, Metrics
from serving.publishing import in_force
from serving.render import Rendered
from serving.store import Commitment, Committed, Found, FullError, StoreError, Turn, Wanted

RETRIES = 3
"""How often a row that turned out stale is decided again before it is hold."""

TOGETHER = 2
"""Batches under way at once: one is scored while the other is being kept."""

SMALL = 16
"""Rows that are not worth parting into several batches: what a batch costs beside them is as much as they cost."""

LATELY = 0.1
"""Seconds after a batch within which the next one is of the same flow of requests."""

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _CROCKFORD for b in _CROCKFORD]

log = logging.getLogger("nudge.decider")


class OverloadedError(Exception):
    """More requests wait than may."""


class Keeper(Protocol):
    """What deciding needs of the store."""

    salt: Salt

    async def read(self, program: Program, wanted: Sequence[Wanted]) -> list[Found]: ...

    async def commit(self, program: Program, rows: Sequence[Commitment]) -> list[Committed]: ...


class Wish(NamedTuple):
    """One request for a decision, validated."""

    customer_id: str
    decision_id: str
    at: float
    context: Mapping[str, Scalar] = {}
    request: Request = Request()


@dataclass(slots=True)
class _Lane:
    """A request of one or many wishes, and who waits for all of their answers."""

    waiter: "asyncio.Future[list[bytes]]"
    since: float
    answers: list[bytes]
    left: int
    waiting: "deque[_Entry]" = field(default_factory=deque)
    span: object = field(default_factory=tracing.here)


@dataclass(slots=True)
class _Entry:
    """A wish on its way through a lane."""

    wish: Wish
    lane: _Lane
    index: int


class Breaker:
    """Keeps a failing store from being asked by everybody: after a failure it is tried again later and later.

    Args:
        shortest, longest: seconds until the next try, after the first failure and after many.
        clock: seconds, never going back.
    """

    def __init__(
        self, *, shortest: float = 0.05, longest: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shortest, self._longest, self._clock = shortest, longest, clock
        self._pause = 0.0
        self._closed_until = 0.0

    @property
    def open(self) -> bool:
        """Whether the store is not to be asked now."""
        return self._clock() < self._closed_until

    @property
    def healthy(self) -> bool:
        """Whether the store did what was asked of it last."""
        return self._pause == 0.0

    def worked(self) -> None:
        """Trust the store again."""
        self._pause = self._closed_until = 0.0

    def failed(self) -> None:
        """Leave the store alone for a while."""
        self._pause = min(max(2.0 * self._pause, self._shortest), self._longest)
        self._closed_until = self._clock() + self._pause


class Decider:
    """Decides for one program.

    Args:
        program: the program as it is now.
        chooser: the policy of the champion's arm; `swap` changes it.
        store: returns the store, or None while there is none.
        metrics: where it is measured.
        size: most rows of a batch.
        queue: most rows that wait.
        seconds: after so long a row that is not kept is answered as hold; a large request has so long for each batch.
        breaker: shared by all who ask the store.
        tracer: is told of each batch.
    """

    def __init__(
        self,
        program: Program,
        chooser: Chooser,
        *,
        store: Callable[[], Keeper | None],
        metrics: Metrics,
        size: int = 64,
        queue: int = 4096,
        seconds: float = 1.0,
        breaker: Breaker | None = None,
        tracer: tracing.Tracer | None = None,
    ) -> None:
        self.program = program
        self.choosers: Mapping[str, Chooser] = {CHAMPION: chooser}
        self.breaker = breaker or Breaker()
        self._tracer = tracer or tracing.Silent()
        self.latest = 0.0
        self._store, self._metrics = store, metrics
        self._stage = cache(partial(metrics.stage_seconds.labels, program.name))
        self._counter = cache(lambda counter, *labels: counter.labels(program.name, *labels))
        self._size, self._queue, self._seconds = size, queue, seconds
        self._lanes: deque[_Lane] = deque()
        self._freed: deque[_Entry] = deque()
        self._held: defaultdict[str, deque[_Entry]] = defaultdict(deque)
        self._busy: set[str] = set()
        self._waiting = 0
        self._ended = -math.inf
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many rows wait for a batch."""
        return self._waiting

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nothing is being decided."""
        return self._waiting == 0 and not self._busy

    def swap(self, arm: str, chooser: Chooser) -> None:
        """Let another policy serve an arm, from the next batch on."""
        self.choosers = {**self.choosers, arm: chooser}

    def check_room(self, rows: int) -> None:
        """Raise `OverloadedError` where so many more rows are too many."""
        if self._waiting + rows > self._queue:
            raise OverloadedError(
                f"{self._waiting} requests of {self.program.name} wait already, at most {self._queue} may"
            )

    def submit(self, wishes: Sequence[Wish]) -> "asyncio.Future[list[bytes]]":
        """Return what will be an answer for each wish, in order. Cancelling it takes nobody else along."""
        loop = asyncio.get_running_loop()
        lane = _Lane(loop.create_future(), loop.time(), [b""] * len(wishes), len(wishes))
        lane.waiting.extend([_Entry(wish, lane, i) for i, wish in enumerate(wishes)])
        self._lanes.append(lane)
        self._waiting += len(wishes)
        self._arrived.set()
        return lane.waiter

    async def preview(self, wish: Wish, store: Keeper) -> bytes:
        """Return what would be decided and why, as it would be kept; nothing is written."""
        (found,) = await store.read(self.program, [Wanted(wish.customer_id, "", wish.at)])
        made = self._made(store.salt, [wish], [found], laps=Laps())
        (rendered,) = render.decisions(self.program, [found.customer], made)
        return rendered.kept

    async def run(self) -> None:
        """Decide until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(TOGETHER):
                    group.create_task(self._work())
        finally:
            while batch := self._gather():
                self._hold(batch, "closing")

    async def _work(self) -> None:
        while True:
            await self._settled()
            batch = self._gather()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            try:
                await self._decide(batch)
            finally:
                self._ended = asyncio.get_running_loop().time()
                for entry in batch:
                    self._free(entry.wish.customer_id)

    async def _settled(self) -> None:
        """Let everybody in who is at the door: return once a turn of the loop has brought nobody new."""
        seen = 0
        while seen < self._waiting < self._size:
            seen = self._waiting
            await asyncio.sleep(0)

    # Who is next?

    def _gather(self) -> list[_Entry]:
        """Take the next rows: those that waited for their customer's turn, then a fair part of each lane."""
        batch: list[_Entry] = []
        size = self._share()
        while self._freed and len(batch) < size:
            batch.append(self._freed.popleft())
        while self._lanes and len(batch) < size:
            lane = self._lanes.popleft()
            self._take(lane, batch, most=max(1, (size - len(batch)) // (len(self._lanes) + 1)))
            if lane.waiting:
                self._lanes.append(lane)
        self._waiting -= len(batch)
        return batch

    def _share(self) -> int:
        """Return how many rows a batch has room for.

        All that wait go together; where requests keep coming, as many as leave the other batch its part. Otherwise all
        would be answered at once, all would ask again at once, and nothing were scored while they are being kept. One
        request alone is not parted: its rows take turns in their order.
        """
        if len(self._lanes) == 1 or asyncio.get_running_loop().time() - self._ended > LATELY:
            return self._size
        return min(self._size, max(SMALL, math.ceil((self._waiting + len(self._busy)) / TOGETHER)))

    def _take(self, lane: _Lane, batch: list[_Entry], *, most: int) -> None:
        if lane.waiter.done():  # nobody waits for it any more
            self._waiting -= len(lane.waiting)
            lane.waiting.clear()
        for _ in range(min(most, len(lane.waiting))):
            entry = lane.waiting.popleft()
            if entry.wish.customer_id in self._busy:
                self._held[entry.wish.customer_id].append(entry)
            else:
                self._busy.add(entry.wish.customer_id)
                batch.append(entry)

    def _free(self, customer_id: str) -> None:
        """Let the customer's next ask in."""
        held = self._held.get(customer_id)
        while held:
            entry = held.popleft()
            if not entry.lane.waiter.done():
                self._freed.append(entry)
                self._arrived.set()
                return
            self._waiting -= 1
        self._held.pop(customer_id, None)
        self._busy.discard(customer_id)

    def _answer(self, entry: _Entry, kept: bytes) -> None:
        lane = entry.lane
        lane.answers[entry.index] = render.answer_of(kept)
        lane.left -= 1
        if lane.left == 0 and not lane.waiter.done():
            lane.waiter.set_result(lane.answers)

    def _hold(self, entries: Sequence[_Entry], reason: str) -> None:
        """Answer hold: not a decision, nothing is kept, and the same id may be asked again."""
        if entries:
            self._metrics.degraded.labels(self.program.name, reason).inc(len(entries))
        for entry in entries:
            wish = entry.wish
            self._answer(entry, render.degraded(self.program.name, wish.customer_id, wish.decision_id))

    # One batch.

    async def _decide(self, batch: list[_Entry]) -> None:
        now = asyncio.get_running_loop().time()
        self._observe("queue", now - min(e.lane.since for e in batch))
        self._metrics.batch_rows.labels(self.program.name).observe(len(batch))
        self._metrics.waiting.labels(self.program.name).set(self._waiting)
        entries = [e for e in batch if now - e.lane.since <= self._patience(e.lane)]
        self._hold([e for e in batch if now - e.lane.since > self._patience(e.lane)], "late")
        store = self._store()
        if store is None or self.breaker.open:
            self._hold(entries, "store")
            return
        left = {id(e): e for e in entries}
        try:
            async with asyncio.timeout(self._seconds):
                await self._attempts(store, left)
        except asyncio.CancelledError:
            self._hold(list(left.values()), "closing")
            raise
        except (StoreError, TimeoutError) as error:
            if not isinstance(error, FullError):  # a full store still answers: outcomes are told when to come back
                self.breaker.failed()
            log.warning("store failed while deciding", extra={"error": type(error).__name__, "rows": len(left)})
            self._hold(list(left.values()), "store")
        except Exception:
            log.exception("a batch could not be decided", extra={"program": self.program.name, "rows": len(left)})
            self._hold(list(left.values()), "error")
        else:
            self.breaker.worked()
            self._hold(list(left.values()), "stale")

    def _patience(self, lane: _Lane) -> float:
        """Return the seconds that a request may wait: one that fills several batches, as many times as long."""
        return self._seconds * max(1.0, len(lane.answers) / self._size)

    async def _attempts(self, store: Keeper, left: dict[int, _Entry]) -> None:
        """Decide rows until all are kept, or the retries are used up; `left` is what is not answered yet."""
        for attempt in range(1 + RETRIES):
            if not left:
                return
            if attempt:
                self._metrics.stale.labels(self.program.name).inc(len(left))
            await self._attempt(store, left)

    async def _attempt(self, store: Keeper, left: dict[int, _Entry]) -> None:
        laps, spans = Laps(), [e.lane.span for e in left.values()]
        try:
            await self._step(store, left, laps=laps)
        finally:  # what took too long took its time, too
            for stage, seconds in laps.seconds.items():
                self._observe(stage, seconds)
            self._tracer.batch(self.program.name, laps, spans)

    async def _step(self, store: Keeper, left: dict[int, _Entry], *, laps: Laps) -> None:
        """Read, score and commit once."""
        try:
            found = await self._read(store, left)
        finally:
            laps.mark("read")
        fresh: list[tuple[_Entry, Found]] = []
        for entry, before in found:
            if before.answer is None:
                fresh.append((entry, before))
            else:
                self._answer(left.pop(id(entry)), before.answer)
        scored = self._score(store.salt, fresh, left, laps=laps)
        try:
            became = await store.commit(self.program, [row.commitment for row in scored]) if scored else []
        finally:
            laps.mark("commit")
        kept = []
        for row, result in zip(scored, became, strict=True):
            if result.status != "stale":
                self._answer(left.pop(id(row.entry)), result.answer)
            if result.status == "committed":
                kept.append(row)
        self._count(kept)

    async def _read(self, store: Keeper, left: dict[int, _Entry]) -> list[tuple[_Entry, Found]]:
        """Read what a batch is about; where that cannot be understood, row by row, so that a broken one fails alone."""
        entries = list(left.values())
        try:
            found = await store.read(self.program, [_wanted(e.wish) for e in entries])
            return list(zip(entries, found, strict=True))
        except (StoreError, TimeoutError):
            raise
        except Exception:
            log.exception("a batch could not be read", extra={"program": self.program.name, "rows": len(entries)})
        pairs: list[tuple[_Entry, Found]] = []
        for entry in entries:
            try:
                pairs += [(entry, before) for before in await store.read(self.program, [_wanted(entry.wish)])]
            except (StoreError, TimeoutError):
                raise
            except Exception:  # noqa: BLE001  (logged above, with the batch)
                self._hold([left.pop(id(entry))], "error")
        return pairs

    def _score(
        self, salt: Salt, fresh: Sequence[tuple[_Entry, Found]], left: dict[int, _Entry], *, laps: Laps
    ) -> "list[_Scored]":
        """Decide and render a batch; where that fails, row by row, so that a broken row fails alone."""
        try:
            return self._scored(salt, fresh, laps=laps)
        except Exception:
            log.exception("a batch could not be scored", extra={"program": self.program.name, "rows": len(fresh)})
        scored: list[_Scored] = []
        for row in fresh:
            try:
                scored += self._scored(salt, [row], laps=laps)
            except Exception:  # noqa: BLE001  (logged above, with the batch)
                self._hold([left.pop(id(row[0]))], "error")
        return scored

    def _scored(self, salt: Salt, fresh: Sequence[tuple[_Entry, Found]], *, laps: Laps) -> "list[_Scored]":
        found = [f for _, f in fresh]
        made = self._made(salt, [e.wish for e, _ in fresh], found, laps=laps)
        rendered = render.decisions(self.program, [f.customer for f in found], made)
        laps.mark("render")
        rows = zip(fresh, made, rendered, strict=True)
        return [_Scored(entry, Commitment(f, d, r.kept), r) for (entry, f), d, r in rows]

    def _made(self, salt: Salt, wishes: Sequence[Wish], found: Sequence[Found], *, laps: Laps) -> list[Decision]:
        """Decide turn by turn: rows of one turn see the same budget. In the order of the wishes."""
        turns: defaultdict[Turn, list[int]] = defaultdict(list)
        for i, before in enumerate(found):
            turns[before.turn].append(i)
        made: dict[int, Decision] = {}
        for rows in turns.values():
            asks = [Ask(found[i].customer, *wishes[i][1:]) for i in rows]
            choosers, shared = in_force(self.program, self.choosers, found[rows[0]].shared, laps=laps)
            made |= zip(rows, Optimizer(self.program, choosers, salt).decide(asks, shared), strict=True)
            laps.mark("draw")
        return [made[i] for i in range(len(wishes))]

    # What was it?

    def _observe(self, stage: str, seconds: float) -> None:
        self._stage(stage).observe(seconds)

    def _count(self, kept: "Sequence[_Scored]") -> None:
        metrics, tally = self._metrics, Tally[tuple[Counter, *tuple[str, ...]]]()
        decisions = [row.commitment.decision for row in kept]
        self.latest = max([self.latest, *(d.at for d in decisions)])
        for row, made in zip(kept, decisions, strict=True):
            tally[metrics.decisions, made.arm, "nudge" if made.action else "hold"] += 1
            if row.rendered.hold_reason is not None:
                tally[metrics.holds, row.rendered.hold_reason] += 1
        for rule, times in Tally(chain.from_iterable([d.blocked.values() for d in decisions])).items():
            tally[metrics.blocks, rule] += times
        for labels, times in tally.items():
            self._counter(*labels).inc(times)
        metrics.sample(self.program.name, ((d.arm, d.probabilities) for d in decisions))


class _Scored(NamedTuple):
    """A row that is decided and rendered, and not kept yet."""

    entry: _Entry
    commitment: Commitment
    rendered: Rendered


def _wanted(wish: Wish) -> Wanted:
    return Wanted(wish.customer_id, wish.decision_id, wish.at)


def new_id(shard: int, *, at: float, entropy: bytes) -> str:
    """Return a decision id that carries its shard and sorts by time: `<shard in hex>-<ULID>`.

    Args:
        shard: of the customer.
        at: seconds since the epoch.
        entropy: ten random bytes.

    >>> new_id(14, at=1_767_225_600.0, entropy=bytes(10))
    'e-01KDVDNA000000000000000000'
    """
    value = (int(at * 1000) << 80) | int.from_bytes(entropy, "big")
    return f"{shard:x}-{''.join([_PAIRS[value >> bits & 1023] for bits in range(120, -1, -10)])}"
