"""What does a run come to, for the business and for the people?"""

from typing import NamedTuple

import numpy as np

from optimizer.actions import HOLD, Bools, Floats
from optimizer.customer import share
from optimizer.program import DAY
from simulations.effects import GOAL, STEP
from simulations.journeys import Journey, State
from simulations.log import History, worths

RETENTION = (30, 60, 90)
"""Days at which retention is measured."""


class Metrics(NamedTuple):
    """What some days come to, per customer, whatever decision it counts for.

    `converted` is the share of the customers who reached the goal, `retained` the share with a step or a goal in the
    week before a day since the start; held-out customers are among them.
    """

    reward: float
    converted: float
    nudges: float
    opted_out: float
    cost: float
    retained: dict[int, float]


def metrics(history: History) -> Metrics:
    """Return what some days of a population come to."""
    n = len(history.population)
    rewarded, goals = earned(history), reached(history)
    first, last = history.first, history.first + len(history.actions)
    return Metrics(
        reward=float(rewarded.sum()) / n,
        converted=float(goals.mean()),
        nudges=float((history.actions != HOLD).sum()) / n,
        opted_out=float(left(history).mean()),
        cost=float(history.population.program.space.action_costs[history.actions].sum()) / n,
        retained={day: float(active(history, day).mean()) for day in RETENTION if first + 7 <= day <= last},
    )


def earned(history: History) -> Floats:
    """Shape (n,): what each customer's events of these days were worth, less what their nudges cost."""
    population, happened = history.population, history.happened
    program = population.program
    declared = happened.take(happened.event < len(program.events))
    worth = np.bincount(declared.customer, weights=worths(program, declared), minlength=len(population))
    costs: Floats = worth - program.space.action_costs[history.actions].sum(axis=0)
    return costs


def reached(history: History) -> Bools:
    """Shape (n,): who reached the program's goal."""
    program = history.population.program
    return _anybody(history, history.happened.event == program.event_index[program.goal])


def macro(history: History) -> Bools:
    """Shape (n,): who took any macro-action."""
    goals = history.population.effects.of_channel(GOAL)
    return _anybody(history, goals[history.happened.event])


def left(history: History) -> Bools:
    """Shape (n,): who opted out."""
    return _anybody(history, history.happened.event == history.population.effects.leave)


def active(history: History, day: int) -> Bools:
    """Shape (n,): who took a step or reached a goal in the week before a day since the population's start."""
    population, happened = history.population, history.happened
    end = population.start + day * DAY
    steps = population.effects.of_channel(STEP) | population.effects.of_channel(GOAL)
    return _anybody(history, steps[happened.event] & (happened.at < end) & (happened.at >= end - 7 * DAY))


def momentum(state: State, history: History) -> Floats:
    """Shape (n,): each customer's momentum when these days are over, 0 to 1."""
    half_life = history.population.program.momentum_half_life
    return share(state.steps * np.exp2(-np.maximum(history.end - state.steps_since, 0.0) / half_life))


def advanced(history: History) -> Floats:
    """Shape (stages,): of the customers seen in a stage, the share that an event led on from it; NaN for nobody.

    Falling back by idleness is no way on.
    """
    program = history.population.program
    stages, size = history.stages, len(program.stages)
    now, then = stages[:-1], stages[1:]
    lapses = Journey(program, history.population.effects.events).lapses_to
    onward = (then != now) & (then != lapses[now])
    seen, moved = (np.zeros((size, stages.shape[1]), dtype=np.bool_) for _ in range(2))
    for stage in range(size):
        seen[stage] = (now == stage).any(axis=0)
        moved[stage] = (onward & (now == stage)).any(axis=0)
    with np.errstate(invalid="ignore"):
        shares: Floats = moved.sum(axis=1) / seen.sum(axis=1)
    return shares


def _anybody(history: History, chosen: Bools) -> Bools:
    found = np.zeros(len(history.population), dtype=np.bool_)
    found[history.happened.customer[chosen]] = True
    return found
