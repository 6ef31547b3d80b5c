"""What would the service know of each simulated customer? `optimizer.journey` once more, for columns of customers.

These are the service's rules (`settle`, `follow`, `receive`, `cohort`) over arrays, because a million customers leave
no time for one at a time; a test holds the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.customer import HALF_LIFE, LEAST_AGREEMENT, LEAST_STEPS, WEEK_SLOTS, Cohort, share
from optimizer.guardrails import are_off_beat
from optimizer.journey import MEMORY
from optimizer.program import DAY, Program
from simulations.population import Population

_CONSENT_UNKNOWN = -1


@dataclass(frozen=True)
class Happenings:
    """What customers did, `m` rows: of whom, which event, when, with which reported value.

    Args:
        customer, event: (m,), by index; the event after all others is a nudge reported as shown.
        at: (m,), seconds since the epoch.
        value: (m,), NaN where none is reported.
        twice: (m,), whether the app reports it twice.
        serial: (m,), on which day it was set off: with customer and event it names the outcome.
    """

    customer: Ints
    event: Ints
    at: Floats
    value: Floats
    twice: Bools
    serial: Ints

    def __len__(self) -> int:
        return len(self.customer)

    def take(self, rows: Ints | Bools) -> "Happenings":
        """Return some of them."""
        return Happenings(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence["Happenings"]) -> "Happenings":
        """Return several batches as one."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


class Batch(NamedTuple):
    """Happenings of customers `start` to `stop`."""

    start: int
    stop: int
    happened: Happenings


@dataclass
class State:
    """Where `n` customers are. The first columns are what the service knows; the last ones are hidden.

    Args:
        longest: (n,), the longest streak before this one. streaks, streaks_day, longest_of: (n, s), the same three for
            each milestone with a streak of its own (`streak_of`).
        hours: (n, 4), of steps on the clock's face: x, y, how many, as of when; without rows unless a cadence asks.
        triggered: (n,), when each did what asks for a decision at once. last_beat: (n,), when the last nudge that
            keeps the rhythm is delivered.
        habit, fatigue: (n,), hidden. sated: (n,), 1 just after a goal, wearing off. lapsed: (n,), drifted away.
        incentive_day, tone_day: (n, levels), when each level was last received, in days of the run; -inf for never.
        pending: what has been set off and not arrived, by the customers' day at whose end it arrives.
    """

    stage: Ints
    steps: Floats
    steps_since: Floats
    nudges: Floats
    nudges_since: Floats
    streak: Ints
    streak_day: Ints
    longest: Ints
    streaks: Ints
    streaks_day: Ints
    longest_of: Ints
    hours: Floats
    triggered: Floats
    last_beat: Floats
    last_step: Floats
    last_macro: Floats
    consent: Ints
    sent_at: Floats
    sent_day: Ints
    sent_incentive: Ints
    paused_until: Floats
    counts: Ints
    habit: Floats
    fatigue: Floats
    sated: Floats
    lapsed: Bools
    incentive_day: Floats
    tone_day: Floats
    pending: dict[int, list[Batch]]

    def copy(self) -> "State":
        """Return a state that can go its own way."""
        columns = {f.name: getattr(self, f.name).copy() for f in fields(self) if f.name != "pending"}
        return State(**columns, pending={day: list(batches) for day, batches in self.pending.items()})

    def keep(self, happened: Happenings, *, rows: slice, day: int) -> None:
        """Let happenings of a slot's customers arrive at the end of a day."""
        self.pending.setdefault(day, []).append(Batch(rows.start, rows.stop, happened))

    def due(self, *, rows: slice, day: int) -> list[Happenings]:
        """Take out what arrives at the end of a day for a slot's customers, however it was batched."""
        found, rest = [], []
        for batch in self.pending.pop(day, []):
            if batch.stop <= rows.start or batch.start >= rows.stop:
                rest.append(batch)
            elif rows.start <= batch.start and batch.stop <= rows.stop:
                found.append(batch.happened)
            else:
                inside = (batch.happened.customer >= rows.start) & (batch.happened.customer < rows.stop)
                found.append(batch.happened.take(inside))
                rest.append(batch._replace(happened=batch.happened.take(~inside)))
        if rest:
            self.pending[day] = rest
        return found


