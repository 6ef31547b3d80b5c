"""How do customers get to a CRM and back? Files, row by row: nothing is held in memory, nothing is lost silently.

An export reads the store in slices (SCAN). A customer who is written to meanwhile may be in it as before or as after;
while many are being erased, the same customer may be in it twice: take the last.
"""

import asyncio
import csv
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from optimizer import journey
from optimizer.customer import Customer, share
from optimizer.events import Scalar
from optimizer.guardrails import next_eligible
from optimizer.program import Attribute, Program
from serving import records
from serving.reads import customer_fields, known, pairs
from serving.records import Profile
from serving.render import local_time
from serving.store import Store
from serving.validation import InvalidError
from serving.validation import attributes as check_attributes

SLICE = 500
"""Customers read or written at once."""

_GROUP = 10_000
"""Rows that are written to Parquet together."""

SHOWN = 100
"""Rows that could not be imported, which are shown; all of them go to a file where one is named."""

Told = Callable[[str, int, int], None]

_DANGEROUS = re.compile(r"'*[=+\-@\t\r\n]")
"""What a spreadsheet would take for a formula; and what looks like it once we have put our mark before it."""

_LONGEST = 256
"""Characters of an attribute at most, as over HTTP."""

_YES, _NO = {"yes", "true", "1", "y", "on"}, {"no", "false", "0", "n", "off"}
_ID = re.compile(r"(?!\.+$)[^\x00-\x1f\x7f/]{1,128}")


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was written."""

    program: str
    customers: int
    file: str


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was not imported: where it is, what is wrong, and what to do."""

    line: int
    column: str
    problem: str
    mend: str


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows of a file: each is changed, unchanged or rejected.

    `kept_out` of those imported asked for no messages, and a file does not undo that. `ignored` are columns that mean
    nothing here.
    """

    file: str
    rows: int
    changed: int
    unchanged: int
    kept_out: int
    rejected: int
    ignored: list[str]
    faults: list[Rejected]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What a row says of a customer; None where it says nothing."""

    customer_id: str
    consent: bool | None = None
    time_zone: str | None = None
    attributes: dict[str, Scalar] = {}


# Out.


async def export(store: Store, program: Program, to: Path, *, at: float, progress: Told | None = None) -> Exported:
    """Write every customer of a program to a CSV or Parquet file: all of it, or none.

    Args:
        store: where they are.
        program: which place of them is written.
        to: ends with .csv or .parquet.
        at: the moment as of which they are written, seconds since the epoch.
        progress: is told how many are done, of about how many.
    """
    about, done = await _about(store), 0
    with _written(to, program) as write:
        async for people in _slices(store, program, at=at):
            write([row(program, person, at=at) for person in people])
            done += len(people)
            if progress is not None:
                progress("exporting customers", done, max(about, done))
    return Exported(program=program.name, customers=done, file=str(to))


def row(program: Program, customer: Customer, *, at: float) -> dict[str, Any]:
    """Return what a CRM is told of a customer as of a moment."""
    steps, zone = journey.progress(program, customer), customer.time_zone or program.guardrails.time_zone
    last = max((s for s in customer.sent if s.deliver_at <= at), key=lambda s: s.deliver_at, default=None)
    eligible = next_eligible(program, customer, at=at)
    momentum = customer.steps.at(at, half_life=program.momentum_half_life)
    dosage = customer.nudges.at(at, half_life=program.dosage_half_life)
    return {
        "customer_id": customer.customer_id,
        "consent": customer.consent,
        "time_zone": customer.time_zone or None,
        **{a.name: _typed(a, customer.attributes.get(a.name)) for a in program.attributes},
        "stage": customer.stage,
        "momentum": round(float(share(momentum)), 6),  # type: ignore[arg-type]  # a number is an array of one
        "dosage": round(float(share(dosage)), 6),  # type: ignore[arg-type]
        "streak": customer.streak,
        "longest_streak": max(customer.streak, customer.longest_streak),
        "milestone": steps.milestone if steps else None,
        "milestone_done": steps.done if steps else None,
        "milestone_of": steps.of if steps else None,
        "next_reward": steps.reward if steps else None,
        "rewards_earned": "; ".join(m.reward for m in journey.earned(program, customer)) or None,
        "last_step": customer.last_step or None,
        "last_step_at": local_time(customer.last_step_at, zone) if customer.last_step_at is not None else None,
        "last_nudge": last.incentive if last else None,
        "last_nudge_at": local_time(last.deliver_at, zone) if last else None,
        "next_eligible_at": local_time(eligible, zone) if eligible is not None else None,
    }


