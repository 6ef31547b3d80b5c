"""What is remembered between two requests, and exactly when? Redis or Valkey: customers, answers, reservations, log.

Reading order: `Store.open`, `Store.read` and `Store.commit` (the decide path), `Store.report` (outcomes), then the
rest. `records` says how things are written, `reservations` what a decision or an outcome does to what is shared,
`calls` how that is put to the commit script, `stream` what the archiver needs. Everything that belongs to a customer
carries the customer's shard as its hash tag, so a commit is one script on one shard.
"""

import asyncio
import math
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import cache
from hashlib import sha1
from importlib.resources import files
from itertools import islice
from typing import Any, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import hiredis
from msgspec.structs import replace
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from optimizer import erasure, journey
from optimizer.actions import FACTORS
from optimizer.customer import UNSAID, Trigger
from optimizer.events import Decision, Outcome, Salt, Scalar
from optimizer.program import Program
from serving import migration, reads, records, reservations
from serving.calls import (
    KEEP,
    ROWS,
    Before,
    Call,
    Watched,
    add_decision,
    add_outcomes,
    add_profile,
    add_release,
    add_watched,
)
from serving.hooks import after_decision
from serving.reads import Asked, Found, Read, Turn, Wanted
from serving.records import Profile
from serving.reservations import New, Place
from serving.targets import Target

__all__ = [
    "Commitment", "Committed", "ContendedError", "Found", "FullError", "Heard", "Overrun", "Profile", "Published",
    "Reported", "Store", "StoreError", "Turn", "Wanted", "Word",
]  # fmt: skip

Word = str | bytes | int | float
"""What a command or a script can be given."""

Some = TypeVar("Some")

_SIMULATED = Salt("simulated", b"simulated customers keep nothing")
"""The salt of a simulated store: nobody is to be kept from knowing its draws, so that a run can be repeated."""

ATTEMPTS = 16
"""How often a change is tried again whose customer others change meanwhile."""


_TOO_OLD = frozenset(map(str, range(7)))
"""Major versions of Redis whose scripts cannot say that they make room."""

COMMITTED = 1
"""The verdict of the scripts on a row that they wrote; 0 is stale, bytes are the answer given before."""


class StoreError(RuntimeError):
    """The store could not do what was asked, or refuses to be used: hold, or answer 503.

    Whether what was to be kept is kept is not known: ask again with the same ids.
    """


class FullError(StoreError):
    """The server has no memory left, and refuses whatever writes: nothing is lost, and reading works."""


class ContendedError(StoreError):
    """Others kept changing the same customer: the store is well. Send it again; what is kept counts once."""


class RefusedError(StoreError):
    """The store answers, and must not be used as it is: the message says what to mend. Trying again is of no use."""


class Commitment(NamedTuple):
    """One decision to commit: what was found before it, the decision, and the answer as rendered."""

    found: Found
    decision: Decision
    answer: bytes


class Committed(NamedTuple):
    """What became of a `Commitment`.

    `committed`: kept, answer it. `repeated`: this id was answered before; `answer` is that answer. `stale`: nothing
    was written, for the customer, a pause or what is left has changed: read again and decide again.
    """

    status: Literal["committed", "repeated", "stale"]
    answer: bytes


Reported = Literal["accepted", "duplicate", "erased_customer", "unknown_event"]
"""What became of an outcome: kept; known already in this revision or a higher one; refused, and why."""


class Heard(NamedTuple):
    """What became of an outcome, and what it asks for at once, if anything."""

    became: Reported
    asks: Trigger | None = None


class Published(NamedTuple):
    """A policy as it was published: its version, and its saved folder as bytes."""

    version: str
    payload: bytes


class Overrun(NamedTuple):
    """Nudges shown after their reservation had been released: how many, and what they cost in minor units."""

    nudges: int
    amount: int


