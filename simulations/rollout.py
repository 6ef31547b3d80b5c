"""What happens when a policy meets the population? The closed loop, in process, through the real `Optimizer.choose`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from optimizer.actions import Floats, Ints
from optimizer.customer import Cohort, deliveries
from optimizer.engine import CHALLENGER, CHAMPION, Choices, Chooser, Optimizer
from optimizer.events import Salt
from optimizer.guardrails import Shared
from optimizer.policy import Policy, Rounds
from optimizer.program import DAY
from simulations.choosing import Chosen, choose
from simulations.journeys import Happenings, State, arrive, beginning, observe, receive
from simulations.log import History, Seen, dataset
from simulations.metrics import Metrics, metrics
from simulations.population import LONGEST_RUN, Population
from simulations.purse import Purse
from simulations.response import Moment, delivery, moment, respond
from training.dataset import Dataset

SALT = Salt("simulated", b"simulated customers have no secrets")

SLOT, LEAN_SLOT = 2_048, 8_192
"""Customers decided for at once, with a log and without: bounds the memory of (n, k) arrays. Results do not depend on
it."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


class Asking(NamedTuple):
    """A slot of customers who ask on a day: who they truly are, and how the service sees them."""

    population: Population
    state: State
    rows: slice
    day: int
    cohort: Cohort

    def part(self, start: int, stop: int) -> "Asking":
        """Return some of the slot, counted from its first customer."""
        rows = slice(self.rows.start + start, self.rows.start + stop)
        return self._replace(rows=rows, cohort=self.cohort.take(slice(start, stop)))


Choosers = Callable[[Asking], Mapping[str, Chooser]]
"""Who chooses for a slot, by arm. Only the simulator's own best may look at the state."""


Watch = Callable[[Asking, Chosen], None]
"""Is shown a slot of customers and what was chosen for them."""


@dataclass(frozen=True)
class Run:
    """Some days of a population under a policy.

    Args:
        history: what was decided and what happened.
        arms: (n,), the arm of each customer.
        begin, end: where the customers were before and after. opening, left: what could be spent before and after.
        log: the matured rounds, as training would see them; None where they were not kept.
    """

    history: History
    arms: tuple[str, ...]
    begin: State
    end: State
    opening: Purse
    left: Purse
    log: Dataset | None

    @property
    def population(self) -> Population:
        """The customers."""
        return self.history.population

    @property
    def first(self) -> int:
        """The first day, counted from the population's start."""
        return self.history.first

    @property
    def days(self) -> int:
        """How many days it lasted."""
        return len(self.history.actions)

    @property
    def metrics(self) -> Metrics:
        """What these days come to."""
        return metrics(self.history)

    @property
    def dataset(self) -> Dataset:
        """The matured rounds as training would see them; ValueError where they were not kept."""
        if self.log is None:
            raise ValueError("this run kept no rounds: pass logged=True")
        return self.log

    @property
    def rounds(self) -> Rounds:
        """The matured rounds."""
        return self.dataset.rounds


def sole(policy: Policy, *, name: str = "simulated", version: str = "1") -> dict[str, Chooser]:
    """Return the choosers of a program that one policy serves."""
    return {CHAMPION: Chooser(policy, name, version)}


