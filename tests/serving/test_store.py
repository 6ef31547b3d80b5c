"""The store when it is opened, cut off, slow, or killed: over the embedded server."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.customer import Customer, Decayed, Sent
from optimizer.events import Decision, Outcome
from serving import records
from serving.embedded import Server, serve
from serving.store import Store, StoreError, Wanted
from tests.contracts.conftest import clustered
from tests.contracts.steps import PROGRAM, decide, log, outcome, propose
from tests.small_program import NOON


@pytest.fixture
def url(server: Server) -> str:
    """The address of an empty server."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.url.removeprefix("unix://"))
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64) == b"+OK\r\n"
    return server.url


# Opening.


async def test_a_store_is_created_once_and_found_again_as_it_was(url: str) -> None:
    opened = await asyncio.gather(*(Store.open(url, shards=3, simulated=True) for _ in range(5)))
    async with await Store.open(url) as again:
        for store in opened:
            assert (store.shards, store.simulated) == (3, True)
            assert store.salt == again.salt
            assert store.erasure_key == again.erasure_key
            await store.close()
        assert len(again.salt.key) == 32
        assert again.salt.id
        assert again.salt.key != again.erasure_key


async def test_another_number_of_shards_is_refused(url: str) -> None:
    await (await Store.open(url, shards=3)).close()
    with pytest.raises(StoreError, match="created with 3 shards, not 4: open it with 3"):
        await Store.open(url, shards=4)


async def test_real_and_simulated_customers_are_kept_apart(url: str) -> None:
    await (await Store.open(url)).close()
    with pytest.raises(StoreError, match="created for real customers, not for simulated ones"):
        await Store.open(url, simulated=True)


async def test_a_layout_of_another_release_is_refused(url: str) -> None:
    async with await Store.open(url) as store:
        await store.command("HSET", "{g}:layout", "version", 99)
    with pytest.raises(StoreError, match=f"has layout 99, this program reads {records.LAYOUT}"):
        await Store.open(url)


@pytest.mark.parametrize(
    ("setting", "bad", "good", "mend"),
    [
        ("appendonly", "no", "yes", "CONFIG SET appendonly yes"),
        ("maxmemory-policy", "allkeys-lru", "noeviction", "CONFIG SET maxmemory-policy noeviction"),
    ],
)
async def test_a_server_that_would_lose_what_it_acknowledges_is_refused_with_what_to_type(
    url: str, setting: str, bad: str, good: str, mend: str
) -> None:
    async with await Store.open(url) as store:
        await store.command("CONFIG", "SET", setting, bad)
        try:
            assert mend in (await store.durability())[0]
            with pytest.raises(StoreError, match=mend):
                await Store.open(url)
        finally:
            await store.command("CONFIG", "SET", setting, good)
        assert await store.durability() == []


async def test_a_replica_is_refused(url: str) -> None:
    async with await Store.open(url) as store:
        await store.command("REPLICAOF", "127.0.0.1", 1)
        try:
            with pytest.raises(StoreError, match="give the address of the primary"):
                await Store.open(url)
        finally:
            await store.command("REPLICAOF", "NO", "ONE")


async def test_a_server_that_syncs_each_second_is_used_and_said(url: str) -> None:
    async with await Store.open(url) as store:
        await store.command("CONFIG", "SET", "appendfsync", "everysec")
        try:
            async with await Store.open(url) as other:
                assert "CONFIG SET appendfsync always" in (await other.durability())[0]
        finally:
            await store.command("CONFIG", "SET", "appendfsync", "always")


@pytest.mark.parametrize("address", ["unix:///nowhere/at/all.sock", "redis://127.0.0.1:1/0"])
async def test_a_store_that_is_not_there_is_named(address: str) -> None:
    with pytest.raises(StoreError, match=address.removeprefix("unix://").split("/")[-1]):
        await Store.open(address)


async def test_a_password_is_never_in_an_error() -> None:
    with pytest.raises(StoreError) as refused:
        await Store.open("redis://someone:hush@127.0.0.1:1/0")
    assert "hush" not in str(refused.value)
    with pytest.raises(StoreError, match="not the address of a store"):
        await Store.open("http://127.0.0.1:1")