class Store:
    """A connection to the store. Made by `open`; every method raises `StoreError` where the store fails or is slow.

    Args:
        shards: how many parts customers are divided into, fixed when the store was created.
        simulated: whether the store was created for simulated customers, whose clock is not ours.
        targets: who is told of what happens; the messages are queued by the commit that they are about.
        salt: keys the draw; created with the store.
        erasure_key: keys the digests by which the archive knows whom to forget.
    """

    def __init__(self, pool: ConnectionPool, *, address: str, limit: float) -> None:
        self._connection: Callable[[], Connection] = pool.make_connection
        self._address, self._limit = address, limit
        self._idle: list[Connection] = []
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.shards = 1
        self.simulated = False
        self.targets: Sequence[Target] = ()
        self.salt = Salt("", b"")
        self.erasure_key = b""

    # Life cycle.

    @classmethod
    async def open(
        cls, url: str, *, shards: int | None = None, simulated: bool | None = None, limit: float = 2.0
    ) -> Self:
        """Connect, create the layout where there is none, and refuse a store that could lose what it acknowledges.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            shards: how many; as created where None, and 1 when creating (256 where the server is a cluster).
            simulated: for simulated customers; as created where None, and False when creating.
            limit: seconds that any one call may take.

        Raises:
            StoreError: cannot connect; no append-only file or an eviction policy (the message has the CONFIG SET to
                type); created with another layout, number of shards or kind of customers.
        """
        once = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0), "driver_info": None}
        try:
            pool = ConnectionPool.from_url(url, protocol=2, **once)
        except ValueError as error:
            raise RefusedError(f"{_address(url)!r} is not the address of a store: {error}") from None
        store = cls(pool, address=_address(url), limit=limit)
        try:
            await store._enter(shards=shards, simulated=simulated)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def ping(self) -> None:
        """Return if the store answers."""
        await self.command("PING")

    async def durability(self) -> list[str]:
        """Return what is wrong with how the server keeps data, each with what to type; empty where all is well."""
        info = await self._info()
        problems = _losses(info)
        if info.get("aof_enabled") == "1" and (policy := await self._fsync_policy()) not in (None, "always"):
            problems.append(
                f"appendfsync is {policy}: about two seconds of what was acknowledged can be lost; "
                "type CONFIG SET appendfsync always"
            )
        if info.get("aof_last_write_status", "ok") != "ok":
            problems.append("the last write to the append-only file failed: look at the server's disk and its log")
        return problems

    async def fullness(self) -> float:
        """Return the share of its memory that the server uses; 0 where it may use all there is."""
        info = _named((await self.command("INFO", "memory")).decode())
        most = int(info.get("maxmemory", 0))
        return int(info["used_memory"]) / most if most else 0.0

    def shard(self, customer_id: str) -> int:
        """Return the shard that a customer belongs to."""
        return records.shard_of(customer_id, self.shards)

    async def _enter(self, *, shards: int | None, simulated: bool | None) -> None:
        info = await self._info()
        if problems := _losses(info):
            raise RefusedError(f"the store at {self._address} would lose what it acknowledges: {'; '.join(problems)}")
        fresh = (
            records.LAYOUT,
            shards or (256 if info.get("cluster_enabled") == "1" else 1),
            int(simulated or False),
            secrets.token_bytes(32),
            *(_SIMULATED if simulated else Salt(secrets.token_hex(4), secrets.token_bytes(32))),
        )
        keys = [records.global_key("layout"), records.global_key("salts")]
        layout, salts = map(reads.pairs, await self.run("create", keys, fresh))
        self._check(layout, shards=shards, simulated=simulated)
        self.shards, self.simulated = int(layout[b"shards"]), layout[b"simulated"] == b"1"
        await migration.migrate(self, version=int(layout[b"version"]))
        self.erasure_key = layout[b"erasure_key"]
        self.salt = Salt(layout[b"salt"].decode(), salts[layout[b"salt"]])

    def _check(self, layout: Mapping[bytes, bytes], *, shards: int | None, simulated: bool | None) -> None:
        version, created = int(layout[b"version"]), int(layout[b"shards"])
        if version > records.LAYOUT:
            raise RefusedError(
                f"the store at {self._address} has layout {version}, this program reads {records.LAYOUT}: "
                "use the release that wrote it, or another store"
            )
        if shards is not None and shards != created:
            raise RefusedError(
                f"the store at {self._address} was created with {created} shards, not {shards}: "
                f"open it with {created}; the number is fixed when a store is created"
            )
        was = layout[b"simulated"] == b"1"
        if simulated is not None and simulated != was:
            kinds = {True: "simulated", False: "real"}
            raise RefusedError(
                f"the store at {self._address} was created for {kinds[was]} customers, "
                f"not for {kinds[simulated]} ones: use another store"
            )

    async def _info(self) -> dict[str, str]:
        return _named((await self.command("INFO")).decode())

    async def _fsync_policy(self) -> str | None:
        try:
            return str((await self.command("CONFIG", "GET", "appendfsync"))[1].decode())
        except (StoreError, IndexError):  # a hosted server that does not let us look
            return None

    # Talking to the server. Not through redis-py's own client: it takes three times as long as the server does.

    async def command(self, *words: Word) -> Any:
        """Send one command and return its answer as the server gave it."""
        (answer,) = await self.commands([words])
        return answer

    async def commands(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Send commands in one round trip and return their answers; the first that the server refuses is raised."""
        return self._checked(await self._exchange(commands))

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Word]) -> Any:
        """Run one of our scripts, by its file's name, and return its answer."""
        (answer,) = await self.run_each(script, [(keys, args)])
        return answer

    async def run_each(self, script: str, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]) -> list[Any]:
        """Run a script once for each (keys, args), in one round trip."""
        text, digest = _script(script)
        words = [("EVALSHA", digest, len(keys), *keys, *args) for keys, args in calls]
        answers = await self._exchange(words)
        if any(isinstance(a, NoScriptError) for a in answers):  # the server is new, or has restarted
            await self.command("SCRIPT", "LOAD", text)
            again = [i for i, a in enumerate(answers) if isinstance(a, NoScriptError)]
            for i, answer in zip(again, await self.commands([words[i] for i in again]), strict=True):
                answers[i] = answer
        return self._checked(answers)

    def _checked(self, answers: list[Any]) -> list[Any]:
        """Return the answers, where none is a refusal."""
        for refused in (a for a in answers if isinstance(a, ResponseError)):
            kind = FullError if isinstance(refused, OutOfMemoryError) else StoreError
            raise kind(f"the store at {self._address} refuses: {refused}") from refused
        return answers

    async def _exchange(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        packed = b"".join(hiredis.pack_command(tuple(words)) for words in commands)  # type: ignore[arg-type]  # wrong stub
        try:
            async with asyncio.timeout(self._limit):
                try:
                    return await self._converse(packed, len(commands))
                except Disconnected:  # the server has restarted, perhaps: what we send may be sent twice
                    await self.close()
                    return await self._converse(packed, len(commands))
        except TimeoutError:
            raise StoreError(f"the store at {self._address} did not answer within {self._limit:g} s") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"the store at {self._address} failed: {str(error) or type(error).__name__}") from error

    async def _converse(self, packed: bytes, answers: int) -> list[Any]:
        """Send and listen; a connection that fails, or that nobody listens to any more, is closed and left out."""
        connection = self._idle.pop() if self._idle else self._connection()
        await connection.send_packed_command(packed, check_health=False)
        heard = [await _answer(connection) for _ in range(answers)]
        self._idle.append(connection)
        return heard

    async def snapshot(self) -> AsyncIterator[bytes]:
        """Yield the server's snapshot of one moment (RDB), part by part, as a replica would get it.

        StoreError on a cluster, whose nodes each have their own, and where the server does not let us.
        """
        if (await self._info()).get("cluster_enabled") == "1":
            raise StoreError(f"the store at {self._address} is a cluster: back up each node by its own tools")
        connection = self._connection()
        try:
            async with asyncio.timeout(self._limit):
                await self._converse_on(connection, ("REPLCONF", "capa", "eof"))  # sent at once, from memory
                await connection.send_packed_command(hiredis.pack_command(("SYNC",)), check_health=False)
            reader = connection._reader  # noqa: SLF001  (what follows is no answer that the client can read)
            if reader is None:
                raise StoreError(f"the store at {self._address} closed the connection")
            async for part in _received(reader, limit=self._limit):
                yield part
        except (TimeoutError, OSError, EOFError, RedisError) as error:
            what = str(error) or type(error).__name__
            raise StoreError(f"the store at {self._address} failed while it gave its snapshot: {what}") from error
        finally:
            await connection.disconnect(nowait=True)

    @staticmethod
    async def _converse_on(connection: Connection, words: Sequence[Word]) -> None:
        await connection.send_packed_command(hiredis.pack_command(tuple(words)), check_health=False)  # type: ignore[arg-type]  # wrong stub
        await connection.read_response()

    # The decide path.

    async def read(self, program: Program, wanted: Sequence[Wanted]) -> list[Found]:
        """Return what is needed to decide for a batch, in its order: one round trip.

        With several shards a budget and a stock belong to a shard: each has its part of the amount, the remainder
        going to the first ones.
        """
        parts = _parts([self.shard(w.customer_id) for w in wanted], most=len(wanted))
        rows = [(shard, [wanted[i] for i in part]) for shard, part in parts]
        got = await self._read([reads.asked(program, here, shard=shard) for shard, here in rows])
        found = (
            reads.found(program, here, read, shard=shard, shards=self.shards)
            for (shard, here), read in zip(rows, got, strict=True)
        )
        return _in_order(parts, found)

    async def commit(self, program: Program, rows: Sequence[Commitment]) -> list[Committed]:
        """Keep decisions, each only if the mask it was drawn under still is in force, whatever was drawn.

        Reserves budget, stock and caps for nudges, appends the decision to the log and keeps the answer, or does
        nothing of these. Rows take turns in their order. What is `committed` is in the append-only file.
        """

        def add(call: Call, i: int) -> None:
            found, decision, answer = rows[i]
            before = Before(Place(found.customer), found.rev, found.control)
            messages = after_decision(self.targets, decision, answer.partition(b"\n")[0]) if self.targets else ()
            add_decision(call, program, decision, before=before, answer=answer, shards=self.shards, messages=messages)

        verdicts = await self._commit(program.name, [r.decision.customer_id for r in rows], add)
        return [_committed(verdict, row.answer) for verdict, row in zip(verdicts, rows, strict=True)]

    async def _read(self, asked: Sequence[Asked]) -> list[Read]:
        calls = []
        for customers, fields, control, values in asked:
            keys = [*customers, *([control] if control else []), *values]
            args: list[Word] = [len(customers), int(bool(control)), *fields]
            calls.append((keys, args))
        answers = await self.run_each("read", calls)
        return [Read(customers, reads.pairs(control), values) for customers, control, values in answers]

    async def _commit(
        self, program: str, customers: Sequence[str], add: Callable[[Call, int], None]
    ) -> list[bytes | int]:
        """Commit a row for each customer, made by `add`; return the verdict on each."""
        parts = _parts([self.shard(name) for name in customers], most=ROWS)
        calls = []
        for shard, part in parts:
            calls.append(Call(shard, program))
            for i in part:
                add(calls[-1], i)
        return _in_order(parts, await self.run_each("commit", [(call.keys, call.args) for call in calls]))

    # Outcomes and reservations.

    async def report(self, program: Program, outcomes: Sequence[Outcome]) -> list[Reported]:
        """Keep outcomes, move their customers on, and settle or release reservations: in their order, each once.

        A revision that is known, or lower than one that is, is a duplicate. A customer never seen starts with its first
        outcome. What an erased customer did before is refused, not kept, if it is heard within seven days.
        """
        return [heard.became for heard in await self.hear(program, outcomes)]

    async def hear(self, program: Program, outcomes: Sequence[Outcome]) -> list[Heard]:
        """Do what `report` does, and return what each outcome asks for as well."""
        async with AsyncExitStack() as turns:  # in one order, so that nobody waits in a circle
            await self._take_turns(turns, sorted({o.customer_id for o in outcomes}))
            return await self._heard(program, outcomes)

    async def _take_turns(self, turns: AsyncExitStack, customers: Sequence[str]) -> None:
        """Wait until nobody else of this process writes outcomes of these customers: they would only be in the way."""
        try:
            async with asyncio.timeout(self._limit):
                for name in customers:
                    turn = self._turns.get(name) or asyncio.Lock()
                    self._turns[name] = turn
                    await turns.enter_async_context(turn)
        except TimeoutError:
            raise ContendedError("too many outcomes of one customer wait: send them again") from None

    async def _heard(self, program: Program, outcomes: Sequence[Outcome]) -> list[Heard]:
        cases: dict[str, dict[int, Outcome]] = {}
        became = {i: Heard("unknown_event") for i, o in enumerate(outcomes) if not program.knows(o.event)}
        for _ in range(ATTEMPTS):
            cases = defaultdict(dict)
            for i, outcome in enumerate(outcomes):
                if i not in became:
                    cases[outcome.customer_id][i] = outcome
            if not cases:
                return [became[i] for i in range(len(outcomes))]
            became |= await self._report(program, cases)
        raise ContendedError(
            f"{', '.join(map(repr, cases))} kept changing while outcomes were written: send them again"
        )

    async def _report(self, program: Program, cases: Mapping[str, Mapping[int, Outcome]]) -> dict[int, Heard]:
        """Try once, a case a customer; return what has become of outcomes, by their number."""
        became: dict[int, Heard] = {}
        asked: dict[int, list[Trigger | None]] = {}
        writes: list[tuple[Before, dict[int, New]]] = []
        for case, (before, revisions, erased) in zip(cases.values(), await self._known(program, cases), strict=True):
            late = {i: o for i, o in case.items() if not before.rev and o.at <= erased}
            became |= dict.fromkeys(late, Heard("erased_customer"))
            told = {i: o for i, o in case.items() if i not in late}
            news = reads.news(told, revisions)
            became |= {i: Heard("duplicate", _asked_still(program, before, told[i])) for i in told.keys() - news}
            if news:
                writes.append((before, news))

        def add(call: Call, i: int) -> None:
            before, news = writes[i]
            asked[i] = add_outcomes(call, program, [*news.values()], before=before, targets=self.targets)

        names = [before.place.customer.customer_id for before, _ in writes]
        for i, verdict in enumerate(await self._commit(program.name, names, add)):
            if verdict == COMMITTED:
                became |= {row: Heard("accepted", asks) for row, asks in zip(writes[i][1], asked[i], strict=True)}
        return became

    async def _known(
        self, program: Program, cases: Mapping[str, Mapping[int, Outcome]]
    ) -> list[tuple[Before, dict[str, int], float]]:
        """Return each customer as of its first outcome, the known revisions of its outcomes, and when it was erased.

        Who never was, was so at -inf.
        """
        keys = {
            name: [
                self._erased_key(name),
                *(records.outcome_key(self.shard(name), program.name, name, o.outcome_id) for o in case.values()),
            ]
            for name, case in cases.items()
        }
        known = []
        for name, (fields, (erased, *values)) in zip(cases, await self._customers(program.name, keys), strict=True):
            outcomes = cases[name].values()
            ids = [o.outcome_id for o in outcomes]
            revisions = {i: int(v) for i, v in zip(ids, values, strict=True) if v is not None}
            before = reads.known(program, name, fields, at=min(o.at for o in outcomes))
            known.append((before, revisions, -math.inf if erased is None else float(erased)))
        return known

    def _erased_key(self, customer_id: str) -> str:
        return records.erased_key(self.shard(customer_id), erasure.digest(self.erasure_key, customer_id))

    async def _customers(
        self, program: str, keys: Mapping[str, Sequence[str]]
    ) -> list[tuple[list[bytes | None], list[bytes | None]]]:
        """Return the fields of customers, and the values of keys that belong to each."""
        names, fields = list(keys), reads.outcome_fields(program)
        parts = _parts([self.shard(name) for name in names], most=ROWS)
        asked = []
        for shard, part in parts:
            here = [names[i] for i in part]
            customers = [records.customer_key(shard, name) for name in here]
            asked.append(Asked(customers, fields, "", [key for name in here for key in keys[name]]))
        found = []
        for (_, part), read in zip(parts, await self._read(asked), strict=True):
            values = iter(read.values)
            found.append(
                [(row, [*islice(values, len(keys[names[i]]))]) for i, row in zip(part, read.customers, strict=True)]
            )
        return _in_order(parts, found)

    async def sweep(self, program: Program, *, now: float) -> int:
        """Release reservations that expired unshown, where the program reports what is shown; return how many."""
        swept = 0
        for shard in range(self.shards):
            key = records.shared_key(shard, "reservations", program.name)
            while due := await self.command("ZRANGEBYSCORE", key, "-inf", now, "LIMIT", 0, ROWS):
                released, done = await self._release(program, key, due, now=now)
                swept += released
                if not done:
                    break  # others are changing these customers: they are due at the next sweep
        return swept

    async def _release(self, program: Program, key: str, due: Sequence[bytes], *, now: float) -> tuple[int, int]:
        """Release what is due, strike off what is settled or gone; return how many of each."""
        members = {member: records.decode_member(member) for member in due}
        names = {name: () for name, _ in members.values()}
        read = await self._customers(program.name, names)
        before = {name: reads.known(program, name, f, at=now) for name, (f, _) in zip(names, read, strict=True)}
        effects = {
            member: reservations.expired(program, before[name].place, decision_id)
            for member, (name, decision_id) in members.items()
        }
        release = [m for m, effect in effects.items() if effect.place is not before[members[m][0]].place]
        strike = [m for m in due if m not in release]

        def add(call: Call, i: int) -> None:
            name, decision_id = members[release[i]]
            add_release(call, program, effects[release[i]], before=before[name], decision_id=decision_id)

        verdicts = await self._commit(program.name, [members[m][0] for m in release], add)
        if strike:
            await self.command("ZREM", key, *strike)
        released = sum(v == COMMITTED for v in verdicts)
        return released, released + len(strike)

    async def standing(self, program: Program, customers: Sequence[str], *, at: float) -> list[Before]:
        """Return customers as they were left, nobody settled; with `rev` 0 those who are not known."""
        read = await self._customers(program.name, dict.fromkeys(customers, ()))
        return [reads.known(program, name, f, at=at) for name, (f, _) in zip(customers, read, strict=True)]

    async def watched(self, program: Program, customers: Sequence[str], *, at: float) -> list[Found]:
        """Return customers as they would be found if they asked at a moment."""
        return await self.read(program, [Wanted(name, "", at) for name in customers])

    async def note(self, program: Program, watched: Sequence[Watched]) -> list[bool]:
        """Keep what became of customers who were due, and queue what is said of it; False for who changed meanwhile."""
        names = [w.customer.customer_id for w in watched]
        verdicts = await self._commit(program.name, names, lambda call, i: add_watched(call, program, watched[i]))
        return [v == COMMITTED for v in verdicts]

    async def overrun(self, program: Program) -> Overrun:
        """Return what was shown late, after its reservation had been released."""
        keys = [records.shared_key(shard, "overrun", program.name) for shard in range(self.shards)]
        answers = await self.commands([("HMGET", key, "count", "amount") for key in keys])
        return Overrun(*(sum(int(row[i] or 0) for row in answers) for i in (0, 1)))

    # Customers.

    async def get(self, program: Program, customer_id: str, *, at: float) -> Found | None:
        """Return a customer as of a moment, or None if never seen."""
        (found,) = await self.read(program, [Wanted(customer_id, "", at)])
        return found if found.rev else None

    async def put(
        self,
        customer_id: str,
        *,
        consent: bool | None = None,
        time_zone: str | None = None,
        attributes: Mapping[str, Scalar] | None = None,
        merge: bool = False,
        among: Container[str] | None = None,
    ) -> Profile:
        """Replace what is given of a customer's profile, leave what is None; create the customer if need be.

        With `merge`, attributes that are not among the given ones stay; with `among`, those that are not named there.
        """
        given = {"consent": consent, "time_zone": time_zone, "attributes": attributes and dict(attributes)}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if consent is not None:  # it holds whatever is taken back of what was said before
            changes["said"] = UNSAID
        for _ in range(ATTEMPTS):
            key = records.customer_key(self.shard(customer_id), customer_id)
            rev, profile = await self.command("HMGET", key, "rev", "profile")
            before = records.decode_profile(profile)
            changed = replace(before, **changes)
            if merge:
                changed = replace(changed, attributes={**before.attributes, **changed.attributes})
            if among is not None:
                others = {name: value for name, value in before.attributes.items() if name not in among}
                changed = replace(changed, attributes={**others, **changed.attributes})

            def add(call: Call, _: int, rev: int = int(rev or 0), changed: Profile = changed) -> None:
                add_profile(call, customer_id, changed, rev=rev)

            if await self._commit("", [customer_id], add) == [COMMITTED]:
                return changed
        raise ContendedError(f"{customer_id!r} kept changing while its profile was written: send it again")

    async def erase(self, customer_id: str, *, at: float) -> bool:
        """Forget a customer, and log that everything up to `at` is to be forgotten; False if there was none here.

        It is logged all the same: the archive may know who has long left the store. Answers older than the hundred most
        recent of a program lapse within seven days.
        """
        shard, found = self.shard(customer_id), False
        tombstone = records.Erased(digest=erasure.digest(self.erasure_key, customer_id), at=at)
        for _ in range(ATTEMPTS):
            person = records.customer_key(shard, customer_id)
            fields = reads.pairs(await self.command("HGETALL", person))
            found = found or bool(fields)
            histories = [records.history_key(shard, name, customer_id) for name in records.programs_of(fields)]
            lists = await self.commands([("LRANGE", key, 0, -1) for key in histories])
            answers = [
                records.decision_key(shard, name, customer_id, decision.decode())
                for name, ids in zip(records.programs_of(fields), lists, strict=True)
                for decision in ids
            ]
            note = self._erased_key(customer_id)
            keys = [records.events_key(shard), person, note, *histories, *answers]
            watches = [records.watch_key(shard, name) for name in records.programs_of(fields)]
            if watches:
                await self.commands([("ZREM", key, customer_id) for key in watches])
            args = [fields.get(b"rev", 0), records.encode(tombstone), at, KEEP]
            if await self.run("erase", keys, args) == COMMITTED:
                return found
        raise ContendedError(f"{customer_id!r} kept changing while it was erased: ask again")

    async def history(self, program_name: str, customer_id: str, *, limit: int = 50) -> list[bytes]:
        """Return the answers of a customer's recent decisions, latest first."""
        shard = self.shard(customer_id)
        ids = await self.command("LRANGE", records.history_key(shard, program_name, customer_id), 0, limit - 1)
        keys = [records.decision_key(shard, program_name, customer_id, i.decode()) for i in ids]
        return [a for a in (await self.command("MGET", *keys) if keys else []) if a is not None]

    async def answer(self, program_name: str, customer_id: str, decision_id: str) -> bytes | None:
        """Return what was answered under a decision id in the last seven days, or None."""
        key = records.decision_key(self.shard(customer_id), program_name, customer_id, decision_id)
        answer: bytes | None = await self.command("GET", key)
        return answer

    # Pauses, prices, programs, policies.

    async def pause(self, program_name: str, level: str = "program") -> None:
        """Stop `"program"` or an axis level such as `"incentive=coupon"` at once: no commit passes it any more."""
        if level != "program" and level.partition("=")[0] not in (*FACTORS, "policy"):
            raise ValueError(f'cannot pause {level!r}: expected "program", or a level such as "incentive=coupon"')
        await self._control(program_name, "HSET", f"paused:{level}", 1)

    async def resume(self, program_name: str, level: str = "program") -> None:
        """Undo `pause`."""
        await self._control(program_name, "HDEL", f"paused:{level}")

    async def paused(self, program_name: str) -> frozenset[str]:
        """Return what is paused."""
        return reads.paused(reads.pairs(await self.command("HGETALL", records.shared_key(0, "control", program_name))))

    async def set_cost_price(self, program_name: str, price: float) -> None:
        """Set the shadow price of a unit of cost."""
        await self._control(program_name, "HSET", "price", price)

    async def _control(self, program_name: str, command: str, *words: Word) -> None:
        """Change the control on each shard: decisions made under the old one are not committed any more."""
        for shard in range(self.shards):
            key = records.shared_key(shard, "control", program_name)
            await self.commands([("MULTI",), (command, key, *words), ("HINCRBY", key, "rev", 1), ("EXEC",)])

    async def put_program(self, name: str, version: str, text: str) -> None:
        """Keep the text of a program version: before its first decision."""
        await self.command("HSETNX", records.global_key("program", name), version, text)

    async def programs(self, name: str) -> dict[str, str]:
        """Return the texts of a program by version."""
        texts = reads.pairs(await self.command("HGETALL", records.global_key("program", name)))
        return {version.decode(): text.decode() for version, text in texts.items()}

    async def publish_policy(self, program_name: str, arm: str, policy: Published) -> None:
        """Replace the policy that an arm is served by."""
        key = records.global_key("policy", program_name, arm)
        await self.command("HSET", key, "version", policy.version, "payload", policy.payload)

    async def policy_version(self, program_name: str, arm: str) -> str | None:
        """Return the version published for an arm, or None: cheap, to be asked each second."""
        version = await self.command("HGET", records.global_key("policy", program_name, arm), "version")
        return None if version is None else version.decode()

    async def policy(self, program_name: str, arm: str) -> Published | None:
        """Return the policy published for an arm, or None."""
        key = records.global_key("policy", program_name, arm)
        version, payload = await self.command("HMGET", key, "version", "payload")
        return None if version is None else Published(version.decode(), payload)


