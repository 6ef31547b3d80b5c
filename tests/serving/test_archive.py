"""From streams to Parquet, each event once, whatever is killed when."""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optimizer.events import Decision, Outcome
from optimizer.program import DAY
from serving import records, stream
from serving.archive import Archived, archive, archiving
from serving.embedded import Server
from serving.store import Store
from serving.stream import LeaseLostError
from tests.contracts.steps import PROGRAM, active, decide, log, outcome
from tests.small_program import NOON, TOML
from training import erasure
from training import events as parquet

TEXT = TOML


@pytest.fixture
async def store(store: Store) -> Store:
    """An empty store of two shards, which knows the program."""
    await store.put_program(PROGRAM.name, PROGRAM.version, "the text of the program")
    return store


async def filled(store: Store, n: int = 12) -> Counter[str]:
    """Put decisions and outcomes of two days into the log; return how often each id is there."""
    names = [f"c{i}" for i in range(n)]
    await active(store, *names)
    await decide(store, *names, decision_id="d1", action="badge/warm/now")
    await decide(store, *names, decision_id="d2", at=NOON + DAY, action="badge/warm/evening")
    return ids(await log(store))


def ids(events: list[records.Event]) -> Counter[str]:
    """Count events by kind, customer and id."""
    return Counter(
        f"decision {e.customer_id} {e.decision_id}"
        if isinstance(e, Decision)
        else f"outcome {e.customer_id} {e.outcome_id}"
        for e in events
        if isinstance(e, Decision | Outcome)
    )


def rows(folder: Path) -> Counter[str]:
    """Count the rows of all files as they are, without the reader's care for repetitions."""
    files = sorted(folder.glob("program=*/date=*/*.parquet"))
    table = pa.concat_tables(list(parquet._files(files)))
    parts = (table[name].to_pylist() for name in ("kind", "customer_id", "id"))
    return Counter(" ".join(row) for row in zip(*parts, strict=True))


