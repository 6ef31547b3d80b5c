"""How does the program do? Everything that a program is measured by, for a period, an arm or a policy, from the log.

Every figure says what it is an estimate of, and how sure; what has not had its time is left out, and what cannot be
said is not said, with what would mend it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.actions import Bools, Floats
from optimizer.engine import HOLDOUT
from optimizer.program import DAY, Program
from training import contrasts, dataset, fairness, kpis, lift, record, relevance, wear_out
from training.dataset import Dataset
from training.fairness import Fairness
from training.figures import FEW, Figure, few, mean, missing, share
from training.kpis import IncentiveRow, StageRow
from training.lift import Lifts
from training.record import Record
from training.relevance import Relevance
from training.wear_out import Wear

_FEWEST = 100
"""Matured rounds below which nothing is said of what nudges add."""


class TierRow(msgspec.Struct, frozen=True, kw_only=True):
    """What rewards of one size add over holding, and over the next smaller size where both were possible."""

    ladder: str
    tier: int
    incentives: tuple[str, ...]
    cost: float
    adds: Figure
    over_smaller: Figure


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """From which size on a reward pays: the smallest whose net gain over holding is shown to be above 0.

    `tier` is None where none is shown to pay; `says` puts it in words. Intervals are wide enough for all sizes together
    (Bonferroni).
    """

    ladder: str
    tier: int | None
    adds: Figure
    says: str


class SegmentRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group of customers, as they were at their first decision in the period."""

    attribute: str
    segment: str
    customers: int
    participation: Figure
    reached: Figure
    exposure: Figure
    value: Figure


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """A program measured like a program. Times are seconds since the epoch; `days` is how long things are followed."""

    program: str
    program_title: str
    program_version: str
    goal: str
    currency: str
    since: float
    until: float
    arm: str
    policy: str
    days: float
    level: float
    customers: int
    held_out: int
    decisions: int
    nudges: int
    matured_share: float
    overview: dict[str, Figure]
    churn: dict[str, Figure]
    funnel: tuple[StageRow, ...]
    incentives: tuple[IncentiveRow, ...]
    linked_share: float | None
    lift: Lifts
    tiers: tuple[TierRow, ...]
    thresholds: tuple[Threshold, ...]
    relevance: Relevance | None
    segments: tuple[SegmentRow, ...]
    fairness: Fairness | None
    wear: tuple[Wear, ...]
    notes: tuple[str, ...]

    def to_json(self) -> bytes:
        """Return the whole as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: a period (seconds since the epoch), an arm, a policy, how many days things are followed."""

    since: float | None = None
    until: float | None = None
    arm: str = ""
    policy: str = ""
    days: float | None = None
    level: float = 0.95
    protect: tuple[str, ...] = ()


def scorecard(archive: Path, program: Program, asked: Asked | None = None) -> Scorecard:
    """Measure a program from its archive.

    Raises:
        ValueError: for an archive that is empty or cannot be read, or a period, arm or policy with no decision.
    """
    asked = asked or Asked()
    whole = record.load(archive, program, since=asked.since, until=asked.until)
    days = asked.days or lift.usual_days(whole)
    chosen = _chosen(whole, asked)
    period, level = chosen.in_period(), asked.level
    log = dataset.load(archive, program, arms="judging")
    rows = _rows(log, chosen, asked)
    rounds = log.take(rows)
    worth = _worth(whole, log, rows, asked) if len(rounds) >= _FEWEST else None
    links, goal = kpis.links(chosen), program.event(program.goal)
    reached = _reached(chosen, days=days, level=level)
    return Scorecard(
        program=program.name,
        program_title=program.title,
        program_version=program.version,
        goal=(goal.title if goal else "") or program.goal,
        currency=program.currency,
        since=whole.since,
        until=min(whole.until, whole.log_end),
        arm=asked.arm,
        policy=asked.policy,
        days=days,
        level=level,
        customers=len(period.people),
        held_out=int((whole.arms[whole.in_period().people] == HOLDOUT).sum()),
        decisions=len(period.decided),
        nudges=int(period.decided.shown.sum()),
        matured_share=_matured_share(period),
        overview=kpis.overview(chosen, links, reached=reached, level=level),
        churn=kpis.churn(chosen, days=days, level=level),
        funnel=kpis.funnel(chosen, kpis.in_period(record.visits(chosen), chosen), days=days, level=level),
        incentives=kpis.incentives(chosen, links, days=days, level=level),
        linked_share=links.named,
        lift=lift.lifts(whole, days=days, level=level),
        tiers=worth.tiers if worth else (),
        thresholds=worth.thresholds if worth else (),
        relevance=relevance.relevance(rounds, level=level) if len(rounds) else None,
        segments=_segments(chosen, worth.fairness if worth else None, days=days, level=level),
        fairness=worth.fairness if worth else None,
        wear=worth.wear if worth else (),
        notes=tuple(_notes(period, rounds)),
    )