async def _answer(connection: Connection) -> object:
    try:
        return await connection.read_response()
    except ResponseError as refused:  # an answer like any other: those after it must be read too
        return refused


async def _received(reader: asyncio.StreamReader, *, limit: float) -> AsyncIterator[bytes]:
    """Yield a snapshot as a replica gets it: `$<length>` and so many bytes, or `$EOF:<mark>` and all up to the mark."""
    line = b""
    while not line:  # empty lines say that the server is still preparing
        async with asyncio.timeout(limit):
            line = (await reader.readuntil(b"\n")).strip()
    if not line.startswith(b"$"):
        raise EOFError(line.decode())
    mark = line.removeprefix(b"$EOF:") if line.startswith(b"$EOF:") else b""
    left, held = 0 if mark else int(line[1:]), b""
    while mark or left:
        async with asyncio.timeout(limit):
            part = await reader.read(1 << 20)
        if not part:
            raise EOFError("it gave only a part")
        held += part
        if mark and held.endswith(mark):
            yield held.removesuffix(mark)
            return
        ready = held[: -len(mark)] if mark else held[:left]
        left, held = left - len(ready) if not mark else 0, held[len(ready) :] if mark else b""
        yield ready


@cache
def _script(name: str) -> tuple[str, str]:
    """Return the text of a script, and its SHA-1: the name that EVALSHA wants."""
    text = files("serving").joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return text, sha1(text.encode(), usedforsecurity=False).hexdigest()