@dataclass(frozen=True)
class Journey:
    """A program's journey as tables over stages and events (e,)."""

    program: Program
    events: tuple[str, ...]

    @cached_property
    def moves(self) -> Ints:
        """Shape (stages, e): the stage after an event."""
        stay = np.arange(len(self.program.stages))[:, None]
        extra = len(self.events) - len(self.program.events)
        return np.concatenate([self.program.moves, np.repeat(stay, extra, axis=1)], axis=1)

    @cached_property
    def declared(self) -> int:
        """How many events the program declares: any further one is a system event."""
        return len(self.program.events)

    @cached_property
    def steps(self) -> Bools:
        """Shape (e,): which events are micro- or macro-actions."""
        kinds = [e.kind != "signal" for e in self.program.events]
        return np.array(kinds + [False] * (len(self.events) - len(kinds)))

    @cached_property
    def goals(self) -> Bools:
        """Shape (e,): which events are macro-actions."""
        kinds = [e.kind == "macro" for e in self.program.events]
        return np.array(kinds + [False] * (len(self.events) - len(kinds)))

    @cached_property
    def memory(self) -> Floats:
        """Shape (incentives,): for how long a nudge matters, in seconds."""
        rules = self.program.guardrails
        beat = 0.0 if rules.cadence is None else rules.cadence.every + rules.cadence.within
        usual, laddered = max(MEMORY, rules.cooldown, beat), self.program.laddered
        ladder = max(usual, rules.ladder.memory)
        return np.array([ladder if x.name in laddered else usual for x in self.program.incentives])

    @cached_property
    def pauses(self) -> Floats:
        """Shape (e,): for how long an event pauses promotions; -inf for not."""
        pauses = [-np.inf if e.pauses_promotion is None else e.pauses_promotion for e in self.program.events]
        return np.array(pauses + [-np.inf] * (len(self.events) - len(pauses)))

    @cached_property
    def pauses_below(self) -> Floats:
        """Shape (e,): the value below which it does; inf for any."""
        below = [np.inf if e.pauses_below is None else e.pauses_below for e in self.program.events]
        return np.array(below + [np.inf] * (len(self.events) - len(below)))

    @cached_property
    def requests(self) -> Bools:
        """Shape (e,): which events ask for a decision at once."""
        asks = [e.requests_decision for e in self.program.events]
        return np.array(asks + [False] * (len(self.events) - len(asks)))

    @cached_property
    def requesting_milestones(self) -> Bools:
        """Shape (milestones,): which ask for a decision once they are reached."""
        return np.array([m.requests_decision for m in self.program.milestones], dtype=np.bool_)

    @cached_property
    def keeps(self) -> Bools:
        """Shape (e, s): which events keep each streak that has events of its own."""
        named = [[name in m.streak_of for m in self.program.streaks] for name in self.events]
        return np.array(named, dtype=np.bool_).reshape(len(self.events), len(self.program.streaks))

    @cached_property
    def lapses_after(self) -> Floats:
        """Shape (stages,): seconds of idleness after which a stage lapses; inf for never."""
        return np.array([np.inf if s.lapses_after is None else s.lapses_after for s in self.program.stages])

    @cached_property
    def lapses_to(self) -> Ints:
        """Shape (stages,): where it lapses to."""
        index = self.program.stage_index
        return np.array([index[s.lapses_to or s.name] for s in self.program.stages], dtype=np.intp)


