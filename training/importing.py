"""How does another system's log become ours? A CSV or Parquet file and a small TOML that says what its columns mean.

```toml
name = "hillstrom"                      # the program it becomes
title = "Hillstrom e-mail test"
at = "2008-03-20"                       # one date, or a column
reward_range = [0.0, 1.0]               # optional: a reward out of it is refused

[columns]
action = "segment"
propensity = 0.3333333333333333         # the chance of the action taken: a number, or a column; leave it out where
                                        # the log has none: it is estimated from [context], and marked so everywhere
reward = "visit"                        # customer = "..." too, where one customer has several rows; id = "..." where
                                        # rows have one: the same id twice is refused. Without ids, rows with a
                                        # customer and a time are known by what they say, in whatever file

[actions]                               # what the log calls them: ours, as incentive/tone/timing
"No E-Mail" = "hold"
"Mens E-Mail" = "mens/plain/now"

[context]                               # columns that a policy may see: number, category or flag
recency = "number"
womens = "category"

[propensities]                          # optional, in place of columns.propensity: the whole vector, a column an action
"No E-Mail" = "p_none"
"Mens E-Mail" = "p_mens"

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
from hashlib import blake2b
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
from optimizer.customer import cohort, columns_of, encode, features, new_customer, snapshots
from optimizer.events import Decision, Outcome, Scalar
from optimizer.program import DAY, Name, Program, Rule
from training import events as log
from training import propensities
from training.ope import SUM_TOLERANCE

EVENT = "reward"
"""The one event of an imported program: what the log calls its reward."""

STAGE = "all"

GAP = 120.0
"""Least seconds between the rows of a customer; what a row was worth comes a second after it, and counts a minute."""

CHUNK = 8_192

Progress = Callable[[str, int, int], None]


class _Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: str
    reward: str
    propensity: str | Annotated[float, Meta(gt=0, le=1)] | None = None
    customer: str | None = None
    id: str | None = None


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
    propensities: dict[str, str] = {}
    reward_range: tuple[float, float] = (-math.inf, math.inf)

    @property
    def estimated(self) -> bool:
        """Whether the log does not say its chances."""
        return self.columns.propensity is None and not self.propensities


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What came in."""

    program: str
    program_version: str
    rounds: int
    customers: int
    rewarded: int
    mean_reward: float
    propensities: Literal["logged", "estimated"]
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
        propensities="estimated" if meaning.estimated else "logged",
        archive=str(archive),
    )


def _meaning(mapping: Path) -> Meaning:
    try:
        raw = tomllib.loads(mapping.read_text(encoding="utf-8"))
        if hasattr(raw.get("at"), "isoformat"):  # TOML has dates of its own
            raw["at"] = raw["at"].isoformat()
        meaning = msgspec.convert(raw, Meaning)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{mapping.name}: {error}; mend the TOML at that place") from None
    except msgspec.ValidationError as error:
        raise ValueError(f"{mapping.name}: {error}; the head of training/importing.py shows a whole one") from None
    if meaning.propensities and (
        meaning.columns.propensity is not None or set(meaning.propensities) != set(meaning.actions)
    ):
        raise ValueError(
            f"{mapping.name}: [propensities] names {', '.join(meaning.propensities)}; expected a column for each of "
            f"[actions] ({', '.join(meaning.actions)}), and no columns.propensity beside it"
        )
    low, high = meaning.reward_range
    if not low < high:
        raise ValueError(f"{mapping.name}: reward_range = [{low:g}, {high:g}]; expected the lower end first: [0, 1]")
    return meaning


def _table(log_file: Path) -> pa.Table:
    try:
        if log_file.suffix == ".parquet":
            table = pyarrow.parquet.read_table(log_file)
        else:
            table = pyarrow.csv.read_csv(log_file)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        said = str(error).split("\n")[0]
        mend = "expected CSV with a header (also .gz), or Parquet; if it was cut short, copy it again"
        raise ValueError(f"{log_file.name}: cannot be read ({said}); {mend}") from None
    if not len(table):
        raise ValueError(f"{log_file.name}: has no rows; expected one row a round")
    return table


