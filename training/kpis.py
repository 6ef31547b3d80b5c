"""What do customers do in a program? The funnel by stage, surveys, participation, redemption, and signs of leaving."""

from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from optimizer.actions import Floats, Ints
from optimizer.program import DAY, Program
from training import survival
from training.figures import Figure, counted, mean, missing, share
from training.record import Record, Visits

_FELL = 0.1
"""By how much momentum, 0 to 1, has to fall to count as falling."""


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """The journey through one stage. Shares are of the visits that began early enough to be followed to the end."""

    stage: str
    title: str
    customers: int
    visits: int
    followed: int
    advanced: Figure
    dropped: Figure
    time: Figure
    csat: Figure
    nps: Figure


class IncentiveRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the nudges with one incentive."""

    incentive: str
    title: str
    shown: int
    redeemed: int
    cost: float
    rate: Figure
    time: Figure


class Links(NamedTuple):
    """Which nudge each redemption was of: rows of `decided`, the times, and the share that named the nudge itself."""

    nudges: Ints
    at: Floats
    named: float | None


def named(program: Program, word: str) -> str:
    """Return the declared signal whose name has a word in it, such as `survey_csat` for `csat`; empty for none."""
    return next((e.name for e in program.events if e.kind == "signal" and word in e.name), "")


def in_period(stays: Visits, record: Record) -> Visits:
    """Return the visits that began in the period."""
    return stays.take((stays.start >= record.since) & (stays.start < record.until))


def funnel(record: Record, stays: Visits, *, days: float, level: float) -> tuple[StageRow, ...]:
    """Return a row for each stage: who came, who moved on, who fell back, and how long it took."""
    return tuple(_stage(record, stays, i, days=days, level=level) for i in range(len(record.program.stages)))


def _stage(record: Record, stays: Visits, stage: int, *, days: float, level: float) -> StageRow:
    about, mine = record.program.stages[stage], stays.take(stays.stage == stage)
    who, start, end, lapsed = mine.customer, mine.start, mine.end, mine.lapsed
    followed, soon = start + days * DAY <= record.log_end, (mine.to >= 0) & (end < start + days * DAY)
    span = f"within {days:g} days of entering {about.title}"
    left, people = survival.curve(end - start, mine.to >= 0, who), who[followed]
    return StageRow(
        stage=about.name,
        title=about.title,
        customers=len(np.unique(who)),
        visits=len(who),
        followed=int(followed.sum()),
        advanced=share((soon & ~lapsed)[followed], people, of=f"share of visits that move on {span}", level=level),
        dropped=share((soon & lapsed)[followed], people, of=f"share of visits that fall back {span}", level=level),
        time=survival.median(left, of=f"days by which half have left {about.title}", level=level),
        csat=satisfaction(record, stage=stage, level=level),
        nps=recommendation(record, stage=stage, level=level),
    )


class _Answers(NamedTuple):
    customer: Ints
    value: Floats


def _answers(record: Record, word: str, *, stage: int | None) -> _Answers:
    """Return what was answered to a survey in the period, by customers in a stage as their last decision saw it."""
    inside = record.in_period()
    rows = np.flatnonzero(inside.happened.did_event(record.program, named(record.program, word)))
    who, at, value = inside.happened.customer[rows], inside.happened.at[rows], inside.happened.value[rows]
    kept = np.isfinite(value)
    if stage is not None:
        kept &= record.stage_at(who, at) == stage
    return _Answers(who[kept], value[kept])


def satisfaction(record: Record, *, stage: int | None = None, level: float) -> Figure:
    """Return the mean score of the satisfaction survey among those who answered."""
    of = "mean satisfaction of those who answered; who did not answer is unknown"
    if not named(record.program, "csat"):
        return missing(_undeclared("csat"), of=of, unit="score")
    found = _answers(record, "csat", stage=stage)
    return mean(found.value, found.customer, of=of, unit="score", level=level)


def recommendation(record: Record, *, stage: int | None = None, level: float) -> Figure:
    """Return the net promoter score: the share that answers 9 or 10 less the share that answers 0 to 6, times 100."""
    of = "net promoter score of those who answered; who did not answer is unknown"
    if not named(record.program, "nps"):
        return missing(_undeclared("nps"), of=of, unit="score")
    found = _answers(record, "nps", stage=stage)
    votes = np.where(found.value >= 9, 1.0, np.where(found.value <= 6, 0.0, 0.5))
    scaled = share(votes, found.customer, of=of, level=level)  # stays within the scale, alike answers or not
    if scaled.value is None:
        return replace(scaled, unit="score")
    value, low, high = (200.0 * (x or 0.0) - 100.0 for x in (scaled.value, scaled.low, scaled.high))
    return replace(scaled, unit="score", value=value, low=low, high=high)


def overview(record: Record, links: Links, *, reached: Figure, level: float) -> dict[str, Figure]:
    """Return the headline figures of the period."""
    inside, people = record.in_period(), record.in_period().people
    steps = inside.happened.customer[inside.happened.did(record.program, kinds=("micro", "macro"))]
    redeemers = record.decided.customer[links.nudges[(links.at >= record.since) & (links.at < record.until)]]
    found = {
        "participation": share(
            np.isin(people, steps), people, of="share of customers with a step in the period", level=level
        ),
        "redeemers": _share_of(
            record, "redeem", redeemers, of="share of customers with a redeemed nudge in the period", level=level
        ),
        "reached_goal": reached,
        "csat": satisfaction(record, level=level),
        "nps": recommendation(record, level=level),
    }
    for word in ("csat", "nps"):
        answered = _answers(record, word, stage=None).customer
        of = f"share of customers who answered {named(record.program, word) or word}"
        found[f"{word}_responses"] = counted(len(answered), of="answers in the period")
        found[f"{word}_response_rate"] = _share_of(record, word, answered, of=of, level=level)
    return found


_SIGNALS = {"redeem": "redeemed", "complain": "complaint", "csat": "survey_csat", "nps": "survey_nps"}


def _share_of(record: Record, word: str, who: Ints, *, of: str, level: float) -> Figure:
    """Return the share of the period's customers who gave a signal; not known where the program has no such signal."""
    if not named(record.program, word):
        return missing(_undeclared(word), of=of, unit="share")
    people = record.in_period().people
    return share(np.isin(people, who), people, of=of, level=level)