def _address(url: str) -> str:
    """Return a URL without what is secret in it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL at all
        return url.rpartition("@")[2].partition("?")[0]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _named(info: str) -> dict[str, str]:
    """Return what INFO says, by name."""
    lines = (line.partition(":") for line in info.splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def _losses(info: Mapping[str, str]) -> list[str]:
    """Return the reasons for which a server would lose what was acknowledged."""
    problems = []
    if (version := info.get("redis_version", "7")).partition(".")[0] in _TOO_OLD:
        problems.append(f"it is Redis {version}, which refuses to archive once it is full; use 7 or newer, or Valkey")
    if info.get("aof_enabled") != "1":
        problems.append("the append-only file is off; type CONFIG SET appendonly yes and CONFIG SET appendfsync always")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        problems.append(f"it evicts keys ({policy}) when memory is full; type CONFIG SET maxmemory-policy noeviction")
    if info.get("role", "master") != "master":
        problems.append("it is a replica; give the address of the primary")
    return problems


def _parts(shards: Sequence[int], *, most: int) -> list[tuple[int, list[int]]]:
    """Divide rows, in order, into parts of one shard and at most so many rows: (shard, positions)."""
    by_shard: dict[int, list[int]] = defaultdict(list)
    if shards and shards.count(shards[0]) == len(shards):
        by_shard[shards[0]] = list(range(len(shards)))
    else:
        for i, shard in enumerate(shards):
            by_shard[shard].append(i)
    return [(shard, rows[i : i + most]) for shard, rows in by_shard.items() for i in range(0, len(rows), most)]


def _in_order(parts: Sequence[tuple[int, Sequence[int]]], found: Iterable[Iterable[Some]]) -> list[Some]:
    """Put what was found part by part back into the order of the rows."""
    if len(parts) == 1:
        return [one for some in found for one in some]
    by_row = {i: one for (_, rows), some in zip(parts, found, strict=True) for i, one in zip(rows, some, strict=True)}
    return [by_row[i] for i in range(len(by_row))]


def _asked_still(program: Program, before: Before, outcome: Outcome) -> Trigger | None:
    """Return what an outcome that is known still asks for: the answer that said so may never have arrived."""
    customer = before.place.customer
    if customer.trigger is None or (customer.trigger.event, customer.trigger.at) != (outcome.event, outcome.at):
        return None
    return journey.requested(program, replace(customer, trigger=None), customer, now=outcome.received_at)


def _committed(verdict: bytes | int, answer: bytes) -> Committed:
    if isinstance(verdict, bytes):
        return Committed("repeated", verdict)
    return Committed("committed", answer) if verdict == COMMITTED else Committed("stale", b"")
