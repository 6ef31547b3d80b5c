"""How does another system's log become ours? A CSV or Parquet file and a small TOML that says what its columns mean.

```toml
name = "hillstrom"                      # the program it becomes
title = "Hillstrom e-mail test"
at = "2008-03-20"                       # one date, or a column

[columns]
action = "segment"
propensity = 0.3333333333333333         # the chance of the action taken: a number, or a column
reward = "visit"                        # customer = "..." too, where one customer has several rows

[actions]                               # what the log calls them: ours, as incentive/tone/timing
"No E-Mail" = "hold"
"Mens E-Mail" = "mens/plain/now"

[context]                               # columns that a policy may see: number, category or flag
recency = "number"
womens = "category"

[[rules]]                               # optional: what is done today, to compare with
incentive = "mens"
tone = "plain"
timing = "now"
```
"""

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from msgspec import Meta

from optimizer.actions import HOLD, Floats
from optimizer.customer import cohort, features, new_customer, snapshots
from optimizer.events import Decision, Outcome, Scalar
from optimizer.program import Name, Program, Rule
from training import events as log

EVENT = "reward"
"""The one event of an imported program: what the log calls its reward."""

STAGE = "all"
CHUNK = 8_192

Progress = Callable[[str, int, int], None]


class _Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: str
    reward: str
    propensity: str | Annotated[float, Meta(gt=0, le=1)]
    customer: str | None = None


class Meaning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the columns of a log mean."""

    name: Name
    columns: _Columns
    actions: dict[str, str]
    at: str
    title: str = ""
    currency: str = "EUR"
    context: dict[str, Literal["number", "category", "flag"]] = {}
    costs: dict[str, Annotated[float, Meta(ge=0)]] = {}
    rules: tuple[Rule, ...] = ()


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What came in."""

    program: str
    program_version: str
    rounds: int
    customers: int
    rewarded: int
    mean_reward: float
    archive: str


def read(log_file: Path, mapping: Path, *, archive: Path, progress: Progress | None = None) -> Imported:
    """Check a whole log, then write it into the archive as one file; nothing is written if anything is wrong.

    Importing the same file again replaces what it wrote.

    Args:
        log_file: CSV (also gzipped) or Parquet, one row a round.
        mapping: what its columns mean, in TOML.
        archive: the folder of the archive.
        progress: told of the rows done.

    Raises:
        ValueError: naming the file, the row and the column, and what to do.
    """
    meaning = _meaning(mapping)
    table = _table(log_file)
    _columns_exist(meaning, table, log_file=log_file, mapping=mapping)
    text = _program_text(meaning, table, mapping=mapping)
    program = Program.parse(text, source=mapping.name)
    decisions, outcomes = _records(meaning, program, table, log_file=log_file, progress=progress)
    log.write(archive, program, text, decisions=decisions, outcomes=outcomes, name=log_file.name)
    rewards = [o.value or 0.0 for o in outcomes]
    return Imported(
        program=program.name,
        program_version=program.version,
        rounds=len(decisions),
        customers=len({d.customer_id for d in decisions}),
        rewarded=len(outcomes),
        mean_reward=math.fsum(rewards) / len(decisions),
        archive=str(archive),
    )


def _meaning(mapping: Path) -> Meaning:
    try:
        raw = tomllib.loads(mapping.read_text(encoding="utf-8"))
        if hasattr(raw.get("at"), "isoformat"):  # TOML has dates of its own
            raw["at"] = raw["at"].isoformat()
        return msgspec.convert(raw, Meaning)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{mapping.name}: {error}; mend the TOML at that place") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"{mapping.name}: {error}; the head of training/importing.py shows a whole one") from None


