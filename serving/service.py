"""What is running? The parts of a service, how they start and stop, and what they do with a valid request."""

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

from optimizer.customer import Trigger
from optimizer.engine import CHAMPION, Chooser
from optimizer.events import Outcome
from optimizer.program import DAY, MINOR_UNITS, Attribute, Program
from serving import (
    explaining,
    pacer,
    problems,
    programs,
    publishing,
    reloading,
    render,
    schemas,
    tracing,
    validation,
    vitals,
    watcher,
)
from serving import hand_off as handing
from serving import pressure as pressing
from serving.auth import Gate, Key
from serving.decider import Breaker, Decider, OverloadedError, Wish, new_id
from serving.expiry import expire
from serving.metrics import Metrics
from serving.pressure import Pressure
from serving.problems import ProblemError
from serving.publishing import Follower, Slot
from serving.schemas import BudgetState, DecideNow, Part, RowError
from serving.settings import Settings
from serving.store import ContendedError, FullError, Heard, RefusedError, Store, StoreError
from serving.targets import Target
from serving.validation import Clock, InvalidError

_AGAIN = 1.0
"""Seconds until what failed in the background is tried again."""

_PACE = 2.0
"""Seconds between two looks whether it is time to price the budgets anew: a leader's lease is longer."""

_SWEEP = 5.0
"""Seconds between two looks for reservations that expired."""

_EXPIRE = 3_600.0
"""Seconds between two looks for customers who have not been seen for long."""

T = TypeVar("T")

log = logging.getLogger("nudge.service")


class Tally(NamedTuple):
    """What became of reported outcomes, and which of them ask for a decision at once."""

    accepted: int
    duplicates: int
    errors: list[RowError]
    decide_now: list[DecideNow]


