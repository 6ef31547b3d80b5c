"""How do messages get to whom they are for? Signed, sent again until they are taken, and kept where they are not.

Messages are queued by the commit that they are about (`hooks`, `commit.lua`), so none is lost and none is about what
was not kept. For each target and shard one sender at a time holds a lease. A message is sent at least once, under an
id that stays the same; what is not taken comes again later and later, and in the end is dead until it is replayed.
Messages may arrive in another order than they were made in.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import aiohttp
import msgspec
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook

from serving import hooks
from serving.hooks import Message
from serving.public import RefusedAddressError, connector
from serving.store import Store
from serving.targets import Target

TOGETHER = 8
"""Messages that one target is sent at once."""

MOST_DEAD = 10_000
"""Dead messages of a target that a shard keeps; beyond, those that have been dead for longest are dropped."""

LONGEST = 12 * 3600.0
"""Seconds between two attempts at most."""

_IDLE = 0.2
"""Seconds until the queue is looked at again where it was empty."""

log = logging.getLogger("nudge.webhooks")


class Patience(NamedTuple):
    """How long and how often: seconds to an answer, to the second attempt, attempts in all; dead ones that are kept."""

    seconds: float = 10.0
    backoff: float = 5.0
    attempts: int = 14
    dead: int = MOST_DEAD

    def delay(self, attempts: int, *, chance: float) -> float:
        """Return seconds to the next attempt after so many: twice as long each time, and up to half off or on.

        >>> [Patience().delay(n, chance=0.5) for n in (1, 2, 3, 30)]
        [5.0, 10.0, 20.0, 43200.0]
        """
        return min(self.backoff * 2.0 ** min(attempts - 1, 60), LONGEST) * (0.5 + chance)


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A message that has not arrived, without what is in it: `waiting` to be sent (again), or `dead`."""

    id: str
    target: str
    event: str
    state: str
    attempts: int
    made_at: str
    next_at: str
    error: str


class _Answer(NamedTuple):
    """What came of an attempt: nothing wrong, or what; whether it is no use to go on; seconds that were asked for."""

    error: str = ""
    final: bool = False
    wait: float = 0.0


