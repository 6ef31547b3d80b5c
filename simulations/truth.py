"""What is a policy really worth? Expected rewards from the simulator's own chances, and the best that it knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from scipy.special import expit

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.customer import deliveries
from optimizer.engine import CHAMPION, Chooser
from optimizer.events import draws
from optimizer.guardrails import Shared
from optimizer.policy import Rounds
from optimizer.program import DAY
from simulations.choosing import choose
from simulations.journeys import Journey, State
from simulations.log import worths
from simulations.population import LONGEST_RUN, Population
from simulations.response import expected, expected_of_all
from simulations.rollout import (
    SLOT,
    Asking,
    Progress,
    Run,
    arms_of,
    ask,
    asked,
    closed_loop,
    facing,
    live,
    replay,
    sole,
    standings,
)
from training.dataset import Dataset


class Truth(NamedTuple):
    """A mean and the standard error that finite forks leave in it, over so many rounds."""

    value: float
    error: float
    rounds: int


class Rows(NamedTuple):
    """Which rounds of a run: the customer (m,) and the day (m,) of each."""

    customers: Ints
    days: Ints

    @classmethod
    def of(cls, population: Population, found: Dataset) -> Self:
        """Return which rounds a dataset holds, of this population's customers, in process or from an archive."""
        index = np.array([population.index(name) for name in found.customers], dtype=np.intp)
        days = np.floor((found.rounds.at - population.start) / DAY)
        return cls(index[found.rounds.customers], days.astype(np.intp))


def truth(
    run: Run,
    choosers: Mapping[str, Chooser],
    *,
    rows: Rows,
    target: Floats,
    forks: int = 2,
    progress: Progress | None = None,
) -> Truth:
    """Return the expected reward a decision of a target on rounds of a run: this decision by it, then as logged.

    From the customers' true state at each of these decisions, the action is drawn from the target; the days until
    the round matures then go on under the logging policy, with budget and stocks as they were. What a day leads to
    counts by its exact expectation, so only the course of later days is left to chance. Targets are paired: the same
    forks use the same chance.

    Args:
        run: the run whose rounds they are, replayed from its decisions.
        choosers: the logging policy.
        rows: m rounds, each matured within the run.
        target: (m, k), the probabilities that the target would have drawn from.
        forks: courses of chance for each round, at least 2.
        progress: told after each day.
    """
    values = true_rewards(run, choosers, rows=rows, target=target, forks=forks, progress=progress)
    spread = values.var(axis=0, ddof=1).sum() / forks
    return Truth(float(values.mean()), float(np.sqrt(spread)) / len(rows.days), len(rows.days))


def true_rewards(
    run: Run,
    choosers: Mapping[str, Chooser],
    *,
    rows: Rows,
    target: Floats,
    forks: int = 2,
    progress: Progress | None = None,
) -> Floats:
    """Shape (forks, m): an unbiased estimate of the expected reward of each round from each fork. See `truth`."""
    _check(run, rows, target=target, forks=forks)
    values = np.zeros((forks, len(rows.days)))
    shared = standings(run)
    for done, (day, turns) in enumerate(replay(run)):
        of_day = np.flatnonzero(rows.days == day)
        if len(of_day):
            here = _Day(run, choosers, day, turns, shared)
            for fork in range(forks):
                who = rows.customers[of_day]
                values[fork, of_day] = here.rewards(who, target[of_day], fork=fork, forks=forks)
        if progress:
            progress("finding the truth", done + 1, run.days)
    return values


def _check(run: Run, rows: Rows, *, target: Floats, forks: int) -> None:
    if forks < 2:
        raise ValueError(f"forks = {forks!r}: at least 2 show how much is left to chance")
    if target.shape != (len(rows.days), run.population.program.space.k) or len(rows.customers) != len(rows.days):
        raise ValueError(f"target has shape {target.shape} for {len(rows.days)} rounds: give (rounds, actions)")
    last = run.first + run.days - run.population.program.evaluation_horizon / DAY
    if len(rows.days) and not run.first <= rows.days.min() <= rows.days.max() <= last:
        raise ValueError(f"rounds of days {rows.days.min()} to {rows.days.max()}: only {run.first} to {last:g} mature")