class Service:
    """The parts of a running service. Opened and closed by the app's lifespan.

    Args:
        settings: how it runs.
        clock: seconds since the epoch.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics(settings.shared)
        self.vitals = vitals.Vitals(self.metrics, home=settings.home, clock=clock)
        self.tracer = tracing.tracer(settings.traces)
        rates = settings.shared / "rates" if settings.shared else None
        self.gate = Gate(settings.keys_file, rate=settings.rate, shared=rates)
        self.breaker = Breaker()
        self.pressure = Pressure()
        self.watch = programs.Watch(settings.programs)
        self.replaced: dict[str, list[Program]] = {}
        self.versions = reloading.Versions()
        self.sources = programs.load(settings.programs)
        self.deciders = {
            name: self.new_decider(source.program, {CHAMPION: publishing.uniform(source.program)})
            for name, source in self.sources.items()
        }
        self.follower = Follower(
            {name: source.program for name, source in self.sources.items()},
            folder=settings.policies,
            secret=publishing.secret(settings.secret_file, given=settings.secret),
            swap=self._swap,
            refused=lambda slot: self.metrics.policy_refused.labels(*slot).inc(),
        )
        self._store: Store | None = None
        self.paced: Mapping[str, float] = {}
        self._unreachable = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    # Life cycle.

    async def open(self) -> None:
        """Start serving: with the store if it can be reached, degraded if it cannot be yet.

        Raises:
            StoreError: the store is there and refuses to be used.
        """
        await asyncio.to_thread(self.follower.restore)
        await self._connect()
        sending: list[Callable[[], Awaitable[None]]] = [partial(self._send, t) for t in self.settings.targets]
        for decider in self.deciders.values():
            self.start(reloading.task_of(decider.program), decider.run)
        looking = (self._look, self._pace, self._watch, self._press)
        for work in (self._follow, self._sweep, *looking, self._expire, *sending):
            self.start(getattr(work, "__name__", f"send {len(self._tasks)}"), work)

    async def close(self) -> None:
        """Stop serving."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._store is not None:
            await self._store.close()
        await asyncio.to_thread(self.tracer.close)

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do background work, under a name, until it is stopped."""
        self._tasks[name] = asyncio.create_task(_for_ever(work, name=name))

    async def stop(self, name: str) -> None:
        """End background work."""
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def new_decider(self, program: Program, choosers: Mapping[str, Chooser]) -> Decider:
        """Return what decides for a version of a program, by these policies."""
        self.metrics.now.forget("nudge_program_loaded_at_seconds", program=program.name)
        self.metrics.now.say(
            "nudge_program_loaded_at_seconds", self.clock(), program=program.name, version=program.version
        )
        for arm, chooser in choosers.items():
            self._note(Slot(program.name, arm), chooser)
        decider = Decider(
            program,
            choosers[CHAMPION],
            store=lambda: None if self.pressure.full else self._store,
            metrics=self.metrics,
            size=self.settings.batch,
            queue=self.settings.queue,
            seconds=self.settings.decide_seconds,
            breaker=self.breaker,
            tracer=self.tracer,
        )
        for arm, chooser in choosers.items():
            decider.swap(arm, chooser)
        return decider

    def _swap(self, slot: Slot, chooser: Chooser) -> None:
        self.deciders[slot.program].swap(slot.arm, chooser)
        self._note(slot, chooser)

    def _note(self, slot: Slot, chooser: Chooser) -> None:
        name = "nudge_policy_loaded_at_seconds"
        if self.metrics.now.value(name, **slot._asdict(), version=chooser.version) is None:
            self.metrics.now.forget(name, **slot._asdict())
            self.metrics.now.say(name, self.clock(), **slot._asdict(), version=chooser.version)

    async def _connect(self) -> None:
        url = self.settings.redis_url
        if url is None:
            raise ValueError("REDIS_URL is not set: start with `nudge serve`, which brings its own store, or set it")
        try:
            store = await Store.open(url, limit=self.settings.store_seconds)
            for source in self.sources.values():
                await store.put_program(source.program.name, source.program.version, source.text)
        except StoreError as error:
            self._unreachable = str(error)
            # A store that answers and refuses is a mistake to mend; one that does not answer may come back.
            if error.__cause__ is None and not isinstance(error.__context__, TimeoutError):
                raise
            log.warning("the store cannot be reached", extra={"error": type(error).__name__})
            return
        await self.follower.look(store)
        store.targets = self.settings.targets
        self._store = store

    async def _follow(self) -> None:
        while True:
            if self._store is None:
                await self._connect()
            else:
                await self.follower.look(self._store)
                await reloading.reload(self, self._store)
            self.metrics.now.say("nudge_store_up", float(await self._answers()))
            await asyncio.sleep(self.settings.follow_seconds if self._store is not None else _AGAIN)

    async def _answers(self) -> bool:
        """Return whether the store answers now, whoever asks it or not."""
        return (await self._store_part()).ok

    async def _send(self, target: Target) -> None:
        """Send webhooks to a target, unless another process does."""
        from serving.webhooks import Patience, Sender  # noqa: PLC0415  (aiohttp: only where there are targets)

        if self._store is None:
            return  # and be started again
        given = self.settings
        patience = Patience(given.webhook_seconds, given.webhook_backoff, given.webhook_attempts)
        chance = random.SystemRandom().random
        who = secrets.token_hex(8)
        count = partial(self.metrics.webhooks.labels, target.name)
        sender = Sender(
            self._store,
            target,
            who=who,
            clock=self.clock,
            chance=chance,
            patience=patience,
            became=lambda what: count(what).inc(),
        )
        await sender.run()

    async def _look(self) -> None:
        """Measure now and then what no request shows."""
        while True:
            with suppress(StoreError):  # readiness says so
                await self.vitals.look(self._store, [d.program for d in self.deciders.values()])
            await self.readiness()
            await asyncio.sleep(vitals.EVERY)

    async def _pace(self) -> None:
        """Price the budgets, each minute of program time, unless another process does."""
        who = secrets.token_hex(8)
        while True:
            for decider in list(self.deciders.values()):
                if (
                    self._store is not None
                    and decider.program.guardrails.budget
                    and (now := self._program_time(decider))
                ):
                    price = await pacer.step(self._store, decider.program, who=who, now=now)
                    self.paced = self.paced if price is None else {**self.paced, decider.program.name: price}
            await asyncio.sleep(_PACE)

    async def _watch(self) -> None:
        """Ask for decisions about those who missed a step, by webhook, unless another process does."""
        who = secrets.token_hex(8)
        while True:
            busy = False
            for name, decider in list(self.deciders.items()):
                told = any(t.wants("decision.requested", name) for t in self.settings.targets)
                if self._store is not None and told and (now := self._program_time(decider)):
                    seen = await watcher.step(self._store, decider.program, who=who, now=now)
                    if seen is not None and seen.looked:
                        busy = True
                        self.metrics.asked_by_time.labels(name).inc(seen.asked)
            await asyncio.sleep(0.05 if busy else _PACE)

    def _program_time(self, decider: Decider) -> float:
        """Return the clock of a program: a simulated store has its own, which is 0 until somebody has asked."""
        return decider.latest if self._store is not None and self._store.simulated else self.clock()

    async def _sweep(self) -> None:
        """Release what expired unshown, where programs report what is shown. A simulated store has its own clock."""
        while True:
            await asyncio.sleep(_SWEEP)
            for name, decider in self.deciders.items():
                for program in (decider.program, *self.replaced.get(name, ())):
                    if self._store is not None and program.guardrails.reports_shown:
                        await self._store.sweep(program, now=self._program_time(decider))

    async def _press(self) -> None:
        """Watch how full the store is."""
        while True:
            if self._store is not None:
                await self.pressure.look(self._store)
            await asyncio.sleep(pressing.EVERY)

    async def _expire(self) -> None:
        """Let customers go who have not been seen for long. Simulated ones live by another clock than the server's."""
        while True:
            if self._store is not None and not self._store.simulated and self.settings.expire_days:
                await expire(self._store, after=self.settings.expire_days * DAY)
            await asyncio.sleep(_EXPIRE if self._store is not None else _AGAIN)

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
        except FullError:
            raise self.pressure.overran() from None
        except ContendedError:
            raise problems.unavailable("others keep changing this customer: send it again; it counts once") from None
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

    def own(self, key: Key) -> frozenset[str] | None:
        """Return the attributes that a key for some programs sees and replaces; None for all of them."""
        return frozenset(a.name for a in self.attributes(key)) if key.programs else None

    def _clock(self, key: Key) -> Clock:
        simulated = self._store is None or self._store.simulated  # without a store nothing is decided anyway
        return Clock(self.clock(), free="simulate" in key.scopes and simulated)

    # What they ask for.

    async def decide_one(self, key: Key, request: schemas.Asked) -> bytes:
        """Return the answer to a request."""
        decider = self.decider(key, request.program)
        try:
            wish = self._wish(request, decider.program, at=self._clock(key).asked_at(request))
        except InvalidError as error:
            raise problems.field(error.field, str(error)) from None
        self._check_room(decider, 1)
        (answer,) = await decider.submit((wish,))
        return answer

    async def decide(self, key: Key, requests: Sequence[schemas.Asked]) -> list[bytes]:
        """Return an answer for each request, in order. Messages say which one is meant."""
        self.gate.charge(key, len(requests) - 1)  # one was charged when it came
        clock = self._clock(key)
        wishes: dict[str, dict[int, Wish]] = {}
        for i, request in enumerate(requests):
            program = self.decider(key, request.program).program
            try:
                wish = self._wish(request, program, at=clock.asked_at(request))
            except InvalidError as error:
                raise problems.field(f"requests[{i}].{error.field}", str(error)) from None
            wishes.setdefault(request.program, {})[i] = wish
        for name, rows in wishes.items():
            self._check_room(self.deciders[name], len(rows))
        coming = [(rows, self.deciders[name].submit(list(rows.values()))) for name, rows in wishes.items()]
        answers = {i: a for rows, part in coming for i, a in zip(rows, await part, strict=True)}
        return [answers[i] for i in range(len(requests))]

    def _check_room(self, decider: Decider, rows: int) -> None:
        try:
            decider.check_room(rows)
        except OverloadedError as error:
            raise problems.overloaded(f"{error}; try again in a second, or run another API process") from None

    async def preview(self, key: Key, request: schemas.Asked) -> bytes:
        """Return what would be decided at any moment and why. Nothing is written.

        It is drawn under an id of its own: a client could otherwise learn what an id of its choice would draw.
        """
        decider, store = self.decider(key, request.program), self.store
        try:
            at = Clock(self.clock(), free=True).asked_at(request)
            wish = self._wish(request, decider.program, at=at, named=False)
        except InvalidError as error:
            raise problems.field(error.field, str(error)) from None
        return self.explained(decider, await self.kept(decider.preview(wish, store)))

    async def answered(self, program: str, customer_id: str, decision_id: str) -> bytes:
        """Return what was answered under a decision id; a 404 where nothing was."""
        kept = await self.kept(self.store.answer(program, customer_id, decision_id))
        if kept is None:
            raise ProblemError(
                404, "unknown-decision", "no decision of that id, customer and program in the last seven days"
            )
        return kept

    def explained(self, decider: Decider, kept: bytes) -> bytes:
        """Return a kept answer with why it was so; with scores where the policy that gave it still serves."""
        why, named = render.why_of(kept), render.policy_of(kept)
        chooser = decider.choosers.get(why.arm, decider.choosers[CHAMPION])
        if named is None or (named.name, named.version) != (chooser.name, chooser.version):
            return render.explained(kept)
        scores = explaining.scores(decider.program, chooser.policy, context=why.context, blocked=why.blocked)
        return render.explained(kept, scores=scores)

    async def hand_off(self, key: Key, decision_id: str, asked: schemas.HandOff) -> bytes:
        """Return whether a nudge may be delivered now; where it may not, it is cancelled."""
        program = self.decider(key, asked.program).program
        kept = await self.answered(program.name, asked.customer_id, decision_id)
        try:
            at = self._clock(key).asked_at(schemas.DecideRequest(**asked.model_dump()))
        except InvalidError as error:
            raise problems.field(error.field, str(error)) from None
        found = await self.kept(self.store.get(program, asked.customer_id, at=at))
        if found is None:
            raise ProblemError(404, "unknown-customer", "nobody has asked or put anything about this customer")
        paused = await self.kept(self.store.paused(program.name))
        checked = handing.check(program, found.customer, kept=kept, decision_id=decision_id, paused=paused, at=at)
        if checked.releases:
            cancelled = handing.cancellation(program, asked.customer_id, decision_id=decision_id, at=at)
            await self.kept(self.store.hear(program, [cancelled]))
        answer = "deliver" if checked.deliver else str(checked.reason)
        self.metrics.hand_offs.labels(program.name, answer).inc()
        zone = found.customer.time_zone or program.guardrails.time_zone
        return render.handed_off(checked, decision_id=decision_id, zone=zone)

    def _wish(self, request: schemas.Asked, program: Program, *, at: float, named: bool = True) -> Wish:
        """Return a valid request; under an id of its own where its id is not to be used."""
        if request.context:
            validation.attributes(request.context, program.attributes, field="context")
        made = request.decision_id if named else None
        if made is None:
            shard = self._store.shard(request.customer_id) if self._store else 0
            made = new_id(shard, at=at, entropy=os.urandom(10))
        return Wish(request.customer_id, made, at, request.context, validation.limits(request, program))

    async def report(self, key: Key, rows: Mapping[int, schemas.OutcomeReport], *, refused: int = 0) -> Tally:
        """Keep outcomes by index; what is refused is said row by row. A 503 if the store did not keep them all.

        Rows that were refused before are counted like the others.
        """
        self.gate.charge(key, len(rows) + refused - 1)  # one was charged when it came
        self.pressure.check()
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
        asked: list[DecideNow] = []
        for name, outcomes in valid.items():
            program = self.deciders[name].program
            heard = await self.kept(self._hear(store, program, list(outcomes.values())))
            asked += [_asked(i, o, h.asks) for (i, o), h in zip(outcomes.items(), heard, strict=True) if h.asks]
            became = [h.became for h in heard]
            self.metrics.count(self.metrics.outcomes, {"program": name}, became, by="became")
            for (i, outcome), state in zip(outcomes.items(), became, strict=True):
                accepted, duplicates = accepted + (state == "accepted"), duplicates + (state == "duplicate")
                if state == "unknown_event" or state == "erased_customer":  # noqa: PLR1714  (narrows the type)
                    detail = validation.refusal(program, outcome.event, state=state)
                    errors.append(RowError(index=i, code=state, detail=detail))
        by_row = sorted(asked, key=lambda a: a.index)
        return Tally(accepted, duplicates, sorted(errors, key=lambda e: e.index), by_row)

    async def _hear(self, store: Store, program: Program, outcomes: Sequence[Outcome]) -> list[Heard]:
        """Keep outcomes; of events that only an earlier version declared, as that one did."""
        heard = await store.hear(program, outcomes)
        self.vitals.sample(program, (o for o, h in zip(outcomes, heard, strict=True) if h.became == "accepted"))
        unknown = {i: o for i, (o, h) in enumerate(zip(outcomes, heard, strict=True)) if h.became == "unknown_event"}
        earlier = await self.versions.of(store, program) if unknown else {}
        for i, outcome in unknown.items():
            as_declared = programs.knowing(program, outcome.event, earlier=earlier)
            if as_declared is not None:
                (heard[i],) = await store.hear(as_declared, [outcome])
        return heard

    def _outcome(self, key: Key, row: schemas.OutcomeReport, *, clock: Clock) -> Outcome | RowError:
        if row.program not in self.deciders or not key.may_see(row.program):
            served = ", ".join(n for n in self.deciders if key.may_see(n))
            detail = f"program {row.program!r} is not served here; use one of {served}"
            return RowError(index=0, code="unknown_program", detail=detail, field="program")
        try:
            return validation.outcome(row, self.deciders[row.program].program, clock=clock)
        except InvalidError as error:
            return RowError(index=0, code="invalid", detail=f"{error.field} {error}", field=error.field)

    async def budget(self, decider: Decider) -> BudgetState | None:
        """Return what became of a program's budget; None without one."""
        now = self._program_time(decider) or self.clock()
        seen = await self.kept(pacer.spending(self.store, decider.program, at=now))
        return (
            None
            if seen is None
            else BudgetState(
                currency=decider.program.currency,
                amount=seen.amount / MINOR_UNITS,
                spent=seen.spent / MINOR_UNITS,
                left=seen.left / MINOR_UNITS,
                ends_at=datetime.fromtimestamp(seen.ends_at, UTC),
                price=seen.price,
            )
        )

    async def erase(self, customer_id: str) -> bool:
        """Forget a customer, also in messages that have not arrived; False if there was nothing to forget."""
        erased = await self.store.erase(customer_id, at=self.clock())
        if self.settings.targets:
            from serving import webhooks  # noqa: PLC0415  (aiohttp: only where there are targets)

            await webhooks.forget(self.store, [t.name for t in self.settings.targets], customer_id)
        return erased

    # How it is.

    async def readiness(self) -> dict[str, Part]:
        """Return whether each part works."""
        parts = {"store": await self._store_part(), "tasks": self._tasks_part(), "disk": self.vitals.disk()}
        parts["programs"] = vitals.programs({n: d.program for n, d in self.deciders.items()}, self.watch.faults)
        for name, decider in self.deciders.items():
            parts[f"policy:{name}"] = vitals.policies(name, decider.choosers, self.follower.refusals)
        if self._store is not None and parts["store"].ok:
            parts["memory"] = self.pressure.part()
            parts |= await self._log_parts(self._store)
        for name, part in parts.items():
            self.metrics.now.say("nudge_ready", float(part.ok), part=name)
        return parts

    async def _store_part(self) -> Part:
        if self._store is None:
            return Part(ok=False, detail=self._unreachable)
        try:
            await self._store.ping()
        except StoreError as error:
            return Part(ok=False, detail=str(error))
        return Part(ok=True)

    async def _log_parts(self, store: Store) -> dict[str, Part]:
        """Return whether the log is kept, archived, and whether the registry is followed."""
        try:
            faults = await store.durability()
            log_kept = Part(ok=not faults, detail="; ".join(faults))
            webhooks = await vitals.webhooks(store, self.metrics, [t.name for t in self.settings.targets])
            archive, follower = await self.vitals.log(store), await vitals.follower(store)
            return {**webhooks, "log": log_kept, "archive": archive, "follower": follower}
        except StoreError as error:
            return {"log": Part(ok=False, detail=str(error))}

    def _tasks_part(self) -> Part:
        stopped = [name for name, task in self._tasks.items() if task.done()]
        running = bool(self._tasks) and not stopped
        return Part(ok=running, detail="" if running else f"stopped: {', '.join(stopped) or 'all'}; start it again")


def _asked(index: int, outcome: Outcome, trigger: Trigger) -> DecideNow:
    return DecideNow(
        index=index,
        program=outcome.program,
        customer_id=outcome.customer_id,
        event=outcome.event,
        reason=trigger.reason,
    )


async def _for_ever(work: Callable[[], Awaitable[None]], *, name: str) -> None:
    """Do background work until cancelled; what fails is said and started again."""
    while True:
        try:
            await work()
        except RefusedError as error:
            log.error("the store must not be used as it is", extra={"work": name, "reason": str(error)})  # noqa: TRY400
        except StoreError as error:
            log.warning("background work failed", extra={"work": name, "error": type(error).__name__})
        except Exception:
            log.exception("background work failed", extra={"work": name})
        await asyncio.sleep(_AGAIN)
