"""Do simulated customers behave as people did? Published trials, run again on them and analysed as they were.

A replay takes from the trial what the trial brought along (its size, its schedule, how often people act without it,
also after weeks) and from the world everything that a nudge does. The figures are those of `moments`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.program import (
    DAY,
    Clock,
    Duration,
    Event,
    Guardrails,
    Incentive,
    Milestone,
    Program,
    Span,
    Stage,
    Timing,
    Tone,
)
from simulations.journeys import Happenings, State, arrive, beginning
from simulations.population import Population, populate
from simulations.response import moment, respond
from simulations.worlds import World

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

SLOT = 16_384

Plan = Callable[[int], Ints]
"""What everybody gets on a day, (n,): the trial's assignment."""


class Conducted(NamedTuple):
    """A trial that was run: (days, n) what was sent, and what happened, lost reports left out."""

    population: Population
    sent: Ints
    happened: Happenings

    def counts(self, event: str) -> Ints:
        """Shape (days, n): how often each did an event on each of their days, from ask to ask."""
        chosen = self.happened.take(self.happened.event == self.population.effects.events.index(event))
        days, n = self.sent.shape
        day = ((chosen.at - self.population.people.first_ask[chosen.customer]) // DAY).astype(np.intp)
        inside = (day >= 0) & (day < days)
        counts = np.bincount(day[inside] * n + chosen.customer[inside], minlength=days * n)
        return counts.reshape(days, n).astype(np.intp)


def conduct(population: Population, plan: Plan, *, days: int) -> Conducted:
    """Give everybody what the plan says, except those who have opted out, and let them live with it."""
    if [float(t.delay or 0.0) for t in population.program.timings] != [0.0]:
        raise ValueError("trials send at once: declare one timing, without delay")
    state = beginning(population)
    sent = np.zeros((days, len(population)), dtype=np.intp)
    happened = []
    for day in range(days):
        planned = plan(day)
        for start in range(0, len(population), SLOT):
            rows = slice(start, min(start + SLOT, len(population)))
            arrive(population, state, rows=rows, day=day)
            sent[day, rows] = np.where(_left(state, rows), HOLD, planned[rows])
            asks = population.asks(day, rows=rows)
            now = moment(population, state, rows=rows, day=day, deliver_at=asks[:, None])
            found = respond(now, state, rows=rows, day=day, actions=sent[day, rows])
            happened.append(found.take(found.event < len(population.effects.events)))
    return Conducted(population, sent, Happenings.concatenate(happened))


def _left(state: State, rows: slice) -> Bools:
    left: Bools = state.consent[rows] == 0
    return left


def program(
    incentives: tuple[Incentive, ...],
    *,
    everyday: str,
    goal: str,
    value: float,
    milestones: tuple[Milestone, ...] = (),
    tones: int = 1,
) -> Program:
    """Return a program for a trial: one stage, one everyday step, one goal of some value, sent at once."""
    return Program(
        name="trial",
        title="A trial",
        goal=goal,
        stages=(Stage(name="member", title="Member"),),
        events=(
            Event(name=everyday, kind="micro", value=1.0, window=Span(DAY)),
            Event(name=goal, kind="macro", value=value, window=Span(30 * DAY)),
        ),
        incentives=incentives,
        tones=tuple(Tone(name=f"wording-{i}", title=f"Wording {i}") for i in range(1, tones + 1)),
        timings=(Timing(name="now", title="Now", delay=Duration(0)),),
        messages={},
        milestones=milestones,
        guardrails=Guardrails(consent="opt-out", quiet_from=Clock(0), quiet_until=Clock(0)),
    )


def level(name: str, *, cost: float = 0.0) -> Incentive:
    """Return an incentive of a trial."""
    return Incentive(
        name=name, title=name, kind="monetary" if cost else "content", earns="As the trial said.", cost=cost
    )


# --------------------------------------------------------------------------------------- the gym trial with 54 arms

MEMBERS, ARMS, BEFORE, WEEKS = 61_293, 54, 2, 4

SIGNIFICANT = float(ndtri(0.975))
"""A z score beyond which a lift is significant at 5 %, two-sided."""


class Gym(NamedTuple):
    """What the gym trial finds: each arm's lift of weekly visits over control, and whether it is significant.

    Args:
        control: weekly visits without a programme.
        lift, z: (arms,), relative lift during the four weeks, and its z score.
        lasting: (arms,), the z score of the four weeks after.
    """

    control: float
    lift: Floats
    z: Floats
    lasting: Floats

    @property
    def significant(self) -> float:
        """Share of the arms with a significant lift at 5 %, two-sided."""
        return float((self.z > SIGNIFICANT).mean())

    @property
    def remaining(self) -> float:
        """Share of the arms with a significant lift in the four weeks after."""
        return float((self.lasting > SIGNIFICANT).mean())


def gym(world: World, *, seed: int, members: int = MEMBERS, everyday: float = 0.15) -> Gym:
    """Run the trial of Milkman et al. (Nature, 2021) again: 54 four-week programmes of reminders, or nothing.

    Every member is assigned one arm at random and is reminded on two planned days a week. Visits are compared by
    regression on the arm and on the member's own visits in the two weeks before (the trial had a year of them and
    took members' means away); standard errors are by member.

    Args:
        world: what reminders do.
        seed: of everything.
        members: how many; the trial had 61,293.
        everyday: daily chance of a visit for the average member, by which control comes to about 1.5 a week.
    """
    arms = program(
        tuple(level(f"programme-{i:02d}") for i in range(1, ARMS + 1)), everyday="visit", goal="renewal", value=100.0
    )
    settled = replace(world, everyday=everyday, season=0.0, lapsing=0.0)
    people = populate(arms, settled, customers=members, seed=seed, start=START)
    arm = np.random.Generator(np.random.Philox(seed)).integers(0, ARMS + 1, size=members)
    before, month = 7 * BEFORE, 7 * WEEKS

    def plan(day: int) -> Ints:
        planned = before <= day < before + month and day % 7 in (1, 4)
        return np.where(planned, arm, HOLD)

    days = conduct(people, plan, days=before + 2 * month).counts("visit")
    weekly = [7.0 * part.mean(axis=0) for part in np.split(days, [before, before + month])]
    during, after = (_contrast(weekly[i], weekly[0], arm) for i in (1, 2))
    control = float(weekly[1][arm == 0].mean())
    return Gym(control, during.difference / control, during.z, after.z)


class _Contrast(NamedTuple):
    difference: Floats
    z: Floats


def _contrast(found: Floats, before: Floats, arm: Ints) -> _Contrast:
    """Arms against arm 0: differences of means (arms,), adjusted for what was before, with their z scores."""
    sizes = np.bincount(arm)

    def within(x: Floats) -> Floats:
        return x - (np.bincount(arm, weights=x) / sizes)[arm]

    slope = float(within(before) @ within(found)) / float(within(before) @ within(before))
    adjusted = found - slope * before
    means = np.bincount(arm, weights=adjusted) / sizes
    errors = np.bincount(arm, weights=within(adjusted) ** 2) / (sizes * (sizes - 1))
    difference = means[1:] - means[0]
    return _Contrast(difference, difference / np.sqrt(errors[1:] + errors[0]))


# ------------------------------------------------------------------------------------------------ daily suggestions


class Suggestions(NamedTuple):
    """What a daily suggestion adds to the chance of a walk, relative to none.

    At the start (by a straight trend), averaged over the trial, and averaged over its last third.
    """

    first: float
    average: float
    last: float


def suggestions(world: World, *, seed: int, people: int = 12_000, everyday: float = 0.1, days: int = 42) -> Suggestions:
    """Run the micro-randomised trial of Klasnja et al. (2019, HeartSteps) again: a suggestion on three days in five.

    Each day each person is sent one of 200 suggestions, in one of six wordings, with chance 0.6, else none. The
    effect is estimated as there: centred at the chance of being sent, constant over the days, or with a straight trend
    whose start is day 0.
    """
    levels = tuple(level(f"suggestion-{i:03d}") for i in range(200))
    deck = program(levels, everyday="walk", goal="renewal", value=100.0, tones=6)
    population = populate(
        deck, replace(world, everyday=everyday, season=0.0, lapsing=0.0), customers=people, seed=seed, start=START
    )
    chance = np.random.Generator(np.random.Philox(seed))
    drawn = np.where(chance.random((days, people)) < 0.6, chance.integers(1, deck.space.k, size=(days, people)), HOLD)
    run = conduct(population, lambda day: drawn[day], days=days)
    walked = (run.counts("walk") > 0).astype(np.float64)
    centred = (run.sent != HOLD) - 0.6
    trend = np.arange(days, dtype=np.float64)
    residual = walked - walked.mean(axis=1, keepdims=True)  # a free mean for each day
    start = np.linalg.lstsq(
        np.array([[days, trend.sum()], [trend.sum(), (trend**2).sum()]]) * 0.24 * people,
        np.array([(centred * residual).sum(), ((centred * residual).sum(axis=1) * trend).sum()]),
        rcond=None,
    )[0][0]
    average = (centred * residual).sum() / (0.24 * people * days)
    untouched = walked[run.sent == HOLD].mean()
    first_day = walked[0][run.sent[0] == HOLD].mean()
    late = slice(2 * days // 3, days)
    last = (centred[late] * residual[late]).mean() / 0.24 / walked[late][run.sent[late] == HOLD].mean()
    return Suggestions(float(start / first_day), float(average / untouched), float(last))


# ------------------------------------------------------------------------------------------------------------ coupons


class Coupons(NamedTuple):
    """Purchase rates: of those unlikely and likely to buy, without a coupon, with a base one, with a better one.

    Args:
        low: without, and with the base coupon. high: without, with the base coupon, with the better one.
        delays: hours after sending by which 35 %, 50 % and 95 % of what coupons brought has come.
    """

    low: tuple[float, float]
    high: tuple[float, float, float]
    within: tuple[float, float, float]


def coupons(world: World, *, seed: int, customers: int = 400_000, goal: float = 0.0165) -> Coupons:
    """Run the coupon trial of Gopalakrishnan and Park (2021) again: two segments, no coupon, one, or a better one.

    A customer's segment is the half by how likely they buy, as a retailer knows it from the past. Purchases count
    from sending on, for 30 days where a coupon brought them and for the day by itself otherwise: the campaign.
    """
    shop = program((level("base", cost=3.5), level("better", cost=8.75)), everyday="visit", goal="purchase", value=35.0)
    calm = replace(
        world, goal=goal, season=0.0, null=1.0
    )  # what a coupon does beyond its worth is drawn by name: leave it out
    people = populate(shop, calm, customers=customers, seed=seed, start=START)
    arm = np.random.Generator(np.random.Philox(seed)).integers(0, 3, size=customers)
    run = conduct(people, lambda day: np.where(day == 0, arm, HOLD), days=1)
    bought = run.happened.take(run.happened.event == people.effects.events.index("purchase"))
    who = np.unique(bought.customer)
    buyers = np.zeros(customers, dtype=np.bool_)
    buyers[who] = True
    likely = people.people.intent > np.median(people.people.intent)
    low = [float(buyers[~likely & (arm == i)].mean()) for i in range(2)]
    high = [float(buyers[likely & (arm == i)].mean()) for i in range(3)]
    since = bought.at - people.people.first_ask[bought.customer]
    hours = (1.0, 24.0, 720.0)
    sizes = np.bincount(arm, minlength=3)
    with_, without = arm[bought.customer] > 0, arm[bought.customer] == 0
    excess = [
        (with_ & (since < h * 3_600)).sum() / sizes[1:].sum() - (without & (since < h * 3_600)).sum() / sizes[0]
        for h in (*hours, np.inf)
    ]
    within = tuple(float(x / excess[-1]) for x in excess[:-1])
    return Coupons((low[0], low[1]), (high[0], high[1], high[2]), (within[0], within[1], within[2]))


# -------------------------------------------------------------------------------------------- opting out, and progress


class Leaving(NamedTuple):
    """Chance that a message makes somebody opt out: the first one, and the last of four weeks of daily ones."""

    first: float
    last: float


def leaving(world: World, *, seed: int, customers: int = 60_000, days: int = 21) -> Leaving:
    """Send everybody a message a day and count who leaves, by message received."""
    daily = program((level("message"),), everyday="visit", goal="purchase", value=35.0)
    people = populate(daily, world, customers=customers, seed=seed, start=START)
    run = conduct(people, lambda _: np.ones(customers, dtype=np.intp), days=days)
    left = run.counts("opt_out").sum(axis=1)
    sent = (run.sent != HOLD).sum(axis=1)
    week = slice(days - 7, days)
    return Leaving(float(left[:2].sum() / sent[:2].sum()), float(left[week].sum() / sent[week].sum()))


class Progress(NamedTuple):
    """Share of the cards filled: eight steps to go from nothing, or from two of ten that were a gift."""

    plain: float
    endowed: float


def progress(world: World, *, seed: int, customers: int = 4_000, everyday: float = 0.025, days: int = 60) -> Progress:
    """Run the car wash of Nunes and Dreze (2006) again: a card of eight, or one of ten with two stamps given."""
    shares, everyone = [], slice(0, customers)
    for of, given in ((8, 0), (10, 2)):
        card = Milestone(name="card", title="Card", reward="a wash", event="wash", count=of)
        wash = program((level("card"),), everyday="wash", goal="renewal", value=35.0, milestones=(card,))
        people = populate(
            wash,
            replace(world, everyday=everyday, season=0.0, lapsing=0.0),
            customers=customers,
            seed=seed,
            start=START,
        )
        state = beginning(people)
        state.counts[:, 0] += given
        for day in range(days):
            arrive(people, state, rows=everyone, day=day)
            now = moment(people, state, rows=everyone, day=day, deliver_at=people.asks(day)[:, None])
            respond(now, state, rows=everyone, day=day, actions=np.zeros(customers, dtype=np.intp))
        shares.append(float((state.counts[:, 0] >= of).mean()))
    return Progress(shares[0], shares[1])
