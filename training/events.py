"""What does the archive hold? Parquet files of decisions and outcomes, one row each, and the programs they name.

`archive/program=<p>/date=<yyyy-mm-dd>/<name>.parquet` holds the events received for a day; program texts lie in
`archive/program=<p>/versions/<version>.toml`. A file is written once, whole or not at all. Readers keep one row for
each (kind, customer, id): the highest revision.
"""

import glob
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from optimizer.actions import Ints
from optimizer.events import Decision, Outcome
from optimizer.program import DAY, Program, ProgramError
from training import erasure

DECISION, OUTCOME = "decision", "outcome"

IMPORTED = "imported"
"""The policy of decisions that another system made: a log that is whole when it comes in."""

ESTIMATED = "imported-estimated"
"""The same, of a log that did not say its chances: they were estimated, and every row says so."""

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("id", pa.string()),
        ("customer_id", pa.string()),
        ("at", pa.float64()),
        ("revision", pa.int64()),
        # of a decision
        ("program_version", pa.string()),
        ("policy", pa.string()),
        ("policy_version", pa.string()),
        ("arm", pa.string()),
        ("context", pa.string()),  # JSON
        ("probabilities", pa.binary()),  # float32, little-endian, (k,)
        ("action", pa.int64()),
        ("action_name", pa.string()),
        ("deliver_at", pa.float64()),
        ("cost", pa.int64()),
        ("cost_price", pa.float64()),
        ("burden", pa.float64()),
        ("salt_id", pa.string()),
        ("blocked", pa.string()),  # JSON
        # of an outcome
        ("decision_id", pa.string()),
        ("event", pa.string()),
        ("value", pa.float64()),
        ("received_at", pa.float64()),
        ("revoked", pa.bool_()),
    ]
)
"""Columns of every file: times in seconds since the epoch, money in minor units."""


def table(decisions: Sequence[Decision], outcomes: Sequence[Outcome]) -> pa.Table:
    """Return decisions and outcomes as one table of `SCHEMA`, in the order given."""
    same = {"context": _json, "blocked": _json}
    first = _columns(decisions, DECISION, renamed={"id": "decision_id"}, coded=same, leave=("decision_id", "revision"))
    second = _columns(outcomes, OUTCOME, renamed={"id": "outcome_id"}, coded={}, leave=())
    first["revision"] = pa.array(np.zeros(len(decisions), dtype=np.int64))
    return pa.concat_tables(pa.table(columns, schema=SCHEMA) for columns in (first, second))


def _columns(
    records: Sequence[Decision] | Sequence[Outcome],
    kind: str,
    *,
    renamed: Mapping[str, str],
    coded: Mapping[str, Callable[[object], str]],
    leave: Sequence[str],
) -> dict[str, pa.Array]:
    """Return a column for each field of `SCHEMA`: null where these records have none, or where told to leave it."""
    columns = {"kind": pa.array([kind] * len(records), pa.string())}
    fields = set(records[0].__struct_fields__) if records else set()
    for field in SCHEMA:
        source = renamed.get(field.name, field.name)
        if source in fields and field.name not in leave:
            values = [getattr(r, source) for r in records]
            columns[field.name] = pa.array(map(coded[source], values) if source in coded else values, field.type)
        elif field.name != "kind":
            columns[field.name] = pa.nulls(len(records), field.type)
    return columns


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def program_folder(archive: Path, program: str) -> Path:
    """Return the folder of a program's events."""
    return archive / f"program={program}"


def file_of(archive: Path, program: str, *, at: float, name: str) -> Path:
    """Return where events received on the day of `at` (UTC) are written, under a name."""
    day = datetime.fromtimestamp(at, UTC).date().isoformat()
    return program_folder(archive, program) / f"date={day}" / f"{name}.parquet"


def write_file(path: Path, events: pa.Table) -> None:
    """Write a file whole or not at all: a temporary name, fsync, rename, fsync of the folders."""
    with _whole(path) as temporary:
        pyarrow.parquet.write_table(events, temporary, compression="zstd")


def write_program(archive: Path, program: Program, text: str) -> None:
    """Keep a program's text under its version: what its decisions' action indices mean."""
    write_text(version_file(archive, program.name, program.version), text)


def version_file(archive: Path, program: str, version: str) -> Path:
    """Return where the text of a program's version is kept."""
    return program_folder(archive, program) / "versions" / f"{version}.toml"


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, unless it is there: a version's text never changes."""
    if not path.exists():
        with _whole(path) as temporary:
            temporary.write_bytes(text.encode())