def rollout(
    population: Population,
    choosers: Mapping[str, Chooser],
    *,
    days: int,
    since: Run | None = None,
    logged: bool = True,
    slot: int | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Run:
    """Let customers ask once a day, each at its own hour, and live with what is decided.

    Decisions go through `Optimizer.choose`, or where no rounds are kept through `choosing.choose`, with the program's
    guardrails, floor, arms, budget and stock; customers are held as columns. Chance depends on seed, customer and day
    alone, so runs of several policies are paired.

    Args:
        population: the customers.
        choosers: the policy of each arm; `sole(policy)` for one.
        days: how many; rounds mature only within them, so add the program's evaluation horizon.
        since: the run that this one goes on from; from the start where None.
        logged: keep the rounds (about 2 kB each with 300 nudges).
        slot: customers decided for at once.
        watch: shown each slot with what was chosen for it, before anybody lives it.
        progress: told after each day.
    """
    serving = [choosers.get(arm, choosers[CHAMPION]) for arm in (CHAMPION, CHALLENGER)]
    return closed_loop(
        population,
        lambda _: choosers,
        loggers=[f"{chooser.name}@{chooser.version}" for chooser in serving],
        days=days,
        since=since,
        logged=logged,
        slot=slot or (SLOT if logged else LEAN_SLOT),
        lean=not logged,
        watch=watch,
        progress=progress,
    )


def closed_loop(
    population: Population,
    choosers: Choosers,
    *,
    loggers: Sequence[str],
    days: int,
    since: Run | None = None,
    logged: bool = True,
    slot: int = SLOT,
    lean: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> Run:
    """Do what `rollout` does, with choosers that may depend on who asks; `lean` where they do not and none are kept."""
    first = since.first + since.days if since else 0
    if not 1 <= days <= LONGEST_RUN - first - 40:
        raise ValueError(f"days = {days!r}: from day {first} on, use 1 to {LONGEST_RUN - first - 40}")
    begin = since.end if since else beginning(population)
    state, arms = begin.copy(), since.arms if since else arms_of(population)
    opening = purse = since.left if since else population.purse()
    actions, stages = (np.zeros((days, len(population)), dtype=np.intp) for _ in range(2))
    seen: list[Seen] = []
    happened = [waiting(population, begin, day=first)]
    for day in range(first, first + days):
        for rows in slots(population, day=day, size=slot):
            asking = ask(population, state, rows=rows, day=day)
            purse = purse.at(asking.cohort.at[0])
            stages[day - first, rows] = state.stage[rows]
            turns = _lean if lean and not logged else _in_turn
            for turn, found in turns(asking, choosers, arms=arms, purse=purse):
                purse = purse.after(found.actions)
                actions[day - first, turn.rows] = found.actions
                if watch:
                    watch(turn, Chosen(found.actions, found.guarded))
                seen += [Seen(turn.rows, day, found)] if logged and isinstance(found, Choices) else []
                happened.append(live(turn, facing(turn, found.guarded.deliver_at), found.actions))
        if progress:
            progress("simulating", day - first + 1, days)
    reported = reported_within(population, happened, first=first, days=days)
    history = History(population, first, actions, stages, reported)
    log = dataset(history, seen, loggers=loggers) if logged else None
    return Run(history, arms, begin, state, opening, purse, log)


def slots(population: Population, *, day: int, size: int) -> Iterator[slice]:
    """Yield slices of customers in the order in which they ask, none across the end of a budget's period."""
    asks = population.asks(day)
    budget = population.program.guardrails.budget
    period = asks // budget.period if budget else np.zeros(len(asks))
    cuts = np.unique(np.r_[np.arange(0, len(asks), size), np.flatnonzero(np.diff(period)) + 1, len(asks)])
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        yield slice(start, stop)


def ask(population: Population, state: State, *, rows: slice, day: int) -> Asking:
    """Let a slot's customers come to the moment at which they ask."""
    arrive(population, state, rows=rows, day=day)
    return asked(population, state, rows=rows, day=day)


def asked(population: Population, state: State, *, rows: slice, day: int) -> Asking:
    """Return a slot whose customers are at the moment at which they ask."""
    return Asking(population, state, rows, day, observe(population, state, rows=rows, day=day))


def facing(asking: Asking, deliver_at: Floats) -> Moment:
    """Return what the slot's next day depends on, with the times (n, timings) at which each timing would deliver."""
    return moment(asking.population, asking.state, rows=asking.rows, day=asking.day, deliver_at=deliver_at)


def live(asking: Asking, now: Moment, actions: Ints, *, fork: int = 0) -> Happenings:
    """Let a slot's customers receive what was decided (n,), and live their day; return what will be reported.

    `fork` numbers another course of chance.
    """
    population, state, rows, day, _ = asking
    happened = respond(now, state, rows=rows, day=day, actions=actions, fork=fork)
    receive(population, state, rows=rows, day=day, actions=actions, deliver_at=delivery(now, actions))
    return happened


def replay(run: Run) -> Iterator[tuple[int, list[Asking]]]:
    """Yield each day of a run again, with everybody as they were when they asked; then they live it as they did."""
    population, state = run.population, run.begin.copy()
    for day in range(run.first, run.first + run.days):
        turns = [ask(population, state, rows=r, day=day) for r in slots(population, day=day, size=len(population))]
        yield day, turns
        for turn in turns:
            now = facing(turn, deliveries(population.program, turn.cohort)[0])
            live(turn, now, run.history.actions[day - run.first, turn.rows])


def standings(run: Run) -> list[list[tuple[slice, Shared]]]:
    """Return, a list a day, the stretches of customers who asked under the same state of budget and stocks."""
    purse, found = run.opening, list[list[tuple[slice, Shared]]]()
    for day in range(run.first, run.first + run.days):
        found.append([])
        for rows in slots(run.population, day=day, size=len(run.population)):
            purse = purse.at(run.population.asks(day, rows=rows)[0])
            start = rows.start
            while start < rows.stop:
                rest = run.history.actions[day - run.first, start : rows.stop]
                stop = start + purse.lasts(rest)
                found[-1].append((slice(start, stop), purse.standing))
                purse, start = purse.after(rest[: stop - start]), stop
    return found


def _in_turn(
    asking: Asking, choosers: Choosers, *, arms: Sequence[str], purse: Purse
) -> Iterator[tuple[Asking, Choices]]:
    """Yield choices for stretches of a slot, each row under the mask that earlier rows leave of what is shared.

    All rows are chosen for under the first row's mask; those from which on it would be another are chosen for again.
    """
    size = len(asking.cohort)
    start = stop = 0
    while start < size:
        ahead = asking.part(start, size)
        found = _choose(ahead, choosers, arms=arms, left=purse.standing)
        stop = start + purse.lasts(found.actions)
        if stop < size:
            ahead = asking.part(start, stop)
            found = _choose(ahead, choosers, arms=arms, left=purse.standing)
        yield ahead, found
        purse, start = purse.after(found.actions), stop


def _lean(asking: Asking, choosers: Choosers, *, arms: Sequence[str], purse: Purse) -> Iterator[tuple[Asking, Chosen]]:
    """Do what `_in_turn` does, without what only a log needs.

    Rows do not depend on their batch, so none is chosen for twice under the same mask.
    """
    size, start = len(asking.cohort), 0
    while start < size:
        ahead = asking.part(start, size)
        us = asking.population.chance("draw", asking.day, rows=ahead.rows, columns=1)[:, 0]
        program, served = asking.population.program, choosers(ahead)
        found = choose(program, ahead.cohort, served, arms=arms[ahead.rows], us=us, shared=purse.standing)
        lasts = purse.lasts(found.actions)
        if start + lasts < size:
            ahead, found = asking.part(start, start + lasts), found.take(slice(0, lasts))
        yield ahead, found
        purse, start = purse.after(found.actions), start + lasts


def _choose(asking: Asking, choosers: Choosers, *, arms: Sequence[str], left: Shared) -> Choices:
    population, _, rows, day, cohort = asking
    us = population.chance("draw", day, rows=rows, columns=1)[:, 0]
    optimizer = Optimizer(population.program, choosers(asking), SALT)
    return optimizer.choose(cohort, arms=arms[rows], us=us, shared=left)


def arms_of(population: Population) -> tuple[str, ...]:
    """Return the arm of each customer, sticky by hash as the service assigns it."""
    shares = population.program.experiment
    if not shares.holdout + shares.challenger + shares.evaluation:
        return (CHAMPION,) * len(population)
    optimizer = Optimizer(population.program, {}, SALT)
    return tuple(optimizer.arm(population.name(i)) for i in range(len(population)))


def waiting(population: Population, state: State, *, day: int) -> Happenings:
    """Return what was set off before a day and is reported from its beginning on."""
    batches = [batch.happened for batches in state.pending.values() for batch in batches]
    happened = Happenings.concatenate(batches)
    return happened.take(happened.at >= population.start + day * DAY)


def reported_within(population: Population, happened: Sequence[Happenings], *, first: int, days: int) -> Happenings:
    """Return what customers did, reported before the end of some days."""
    found = Happenings.concatenate(happened)
    known = found.event < len(population.effects.events)
    return found.take(known & (found.at < population.start + (first + days) * DAY))
