"""What is read for a batch, and what does it mean? The questions to `read.lua` and its answers; pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optimizer.customer import Customer
from optimizer.events import Outcome
from optimizer.guardrails import Shared
from optimizer.journey import settle
from optimizer.program import Program
from serving import records, reservations
from serving.calls import Before
from serving.reservations import New, Place


class Wanted(NamedTuple):
    """Whose state is needed for a decision: the customer, the id it will be decided under, and the moment."""

    customer_id: str
    decision_id: str
    at: float


class Turn(NamedTuple):
    """Rows of one turn see the same budget: one shard, one budget period. A batch is decided turn by turn."""

    shard: int
    period: int


class Found(NamedTuple):
    """What was found for one `Wanted`.

    `customer` is settled at the moment asked for; a customer never seen is a new one with `rev` 0. `answer` is what
    was answered under that decision id within the last seven days, if anything: then answer it again and decide
    nothing. `shared` is the same object for all rows of a `turn`. `control` is the revision of pauses and prices.
    """

    customer: Customer
    rev: int
    answer: bytes | None
    shared: Shared
    turn: Turn
    control: int


class Asked(NamedTuple):
    """What to read of one shard: fields of customers, a program's control if any, and plain values."""

    customers: Sequence[str]
    fields: Sequence[str]
    control: str
    values: Sequence[str]


class Read(NamedTuple):
    """What was read: a row of fields a customer, the control, the plain values."""

    customers: list[list[bytes | None]]
    control: dict[bytes, bytes]
    values: list[bytes | None]


def pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the fields of a hash, as the server lists them, by name."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def customer_fields(program: str) -> list[str]:
    """Return the fields of a customer that one program reads."""
    return ["rev", "profile", records.journey_field(program), records.released_field(program)]


def outcome_fields(program: str) -> list[str]:
    """Return the fields of a customer that an outcome needs: what may be corrected, besides."""
    return [*customer_fields(program), records.ledger_field(program)]


def known(program: Program, customer_id: str, fields: Sequence[bytes | None], *, at: float) -> Before:
    """Return a customer from its fields; one never seen is new at `at`."""
    rev, profile, journey, released, *ledger = fields
    customer = records.decode_customer(program, customer_id, journey=journey, profile=profile, at=at)
    place = Place(customer, records.decode_released(released), records.decode_ledger(next(iter(ledger), None)))
    return Before(place, int(rev or 0))


def asked(program: Program, wanted: Sequence[Wanted], *, shard: int) -> Asked:
    """Return what to read of a shard for decisions."""
    name = program.name
    decisions = [records.decision_key(shard, name, w.customer_id, w.decision_id) for w in wanted]
    budgets = [records.shared_key(shard, "budget", name, number) for number in _periods(program, wanted)]
    stocks = [records.shared_key(shard, "stock", name, incentive) for incentive in reservations.stocked(program)]
    return Asked(
        customers=[records.customer_key(shard, w.customer_id) for w in wanted],
        fields=customer_fields(name),
        control=records.shared_key(shard, "control", name),
        values=[*decisions, *budgets, *stocks],
    )


def found(program: Program, wanted: Sequence[Wanted], read: Read, *, shard: int, shards: int) -> Iterator[Found]:
    """Yield what was found for each, from what was read as `asked`."""
    periods = _periods(program, wanted)
    answers, used = read.values[: len(wanted)], [int(value or 0) for value in read.values[len(wanted) :]]
    shared = _shared(program, periods, used, control=read.control, part=(shard, shards))
    control = int(read.control.get(b"rev", 0))
    for w, fields, answer in zip(wanted, read.customers, answers, strict=True):
        before = known(program, w.customer_id, fields, at=w.at)
        number = reservations.period(program, w.at)
        customer = settle(program, before.place.customer, at=w.at)
        yield Found(customer, before.rev, answer, shared[number], Turn(shard, number), control)


def paused(control: Mapping[bytes, bytes]) -> frozenset[str]:
    """Return what a program's control says is paused."""
    return frozenset(f.decode().partition(":")[2] for f in control if f.startswith(b"paused:"))


def news(case: Mapping[int, Outcome], revisions: Mapping[str, int]) -> dict[int, New]:
    """Return the outcomes that are not known in this revision or a higher one."""
    highest, found = dict(revisions), {}
    for i, outcome in case.items():
        before = highest.get(outcome.outcome_id, -1)
        if outcome.revision > before:
            found[i] = New(outcome, first=before < 0)
            highest[outcome.outcome_id] = outcome.revision
    return found


def _periods(program: Program, wanted: Sequence[Wanted]) -> list[int]:
    return sorted({reservations.period(program, w.at) for w in wanted})


def _shared(
    program: Program,
    periods: Sequence[int],
    used: Sequence[int],
    *,
    control: Mapping[bytes, bytes],
    part: tuple[int, int],
) -> dict[int, Shared]:
    """Return what is left in each period, in this part of the shards; `used` has the periods', then each stock's."""

    def left(amount: int, gone: int) -> float:
        return float(max(reservations.part(amount, shard=part[0], shards=part[1]) - gone, 0))

    budget, stocked = program.guardrails.budget, reservations.stocked(program)
    spent, taken = used[: len(periods)], used[len(periods) :]
    stocks = {name: left(stock, gone) for (name, stock), gone in zip(stocked.items(), taken, strict=True)}
    stock = np.array([stocks.get(i.name, np.inf) for i in program.incentives])
    return {
        number: Shared(
            budget=left(budget.minor_amount, gone) if budget else np.inf,
            stock=stock,
            paused=paused(control),
            cost_price=float(control.get(b"price", 0.0)),
        )
        for number, gone in zip(periods, spent, strict=True)
    }
