"""How requests are put together, and what becomes of them when the store is slow, wrong or gone."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.engine import Chooser
from optimizer.events import Salt
from optimizer.guardrails import Shared
from optimizer.program import Program
from policies.fixed import Hold
from serving.decider import RETRIES, Breaker, Decider, OverloadedError, Wish, new_id
from serving.metrics import Metrics
from serving.publishing import uniform
from serving.store import Commitment, Committed, Found, StoreError, Turn, Wanted
from tests.small_program import NOON, SALT, customer, small


class Memory:
    """A store that remembers what it was asked and fails when told to."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.salt: Salt = SALT
        self.batches: list[list[str]] = []
        self.kept: dict[str, bytes] = {}
        self.stale: dict[str, int] = {}
        self.zones: dict[str, str] = {}
        self.reads = 0
        self.delay = 0.0
        self.failing: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Semaphore(0)

    async def read(self, program: Program, wanted: Sequence[Wanted]) -> list[Found]:
        self.reads += 1
        self.asked.release()
        self.batches.append([w.customer_id for w in wanted])
        await self.open.wait()
        await asyncio.sleep(self.delay)
        if self.failing:
            raise self.failing
        shared = Shared.unlimited(program)
        return [
            Found(
                customer(program, w.customer_id, time_zone=self.zones.get(w.customer_id, "")),
                1,
                self.kept.get(w.decision_id),
                shared,
                Turn(0, 0),
                0,
            )
            for w in wanted
        ]

    async def commit(self, program: Program, rows: Sequence[Commitment]) -> list[Committed]:
        await asyncio.sleep(0)
        return [self._commit(row) for row in rows]

    def _commit(self, row: Commitment) -> Committed:
        if self.stale.get(row.decision.customer_id, 0) > 0:
            self.stale[row.decision.customer_id] -= 1
            return Committed("stale", b"")
        self.kept[row.decision.decision_id] = row.answer
        return Committed("committed", row.answer)


@asynccontextmanager
async def deciding(memory: Memory, **settings: object) -> AsyncIterator[Decider]:
    decider = Decider(
        memory.program,
        uniform(memory.program),
        store=lambda: memory,
        metrics=Metrics(),
        **{"breaker": Breaker(shortest=0.001, longest=0.002), **settings},  # type: ignore[arg-type]
    )
    task = asyncio.create_task(decider.run())
    try:
        yield decider
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def memory() -> Memory:
    return Memory(small())


def wish(name: str, decision_id: str = "") -> Wish:
    return Wish(name, decision_id or f"d-{name}", NOON)


def read(answers: Sequence[bytes]) -> list[dict[str, object]]:
    return [msgspec.json.decode(a) for a in answers]


async def test_what_waits_together_is_decided_together(memory: Memory) -> None:
    async with deciding(memory) as decider:
        answers = await asyncio.gather(*(decider.submit([wish(f"c{i}")]) for i in range(64)))
    assert [a["customer_id"] for (a,) in map(read, answers)] == [f"c{i}" for i in range(64)]
    assert memory.reads == 1


async def test_what_keeps_coming_is_parted_so_that_one_batch_is_scored_while_another_is_kept(memory: Memory) -> None:
    async with deciding(memory) as decider:
        await decider.submit([wish("first")])
        memory.open.clear()
        asked = [decider.submit([wish(f"c{i}")]) for i in range(64)]
        await memory.asked.acquire()
        await memory.asked.acquire()
        await memory.asked.acquire()
        memory.open.set()
        await asyncio.gather(*asked)
    assert [len(batch) for batch in memory.batches] == [1, 32, 32]


async def test_a_request_alone_is_not_parted(memory: Memory) -> None:
    async with deciding(memory) as decider:
        await decider.submit([wish("first")])
        await decider.submit([wish(f"c{i}") for i in range(64)])
    assert [len(batch) for batch in memory.batches] == [1, 64]


async def test_what_is_few_is_not_parted(memory: Memory) -> None:
    async with deciding(memory) as decider:
        await decider.submit([wish("first")])
        await asyncio.gather(*(decider.submit([wish(f"c{i}")]) for i in range(16)))
    assert [len(batch) for batch in memory.batches] == [1, 16]


