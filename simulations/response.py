"""What do simulated customers do in the day after they were asked about? Chances, happenings, and what they are worth.

`logit p = stage and event + activity + habit + nearness of a milestone + season`, and for a nudge
`+ m (lift + incentive x price + fit to the stage + tone x type + hour x chronotype + pairs) - burden x fatigue`, where
`m` falls with habit, fatigue and repetition and rises after a missed day. What a nudge brings comes some time after
its delivery; what comes by itself comes at any time until the next ask.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.program import DAY
from simulations.effects import DISCONTENTED, GOAL, LEAVE, SIGNAL, STEP
from simulations.journeys import Happenings, State, nearness
from simulations.population import Population

HALF = 0.5
"""How much of what tone and hour do to steps they do to goals; how much of a nudge's effect full habit leaves."""

GAMERS = 6.0
"""What is taken from the logit of the goals of those who are after incentives only, and added to that of their steps
where an incentive that costs something is offered."""

DORMANT = 4.0
"""What is taken from the logit of the steps and goals of those who have drifted away."""

_MISSED = (1.5 * DAY, 4.0 * DAY)
"""How long after the last step somebody has just missed a day or two."""


@dataclass(frozen=True)
class Moment:
    """Customers (n,) of a slot when they ask: what their next day depends on, before any action.

    Args:
        asks: (n,). deliver_at: (n, timings), when each timing would deliver.
        base: (n, e), logit of each event's chance without a nudge.
        strength: (n,), by what the effect of any nudge is multiplied. weariness: (n,), what any nudge takes away.
        leaving: (n,), chance that a nudge makes them opt out.
        incentive: (2, n, incentives), for steps and for goals. tone: (n, tones). hour: (n, timings).
        fresh_incentive, fresh_tone: (n, levels), what repetition leaves.
    """

    population: Population
    asks: Floats
    deliver_at: Floats
    base: Floats
    strength: Floats
    weariness: Floats
    leaving: Floats
    incentive: Floats
    tone: Floats
    hour: Floats
    fresh_incentive: Floats
    fresh_tone: Floats

    def take(self, rows: Ints) -> "Moment":
        """Return some of the customers."""
        return Moment(
            population=self.population,
            asks=self.asks[rows],
            deliver_at=self.deliver_at[rows],
            base=self.base[rows],
            strength=self.strength[rows],
            weariness=self.weariness[rows],
            leaving=self.leaving[rows],
            incentive=self.incentive[:, rows],
            tone=self.tone[rows],
            hour=self.hour[rows],
            fresh_incentive=self.fresh_incentive[rows],
            fresh_tone=self.fresh_tone[rows],
        )

    def appeal(self, actions: Ints, *, channel: int) -> Floats:
        """Shape (n,): what nudges (n,) add to the logit of steps or of goals."""
        rows = np.arange(len(actions))
        i, t, m = self.population.program.space.levels[actions].T
        weight = 1.0 if channel == STEP else HALF
        does = self.population.effects.shift[channel, actions] + self.incentive[channel, rows, i]
        does = does + weight * (self.tone[rows, t] + self.hour[rows, m])
        strength = self.strength * self.fresh_incentive[rows, i] * self.fresh_tone[rows, t]
        appeal: Floats = strength * does - self.weariness
        return appeal

    def appeals(self, *, channel: int) -> Floats:
        """Shape (n, k - 1): what every nudge adds to the logit of steps or of goals."""
        n, shape = len(self.asks), self.population.program.space.shape
        weight = 1.0 if channel == STEP else HALF
        does = self.population.effects.shift[channel, 1:].reshape(1, *shape) + self.incentive[channel][:, :, None, None]
        does = does + weight * (self.tone[:, None, :, None] + self.hour[:, None, None, :])
        fresh = self.fresh_incentive[:, :, None, None] * self.fresh_tone[:, None, :, None]
        cells = self.strength[:, None, None, None] * fresh * does - self.weariness[:, None, None, None]
        appeals: Floats = cells.reshape(n, -1)
        return appeals


@dataclass(frozen=True)
class Chances:
    """What customers (n,) may do in their day: organic (n, e) without, nudged (n, e) with what was decided."""

    organic: Floats
    nudged: Floats


