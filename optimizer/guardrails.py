"""What is allowed now? The mask, and the rule behind every block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optimizer.actions import FACTORS, ActionSpace, Bools, Floats
from optimizer.customer import Cohort, Customer, deliveries, local_day, own_hour, utc_offset
from optimizer.journey import MEMORY
from optimizer.program import DAY, PROMPT, Cadence, Incentive, Program, Tone

Codes = npt.NDArray[np.uint8]

RULES = (
    "allowed",
    "paused",
    "consent",
    "pending",
    "stage",
    "momentum",
    "ladder",
    "comeback",
    "segment",
    "retired",
    "complaint",
    "budget",
    "stock",
    "scarcity",
    "kind_cap",
    "quiet_hours",
    "cap_per_day",
    "cap_per_week",
    "cooldown",
    "cadence",
    "hour",
    "request",
)
"""Every reason for which something is blocked; 0 is none. Where several hold, the first of this list is named."""

_CLOCK = 1e-3
"""Seconds that a sum of times may be off."""

_CODE = {rule: np.uint8(i) for i, rule in enumerate(RULES)}
WEEK = 7


class Request(NamedTuple):
    """What one request asks to be limited to: levels by factor. Empty means no limit."""

    only: Mapping[str, Sequence[str]] = {}
    without: Mapping[str, Sequence[str]] = {}


@dataclass(frozen=True)
class Shared:
    """What all customers share: what is left of the budget and of each stock, and what is paused.

    Args:
        budget: what may still be reserved in this period, minor units; infinite without a budget.
        stock: (incentives,), how many are left; infinite without a stock.
        paused: `"program"`, or an axis level such as `"incentive=coupon"`.
        cost_price: shadow price of a unit of cost in force.
    """

    budget: float
    stock: Floats
    paused: frozenset[str] = frozenset()
    cost_price: float = 0.0

    @classmethod
    def unlimited(cls, program: Program) -> "Shared":
        """Return full budget and stock: nothing reserved yet."""
        budget = program.guardrails.budget
        stock = [np.inf if i.stock is None else float(i.stock) for i in program.incentives]
        return cls(budget=float(budget.minor_amount) if budget else np.inf, stock=np.array(stock))

    def after(self, cost: int, incentive: int) -> "Shared":
        """Return what is left once a nudge is reserved."""
        stock = self.stock.copy()
        stock[incentive] -= 1
        return Shared(budget=self.budget - cost, stock=stock, paused=self.paused, cost_price=self.cost_price)


@dataclass(frozen=True)
class Guarded:
    """Blocks of `n` rows as rule codes, by axis: a nudge is allowed where it, and each of its levels, has code 0.

    Args:
        nudge: (n,), what blocks every nudge.
        incentive, tone, timing: (n, levels), what blocks a level.
        deliver_at: (n, timings), when each timing would deliver, seconds since the epoch.
        day: (n, timings), on which local day.
    """

    nudge: Codes
    incentive: Codes
    tone: Codes
    timing: Codes
    deliver_at: Floats
    day: Floats

    @cached_property
    def mask(self) -> Bools:
        """Shape (n, k): what is allowed. Hold always is."""
        free = (self.incentive == 0)[:, :, None, None] & (self.tone == 0)[:, None, :, None]
        cells = (free & (self.timing == 0)[:, None, None, :]).reshape(len(self.nudge), -1)
        mask = np.ones((len(cells), 1 + cells.shape[1]), dtype=np.bool_)
        mask[:, 1:] = cells & (self.nudge == 0)[:, None]
        return mask

    def blocks(self, space: ActionSpace) -> list[dict[str, str]]:
        """Return the rule by axis level, a dict a row: `{"nudge": "consent"}`, `{"timing=now": "quiet_hours"}`."""
        found = [{"nudge": RULES[code]} if code else {} for code in self.nudge.tolist()]
        axes = (self.incentive, self.tone, self.timing)
        for factor, names, codes in zip(FACTORS, space.factors, axes, strict=True):
            keys = [f"{factor}={name}" for name in names]
            rows, levels = np.nonzero(codes)
            for row, level, code in zip(rows.tolist(), levels.tolist(), codes[rows, levels].tolist(), strict=True):
                found[row][keys[level]] = RULES[code]
        return found


class _Blocks:
    """Rules being collected, and what each blocks: the first rule to block a cell names it."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._rules: list[tuple[np.uint8, Bools | np.bool_]] = []

    def add(self, rule: str, where: Bools | np.bool_) -> None:
        self._rules.append((_CODE[rule], where))

    def codes(self) -> Codes:
        """Return the code of each cell: written from the last rule to the first, which so has the last word."""
        codes = np.zeros(self._shape, dtype=np.uint8)
        for code, where in reversed(self._rules):
            np.copyto(codes, code, where=where)
        return codes


