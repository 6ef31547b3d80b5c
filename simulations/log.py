"""What does the log of a simulation teach? Decisions joined with what happened, as `training.dataset` joins them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from optimizer.actions import Bools, Floats, Ints
from optimizer.engine import CHALLENGER, EVALUATION, HOLDOUT, Choices
from optimizer.policy import Rounds
from optimizer.program import DAY, Program
from simulations.journeys import Happenings
from simulations.population import Population
from training.dataset import After, Dataset


class Seen(NamedTuple):
    """What the decisions of a slot of customers on a day put into the log."""

    rows: slice
    day: int
    choices: Choices


class History(NamedTuple):
    """Some days of a population.

    Args:
        population: the customers.
        first: the first day, counted from the population's start.
        actions, stages: (days, n), what was decided, and at which stage.
        happened: what was reported within these days.
    """

    population: Population
    first: int
    actions: Ints
    stages: Ints
    happened: Happenings

    @property
    def end(self) -> float:
        """When these days are over, seconds since the epoch."""
        return self.population.start + (self.first + len(self.actions)) * DAY

    def start(self, days: int) -> "History":
        """Return the first days of these."""
        end = self.population.start + (self.first + days) * DAY
        happened = self.happened.take(self.happened.at < end)
        return self._replace(actions=self.actions[:days], stages=self.stages[:days], happened=happened)

    @property
    def asks(self) -> Floats:
        """Shape (days, n): when each decision was made."""
        return self.population.people.first_ask + (self.first + np.arange(len(self.actions)))[:, None] * DAY


def worths(program: Program, happened: Happenings) -> Floats:
    """Shape (m,): what each happening of a declared event is worth, in reward units."""
    values = np.array([e.value for e in program.events])[happened.event]
    scaled = np.array([e.scaled for e in program.events], dtype=np.bool_)[happened.event]
    return values * np.where(scaled, np.nan_to_num(happened.value), 1.0)


def counts(history: History, event: int, *, window: float, worth: bool = False) -> Floats:
    """Shape (days, n): how many of an event fell within a window of each decision, or what they were worth."""
    days, n = history.actions.shape
    happened = history.happened.take(history.happened.event == event)
    weights = worths(history.population.program, happened) if worth else np.ones(len(happened))
    first_ask = history.population.people.first_ask[happened.customer]
    last = np.floor((happened.at - first_ask) / DAY).astype(np.intp)
    total = np.zeros(days * n)
    for day in (last - back for back in range(int(np.ceil(window / DAY)) + 1)):
        since = happened.at - (first_ask + day * DAY)
        inside = (since >= 0) & (since < window) & (day >= history.first) & (day < history.first + days)
        cells = (day[inside] - history.first) * n + happened.customer[inside]
        total += np.bincount(cells, weights=weights[inside], minlength=days * n)
    return total.reshape(days, n)


def rewards(history: History) -> Floats:
    """Shape (days, n): what each decision earned in its windows, less its own cost, whether or not it is mature."""
    program = history.population.program
    total = -program.space.action_costs[history.actions]
    for j, (event, window) in enumerate(zip(program.events, program.windows.tolist(), strict=True)):
        if event.value:
            total += counts(history, j, window=window, worth=True)
    return total


def dataset(history: History, seen: Sequence[Seen], *, loggers: Sequence[str]) -> Dataset:
    """Return the rounds that training would see: matured, of customers who are not held out, ordered by time.

    Args:
        history: the days.
        seen: what was logged of them, in the order of asking; a logger's code is 0 for the champion's arm, 1 for the
            challenger's.
        loggers: their names, by code.
    """
    population, program = history.population, history.population.program
    earned, kept = rewards(history), [_kept(history, part) for part in seen]
    cells = np.concatenate([_cells(history, s.day, k + s.rows.start) for s, k in zip(seen, kept, strict=True)])
    parts = [_rounds(history, s, k, earned=earned) for s, k in zip(seen, kept, strict=True)]
    total = sum(int(_counted(part).sum()) for part in seen)
    return Dataset(
        program=program,
        rounds=Rounds.concatenate(parts),
        training_rewards=earned.reshape(-1)[cells],
        stages=history.stages.reshape(-1)[cells],
        events={
            event.name: counts(history, j, window=window).reshape(-1)[cells]
            for j, (event, window) in enumerate(zip(program.events, program.windows.tolist(), strict=True))
        },
        customers=tuple(population.name(i) for i in range(len(population))),
        loggers=tuple(loggers),
        total=total,
        matured=len(cells),
        after=_after(history, cells),
    )


def together(logs: Sequence[Dataset]) -> Dataset:
    """Return the rounds of one population's logs, in the order of these, as the first one's program has them."""
    first = logs[0]
    return replace(
        first,
        rounds=Rounds.concatenate([log.rounds for log in logs]),
        training_rewards=np.concatenate([log.training_rewards for log in logs]),
        stages=np.concatenate([log.stages for log in logs]),
        events={name: np.concatenate([log.events[name] for log in logs]) for name in first.events},
        total=sum(log.total for log in logs),
        matured=sum(log.matured for log in logs),
        after=None,
    )


def _counted(part: Seen) -> Bools:
    return np.array([arm not in (HOLDOUT, EVALUATION) for arm in part.choices.arms])


def _kept(history: History, part: Seen) -> Ints:
    horizon = float(history.population.program.evaluation_horizon)
    mature = history.population.asks(part.day, rows=part.rows) + horizon <= history.end
    return np.flatnonzero(_counted(part) & mature)


def _cells(history: History, day: int, customers: Ints) -> Ints:
    return (day - history.first) * len(history.population) + customers


def _rounds(history: History, part: Seen, kept: Ints, *, earned: Floats) -> Rounds:
    choices, customers = part.choices, kept + part.rows.start
    return Rounds(
        contexts=choices.contexts[kept],
        allowed=choices.mask[kept],
        probabilities=choices.probabilities[kept],
        actions=choices.actions[kept],
        rewards=earned[part.day - history.first, customers],
        customers=customers,
        at=history.population.asks(part.day, rows=part.rows)[kept],
        cost_prices=np.zeros(len(kept)),
        burdens=choices.burdens[kept],
        loggers=np.array([choices.arms[i] == CHALLENGER for i in kept.tolist()], dtype=np.intp),
    )


def _after(history: History, cells: Ints) -> After:
    """Return the stages at the ask a day later, and at the last ask within the horizon, with the worth of a day."""
    program, (days, n) = history.population.program, history.actions.shape
    day, customer = cells // n, cells % n
    horizon = int(program.evaluation_horizon // DAY)
    daily = np.zeros((days, n))
    for j, event in enumerate(program.events):
        daily += counts(history, j, window=DAY, worth=True) if event.value else 0.0
    return After(
        day_stages=history.stages[np.minimum(day + 1, days - 1), customer],
        day_rewards=daily[day, customer],
        horizon_stages=history.stages[np.minimum(day + horizon, days - 1), customer],
    )
