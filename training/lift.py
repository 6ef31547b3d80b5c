"""Does the whole program help? Customers it serves against customers it always holds, over a fixed span of days.

Arms are assigned by customer, by chance, before the first decision, so the difference of their means is the effect of
the program: of being in it from the first decide on, whatever was sent. One term a customer, in the order of
enrolment, once the customer's span has passed: who is still within it is left out, whatever happened so far.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from scipy.special import stdtrit

from optimizer.actions import Bools, Floats, Ints
from optimizer.engine import CHALLENGER, CHAMPION, EVALUATION, HOLDOUT
from optimizer.program import DAY, Program
from training import sequence
from training.figures import FEW, Figure, Unit, few, mean, missing, share
from training.record import Names, Record
from training.sequence import Looks, Terms

SERVED = (CHAMPION, CHALLENGER, EVALUATION)
"""The arms that the program decides for."""

PROGRAM, REACHED, WORTH = "the program", "reached the goal", "worth"
_POINTS = 120


class Span(NamedTuple):
    """What became of each customer (customers,) within the days from the first decide, by customer.

    `reached`: 1 where the goal was reached. `goals`: how often. `worth`: event values less costs. `cost`: money.
    `mature`: the span has passed.
    """

    reached: Floats
    goals: Floats
    worth: Floats
    cost: Floats
    mature: Bools


class Range(NamedTuple):
    """The declared range of an outcome: what lies beyond it is cut off, and said to be."""

    low: float
    high: float


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The interval when so many customers had matured: all looks hold at once."""

    customers: int
    low: float
    high: float


class Lift(msgspec.Struct, frozen=True, kw_only=True):
    """The mean of an outcome for the customers of an arm, less that of the held-out.

    `fixed` has the interval for one look at an end that was fixed beforehand; `always` the one that holds at every look
    at once, so that it may be read every day. `looks` is its course.
    """

    arm: str
    outcome: str
    served: Figure
    held: Figure
    fixed: Figure
    always: Figure
    looks: tuple[Look, ...] = ()
    cut: float = 0.0


class Lifts(msgspec.Struct, frozen=True, kw_only=True):
    """The lift of the program and of each arm; `missing` says why there is none."""

    days: float
    horizon: str
    enrolled: dict[str, int]
    matured_share: float
    program: tuple[Lift, ...] = ()
    arms: tuple[Lift, ...] = ()
    cost_per_goal: Figure
    missing: str = ""


def span(record: Record, *, days: float) -> Span:
    """Add up each customer's outcomes and costs in the days from the first decide."""
    program, happened, decided, n = record.program, record.happened, record.decided, len(record.customers)
    end = record.enrolled + days * DAY
    inside = (happened.event >= 0) & (happened.at >= record.enrolled[happened.customer])
    inside &= happened.at < end[happened.customer]
    events = happened.take(inside)
    values = np.array([e.value for e in program.events])[events.event]
    scaled = np.array([e.scaled for e in program.events], dtype=np.bool_)[events.event]
    worth = values * np.where(scaled, np.nan_to_num(events.value), 1.0)
    reached = (events.event == program.event_index[program.goal]).astype(np.float64)
    goals = _sums(events.customer, reached, n)
    soon = decided.at < end[decided.customer]
    cost = _sums(decided.customer[soon], decided.cost[soon], n)
    total = _sums(events.customer, worth, n) - cost
    return Span((goals > 0).astype(np.float64), goals, total, cost, end <= record.log_end)


def _sums(customer: Ints, amounts: Floats, n: int) -> Floats:
    return np.bincount(customer, weights=amounts, minlength=n).astype(np.float64)


def usual_days(record: Record) -> float:
    """Return the span to compare over where none is asked for: two weeks, or less in a short log."""
    passed = (record.log_end - max(record.since, float(record.enrolled.min()))) / DAY
    least = float(record.program.evaluation_horizon) / DAY
    return float(max(min(14.0, np.floor(passed / 2.0)), least))


def declared_range(program: Program, *, days: float) -> Range:
    """Return the range of a customer's worth where none is declared, by the program alone, before any look.

    At the top each step that is worth something once a day, and each goal once; at the bottom each event that costs
    something once, and the dearest nudge as often as the caps allow.
    """
    times = {"micro": days, "macro": 1.0, "signal": 1.0}
    values = [(e.value, times[e.kind]) for e in program.events if not e.scaled]
    dearest = max((i.cost for i in program.incentives), default=0.0)
    low = sum(v for v, _ in values if v < 0) - dearest * program.guardrails.cap_per_week * days / 7.0
    high = sum(v * often for v, often in values if v > 0)
    return Range(low, high if high > low else low + 1.0)


