"""What is backed up comes back, whole or not at all, while the service goes on."""

import asyncio
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from optimizer.events import Decision
from serving import embedded, records, stream
from serving.archive import archive
from serving.backup import Kept, back_up, restore, verified
from serving.settings import Settings
from serving.store import Store
from tests.contracts.steps import PROGRAM, active, decide, log, outcome
from tests.e2e.running import call, nudge, nudge_json, served
from tests.small_program import NOON
from training import events as parquet


def settings(home: Path) -> Settings:
    return Settings(home=home, archive=home / "archive")


async def lived(store: Store, home: Path) -> None:
    """Let some happen and be archived, and then some more."""
    await store.put_program(PROGRAM.name, PROGRAM.version, "the text of the program")
    await active(store, "ada", "bob")
    await decide(store, "ada", "bob", action="badge/warm/now", decision_id="d1")
    await archive(store, home / "archive")
    await store.report(PROGRAM, [outcome("ada", "later")])
    await decide(store, "eve", action="hold", decision_id="d1")


@pytest.fixture
def backed_up(tmp_path: Path) -> Path:
    """A backup of a home with everything in it."""
    home, registry = tmp_path / "home", tmp_path / "mlruns"
    (home / "programs").mkdir(parents=True)
    (home / "programs" / "small.toml").write_text("a program")
    (home / "keys.json").write_text("{}")
    (home / "keys.json").chmod(0o600)
    (registry / "artifacts" / "1").mkdir(parents=True)
    (registry / "artifacts" / "1" / "model").write_text("a model")
    with closing(sqlite3.connect(registry / "mlflow.db")) as database, database:
        database.execute("create table runs (name text)")
        database.execute("insert into runs values ('first')")

    async def work() -> None:
        async with await Store.open(server.url) as store:
            await lived(store, home)
        await back_up(settings(home), tmp_path / "kept", url=server.url, registry=registry, now=NOON)

    with embedded.serve(home / "store") as server:
        asyncio.run(work())
    return tmp_path / "kept"


