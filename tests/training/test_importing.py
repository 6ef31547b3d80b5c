"""Logs of other systems: what cannot be right is refused with its file, row and column, and nothing is written."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from optimizer.program import Program
from training import dataset, importing

HEAD = """
name = "mine"
at = "2026-01-31"
reward_range = [0.0, 1.0]
[columns]
action = "action"
reward = "reward"
id = "id"
customer = "who"
[actions]
none = "hold"
coupon = "coupon/warm/now"
[propensities]
none = "p_none"
coupon = "p_coupon"
"""
GOOD = ["1,a,none,0,0.5,0.5", "2,b,coupon,1,0.25,0.75", "3,c,none,1,1.0,0.0"]


def write(folder: Path, rows: list[str]) -> Path:
    (folder / "map.toml").write_text(HEAD)
    (folder / "log.csv").write_text("\n".join(["id,who,action,reward,p_none,p_coupon", *rows]) + "\n")
    return folder / "log.csv"


def read(folder: Path, file: Path) -> importing.Imported:
    return importing.read(file, folder / "map.toml", archive=folder / "archive")


def test_whole_vectors_come_in_as_they_were_logged(tmp_path: Path) -> None:
    read(tmp_path, write(tmp_path, GOOD))
    (text,) = (tmp_path / "archive" / "program=mine" / "versions").glob("*.toml")
    rounds = dataset.load(tmp_path / "archive", Program.parse(text.read_text(), source="mine.toml")).rounds
    assert sorted(map(tuple, rounds.probabilities.tolist())) == [(0.25, 0.75), (0.5, 0.5), (1.0, 0.0)]
    assert rounds.allowed.sum() == 5


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3,c,none,1,0.5,0.4", r"row 4, column p_none, p_coupon: the chances of row 4 sum to 0.9"),
        ("3,c,none,1,1.5,-0.5", r"row 4, column p_none: 1.5 is no probability"),
        ("3,c,none,1,nan,0.5", r"row 4, column p_none: is empty"),
        ("3,c,none,1,0.0,1.0", r"row 4, column p_none: the action drawn has chance 0"),
        ("2,c,none,1,0.5,0.5", r"row 4, column id: '2' is the id of row 3 too; a round is counted once"),
        ("3,c,none,7,0.5,0.5", r"row 4, column reward: 7 is out of the declared range 0 to 1"),
        ("3,,none,1,0.5,0.5", r"row 4, column who: is empty"),
        ("3,c,sms,1,0.5,0.5", r"row 4, column action: 'sms' is not in \[actions\] of map\.toml; add it"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_place(row: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"log\.csv: {said}"):
        read(tmp_path, write(tmp_path, [*GOOD[:2], row]))
    assert not (tmp_path / "archive").exists()


def test_a_log_of_one_customer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every row is of one customer, 'a'"):
        read(tmp_path, write(tmp_path, [GOOD[0], "2,a,coupon,1,0.25,0.75"]))


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    table = pa.table(
        {"id": ["1"], "who": ["a"], "action": ["none"], "reward": [0.0], "p_none": [0.5], "p_coupon": [0.5]}
    )
    whole = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(table, whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"log\.parquet: cannot be read .* if it was cut short, copy it again"):
        read(tmp_path, whole)
    packed = tmp_path / "log.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "log.csv").read_bytes())[:-12])
    with pytest.raises(ValueError, match=r"log\.csv\.gz: cannot be read"):
        read(tmp_path, packed)


def test_a_parquet_row_is_counted_without_a_header(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    rows = {"id": ["1", "1"], "who": ["a", "b"], "action": ["none"] * 2, "reward": [0.0] * 2}
    file = tmp_path / "log.parquet"
    pyarrow.parquet.write_table(pa.table({**rows, "p_none": [0.5] * 2, "p_coupon": [0.5] * 2}), file)
    with pytest.raises(ValueError, match=r"log\.parquet: row 2, column id: '1' is the id of row 1 too"):
        read(tmp_path, file)


def test_a_range_and_vectors_must_be_declared_whole(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    (tmp_path / "map.toml").write_text(HEAD.replace("[0.0, 1.0]", "[1.0, 0.0]"))
    with pytest.raises(ValueError, match="the lower end first"):
        read(tmp_path, file)
    (tmp_path / "map.toml").write_text(HEAD.replace('coupon = "p_coupon"\n', ""))
    with pytest.raises(ValueError, match="expected a column for each of"):
        read(tmp_path, file)


def test_times_numbers_and_twins_are_refused_with_their_row(tmp_path: Path) -> None:
    head = HEAD.replace('at = "2026-01-31"', 'at = "when"').replace('id = "id"\n', "")
    (tmp_path / "map.toml").write_text(head + '[context]\nx = "number"\n')
    good = ["a,none,0,0.5,0.5,1.5,2026-01-01T10:00:00", "b,coupon,1,0.25,0.75,0.5,2026-01-01T10:05:00"]
    file = tmp_path / "log.csv"
    for row, said in (
        ("c,none,1,0.5,0.5,1.0,yesterday", r"row 4, column when: 'yesterday' is no date"),
        ("c,none,1,0.5,0.5,inf,2026-01-01T10:00:00", r"row 4, column x: '?inf'? is not known; write a number"),
        (good[0], r"row 4, column who: says the same as row 2; a round is counted once"),
    ):
        file.write_text("\n".join(["who,action,reward,p_none,p_coupon,x,when", *good, row]) + "\n")
        with pytest.raises(ValueError, match=rf"log\.csv: {said}"):
            read(tmp_path, file)
    assert not (tmp_path / "archive").exists()
    file.write_text("\n".join(["who,action,reward,p_none,p_coupon,x,when", *good]) + "\n")
    read(tmp_path, file)
    read(tmp_path, file.rename(tmp_path / "again.csv"))  # the same rounds, whatever the file is called
    (text,) = (tmp_path / "archive" / "program=mine" / "versions").glob("*.toml")
    assert len(dataset.load(tmp_path / "archive", Program.parse(text.read_text(), source="mine.toml")).rounds) == 2
    file = tmp_path / "days.csv"
    only_days = [row.partition("T")[0] for row in (*good, good[0])]  # twice on a day is no twin
    file.write_text("\n".join(["who,action,reward,p_none,p_coupon,x,when", *only_days]) + "\n")
    assert read(tmp_path, file).rounds == 3