def moment(population: Population, state: State, *, rows: slice, day: int, deliver_at: Floats) -> Moment:
    """Return what the next day of a slot's customers depends on, once `journeys.arrive` has been called."""
    world, people, effects = population.world, population.people, population.effects
    fatigue, asks = state.fatigue[rows], population.asks(day, rows=rows)
    idle = asks - state.last_step[rows]
    missed = (idle >= _MISSED[0]) & (idle < _MISSED[1])
    strength = people.responsiveness[rows] * (1.0 - HALF * state.habit[rows])
    strength = (
        strength * np.exp(-world.blunting * people.fatigability[rows] * fatigue) * (1.0 + world.comeback * missed)
    )
    price, fit = people.price[rows, None], effects.fit[state.stage[rows]]
    after = GAMERS * people.gaming[rows, None] * (population.program.space.costs > np.zeros(1))
    reversed_ = world.drift_day is not None and day >= world.drift_day
    return Moment(
        population=population,
        asks=asks,
        deliver_at=deliver_at,
        base=_base(population, state, rows=rows, day=day),
        strength=strength,
        weariness=world.burden * people.fatigability[rows] * fatigue,
        leaving=_leaving(population, fatigue=fatigue, rows=rows),
        incentive=np.stack([price * effects.priced[STEP] + fit + after, price * effects.priced[GOAL] + HALF * fit]),
        tone=effects.tones[people.type[rows]] * (-1.0 if reversed_ else 1.0),
        hour=_hours(population, deliver_at, rows=rows),
        fresh_incentive=_fresh(population, state.incentive_day[rows], day=day) * _welcome(population, idle, missed),
        fresh_tone=_fresh(population, state.tone_day[rows], day=day),
    )


def _base(population: Population, state: State, *, rows: slice, day: int) -> Floats:
    world, people, effects = population.world, population.people, population.effects
    season = world.season * np.cos(2.0 * np.pi * day / 7.0)
    steps = people.activity[rows] + world.habit_pull * state.habit[rows] + season
    steps = (
        steps
        + world.gradient
        * nearness(population, state, rows=rows, at=population.asks(day, rows=rows)) ** world.gradient_shape
    )
    goals = people.intent[rows] + HALF * people.activity[rows] - world.dip * state.sated[rows]
    goals = goals - GAMERS * people.gaming[rows]
    if world.lapsing:
        steps, goals = steps - DORMANT * state.lapsed[rows], goals - DORMANT * state.lapsed[rows]
    grumbles = world.burden * people.fatigability[rows] * state.fatigue[rows]
    adds = np.stack([steps, goals, grumbles, np.zeros_like(steps)], axis=1)
    base: Floats = effects.base[state.stage[rows]] + adds[:, effects.channels]
    return base


def _leaving(population: Population, *, fatigue: Floats, rows: slice) -> Floats:
    world, people = population.world, population.people
    hazard = world.leaving * people.leaving[rows] * np.exp(np.minimum(world.leaving_growth * fatigue, 20.0))
    return np.minimum(hazard, 0.9)


def _hours(population: Population, deliver_at: Floats, *, rows: slice) -> Floats:
    n, timings = deliver_at.shape
    who = np.repeat(np.arange(rows.start, rows.start + n), timings)
    hour = population.local(who, deliver_at.reshape(-1)).reshape(n, timings) % DAY / 3_600.0
    off = (hour - population.people.peak[rows, None]) * (2.0 * np.pi / 24.0)
    return population.world.chronotype * np.cos(off)


def _welcome(population: Population, idle: Floats, missed: Bools) -> Floats:
    """Shape (n, incentives): what a comeback does more for those whom it is for, who have been idle (n,) so long.

    Those who have `missed` a day or two are at that moment already.
    """
    program = population.program
    if not program.has_comebacks:
        return np.ones((1, 1))
    back = np.isfinite(program.comebacks) & (idle[:, None] >= program.comebacks) & ~missed[:, None]
    return 1.0 + population.world.comeback * (back & np.isfinite(idle)[:, None]).astype(np.float64)


def _fresh(population: Population, last_day: Floats, *, day: int) -> Floats:
    world = population.world
    fresh: Floats = 1.0 - world.repetition * np.exp((last_day - day) / world.repetition_days)
    return fresh


def chances(now: Moment, actions: Ints) -> Chances:
    """Return what customers (n,) may do under the actions (n,) decided."""
    effects = now.population.effects
    organic = expit(now.base)
    nudges = np.flatnonzero(actions != HOLD)
    some, chosen = now.take(nudges), actions[nudges]
    shifts = np.zeros((len(nudges), 4))
    shifts[:, STEP], shifts[:, GOAL] = (some.appeal(chosen, channel=c) for c in (STEP, GOAL))
    nudged = organic.copy()
    nudged[nudges] = expit(some.base + shifts[:, effects.channels])
    nudged[nudges, effects.leave] = some.leaving
    return Chances(organic, nudged)