async def test_a_backup_comes_back_as_it_was(backed_up: Path, tmp_path: Path) -> None:
    home, registry = tmp_path / "other" / "home", tmp_path / "other" / "mlruns"
    kept = restore(backed_up, settings(home), registry=registry)
    assert kept.files >= 7
    assert (home / "programs" / "small.toml").read_text() == "a program"
    assert (home / "keys.json").stat().st_mode & 0o777 == 0o600
    assert (registry / "artifacts" / "1" / "model").read_text() == "a model"
    with closing(sqlite3.connect(registry / "mlflow.db")) as database:
        assert database.execute("select name from runs").fetchall() == [("first",)]
    with embedded.serve(home / "store") as server, embedded.serve(tmp_path / "home" / "store") as before:
        async with await Store.open(server.url) as now, await Store.open(before.url) as then:
            assert await log(now) == await log(then)
            assert (now.salt, now.erasure_key) == (then.salt, then.erasure_key)
            customers = [await store.get(PROGRAM, "ada", at=NOON) for store in (now, then)]
            assert customers[0] is not None
            assert [c.customer for c in customers if c] == [customers[0].customer] * 2
            assert await now.answer("small", "ada", "d1") == await then.answer("small", "ada", "d1")
            await now.command("DEL", records.lease_key(0))  # that of the backup: it lapses within seconds
            assert (await archive(now, home / "archive")).outcomes == 1
    assert len(rows(home / "archive")) == 6 + 2 + 1 + 1
    assert len(set(rows(home / "archive"))) == len(rows(home / "archive"))


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Return every row of every file."""
    found: list[tuple[str, str, str]] = []
    for file in parquet.program_folder(folder, "small").glob("date=*/*.parquet"):
        table = pq.read_table(file, partitioning=None).select(["kind", "customer_id", "id"])
        found += list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return found


def test_a_damaged_backup_is_refused_and_nothing_is_written(backed_up: Path, tmp_path: Path) -> None:
    home = tmp_path / "other"
    for damage in ("store.rdb", "home/keys.json"):
        file = backed_up / damage
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{damage}: is not as it was written"):
            restore(backed_up, settings(home), registry=home)
        file.write_bytes(whole)
    (backed_up / "archive" / "more").write_text("")
    with pytest.raises(ValueError, match="'archive/more' is missing, or was added later"):
        restore(backed_up, settings(home), registry=home)
    (backed_up / "archive" / "more").unlink()
    (backed_up / "manifest.json").rename(tmp_path / "manifest")
    with pytest.raises(ValueError, match=r"there is no manifest.json"):
        restore(backed_up, settings(home), registry=home)
    assert not home.exists()


def test_a_living_folder_is_not_replaced(backed_up: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists: restore replaces nothing"):
        restore(backed_up, settings(tmp_path / "home"), registry=tmp_path / "new")
    with pytest.raises(ValueError, match=r"mlflow.db exists"):
        restore(backed_up, settings(tmp_path / "new"), registry=tmp_path / "mlruns")
    with pytest.raises(ValueError, match="exists already"):
        asyncio.run(back_up(settings(tmp_path), backed_up, url="unix:///nowhere", registry=tmp_path, now=NOON))


async def test_no_archiver_works_while_a_backup_is_made_and_the_lease_is_given_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with embedded.serve(home / "store") as server:
        async with await Store.open(server.url) as store:
            await lived(store, home)
            making = asyncio.create_task(_backed_up(home, tmp_path / "kept", url=server.url))
            while await store.command("GET", records.lease_key(0)) is None:
                assert not making.done()
                await asyncio.sleep(0)
            assert (await archive(store, home / "archive")).files == 0
            await making
            assert (await archive(store, home / "archive")).files > 0
        assert not (home / "store" / "dump.rdb").exists(), "a copy that nobody knows of would outlive an erasure"


async def _backed_up(home: Path, target: Path, *, url: str) -> Kept:
    return await back_up(settings(home), target, url=url, registry=home / "none", now=NOON)


@pytest.mark.slow
def test_a_backup_made_under_traffic_holds_all_that_was_acknowledged_before_it(tmp_path: Path) -> None:
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    there.mkdir()
    elsewhere.mkdir()
    decided: list[tuple[float, str]] = []
    done = threading.Event()
    with served(there) as url:

        def ask() -> None:
            while not done.wait(0.02):  # leave the processor to those who back up
                number = f"{len(decided)}"
                body = {"program": "fitness-coaching", "customer_id": f"c{number}", "decision_id": number}
                status, answer = call("POST", f"{url}/v1/decide", body)
                assert status == 200
                if not answer["degraded"]:
                    decided.append((time.time(), number))

        client = threading.Thread(target=ask)
        client.start()
        try:
            while len(decided) < 20:
                assert client.is_alive()
                time.sleep(0.01)
            nudge("archive", home=there)
            before = len(decided)
            made = nudge_json("backup", str(tmp_path / "kept"), home=there)
            assert len(decided) > before, "the service did not go on"
        finally:
            done.set()
            client.join()
    assert made["files"] == len(verified(tmp_path / "kept").files)
    nudge("restore", str(tmp_path / "kept"), home=elsewhere)
    found = asyncio.run(_decided(elsewhere / "var"))
    assert {number for _, number in decided[:before]} <= found
    assert "exists: restore replaces nothing" in nudge("restore", str(tmp_path / "kept"), home=elsewhere, code=2)


async def _decided(home: Path) -> set[str]:
    """Return every decision there is, archived or not."""
    archived = {
        id_
        for file in parquet.program_folder(home / "archive", "fitness-coaching").glob("date=*/*.parquet")
        for id_ in pq.read_table(file, partitioning=None).column("id").to_pylist()
    }
    with embedded.serve(home / "store") as server:
        async with await Store.open(server.url) as store:
            entries = await stream.fresh(store, 0, most=1_000_000)
    return archived | {e.event.decision_id for e in entries if isinstance(e.event, Decision)}
