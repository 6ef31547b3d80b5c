"""Who is asking? A customer's attributes, consent and place on the journey, and what of it a policy sees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import numpy.typing as npt

from optimizer.actions import Bools, Floats, Ints
from optimizer.events import Scalar
from optimizer.program import DAY, Attribute, Program

WEEK_SLOTS = 32
"""How many recent nudges are remembered: the largest cap per week."""

_QUARTER = 900.0
"""Zone offsets only ever change on a quarter of an hour."""

Columns = Mapping[str, npt.NDArray[np.generic]]

HALF_LIFE = 28 * DAY
"""After so long half of the steps that taught a customer's own hour are forgotten."""

LEAST_STEPS, LEAST_AGREEMENT = 2.5, 0.5
"""From how many steps an hour is learned, and how well they must agree: 1 at one hour, 0 at all hours alike."""

_OMITTED = np.empty(0)

_NUMBER = bool | int | float


class Decayed(msgspec.Struct, frozen=True, array_like=True):
    """A decayed count: what it was at a time. Adding to it in any order gives the same.

    >>> Decayed(1.0, 0.0).plus(1.0, at=10.0, half_life=10.0)
    Decayed(level=1.5, since=10.0)
    >>> Decayed(1.0, 10.0).plus(1.0, at=0.0, half_life=10.0)
    Decayed(level=1.5, since=10.0)
    """

    level: float = 0.0
    since: float = 0.0

    def at(self, time: float, *, half_life: float) -> float:
        """Return the level at a time; a time before `since` reads as `since`."""
        return float(self.level * 2.0 ** (-max(time - self.since, 0.0) / half_life))

    def plus(self, amount: float, *, at: float, half_life: float) -> "Decayed":
        """Return the count with something added at a time, before or after the others."""
        if at >= self.since:
            return Decayed(self.at(at, half_life=half_life) + amount, at)
        return Decayed(self.level + amount * 2.0 ** (-(self.since - at) / half_life), self.since)


class Streak(msgspec.Struct, frozen=True, array_like=True):
    """Days in a row: how many up to `day`, and the most there ever were.

    >>> Streak().on(7).on(8).on(8), Streak(2, 8, 2).on(10)
    (Streak(days=2, day=8, longest=2), Streak(days=1, day=10, longest=2))
    """

    days: int = 0
    day: int = -1
    longest: int = 0

    def on(self, day: int) -> "Streak":
        """Return the streak with a step on a day; one on an earlier day changes nothing."""
        if day <= self.day:
            return self
        days = self.days + 1 if day == self.day + 1 else 1
        return Streak(days, day, max(days, self.longest))


class Hours(msgspec.Struct, frozen=True, array_like=True):
    """At which time of day a customer takes steps: a decayed sum of points on the clock's face.

    >>> evenings = Hours()
    >>> for day in range(3):
    ...     evenings = evenings.plus(18.0, at=day * DAY)
    >>> round(evenings.hour(at=2 * DAY), 3), Hours().plus(18.0, at=0.0).hour(at=0.0)
    (18.0, None)
    """

    x: float = 0.0
    y: float = 0.0
    steps: float = 0.0
    since: float = 0.0

    def plus(self, hour: float, *, at: float) -> "Hours":
        """Return the sum with a step at an hour of the customer's own clock; a late report counts as much as it has."""
        fade, late = 2.0 ** (-max(at - self.since, 0.0) / HALF_LIFE), 2.0 ** (-max(self.since - at, 0.0) / HALF_LIFE)
        angle = hour * math.tau / 24.0
        x, y = self.x * fade + math.cos(angle) * late, self.y * fade + math.sin(angle) * late
        return Hours(x, y, self.steps * fade + late, max(at, self.since))

    def hour(self, *, at: float) -> float | None:
        """Return the mean hour (circular), or None where steps are too few or come at all hours."""
        steps = self.steps * 2.0 ** (-max(at - self.since, 0.0) / HALF_LIFE)
        if steps < LEAST_STEPS or math.hypot(self.x, self.y) < LEAST_AGREEMENT * self.steps:
            return None
        return math.atan2(self.y, self.x) * 24.0 / math.tau % 24.0