def _columns_exist(meaning: Meaning, table: pa.Table, *, log_file: Path, mapping: Path) -> None:
    named = {f"columns.{k}": v for k, v in msgspec.to_builtins(meaning.columns).items() if isinstance(v, str)}
    named |= {f"context.{column}": column for column in meaning.context}
    named |= {f"propensities.{action}": column for action, column in meaning.propensities.items()}
    for key, column in named.items():
        if column not in table.column_names:
            raise ValueError(
                f"{mapping.name}: {key} = {column!r} is not a column of {log_file.name}; "
                f"it has {', '.join(table.column_names)}"
            )
    place, column = _place(log_file), meaning.columns.action
    for row, action in enumerate(table[column].cast(pa.string()).to_pylist()):
        if action not in meaning.actions:
            raise place.error(row, column, f"{action!r} is not in [actions] of {mapping.name}", "add it")
    for name, kind in meaning.context.items():
        if kind == "number":
            known = pc.fill_null(table[name], pa.scalar(0).cast(table[name].type))
            place.numbers(pa.table({name: known}), name, mend="write a number, or leave the row out")


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
        'evaluation_horizon = "1m"',
        f"[[stages]]\nname = {_quoted(STAGE)}\ntitle = {_quoted('Everybody')}",
        f'[[events]]\nname = {_quoted(EVENT)}\nkind = "macro"\nvalue = 1.0\nscaled = true\nwindow = "1m"',
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
    place = _place(log_file)
    rewards = _rewards(meaning, table, place=place)
    actions = _actions(meaning, program, table)
    who = _customers(meaning, table, place=place)
    times = _times(meaning, table, place=place)
    at = _apart(times, who)
    names = _ids(meaning, table, times=times, place=place)
    contexts = _contexts(meaning, program, table, at=at)
    vectors = _vectors(meaning, program, table, actions=actions, contexts=contexts, who=who, place=place)
    decisions, outcomes = [], []
    for i in range(len(table)):
        decisions.append(
            Decision(
                customer_id=who[i],
                program=program.name,
                decision_id=names[i],
                program_version=program.version,
                policy=log.ESTIMATED if meaning.estimated else log.IMPORTED,
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
                outcome_id=names[i],
                decision_id=names[i],
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


_IF_NOTHING = "write 0 if nothing happened, or leave the row out"


class _Place(msgspec.Struct, frozen=True):
    """The file that messages name, and the number of its first row: 2 where a header is above it."""

    file: str
    first: int = 2

    def error(self, row: int, column: str, problem: str, mend: str) -> ValueError:
        return ValueError(f"{self.file}: row {row + self.first}, column {column}: {problem}; {mend}")

    def numbers(self, table: pa.Table, column: str, *, mend: str = _IF_NOTHING) -> Floats:
        """Shape (n,): a column as numbers; ValueError names the first row that is none."""
        try:
            numbers = np.asarray(table[column].cast(pa.float64()).to_numpy(), dtype=np.float64)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row, value = next((i, v) for i, v in enumerate(table[column].to_pylist()) if v is None or not _is_number(v))
            raise self.error(row, column, f"{value!r} is not a number", "write one, or leave the row out") from None
        if not np.isfinite(numbers).all():
            row = int(np.argmin(np.isfinite(numbers)))
            given = table[column][row].as_py()
            raise self.error(row, column, "is empty" if given is None else f"{given!r} is not known", mend)
        return numbers


def _place(log_file: Path) -> _Place:
    return _Place(log_file.name, first=1 if log_file.suffix == ".parquet" else 2)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _rewards(meaning: Meaning, table: pa.Table, *, place: _Place) -> Floats:
    rewards = place.numbers(table, meaning.columns.reward)
    low, high = meaning.reward_range
    outside = (rewards < low) | (rewards > high)
    if outside.any():
        row = int(np.argmax(outside))
        problem = f"{rewards[row]:g} is out of the declared range {low:g} to {high:g}"
        raise place.error(row, meaning.columns.reward, problem, "correct it, or change reward_range")
    return rewards


def _ids(meaning: Meaning, table: pa.Table, *, times: Sequence[float], place: _Place) -> list[str]:
    """Return the rows' own ids, or made ones; ValueError names the second row of an id.

    Without ids, rows of a customer that say the same are one round told twice, unless the times tell only the day.
    """
    column = meaning.columns.id
    if column is None and meaning.columns.customer and len({t % DAY for t in times}) > 1:
        said = [repr(told).encode() for told in zip(*(c.to_pylist() for c in table.columns), strict=True)]
        made = [blake2b(told, digest_size=12).hexdigest() for told in said]  # whatever the file is called
        mend = "a round is counted once: leave one of them out, or name the column of their ids as columns.id"
        _refuse_twins(made, meaning.columns.customer, problem="says the same as row {first}", mend=mend, place=place)
        return made
    if column is None:
        return [f"{place.file}#{i}" for i in range(len(table))]
    names: list[str] = table[column].cast(pa.string()).to_pylist()
    if not all(names):
        row = next(row for row, name in enumerate(names) if not name)
        raise place.error(row, column, "is empty", "give each row an id, or leave columns.id out")
    mend = "a round is counted once: leave one of them out"
    _refuse_twins(names, column, problem="{name!r} is the id of row {first} too", mend=mend, place=place)
    return names


def _refuse_twins(names: Sequence[str], column: str, *, problem: str, mend: str, place: _Place) -> None:
    """Refuse the second row of an id; `problem` has a place for its name and for the first."""
    seen: dict[str, int] = {}
    for row, name in enumerate(names):
        if (first := seen.setdefault(name, row)) != row:
            raise place.error(row, column, problem.format(name=name, first=first + place.first), mend)


def _propensities(meaning: Meaning, table: pa.Table, *, place: _Place) -> Floats:
    given = meaning.columns.propensity
    if not isinstance(given, str):
        return np.full(len(table), float(given or 0.0))
    mend = "give the chance with which the action was drawn; what was never possible cannot be judged"
    chances = place.numbers(table, given, mend=mend)
    wrong = (chances <= 0) | (chances > 1)
    if wrong.any():
        row = int(np.argmax(wrong))
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
    if pa.types.is_string(column.type):
        return [_moment(text, row, meaning.at, place) for row, text in enumerate(column.to_pylist())]
    return [float(t) for t in place.numbers(table, meaning.at, mend="give the time of the decision")]


def _moment(text: str | None, row: int, column: str, place: _Place) -> float:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        raise place.error(row, column, f"{text!r} is no date", "write one such as 2026-01-31T18:00:00") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _apart(at: Sequence[float], who: Sequence[str]) -> list[float]:
    """Return the times, moved on where a customer's rows are less than `GAP` apart: a reward is of its own row only."""
    apart, last = list(at), dict[str, float]()
    for i in sorted(range(len(apart)), key=lambda i: apart[i]):
        apart[i] = max(apart[i], last.get(who[i], -math.inf) + GAP)
        last[who[i]] = apart[i]
    return apart


def _customers(meaning: Meaning, table: pa.Table, *, place: _Place) -> list[str]:
    column = meaning.columns.customer
    if column is None:
        return [f"row-{i + 1}" for i in range(len(table))]
    names: list[str] = table[column].cast(pa.string()).to_pylist()
    row = next((i for i, name in enumerate(names) if not name), None)
    if row is not None:
        raise place.error(row, column, "is empty", "name the customer, or leave the row out")
    if len(set(names)) == 1:
        problem = f"every row is of one customer, {names[0]!r}"
        raise place.error(0, column, problem, "a log shows how customers differ: it needs two at least")
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


def _vectors(
    meaning: Meaning,
    program: Program,
    table: pa.Table,
    *,
    actions: npt.NDArray[np.intp],
    contexts: Sequence[Mapping[str, Scalar]],
    who: Sequence[str],
    place: _Place,
) -> npt.NDArray[np.float32]:
    """Shape (n, k): as logged; or of what was done, the rest spread evenly over the other actions; or estimated."""
    k, ours = program.space.k, [program.space.names.index(a) for a in meaning.actions.values()]
    if meaning.propensities:
        return _whole(meaning, table, k=k, ours=ours, actions=actions, place=place)
    if meaning.estimated:
        customers = np.unique(np.asarray(who), return_inverse=True)[1]
        try:
            found = propensities.estimate(encode(program, columns_of(program, contexts)), actions, customers, k=k)
        except ValueError as error:
            raise ValueError(f"{place.file}: column {meaning.columns.action}: {error}") from None
        return found.astype("<f4")
    chances = _propensities(meaning, table, place=place)
    others = np.unique(ours)
    rest = (1.0 - chances) / max(len(others) - 1, 1)
    vectors = np.zeros((len(actions), k))
    vectors[:, others] = rest[:, None]
    vectors[np.arange(len(actions)), actions] = chances
    return vectors.astype("<f4")


def _whole(
    meaning: Meaning,
    table: pa.Table,
    *,
    k: int,
    ours: Sequence[int],
    actions: npt.NDArray[np.intp],
    place: _Place,
) -> npt.NDArray[np.float32]:
    """Shape (n, k): vectors that the log has whole, each checked."""
    vectors = np.zeros((len(actions), k))
    columns = list(meaning.propensities.values())
    for name, index in zip(meaning.actions, ours, strict=True):
        column = meaning.propensities[name]
        chances = place.numbers(table, column)
        if (wrong := (chances < 0) | (chances > 1)).any():
            row = int(np.argmax(wrong))
            raise place.error(row, column, f"{chances[row]:g} is no probability", "give a number from 0 to 1")
        vectors[:, index] += chances
    sums = vectors.sum(axis=1)
    if (wrong := np.abs(sums - 1.0) > SUM_TOLERANCE).any():
        row = int(np.argmax(wrong))
        problem = f"the chances of row {row + place.first} sum to {sums[row]:.8g}"
        raise place.error(row, ", ".join(columns), problem, "give the vector that was drawn from: it sums to 1")
    drawn = vectors[np.arange(len(actions)), actions]
    if (wrong := drawn <= 0).any():
        row = int(np.argmax(wrong))
        column = meaning.propensities[table[meaning.columns.action].cast(pa.string())[row].as_py()]
        raise place.error(row, column, "the action drawn has chance 0", "give the vector that it was drawn from")
    return vectors.astype("<f4")