def _undeclared(word: str) -> str:
    return f"the program declares no signal such as {_SIGNALS[word]}"


def churn(record: Record, *, days: float, level: float) -> dict[str, Figure]:
    """Return signs that customers are leaving: said, shown by silence, or on the way."""
    inside = record.in_period()
    people, happened = inside.people, inside.happened
    complained = happened.did_event(record.program, named(record.program, "complain"))
    before, now = _momentum(inside)
    both = np.isfinite(before) & np.isfinite(now)
    change = (now - before)[both]
    who = np.flatnonzero(both)
    halves = "from the first to the second half of the period, of customers decided for in both"
    return {
        "unsubscribed": share(
            np.isin(people, happened.customer[happened.left]),
            people,
            of="share of customers who asked for no more nudges",
            level=level,
        ),
        "complained": _share_of(
            record, "complain", happened.customer[complained], of="share of customers who complained", level=level
        ),
        "inactive": _inactive(record, days=days, level=level),
        "falling_momentum": share(
            change < -_FELL, who, of=f"share whose momentum fell by more than {_FELL:g} {halves}", level=level
        ),
        "momentum_change": mean(change, who, of=f"mean change of momentum {halves}", unit="score", level=level),
    }


def _inactive(record: Record, *, days: float, level: float) -> Figure:
    """Return who took no step in the last days of the period, of those who had been here that long."""
    end = min(record.until, record.log_end)
    since = end - days * DAY
    happened, people = record.happened, np.unique(record.decided.customer)
    people = people[record.enrolled[people] <= since]
    steps = happened.did(record.program, kinds=("micro", "macro")) & (happened.at >= since) & (happened.at <= end)
    of = f"share of customers of {days:g} days and more without a step in the last {days:g} days"
    return share(~np.isin(people, happened.customer[steps]), people, of=of, level=level)