def lifts(record: Record, *, days: float | None = None, level: float = 0.95, worth_range: Range | None = None) -> Lifts:
    """Compare the customers that the program serves, and those of each arm, with the held-out.

    Args:
        record: the whole log; customers who enrolled in its period are compared.
        days: the span from the first decide; see `usual_days`.
        level: of the intervals, each.
        worth_range: the range of a customer's worth; see `declared_range`.
    """
    days = usual_days(record) if days is None else days
    found = span(record, days=days)
    enrolled = (record.enrolled >= record.since) & (record.enrolled < record.until)
    counts = {arm: n for arm in (*SERVED, HOLDOUT) if (n := int((enrolled & (record.arms == arm)).sum()))}
    rows = np.flatnonzero(enrolled & found.mature)
    rows = rows[np.argsort(record.enrolled[rows], kind="stable")]
    arms = record.arms[rows]
    goal = record.program.event(record.program.goal)
    says = f"{goal.title or goal.name if goal else record.program.goal}, within {days:g} days of the first decide"
    cost_of = f"money spent for each further goal that the program brings over the holdout ({says})"
    why = _why_not(record, arms == HOLDOUT, days=days, enrolled=counts.get(HOLDOUT, 0))
    whole = Lifts(
        days=days,
        horizon=says,
        enrolled=counts,
        matured_share=len(rows) / max(int(enrolled.sum()), 1),
        cost_per_goal=missing(why, of=cost_of, unit="money"),
        missing=why,
    )
    if why:
        return whole
    worths = worth_range or declared_range(record.program, days=days)
    return msgspec.structs.replace(
        whole,
        program=(
            compare(found.reached[rows], arms, arm=PROGRAM, outcome=REACHED, bounds=Range(0.0, 1.0), level=level),
            compare(found.worth[rows], arms, arm=PROGRAM, outcome=WORTH, bounds=worths, level=level),
        ),
        arms=tuple(
            compare(found.reached[rows], arms, arm=arm, outcome=REACHED, bounds=Range(0.0, 1.0), level=level)
            for arm in SERVED
            if counts.get(arm) and len(counts) > 2
        ),
        cost_per_goal=cost_per_goal(found.cost[rows], found.goals[rows], arms == HOLDOUT, of=cost_of, level=level),
    )


def _why_not(record: Record, held: Bools, *, days: float, enrolled: int) -> str:
    declared = record.program.experiment.holdout
    if not enrolled and declared:
        return (
            f"nobody who enrolled in the period was held out, though {declared:.0%} should be: wait for more customers"
        )
    if not enrolled:
        return (
            "nobody was held out, so nothing can be said of the whole program: declare experiment.holdout = 0.1 in the "
            "program, and customers who come from then on will show it"
        )
    for number, who in ((int(held.sum()), "held-out customers"), (int((~held).sum()), "served customers")):
        if number < FEW:
            return f"{few(number, what=who)} to have been here for {days:g} days"
    return ""


def compare(y: Floats, arms: Names, *, arm: str, outcome: str, bounds: Range, level: float = 0.95) -> Lift:
    """Return the difference of means of an outcome between the customers of an arm and the held-out.

    Args:
        y: (n,), the outcome. arms: (n,), of each customer, in the order of enrolment.
        arm: one of them, or the whole program.
        outcome: what it is called.
        bounds: its range, declared before looking; the anytime-valid interval is for the outcome cut to that.
        level: of each interval.
    """
    rows = np.flatnonzero(np.isin(arms, [HOLDOUT, *(SERVED if arm == PROGRAM else [arm])]))
    y, held = y[rows], arms[rows] == HOLDOUT
    kept: Floats = y.clip(bounds.low, bounds.high)
    unit: Unit = "points" if outcome == REACHED else "money"
    says = {"of": f"{outcome}, a customer: {arm} less the holdout", "n": len(y), "customers": len(y), "level": level}
    course = looks(kept, held, bounds=bounds, level=level)
    fixed = welch(y[~held], y[held], level=level)
    always = Figure(
        unit=unit,
        value=_gap(kept, held),
        low=float(course.low[-1]),
        high=float(course.high[-1]),
        **says,  # type: ignore[arg-type]
    )
    return Lift(
        arm=arm,
        outcome=outcome,
        served=_mean_of(y[~held], of=f"{outcome}: {arm}", unit="share" if outcome == REACHED else unit, level=level),
        held=_mean_of(y[held], of=f"{outcome}: the holdout", unit="share" if outcome == REACHED else unit, level=level),
        fixed=Figure(unit=unit, value=_gap(y, held), low=fixed.low, high=fixed.high, **says),  # type: ignore[arg-type]
        always=always,
        looks=_course(course),
        cut=float((y != kept).mean()),
    )