def _chosen(whole: Record, asked: Asked) -> Record:
    """Return those that the report is about: an arm, a policy's, or all whom the program serves."""
    if asked.policy:
        whole = whole.of_policy(asked.policy)
    if not asked.arm:
        served = whole.of(whole.arms != HOLDOUT)
        return served if len(served.in_period().decided) else whole
    if asked.arm not in (found := sorted(set(whole.arms.tolist()))):
        raise ValueError(f"no customer is in arm {asked.arm!r}: the log has {', '.join(found)}")
    return whole.of(whole.arms == asked.arm)


def _rows(log: Dataset, chosen: Record, asked: Asked) -> Bools:
    """Return which matured rounds (n,) are of the period and of those that the report is about."""
    mine = set(np.asarray(chosen.customers, dtype=np.object_)[chosen.people].tolist())
    people = np.array([name in mine for name in log.customers], dtype=np.bool_)
    loggers = np.array(
        [not asked.policy or asked.policy in (n, n.rpartition("@")[0]) for n in log.loggers], dtype=np.bool_
    )
    at = log.rounds.at
    rows = (at >= chosen.since) & (at < chosen.until)
    if len(log):
        rows &= people[log.rounds.customers] & loggers[log.rounds.loggers]
    return rows


def _matured_share(period: Record) -> float:
    at, horizon = period.decided.at, float(period.program.evaluation_horizon)
    return float((at + horizon <= period.log_end).mean())


def _reached(chosen: Record, *, days: float, level: float) -> Figure:
    found = lift.span(chosen, days=days)
    people = np.zeros(len(chosen.customers), dtype=np.bool_)
    people[chosen.people] = True
    rows = np.flatnonzero(people & found.mature & (chosen.enrolled >= chosen.since) & (chosen.enrolled < chosen.until))
    of = f"share of customers who enrolled in the period that reached the goal within {days:g} days"
    return share(found.reached[rows], rows, of=of, level=level)


class _Worth(NamedTuple):
    """What rests on logged probabilities."""

    tiers: tuple[TierRow, ...]
    thresholds: tuple[Threshold, ...]
    wear: tuple[Wear, ...]
    fairness: Fairness


def _worth(whole: Record, log: Dataset, rows: Bools, asked: Asked) -> _Worth:
    rounds = log.take(rows)
    sizes = _sizes(rounds.program)
    single = contrasts.by_incentive(rounds)
    grouped = [single[:, list(size.incentives)].any(axis=1) for size in sizes]
    found = contrasts.terms(rounds, np.column_stack([single, *grouped]))
    i = single.shape[1]
    alone = contrasts.Terms(found.groups[:, :i], found.hold)
    luck = wear_out.luck_before(log.rounds, single)[rows]
    return _Worth(
        tiers=_tiers(rounds, sizes, found.over_hold[:, i:], level=asked.level),
        thresholds=_thresholds(rounds, sizes, found.over_hold[:, i:], level=asked.level),
        wear=wear_out.wear_out(whole, rounds, alone, luck=luck, level=asked.level),
        fairness=fairness.fairness_gate(rounds, limits=fairness.declared(rounds.program, protect=asked.protect)),
    )


class _Size(NamedTuple):
    """Incentives of one size: on a ladder, or of one tier among all that are on none."""

    ladder: str
    tier: int
    incentives: tuple[int, ...]


def _sizes(program: Program) -> list[_Size]:
    """Return the sizes of reward, the smaller first, ladder by ladder; a ladder of one size compares nothing."""
    found: dict[tuple[str, int], list[int]] = {}
    for i, incentive in enumerate(program.incentives):
        if not incentive.retired:
            found.setdefault((incentive.ladder, incentive.tier), []).append(i)
    sizes = [_Size(ladder, tier, tuple(rows)) for (ladder, tier), rows in sorted(found.items())]
    return [s for s in sizes if sum(other.ladder == s.ladder for other in sizes) > 1]


