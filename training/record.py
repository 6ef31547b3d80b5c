"""What did customers live through? The archive as columns: every decision and outcome, of every arm, stage by stage.

`dataset` has the rounds that policies learn from: matured, and without the customers who are held out. This has
everything, for questions about people and not about policies.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optimizer.actions import Bools, Floats, Ints
from optimizer.customer import columns_of, encode
from optimizer.events import Scalar
from optimizer.program import MINOR_UNITS, Program
from training import events as log

UNKNOWN = "unknown"
"""The group of those of whom an attribute is not known."""

HELD, GONE = -1, -2
"""The incentive of a decision that held, and of one whose incentive is not in the program any more."""

Names = npt.NDArray[np.object_]
_CONTEXTS = msgspec.json.Decoder(dict[str, Scalar])


@dataclass(frozen=True)
class Decided:
    """Decisions (n,), by customer and then by time.

    Args:
        customer: a code. at, deliver_at: seconds since the epoch; `deliver_at` is NaN for hold.
        arm, policy: names; a policy as `name@version`.
        stage: by index. incentive: by index, `HELD` or `GONE`. cost: in money, 0 where it was not shown.
        shown: a nudge that was not reported as not shown.
        contexts: (n, d), as a policy saw them. ids: decision ids.
    """

    customer: Ints
    at: Floats
    deliver_at: Floats
    arm: Names
    policy: Names
    stage: Ints
    incentive: Ints
    cost: Floats
    shown: Bools
    contexts: Floats
    ids: Names

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: Ints | Bools) -> "Decided":
        """Return some of the decisions."""
        return Decided(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Happened:
    """Outcomes (m,) that stand, of customers with a decision, by customer and then by time.

    Args:
        customer: a code. at: seconds since the epoch. event: by index in the program, -1 for others.
        value: as reported, NaN where none was. decision_id: of the nudge it names; None for none.
    """

    customer: Ints
    at: Floats
    event: Ints
    value: Floats
    decision_id: Names
    left: Bools

    def __len__(self) -> int:
        return len(self.at)

    def did(self, program: Program, *, kinds: tuple[str, ...]) -> Bools:
        """Shape (m,): which are of events of these kinds."""
        return self._among([e.kind in kinds for e in program.events])

    def did_event(self, program: Program, name: str) -> Bools:
        """Shape (m,): which are of one event."""
        return self._among([e.name == name for e in program.events])

    def _among(self, wanted: list[bool]) -> Bools:
        chosen: Bools = np.array([*wanted, False], dtype=np.bool_)[self.event]
        return chosen

    def take(self, rows: Ints | Bools) -> "Happened":
        """Return some of the outcomes."""
        return Happened(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Record:
    """All that the archive says of a program's customers.

    Args:
        program: what stages, events and incentives are indices into.
        customers: names, by code. arms: (customers,), the arm of each at the first decision.
        enrolled: (customers,), when each was first decided for.
        decided, happened: everything, the period or not.
        since, until: the period: what began in it is followed to the end of the log.
        log_end: when the log ends, whatever the period.
    """

    program: Program
    customers: tuple[str, ...]
    arms: Names
    enrolled: Floats
    decided: Decided
    happened: Happened
    since: float
    until: float
    log_end: float

    def in_period(self) -> "Record":
        """Return what was decided and what happened in the period; codes stay."""
        inside = [(x.at >= self.since) & (x.at < self.until) for x in (self.decided, self.happened)]
        return replace(self, decided=self.decided.take(inside[0]), happened=self.happened.take(inside[1]))

    def of(self, customers: Bools) -> "Record":
        """Return the decisions and outcomes of some customers, given as a mask; codes stay."""
        decided = self.decided.take(customers[self.decided.customer])
        return replace(self, decided=decided, happened=self.happened.take(customers[self.happened.customer]))

    def of_policy(self, policy: str) -> "Record":
        """Return the decisions of one policy, `name` or `name@version`, and what its customers did; codes stay."""
        labels = self.decided.policy
        mine = np.array([p in (policy, f"{policy}@{p.rpartition('@')[2]}") for p in labels.tolist()], dtype=np.bool_)
        if not mine.any():
            known = ", ".join(sorted(set(labels.tolist())))
            raise ValueError(f"no decision of policy {policy!r} is in the log: expected one of {known}")
        people = np.zeros(len(self.customers), dtype=np.bool_)
        people[self.decided.customer[mine]] = True
        return replace(self.of(people), decided=self.decided.take(mine))

    @property
    def people(self) -> Ints:
        """Codes of the customers with a decision here."""
        return np.unique(self.decided.customer)

    def stage_at(self, customer: Ints, at: Floats) -> Ints:
        """Shape (m,): the stage of customers as the last decision before each moment saw them; -1 before the first."""
        decided = self.decided
        so_far = counted_before(customer, at, whose=decided.customer, when=decided.at)
        first = np.searchsorted(decided.customer, customer)
        stages: Ints = np.where(so_far > 0, decided.stage[np.maximum(first + so_far - 1, 0)], -1)
        return stages


def load(archive: Path, program: Program, *, since: float | None = None, until: float | None = None) -> Record:
    """Read the archive of a program.

    Args:
        archive: its folder.
        program: what to read it as.
        since, until: the period, seconds since the epoch; from the first entry, to the last.

    Raises:
        ValueError: for an archive that is empty or cannot be read, or a period in which nothing was decided.
    """
    table = log.read(archive, program.name)
    decisions = table.filter(pc.field("kind") == log.DECISION).sort_by(
        [("customer_id", "ascending"), ("at", "ascending")]
    )
    outcomes = table.filter(pc.field("kind") == log.OUTCOME)
    ends = [pc.max(decisions["at"]).as_py(), pc.max(outcomes["at"]).as_py(), pc.max(outcomes["received_at"]).as_py()]
    log_end = max((x for x in ends if x is not None), default=0.0)
    until = log_end + 1e-3 if until is None else until
    first = float(pc.min(decisions["at"]).as_py() or 0.0)
    since = first if since is None else since
    if not pc.any(pc.and_(pc.greater_equal(decisions["at"], since), pc.less(decisions["at"], until))).as_py():
        raise ValueError(
            f"program {program.name!r} has no decision from {_day(since)} to {_day(until)}: the archive has those from "
            f"{_day(first)} to {_day(log_end)}; give another period, or run nudge archive"
        )
    return _record(program, decisions, outcomes, since=since, until=until, log_end=log_end)


def _day(at: float) -> str:
    return str(np.datetime64(int(at), "s"))[:10]


def _record(
    program: Program, decisions: pa.Table, outcomes: pa.Table, *, since: float, until: float, log_end: float
) -> Record:
    names, codes = np.unique(_names(decisions["customer_id"]).astype(str), return_inverse=True)
    codes = codes.astype(np.intp)
    unseen = outcomes.filter((pc.field("event") == "not_shown") & ~pc.field("revoked"))
    unshown = set(unseen["decision_id"].to_pylist())
    decided = _decided(program, decisions, codes, unshown=unshown)
    first = np.searchsorted(codes, np.arange(len(names)))
    return Record(
        program=program,
        customers=tuple(names.tolist()),
        arms=decided.arm[first],
        enrolled=decided.at[first],
        decided=decided,
        happened=_happened(program, outcomes, {name: i for i, name in enumerate(names.tolist())}),
        since=since,
        until=until,
        log_end=log_end,
    )


def _decided(program: Program, decisions: pa.Table, codes: Ints, *, unshown: set[str]) -> Decided:
    here = {name: i for i, name in enumerate(program.space.incentives)}
    actions = decisions["action_name"].to_pylist()
    incentive = np.array([HELD if a == "hold" else here.get(a.partition("/")[0], GONE) for a in actions], dtype=np.intp)
    ids = _names(decisions["id"])
    shown = (incentive != HELD) & np.array([i not in unshown for i in ids.tolist()], dtype=np.bool_)
    costs = np.append(np.array([x.cost for x in program.incentives]), (0.0, 0.0))
    logged = decisions["cost"].to_numpy() / MINOR_UNITS
    columns = columns_of(program, [_CONTEXTS.decode(text) for text in decisions["context"].to_pylist()])
    policy = [
        f"{p}@{v}" for p, v in zip(*(decisions[c].to_pylist() for c in ("policy", "policy_version")), strict=True)
    ]
    return Decided(
        customer=codes,
        at=_floats(decisions["at"]),
        deliver_at=_floats(decisions["deliver_at"]),
        arm=_names(decisions["arm"]),
        policy=np.array(policy, dtype=np.object_),
        stage=columns["stage"].astype(np.intp),
        incentive=incentive,
        cost=np.where(shown, np.where(incentive == GONE, logged, costs[incentive]), 0.0),
        shown=shown,
        contexts=encode(program, columns),
        ids=ids,
    )


def _happened(program: Program, outcomes: pa.Table, codes: dict[str, int]) -> Happened:
    stands = outcomes.filter(~pc.field("revoked"))
    who = np.array([codes.get(c, -1) for c in stands["customer_id"].to_pylist()], dtype=np.intp)
    index = program.event_index
    found = Happened(
        customer=who,
        at=_floats(stands["at"]),
        event=np.array([index.get(e, -1) for e in stands["event"].to_pylist()], dtype=np.intp),
        value=_floats(stands["value"]),
        decision_id=_names(stands["decision_id"]),
        left=np.array([e == "opt_out" for e in stands["event"].to_pylist()], dtype=np.bool_),
    )
    return found.take(np.lexsort((found.at, who))[np.count_nonzero(who < 0) :])


def _names(column: pa.ChunkedArray) -> Names:
    return np.asarray(column.to_pylist(), dtype=np.object_)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def counted_before(customer: Ints, at: Floats, *, whose: Ints, when: Floats) -> Ints:
    """Shape (n,): how many of some moments (`whose`, `when`) of the same customer lie before each `at`.

    >>> zero, at = np.zeros(3, dtype=np.intp), np.array([1.0, 2.0, 9.0])
    >>> counted_before(zero, at, whose=np.array([0, 0, 1]), when=np.array([1.0, 3.0, 0.0])).tolist()
    [0, 1, 2]
    """
    instants = np.unique(np.concatenate([at, when]))
    width = len(instants) + 1
    keys = np.sort(whose * width + np.searchsorted(instants, when))
    here = customer * width + np.searchsorted(instants, at)
    counts: Ints = (np.searchsorted(keys, here) - np.searchsorted(keys, customer * width)).astype(np.intp)
    return counts


@dataclass(frozen=True)
class Visits:
    """Stays of customers in stages, (v,): an open one has `to` = -1 and ends when the record does.

    `lapsed`: it ended because the customer took no step for too long, not by something that the customer did.
    """

    customer: Ints
    stage: Ints
    start: Floats
    end: Floats
    to: Ints
    lapsed: Bools

    def take(self, rows: Ints | Bools) -> "Visits":
        """Return some of the visits."""
        return Visits(**{name: column[rows] for name, column in vars(self).items()})


class _Visit(NamedTuple):
    customer: int
    stage: int
    start: float
    end: float
    to: int
    lapsed: bool


def visits(record: Record) -> Visits:
    """Follow each customer from stage to stage: as decisions saw them, and as events move them in between.

    A visit begins when the customer is first seen in the stage, so that what came before the log is not counted. Who
    falls back for want of steps leaves when the program says so, not when the next decision notices.
    """
    decided, happened = record.decided, record.happened
    seen = zip(decided.customer.tolist(), decided.at.tolist(), [1] * len(decided), decided.stage.tolist(), strict=True)
    moved = [
        (who, at, 0, event)
        for who, at, event in zip(
            happened.customer.tolist(), happened.at.tolist(), happened.event.tolist(), strict=True
        )
        if event >= 0
    ]
    found = [
        visit
        for who, theirs in groupby(sorted([*seen, *moved]), lambda x: x[0])
        for visit in _follow(record, who, [(at, kind, what) for _, at, kind, what in theirs])
    ]
    columns = [*zip(*found, strict=True)] or [()] * 6
    kinds = (np.intp, np.intp, np.float64, np.float64, np.intp, np.bool_)
    return Visits(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def _follow(record: Record, who: int, course: list[tuple[float, int, int]]) -> Iterator[_Visit]:
    """Yield one customer's visits, from (at, kind, what) with kind 0 for an event and 1 for a decision's sight."""
    program, moves = record.program, record.program.moves
    first = next((what for _, kind, what in course if kind), 0) if course[0][1] else 0
    stage, start, idle = first, course[0][0], course[0][0]
    for at, kind, what in course:
        to = what if kind else int(moves[stage, what])
        if to != stage:
            lapsed = bool(kind) and program.stages[stage].lapses_to == program.stages[to].name
            end = max(start, min(at, idle + float(program.stages[stage].lapses_after or 0.0))) if lapsed else at
            yield _Visit(who, stage, start, end, to, lapsed)
            stage, start = to, end
        if not kind and program.events[what].kind != "signal":
            idle = at
    after = program.stages[stage].lapses_after
    if after is not None and record.log_end - max(idle, start) > after:
        to = program.stage_index[str(program.stages[stage].lapses_to)]
        yield _Visit(who, stage, start, max(idle, start) + float(after), to, lapsed=True)
    else:
        yield _Visit(who, stage, start, record.log_end, -1, lapsed=False)


def segments(program: Program, contexts: Floats) -> dict[str, tuple[tuple[str, ...], Ints]]:
    """Sort contexts (n, d) by each declared attribute: names of the groups, and the group (n,) of each.

    A number is cut at its declared mean; what is not known is a group of its own, the last.
    """
    column = {name: i for i, name in enumerate(program.features)}
    found = {}
    for a in program.attributes:
        unknown = contexts[:, column[f"{a.name}=?"]] > 0
        if a.kind == "category":
            names = a.categories
            hot = contexts[:, [column[f"{a.name}={c}"] for c in names]]
            codes = hot.argmax(axis=1)
        else:
            names = ("no", "yes") if a.kind == "flag" else (f"below {a.mean:g}", f"{a.mean:g} or more")
            codes = (contexts[:, column[a.name]] > (0 if a.kind == "flag" else -1e-12)).astype(np.intp)
        found[a.name] = ((*names, UNKNOWN), np.where(unknown, len(names), codes).astype(np.intp))
    return found