async def test_a_batch_has_at_most_its_size_and_a_customer_once(memory: Memory) -> None:
    wishes = [wish(f"c{i % 5}", f"d{i}") for i in range(40)] + [wish(f"e{i}") for i in range(40)]
    async with deciding(memory, size=16) as decider:
        answers = await decider.submit(wishes)
    assert [a["decision_id"] for a in read(answers)] == [w.decision_id for w in wishes]
    assert max(map(len, memory.batches)) <= 16
    assert all(len(set(batch)) == len(batch) for batch in memory.batches)


async def test_the_asks_of_one_customer_are_decided_in_their_order(memory: Memory) -> None:
    order: list[str] = []
    memory.kept = _Noting(order)
    async with deciding(memory) as decider:
        await asyncio.gather(*(decider.submit([wish("ada", f"d{i:02}")]) for i in range(20)))
    assert order == [f"d{i:02}" for i in range(20)]


class _Noting(dict[str, bytes]):
    def __init__(self, order: list[str]) -> None:
        self.order = order

    def __setitem__(self, key: str, value: bytes) -> None:
        self.order.append(key)
        super().__setitem__(key, value)


async def test_a_large_request_does_not_keep_a_small_one_waiting(memory: Memory) -> None:
    async with deciding(memory, size=16) as decider:
        memory.open.clear()
        large = decider.submit([wish(f"l{i}") for i in range(400)])
        await memory.asked.acquire()
        await memory.asked.acquire()  # both workers are busy with the large one
        small = decider.submit([wish("s")])
        memory.open.set()
        await small
        assert not large.done()
        await large
    first = next(i for i, batch in enumerate(memory.batches) if "s" in batch)
    assert first <= 2
    assert len(memory.batches) > 20


async def test_whoever_stops_waiting_takes_nobody_along(memory: Memory) -> None:
    async with deciding(memory) as decider:
        memory.open.clear()
        asked = [decider.submit([wish(f"c{i}")]) for i in range(3)]
        await memory.asked.acquire()
        asked[1].cancel()
        memory.open.set()
        assert read(await asked[0])[0]["degraded"] is False
        assert read(await asked[2])[0]["degraded"] is False
        assert "d-c1" in memory.kept
        assert read(await decider.submit([wish("c1", "later")]))[0]["degraded"] is False


async def test_whoever_stops_waiting_before_the_turn_is_not_decided_at_all(memory: Memory) -> None:
    async with deciding(memory, size=1) as decider:
        memory.open.clear()
        first = [decider.submit([wish("ada", f"d{i}")]) for i in range(3)]
        await memory.asked.acquire()
        first[1].cancel()
        memory.open.set()
        await first[2]
        assert list(memory.kept) == ["d0", "d2"]
        assert decider.waiting == 0


async def test_too_many_are_refused_and_those_before_are_served(memory: Memory) -> None:
    async with deciding(memory, queue=10) as decider:
        memory.open.clear()
        asked = decider.submit([wish(f"c{i}") for i in range(10)])
        with pytest.raises(OverloadedError, match="10 requests of small wait already, at most 10"):
            decider.check_room(1)
        memory.open.set()
        assert len(await asked) == 10
        decider.check_room(10)


async def test_a_stale_row_is_decided_again_with_fresh_state(memory: Memory) -> None:
    memory.stale["ada"] = RETRIES
    async with deciding(memory) as decider:
        ada, bob = await asyncio.gather(decider.submit([wish("ada")]), decider.submit([wish("bob")]))
    assert read(ada)[0]["degraded"] is False
    assert read(bob)[0]["degraded"] is False
    assert memory.batches == [["ada", "bob"], *([["ada"]] * RETRIES)]


async def test_a_row_that_stays_stale_is_hold_and_not_a_decision(memory: Memory) -> None:
    memory.stale["ada"] = RETRIES + 1
    async with deciding(memory) as decider:
        (held,) = read(await decider.submit([wish("ada", "mine")]))
        assert (held["degraded"], held["action"], held["hold_reason"]) == (True, None, "degraded")
        assert (held["decision_id"], held["customer_id"]) == ("mine", "ada")
        assert "mine" not in memory.kept
        assert read(await decider.submit([wish("ada", "mine")]))[0]["degraded"] is False


async def test_a_row_that_breaks_the_scoring_fails_alone(memory: Memory) -> None:
    memory.zones["broken"] = "No/Where"
    async with deciding(memory) as decider:
        good, broken = await asyncio.gather(decider.submit([wish("ada")]), decider.submit([wish("broken")]))
    assert read(good)[0]["degraded"] is False
    assert read(broken)[0]["degraded"] is True