@pytest.mark.slow
async def test_a_cluster_has_256_shards_and_every_script_stays_in_one(tmp_path: Path) -> None:
    with clustered(tmp_path) as address:
        async with await Store.open(address) as store:
            assert store.shards == 256
            names = [f"c{i}" for i in range(300)]
            assert Counter(await decide(store, *names)) == {"committed": 300}
            assert set(await store.report(PROGRAM, [outcome(n, "o") for n in names])) == {"accepted"}
            assert len(await log(store)) == 600


# Slow, cut off, cancelled.


async def test_a_server_that_does_not_answer_is_given_up_in_time_and_trusted_again_later(
    server: Server, url: str
) -> None:
    async with await Store.open(url, limit=0.2) as store:
        await decide(store, "ada", action="hold", decision_id="before")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            started = asyncio.get_running_loop().time()
            with pytest.raises(StoreError, match=r"did not answer within 0.2 s"):
                await store.read(PROGRAM, [Wanted("ada", "before", NOON)])
            assert asyncio.get_running_loop().time() - started < 1.0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for name in ("ada", "bob"):  # an answer to the question that was given up must not be taken for theirs
            (found,) = await store.read(PROGRAM, [Wanted(name, "before", NOON)])
            assert (found.customer.customer_id, found.rev > 0) == (name, name == "ada")


