"""What does a run come to, for the business and for the people?"""

from typing import NamedTuple

import numpy as np

from optimizer.actions import HOLD
from optimizer.program import DAY
from simulations.effects import GOAL, STEP
from simulations.log import History, worths

RETENTION = (30, 60, 90)
"""Days since the start at which retention is measured."""


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
    population, n = history.population, len(history.population)
    program, effects, happened = population.program, population.effects, history.happened
    declared = happened.take(happened.event < len(program.events))
    cost = float(program.space.action_costs[history.actions].sum())
    goal = happened.customer[happened.event == program.event_index[program.goal]]
    leavers = happened.customer[happened.event == effects.leave]
    first, last = history.first, history.first + len(history.actions)
    return Metrics(
        reward=(float(worths(program, declared).sum()) - cost) / n,
        converted=len(np.unique(goal)) / n,
        nudges=float((history.actions != HOLD).sum()) / n,
        opted_out=len(np.unique(leavers)) / n,
        cost=cost / n,
        retained={day: _retained(history, day) for day in RETENTION if first + 7 <= day <= last},
    )


def _retained(history: History, day: int) -> float:
    population, happened = history.population, history.happened
    end = population.start + day * DAY
    active = population.effects.of_channel(STEP) | population.effects.of_channel(GOAL)
    recent = active[happened.event] & (happened.at < end) & (happened.at >= end - 7 * DAY)
    return len(np.unique(happened.customer[recent])) / len(population)