def _typed(attribute: Attribute, value: Scalar) -> Scalar:
    """Return a value of its declared kind, None where it is of another."""
    if attribute.kind == "number":
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    kind = bool if attribute.kind == "flag" else str
    return value if isinstance(value, kind) else None


def schema(program: Program) -> pa.Schema:
    """Return the columns of an export."""
    kinds = {"number": pa.float64(), "flag": pa.bool_(), "category": pa.string()}
    special = {"consent": pa.bool_(), "momentum": pa.float64(), "dosage": pa.float64()}
    special |= dict.fromkeys(("streak", "longest_streak", "milestone_done", "milestone_of"), pa.int64())
    special |= {a.name: kinds[a.kind] for a in program.attributes}
    names = row(program, Customer(customer_id="", enrolled_at=0.0, stage=""), at=0.0)
    return pa.schema([(name, special.get(name, pa.string())) for name in names])


@contextmanager
def _written(to: Path, program: Program) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield what writes rows; the file is there once all are, and not at all where something went wrong."""
    if to.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{to} ends with {to.suffix!r}: name a file that ends with .csv or .parquet")
    if not to.parent.is_dir():
        raise ValueError(f"{to.parent} is not a folder: make it, or name a file elsewhere")
    part = to.with_name(f".{to.name}.part")
    columns = schema(program)
    try:
        part.touch(mode=0o600)  # it names customers
        if to.suffix == ".parquet":
            with pq.ParquetWriter(part, columns) as parquet, _together(parquet, columns) as write:
                yield write
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(columns.names)
                yield lambda rows: table.writerows([_cell(row[n]) for n in columns.names] for row in rows)
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _together(parquet: pq.ParquetWriter, columns: pa.Schema) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Yield what writes rows in groups that are worth their heads: a store gives customers a few at a time."""
    waiting: list[dict[str, Any]] = []

    def write(rows: list[dict[str, Any]], *, least: int = _GROUP) -> None:
        waiting.extend(rows)
        if len(waiting) >= least:
            parquet.write_table(pa.Table.from_pylist(waiting, columns))
            waiting.clear()

    yield write
    write([], least=1)


def _cell(value: object) -> str | int | float:
    """Return what stands in a CSV: text that a spreadsheet would take for a formula gets a mark before it.

    >>> _cell("=1+1"), _cell("'=1"), _cell(-1.5), _cell(None), _cell(True), _cell("it's")
    ("'=1+1", "''=1", -1.5, '', 'yes', "it's")
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return value
    text = "" if value is None else str(value)
    return f"'{text}" if _DANGEROUS.match(text) else text


def _uncell(text: str) -> str:
    """Undo what `_cell` does to a text."""
    return text[1:] if text.startswith("'") and _DANGEROUS.match(text) else text


async def _about(store: Store) -> int:
    """Return about how many keys there are: more than customers."""
    return int(await store.command("DBSIZE"))


async def _slices(store: Store, program: Program, *, at: float) -> AsyncIterator[list[Customer]]:
    """Yield customers who are in the program, or in none yet, slice by slice."""
    for shard in range(store.shards):
        prefix = records.customer_key(shard, "")
        pattern, cursor = re.sub(r"([\[\]*?\\])", r"\\\1", prefix) + "*", b"0"
        while True:
            cursor, found = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", SLICE)
            names = [key.decode()[len(prefix) :] for key in dict.fromkeys(found)]
            if names:
                yield await _customers(store, program, shard, names, at=at)
            if cursor == b"0":
                break


async def _customers(store: Store, program: Program, shard: int, names: Sequence[str], *, at: float) -> list[Customer]:
    keys = [records.customer_key(shard, name) for name in names]
    hashes = [pairs(flat) for flat in await store.commands([("HGETALL", key) for key in keys])]
    wanted, found = customer_fields(program.name), []
    for name, fields in zip(names, hashes, strict=True):
        elsewhere = records.programs_of(fields)
        if fields and (program.name in elsewhere or not elsewhere):
            place = known(program, name, [fields.get(f.encode()) for f in wanted], at=at).place
            found.append(journey.settle(program, place.customer, at=at))
    return found


# In.


class Columns(msgspec.Struct, frozen=True):
    """Which column of a file means what: the file's name by ours; and the columns that mean nothing."""

    named: dict[str, str]
    ignored: list[str]