def allowed(program: Program, cohort: Cohort, *, shared: Shared, requests: Sequence[Request] | None = None) -> Guarded:
    """Apply every guardrail to customers (n,), each at the moment it asks.

    Args:
        program: declares the guardrails.
        cohort: the customers.
        shared: what is left and what is paused: the same for all rows.
        requests: a limit for each row, if any.
    """
    n = len(cohort)
    deliver_at, locally = deliveries(program, cohort)
    day = np.floor(locally / DAY)
    nudge = _Blocks(n)
    if "program" in shared.paused:
        nudge.add("paused", np.True_)
    nudge.add("consent", ~cohort.consented)
    nudge.add("pending", (cohort.sent_at > cohort.at[:, None]).any(axis=1))
    axes = {
        "incentive": _incentives(program, cohort, shared=shared, day=day),
        "tone": _tones(program, cohort),
        "timing": _timings(program, cohort, deliver_at=deliver_at, locally=locally, day=day),
    }
    for level in shared.paused - {"program"}:
        factor, _, name = level.partition("=")
        names = program.space.factors[FACTORS.index(factor)]
        axes[factor][:, [i for i, x in enumerate(names) if x == name]] = _CODE["paused"]
    for row, request in enumerate(requests or ()):
        if request.only or request.without:
            _limit(program, axes, row=row, request=request)
    if program.guardrails.cadence is not None and program.off_beat.any():
        _quick_wins(program, cohort, axes)
    return Guarded(nudge=nudge.codes(), deliver_at=deliver_at, day=day, **axes)


def _incentives(program: Program, cohort: Cohort, *, shared: Shared, day: Floats) -> Codes:
    incentives = program.incentives
    blocks = _Blocks(len(cohort), len(incentives))
    blocks.add("stage", ~program.incentive_stages[cohort.stage])
    if program.min_momentum.any():
        blocks.add("momentum", cohort.momentum[:, None] < program.min_momentum)
    if len(program.upper_rungs):
        blocks.add("ladder", _too_high(program, cohort))
    if program.has_comebacks:
        blocks.add("comeback", _not_away(program, cohort))
    _bar(blocks, program, cohort, levels=incentives)
    complained = cohort.paused_until > cohort.at
    if complained.any():
        blocks.add("complaint", complained[:, None] & program.promotional)
    for rule, out in (("budget", program.minor_costs > shared.budget), ("stock", shared.stock < 1)):
        if out.any():
            blocks.add(rule, out)
    caps = program.weekly_caps
    if caps.rules:
        week = (cohort.sent_day > day.min(axis=1, initial=np.inf)[:, None] - WEEK) & (cohort.sent_incentive >= 0)
        full = (caps.counted[:, cohort.sent_incentive] & week).sum(axis=2) >= caps.most[:, None]  # (caps, n)
        for rule, reached, counted in zip(caps.rules, full, caps.counted, strict=True):
            blocks.add(rule, reached[:, None] & counted)
    return blocks.codes()


def _bar(blocks: _Blocks, program: Program, cohort: Cohort, *, levels: Sequence[Incentive] | Sequence[Tone]) -> None:
    """Block what is barred from a segment that the customer is in, and what is retired."""
    segments = [level.barred_segments for level in levels]
    if any(segments):
        blocks.add("segment", _segments(program, cohort, segments))
    _retire(blocks, [level.retired for level in levels])


def _retire(blocks: _Blocks, retired: Sequence[bool]) -> None:
    if any(retired):
        blocks.add("retired", np.array(retired))


def _too_high(program: Program, cohort: Cohort) -> Bools:
    """Shape (n, incentives): the rung below has not been tried, or not for long enough, or it has sufficed.

    Tried is what was delivered within the ladder's memory; it has sufficed where a macro-action came after.
    """
    below, above, ladder = program.rungs_below, program.upper_rungs, program.guardrails.ladder
    age = cohort.at[:, None] - cohort.sent_at
    in_vain = (age >= ladder.waits) & (age <= ladder.memory) & (cohort.sent_at > cohort.last_macro[:, None])
    in_vain &= cohort.sent_incentive >= 0
    high = np.zeros((len(cohort), len(below)), dtype=np.bool_)
    high[:, above] = ~(below[above][:, cohort.sent_incentive] & in_vain).any(axis=2).T
    return high