def _gap(y: Floats, held: Bools) -> float:
    return float(y[~held].mean() - y[held].mean())


def _mean_of(y: Floats, *, of: str, unit: Unit, level: float) -> Figure:
    customers = np.arange(len(y))
    if unit == "share":
        return share(y, customers, of=of, level=level)
    return mean(y, customers, of=of, unit=unit, level=level)


def _course(found: Looks) -> tuple[Look, ...]:
    """Thin out the looks for a picture: the last one is always there."""
    n = len(found.low)
    places = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(np.intp))
    return tuple(Look(customers=i + 1, low=float(found.low[i]), high=float(found.high[i])) for i in places.tolist())


def welch(one: Floats, other: Floats, *, level: float = 0.95) -> Range:
    """Return the interval for a difference of means of two arms of different spread (Welch, 1947).

    >>> found = welch(np.array([1.0, 3.0]), np.array([0.0, 0.0]), level=0.5)  # 2, error 1, one degree of freedom
    >>> round(found.low, 6), round(found.high, 6)
    (1.0, 3.0)
    """
    parts = [float(x.var(ddof=1)) / len(x) for x in (one, other)]
    error2 = sum(parts)
    spread = sum(v**2 / (len(x) - 1) for v, x in zip(parts, (one, other), strict=True))
    degrees = error2**2 / spread if spread > 0 else 1.0
    reach = float(stdtrit(degrees, 0.5 + level / 2)) * float(np.sqrt(error2))
    gap = float(one.mean() - other.mean())
    return Range(gap - reach, gap + reach)


def cost_per_goal(cost: Floats, goals: Floats, held: Bools, *, of: str, level: float = 0.95) -> Figure:
    """Return what a further goal costs: a ratio of differences, with Fieller's interval (1954).

    Where the interval of the goals that the program adds holds 0, no cost for each can be said, however large.

    Args:
        cost, goals: (n,), of each customer. held: (n,), who is held out.
        of: what it is an estimate of.
        level: of the interval.
    """
    n = len(cost)
    dy, dx = _gap(cost, held), _gap(goals, held)
    z2 = float(stdtrit(n - 2, 0.5 + level / 2)) ** 2
    vyy, vxx, vxy = (
        sum(float(np.cov(a[m], b[m])[0, 1]) / int(m.sum()) for m in (held, ~held))
        for a, b in ((cost, cost), (goals, goals), (cost, goals))
    )
    bend = dx**2 - z2 * vxx
    if dx <= 0 or bend <= 0:
        why = f"cannot say: the program brings {dx:+.3f} goals a customer, and the interval of that holds 0"
        if dx > 0:
            more = z2 * vxx / dx**2 - 1.0
            why += f"; about {more * n:,.0f} more customers would show an effect of this size"
        return missing(why, of=of, unit="money", n=n)
    middle = (dx * dy - z2 * vxy) / bend
    root = float(np.sqrt(max((dx * dy - z2 * vxy) ** 2 - bend * (dy**2 - z2 * vyy), 0.0))) / bend
    return Figure(
        of=of, unit="money", value=dy / dx, low=middle - root, high=middle + root, level=level, n=n, customers=n
    )


def looks(y: Floats, held: Bools, *, bounds: Range, level: float = 0.95) -> Looks:
    """Return the interval for the difference of means after each customer (n,), all of them at once.

    Each arm has a confidence sequence of its own, of level 1 - (1 - level) / 2; both hold at once, and so does the
    difference of their ends.
    """
    each = 1.0 - (1.0 - level) / 2.0
    ends = {}
    for arm, mine in (("served", ~held), ("held", held)):
        scaled = (y[mine] - bounds.low) / (bounds.high - bounds.low)
        found = sequence.looks(
            Terms(scaled, 1.0 - scaled), np.arange(len(scaled)), low=bounds.low, high=bounds.high, level=each
        )
        so_far = np.cumsum(mine)  # how many of the arm had matured at each look
        ends[arm] = Looks(
            np.concatenate([[bounds.low], found.low])[so_far], np.concatenate([[bounds.high], found.high])[so_far]
        )
    return Looks(ends["served"].low - ends["held"].high, ends["served"].high - ends["held"].low)