async def import_(
    store: Store,
    file: Path,
    declared: Sequence[Attribute],
    *,
    mapping: Mapping[str, str],
    resubscribe: bool = False,
    rejects: Path | None = None,
    progress: Told | None = None,
) -> Imported:
    """Take attributes, consent, time zones and unsubscribes from a CSV or Parquet file.

    Doing it again changes nothing. What a row leaves empty stays as it is. Rows that cannot be right are reported by
    line, the others are kept.

    Args:
        store: where customers are.
        file: ends with .csv or .parquet.
        declared: the attributes that programs declare.
        mapping: the file's columns by our names, where they differ.
        resubscribe: whether a yes in the file may undo a no that a customer said.
        rejects: a CSV file for the rows that were not taken, with what to mend.
        progress: is told how much of the file is done.
    """
    tally = _Tally(store, declared, resubscribe=resubscribe)
    with _opened(file) as (names, rows), _rejecting(rejects, names) as reject:
        columns = columns_of(names, declared, mapping=mapping)
        try:
            for number, (line, cells, share_done) in enumerate(rows, 1):
                if (fault := await tally.add(line, cells, columns)) is not None:
                    reject(cells, fault)
                if progress is not None and number % SLICE == 0:
                    progress("importing customers", int(1000 * share_done), 1000)
        finally:  # also where the file cannot be read any further
            await tally.flush()
        if progress is not None:
            progress("importing customers", 1000, 1000)
    return tally.imported(file, columns.ignored)


def columns_of(names: Sequence[str], declared: Sequence[Attribute], *, mapping: Mapping[str, str]) -> Columns:
    """Say which column means what; ValueError for a file without customers, or a mapping of what is not there."""
    ours = ["customer_id", "consent", "unsubscribed", "time_zone", *dict.fromkeys(a.name for a in declared)]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"column {repeated[0]!r} is there twice; rename or remove one of them")
    for name, column in mapping.items():
        if name not in ours:
            raise ValueError(f"--column {name}={column}: {name!r} is not known; use one of {', '.join(ours)}")
        if column not in names:
            raise ValueError(f"--column {name}={column}: the file has no column {column!r}, but {', '.join(names)}")
    found = {name: mapping.get(name, name) for name in ours if mapping.get(name, name) in names}
    if "customer_id" not in found:
        raise ValueError(
            f"the file has no column customer_id, but {', '.join(names) or 'none'}; say which it is:"
            " --column customer_id=THEIR_NAME"
        )
    return Columns(found, [n for n in names if n not in found.values()])