def _table(log_file: Path) -> pa.Table:
    try:
        if log_file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(log_file)
        else:
            table = pyarrow.csv.read_csv(log_file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{log_file.name}: {error}; expected CSV with a header (also .gz), or Parquet") from None
    if not len(table):
        raise ValueError(f"{log_file.name}: has no rows; expected one row a round")
    return table


def _columns_exist(meaning: Meaning, table: pa.Table, *, log_file: Path, mapping: Path) -> None:
    named = {f"columns.{k}": v for k, v in msgspec.to_builtins(meaning.columns).items() if isinstance(v, str)}
    named |= {f"context.{column}": column for column in meaning.context}
    for key, column in named.items():
        if column not in table.column_names:
            raise ValueError(
                f"{mapping.name}: {key} = {column!r} is not a column of {log_file.name}; "
                f"it has {', '.join(table.column_names)}"
            )
    seen = set(pc.unique(table[meaning.columns.action].cast(pa.string())).to_pylist())
    if strange := sorted(str(s) for s in seen - set(meaning.actions)):
        raise ValueError(
            f"{log_file.name}: column {meaning.columns.action}: {strange[0]!r} is not in [actions] of {mapping.name}; "
            "add it"
        )


# The program that the log becomes.


def _program_text(meaning: Meaning, table: pa.Table, *, mapping: Path) -> str:
    """Return TOML that declares one stage, one event and the log's own actions: it can be judged, not served."""
    nudges = [_parts(a, mapping=mapping) for a in meaning.actions.values() if a != "hold"]
    incentives, tones, timings = ([*dict.fromkeys(part)] for part in zip(*nudges, strict=True))
    lines = [
        f"name = {_quoted(meaning.name)}",
        f"title = {_quoted(meaning.title or meaning.name)}",
        f"currency = {_quoted(meaning.currency)}",
        f"goal = {_quoted(EVENT)}",
        'evaluation_horizon = "1d"',
        f"[[stages]]\nname = {_quoted(STAGE)}\ntitle = {_quoted('Everybody')}",
        f'[[events]]\nname = {_quoted(EVENT)}\nkind = "macro"\nvalue = 1.0\nscaled = true\nwindow = "1d"',
        '[guardrails]\nconsent = "opt-out"\nquiet_from = "00:00"\nquiet_until = "00:00"\ncooldown = "0m"',
        "cap_per_day = 24\ncap_per_week = 32",
    ]
    for name in incentives:
        cost = float(meaning.costs.get(name, 0.0))
        lines.append(
            f'[[incentives]]\nname = {_quoted(name)}\ntitle = {_quoted(name)}\nkind = "content"\ncost = {cost!r}\n'
            'earns = "As the log had it."'
        )
    lines += [f"[[tones]]\nname = {_quoted(name)}\ntitle = {_quoted(name)}" for name in tones]
    lines += [f'[[timings]]\nname = {_quoted(name)}\ntitle = {_quoted(name)}\ndelay = "0m"' for name in timings]
    lines += [_attribute_text(column, kind, table[column]) for column, kind in meaning.context.items()]
    lines += [_rule_text(rule) for rule in meaning.rules]
    said = 'subject = "As logged"\nbody = "As the log had it."\ncall_to_action = "As logged"'
    lines += [f"[messages.{i}.{t}]\n{said}" for i in incentives for t in tones]
    return "\n".join(lines) + "\n"


def _parts(action: str, *, mapping: Path) -> list[str]:
    parts = action.split("/")
    if len(parts) != 3:
        raise ValueError(f'{mapping.name}: [actions]: {action!r} should be "hold" or "incentive/tone/timing"')
    return parts


def _attribute_text(column: str, kind: str, values: pa.ChunkedArray) -> str:
    name = _attribute_name(column)
    text = f"[[attributes]]\nname = {_quoted(name)}\nkind = {_quoted(kind)}\n"
    if kind == "category":
        categories = sorted(str(v) for v in pc.unique(values.cast(pa.string())).to_pylist() if v is not None)
        return text + f"categories = [{', '.join(map(_quoted, categories))}]"
    if kind == "number":
        numbers = values.cast(pa.float64())
        spread = pc.stddev(numbers).as_py() or 1.0
        return text + f"mean = {pc.mean(numbers).as_py() or 0.0!r}\nscale = {spread!r}"
    return text


def _rule_text(rule: Rule) -> str:
    lines = [f"{factor} = {_quoted(getattr(rule, factor))}" for factor in ("incentive", "tone", "timing")]
    where = ", ".join(f"{_attribute_name(k)} = [{', '.join(map(_quoted, v))}]" for k, v in rule.where.items())
    return "\n".join(["[[rules]]", *lines, f"where = {{ {where} }}"])


def _attribute_name(column: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in column.lower()).strip("_")


def _quoted(text: str) -> str:
    return json.dumps(text)


# The rows, as decisions and outcomes.


def _records(
    meaning: Meaning, program: Program, table: pa.Table, *, log_file: Path, progress: Progress | None
) -> tuple[list[Decision], list[Outcome]]:
    place = _Place(log_file.name)
    rewards = place.numbers(table, meaning.columns.reward)
    chances = _propensities(meaning, table, place=place)
    actions = _actions(meaning, program, table)
    at = _times(meaning, table, place=place)
    who = _customers(meaning, table, place=place)
    contexts = _contexts(meaning, program, table, at=at)
    vectors = _vectors(program.space.k, actions, chances)
    decisions, outcomes = [], []
    for i in range(len(table)):
        decision_id = f"{log_file.name}#{i}"
        decisions.append(
            Decision(
                customer_id=who[i],
                program=program.name,
                decision_id=decision_id,
                program_version=program.version,
                policy=log.IMPORTED,
                policy_version=log_file.name,
                arm="champion",
                at=at[i],
                context=contexts[i],
                probabilities=vectors[i].tobytes(),
                action=int(actions[i]),
                action_name=program.space.names[actions[i]],
                deliver_at=None if actions[i] == HOLD else at[i],
                cost=0,
                cost_price=0.0,
                burden=0.0,
                salt_id="",
                blocked={},
            )
        )
        if rewards[i]:
            happened = Outcome(
                customer_id=who[i],
                program=program.name,
                outcome_id=decision_id,
                decision_id=decision_id,
                event=EVENT,
                value=float(rewards[i]),
                at=at[i] + 1.0,
                received_at=at[i] + 1.0,
            )
            outcomes.append(happened)
        if progress is not None and not i % CHUNK:
            progress("reading the log", i, len(table))
    if progress is not None:
        progress("reading the log", len(table), len(table))
    return decisions, outcomes


class _Place(msgspec.Struct, frozen=True):
    """The file that messages name."""

    file: str

    def error(self, row: int, column: str, problem: str, mend: str) -> ValueError:
        return ValueError(f"{self.file}: row {row + 2}, column {column}: {problem}; {mend}")

    def numbers(self, table: pa.Table, column: str) -> Floats:
        """Shape (n,): a column as numbers; ValueError names the first row that is none."""
        try:
            numbers = np.asarray(table[column].cast(pa.float64()).to_numpy(), dtype=np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row, value = next((i, v) for i, v in enumerate(table[column].to_pylist()) if v is None or not _is_number(v))
            raise self.error(row, column, f"{value!r} is not a number", "write one, or leave the row out") from None
        if not np.isfinite(numbers).all():
            row = int(np.argmin(np.isfinite(numbers)))
            given = table[column][row].as_py()
            raise self.error(
                row, column, f"{given!r} is not known", "write 0 if nothing happened, or leave the row out"
            )
        return numbers


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _propensities(meaning: Meaning, table: pa.Table, *, place: _Place) -> Floats:
    given = meaning.columns.propensity
    if not isinstance(given, str):
        return np.full(len(table), float(given))
    chances = place.numbers(table, given)
    wrong = (chances <= 0) | (chances > 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        mend = "give the chance with which the action was drawn; what was never possible cannot be judged"
        raise place.error(row, given, f"{chances[row]:g} is no probability of a drawn action", mend)
    return chances


def _actions(meaning: Meaning, program: Program, table: pa.Table) -> npt.NDArray[np.intp]:
    index = {name: program.space.names.index(ours) for name, ours in meaning.actions.items()}
    return np.array([index[a] for a in table[meaning.columns.action].cast(pa.string()).to_pylist()], dtype=np.intp)


def _times(meaning: Meaning, table: pa.Table, *, place: _Place) -> list[float]:
    if meaning.at not in table.column_names:
        try:
            moment = datetime.fromisoformat(meaning.at)
        except ValueError:
            raise ValueError(
                f"{place.file}: at = {meaning.at!r} is neither a column nor a date such as 2026-01-31"
            ) from None
        return [moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()] * len(table)
    column = table[meaning.at]
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return [float(t) / 1e6 for t in column.cast(pa.timestamp("us")).cast(pa.int64()).to_pylist()]
    return [float(t) for t in place.numbers(table, meaning.at)]


def _customers(meaning: Meaning, table: pa.Table, *, place: _Place) -> list[str]:
    if meaning.columns.customer is None:
        return [f"row-{i + 1}" for i in range(len(table))]
    names: list[str] = table[meaning.columns.customer].cast(pa.string()).to_pylist()
    row = next((i for i, name in enumerate(names) if not name), None)
    if row is not None:
        raise place.error(row, meaning.columns.customer, "is empty", "name the customer, or leave the row out")
    return names


def _contexts(meaning: Meaning, program: Program, table: pa.Table, *, at: Sequence[float]) -> list[dict[str, Scalar]]:
    columns = {_attribute_name(c): _values(table[c], kind) for c, kind in meaning.context.items()}
    nobody = new_customer(program, "nobody", at=at[0])
    (blank,) = snapshots(program, features(program, cohort(program, [nobody], at=[at[0]])))
    rows: list[Mapping[str, Scalar]] = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    return [{**blank, **row} for row in rows or [{}] * len(table)]


def _values(column: pa.ChunkedArray, kind: str) -> list[Scalar]:
    if kind == "category":
        return list(column.cast(pa.string()).to_pylist())
    return list(column.cast(pa.float64()).to_pylist())


def _vectors(k: int, actions: npt.NDArray[np.intp], chances: Floats) -> npt.NDArray[np.float32]:
    """Shape (n, k): the logged chance at the action taken, what is left spread evenly over the others."""
    rest = (1.0 - chances) / max(k - 1, 1)
    vectors = np.repeat(rest[:, None], k, axis=1)
    vectors[np.arange(len(actions)), actions] = chances
    return vectors.astype("<f4")
