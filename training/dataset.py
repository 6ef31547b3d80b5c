"""What did the log teach? Decisions joined with their outcomes, matured, ready to learn from and to judge by."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from optimizer.actions import HOLD, ActionSpace, Bools, Floats, Floats32, Ints
from optimizer.customer import columns_of, encode
from optimizer.engine import EVALUATION, HOLDOUT
from optimizer.events import Scalar
from optimizer.journey import stage_values
from optimizer.policy import Rounds
from optimizer.program import DAY, MINOR_UNITS, Program
from training import events as log
from training.ope import SUM_TOLERANCE
from training.vectors import SIZE, room

_CONTEXTS = msgspec.json.Decoder(dict[str, Scalar])
_CHECKED = 8_192
"""Vectors that are checked at a time."""

_RESTORE = "log the vector that was drawn from; restore the file from a backup, or move it out of the archive"
_BLOCKS = msgspec.json.Decoder(dict[str, str])


Arms = Literal["training", "judging"]


@dataclass(frozen=True)
class After:
    """Where each round's customer was later: what stage values are fitted on, and what they are then added for.

    Args:
        day_stages: (n,), the stage a day later. day_rewards: (n,), what events of that day were worth.
        horizon_stages: (n,), the stage when the program's evaluation horizon had passed.
    """

    day_stages: Ints
    day_rewards: Floats
    horizon_stages: Ints

    def take(self, rows: Ints | Bools | slice) -> "After":
        """Return some of the rounds."""
        return After(self.day_stages[rows], self.day_rewards[rows], self.horizon_stages[rows])


@dataclass(frozen=True)
class Dataset:
    """Matured rounds of one program, ordered by time, with what training and reports need beside them.

    Args:
        program: the program whose actions, features and stages the rounds are in.
        rounds: n rounds, `at` ascending; rewards unshaped.
        training_rewards: (n,), what policies learn from: the rewards, or as `with_stage_values` shapes them.
        stages: (n,), index of the customer's stage when deciding.
        events: for each event, (n,) how often it happened in the round's window.
        customers: names, by code.
        loggers: policy versions that chose, by code.
        total: decisions seen, matured or not.
        matured: decisions whose window has closed.
        estimated_propensities: the log did not carry its probabilities; they were estimated.
        until: up to when the log is complete.
        training: (n,), whether policies may learn from a round: False for traffic of the evaluation arm.
        blocked: for each guardrail that blocked something, (n,) on which rounds it did.
    """

    program: Program
    rounds: Rounds
    training_rewards: Floats
    stages: Ints
    events: dict[str, Floats]
    customers: tuple[str, ...]
    loggers: tuple[str, ...]
    total: int
    matured: int
    estimated_propensities: bool = False
    after: After | None = None
    until: float = math.inf
    training: Bools | None = None
    blocked: dict[str, Bools] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rounds)

    @property
    def matured_share(self) -> float:
        """Share of the decisions seen whose window has closed; 1 of none."""
        return self.matured / self.total if self.total else 1.0

    def take(self, rows: Ints | Bools | slice) -> "Dataset":
        """Return some of the rounds; codes, `total` and `matured` stay those of the whole log."""
        return replace(
            self,
            rounds=self.rounds.take(rows),
            training_rewards=self.training_rewards[rows],
            stages=self.stages[rows],
            events={name: counts[rows] for name, counts in self.events.items()},
            after=self.after and self.after.take(rows),
            training=None if self.training is None else self.training[rows],
            blocked={rule: where[rows] for rule, where in self.blocked.items()},
        )

    def learnable(self) -> "Dataset":
        """Return the rounds that policies may learn from: all but those of the evaluation arm."""
        return self if self.training is None or self.training.all() else self.take(self.training)

    def with_stage_values(self) -> "Dataset":
        """Return the rounds with `gamma^h V(stage after the horizon) - V(stage)` added to what is learned from.

        V is worked back from the goal on these rounds alone, so a policy that learns from a slice knows nothing of
        the rest: one step of policy improvement. Without stages after, nothing is added.
        """
        if self.after is None or not len(self):
            return self
        size = len(self.program.stages)
        transitions = np.zeros((size, size))
        np.add.at(transitions, (self.stages, self.after.day_stages), 1.0)
        earned = np.bincount(self.stages, weights=self.after.day_rewards, minlength=size).astype(np.float64)
        values = stage_values(self.program, transitions=transitions, rewards=earned)
        decay = self.program.discount ** (self.program.evaluation_horizon / DAY)
        shaped = self.rounds.rewards + decay * values[self.after.horizon_stages] - values[self.stages]
        return replace(self, training_rewards=shaped)


def load(archive: Path, program: Program, *, now: float | None = None, arms: Arms = "training") -> Dataset:
    """Join the archived decisions of a program with their outcomes.

    Decisions of held-out customers are left out, and so are rounds whose window is still open at `now`: unknown is not
    zero. Traffic of the evaluation arm is for judging only: policies never learn from it. An outcome counts for every
    decision of its customer whose window contains it.

    Args:
        archive: the folder of the archive.
        program: declares what events are worth now; decisions of its older versions are aligned by action
            name.
        now: program time up to which the log is complete, seconds since the epoch; its last entry where omitted,
            or for ever where another system's log came in whole. What was received later is left out.
        arms: `training` leaves the evaluation arm out, `judging` has it too.

    Raises:
        ValueError: naming the file, for an archive that cannot be read.
    """
    table = log.read(archive, program.name, until=math.inf if now is None else now)
    decisions = table.filter(pc.field("kind") == "decision").sort_by([("at", "ascending"), ("id", "ascending")])
    left_out = [HOLDOUT] if arms == "judging" else [HOLDOUT, EVALUATION]
    decisions = decisions.filter(pc.invert(pc.is_in(decisions["arm"], pa.array(left_out))))
    happened = outcomes_of(table)
    versions = log.versions(archive, program.name)
    if (fault := _fault(decisions, versions)) is not None:
        raise ValueError(f"{log.place(archive, program.name, fault.id)}, {fault}")
    now = _last_entry(table) if now is None else now
    return _join(program, decisions, happened, versions=versions, now=now)


def _last_entry(table: pa.Table) -> float:
    """Return the time up to which a log is complete: its last entry; for ever, if it came in whole."""
    decided = table.filter(pc.field("kind") == log.DECISION)
    if pc.all(pc.is_in(decided["policy"], pa.array([log.IMPORTED, log.ESTIMATED]))).as_py():
        return math.inf
    return float(max(pc.max(decided["at"]).as_py(), pc.max(table["received_at"]).as_py() or 0.0))


class _Fault(NamedTuple):
    """What is wrong with a decision, in which column, and what to do."""

    id: str
    column: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"column {self.column}: {self.problem}; {self.mend}"


def _fault(decisions: pa.Table, versions: Mapping[str, Program]) -> _Fault | None:
    """Return the first decision that could not have been made as it is logged, or None."""
    ids, drawn = decisions["id"], np.asarray(decisions["action"].to_numpy(), dtype=np.intp)
    version, logged = _objects(decisions["program_version"]), _objects(decisions["probabilities"])
    for name in dict.fromkeys(version.tolist()):
        rows = np.flatnonzero(version == name)
        if name not in versions:
            mend = (
                "its text is not in the archive: restore versions/ from a backup, or move the file out of the archive"
            )
            return _Fault(ids[rows[0]].as_py(), "program_version", f"{name!r} is no version of this program", mend)
        k = versions[name].space.k
        if len(short := rows[[len(logged[i]) != 4 * k for i in rows]]):
            said = f"{len(logged[short[0]]) // 4} probabilities, expected {k}: one an action"
            return _Fault(ids[short[0]].as_py(), "probabilities", said, _RESTORE)
        for start in range(0, len(rows), _CHECKED):
            some = rows[start : start + _CHECKED]
            vectors = np.frombuffer(b"".join(logged[some]), dtype="<f4").reshape(len(some), k)
            if (found := _wrong(vectors, drawn[some])) is not None:
                row, problem = found
                return _Fault(ids[some[row]].as_py(), "probabilities", problem, _RESTORE)
    return None


def _wrong(vectors: Floats32, drawn: Ints) -> tuple[int, str] | None:
    """Return the first row of vectors (n, k) that was never drawn from, and why."""
    outside = ~((vectors >= 0) & (vectors <= 1 + SUM_TOLERANCE))
    if outside.any():
        row, action = (int(i) for i in np.argwhere(outside)[0])
        return row, f"the probability of action {action} is {float(vectors[row, action]):g}, expected one from 0 to 1"
    sums = vectors.sum(axis=1, dtype=np.float64)
    if (off := np.flatnonzero(np.abs(sums - 1.0) > SUM_TOLERANCE)).size:
        return int(off[0]), f"they sum to {sums[off[0]]:.8g}, expected 1"
    out = (drawn < 0) | (drawn >= vectors.shape[1])
    if (never := np.flatnonzero(out | (vectors[np.arange(len(drawn)), np.where(out, 0, drawn)] <= 0))).size:
        return int(never[0]), f"the action drawn, {drawn[never[0]]}, has probability 0"
    return None


class _Happened(NamedTuple):
    """Outcomes that stand, in order of time: who, what, when, how much, and for which decision."""

    customer: npt.NDArray[np.object_]
    event: npt.NDArray[np.object_]
    at: Floats
    value: Floats
    decision_id: npt.NDArray[np.object_]


def outcomes_of(table: pa.Table) -> _Happened:
    """Return a program's outcomes that stand: neither replaced nor revoked."""
    stands = (pc.field("kind") == "outcome") & ~pc.field("revoked")
    found = table.filter(stands).sort_by([("at", "ascending"), ("id", "ascending")])
    return _Happened(
        customer=_objects(found["customer_id"]),
        event=_objects(found["event"]),
        at=_floats(found["at"]),
        value=_floats(found["value"]),
        decision_id=_objects(found["decision_id"]),
    )


