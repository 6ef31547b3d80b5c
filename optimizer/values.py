"""What is each stage worth, worked back from the goal ("reverse chronology"), and how sure are we?

A day in a stage is worth what it earns and what it leads to; a small step is worth what it adds to the chance of the
goal. Transitions come from the log, or, until there is one, from what the program `expects`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

import numpy as np

from optimizer.actions import Bools, Floats
from optimizer.customer import Customer, new_customer
from optimizer.journey import follow, settle
from optimizer.program import DAY, LAPSE, Program

REPLICATES = 400
"""How many times customers are reweighted for an interval."""

_MOST_REMEMBERED = 0.999
"""Largest discount per day: at 1 a customer who never leaves would be worth infinitely much."""


class Happened(NamedTuple):
    """Something a customer did; or, where `event` is None, a moment at which it was seen."""

    customer_id: str
    at: float
    event: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class Statistics:
    """What customers did, in days: `g` groups of whole customers, `s` stages, `e` declared events.

    Groups are what intervals are made from: customers differ, days of one customer are alike. Statistics of different
    customers add up.

    Args:
        days: (g, s, s), days that began in a stage and ended in another, or the same.
        goals: (g, s, s), of these, days on which the goal was reached.
        lapses: (g, s), days on which customers lapsed out of a stage.
        events: (g, s, e), days on which an event happened.
        rewards: (g, s), what all events of those days were worth, in reward units.
        customers: (g,), how many there were.
    """

    days: Floats
    goals: Floats
    lapses: Floats
    events: Floats
    rewards: Floats
    customers: Floats

    def plus(self, other: "Statistics") -> "Statistics":
        """Return the statistics of the customers of both, each in its own groups."""
        return Statistics(
            **{f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        )


class Estimate(NamedTuple):
    """A number a stage, or an event, with the interval it lies in; NaN where nothing is known. Shapes (s,) or (e,)."""

    value: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class JourneyValues:
    """What the stages and steps of a journey are worth, `s` stages and `e` events.

    Args:
        source: "log", "declared" (from what the program expects) or "unknown" (from nothing: all values are NaN).
        horizon: within how many days chances are meant.
        values: (s,), what a customer in a stage is worth, in reward units, discounted; NaN where none was seen.
        chances: (s,), the chance to reach the goal within the horizon.
        stays: (s,), how many days a customer stays. drop_offs: (s,), share of those who leave that lapse.
        worths: (e,), what an event adds to the chance of the goal by where it leads; NaN where it leads nowhere.
        adds: (s, e), the same from each stage. flows: (s, s), share of the days in a stage that end in another.
        days: (s,), customer-days seen. customers: how many customers they are of.
    """

    source: str
    horizon: int
    values: Estimate
    chances: Estimate
    stays: Estimate
    drop_offs: Estimate
    worths: Estimate
    adds: Floats
    flows: Floats
    days: Floats
    customers: int


def collect(program: Program, happened: Iterable[Happened], *, until: float, groups: int = 500) -> Statistics:
    """Let the log pass once more, customer by customer and day by day.

    Days are counted from when a customer was first seen; a day that is not over by `until` does not count. Lapses,
    moves and streaks are those of `journey`, so the stages are those that decisions were made in.

    Args:
        program: declares what events do.
        happened: in any order; events that the program does not know are left out.
        until: when the log ends, seconds since the epoch.
        groups: into how many groups customers are put, by a hash of their id.
    """
    s, e = len(program.stages), len(program.events)
    shapes = {"days": (s, s), "goals": (s, s), "lapses": (s,), "events": (s, e), "rewards": (s,), "customers": ()}
    sums = {name: np.zeros((groups, *shape)) for name, shape in shapes.items()}
    for customer_id, theirs in groupby(sorted(happened, key=lambda h: (h.customer_id, h.at)), lambda h: h.customer_id):
        group = int.from_bytes(blake2b(customer_id.encode(), digest_size=8).digest(), "big") % groups
        sums["customers"][group] += 1
        _relive(program, list(theirs), until=until, sums={name: sum_[group] for name, sum_ in sums.items()})
    kept = sums["customers"] > 0
    return Statistics(**{name: sum_[kept] for name, sum_ in sums.items()})


def _relive(program: Program, theirs: list[Happened], *, until: float, sums: Mapping[str, Floats]) -> None:
    first = theirs[0].at
    customer = new_customer(program, theirs[0].customer_id, at=first)
    known = (h for h in theirs if h.event in program.event_index)
    by_day = {day: list(some) for day, some in groupby(known, lambda h: int((h.at - first) // DAY))}
    for day in range(int((until - first) // DAY)):
        begun, today = settle(program, customer, at=first + day * DAY), by_day.get(day, [])
        customer, lapsed = _day(program, begun, today, end=first + (day + 1) * DAY)
        a, b = program.stage_index[begun.stage], program.stage_index[customer.stage]
        sums["days"][a, b] += 1
        sums["goals"][a, b] += any(h.event == program.goal for h in today)
        sums["lapses"][a] += lapsed and a != b
        for name in {str(h.event) for h in today}:
            sums["events"][a, program.event_index[name]] += 1
        sums["rewards"][a] += sum(_worth(program, h) for h in today)


def _day(program: Program, customer: Customer, today: list[Happened], *, end: float) -> tuple[Customer, bool]:
    """Return the customer after a day, and whether it lapsed out of the stage that the day began in."""
    began, lapsed = customer.stage, False
    for h in today:
        settled = settle(program, customer, at=h.at)
        lapsed |= customer.stage == began != settled.stage
        customer = follow(program, settled, str(h.event), at=h.at, value=h.value)
    settled = settle(program, customer, at=end)
    return settled, lapsed or customer.stage == began != settled.stage


def _worth(program: Program, happened: Happened) -> float:
    event = program.events[program.event_index[str(happened.event)]]
    return event.value * (happened.value or 0.0) if event.scaled else event.value


@dataclass(frozen=True)
class _Chain:
    """Shares of days, `b` courses of `s` stages: (b, s, s) or (b, s), as in `Statistics`."""

    moves: Floats
    goals: Floats
    lapses: Floats
    rewards: Floats


def journey_values(
    program: Program,
    statistics: Statistics | None = None,
    *,
    horizon: int = 30,
    level: float = 0.95,
    prior: float = 1.0,
) -> JourneyValues:
    """Work back from the goal what stages and steps are worth, with intervals from reweighting customers.

    Intervals are percentiles of the Bayesian bootstrap (Rubin 1981) over groups of customers, by a counter-based
    generator that is keyed by the statistics: the same log gives the same interval. They say how sure the averages of
    the past are; that a step leads on for those who take it does not say that it would for those who do not.

    Args:
        program: declares discount, goal and moves, and what it expects.
        statistics: of the log; None for what the program expects alone, which has no interval.
        horizon: within how many days the goal counts for chances.
        level: of the intervals.
        prior: pseudo-days in each stage that stay there and earn nothing, as in `journey.stage_values`.
    """
    if statistics is None or not len(statistics.days):
        everywhere = np.ones(len(program.stages), dtype=np.bool_)
        courses = _courses(program, _expected(program), _events(program), horizon=horizon, seen=everywhere)
        if any(stage.expects for stage in program.stages):
            return _judged(courses, source="declared", horizon=horizon, level=level)
        unknown = _Courses(*(np.full_like(x, np.nan) for x in courses))
        return _judged(unknown._replace(moves=courses.moves), source="unknown", horizon=horizon, level=level)
    weights = _weights(statistics)
    chain = _averaged(statistics, weights, prior=prior)
    days = statistics.days.sum(axis=(0, 2))
    courses = _courses(program, chain, _sums(weights, statistics.events), horizon=horizon, seen=days > 0)
    judged = _judged(courses, source="log", horizon=horizon, level=level)
    moves = statistics.days.sum(axis=0)
    drop_offs = _never_certain(judged.drop_offs, moves.sum(axis=1) - moves.diagonal(), level=level)
    return replace(judged, drop_offs=drop_offs, days=days, customers=int(statistics.customers.sum()))


def _never_certain(shares: Estimate, seen: Floats, *, level: float) -> Estimate:
    """Widen shares (s,) that were 0 or 1 of all that was seen (s,), which no reweighting moves: Clopper-Pearson's end.

    >>> nobody = Estimate(*np.zeros((3, 1)))
    >>> _never_certain(nobody, np.array([59.0]), level=0.95).high.round(3).tolist()  # 1 - 0.05^(1/59)
    [0.05]
    """
    unseen = (1.0 - level) ** (1.0 / np.maximum(seen, 1.0))
    low = np.where((shares.low == 1.0) & (shares.high == 1.0), unseen, shares.low)
    high = np.where((shares.low == 0.0) & (shares.high == 0.0), 1.0 - unseen, shares.high)
    return Estimate(shares.value, low, high)


def _weights(statistics: Statistics) -> Floats:
    """Shape (b, g): how much each group counts; first all alike, then by chance, 1 on average."""
    digest = blake2b(digest_size=16)
    for f in fields(statistics):
        digest.update(np.ascontiguousarray(getattr(statistics, f.name), dtype="<f8").tobytes())
    chance = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))
    drawn = chance.standard_exponential((REPLICATES, len(statistics.days)))
    return np.concatenate([np.ones((1, drawn.shape[1])), drawn / drawn.mean(axis=1, keepdims=True)])


def _sums(weights: Floats, counts: Floats) -> Floats:
    """Shape (b, ...): counts (g, ...) summed over groups."""
    return (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])


def _averaged(statistics: Statistics, weights: Floats, *, prior: float) -> _Chain:
    moves = _sums(weights, statistics.days) + prior * np.eye(statistics.days.shape[1])
    days = moves.sum(axis=2)
    return _Chain(
        moves=moves / days[:, :, None],
        goals=_sums(weights, statistics.goals) / days[:, :, None],
        lapses=_sums(weights, statistics.lapses) / days,
        rewards=_sums(weights, statistics.rewards) / days,
    )


def _expected(program: Program) -> _Chain:
    """Return what the program expects of a day, b = 1: who moves where, reaches the goal, lapses, earns how much."""
    s = len(program.stages)
    moves, goals, lapses, rewards = np.zeros((s, s)), np.zeros((s, s)), np.zeros(s), np.zeros(s)
    for a, stage in enumerate(program.stages):
        for name, share in stage.expects.items():
            event, to = program.event(name), stage.name
            if event is not None:
                to = event.moves.get(stage.name, stage.name)
                rewards[a] += share * event.value
            elif name == LAPSE and stage.lapses_to:
                to = stage.lapses_to
                lapses[a] += share
            else:
                raise ValueError(f"stages[{stage.name}].expects: {name!r} is not declared")
            b = program.stage_index[to]
            goals[a, b] += share * (name == program.goal)
            moves[a, b] += share * (a != b)
        moves[a, a] = 1.0 - moves[a].sum()
    return _Chain(moves[None], goals[None], lapses[None], rewards[None])


def _events(program: Program) -> Floats:
    """Shape (1, s, e): which share of customers the program expects to do an event on a day."""
    rows = [[s.expects.get(e.name, 0.0) for e in program.events] for s in program.stages]
    return np.array([rows])


class _Courses(NamedTuple):
    """What may have been: `b` courses, of which the first is what was; (b, s), (b, e), (b, s, e) or (b, s, s)."""

    values: Floats
    chances: Floats
    stays: Floats
    drop_offs: Floats
    worths: Floats
    adds: Floats
    moves: Floats


def _courses(program: Program, chain: _Chain, events: Floats, *, horizon: int, seen: Bools) -> _Courses:
    s = len(program.stages)
    gamma = min(program.discount, _MOST_REMEMBERED)
    values = np.linalg.solve(np.eye(s) - gamma * chain.moves, chain.rewards[..., None])  # V = r + gamma P V
    chances = np.where(seen, _chances(chain, horizon=horizon), np.nan)
    leaving = 1.0 - chain.moves[:, range(s), range(s)]
    moving = (program.moves != np.arange(s)[:, None]) & np.array([e.name != program.goal for e in program.events])
    adds = np.where(moving, chances[:, program.moves] - chances[:, :, None], np.nan)
    weights = np.where(np.isfinite(adds), events + 1e-9, 0.0)  # all alike where nobody did it
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Courses(
            values=np.where(seen, values[..., 0], np.nan),
            chances=chances,
            stays=np.where(leaving > 0.0, 1.0 / leaving, np.nan),
            drop_offs=np.where(leaving > 0.0, chain.lapses / leaving, np.nan),
            worths=(weights * np.nan_to_num(adds)).sum(axis=1) / weights.sum(axis=1),
            adds=adds,
            moves=chain.moves,
        )


def _chances(chain: _Chain, *, horizon: int) -> Floats:
    """Shape (b, s): the goal within so many days; `C = g + (P without the days of the goal) C`, from C = 0."""
    reached = chain.goals.sum(axis=2)
    onwards = chain.moves - chain.goals
    chances: Floats = np.zeros_like(reached)
    for _ in range(horizon):
        chances = reached + (onwards @ chances[..., None])[..., 0]
    return chances


def _judged(courses: _Courses, *, source: str, horizon: int, level: float) -> JourneyValues:
    def estimate(rows: Floats) -> Estimate:
        if len(rows) == 1:
            return Estimate(rows[0], np.full_like(rows[0], np.nan), np.full_like(rows[0], np.nan))
        low, high = np.quantile(rows[1:], [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
        return Estimate(rows[0], low, high)

    return JourneyValues(
        source=source,
        horizon=horizon,
        values=estimate(courses.values),
        chances=estimate(courses.chances),
        stays=estimate(courses.stays),
        drop_offs=estimate(courses.drop_offs),
        worths=estimate(courses.worths),
        adds=courses.adds[0],
        flows=courses.moves[0],
        days=np.zeros(courses.values.shape[1]),
        customers=0,
    )