class _Day:
    """A day of a run, from which forks depart."""

    def __init__(
        self,
        run: Run,
        choosers: Mapping[str, Chooser],
        day: int,
        turns: list[Asking],
        shared: list[list[tuple[slice, Shared]]],
    ) -> None:
        self.run, self.day, self.shared = run, day, shared
        self.population = run.population
        self.choosers = choosers
        self.everyone = slice(0, len(self.population))
        self.state = turns[0].state
        self.until = self.population.asks(day)[:, None] + self.population.windows
        self.known = self._known()

    def _known(self) -> Floats:
        """Shape (n,): what has been set off already and will be reported within the windows."""
        total = np.zeros(len(self.population))
        for batches in self.state.pending.values():
            for batch in batches:
                happened = batch.happened.take(batch.happened.event < len(self.population.program.events))
                counts = happened.at < self.until[happened.customer, happened.event]
                np.add.at(total, happened.customer[counts], worths(self.population.program, happened)[counts])
        return total

    def rewards(self, who: Ints, target: Floats, *, fork: int, forks: int) -> Floats:
        """Shape (m,): an unbiased estimate of the reward of customers (m,) under the target (m, k), in a fork."""
        program, population = self.population.program, self.population
        u = population.chance("target", self.day, rows=self.everyone, columns=1)[who, 0]
        actions = self.run.history.actions[self.day - self.run.first].copy()
        actions[who] = draws(target.astype(np.float32), (u + fork / forks) % 1.0)  # strata: a part of [0, 1) a fork
        total = self.known - program.space.action_costs[actions]
        state = self.state.copy()
        for day in range(self.day, self.day + int(np.ceil(program.matures_after / DAY))):
            asking = self._asking(state, day)
            if day > self.day:
                actions = self._as_logged(asking, fork=fork)
            now = facing(asking, deliveries(program, asking.cohort)[0])
            total = total + expected(now, actions, until=self.until)
            live(asking, now, actions, fork=self._course(fork))
        return np.asarray(total[who])

    def _course(self, fork: int) -> int:
        """Return the number of a course of chance that no other day's forks share."""
        return 1 + self.day + LONGEST_RUN * fork

    def _asking(self, state: State, day: int) -> Asking:
        if day == self.day:  # they have been brought to this moment
            return asked(self.population, state, rows=self.everyone, day=day)
        return ask(self.population, state, rows=self.everyone, day=day)

    def _as_logged(self, asking: Asking, *, fork: int) -> Ints:
        """Shape (n,): a new draw from the logging policy, with budget and stocks as they were."""
        day, actions = asking.day, np.empty(len(asking.cohort), dtype=np.intp)
        us = self.population.chance("draw", day, rows=self.everyone, columns=1, fork=self._course(fork))[:, 0]
        for rows, shared in self.shared[day - self.run.first]:
            for start in range(rows.start, rows.stop, SLOT):
                some = slice(start, min(start + SLOT, rows.stop))
                found = choose(
                    self.population.program,
                    asking.cohort.take(some),
                    self.choosers,
                    arms=self.run.arms[some],
                    us=us[some],
                    shared=shared,
                )
                actions[some] = found.actions
        return actions


class Scored:
    """Chooses the action of the highest given score, less its price: a policy for the rows it was made for.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",))
    >>> mask = np.array([[True, True]])
    >>> Scored(space, np.array([[0.0, 2.0]])).probabilities(np.empty((1, 0)), mask, np.zeros(2)).tolist()
    [[0.0, 1.0]]
    """

    def __init__(self, space: ActionSpace, scores: Floats) -> None:
        self.space, self.scores = space, scores

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        best = np.where(allowed, self.scores - prices, -np.inf).argmax(axis=1)
        chosen = np.zeros(allowed.shape)
        chosen[np.arange(len(best)), best] = 1.0
        return chosen

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def save(self, folder: Path) -> None:
        np.savez(folder / "scores.npz", scores=self.scores)

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        with np.load(folder / "scores.npz") as saved:
            return cls(space, saved["scores"])


def best(
    population: Population,
    *,
    days: int,
    since: Run | None = None,
    logged: bool = True,
    progress: Progress | None = None,
) -> Run:
    """Run the simulator's best: for each customer the action of the highest true expected reward, one step ahead.

    It sees what is hidden and goes through the same guardrails and floor. What the day leads to within the decision's
    windows counts exactly; a stage reached counts by what it brings on the following days of the windows. It is not
    the best plan over weeks: fatigue and caps of later days do not count.
    """
    space, arms = population.program.space, since.arms if since else arms_of(population)

    def choosers(asking: Asking) -> Mapping[str, Chooser]:
        served = np.array([arm == CHAMPION for arm in arms[asking.rows]])
        return sole(Scored(space, scores(asking)[served]), name="best")

    names = ["best@1"]
    return closed_loop(population, choosers, loggers=names, days=days, since=since, logged=logged, progress=progress)


def scores(asking: Asking) -> Floats:
    """Shape (n, k): the true expected reward of each action, one step ahead, less its cost."""
    program, effects = asking.population.program, asking.population.effects
    now = facing(asking, deliveries(program, asking.cohort)[0])
    until = now.asks[:, None] + asking.population.windows
    daily = expit(effects.base) @ effects.worth  # (stages,): what the average customer earns there in a day
    moves = Journey(program, effects.events).moves
    days_left = max(program.matures_after / DAY - 1.0, 0.0)
    worth = effects.worth + days_left * (daily[moves] - daily[:, None])
    reward = expected_of_all(now, until=until, worth=worth[asking.cohort.stage])
    return reward - program.space.action_costs
