"""What is running? The parts of a service, how they start and stop, and what they do with a valid request."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from optimizer.engine import CHAMPION, Chooser
from optimizer.events import Outcome
from optimizer.program import Attribute, Program
from serving import problems, programs, publishing, schemas, validation
from serving.auth import Gate, Key
from serving.decider import Breaker, Decider, OverloadedError, Wish, new_id
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.publishing import Follower, Slot
from serving.schemas import Part, RowError
from serving.settings import Settings
from serving.store import Store, StoreError
from serving.validation import Clock, InvalidError

_AGAIN = 1.0
"""Seconds until what failed in the background is tried again."""

_SWEEP = 5.0
"""Seconds between two looks for reservations that expired."""

T = TypeVar("T")

log = logging.getLogger("nudge.service")


class Tally(NamedTuple):
    """What became of reported outcomes."""

    accepted: int
    duplicates: int
    errors: list[RowError]


class Service:
    """The parts of a running service. Opened and closed by the app's lifespan.

    Args:
        settings: how it runs.
        clock: seconds since the epoch.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics()
        self.gate = Gate(settings.keys_file, rate=settings.rate)
        self.breaker = Breaker()
        self.sources = programs.load(settings.programs)
        self.deciders = {name: self._decider(source.program) for name, source in self.sources.items()}
        self.follower = Follower(
            {name: source.program for name, source in self.sources.items()},
            folder=settings.policies,
            secret=publishing.secret(settings.secret_file, given=settings.secret),
            swap=self._swap,
            refused=lambda slot: self.metrics.policy_refused.labels(*slot).inc(),
        )
        self._store: Store | None = None
        self._unreachable = ""
        self._tasks: list[asyncio.Task[None]] = []

    # Life cycle.

    async def open(self) -> None:
        """Start serving: with the store if it can be reached, degraded if it cannot be yet.

        Raises:
            StoreError: the store is there and refuses to be used.
        """
        await asyncio.to_thread(self.follower.restore)
        await self._connect()
        for work in (*(d.run for d in self.deciders.values()), self._follow, self._sweep):
            self._tasks.append(asyncio.create_task(_for_ever(work)))

    async def close(self) -> None:
        """Stop serving."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    def _decider(self, program: Program) -> Decider:
        chooser = publishing.uniform(program)
        self._note(Slot(program.name, CHAMPION), old="", new=chooser.version)
        return Decider(
            program,
            chooser,
            store=lambda: self._store,
            metrics=self.metrics,
            size=self.settings.batch,
            queue=self.settings.queue,
            seconds=self.settings.decide_seconds,
            breaker=self.breaker,
        )

    def _swap(self, slot: Slot, chooser: Chooser) -> None:
        old = self.deciders[slot.program].choosers.get(slot.arm)
        self.deciders[slot.program].swap(slot.arm, chooser)
        self._note(slot, old=old.version if old else "", new=chooser.version)

    def _note(self, slot: Slot, *, old: str, new: str) -> None:
        if old and old != new:
            self.metrics.policy.remove(*slot, old)
        self.metrics.policy.labels(*slot, new).set(self.clock())

    async def _connect(self) -> None:
        url = self.settings.redis_url
        if url is None:
            raise ValueError("REDIS_URL is not set: start with `nudge serve`, which brings its own store, or set it")
        try:
            store = await Store.open(url, limit=self.settings.store_seconds)
            for source in self.sources.values():
                await store.put_program(source.program.name, source.program.version, source.text)
        except StoreError as error:
            # A store that answers and refuses is a mistake to mend; one that does not answer may come back.
            if error.__cause__ is None and not isinstance(error.__context__, TimeoutError):
                raise
            self._unreachable = str(error)
            log.warning("the store cannot be reached", extra={"error": type(error).__name__})
            return
        await self.follower.look(store)
        self._store = store

    async def _follow(self) -> None:
        while True:
            if self._store is None:
                await self._connect()
            else:
                await self.follower.look(self._store)
            self.metrics.store_up.set(self._store is not None and self.breaker.healthy)
            await asyncio.sleep(self.settings.follow_seconds if self._store is not None else _AGAIN)

    async def _sweep(self) -> None:
        """Release what expired unshown, where programs report what is shown. A simulated store has its own clock."""
        while True:
            await asyncio.sleep(_SWEEP)
            for decider in self.deciders.values():
                if self._store is not None and decider.program.guardrails.reports_shown:
                    now = decider.latest if self._store.simulated else self.clock()
                    await self._store.sweep(decider.program, now=now)

    # What requests need.

    @property
    def store(self) -> Store:
        """The store; a 503 where there is none yet, or it has just failed."""
        if self._store is None or self.breaker.open:
            raise problems.unavailable("the store cannot be reached; nothing was kept, so send it again")
        return self._store

    async def kept(self, work: Awaitable[T]) -> T:
        """Return what the store answers; a 503 if it fails."""
        try:
            answer = await work
        except StoreError as error:
            self.breaker.failed()
            log.warning("the store failed", extra={"error": type(error).__name__})
            raise problems.unavailable(
                "the store failed while this was under way: it may be kept or not, so send it again; it counts once"
            ) from None
        self.breaker.worked()
        return answer

    def decider(self, key: Key, name: str) -> Decider:
        """Return what decides for a program; the problem if it is not served or not for this key."""
        if not key.may_see(name):
            raise ProblemError(403, "forbidden", f"key {key.name!r} is for {', '.join(key.programs)}, not for {name!r}")
        if name not in self.deciders:
            served = ", ".join(n for n in self.deciders if key.may_see(n))
            raise ProblemError(404, "unknown-program", f"program {name!r} is not served here; use one of {served}")
        return self.deciders[name]

    def attributes(self, key: Key) -> list[Attribute]:
        """Return every attribute that a program of this key declares."""
        return [a for name, d in self.deciders.items() if key.may_see(name) for a in d.program.attributes]

    def _clock(self, key: Key) -> Clock:
        simulated = self._store is None or self._store.simulated  # without a store nothing is decided anyway
        return Clock(self.clock(), free="simulate" in key.scopes and simulated)

    # What they ask for.

    async def decide(self, key: Key, requests: Sequence[schemas.DecideRequest], *, batched: bool) -> list[bytes]:
        """Return an answer for each request, in order. Where batched, messages say which one is meant."""
        self.gate.charge(key, len(requests))
        clock = self._clock(key)
        wishes: dict[str, dict[int, Wish]] = {}
        for i, request in enumerate(requests):
            program = self.decider(key, request.program).program
            try:
                wish = self._wish(request, program, at=clock.asked_at(request))
            except InvalidError as error:
                where = f"requests[{i}].{error.field}" if batched else error.field
                raise problems.field(where, str(error)) from None
            wishes.setdefault(request.program, {})[i] = wish
        try:
            for name, rows in wishes.items():
                self.deciders[name].check_room(len(rows))
        except OverloadedError as error:
            raise problems.overloaded(f"{error}; try again in a second, or run another API process") from None
        coming = [(rows, self.deciders[name].submit(list(rows.values()))) for name, rows in wishes.items()]
        answers = {i: a for rows, part in coming for i, a in zip(rows, await part, strict=True)}
        return [answers[i] for i in range(len(requests))]

    async def preview(self, key: Key, request: schemas.DecideRequest) -> bytes:
        """Return what would be decided at any moment and why, as it would be kept. Nothing is written.

        It is drawn under an id of its own: a client could otherwise learn what an id of its choice would draw.
        """
        self.gate.charge(key, 1)
        decider, store = self.decider(key, request.program), self.store
        try:
            at = Clock(self.clock(), free=True).asked_at(request)
            wish = self._wish(request.model_copy(update={"decision_id": None}), decider.program, at=at)
        except InvalidError as error:
            raise problems.field(error.field, str(error)) from None
        return await self.kept(decider.preview(wish, store))

    def _wish(self, request: schemas.DecideRequest, program: Program, *, at: float) -> Wish:
        if request.context:
            validation.attributes(request.context, program.attributes, field="context")
        made = request.decision_id
        if made is None:
            shard = self._store.shard(request.customer_id) if self._store else 0
            made = new_id(shard, at=at, entropy=secrets.token_bytes(10))
        return Wish(request.customer_id, made, at, request.context, validation.limits(request, program))

    async def report(self, key: Key, rows: Mapping[int, schemas.OutcomeReport]) -> Tally:
        """Keep outcomes by index; what is refused is said row by row. A 503 if the store did not keep them all."""
        self.gate.charge(key, len(rows))
        store, clock = self.store, self._clock(key)
        errors: list[RowError] = []
        valid: dict[str, dict[int, Outcome]] = {}
        for i, row in rows.items():
            found = self._outcome(key, row, clock=clock)
            if isinstance(found, Outcome):
                valid.setdefault(row.program, {})[i] = found
            else:
                errors.append(found.model_copy(update={"index": i}))
        accepted = duplicates = 0
        for name, outcomes in valid.items():
            program = self.deciders[name].program
            became = await self.kept(store.report(program, list(outcomes.values())))
            self.metrics.count(self.metrics.outcomes, {"program": name}, became, by="became")
            for (i, outcome), state in zip(outcomes.items(), became, strict=True):
                accepted, duplicates = accepted + (state == "accepted"), duplicates + (state == "duplicate")
                if state == "unknown_event" or state == "unknown_customer":  # noqa: PLR1714  (narrows the type)
                    detail = validation.refusal(program, outcome.event, state=state)
                    errors.append(RowError(index=i, code=state, detail=detail))
        return Tally(accepted, duplicates, sorted(errors, key=lambda e: e.index))

    def _outcome(self, key: Key, row: schemas.OutcomeReport, *, clock: Clock) -> Outcome | RowError:
        if row.program not in self.deciders or not key.may_see(row.program):
            served = ", ".join(n for n in self.deciders if key.may_see(n))
            detail = f"program {row.program!r} is not served here; use one of {served}"
            return RowError(index=0, code="unknown_program", detail=detail, field="program")
        try:
            return validation.outcome(row, self.deciders[row.program].program, clock=clock)
        except InvalidError as error:
            return RowError(index=0, code="invalid", detail=f"{error.field} {error}", field=error.field)

    # How it is.

    async def readiness(self) -> dict[str, Part]:
        """Return whether each part works."""
        parts = {"store": await self._store_part(), "tasks": self._tasks_part()}
        served = ", ".join(f"{n} {d.program.version}" for n, d in self.deciders.items())
        parts["programs"] = Part(ok=bool(self.deciders), detail=served)
        for name, decider in self.deciders.items():
            policies = (f"{arm}: {c.name} {c.version}" for arm, c in decider.choosers.items())
            parts[f"policy:{name}"] = Part(ok=True, detail=", ".join(policies))
        return parts

    async def _store_part(self) -> Part:
        if self._store is None:
            return Part(ok=False, detail=self._unreachable)
        try:
            faults = await self._store.durability()
        except StoreError as error:
            return Part(ok=False, detail=str(error))
        return Part(ok=not faults, detail="; ".join(faults))

    def _tasks_part(self) -> Part:
        stopped = [task.get_coro().__qualname__ for task in self._tasks if task.done()]  # type: ignore[union-attr]
        running = bool(self._tasks) and not stopped
        return Part(ok=running, detail="" if running else f"stopped: {', '.join(stopped) or 'all'}; start it again")


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    """Do background work until cancelled; what fails is said and started again."""
    while True:
        try:
            await work()
        except StoreError as error:
            log.warning("background work failed", extra={"error": type(error).__name__})
        except Exception:
            log.exception("background work failed")
        await asyncio.sleep(_AGAIN)