def delivery(now: Moment, actions: Ints) -> Floats:
    """Shape (n,): when the actions (n,) are delivered; NaN for hold."""
    timing = np.maximum(actions - 1, 0) % now.deliver_at.shape[1]
    return np.where(actions == HOLD, np.nan, now.deliver_at[np.arange(len(actions)), timing])


def respond(now: Moment, state: State, *, rows: slice, day: int, actions: Ints, fork: int = 0) -> Happenings:
    """Let a slot's customers live their day: what they do becomes pending, and changes them.

    Returns:
        What is reported, of `actions` (n,) decided on a day; `fork` numbers another course of chance.
    """
    population, found = now.population, chances(now, actions)
    e = len(population.effects.events)
    u = population.chance("respond", day, rows=rows, columns=4 * e, fork=fork).reshape(-1, 4, e)
    done = u[:, 0] < found.nudged
    row, event = np.nonzero(done)
    how, when, fate = u[row, 0, event], u[row, 1, event], u[row, 2, event]
    caused = how >= found.organic[row, event]
    waits = lag(population, when, goals=population.effects.of_channel(GOAL)[event])
    at = np.where(caused, delivery(now, actions)[row] + waits, now.asks[row] + DAY * when)
    world = population.world
    happened = Happenings(
        customer=row + rows.start,
        event=event,
        at=np.floor(at),  # whole seconds, as apps report them
        value=population.effects.reported[np.where(u[row, 3, event] < DISCONTENTED, 0, 1), event],
        twice=fate > 1.0 - world.twice,
        serial=np.full(len(row), day),
    )
    _lapse(population, state, rows=rows, day=day, done=done, fork=fork)
    _live(population, state, rows=rows, day=day, actions=actions, done=done)
    reported = Happenings.concatenate(
        [happened.take(fate >= world.lost), _shown(now, rows=rows, day=day, actions=actions)]
    )
    _keep(population, state, reported, rows=rows)
    return reported


def _shown(now: Moment, *, rows: slice, day: int, actions: Ints) -> Happenings:
    """Return the reports of nudges delivered: of an event that comes after all others."""
    nudged = np.flatnonzero(actions != HOLD)
    return Happenings(
        customer=nudged + rows.start,
        event=np.full(len(nudged), len(now.population.effects.events)),
        at=delivery(now, actions)[nudged],
        value=np.full(len(nudged), np.nan),
        twice=np.zeros(len(nudged), dtype=np.bool_),
        serial=np.full(len(nudged), day),
    )


def _keep(population: Population, state: State, reported: Happenings, *, rows: slice) -> None:
    """Put what is reported where it will arrive: at the end of the customer's day in which it happens."""
    first = population.people.first_ask[reported.customer]
    arrival = np.maximum(np.floor((reported.at - first) / DAY).astype(np.intp), reported.serial)
    for day in np.unique(arrival).tolist():
        state.keep(reported.take(arrival == day), rows=rows, day=day)


def _lapse(population: Population, state: State, *, rows: slice, day: int, done: Bools, fork: int) -> None:
    """Let some who did nothing drift away, half as many with full habit as with none; those who acted come back."""
    world, effects = population.world, population.effects
    if not world.lapsing:
        return
    acted = (done & (effects.of_channel(STEP) | effects.of_channel(GOAL))).any(axis=1)
    hazard = world.lapsing * population.people.lapsing[rows] * (1.0 - HALF * state.habit[rows])
    u = population.chance("lapse", day, rows=rows, columns=1, fork=fork)[:, 0]
    state.lapsed[rows] = ~acted & (state.lapsed[rows] | (u < hazard))


def _live(population: Population, state: State, *, rows: slice, day: int, actions: Ints, done: Bools) -> None:
    """Let a day change what is hidden: habit, fatigue, the lull after a goal, and which levels are worn."""
    world, effects = population.world, population.effects
    acted = done[:, effects.of_channel(STEP)].any(axis=1)
    goal = done[:, effects.of_channel(GOAL)].any(axis=1)
    habit = state.habit[rows]
    state.habit[rows] = np.where(acted, habit + world.habit_gain * (1.0 - habit), habit * (1.0 - world.habit_loss))
    state.sated[rows] = np.where(goal, 1.0, state.sated[rows] * np.exp(-1.0 / world.dip_days))
    state.fatigue[rows] = world.decay * state.fatigue[rows] + (actions != HOLD)
    nudged = np.flatnonzero(actions != HOLD)
    levels = population.program.space.levels[actions[nudged]]
    state.incentive_day[nudged + rows.start, levels[:, 0]] = day
    state.tone_day[nudged + rows.start, levels[:, 1]] = day