def beginning(population: Population) -> State:
    """Return customers whom the service does not know yet, with the history that the app reports when it starts."""
    program, n = population.program, len(population)
    rules = program.guardrails
    weeks = np.ceil(Journey(program, population.effects.events).memory.max() / (7 * DAY)) + 1
    width = min(WEEK_SLOTS, int(weeks) * rules.cap_per_week + 2)
    incentives, tones, _ = program.space.shape
    return State(
        stage=np.zeros(n, dtype=np.intp),
        steps=np.zeros(n),
        steps_since=np.zeros(n),
        nudges=np.zeros(n),
        nudges_since=np.zeros(n),
        streak=np.zeros(n, dtype=np.intp),
        streak_day=np.full(n, -1, dtype=np.intp),
        longest=np.zeros(n, dtype=np.intp),
        streaks=np.zeros((n, len(program.streaks)), dtype=np.intp),
        streaks_day=np.full((n, len(program.streaks)), -1, dtype=np.intp),
        longest_of=np.zeros((n, len(program.streaks)), dtype=np.intp),
        hours=np.zeros((n if keeps_hours(program) else 0, 4)),
        triggered=np.full(n, -np.inf),
        last_beat=np.full(n, -np.inf),
        last_step=np.full(n, -np.inf),
        last_macro=np.full(n, -np.inf),
        consent=np.full(n, _CONSENT_UNKNOWN, dtype=np.intp),
        sent_at=np.full((n, width), -np.inf),
        sent_day=np.full((n, width), -1, dtype=np.intp),
        sent_incentive=np.full((n, width), -1, dtype=np.intp),
        paused_until=np.zeros(n),
        counts=np.zeros((n, len(population.effects.events)), dtype=np.intp),
        habit=np.full(n, 0.1),
        fatigue=np.zeros(n),
        sated=np.zeros(n),
        lapsed=np.zeros(n, dtype=np.bool_),
        incentive_day=np.full((n, incentives), -np.inf),
        tone_day=np.full((n, tones), -np.inf),
        pending={-1: [Batch(0, n, history(population))]},
    )


def history(population: Population) -> Happenings:
    """Return what led customers to where they are at the start: the shortest way of events to a stage, a day each.

    Each stage has `advanced` times the customers of the one before; the last event is hours to nine days old, so that
    some stages have lapsed. Where a program asks for it, most have opted in before.
    """
    ways = _ways(population.program)
    weights = population.world.advanced ** np.arange(len(ways))
    u = population.chance("history", 0, rows=slice(0, len(population)), columns=3)
    chosen = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], u[:, 0], side="right")
    last = population.start - DAY * (0.1 + 9.0 * u[:, 1] ** 2)
    parts = [_history(np.flatnonzero(chosen == i), way, last=last[chosen == i]) for i, way in enumerate(ways)]
    if population.program.guardrails.consent == "opt-in":
        willing = np.flatnonzero(u[:, 2] < population.world.willing)
        parts.append(
            _history(willing, (population.effects.join,), last=np.full(len(willing), population.start - 30 * DAY))
        )
    return Happenings.concatenate(parts)


def _history(customers: Ints, way: Sequence[int], *, last: Floats) -> Happenings:
    steps = np.arange(len(way))
    serial = np.tile(steps - len(way), len(customers))
    return Happenings(
        customer=np.repeat(customers, len(way)),
        event=np.tile(np.array(way, dtype=np.intp), len(customers)),
        at=np.floor(np.repeat(last, len(way)) + DAY * (serial + 1)),
        value=np.full(len(serial), np.nan),
        twice=np.zeros(len(serial), dtype=np.bool_),
        serial=serial,
    )


def _ways(program: Program) -> list[tuple[int, ...]]:
    """Return the shortest sequence of events to each stage that events lead to, nearest first."""
    ways: dict[int, tuple[int, ...]] = {0: ()}
    reached = [0]
    for stage in reached:
        for event in range(len(program.events)):
            if (to := int(program.moves[stage, event])) not in ways:
                ways[to] = (*ways[stage], event)
                reached.append(to)
    return [ways[stage] for stage in reached]