def read_row(
    cells: Mapping[str, object], columns: Columns, declared: Sequence[Attribute]
) -> Change | tuple[str, str, str]:
    """Return what a row says, or (column, problem, mend)."""
    values = {name: _plain(cells.get(column)) for name, column in columns.named.items()}
    customer_id = "" if values["customer_id"] is None else str(values.pop("customer_id"))
    if not _ID.fullmatch(customer_id):
        mend = "give 1 to 128 characters, without slash and control characters"
        return columns.named["customer_id"], f"{customer_id[:40]!r} is not an id", mend
    flags: dict[str, bool | None] = {}
    for name in ("consent", "unsubscribed"):
        value = values.pop(name, None)
        flags[name] = None if value is None else _flag(value)
        if value is not None and flags[name] is None:
            return (
                columns.named[name],
                f"{str(value)[:40]!r} is neither yes nor no",
                "write yes or no, or leave it empty",
            )
    zone = values.pop("time_zone", None)
    given: dict[str, Scalar] = {}
    kinds = {a.name: a for a in declared}
    for name, value in values.items():
        if name in kinds and value is not None:
            given[name] = _as_declared(kinds[name], value)
            if len(str(given[name])) > _LONGEST:
                return columns.named[name], f"{str(value)[:40]!r}... is too long", f"use at most {_LONGEST} characters"
    try:
        check_attributes(given, declared, field="")
        _check_zone(zone)
    except InvalidError as error:
        name = error.field.lstrip(".")
        problem, _, mend = str(error).partition("; ")
        return columns.named[name], f"{str(values.get(name, zone))[:40]!r} {problem}", mend
    consent = False if flags["unsubscribed"] else flags["consent"]
    return Change(customer_id=customer_id, consent=consent, time_zone=zone and str(zone), attributes=given)


def _check_zone(zone: object) -> None:
    from optimizer.contradictions import zone_exists  # noqa: PLC0415  (kept beside its one use)

    if zone is not None and not zone_exists(str(zone)):
        raise InvalidError("time_zone", "is not a time zone; use an IANA name such as Europe/Paris")


def _plain(value: object) -> Any:
    """Return a cell's value; None where it is empty."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, float):  # how data frames write what is missing, and ids
        return None if value != value else int(value) if value.is_integer() else value  # noqa: PLR0124
    return value


def _flag(value: object) -> bool | None:
    word = str(value).lower()
    return True if word in _YES or value is True else False if word in _NO or value is False else None


def _as_declared(attribute: Attribute, value: Any) -> Scalar:
    """Return a value as the attribute's kind, as it is where it cannot be read so."""
    if attribute.kind == "flag":
        flag = _flag(value)
        return str(value) if flag is None else flag
    if attribute.kind == "category":
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if abs(number) <= 1e15 else str(value)  # not a number, and infinity, read as text


class _Tally:
    """Rows being written, a slice at a time, and what became of them."""

    def __init__(self, store: Store, declared: Sequence[Attribute], *, resubscribe: bool) -> None:
        self._store, self._declared, self._resubscribe = store, declared, resubscribe
        self._waiting: dict[str, Change] = {}
        self._counts = dict.fromkeys(("rows", "changed", "unchanged", "kept_out", "rejected"), 0)
        self._faults: list[Rejected] = []

    async def add(self, line: int, cells: Mapping[str, object], columns: Columns) -> Rejected | None:
        """Take a row; return what is wrong with it, if anything is."""
        self._counts["rows"] += 1
        if None in cells or (found := read_row(cells, columns, self._declared)) is None:
            return self._reject(
                line, "", "has more cells than the header", "quote cells that have the separator in them"
            )
        if isinstance(found, tuple):
            return self._reject(line, *found)
        if len(self._waiting) >= SLICE or found.customer_id in self._waiting:
            await self.flush()
        self._waiting[found.customer_id] = found
        return None

    def _reject(self, line: int, column: str, problem: str, mend: str) -> Rejected:
        self._counts["rejected"] += 1
        fault = Rejected(line=line, column=column, problem=problem, mend=mend)
        if len(self._faults) < SHOWN:
            self._faults.append(fault)
        return fault

    async def flush(self) -> None:
        """Write what waits. A store that fails is raised: do the import again, it counts once."""
        changes = list(self._waiting.values())
        self._waiting = {}
        keys = [records.customer_key(self._store.shard(c.customer_id), c.customer_id) for c in changes]
        before = await self._store.commands([("HGET", key, "profile") for key in keys]) if keys else []
        writes = []
        for change, data in zip(changes, before, strict=True):
            known_, wanted = records.decode_profile(data), self._wanted(change, records.decode_profile(data))
            if data is not None and _after(known_, wanted) == known_:
                self._counts["unchanged"] += 1
            else:
                self._counts["changed"] += 1
                writes.append(wanted)
        for i in range(0, len(writes), 64):
            await asyncio.gather(*(_put(self._store, w) for w in writes[i : i + 64]))

    def _wanted(self, change: Change, known_: Profile) -> Change:
        """Return the change without a yes that the customer has said no to."""
        if change.consent and known_.consent is False and not self._resubscribe:
            self._counts["kept_out"] += 1
            return msgspec.structs.replace(change, consent=None)
        return change

    def imported(self, file: Path, ignored: list[str]) -> Imported:
        """Return what became of all rows."""
        return Imported(file=str(file), **self._counts, ignored=ignored, faults=self._faults)