def lag(population: Population, u: Floats, *, goals: Bools | bool = True) -> Floats:
    """Return how long after its delivery a nudge brings what it brings, in seconds, from uniform numbers (m,).

    `goals` (m,) tells goals from what may come sooner.
    """
    lags = np.empty_like(u)
    low = 0.0
    for hours, share in population.world.delays:
        rows = (u >= low) & (u <= low + share)
        rest = np.clip((u[rows] - low) / share, 0.0, 1.0 - 1e-12) if share else u[rows]
        lags[rows] = -hours * 3_600.0 * np.log1p(-rest)
        low += share
    prompt = population.world.prompt
    return np.where(goals, lags, -prompt * 3_600.0 * np.log1p(-np.minimum(u, 1.0 - 1e-12))) if prompt else lags


def lag_by(population: Population, seconds: Floats, *, goals: Bools | bool = True) -> Floats:
    """Return the chance that what a nudge brings has come within given times after its delivery.

    `goals`, of a shape that fits the times, tells goals from what may come sooner.
    """
    waited = np.maximum(seconds, 0.0)
    parts = [share * -np.expm1(-waited / (hours * 3_600.0)) for hours, share in population.world.delays]
    by: Floats = np.sum(parts, axis=0)
    prompt = population.world.prompt
    return np.where(goals, by, -np.expm1(-waited / (prompt * 3_600.0))) if prompt else by


def expected(now: Moment, actions: Ints, *, until: Floats) -> Floats:
    """Shape (n,): expected worth of what the day's actions lead to, reported until times (n, e). Exact.

    What comes by itself and what the nudge brings or prevents are counted by when they would come.
    """
    found, effects = chances(now, actions), now.population.effects
    by_itself = np.clip((until - now.asks[:, None]) / DAY, 0.0, 1.0)
    gained = np.maximum(found.nudged - found.organic, 0.0)
    deliver_at = np.nan_to_num(delivery(now, actions), nan=np.inf)
    brought = lag_by(now.population, until - deliver_at[:, None], goals=effects.of_channel(GOAL))
    counted = np.minimum(found.organic, found.nudged) * by_itself + gained * brought
    return (1.0 - now.population.world.lost) * (counted @ effects.worth)


def expected_of_all(now: Moment, *, until: Floats, worth: Floats) -> Floats:
    """Shape (n, k): `expected` for every action, with a worth (e,) or (n, e) for each event."""
    population = now.population
    shape = population.program.space.shape
    worths = np.broadcast_to(worth, now.base.shape)
    by_itself = np.clip((until - now.asks[:, None]) / DAY, 0.0, 1.0)
    organic = expit(now.base)
    totals = np.zeros((len(now.asks), population.program.space.k))
    totals += ((organic * by_itself) * worths).sum(axis=1)[:, None]
    appeals = {channel: now.appeals(channel=channel) for channel in (STEP, GOAL)}
    goals = population.effects.of_channel(GOAL)
    for j in np.flatnonzero((worths != 0.0).any(axis=0)).tolist():
        brought = lag_by(population, until[:, j, None] - now.deliver_at, goals=bool(goals[j]))
        brought = np.broadcast_to(brought[:, None, None, :], (len(now.asks), *shape)).reshape(len(now.asks), -1)
        chance = _chance_of_all(now, j, appeals=appeals)
        gained = np.maximum(chance - organic[:, j, None], 0.0) * brought
        lost = np.maximum(organic[:, j, None] - chance, 0.0) * by_itself[:, j, None]
        totals[:, 1:] += worths[:, j, None] * (gained - lost)
    return (1.0 - population.world.lost) * totals


def _chance_of_all(now: Moment, event: int, *, appeals: dict[int, Floats]) -> Floats:
    """Shape (n, k - 1): the chance of an event under every nudge."""
    channel = int(now.population.effects.channels[event])
    if channel == LEAVE:
        return now.leaving[:, None]
    added = 0.0 if channel == SIGNAL else appeals[channel]
    chance: Floats = expit(now.base[:, event, None] + added)
    return chance