def _tiers(rounds: Dataset, sizes: Sequence[_Size], gains: Floats, *, level: float) -> tuple[TierRow, ...]:
    return tuple(_tier(rounds, sizes, gains, at=j, level=level) for j in range(len(sizes)))


def _tier(rounds: Dataset, sizes: Sequence[_Size], gains: Floats, *, at: int, level: float) -> TierRow:
    size, program, customers = sizes[at], rounds.program, rounds.rounds.customers
    known = np.isfinite(gains[:, at])
    adds_of = "what it adds over holding, a decision, costs taken off, then the logging policy"
    over_of = "what it adds over the next smaller size, on decisions where both were possible"
    smaller = at - 1 if at and sizes[at - 1].ladder == size.ladder else None
    over = missing("the smallest size", of=over_of, unit="money")
    if smaller is not None:
        both = known & np.isfinite(gains[:, smaller])
        gap = (gains[:, at] - gains[:, smaller])[both]
        over = mean(gap, customers[both], of=over_of, unit="money", level=level)
    names = tuple(program.incentives[i].name for i in size.incentives)
    return TierRow(
        ladder=size.ladder,
        tier=size.tier,
        incentives=names,
        cost=float(np.mean([program.incentives[i].cost for i in size.incentives])),
        adds=mean(gains[known, at], customers[known], of=adds_of, unit="money", level=level),
        over_smaller=over,
    )


def _thresholds(rounds: Dataset, sizes: Sequence[_Size], gains: Floats, *, level: float) -> tuple[Threshold, ...]:
    """Return, ladder by ladder, the smallest size that is shown to pay."""
    found, customers = [], rounds.rounds.customers
    for ladder in dict.fromkeys(size.ladder for size in sizes):
        at = [j for j, size in enumerate(sizes) if size.ladder == ladder]
        wide = 1.0 - (1.0 - level) / len(at)
        adds = []
        for j in at:
            known = np.isfinite(gains[:, j])
            adds.append(mean(gains[known, j], customers[known], of=_PAYS, unit="money", level=wide))
        found.append(_threshold(ladder, [sizes[j].tier for j in at], adds))
    return tuple(found)


def _threshold(ladder: str, tiers: Sequence[int], adds: Sequence[Figure]) -> Threshold:
    paying = next((i for i, figure in enumerate(adds) if figure.above), None)
    if paying is not None:
        says = f"it pays from tier {tiers[paying]} on" if paying else f"it pays from its smallest size, tier {tiers[0]}"
        return Threshold(ladder=ladder, tier=tiers[paying], adds=adds[paying], says=says)
    best = max(adds, key=lambda f: -np.inf if f.value is None else f.value)
    if all(f.below for f in adds):
        return Threshold(
            ladder=ladder, tier=None, adds=best, says="no size pays: each is shown to cost more than it brings"
        )
    why = best.missing or "not enough evidence: no size is shown to bring more than it costs; wait for more decisions"
    return Threshold(ladder=ladder, tier=None, adds=best, says=why)


_PAYS = "what a reward of this size adds over holding, a decision, costs taken off, then the logging policy"


def _segments(chosen: Record, gate: Fairness | None, *, days: float, level: float) -> tuple[SegmentRow, ...]:
    """Return a row for each group of each attribute, as customers were at their first decision in the period."""
    period, found = chosen.in_period(), lift.span(chosen, days=days)
    people, first = np.unique(period.decided.customer, return_index=True)
    happened = period.happened
    steps = happened.customer[happened.did(chosen.program, kinds=("micro", "macro"))]
    mature = found.mature[people] & (chosen.enrolled[people] >= chosen.since)
    judged = {(g.attribute, g.segment): g for g in gate.groups} if gate else {}
    rows = []
    for attribute, (names, codes) in record.segments(chosen.program, period.decided.contexts[first]).items():
        for code, segment in enumerate(names):
            mine = codes == code
            group = judged.get((attribute, segment))
            if not mine.any():
                continue
            rows.append(
                SegmentRow(
                    attribute=attribute,
                    segment=segment,
                    customers=int(mine.sum()),
                    participation=share(
                        np.isin(people[mine], steps), people[mine], of="share with a step in the period", level=level
                    ),
                    reached=share(
                        found.reached[people[mine & mature]],
                        people[mine & mature],
                        of=f"share that reached the goal within {days:g} days of the first decide",
                        level=level,
                    ),
                    exposure=group.exposure if group else missing(_WAIT, of=_EXPOSED, unit="share"),
                    value=group.value if group else missing(_WAIT, of=_GAINED, unit="money"),
                )
            )
    return tuple(rows)