async def test_who_stops_waiting_leaves_nothing_to_be_misread(url: str) -> None:
    async with await Store.open(url) as store:
        await store.command("SET", "x", "old")
        for _ in range(20):
            task = asyncio.create_task(store.command("GET", "x"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await store.command("ECHO", "mine") == b"mine"


async def test_a_decision_whose_answer_got_lost_on_the_way_is_answered_the_same_and_kept_once(
    server: Server, url: str, tmp_path: Path
) -> None:
    async with cut_once(server, tmp_path / "proxy.sock") as (address, cut), await Store.open(address) as store:
        (row,) = await propose(store, "ada", action="badge/warm/now")
        cut.set()
        (became,) = await store.commit(PROGRAM, [row])
        assert not cut.is_set()
        assert became == ("repeated", row.answer)
        assert len(await log(store)) == 1


async def test_an_outcome_whose_answer_got_lost_on_the_way_is_kept_once(
    server: Server, url: str, tmp_path: Path
) -> None:
    async with cut_once(server, tmp_path / "proxy.sock") as (address, cut), await Store.open(address) as store:
        await store.put("ada")
        cut.set()
        assert await store.report(PROGRAM, [outcome("ada", "o")]) in (["accepted"], ["duplicate"])
        assert not cut.is_set()
        assert len(await log(store)) == 1


@asynccontextmanager
async def cut_once(server: Server, path: Path) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Stand between store and server; once the event is set, the answer to the next commit is lost on the way."""
    cut = asyncio.Event()
    digest = commit_script()
    sockets: set[asyncio.StreamWriter] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))
        sockets.update((writer, back))
        while asked := await reader.read(1 << 20):
            back.write(asked)
            answer = await there.read(1 << 20)
            if cut.is_set() and digest in asked:
                cut.clear()
                break
            writer.write(answer)
        writer.close()
        back.close()

    listening = await asyncio.start_unix_server(carry, path)
    try:
        yield f"unix://{path}", cut
    finally:
        listening.close()
        for writer in sockets:
            writer.close()


def commit_script() -> bytes:
    """Return the name by which the commit script is called."""
    from serving.store import _script

    return _script("commit")[1].encode()


# Killed.


@pytest.mark.slow
async def test_everything_acknowledged_is_there_once_after_the_server_was_killed_under_load(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        async with await Store.open(server.url) as store:
            stop = asyncio.Event()
            decided: set[tuple[str, str]] = set()
            reported: set[str] = set()

            async def load(name: str) -> None:
                number = 0
                while not stop.is_set():
                    try:
                        (row,) = await propose(store, name, decision_id=f"{name}-{number}")
                        if row.found.answer is None:
                            (became,) = await store.commit(PROGRAM, [row])
                            if became.status == "stale":  # another customer took one of the two gifts
                                continue
                        decided.add((name, f"{name}-{number}"))
                        await store.report(PROGRAM, [outcome(name, f"{name}-{number}")])
                        reported.add(f"{name}-{number}")
                        number += 1
                    except StoreError:
                        await asyncio.sleep(0.01)

            for i in range(16):
                await store.put(f"c{i}")
            born = await store.read(PROGRAM, [Wanted(f"c{i}", "", NOON) for i in range(16)])
            tasks = [asyncio.create_task(load(f"c{i}")) for i in range(16)]
            for kill in range(3):
                await asyncio.wait_for(progress(decided, 150 * (kill + 1)), timeout=30)
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
            await asyncio.wait_for(progress(decided, 600), timeout=30)
            stop.set()
            await asyncio.gather(*tasks)
            assert server.starts == 4
            events = await log(store)
            logged = Counter((d.customer_id, d.decision_id) for d in events if isinstance(d, Decision))
            heard = Counter(o.outcome_id for o in events if isinstance(o, Outcome))
            assert decided <= logged.keys()
            assert reported <= heard.keys()
            assert {*logged.values(), *heard.values()} == {1}
            found = await store.read(PROGRAM, [Wanted(f"c{i}", "", NOON) for i in range(16)])
            assert sum(f.rev for f in found) - sum(f.rev for f in born) == len(events)


async def progress(done: set[tuple[str, str]], enough: int) -> None:
    """Return once so much is done."""
    while len(done) < enough:  # noqa: ASYNC110  (what is waited for is the server's doing)
        await asyncio.sleep(0.005)


# How it is written.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.floats(0, 4e9)
scalars = st.none() | st.booleans() | st.floats(allow_nan=False) | texts
sents = st.builds(
    Sent, decision_id=texts, incentive=texts, deliver_at=times, day=st.integers(0, 50_000), cost=st.integers(0, 10**11),
    period=st.integers(0, 10**6), expires_at=times, settled=st.booleans(),
)  # fmt: skip
customers = st.builds(
    Customer,
    customer_id=texts,
    enrolled_at=times,
    stage=texts,
    consent=st.none() | st.booleans(),
    time_zone=texts,
    attributes=st.dictionaries(texts, scalars, max_size=3),
    steps=st.builds(Decayed, times, times),
    nudges=st.builds(Decayed, times, times),
    streak=st.integers(0, 1000),
    streak_day=st.integers(-1, 50_000),
    counts=st.dictionaries(texts, st.integers(0, 10**6), max_size=3),
    sent=st.lists(sents, max_size=3).map(tuple),
    last_step_at=st.none() | times,
    promotion_paused_until=times,
)


@given(customers)
def test_a_customer_is_read_as_it_was_written(customer: Customer) -> None:
    journey, profile = records.encode_journey(customer), records.encode(records.profile_of(customer))
    assert customer == records.decode_customer(PROGRAM, customer.customer_id, journey=journey, profile=profile, at=0.0)


@given(st.lists(st.tuples(texts, texts), unique=True, min_size=2, max_size=10), st.integers(0, 3))
def test_no_two_decisions_and_no_two_outcomes_share_a_key(ids: list[tuple[str, str]], shard: int) -> None:
    for key in (records.decision_key, records.outcome_key):
        keys = {key(shard, "p", customer, own) for customer, own in ids}
        assert len(keys) == len(ids)


def test_a_log_entry_of_a_kind_from_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="kind b'vision': expected one of"):
        records.decode_event(b"vision", b"")


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis", "http://[::1"])
async def test_what_is_no_address_of_a_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="is not the address of a store"):
        await Store.open(url)


async def test_no_password_is_shown_of_what_is_no_address() -> None:
    with pytest.raises(StoreError) as refused:
        await Store.open("http://me:secret@[::1?password=secret")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("version", "fit"), [("6.2.14", False), ("7.0.15", True), ("7.2.4", True), ("8.1.0", True)])
def test_a_server_that_is_too_old_is_named(version: str, fit: bool) -> None:  # noqa: FBT001
    from serving.store import _losses

    info = {"aof_enabled": "1", "redis_version": version}
    assert (_losses(info) == []) is fit
    assert fit or "use 7 or newer" in _losses(info)[0]