class Sender:
    """Sends what is queued for one target, for as long as it runs.

    Args:
        store: where the queue is.
        target: to whom.
        who: names this sender among those who want the lease.
        clock: seconds since the epoch.
        chance: a number in [0, 1), for the jitter.
        patience: how long and how often.
        became: told what came of each attempt: `arrived`, `later` or `dead`.
    """

    def __init__(
        self,
        store: Store,
        target: Target,
        *,
        who: str,
        clock: Callable[[], float],
        chance: Callable[[], float],
        patience: Patience,
        became: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._target, self._who = store, target, who
        self._clock, self._chance, self._patience, self._became = clock, chance, patience, became
        self._signers = [Webhook(secret) for secret in target.secrets]

    async def run(self) -> None:
        """Send until cancelled; then let another sender take over at once."""
        async with self._session() as session:
            try:
                while True:
                    sent = [await self._shard(session, shard) for shard in range(self._store.shards)]
                    if not any(sent):
                        await asyncio.sleep(_IDLE)
            finally:
                for shard in range(self._store.shards):
                    await self._step(shard, "leave")

    async def once(self) -> int:
        """Send what is due now, each message once; return how many were."""
        async with self._session() as session:
            return sum([await self._shard(session, shard) for shard in range(self._store.shards)])

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector(loopback=self._target.loopback, limit=TOGETHER),
            timeout=aiohttp.ClientTimeout(total=self._patience.seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _shard(self, session: aiohttp.ClientSession, shard: int) -> int:
        """Send a handful of what is due in a shard, if the lease is ours; return how many."""
        due = await self._due(shard)
        if not due or not await self._step(shard, "take"):
            return 0
        due = await self._due(shard)  # another may have sent some before we had the lease
        key = hooks.messages_key(shard, self._target.name)
        kept = await self._store.command("HMGET", key, *due) if due else []
        messages = [hooks.decode(data) for data in kept if data is not None]
        await asyncio.gather(*(self._message(session, shard, message) for message in messages))
        return len(messages)

    async def _due(self, shard: int) -> list[bytes]:
        key = hooks.due_key(shard, self._target.name)
        due: list[bytes] = await self._store.command("ZRANGEBYSCORE", key, "-inf", self._clock(), "LIMIT", 0, TOGETHER)
        return due

    async def _message(self, session: aiohttp.ClientSession, shard: int, message: Message) -> None:
        answer = await self._send(session, message)
        said = {"target": message.target, "id": message.id, "attempts": message.attempts + 1}
        if not answer.error:
            log.debug("webhook arrived", extra=said)
            self._became("arrived")
            await self._step(shard, "done", message.id)
            return
        tried = message.attempts + 1
        dead = answer.final or tried >= self._patience.attempts
        self._became("dead" if dead else "later")
        wait = max(self._patience.delay(tried, chance=self._chance()), answer.wait)
        later = replace(message, attempts=tried, error=answer.error, due_at=self._clock() + wait)
        log.warning("webhook is dead" if dead else "webhook was not taken", extra={**said, "error": answer.error})
        record = msgspec.msgpack.encode(later)
        await self._step(shard, "bury" if dead else "later", message.id, later.due_at, record, self._patience.dead)

    async def _send(self, session: aiohttp.ClientSession, message: Message) -> _Answer:
        try:
            async with session.post(
                self._target.url, data=message.body, headers=self._headers(message), allow_redirects=False
            ) as response:
                return _judged(response.status, response.headers.get("Retry-After", ""))
        except RefusedAddressError as error:
            return _Answer(str(error))
        except TimeoutError:
            return _Answer(f"no answer within {self._patience.seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            refused = next((e for e in _causes(error) if isinstance(e, RefusedAddressError)), None)
            return _Answer(str(refused or type(error).__name__))

    def _headers(self, message: Message) -> dict[str, str]:
        now, text = datetime.fromtimestamp(int(self._clock()), UTC), message.body.decode()
        return {
            "Content-Type": "application/json",
            "User-Agent": "nudge-optimizer",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(s.sign(message.id, now, text) for s in self._signers),
        }

    async def _step(self, shard: int, step: str, *words: str | float | bytes) -> bool:
        # One message takes at most its time limit, so whoever sends keeps the lease; who was killed loses it soon.
        hold = int(1000 * (2.0 * self._patience.seconds + 1.0))
        return bool(await self._store.run("webhooks", _keys(shard, self._target.name), [step, self._who, hold, *words]))


def _judged(status: int, retry_after: str) -> _Answer:
    if 200 <= status < 300:
        return _Answer()
    if status == 410:
        return _Answer("answered 410: it is not wanted any more", final=True)
    if 300 <= status < 400:
        return _Answer(f"answered {status}: redirects are not followed, so give the address that it leads to")
    wait = float(retry_after) if retry_after.isdecimal() and status in (429, 503) else 0.0
    return _Answer(f"answered {status}", wait=min(wait, LONGEST))


def _causes(error: BaseException | None) -> Sequence[BaseException]:
    """Return what led to an error, itself first."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or getattr(error, "os_error", None)
    return found


# What an operator asks for.


async def listed(store: Store, targets: Sequence[str], *, most: int = 1_000) -> list[Waiting]:
    """Return messages that have not arrived, dead ones first; of each target and state at most so many."""
    found: list[Waiting] = []
    for state, key_of in (("dead", hooks.dead_key), ("waiting", hooks.messages_key)):
        for target in targets:
            kept = [m for shard in range(store.shards) for m in await _some(store, key_of(shard, target), most=most)]
            found += [_shown(m, state) for m in sorted(kept, key=lambda m: (m.made_at, m.id))[:most]]
    return found


async def replay(store: Store, targets: Sequence[str], *, ids: Sequence[str] = (), now: float) -> int:
    """Send dead messages again, with all their attempts: those named, or all of these targets; return how many."""
    return await _each(store, targets, ids=ids, step="replay", now=now)


async def drop(store: Store, targets: Sequence[str], *, ids: Sequence[str] = ()) -> int:
    """Forget dead messages: those named, or all of these targets; return how many."""
    return await _each(store, targets, ids=ids, step="drop", now=0.0)


async def forget(store: Store, targets: Sequence[str], customer_id: str) -> None:
    """Forget every message about a customer that has not arrived."""
    shard = store.shard(customer_id)
    for target in targets:
        for key in (hooks.messages_key(shard, target), hooks.dead_key(shard, target)):
            for message in await _some(store, key, most=math.inf):
                if message.customer_id == customer_id:
                    await store.run("webhooks", _keys(shard, target), ["drop", "", 0, message.id])


async def waiting(store: Store, target: str) -> tuple[int, int]:
    """Return how many messages wait to be sent to a target, and how many are dead."""
    keys = [key(s, target) for key in (hooks.messages_key, hooks.dead_key) for s in range(store.shards)]
    counts = await store.commands([("HLEN", key) for key in keys])
    return sum(counts[: store.shards]), sum(counts[store.shards :])


async def _each(store: Store, targets: Sequence[str], *, ids: Sequence[str], step: str, now: float) -> int:
    done = 0
    for target in targets:
        for shard in range(store.shards):
            for message in await _some(store, hooks.dead_key(shard, target), most=math.inf):
                if not ids or message.id in ids:
                    fresh = msgspec.msgpack.encode(replace(message, attempts=0, error="", due_at=now))
                    done += bool(
                        await store.run("webhooks", _keys(shard, target), [step, "", 0, message.id, now, fresh])
                    )
    return done


async def _some(store: Store, key: str, *, most: float) -> list[Message]:
    """Return messages under a key, page by page, and at most so many."""
    found: dict[bytes, Message] = {}
    cursor = b"0"
    while len(found) < most:
        cursor, flat = await store.command("HSCAN", key, cursor, "COUNT", 500)
        found |= {i: hooks.decode(data) for i, data in zip(flat[::2], flat[1::2], strict=True)}
        if cursor == b"0":
            break
    return list(found.values())


def _shown(message: Message, state: str) -> Waiting:
    return Waiting(
        id=message.id,
        target=message.target,
        event=message.kind,
        state=state,
        attempts=message.attempts,
        made_at=_time(message.made_at),
        next_at=_time(message.due_at) if state == "waiting" and message.due_at else "",
        error=message.error,
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).isoformat()


_KEYS = (hooks.lease_key, hooks.due_key, hooks.messages_key, hooks.dead_key, hooks.buried_key)


def _keys(shard: int, target: str) -> list[str]:
    return [key(shard, target) for key in _KEYS]