def _momentum(inside: Record) -> tuple[Floats, Floats]:
    """Return each customer's mean momentum when decided for, in the first and in the second half; NaN for none."""
    decided = inside.decided
    momentum = decided.contexts[:, inside.program.features.index("momentum")]
    middle = (inside.since + min(inside.until, inside.log_end)) / 2.0
    n = len(inside.customers)
    halves = []
    for rows in (decided.at < middle, decided.at >= middle):
        counts = np.bincount(decided.customer[rows], minlength=n)
        with np.errstate(invalid="ignore"):
            halves.append(np.bincount(decided.customer[rows], weights=momentum[rows], minlength=n) / counts)
    return halves[0], halves[1]


def links(record: Record) -> Links:
    """Join each redemption with a nudge: the one that it names, or else the customer's latest before it."""
    decided, happened = record.decided, record.happened
    rows = np.flatnonzero(happened.did_event(record.program, named(record.program, "redeem")))
    places = {
        (c, i): row for row, (c, i) in enumerate(zip(decided.customer.tolist(), decided.ids.tolist(), strict=True))
    }
    pairs = list(zip(happened.customer[rows].tolist(), happened.decision_id[rows].tolist(), strict=True))
    direct = np.array([places.get(pair, -1) for pair in pairs], dtype=np.intp)
    direct[direct >= 0] = np.where(decided.shown[direct[direct >= 0]], direct[direct >= 0], -1)
    nudges = np.where(direct >= 0, direct, _latest(record, happened.customer[rows], happened.at[rows]))
    known = nudges >= 0
    share_named = float((direct >= 0).mean()) if len(rows) else None
    return Links(nudges[known], happened.at[rows][known], share_named)


def _latest(record: Record, customer: Ints, at: Floats) -> Ints:
    """Shape (m,): the row of the customer's latest delivered nudge at each moment; -1 for none."""
    decided = record.decided
    shown = np.flatnonzero(decided.shown)
    shown = shown[np.lexsort((decided.deliver_at[shown], decided.customer[shown]))]
    if not len(shown):
        return np.full(len(at), -1, dtype=np.intp)
    instants = np.unique(np.concatenate([decided.deliver_at[shown], at]))
    width = len(instants) + 1
    keys = decided.customer[shown] * width + np.searchsorted(instants, decided.deliver_at[shown])
    place = np.searchsorted(keys, customer * width + np.searchsorted(instants, at), side="right") - 1
    found = shown[np.maximum(place, 0)]
    rows: Ints = np.where((place >= 0) & (decided.customer[found] == customer), found, -1)
    return rows


def incentives(record: Record, links: Links, *, days: float, level: float) -> tuple[IncentiveRow, ...]:
    """Return what became of the nudges of each incentive: shown in the period, followed to the end of the log."""
    decided = record.decided
    first = np.full(len(decided), np.inf)
    np.minimum.at(first, links.nudges, links.at)
    here = decided.shown & (decided.deliver_at >= record.since) & (decided.deliver_at < record.until)
    here &= decided.deliver_at <= record.log_end
    return tuple(
        _incentive(record, np.flatnonzero(here & (decided.incentive == i)), first, i, days=days, level=level)
        for i in range(len(record.program.incentives))
    )


def _incentive(record: Record, rows: Ints, first: Floats, i: int, *, days: float, level: float) -> IncentiveRow:
    decided, about = record.decided, record.program.incentives[i]
    start = decided.deliver_at[rows]
    happened = np.isfinite(first[rows])
    durations = np.maximum(np.where(happened, first[rows], record.log_end) - start, 0.0)
    found = survival.curve(durations, happened, decided.customer[rows])
    rate_of = f"share of its nudges redeemed within {days:g} days of delivery"
    time_of = f"days by which half of the redemptions within {days:g} days have come"
    undeclared = _undeclared("redeem")
    known = bool(named(record.program, "redeem"))
    return IncentiveRow(
        incentive=about.name,
        title=about.title,
        shown=len(rows),
        redeemed=int(happened.sum()),
        cost=float(decided.cost[rows].sum()),
        rate=survival.by(found, days * DAY, of=rate_of, level=level)
        if known
        else missing(undeclared, of=rate_of, unit="share"),
        time=survival.median(found, of=time_of, within=days * DAY, level=level)
        if known
        else missing(undeclared, of=time_of, unit="days"),
    )