def arrive(population: Population, state: State, *, rows: slice, day: int) -> None:
    """Let what happened since the last ask, and is reported, reach the service; then settle at the moment of asking."""
    journey = Journey(population.program, population.effects.events)
    if batches := state.due(rows=rows, day=day - 1):
        for happened in _turns(Happenings.concatenate(batches)):
            _follow(population, journey, state, happened)
    asks = population.asks(day, rows=rows)
    everyone = np.arange(rows.start, rows.start + len(asks))
    _settle(population, journey, state, who=everyone, at=asks)
    stale = state.sent_at[rows] < asks[:, None] - journey.memory[state.sent_incentive[rows]]
    if stale.any():
        state.sent_at[rows][stale], state.sent_day[rows][stale], state.sent_incentive[rows][stale] = -np.inf, -1, -1


def _turns(happened: Happenings) -> list[Happenings]:
    """Return everybody's first happening, everybody's second, and so on, in order of time."""
    happened = happened.take(np.lexsort((happened.event, happened.at, happened.customer)))
    order = np.arange(len(happened))
    new = np.r_[True, np.diff(happened.customer) > 0]
    turn = order - np.maximum.accumulate(np.where(new, order, 0))
    return [happened.take(np.flatnonzero(turn == i)) for i in range(int(turn.max(initial=-1)) + 1)]


def _follow(population: Population, journey: Journey, state: State, happened: Happenings) -> None:
    """What the service does with an outcome, settle and follow, for distinct customers (m,)."""
    _settle(population, journey, state, who=happened.customer, at=happened.at)
    for said, consent in ((population.effects.leave, 0), (population.effects.join, 1)):
        state.consent[happened.customer[happened.event == said]] = consent
    happened = happened.take(happened.event < journey.declared)
    who, event, at = happened.customer, happened.event, happened.at
    _settle(population, journey, state, who=who, at=np.maximum(at, state.last_step[who]))
    by_milestone = journey.requesting_milestones.any()
    before = reached(population, state, who=who, at=at) if by_milestone else np.zeros((len(who), 0), dtype=np.bool_)
    state.stage[who] = journey.moves[state.stage[who], event]
    state.counts[who, event] += 1
    limit = journey.pauses_below[event]
    paused = np.where((happened.value < limit) | np.isinf(limit), at + journey.pauses[event], -np.inf)
    state.paused_until[who] = np.maximum(state.paused_until[who], paused)
    goals = happened.take(journey.goals[event])
    state.last_macro[goals.customer] = np.maximum(goals.at, state.last_macro[goals.customer])
    steps = happened.take(journey.steps[event])
    _step(population, journey, state, steps)
    asks = journey.requests[event]
    if by_milestone:
        new = reached(population, state, who=who, at=at) & ~before
        asks = asks | (new & journey.requesting_milestones).any(axis=1)
    state.triggered[who] = np.where(asks, np.maximum(at, state.triggered[who]), state.triggered[who])


