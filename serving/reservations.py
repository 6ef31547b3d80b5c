"""What does a decision or an outcome do to what is reserved? Reserve, commit, release; pure functions.

A nudge reserves its caps (in the customer's `sent`), its cost in the budget of the period and its stock when it is
decided. `not_shown` releases them; any other outcome that names the decision settles them. What expires stays
reserved, unless the program reports what is shown: then it is released, and a nudge that is shown after all is
reserved again and counted as overrun.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from optimizer.customer import Customer, Sent, local_day, utc_offset
from optimizer.events import Decision, Outcome
from optimizer.guardrails import is_off_beat
from optimizer.hearing import Ledger, hear
from optimizer.journey import MEMORY, receive, release
from optimizer.program import Program

UNLIMITED = 2**53
"""More than anything is worth: the end of an interval that has none."""


class Resource(NamedTuple):
    """Something that runs out: the `budget` of a period, or the `stock` of an incentive."""

    kind: str
    name: str


class Claim(NamedTuple):
    """A condition and a reservation: with `low <= left < high` left of a resource, `take` from it.

    `limit` is what there is in all: cost in minor units, stock in pieces.
    """

    resource: Resource
    limit: int
    low: int
    high: int
    take: int


class Move(NamedTuple):
    """A reservation changed afterwards: `amount` more is used of a resource, less if negative."""

    resource: Resource
    amount: int


class Place(NamedTuple):
    """A customer in a program, with the nudges whose reservation was released, in case they are shown late.

    The ledger has the outcomes that may still be corrected; it is read where outcomes are written.
    """

    customer: Customer
    released: tuple[Sent, ...] = ()
    ledger: Ledger = Ledger()


class Effect(NamedTuple):
    """What an outcome leads to: the place after it, what moves, and a nudge that was shown after its release."""

    place: Place
    moves: tuple[Move, ...] = ()
    overrun: Sent | None = None


def period(program: Program, at: float) -> int:
    """Return the number of the budget period that a moment falls in; 0 without a budget."""
    budget = program.guardrails.budget
    return int(at // budget.period) if budget and budget.period else 0


def part(amount: int, *, shard: int, shards: int) -> int:
    """Return a shard's part of an amount: parts add up to it, and differ by one at most.

    >>> [part(8, shard=s, shards=3) for s in range(3)]
    [3, 3, 2]
    """
    return amount // shards + (shard < amount % shards)


def budget_resource(number: int) -> Resource:
    """Return the budget of a period."""
    return Resource("budget", str(number))


def stock_resource(incentive: str) -> Resource:
    """Return the stock of an incentive."""
    return Resource("stock", incentive)


def claims(program: Program, decision: Decision, *, shard: int = 0, shards: int = 1) -> Iterator[Claim]:
    """Yield what must hold of each shared resource for the decision's whole mask to be in force, and what it takes.

    The budget must still pay for the dearest incentive that was allowed, and still not for the cheapest that the
    budget blocked; a stock that allowed an incentive must still have one, an empty one must still be empty.
    """
    blocked = decision.blocked
    if program.guardrails.budget:
        limit = part(program.guardrails.budget.minor_amount, shard=shard, shards=shards)
        rules = tuple(map(blocked.get, _levels(program.space.incentives)))
        low, high = _paid(tuple(program.minor_costs.tolist()), rules)
        yield Claim(budget_resource(period(program, decision.at)), limit, low, high, decision.cost)
    if not (counted := stocked(program)):
        return
    taken = decision.action_name.partition("/")[0] if decision.action else ""
    for name, stock in counted.items():
        rule = blocked.get(f"incentive={name}")
        if rule in (None, "stock"):
            limit = part(stock, shard=shard, shards=shards)
            low, high = (1, UNLIMITED) if rule is None else (-UNLIMITED, 1)
            yield Claim(stock_resource(name), limit, low, high, int(name == taken))


@lru_cache(maxsize=4096)
def _paid(costs: tuple[int, ...], rules: tuple[str | None, ...]) -> tuple[int, int]:
    """Return what the budget must still pay for, and what no more, given the rule that blocks each incentive."""
    low = max([cost for cost, rule in zip(costs, rules, strict=True) if rule is None], default=0)
    high = min([cost for cost, rule in zip(costs, rules, strict=True) if rule == "budget"], default=UNLIMITED)
    return max(low, 0), min(high, UNLIMITED)


@lru_cache(maxsize=64)
def _levels(incentives: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"incentive={name}" for name in incentives)


def reserve(program: Program, customer: Customer, decision: Decision) -> Customer:
    """Return the customer once a decision is committed: a nudge counts for caps and cooldown from now on."""
    if decision.deliver_at is None:
        return customer
    zone = customer.time_zone or program.guardrails.time_zone
    sent = Sent(
        decision_id=decision.decision_id,
        incentive=decision.action_name.partition("/")[0],
        deliver_at=decision.deliver_at,
        day=local_day(decision.deliver_at, utc_offset(zone, decision.deliver_at)),
        cost=decision.cost,
        period=period(program, decision.at),
        expires_at=decision.deliver_at + program.guardrails.expires_after,
        off_beat=is_off_beat(program, customer, at=decision.at, deliver_at=decision.deliver_at),
    )
    return receive(program, customer, sent)


class New(NamedTuple):
    """An outcome to keep; `first` where no revision of it was known."""

    outcome: Outcome
    first: bool


def after(program: Program, place: Place, new: New) -> Effect:
    """Return what a new outcome leads to; ValueError if the program does not know its event.

    A correction moves the customer as if it had been right from the start (`optimizer.hearing`), and so does one that
    says whether the nudge was shown. A `not_shown` that is taken back reserves the nudge again; a `shown` that is taken
    back changes nothing, for it may have been seen.
    """
    outcome = new.outcome
    heard = hear(program, place.customer, place.ledger, outcome=outcome, first=new.first)
    place = place._replace(customer=heard.customer, ledger=heard.ledger)
    if outcome.decision_id is None:
        return Effect(place)
    if outcome.revoked:
        back = not new.first and outcome.event == "not_shown"
        return _shown(program, place, outcome.decision_id) if back else Effect(place)
    if outcome.event == "not_shown":
        return released(program, place, outcome.decision_id, settled=not new.first)
    return _shown(program, place, outcome.decision_id)


def released(program: Program, place: Place, decision_id: str, *, settled: bool = False) -> Effect:
    """Return the place once a nudge is released; unchanged if it is unknown, or settled unless that is taken back."""
    sent = _find(place.customer.sent, decision_id)
    if sent is None or (sent.settled and not settled):
        return Effect(place)
    remembered = tuple(s for s in place.released if s.deliver_at >= sent.deliver_at - MEMORY)
    customer = release(program, place.customer, decision_id)
    return Effect(
        place._replace(customer=customer, released=(*remembered, sent)), tuple(_moves(program, sent, sign=-1))
    )


def expired(program: Program, place: Place, decision_id: str) -> Effect:
    """Return the place once a nudge has expired that nobody reported as shown: released, if they are reported."""
    return released(program, place, decision_id) if program.guardrails.reports_shown else Effect(place)


def _shown(program: Program, place: Place, decision_id: str) -> Effect:
    customer = place.customer
    if (sent := _find(customer.sent, decision_id)) is not None:
        settled = tuple(replace(s, settled=True) if s is sent else s for s in customer.sent)
        return Effect(place._replace(customer=replace(customer, sent=settled)))
    if (late := _find(place.released, decision_id)) is None:
        return Effect(place)
    customer = receive(program, customer, replace(late, settled=True))
    rest = tuple(s for s in place.released if s is not late)
    return Effect(place._replace(customer=customer, released=rest), tuple(_moves(program, late, sign=1)), overrun=late)


def _find(nudges: tuple[Sent, ...], decision_id: str) -> Sent | None:
    return next((s for s in nudges if s.decision_id == decision_id), None)


def _moves(program: Program, sent: Sent, *, sign: int) -> Iterator[Move]:
    if program.guardrails.budget and sent.cost:
        yield Move(budget_resource(sent.period), sign * sent.cost)
    if stocked(program).get(sent.incentive) is not None:
        yield Move(stock_resource(sent.incentive), sign)


def stocked(program: Program) -> Mapping[str, int]:
    """Return the incentives that can run out, and how many there are."""
    return {i.name: i.stock for i in program.incentives if i.stock is not None}