def _objects(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    return np.asarray(column.to_numpy(), dtype=np.object_)


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _join(
    program: Program,
    decisions: pa.Table,
    happened: _Happened,
    *,
    versions: Mapping[str, Program],
    now: float,
) -> Dataset:
    total = len(decisions)
    decisions = decisions.filter(pc.field("at") + float(program.evaluation_horizon) <= now)
    at = _floats(decisions["at"])
    names, codes = _coded(_objects(decisions["customer_id"]))
    loggers, logger = _coded(
        _objects(pc.binary_join_element_wise(decisions["policy"], decisions["policy_version"], "@"))
    )
    vectors, actions, known = _aligned(program.space, decisions, versions=versions)
    contexts = [_CONTEXTS.decode(text) for text in decisions["context"].to_pylist()]
    columns = columns_of(program, contexts)
    sums = Sums(names, codes, happened)
    counts, rewards = _rewards(program, sums, at=at)
    rewards -= costs_of(program, decisions, actions=actions, happened=happened)
    stages = columns["stage"].astype(np.intp)
    rounds = Rounds(
        contexts=encode(program, columns),
        allowed=_positive(vectors),
        probabilities=vectors,
        actions=actions,
        rewards=rewards,
        customers=codes,
        at=at,
        cost_prices=_floats(decisions["cost_price"]),
        burdens=_floats(decisions["burden"]),
        loggers=logger,
    )
    whole = Dataset(
        program=program,
        rounds=rounds,
        training_rewards=rewards,
        stages=stages,
        events=counts,
        customers=names,
        loggers=loggers,
        total=total,
        matured=total if not total else len(at),
        estimated_propensities=bool(pc.any(pc.equal(decisions["policy"], log.ESTIMATED)).as_py()),
        after=_after(program, sums, stages=stages, at=at),
        until=now,
        training=_objects(decisions["arm"]) != EVALUATION,
        blocked=_blocked(decisions["blocked"]),
    )
    return whole if known.all() else whole.take(known)


def _blocked(column: pa.ChunkedArray) -> dict[str, Bools]:
    """For each guardrail that blocked something, on which rounds (n,) it did."""
    texts = column.combine_chunks().dictionary_encode()
    rules = [set(_BLOCKS.decode(text).values()) for text in texts.dictionary.to_pylist()]
    codes = texts.indices.to_numpy()
    return {
        rule: np.array([rule in found for found in rules], dtype=np.bool_)[codes]
        for rule in sorted(set().union(*rules))
    }


def _coded(values: npt.NDArray[np.object_]) -> tuple[tuple[str, ...], Ints]:
    names, codes = np.unique(values.astype(str), return_inverse=True)
    return tuple(names.tolist()), codes.astype(np.intp)


def _aligned(
    space: ActionSpace, decisions: pa.Table, *, versions: Mapping[str, Program]
) -> tuple[Floats32, Ints, Bools]:
    """Return vectors (n, k), actions (n,) and which rounds (n,) can be read under this version's actions.

    An action that is gone takes its probability with it: the rest is renormalised, which is the distribution
        given that no such action was drawn, and rounds that drew one are left out.
    """
    n = len(decisions)
    vectors = room((n, space.k), np.float32)
    actions = np.full(n, HOLD, dtype=np.intp)
    known = np.ones(n, dtype=np.bool_)
    version = _objects(decisions["program_version"])
    logged = _objects(decisions["probabilities"])
    drawn = np.asarray(decisions["action"].to_numpy(), dtype=np.intp)
    here = {name: i for i, name in enumerate(space.names)}
    for found in dict.fromkeys(version.tolist()):
        rows = np.flatnonzero(version == found)
        names = versions[found].space.names
        target = np.array([here.get(name, -1) for name in names], dtype=np.intp)
        raw = np.frombuffer(b"".join(logged[rows]), dtype="<f4").reshape(len(rows), len(names))
        block = np.zeros((len(rows), space.k), dtype=np.float32)
        block[:, target[target >= 0]] = raw[:, target >= 0]
        if (target < 0).any():
            block /= block.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        vectors[rows] = block
        known[rows] = target[drawn[rows]] >= 0
        actions[rows] = np.maximum(target[drawn[rows]], HOLD)
    return vectors, actions, known


def _positive(vectors: Floats32) -> Bools:
    """Shape (n, k): which probabilities are above 0, a block at a time."""
    found = room(vectors.shape, np.bool_)
    for start in range(0, len(vectors), SIZE):
        found[start : start + SIZE] = vectors[start : start + SIZE] > 0
    return found


class Sums:
    """Sums of outcomes over windows, for decisions (n,) of the same customer: exact, by ranks of time."""

    def __init__(self, names: Sequence[str], codes: Ints, happened: _Happened) -> None:
        who = {name: i for i, name in enumerate(names)}
        self.who = np.array([who.get(name, -1) for name in happened.customer.tolist()], dtype=np.intp)
        self.codes = codes
        self.happened = happened
        self.instants = np.unique(happened.at)

    def _keys(self, codes: Ints, ranks: Ints) -> Ints:
        return codes * (len(self.instants) + 1) + ranks

    def over(self, chosen: Bools, weights: Floats, *, start: Floats, end: Floats) -> Floats:
        """Shape (n,): the sum of weights of chosen outcomes with start <= at < end."""
        rows = np.flatnonzero(chosen & (self.who >= 0))
        keys = self._keys(self.who[rows], np.searchsorted(self.instants, self.happened.at[rows]))
        order = np.argsort(keys, kind="stable")
        running = np.concatenate([[0.0], np.cumsum(weights[rows][order])])
        keys = keys[order]
        first = np.searchsorted(keys, self._keys(self.codes, np.searchsorted(self.instants, start)))
        last = np.searchsorted(keys, self._keys(self.codes, np.searchsorted(self.instants, end)))
        sums: Floats = running[last] - running[first]
        return sums


def worth(program: Program, name: str, value: Floats) -> Floats:
    """Shape (outcomes,): what each outcome of an event is worth, in reward units."""
    event = program.events[program.event_index[name]]
    if not event.scaled:
        return np.full(len(value), event.value)
    return event.value * np.where(np.isnan(value), 0.0, value)


def _rewards(program: Program, sums: Sums, *, at: Floats) -> tuple[dict[str, Floats], Floats]:
    """Return the count of each event in each round's window, and the worth of all of them together (n,)."""
    counts: dict[str, Floats] = {}
    rewards = np.zeros(len(at))
    for name, window in zip(program.event_index, program.windows.tolist(), strict=True):
        chosen = sums.happened.event == name
        span = {"start": at, "end": at + window}
        counts[name] = sums.over(chosen, np.ones(len(chosen)), **span)
        if program.events[program.event_index[name]].value:
            rewards += sums.over(chosen, worth(program, name, sums.happened.value), **span)
    return counts, rewards


def costs_of(program: Program, decisions: pa.Table, *, actions: Ints, happened: _Happened) -> Floats:
    """Shape (n,): what each decision cost; nothing if it held or its nudge was reported as not shown."""
    shown = happened.event != "not_shown"
    unseen = set(happened.decision_id[~shown].tolist())
    costs = program.space.action_costs[actions]
    if unseen:
        ids = _objects(decisions["id"])
        costs = np.where([i in unseen for i in ids.tolist()], 0.0, costs)
    return np.round(costs * MINOR_UNITS) / MINOR_UNITS


def _after(program: Program, sums: Sums, *, stages: Ints, at: Floats) -> After:
    earned = np.zeros(len(at))
    for event in program.events:
        chosen = sums.happened.event == event.name
        if event.value and chosen.any():
            earned += sums.over(chosen, worth(program, event.name, sums.happened.value), start=at, end=at + DAY)
    return After(
        day_stages=_stages_at(program, sums, stages=stages, at=at, when=at + DAY),
        day_rewards=earned,
        horizon_stages=_stages_at(program, sums, stages=stages, at=at, when=at + program.evaluation_horizon),
    )


def _stages_at(program: Program, sums: Sums, *, stages: Ints, at: Floats, when: Floats) -> Ints:
    """Shape (n,): each customer's stage at a time: as its last decision saw it, moved by what happened since."""
    codes, happened, index = sums.codes.tolist(), sums.happened, program.event_index
    asked = zip(codes, when.tolist(), [2] * len(when), range(len(when)), strict=True)
    seen = zip(codes, at.tolist(), [0] * len(when), stages.tolist(), strict=True)
    moved = [
        (who, time, 1, index[event])
        for who, time, event in zip(sums.who.tolist(), happened.at.tolist(), happened.event.tolist(), strict=True)
        if who >= 0 and event in index
    ]
    moves = program.moves.tolist()
    found, stage = np.array(stages), 0
    for _, _, kind, what in sorted([*asked, *seen, *moved]):
        if kind == 0:
            stage = what
        elif kind == 1:
            stage = moves[stage][what]
        else:
            found[what] = stage
    return found