def _not_away(program: Program, cohort: Cohort) -> Bools:
    """Shape (n, incentives): a comeback for somebody who took a step lately, or never took one."""
    away = cohort.at - cohort.last_step
    return np.isfinite(program.comebacks) & ((away[:, None] < program.comebacks) | np.isinf(away)[:, None])


def _tones(program: Program, cohort: Cohort) -> Codes:
    blocks = _Blocks(len(cohort), len(program.tones))
    blocks.add("stage", ~program.tone_stages[cohort.stage])
    _bar(blocks, program, cohort, levels=program.tones)
    return blocks.codes()


def _timings(program: Program, cohort: Cohort, *, deliver_at: Floats, locally: Floats, day: Floats) -> Codes:
    rules = program.guardrails
    blocks = _Blocks(*deliver_at.shape)
    _retire(blocks, [t.retired for t in program.timings])
    minute = locally % DAY / 60.0
    blocks.add("quiet_hours", _within(minute, rules.quiet_from, rules.quiet_until))
    apart = day[:, :, None] - cohort.sent_day[:, None, :]  # (n, timings, w)
    counts = cohort.sent_day[:, None, :] >= 0
    blocks.add("cap_per_day", ((apart == 0) & counts).sum(axis=2) >= rules.cap_per_day)
    blocks.add("cap_per_week", ((np.abs(apart) < WEEK) & counts).sum(axis=2) >= rules.cap_per_week)
    last = cohort.sent_at.max(axis=1, initial=-np.inf)
    blocks.add("cooldown", deliver_at - last[:, None] < rules.cooldown)
    if rules.cadence is not None:
        beat = cohort.last_beat
        current = cohort.at - beat <= _rhythm_lasts(rules.cadence)
        blocks.add("cadence", current[:, None] & _off_beat(deliver_at - beat[:, None], rules.cadence))
        if rules.cadence.hour_within is not None:
            blocks.add("hour", _apart(minute, cohort.own_hour[:, None]) > rules.cadence.hour_within + _CLOCK)
    return blocks.codes()


def _apart(minute: Floats, hour: Floats) -> Floats:
    """Return seconds between minutes and hours of the day, the shorter way round; NaN where an hour is unknown."""
    ahead = (minute * 60.0 - hour * 3600.0) % DAY
    return np.minimum(ahead, DAY - ahead)


def _quick_wins(program: Program, cohort: Cohort, axes: Mapping[str, Codes]) -> None:
    """Let what may come off the beat come at once after an event that asks for it, and then nothing else.

    Only the cadence gives way. A cell is allowed where each of its levels is, so that where a quick win may come off
    the beat, everything that may not is blocked for this decision, on the beat as well.
    """
    incentives, timings = axes["incentive"], axes["timing"]
    since = cohort.at - cohort.triggered
    waits = (timings == _CODE["cadence"]) | (timings == _CODE["hour"])
    lifted = waits & program.prompt & ((since >= 0) & (since <= PROMPT))[:, None]
    wins = (incentives == 0) & program.off_beat
    rows = lifted.any(axis=1) & wins.any(axis=1)
    timings[rows[:, None] & lifted] = 0
    incentives[rows[:, None] & ~program.off_beat & (incentives == 0)] = _CODE["cadence"]


def is_off_beat(program: Program, customer: Customer, *, at: float, deliver_at: float) -> bool:
    """Whether a nudge, decided at a moment, comes outside the rhythm: then the rhythm goes on without it."""
    last = max((s.deliver_at for s in customer.sent if not s.off_beat), default=-math.inf)
    return bool(are_off_beat(program, np.array(last), at=np.array(at), deliver_at=np.array(deliver_at)))


def are_off_beat(program: Program, last_beat: Floats, *, at: Floats, deliver_at: Floats) -> Bools:
    """Shape (n,): `is_off_beat` for customers whose last nudge on the beat was or will be delivered at `last_beat`."""
    cadence = program.guardrails.cadence
    if cadence is None:
        return np.zeros(np.shape(last_beat), dtype=np.bool_)
    current = at - last_beat <= _rhythm_lasts(cadence)
    return np.asarray(current & _off_beat(deliver_at - last_beat, cadence))


