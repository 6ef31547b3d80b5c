"""Customers to a CRM and back: every one, as they are, and nothing lost to a bad row."""

import csv
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.program import DAY
from serving import crm
from serving.store import Store
from tests.contracts.steps import PROGRAM, active, decide, outcome
from tests.small_program import NOON

NASTY = ["=1+1", "+1", "-1", "@SUM(A1)", "'=x", "it's", 'a"b', "a,b;c", "ü-漢字", "[x]*?"]


def read(file: Path) -> dict[str, dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return {row["customer_id"]: row for row in csv.DictReader(text)}


def files(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


async def imported(store: Store, file: Path, text: str = "", **more: object) -> crm.Imported:
    if text:
        with open(file, "w", encoding="utf-8") as into:  # noqa: ASYNC230, PTH123  (a small one)
            into.write(text)
    options = {"mapping": {}, **more}
    return await crm.import_(store, file, PROGRAM.attributes, **options)  # type: ignore[arg-type]


async def profile(store: Store, name: str) -> tuple[object, ...]:
    found = await store.get(PROGRAM, name, at=NOON)
    assert found is not None
    return found.customer.consent, found.customer.time_zone, found.customer.attributes


async def test_everything_about_a_customer_is_exported(store: Store, tmp_path: Path) -> None:
    await store.put("ada", consent=True, time_zone="Europe/Paris", attributes={"plan": "gold", "tenure": 3})
    await active(store, "ada")
    await decide(store, "ada", action="badge/warm/now")
    await store.report(PROGRAM, [outcome("ada", f"more{i}", at=NOON) for i in range(7)])
    told: list[tuple[str, int, int]] = []
    done = await crm.export(store, PROGRAM, tmp_path / "out.csv", at=NOON + 60, progress=lambda *t: told.append(t))
    assert (done.customers, done.program) == (1, "small")
    row = read(tmp_path / "out.csv")["ada"]
    assert {k: row[k] for k in ("consent", "time_zone", "plan", "tenure", "stage", "streak", "longest_streak")} == {
        "consent": "yes",
        "time_zone": "Europe/Paris",
        "plan": "gold",
        "tenure": "3.0",
        "stage": "active",
        "streak": "1",
        "longest_streak": "1",
    }
    assert float(row["momentum"]) > 0.9
    assert (row["milestone"], row["milestone_done"], row["milestone_of"], row["next_reward"]) == (
        "A week in a row",
        "1",
        "7",
        "a gift",
    )
    assert (row["rewards_earned"], row["last_step"], row["last_nudge"]) == ("a badge", "step", "badge")
    assert row["last_nudge_at"] == "2026-01-01T13:00:00+01:00"
    assert told[-1][1] == 1
    assert files(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
async def test_what_is_exported_can_be_imported_and_changes_nothing(store: Store, tmp_path: Path, suffix: str) -> None:
    for i, name in enumerate(NASTY):
        await store.put(name, consent=bool(i % 2), attributes={"plan": "free", "tenure": i - 5.5})
    file = tmp_path / f"out.{suffix}"
    assert (await crm.export(store, PROGRAM, file, at=NOON)).customers == len(NASTY)
    again = await imported(store, file)
    assert (again.rows, again.unchanged, again.changed, again.rejected) == (len(NASTY), len(NASTY), 0, 0)
    assert {"stage", "momentum"} <= set(again.ignored)


async def test_no_cell_is_a_formula(store: Store, tmp_path: Path) -> None:
    for name in NASTY:
        await store.put(name, attributes={"plan": name})
    await crm.export(store, PROGRAM, tmp_path / "out.csv", at=NOON)
    with (tmp_path / "out.csv").open(newline="") as text:
        cells = [cell for row in csv.reader(text) for cell in row]
    assert len(cells) > 2 * len(NASTY)
    assert not [c for c in cells if c.startswith(("=", "+", "@", "\t")) or (c.startswith("-") and not c[1:2].isdigit())]
    assert not [c for c in cells if c == "-1"]


@given(st.text(max_size=12))
def test_a_cell_reads_back_as_it_was(text: str) -> None:
    written = crm._cell(text)
    assert crm._uncell(str(written)) == text
    assert not str(written).startswith(("=", "+", "-", "@", "\t", "\r"))


async def test_a_file_sets_attributes_consent_zone_and_unsubscribes(store: Store, tmp_path: Path) -> None:
    await store.put("ada", consent=True, attributes={"plan": "free", "tenure": 2.0})
    text = (
        "Kunde;consent;unsubscribed;time_zone;plan;Dauer;note\n"
        "ada;;;Europe/Berlin;gold;;x\nbob;yes;;;;4.5;\ncy;;yes;;;;\n"
    )
    mapping = {"customer_id": "Kunde", "tenure": "Dauer"}
    done = await imported(store, tmp_path / "in.csv", "\ufeff" + text, mapping=mapping)
    assert (done.rows, done.changed, done.rejected, done.ignored) == (3, 3, 0, ["note"])
    assert await profile(store, "ada") == (True, "Europe/Berlin", {"plan": "gold", "tenure": 2.0})
    assert await profile(store, "bob") == (True, "", {"tenure": 4.5})
    assert await profile(store, "cy") == (False, "", {})
    again = await imported(store, tmp_path / "in.csv", mapping=mapping)
    assert (again.changed, again.unchanged) == (0, 3)


async def test_a_yes_in_a_file_does_not_undo_a_no(store: Store, tmp_path: Path) -> None:
    await store.put("ada", consent=False)
    done = await imported(store, tmp_path / "in.csv", "customer_id,consent\nada,yes\n")
    assert (done.kept_out, (await profile(store, "ada"))[0]) == (1, False)
    done = await imported(store, tmp_path / "in.csv", resubscribe=True)
    assert (done.kept_out, (await profile(store, "ada"))[0]) == (0, True)


async def test_bad_rows_are_reported_by_line_and_the_others_are_kept(store: Store, tmp_path: Path) -> None:
    text = (
        "customer_id,consent,time_zone,plan,tenure\n"
        "ada,yes,Europe/Paris,gold,1\n"
        ",yes,,,\n"
        "a/b,yes,,,\n"
        "bob,perhaps,,,\n"
        "cy,,Mars/Base,,\n"
        "dan,,,gold,many\n"
        "eve,,,gold,nan\n"
        "fay,,,gold,1,surplus\n"
        '"gus\nhall",,,,\n'
        f"hal,,,{'x' * 300},\n"
        "ida,no,,,2\n"
    )
    done = await imported(store, tmp_path / "in.csv", text, rejects=tmp_path / "bad.csv")
    assert (done.rows, done.changed, done.rejected) == (11, 2, 9)
    assert [(f.line, f.column) for f in done.faults] == [
        (3, "customer_id"),
        (4, "customer_id"),
        (5, "consent"),
        (6, "time_zone"),
        (7, "tenure"),
        (8, "tenure"),
        (9, ""),
        (11, "customer_id"),
        (12, "plan"),
    ]
    assert done.faults[4].problem == "'many' is not a number"
    assert done.faults[4].mend == "send a number, or null for unknown"
    assert all(f.problem and f.mend for f in done.faults)
    assert await profile(store, "ida") == (False, "", {"tenure": 2.0})
    with (tmp_path / "bad.csv").open(newline="") as kept:
        rows = list(csv.DictReader(kept))
    assert [r["customer_id"] for r in rows] == ["", "a/b", "bob", "cy", "dan", "eve", "fay", "gus\nhall", "hal"]
    assert rows[4]["problem"] == "tenure 'many' is not a number"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("in.csv", "id,plan\n1,gold\n", "no column customer_id, but id, plan; say which it is: --column customer_id="),
        ("in.csv", "customer_id,customer_id\n1,2\n", "'customer_id' is there twice"),
        ("in.txt", "x", "ends with '.txt': give a file"),
        ("in.csv", "", "no column customer_id, but none"),
    ],
)
async def test_a_file_that_cannot_be_meant_is_refused(
    store: Store, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        await imported(store, tmp_path / name)


async def test_what_comes_before_a_broken_place_is_kept(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(b"customer_id,plan\nada,gold\n" + b"x,free\n" * 3000 + b"\xff\xfe,gold\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        await imported(store, file)
    assert (await profile(store, "ada"))[2] == {"plan": "gold"}


async def test_a_parquet_file_is_imported_row_by_row(store: Store, tmp_path: Path) -> None:
    table = pa.table(
        {"customer_id": [17.0, 18.0, None], "plan": ["gold", None, "free"], "tenure": [1.5, float("nan"), 1]}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    done = await imported(store, tmp_path / "in.parquet")
    assert (done.changed, done.rejected, [f.line for f in done.faults]) == (2, 1, [3])
    assert await profile(store, "17") == (None, "", {"plan": "gold", "tenure": 1.5})


async def test_a_customer_twice_in_a_file_ends_as_the_last_row_says(store: Store, tmp_path: Path) -> None:
    done = await imported(store, tmp_path / "in.csv", "customer_id,plan,consent\nada,free,yes\nada,gold,no\n")
    assert done.changed == 2
    assert await profile(store, "ada") == (False, "", {"plan": "gold"})


async def test_an_export_that_fails_leaves_no_file(store: Store, tmp_path: Path) -> None:
    await store.put("ada")
    with pytest.raises(RuntimeError):
        await crm.export(store, PROGRAM, tmp_path / "out.csv", at=NOON, progress=failing)
    assert files(tmp_path) == []
    with pytest.raises(ValueError, match=r"ends with '.xlsx': name a file that ends with .csv or .parquet"):
        await crm.export(store, PROGRAM, tmp_path / "out.xlsx", at=NOON)


def failing(what: str, done: int, of: int) -> None:
    raise RuntimeError(what)


async def test_customers_of_other_programs_only_are_left_out(store: Store, tmp_path: Path) -> None:
    from msgspec.structs import replace

    await store.put("nowhere")
    await store.put("elsewhere")
    await store.report(replace(PROGRAM, name="other"), [outcome("elsewhere", "o")])
    assert (await crm.export(store, PROGRAM, tmp_path / "out.csv", at=NOON)).customers == 1


async def test_a_large_export_is_written_in_bounded_memory(store: Store, tmp_path: Path) -> None:
    lines = "".join(f"c{i},gold,{i}\n" for i in range(2_500))
    assert (await imported(store, tmp_path / "in.csv", f"customer_id,plan,tenure\n{lines}")).changed == 2_500
    tracemalloc.start()
    try:
        done = await crm.export(store, PROGRAM, tmp_path / "out.csv", at=NOON + DAY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.customers == len(read(tmp_path / "out.csv")) == 2_500
    assert peak < 5e6, "a customer and its row take about four kilobytes: 10 MB if all were held"