def sweep(path: Path) -> None:
    """Remove what was half written under a file's name by whoever was killed meanwhile."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        left.unlink(missing_ok=True)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Lend a temporary name; what was written there has the right name, and is on disk, once the block is left."""
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(number)
    try:
        yield Path(name)
        _sync(Path(name))
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for folder in (path.parent, *(p.parent for p in made)):
        _sync(folder)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def versions(archive: Path, program: str) -> dict[str, Program]:
    """Return every version of a program that has decisions, by version; ValueError names a file that is broken."""
    found = {}
    for file in sorted((program_folder(archive, program) / "versions").glob("*.toml")):
        try:
            found[file.stem] = Program.parse(file.read_text(encoding="utf-8"), source=str(file))
        except ProgramError as error:
            raise ValueError(f"{file}: an archived program cannot be read any more: {error}") from None
        if found[file.stem].version != file.stem:
            raise ValueError(f"{file}: was changed after its decisions were made; restore it from a backup")
    return found


def read(archive: Path, program: str, *, until: float = math.inf) -> pa.Table:
    """Return every event of a program, one row for each (kind, customer, id): the highest revision.

    Customers who were erased are left out.

    Args:
        archive: the folder of the archive.
        program: its name.
        until: what was decided or received later is left out, so that an evaluation can be had again.

    Raises:
        ValueError: naming the file that cannot be read, or what to run where there is none.
    """
    files = sorted(program_folder(archive, program).glob("date=*/*.parquet"))
    if not files:
        known = sorted(p.name.removeprefix("program=") for p in archive.glob("program=*"))
        have = f"it has {', '.join(known)}" if known else "it is empty"
        raise ValueError(f"{archive} has no events of program {program!r} ({have}): run nudge archive or nudge import")
    known = pa.concat_tables(_files(files))
    if until < math.inf:
        known = known.filter(pc.less_equal(pc.coalesce(known["received_at"], known["at"]), until))
    return _latest(erasure.honoured(archive, known))


def place(archive: Path, program: str, decision: str) -> str:
    """Say in which file, and in which of its rows, a decision lies: for messages about it."""
    for file in sorted(program_folder(archive, program).glob("date=*/*.parquet")):
        kinds, ids = (
            pyarrow.parquet.read_table(file, columns=[c], partitioning=None)[c].to_pylist() for c in ("kind", "id")
        )
        for row, (kind, name) in enumerate(zip(kinds, ids, strict=True)):
            if kind == DECISION and name == decision:
                return f"{file}: row {row + 1} (decision {decision})"
    return f"{program_folder(archive, program)}: decision {decision}"


def _files(files: Sequence[Path]) -> Iterator[pa.Table]:
    for file in files:
        try:
            yield pyarrow.parquet.read_table(file, partitioning=None).select(SCHEMA.names).cast(SCHEMA)
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise ValueError(
                f"{file}: cannot be read ({error}); restore it from a backup, or move it out of the archive"
            ) from None


def _refuse_two(events: pa.Table, keys: Ints, order: Ints) -> None:
    """Refuse one decision id with two different decisions: a repeated file is harmless, this is not."""
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if not len(again):
        return
    rows = events.take(pa.array(np.stack([order[again], order[again + 1]], axis=1).ravel()))
    facts = rows.select(["kind", "id", "at", "action", "probabilities"]).to_pylist()
    for one, other in zip(facts[::2], facts[1::2], strict=True):
        if one["kind"] == DECISION and one != other:
            raise ValueError(
                f"decision {one['id']} is in the archive twice, at {one['at']:.0f} with action {one['action']} and at "
                f"{other['at']:.0f} with action {other['action']}: a round is counted once; move one of the files away"
            )


def _latest(events: pa.Table) -> pa.Table:
    keys = np.zeros(len(events), dtype=np.int64)
    for name in ("kind", "customer_id", "id"):
        codes = events[name].combine_chunks().dictionary_encode()
        keys = keys * len(codes.dictionary) + codes.indices.to_numpy()
    order = np.lexsort((events["revision"].to_numpy(), keys))
    _refuse_two(events, keys, order)
    last = np.append(keys[order][1:] != keys[order][:-1], values=True) if len(order) else np.zeros(0, dtype=np.bool_)
    return events.take(pa.array(np.sort(order[last])))


def write(
    archive: Path,
    program: Program,
    text: str,
    *,
    decisions: Sequence[Decision],
    outcomes: Sequence[Outcome],
    name: str,
) -> Mapping[Path, int]:
    """Write a whole log of one program, a file a day, and return how many rows each file has.

    Writing again under the same name replaces it.
    """
    write_program(archive, program, text)
    for old in program_folder(archive, program.name).glob(f"date=*/{name}.parquet"):
        old.unlink()
    days: dict[float, tuple[list[Decision], list[Outcome]]] = {}
    for decision in decisions:
        days.setdefault(decision.at // DAY, ([], []))[0].append(decision)
    for outcome in outcomes:
        days.setdefault(outcome.at // DAY, ([], []))[1].append(outcome)
    written = {}
    for day, (some, happened) in days.items():
        path = file_of(archive, program.name, at=day * DAY, name=name)
        write_file(path, table(some, happened))
        written[path] = len(some) + len(happened)
    return written