async def test_a_row_that_cannot_be_read_fails_alone(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    understood = memory.read

    async def reading(program: Program, wanted: Sequence[Wanted]) -> list[Found]:
        if any(w.customer_id == "garbled" for w in wanted):
            raise ValueError("this is no record")
        return await understood(program, wanted)

    monkeypatch.setattr(memory, "read", reading)
    async with deciding(memory) as decider:
        answers = await asyncio.gather(*(decider.submit([wish(name)]) for name in ("ada", "garbled", "bob")))
        assert decider.breaker.healthy
    assert [read(a)[0]["degraded"] for a in answers] == [False, True, False]


@pytest.mark.parametrize("failure", [StoreError("gone"), RuntimeError("a bug")])
async def test_a_failure_is_answered_with_hold_and_forgotten(memory: Memory, failure: Exception) -> None:
    async with deciding(memory) as decider:
        memory.failing = failure
        (held,) = read(await decider.submit([wish("ada")]))
        assert held["degraded"] is True
        memory.failing = None
        decider.breaker.worked()
        assert read(await decider.submit([wish("ada")]))[0]["degraded"] is False


async def test_a_store_that_does_not_answer_is_given_up_in_time(memory: Memory) -> None:
    async with deciding(memory, seconds=0.05) as decider:
        memory.open.clear()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*(decider.submit([wish(f"c{i}", f"d{i}")]) for i in range(200)))
        assert all(a["degraded"] for (a,) in map(read, answers))


async def test_whoever_has_waited_too_long_for_a_turn_is_held(memory: Memory) -> None:
    memory.delay = 0.2
    async with deciding(memory, seconds=0.5) as decider:
        answers = await asyncio.gather(*(decider.submit([wish("ada", f"d{i}")]) for i in range(6)))
    degraded = [a["degraded"] for (a,) in map(read, answers)]
    assert degraded[0] is False
    assert degraded[-1] is True
    assert memory.reads < 6


async def test_while_the_breaker_is_open_the_store_is_left_alone(memory: Memory) -> None:
    now = 0.0
    breaker = Breaker(shortest=1.0, longest=3.0, clock=lambda: now)
    memory.failing = StoreError("gone")
    async with deciding(memory, breaker=breaker) as decider:
        await decider.submit([wish("a")])
        assert memory.reads == 1
        await decider.submit([wish("b")])
        assert memory.reads == 1
        now = 1.0
        await decider.submit([wish("c")])
        assert memory.reads == 2
        now = 2.9
        await decider.submit([wish("d")])
        assert memory.reads == 2, "the pause doubles"
        now, memory.failing = 3.0, None
        assert read(await decider.submit([wish("e")]))[0]["degraded"] is False
        assert breaker.healthy


async def test_without_a_store_yet_the_answer_is_hold() -> None:
    program = small()
    decider = Decider(program, uniform(program), store=lambda: None, metrics=Metrics())
    task = asyncio.create_task(decider.run())
    assert read(await decider.submit([wish("ada")]))[0]["degraded"] is True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_swap_holds_from_the_next_batch_on(memory: Memory) -> None:
    async with deciding(memory) as decider:
        memory.open.clear()
        under_way = decider.submit([wish("before")])
        await memory.asked.acquire()
        decider.swap("champion", Chooser(Hold(memory.program.space), "hold", "9"))
        memory.open.set()
        after = await decider.submit([wish("after")])
        await under_way
    assert read(after)[0]["policy"] == {"name": "hold", "version": "9"}


async def test_closing_answers_everybody_who_waits(memory: Memory) -> None:
    async with deciding(memory, size=2) as decider:
        memory.open.clear()
        asked = [decider.submit([wish(f"c{i}")]) for i in range(10)]
        await memory.asked.acquire()
    assert all(a["degraded"] for (a,) in map(read, await asyncio.gather(*asked)))


@given(st.integers(0, 255), st.floats(9.5e8, 4e9), st.floats(9.5e8, 4e9), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_time_within_a_shard(shard: int, at: float, later: float, entropy: bytes) -> None:
    first, second = (new_id(shard, at=t, entropy=entropy) for t in sorted((at, later)))
    assert len(first) == len(second)
    assert first <= second
    assert int(first.partition("-")[0], 16) == shard