def _rhythm_lasts(cadence: Cadence) -> float:
    """How long after a nudge, in seconds, the rhythm still binds the next; then it starts anew."""
    return max(MEMORY, cadence.every + cadence.within)


def _off_beat(gap: Floats, cadence: Cadence) -> Bools:
    """Whether gaps in seconds are further from a whole number of beats, one or more, than the cadence allows."""
    beats = np.maximum(np.round(np.where(np.isfinite(gap), gap, 0.0) / cadence.every), 1.0)
    return np.abs(gap - beats * cadence.every) > cadence.within + _CLOCK


def _within(minute: Floats, start: int, end: int) -> Bools:
    """Whether minutes of the day fall in [start, end), a span that may cross midnight; none where start == end."""
    if start <= end:
        return (minute >= start) & (minute < end)
    return (minute >= start) | (minute < end)


def _segments(program: Program, cohort: Cohort, barred: Sequence[Mapping[str, Sequence[str]]]) -> Bools:
    """Shape (n, levels): the customer is in a segment (attribute, category) that the level is barred from."""
    hits = np.zeros((len(cohort), len(barred)), dtype=np.bool_)
    known = {a.name: a for a in program.attributes}
    for level, segments in enumerate(barred):
        for name, categories in segments.items():
            codes = [known[name].categories.index(c) for c in categories]
            hits[:, level] |= np.isin(cohort.attributes[name], codes)
    return hits


def _limit(program: Program, axes: Mapping[str, Codes], *, row: int, request: Request) -> None:
    for factor, names in zip(FACTORS, program.space.factors, strict=True):
        asked, unwanted = request.only.get(factor), request.without.get(factor, ())
        refused = np.array([(asked is not None and n not in asked) or n in unwanted for n in names])
        codes = axes[factor][row]
        codes[refused & (codes == 0)] = _CODE["request"]


def next_eligible(program: Program, customer: Customer, *, at: float) -> float | None:
    """Return when caps, cooldown and a pending nudge will next let this customer be nudged at once; None if now.

    Quiet hours and the rhythm are included, but not that a quick win may come off the beat; budget, stock, consent and
    pauses are not: nobody knows when they end.
    """
    rules = program.guardrails
    zone = customer.time_zone or rules.time_zone
    if rules.cap_per_day == 0 or rules.cap_per_week == 0 or customer.consent is False:
        return None
    moment = max([at, *(s.deliver_at + rules.cooldown for s in customer.sent)])
    for _ in range(64):
        earlier, moment = moment, _postponed(program, customer, at=moment, offset=utc_offset(zone, moment))
        if moment == earlier:
            break
    return None if moment <= at else moment


def _postponed(program: Program, customer: Customer, *, at: float, offset: float) -> float:
    """Return `at`, or the next beat, the next local day or the end of the quiet hours where a rule blocks it."""
    rules = program.guardrails
    last = max((s.deliver_at for s in customer.sent if not s.off_beat), default=-math.inf)
    cadence = rules.cadence
    if cadence is not None and at - last <= _rhythm_lasts(cadence) and _off_beat(np.array(at - last), cadence):
        beat = last + max(math.ceil((at - last) / cadence.every), 1) * cadence.every
        return min(beat - cadence.within, last + _rhythm_lasts(cadence) + _CLOCK)
    day = local_day(at, offset)
    days = [s.day for s in customer.sent]
    full = days.count(day) >= rules.cap_per_day or sum(abs(day - d) < WEEK for d in days) >= rules.cap_per_week
    midnight = (day + 1) * DAY - offset
    if full:
        return midnight
    minute = np.array([(at + offset) % DAY / 60.0])
    if _within(minute, rules.quiet_from, rules.quiet_until)[0]:
        end = day * DAY + int(rules.quiet_until) * 60.0 - offset
        return end if end > at else end + DAY
    return _own_time(program, customer, at=at, offset=offset)


def _own_time(program: Program, customer: Customer, *, at: float, offset: float) -> float:
    """Return `at`, or when the customer's own hour comes next where the cadence keeps to it."""
    cadence = program.guardrails.cadence
    within = None if cadence is None else cadence.hour_within
    hour = None if within is None else own_hour(program, customer, at=at)
    if (
        hour is None
        or within is None
        or _apart(np.array((at + offset) % DAY / 60.0), np.array(hour)) <= within + _CLOCK
    ):
        return at
    return at + (hour * 3600.0 - within - (at + offset)) % DAY