class Trigger(msgspec.Struct, frozen=True, array_like=True):
    """What asks for the next decision at once: the event, when it happened, and why.

    The event is empty where time alone asks: a step that was missed, or an anniversary.
    """

    event: str
    at: float
    reason: Literal["quick_win", "comeback", "milestone", "signal"]


class Statement(msgspec.Struct, frozen=True, array_like=True):
    """That a customer agrees to be nudged, or does not; `id` is a digest of the outcome's."""

    id: bytes
    at: float
    agrees: bool


class Said(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What was so before the statements of consent that can still be taken back, and these as they came."""

    before: bool | None = None
    statements: tuple[Statement, ...] = ()


UNSAID = Said()
"""Nothing that could be taken back."""


class Sent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A nudge that this customer received or is about to: what caps, cooldown and reservations look at."""

    decision_id: str
    incentive: str
    deliver_at: float
    day: int
    cost: int
    period: int
    expires_at: float
    settled: bool = False
    off_beat: bool = False


class Customer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One customer in one program. `consent` is None while nobody has said; times are seconds since the epoch.

    `days` is how many whole days it is since the start, kept where an anniversary asks for it; everything that fell due
    by `asked_at` has asked for a decision by itself.
    """

    customer_id: str
    enrolled_at: float
    stage: str
    consent: bool | None = None
    time_zone: str = ""
    attributes: dict[str, Scalar] = {}
    steps: Decayed = Decayed()
    nudges: Decayed = Decayed()
    streak: int = 0
    streak_day: int = -1
    counts: dict[str, int] = {}
    sent: tuple[Sent, ...] = ()
    last_step_at: float | None = None
    promotion_paused_until: float = 0.0
    last_macro_at: float | None = None
    last_step: str = ""
    longest_streak: int = 0
    streaks: dict[str, Streak] = {}
    hours: Hours = Hours()
    trigger: Trigger | None = None
    days: int = 0
    asked_at: float = 0.0
    said: Said = UNSAID


@dataclass(frozen=True)
class Cohort:
    """Customers as columns, at the moment each asks: what guardrails and `encode` read. `n` rows.

    Args:
        at: (n,), when each asks.
        stage: (n,), index into the program's stages.
        momentum, dosage: (n,), 0 to 1.
        streak: (n,), days in a row with a micro-action.
        consented: (n,), after the program's default.
        zone: (n,), index into `zones`.
        sent_at: (n, w), when recent nudges were or will be delivered; -inf where there is none.
        sent_day: (n, w), their local day number; -1 where there is none.
        sent_incentive: (n, w), their incentive's index; -1 where there is none or it is gone.
        paused_until: (n,), promotional incentives are paused until then.
        attributes: a column for each attribute: number or flag as float64 with NaN for unknown; category as its index
            with -1 for unknown.
        zones: the IANA names that occur.
        last_step: (n,), when each took its last micro- or macro-action; -inf for never, and where omitted.
        last_macro: (n,), when each took its last macro-action; likewise.
        triggered: (n,), when each did what asks for a decision at once; -inf for never, and where omitted.
        last_beat: (n,), when the last nudge that keeps the rhythm was delivered; the last nudge where omitted.
        own_hour: (n,), the hour of day at which each takes steps; NaN for unknown, and where omitted.
    """

    at: Floats
    stage: Ints
    momentum: Floats
    dosage: Floats
    streak: Floats
    consented: Bools
    zone: Ints
    sent_at: Floats
    sent_day: Ints
    sent_incentive: Ints
    paused_until: Floats
    attributes: Columns
    zones: tuple[str, ...]
    last_step: Floats = field(default_factory=lambda: _OMITTED)
    last_macro: Floats = field(default_factory=lambda: _OMITTED)
    triggered: Floats = field(default_factory=lambda: _OMITTED)
    last_beat: Floats = field(default_factory=lambda: _OMITTED)
    own_hour: Floats = field(default_factory=lambda: _OMITTED)

    def __post_init__(self) -> None:
        for name in ("last_step", "last_macro", "triggered"):
            if getattr(self, name) is _OMITTED:
                object.__setattr__(self, name, np.full(len(self), -np.inf))
        if self.last_beat is _OMITTED:
            object.__setattr__(self, "last_beat", self.sent_at.max(axis=1, initial=-np.inf))
        if self.own_hour is _OMITTED:
            object.__setattr__(self, "own_hour", np.full(len(self), np.nan))

    def __len__(self) -> int:
        return len(self.at)

    @cached_property
    def local(self) -> Floats:
        """Shape (n,): seconds on each customer's own clock, when each asks."""
        return self.at + self.offsets(self.at)

    def take(self, rows: Ints | slice) -> "Cohort":
        """Return some of the customers."""
        whole = ("attributes", "zones")
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in whole}
        attributes = {name: column[rows] for name, column in self.attributes.items()}
        return Cohort(**columns, attributes=attributes, zones=self.zones)

    def offsets(self, times: Floats) -> Floats:
        """Return local time minus UTC, in seconds, of each customer at given times, (n,) or (n, m)."""
        if len(self.zones) == 1:
            return _offsets(self.zones[0], times)
        offsets = np.empty(times.shape)
        for code in np.unique(self.zone).tolist():
            rows = self.zone == code
            offsets[rows] = _offsets(self.zones[code], times[rows])
        return offsets