def _after(profile: Profile, change: Change) -> Profile:
    """Return a profile after a change: attributes that it does not name stay."""
    return Profile(
        consent=profile.consent if change.consent is None else change.consent,
        time_zone=profile.time_zone if change.time_zone is None else change.time_zone,
        attributes={**profile.attributes, **change.attributes},
    )


async def _put(store: Store, change: Change) -> None:
    await store.put(
        change.customer_id,
        consent=change.consent,
        time_zone=change.time_zone,
        attributes=change.attributes or None,
        merge=True,
    )


@contextmanager
def _opened(file: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, dict[str, object], float]]]]:
    """Yield the names of the columns, and (line, cells, share of the file so far) row by row."""
    if file.suffix == ".parquet":
        with pq.ParquetFile(file) as parquet:
            yield list(parquet.schema_arrow.names), _parquet_rows(parquet)
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            table = csv.DictReader(text, delimiter=max(",;\t", key=header.count), restval="", strict=True)
            yield list(table.fieldnames or []), _csv_rows(table, text, file=file)
    else:
        raise ValueError(f"{file} ends with {file.suffix!r}: give a file that ends with .csv or .parquet")


def _parquet_rows(parquet: pq.ParquetFile) -> Iterator[tuple[int, dict[str, object], float]]:
    line, rows = 0, max(parquet.metadata.num_rows, 1)
    for batch in parquet.iter_batches(batch_size=SLICE):
        for cells in batch.to_pylist():
            line += 1
            yield line, cells, line / rows


def _csv_rows(
    table: "csv.DictReader[str]", text: IO[str], *, file: Path
) -> Iterator[tuple[int, dict[str, object], float]]:
    size = max(file.stat().st_size, 1)
    raw = text.buffer  # type: ignore[attr-defined]  # a text file has one
    try:
        for cells in table:
            plain = {name: _uncell(cell.strip()) if isinstance(cell, str) else cell for name, cell in cells.items()}
            yield table.line_num, plain, min(raw.tell() / size, 1.0)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: line {table.line_num + 1} or after is not UTF-8 ({error}); save it as UTF-8"
        ) from None
    except csv.Error as error:
        raise ValueError(
            f"{file}: line {table.line_num}: {error}; mend the quotes there, what comes before is kept"
        ) from None


@contextmanager
def _rejecting(file: Path | None, names: Sequence[str]) -> Iterator[Callable[[Mapping[str, object], Rejected], None]]:
    """Yield what keeps rows that were not taken, as they were and with what to mend."""
    if file is None:
        yield lambda *_: None
        return
    file.touch(mode=0o600)  # it names customers
    with file.open("w", encoding="utf-8", newline="") as text:
        table = csv.writer(text)
        table.writerow([*names, "problem", "mend"])

        def reject(cells: Mapping[str, object], fault: Rejected) -> None:
            table.writerow(
                [*(_cell(cells.get(n)) for n in names), f"{fault.column} {fault.problem}".strip(), fault.mend]
            )

        yield reject
        text.flush()
        os.fsync(text.fileno())


def mapped(pairs_: Iterable[str]) -> dict[str, str]:
    """Read `customer_id=Kundennummer` and the like; ValueError for anything else."""
    found = {}
    for pair in pairs_:
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours or not theirs:
            raise ValueError(f"--column {pair}: write OURS=THEIRS, such as customer_id=CustomerNo")
        found[ours] = theirs
    return found