_WAIT = "not enough evidence: too few matured decisions in the period; wait"
_EXPOSED = "chance of a nudge, a decision at which one was allowed"
_GAINED = "what nudging brings over holding, a decision, then the logging policy"


def _notes(period: Record, rounds: Dataset) -> list[str]:
    """Return what is missing from the report, each with what would mend it."""
    found, horizon = [], float(period.program.evaluation_horizon) / DAY
    if len(rounds) < _FEWEST:
        found.append(
            f"What nudges add is not said: {len(rounds):,} matured decisions of {len(period.decided):,} in the period, "
            f"and it takes {_FEWEST}. They mature {horizon:g} days after they are made."
        )
    if len(period.people) < FEW:
        found.append(f"Nearly nothing can be said of {len(period.people)} customers: {few(len(period.people))}.")
    if period.decided.at.max() - period.decided.at.min() < 2 * DAY:
        found.append("All decisions are within two days: nothing can be said of how things change.")
    return found


def figures(card: Scorecard) -> dict[str, Figure]:
    """Return every figure by name, such as `funnel/experience/advanced`: what runs are compared by."""
    found = {**card.overview, **{f"churn/{name}": f for name, f in card.churn.items()}}
    for stage in card.funnel:
        found |= {f"funnel/{stage.stage}/{name}": getattr(stage, name) for name in ("advanced", "dropped", "time")}
        found |= {f"funnel/{stage.stage}/{name}": getattr(stage, name) for name in ("csat", "nps")}
    for row in card.incentives:
        found |= {f"rewards/{row.incentive}/redeemed": row.rate, f"rewards/{row.incentive}/days": row.time}
    for x in (*card.lift.program, *card.lift.arms):
        key = f"lift/{x.arm.removeprefix('the ')}/{x.outcome.replace(' ', '_')}"
        found |= {f"{key}/one_look": x.fixed, f"{key}/any_time": x.always}
    found["lift/cost_per_goal"] = card.lift.cost_per_goal
    for tier in card.tiers:
        key = f"tiers/{tier.ladder or 'others'}/{tier.tier}"
        found |= {f"{key}/adds": tier.adds, f"{key}/over_smaller": tier.over_smaller}
    for pays in card.thresholds:
        found[f"tiers/{pays.ladder or 'others'}/pays"] = pays.adds
    for stage_row in card.relevance.stages if card.relevance else ():
        found[f"relevance/{stage_row.stage}"] = stage_row.moved
    for group in card.segments:
        key = f"segments/{group.attribute}/{group.segment}"
        found |= {f"{key}/{name}": getattr(group, name) for name in ("participation", "reached", "exposure", "value")}
    for wear in card.wear:
        found |= {f"wear/{wear.incentive}/{n}": getattr(wear, n) for n in ("effect", "by_exposure", "by_week")}
    return found


def tables(card: Scorecard) -> dict[str, bytes]:
    """Return the results as the tables that MLflow's UI shows: one of all figures, one of the gate's reasons."""
    columns = ["figure", "value", "low", "high", "unit", "n", "customers", "estimate of", "missing"]
    rows = [[n, f.value, f.low, f.high, f.unit, f.n, f.customers, f.of, f.missing] for n, f in figures(card).items()]
    reasons = [] if card.fairness is None else card.fairness.reasons
    gate = [[c.status, c.code, c.attribute, c.segment, c.text, c.mend] for c in reasons]
    named = ["status", "code", "attribute", "segment", "finding", "mend"]
    points = card.relevance.touch_points if card.relevance else ()
    touched = ["stage", "incentive", "tone", "chance", "moved", "low", "high", "n", "customers", "missing"]
    moved = [
        [p.stage, p.incentive, p.tone, p.chance.value, *(getattr(p.moved, name) for name in ("value", *touched[5:]))]
        for p in points
    ]
    return {
        "tables/relevance.json": msgspec.json.encode({"columns": touched, "data": moved}),
        "tables/figures.json": msgspec.json.encode({"columns": columns, "data": rows}),
        "tables/fairness.json": msgspec.json.encode({"columns": named, "data": gate}),
    }