def share(decayed: Floats) -> Floats:
    """Map a decayed count (n,) to 0..1: 0 for none, a half for one just now, towards 1 for many.

    >>> share(np.array([0.0, 1.0, 3.0])).tolist()
    [0.0, 0.5, 0.875]
    """
    return 1.0 - np.exp2(-decayed)


def new_customer(program: Program, customer_id: str, *, at: float) -> Customer:
    """Return a customer at the start of the journey."""
    return Customer(customer_id=customer_id, enrolled_at=at, stage=program.stages[0].name)


@lru_cache(maxsize=65_536)
def _offset(zone: str, quarter: int) -> float:
    from datetime import UTC, datetime  # noqa: PLC0415  (kept beside its one use)

    local = datetime.fromtimestamp(quarter * _QUARTER, UTC).astimezone(ZoneInfo(zone)).utcoffset()
    return local.total_seconds() if local is not None else 0.0


def _offsets(zone: str, times: Floats) -> Floats:
    quarters = np.floor(times / _QUARTER).astype(np.intp)
    if len(quarters) and (quarters == quarters[0]).all():  # requests of one moment
        offsets = np.empty(times.shape)
        offsets[:] = [_offset(zone, q) for q in np.atleast_1d(quarters[0]).tolist()]
        return offsets
    known, where = np.unique(quarters, return_inverse=True)
    return np.array([_offset(zone, q) for q in known.tolist()])[where].reshape(times.shape)