def _step(population: Population, journey: Journey, state: State, happened: Happenings) -> None:
    who, at = happened.customer, happened.at
    local = population.local(who, at)
    day = (local // DAY).astype(np.intp)
    state.streak[who], state.longest[who] = _on(state.streak[who], state.streak_day[who], state.longest[who], day=day)
    state.streak_day[who] = np.maximum(day, state.streak_day[who])
    for j, keeps in enumerate(journey.keeps[happened.event].T):
        some, on = who[keeps], day[keeps]
        days, last, longest = state.streaks[some, j], state.streaks_day[some, j], state.longest_of[some, j]
        state.streaks[some, j], state.longest_of[some, j] = _on(days, last, longest, day=on)
        state.streaks_day[some, j] = np.maximum(on, last)
    if len(state.hours):
        state.hours[who] = _hour_more(state.hours[who], hour=local % DAY / 3_600.0, at=at)
    half_life = population.program.momentum_half_life
    state.steps[who], state.steps_since[who] = _plus(
        state.steps[who], state.steps_since[who], at=at, half_life=half_life
    )
    state.last_step[who] = np.maximum(at, state.last_step[who])


def _on(days: Ints, last: Ints, longest: Ints, *, day: Ints) -> tuple[Ints, Ints]:
    """`optimizer.customer.Streak.on` for (m,) customers: days in a row with one on a day, and the most there were."""
    now = np.where(day > last, np.where(day == last + 1, days + 1, 1), days)
    return now, np.maximum(longest, now)


def _hour_more(hours: Floats, *, hour: Floats, at: Floats) -> Floats:
    """`optimizer.customer.Hours.plus` for (m, 4) customers."""
    x, y, steps, since = hours.T
    fade, late = np.exp2(-np.maximum(at - since, 0.0) / HALF_LIFE), np.exp2(-np.maximum(since - at, 0.0) / HALF_LIFE)
    angle = hour * (2.0 * np.pi / 24.0)
    parts = x * fade + np.cos(angle) * late, y * fade + np.sin(angle) * late, steps * fade + late
    return np.column_stack([*parts, np.maximum(at, since)])


def keeps_hours(program: Program) -> bool:
    """Whether nudges keep to the customer's own hour, so that it has to be learned."""
    cadence = program.guardrails.cadence
    return cadence is not None and cadence.hour_within is not None


def own_hours(program: Program, hours: Floats, *, at: Floats) -> Floats:
    """`optimizer.customer.own_hour` for (m, 4) customers; NaN where unknown."""
    x, y, steps, since = hours.T
    enough = steps * np.exp2(-np.maximum(at - since, 0.0) / HALF_LIFE) >= LEAST_STEPS
    known = enough & (np.hypot(x, y) >= LEAST_AGREEMENT * steps)
    hour = np.arctan2(y, x) * (24.0 / (2.0 * np.pi)) % 24.0
    start, end = program.guardrails.quiet_from / 60.0, program.guardrails.quiet_until / 60.0
    length, into = (end - start) % 24.0, (hour - start) % 24.0
    moved = np.where(into >= length / 2.0, end, (start - 1.0 / 60.0) % 24.0)
    return np.where(known, np.where(into >= length, hour, moved), np.nan)


def reached(population: Population, state: State, *, who: Ints | slice, at: Floats) -> Bools:
    """`optimizer.journey.reached` for customers (m,): shape (m, milestones), whether they ever did."""
    found = [d >= m.of for m, d in zip(population.program.milestones, _most(population, state, who=who, at=at),
                                       strict=True)]  # fmt: skip
    return np.stack(found, axis=1) if found else np.zeros((len(at), 0), dtype=np.bool_)


def _most(population: Population, state: State, *, who: Ints | slice, at: Floats) -> list[Floats]:
    """Return for each milestone the most that customers (m,) have ever done of it."""
    program, found = population.program, []
    for milestone in program.milestones:
        if milestone.after is not None:
            found.append((at - population.start) // DAY)
        elif milestone.event is not None:
            found.append(state.counts[who, program.event_index[milestone.event]].astype(np.float64))
        elif milestone.streak_of:
            found.append(state.longest_of[who, program.streaks.index(milestone)].astype(np.float64))
        else:
            found.append(state.longest[who].astype(np.float64))
    return found


def nearness(population: Population, state: State, *, rows: slice, at: Floats) -> Floats:
    """Shape (n,): share done of the milestone that is nearest and not reached, 0 without one.

    As `optimizer.journey.progress` has it: time passes without a step, so an anniversary is near in its last tenth.
    """
    program, nearest = population.program, np.zeros(len(at))
    most = _most(population, state, who=rows, at=at)
    for milestone, ever in zip(program.milestones, most, strict=True):
        done: Floats | Ints = ever
        if milestone.streak is not None:
            own = milestone.streak_of
            done = state.streaks[rows, program.streaks.index(milestone)] if own else state.streak[rows]
        share_done = done / milestone.of
        if milestone.after is not None:
            share_done = np.where(share_done >= 0.9, share_done, 0.0)
        nearest = np.maximum(nearest, np.where(ever < milestone.of, share_done, 0.0))
    return nearest


def _settle(population: Population, journey: Journey, state: State, *, who: Ints, at: Floats) -> None:
    stage, last = state.stage[who], state.last_step[who]
    idle_since = np.where(np.isinf(last), population.start, last)
    state.stage[who] = np.where(at - idle_since > journey.lapses_after[stage], journey.lapses_to[stage], stage)
    today = population.local(who, at) // DAY
    state.streak[who] = np.where(today > state.streak_day[who] + 1, 0, state.streak[who])
    if state.streaks.shape[1]:
        state.streaks[who] = np.where(today[:, None] > state.streaks_day[who] + 1, 0, state.streaks[who])


def _plus(level: Floats, since: Floats, *, at: Floats, half_life: float) -> tuple[Floats, Floats]:
    """`optimizer.customer.Decayed.plus(1.0, ...)` for (m,) customers."""
    later = at >= since
    gap = np.exp2(-np.abs(at - since) / half_life)
    return np.where(later, level * gap + 1.0, level + gap), np.where(later, at, since)


def observe(population: Population, state: State, *, rows: slice, day: int) -> Cohort:
    """Return the customers as the service sees them when they ask."""
    program, people = population.program, population.people
    asks = population.asks(day, rows=rows)

    def decayed(level: Floats, since: Floats, half_life: float) -> Floats:
        return share(level[rows] * np.exp2(-np.maximum(asks - since[rows], 0.0) / half_life))

    consent = state.consent[rows]
    return Cohort(
        at=asks,
        stage=state.stage[rows].copy(),  # copies, because the state will move on
        momentum=decayed(state.steps, state.steps_since, program.momentum_half_life),
        dosage=decayed(state.nudges, state.nudges_since, program.dosage_half_life),
        streak=state.streak[rows].astype(np.float64),
        consented=np.where(consent == _CONSENT_UNKNOWN, program.guardrails.consent == "opt-out", consent == 1),
        zone=people.zone[rows],
        sent_at=state.sent_at[rows].copy(),
        sent_day=state.sent_day[rows].copy(),
        sent_incentive=state.sent_incentive[rows].copy(),
        paused_until=state.paused_until[rows].copy(),
        attributes={name: column[rows] for name, column in people.attributes.items()},
        zones=population.zones,
        last_step=state.last_step[rows].copy(),
        last_macro=state.last_macro[rows].copy(),
        triggered=state.triggered[rows].copy(),
        last_beat=state.last_beat[rows].copy(),
        own_hour=own_hours(program, state.hours[rows], at=asks) if len(state.hours) else np.full(len(asks), np.nan),
    )


def receive(population: Population, state: State, *, rows: slice, day: int, actions: Ints, deliver_at: Floats) -> None:
    """Let nudges be reserved: actions (n,) of a slot decided on a day, delivered at (n,)."""
    nudged = np.flatnonzero(actions != HOLD)
    who, at = nudged + rows.start, deliver_at[nudged]
    slot = state.sent_at[who].argmin(axis=1)
    state.sent_at[who, slot] = at
    state.sent_day[who, slot] = (population.local(who, at) // DAY).astype(np.intp)
    asks = population.people.first_ask[who] + day * DAY
    kept = ~are_off_beat(population.program, state.last_beat[who], at=asks, deliver_at=at)
    state.last_beat[who[kept]] = np.maximum(at[kept], state.last_beat[who[kept]])
    state.triggered[who] = -np.inf
    state.sent_incentive[who, slot] = population.program.space.levels[actions[nudged], 0]
    half_life = population.program.dosage_half_life
    state.nudges[who], state.nudges_since[who] = _plus(
        state.nudges[who], state.nudges_since[who], at=at, half_life=half_life
    )