def parquets(folder: Path) -> dict[Path, bytes]:
    """Return the Parquet files below a folder, and what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*.parquet")}


async def lapse(store: Store) -> None:
    """Let the leases of archivers that are gone, or asleep, come to their end."""
    await store.command("DEL", *(records.lease_key(shard) for shard in range(store.shards)))


async def test_everything_is_archived_once_and_trimmed(store: Store, tmp_path: Path) -> None:
    expected = await filled(store)
    moved = await archive(store, tmp_path)
    assert (moved.decisions, moved.outcomes, moved.files) == (24, 36, 4)  # two shards, two days
    assert rows(tmp_path) == expected
    assert set(expected.values()) == {1}
    assert await stream.backlog(store) == 0
    assert await archive(store, tmp_path) == Archived()


async def test_what_is_read_is_what_was_decided_and_happened(store: Store, tmp_path: Path) -> None:
    await filled(store, 1)
    before = await log(store)
    await archive(store, tmp_path)
    table = parquet.read(tmp_path, "small")
    decided = {d.decision_id: d for d in before if isinstance(d, Decision)}
    for row in table.to_pylist():
        if row["kind"] == "decision":
            decision = decided[row["id"]]
            assert row["probabilities"] == decision.probabilities
            for name in ("at", "action", "action_name", "deliver_at", "cost", "policy", "arm", "salt_id"):
                assert row[name] == getattr(decision, name)
    assert len(table) == len(before)


async def test_files_lie_by_program_and_day_and_the_program_lies_beside(store: Store, tmp_path: Path) -> None:
    await filled(store)
    await archive(store, tmp_path)
    days = {path.parent.name for path in parquets(tmp_path / "program=small")}
    assert days == {"date=2026-01-01", "date=2026-01-02"}
    kept = tmp_path / "program=small" / "versions" / f"{PROGRAM.version}.toml"
    assert kept.read_text() == "the text of the program"
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith(".")]


async def test_later_events_make_later_files(store: Store, tmp_path: Path) -> None:
    first = await filled(store, 4)
    await archive(store, tmp_path)
    await store.report(PROGRAM, [outcome("c1", "late", at=NOON + 60)])
    assert (await archive(store, tmp_path)).outcomes == 1
    assert rows(tmp_path) == first + Counter(["outcome c1 late"])


@pytest.mark.parametrize("most", [3, 20_000])
async def test_an_archiver_stopped_after_any_step_leaves_a_log_that_the_next_one_finishes(
    store: Store, tmp_path: Path, most: int
) -> None:
    """Stopped after its first step, after its second, and so on, until one is not stopped any more."""
    for stop in range(200):
        await store.command("FLUSHALL")
        await store.put_program(PROGRAM.name, PROGRAM.version, "the text of the program")
        folder = tmp_path / str(stop)
        expected = await filled(store, 2)
        names = []
        steps = archiving(store, folder, most=most, seconds=60)
        async for step in steps:
            names.append(step.name)
            if len(names) > stop:
                break
        await steps.aclose()
        await lapse(store)
        await archive(store, folder, most=most)
        assert rows(folder) == expected, f"stopped after {names}"
        assert await stream.backlog(store) == 0
        if len(names) <= stop:
            assert {"taken", "planned", "written", "advanced"} <= set(names)
            return
    pytest.fail("it never came to an end")


async def test_an_archiver_that_slept_while_another_finished_changes_nothing(store: Store, tmp_path: Path) -> None:
    expected = await filled(store, 6)
    for stop in ("taken", "planned", "written"):
        sleeper = archiving(store, tmp_path, most=20_000, seconds=60)
        async for step in sleeper:
            if step.name == stop:
                break
        await lapse(store)
        await archive(store, tmp_path)
        before = parquets(tmp_path)
        assert [step.moved async for step in sleeper if step.name == "advanced"] == []
        assert parquets(tmp_path) == before  # it may write a file again, and then the same one
        assert rows(tmp_path) == expected
        await store.report(PROGRAM, [outcome("c1", stop), outcome("c2", stop)])
        expected += Counter([f"outcome c1 {stop}", f"outcome c2 {stop}"])


async def test_two_archivers_at_once_share_the_shards_and_double_nothing(store: Store, tmp_path: Path) -> None:
    expected = await filled(store, 30)
    moved = await asyncio.gather(*(archive(store, tmp_path, most=5) for _ in range(4)))
    assert sum(m.decisions + m.outcomes for m in moved) == expected.total()
    assert rows(tmp_path) == expected


async def test_two_archivers_who_both_believe_they_hold_the_lease_double_nothing(store: Store, tmp_path: Path) -> None:
    """The first stalls at each step for longer than its lease, so a second one works on the same plan."""
    expected = await filled(store, 10)
    one = archiving(store, tmp_path, most=9, seconds=60)
    other = archiving(store, tmp_path, most=9, seconds=60)
    for _ in range(40):
        for turn in (one, other):
            await anext(turn, None)
            await lapse(store)
    await archive(store, tmp_path)
    assert rows(tmp_path) == expected


async def test_a_lease_lapses_by_itself(store: Store) -> None:
    assert await stream.take(store, 0, seconds=0.02) is not None
    while await stream.take(store, 0, seconds=60) is None:  # noqa: ASYNC110  (the server's clock, not ours)
        await asyncio.sleep(0.005)


async def test_each_step_makes_the_lease_last(store: Store) -> None:
    await filled(store, 1)
    shard = store.shard("c0")
    lease = await stream.take(store, shard, seconds=60)
    assert lease is not None
    await store.command("PEXPIRE", records.lease_key(shard), 5_000)
    entries = await stream.fresh(store, shard, most=10)
    await stream.commit(store, lease, stream.Plan(entries[0].id, entries[-1].id, len(entries)))
    assert await store.command("PTTL", records.lease_key(shard)) > 50_000


async def test_a_step_without_the_lease_is_refused(store: Store) -> None:
    await filled(store, 1)
    (shard,) = {store.shard("c0")}
    old = await stream.take(store, shard, seconds=60)
    assert old is not None
    await lapse(store)
    new = await stream.take(store, shard, seconds=60)
    assert new is not None
    assert new.fence > old.fence
    assert await stream.take(store, shard, seconds=60) is None
    entries = await stream.fresh(store, shard, most=10)
    plan = stream.Plan(entries[0].id, entries[-1].id, len(entries))
    with pytest.raises(LeaseLostError):
        await stream.commit(store, old, plan)
    await stream.commit(store, new, plan)
    with pytest.raises(LeaseLostError):
        await stream.commit(store, new, plan)
    with pytest.raises(LeaseLostError):
        await stream.advance(store, old, plan)
    await stream.leave(store, old)
    await stream.advance(store, new, plan)
    with pytest.raises(LeaseLostError):
        await stream.advance(store, new, plan)
    with pytest.raises(LeaseLostError):
        await stream.of_plan(store, shard, plan)


async def test_a_full_disk_is_said_and_the_next_archiver_need_not_wait(store: Store, tmp_path: Path) -> None:
    expected = await filled(store, 3)
    (tmp_path / "archive").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="archive"):
        await archive(store, tmp_path / "archive")
    (tmp_path / "archive").unlink()
    await archive(store, tmp_path / "archive")
    assert rows(tmp_path / "archive") == expected


async def test_a_customer_erased_is_left_out_at_once_and_may_come_back(store: Store, tmp_path: Path) -> None:
    await filled(store, 3)
    await archive(store, tmp_path)
    await store.erase("c1", at=NOON + 5 * DAY)
    await store.erase("c2", at=NOON + 5 * DAY)
    await store.put("c2")
    await store.report(PROGRAM, [outcome("c2", "again", at=NOON + 6 * DAY)])
    assert (await archive(store, tmp_path)).erased == 2
    table = parquet.read(tmp_path, "small")
    assert Counter(table["customer_id"].to_pylist()) == {"c0": 5, "c2": 1}
    (tombstones,) = parquets(tmp_path / "erased")
    assert {row["digest"] for row in pq.read_table(tombstones).to_pylist()} == {
        erasure.digest(store.erasure_key, name) for name in ("c1", "c2")
    }
    (key,) = (tmp_path / "erased").glob("*/key")
    assert key.stat().st_mode & 0o077 == 0


async def test_a_correction_replaces_what_it_corrects_when_read(store: Store, tmp_path: Path) -> None:
    await store.put("ada")
    for revision, value in enumerate((5.0, 7.0, 6.0)):
        await store.report(PROGRAM, [outcome("ada", "o", "spent", value=value, revision=revision)])
        await archive(store, tmp_path)
    assert len(rows(tmp_path)) == 1
    table = parquet.read(tmp_path, "small")
    assert table.select(["id", "revision", "value"]).to_pylist() == [{"id": "o", "revision": 2, "value": 6.0}]


@pytest.mark.slow
async def test_archivers_killed_again_and_again_lose_and_double_nothing(
    store: Store, server: Server, tmp_path: Path
) -> None:
    """A process that archives is killed after a few milliseconds, more each time, while the log grows."""
    expected: Counter[str] = Counter()
    for round_ in range(5):
        names = [f"r{round_}-{i}" for i in range(40)]
        await active(store, *names)
        await decide(store, *names, action="hold")
        expected += Counter([f"outcome {n} {n}-{i}" for n in names for i in range(3)])
        expected += Counter([f"decision {n} d" for n in names])
        command = [sys.executable, "-c", _ARCHIVER, server.url, str(tmp_path)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(0.008 * round_)  # the instant of the kill is what varies
        process.kill()
        await process.wait()
        await lapse(store)
    await archive(store, tmp_path)
    assert rows(tmp_path) == expected
    assert await stream.backlog(store) == 0


async def test_what_a_killed_archiver_had_half_written_is_swept_away(store: Store, tmp_path: Path) -> None:
    await filled(store, 1)
    steps = archiving(store, tmp_path, most=20_000, seconds=60)
    async for step in steps:
        if step.name == "written":
            break
    await steps.aclose()
    (written, *_) = parquets(tmp_path)
    written.rename(written.with_name(f".{written.name}.half"))
    await lapse(store)
    await archive(store, tmp_path)
    assert [path.name for path in parquets(tmp_path) if path.name.startswith(".")] == []
    assert not written.with_name(f".{written.name}.half").exists()
    assert written.exists()


_ARCHIVER = """
import asyncio, sys
from pathlib import Path
from serving.archive import archive
from serving.store import Store
async def main():
    async with await Store.open(sys.argv[1]) as store:
        print("now", flush=True)
        await archive(store, Path(sys.argv[2]), most=11, seconds=60)
asyncio.run(main())
"""