def utc_offset(zone: str, at: float) -> float:
    """Return local time minus UTC in seconds, daylight saving included.

    >>> utc_offset("Europe/Paris", 1_750_000_000.0), utc_offset("Europe/Paris", 1_735_000_000.0)
    (7200.0, 3600.0)
    """
    return _offset(zone, int(at // _QUARTER))


def local_day(at: float, offset: float) -> int:
    """Return the number of the local day since the epoch."""
    return int((at + offset) // DAY)


def cohort(program: Program, customers: Sequence[Customer], *, at: Sequence[float]) -> Cohort:
    """Turn customers into columns, each at the moment it asks.

    Args:
        program: declares stages and attributes.
        customers: n customers, each after `journey.settle` at its moment.
        at: (n,), seconds since the epoch.
    """
    times = np.asarray(at, dtype=np.float64)
    default = program.guardrails.consent == "opt-out"
    incentives = {name: i for i, name in enumerate(program.space.incentives)}
    n = len(customers)
    slots = min(max((len(c.sent) for c in customers), default=0), WEEK_SLOTS)
    sent_at = np.full((n, slots), -np.inf)
    sent_day = np.full((n, slots), -1, dtype=np.intp)
    sent_incentive = np.full((n, slots), -1, dtype=np.intp)
    for row, customer in enumerate(customers):
        for slot, sent in enumerate(customer.sent[-WEEK_SLOTS:]):
            sent_at[row, slot] = sent.deliver_at
            sent_day[row, slot] = sent.day
            sent_incentive[row, slot] = incentives.get(sent.incentive, -1)
    zones = [c.time_zone or program.guardrails.time_zone for c in customers]
    names = tuple(dict.fromkeys(zones))
    codes = {name: i for i, name in enumerate(names)}
    pairs = list(zip(customers, times.tolist(), strict=True))
    return Cohort(
        at=times,
        stage=np.array([program.stage_index.get(c.stage, 0) for c in customers], dtype=np.intp),
        momentum=share(
            np.array([c.steps.at(t, half_life=program.momentum_half_life) for c, t in pairs], dtype=np.float64)
        ),
        dosage=share(
            np.array([c.nudges.at(t, half_life=program.dosage_half_life) for c, t in pairs], dtype=np.float64)
        ),
        streak=np.array([c.streak for c in customers], dtype=np.float64),
        consented=np.array([default if c.consent is None else c.consent for c in customers], dtype=np.bool_),
        zone=np.array([codes[z] for z in zones], dtype=np.intp),
        sent_at=sent_at,
        sent_day=sent_day,
        sent_incentive=sent_incentive,
        paused_until=np.array([c.promotion_paused_until for c in customers], dtype=np.float64),
        attributes={
            a.name: attribute_column(a, [c.attributes.get(a.name) for c in customers]) for a in program.attributes
        },
        zones=names,
        last_step=_moments([c.last_step_at for c in customers]),
        last_macro=_moments([c.last_macro_at for c in customers]),
        triggered=_moments([None if c.trigger is None else c.trigger.at for c in customers]),
        **_rhythm(program, pairs),
    )


def _rhythm(program: Program, pairs: Sequence[tuple[Customer, float]]) -> dict[str, Floats]:
    """Return what only a cadence looks at, as columns (n,)."""
    cadence = program.guardrails.cadence
    if cadence is None:
        return {}
    beats = [max((s.deliver_at for s in c.sent if not s.off_beat), default=None) for c, _ in pairs]
    hours = [own_hour(program, c, at=t) for c, t in pairs] if cadence.hour_within is not None else [None] * len(pairs)
    return {"last_beat": _moments(beats), "own_hour": np.array([np.nan if h is None else h for h in hours])}


def own_hour(program: Program, customer: Customer, *, at: float) -> float | None:
    """Return the hour of day at which a customer takes steps, moved out of the quiet hours; None if unknown."""
    hour = customer.hours.hour(at=at)
    if hour is None:
        return None
    start, end = program.guardrails.quiet_from / 60.0, program.guardrails.quiet_until / 60.0
    length, into = (end - start) % 24.0, (hour - start) % 24.0
    if into >= length:
        return hour
    return end if into >= length / 2.0 else (start - 1.0 / 60.0) % 24.0


def _moments(times: Sequence[float | None]) -> Floats:
    """Shape (n,): times, -inf for never."""
    return np.array([-np.inf if t is None else t for t in times], dtype=np.float64)


@lru_cache(maxsize=1024)
def _codes(categories: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(categories)}


def attribute_column(attribute: Attribute, values: Sequence[Scalar]) -> npt.NDArray[np.generic]:
    """Return a column of an attribute: floats with NaN for unknown, or category indices with -1 for unknown.

    A value of the wrong kind, or a category that is not declared, is unknown.
    """
    if attribute.kind == "category":
        known = _codes(attribute.categories)
        return np.array([known.get(v, -1) if isinstance(v, str) else -1 for v in values], dtype=np.intp)
    numbers = [float(v) if isinstance(v, _NUMBER) else np.nan for v in values]
    column = np.array(numbers, dtype=np.float64)
    column[~np.isfinite(column)] = np.nan
    return column


def features(program: Program, cohort: Cohort) -> dict[str, npt.NDArray[np.generic]]:
    """Return what is seen of each customer, as columns by name; a row of it is what a decision logs."""
    local = cohort.local
    delivered = np.where(cohort.sent_at <= cohort.at[:, None], cohort.sent_at, -np.inf).max(axis=1, initial=-np.inf)
    return {
        "stage": cohort.stage,
        "momentum": cohort.momentum,
        "dosage": cohort.dosage,
        "streak": cohort.streak,
        "nudge_recency": np.exp(-(cohort.at - delivered) / DAY),
        "hour": (local % DAY) / 3600.0,
        "weekend": ((local // DAY + 3) % 7 >= 5).astype(np.float64),  # 1970-01-01 was a Thursday
        **{a.name: cohort.attributes[a.name] for a in program.attributes},
    }


def encode(program: Program, columns: Columns) -> Floats:
    """Turn columns as `features` names them into contexts (n, d), in the order of `program.features`.

    Unknown numbers are 0 (their mean, once standardised) with their `=?` feature 1; unknown categories likewise.
    """
    to, n = program.encoding, len(columns["stage"])
    contexts = np.zeros((n, len(program.features)))
    contexts[:, 0] = 1.0
    codes = np.array([columns[name] for name in to.categories], dtype=np.intp)  # (categories, n)
    contexts[np.arange(n), np.where(codes < 0, to.unknown, to.first + codes)] = 1.0
    hour = columns["hour"].astype(np.float64) * (2.0 * np.pi / 24.0)
    streak = np.log1p(columns["streak"].astype(np.float64)) / np.log(31.0)
    recent, weekend = columns["nudge_recency"], columns["weekend"]
    of_all = (columns["momentum"], columns["dosage"], streak, recent, np.sin(hour), np.cos(hour), weekend)
    contexts[:, to.of_all : to.of_all + len(of_all)] = np.array(of_all).T
    if to.numbers:
        numbers = np.array([columns[name] for name in to.numbers], dtype=np.float64)  # (numbers, n)
        missing = np.isnan(numbers)
        scaled = np.minimum(np.maximum((numbers - to.mean) / to.scale, -5.0), 5.0)
        contexts[:, to.at], contexts[:, to.at + 1] = np.where(missing, 0.0, scaled).T, missing.T
    return contexts


def snapshots(program: Program, columns: Columns) -> list[dict[str, Scalar]]:
    """Return the columns of `features` as one plain dict a row: what a decision logs as its context."""
    named: dict[str, list[Scalar]] = {}
    for name, column in columns.items():
        if name == "stage":
            named[name] = [program.stages[i].name for i in column.tolist()]
        elif column.dtype.kind == "i":
            categories = next(a.categories for a in program.attributes if a.name == name)
            named[name] = [categories[i] if i >= 0 else None for i in column.tolist()]
        else:
            named[name] = [None if math.isnan(v) else v for v in column.tolist()]
    keys = list(named)
    return [dict(zip(keys, row, strict=True)) for row in zip(*named.values(), strict=True)]


def columns_of(program: Program, contexts: Sequence[Mapping[str, Scalar]]) -> dict[str, npt.NDArray[np.generic]]:
    """Turn logged contexts back into columns, under this version of the program.

    A stage that is gone reads as the first; an attribute that was not logged is unknown.
    """
    columns: dict[str, npt.NDArray[np.generic]] = {
        "stage": np.array([program.stage_index.get(str(c.get("stage")), 0) for c in contexts], dtype=np.intp)
    }
    for name in ("momentum", "dosage", "streak", "nudge_recency", "hour", "weekend"):
        columns[name] = np.array([float(c.get(name) or 0.0) for c in contexts], dtype=np.float64)
    for a in program.attributes:
        columns[a.name] = attribute_column(a, [c.get(a.name) for c in contexts])
    return columns


def deliveries(program: Program, cohort: Cohort) -> tuple[Floats, Floats]:
    """Return when each timing would deliver, (n, timings), as seconds since the epoch and as local seconds.

    A clock time is the next one strictly after now, on the customer's own clock, whatever daylight saving does in
    between; one that is left out that night is an hour before.
    """
    local = cohort.local
    midnight = np.floor(local / DAY) * DAY
    clock, after = program.by_clock, program.after
    today = midnight[:, None] + after
    at_clock = np.where(today > local[:, None], today, today + DAY)
    utc = np.where(clock, at_clock - (local - cohort.at)[:, None], cohort.at[:, None] + after)
    delivered = np.where(clock, at_clock - cohort.offsets(utc), utc)
    return delivered, delivered + cohort.offsets(delivered)
