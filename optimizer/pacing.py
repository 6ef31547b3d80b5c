"""What does a unit of cost have to bring now, so that the budget lasts as long as its period? Its shadow price."""

from typing import NamedTuple

from optimizer.program import Budget, Program

GAIN, EARLY, SETTLES = 3.0, 30.0, 28.0
"""By how many times its weight a unit of cost gets heavier where all that is left is spent in no time: `gain` below."""

_LEAST = 0.02
"""Share of the budget that a step is at least measured against: near the end, single nudges are a large part."""


class Purse(NamedTuple):
    """What was left of the period's budget at a time: minor units, seconds since the epoch."""

    left: float
    at: float


def gain(gone: float) -> float:
    """Return how firmly the price is set when a share of the period is gone: `GAIN + EARLY / (1 + SETTLES gone)`.

    A price that is wrong costs little money as long as it is mended soon, so it is found in haste and then kept calmly:
    from no price at all, a budget that twenty times as much could be spent of stays within a tenth of even spending,
    where a constant gain of 3 spends four tenths ahead (`tests/optimizer/test_pacing.py`).

    >>> gain(0.0), round(gain(1 / 28), 3), round(gain(1.0), 1)
    (33.0, 18.0, 4.0)
    """
    return GAIN + EARLY / (1.0 + SETTLES * gone)


def pace(
    program: Program,
    *,
    spent: float,
    elapsed: float,
    price: float,
    left: float | None = None,
    remaining: float | None = None,
) -> float:
    """Return the price after some spending: `max(0, price + gain (1 + price) (spent - due) / left)`.

    A step of dual ascent: the multiplier of the budget rises while more is spent than is due and falls while less
    is. Due is the share of what is left that the elapsed time is of the remaining time, so what was spent too
    fast is made up for over the rest of the period. Steps are relative to what a unit of cost weighs in all: 1 in the
    reward, and the price. It follows the clock and not the traffic: the price falls a little every night. Call it
    often, about each minute, and keep the price from one period to the next.

    Args:
        program: declares the budget; without one the price is 0.
        spent: minor units reserved since the last call, less what was released.
        elapsed: seconds since the last call.
        price: what the last call returned; 0 at first.
        left: minor units left at the last call; the whole budget where omitted.
        remaining: seconds that remained of the period at the last call; the whole period where omitted.

    >>> from optimizer.program import Program
    >>> from optimizer.programs import read
    >>> program = Program.parse(read("fitness-coaching"), source="")  # 2,000 EUR a week
    >>> round(pace(program, spent=2_000, elapsed=0.0, price=0.0), 3)  # a hundredth of the budget at once
    0.33
    >>> round(pace(program, spent=0, elapsed=3_600, price=1.0), 3)  # the first hour of the week, without spending
    0.658
    """
    budget = program.guardrails.budget
    if budget is None or not budget.minor_amount:
        return 0.0
    left = float(budget.minor_amount) if left is None else left
    remaining = float(budget.period) if remaining is None else remaining
    due = max(left, 0.0) * min(elapsed / remaining, 1.0) if remaining > 0 else max(left, 0.0)
    firm = gain(min(max(1.0 - (remaining - elapsed) / budget.period, 0.0), 1.0))
    return max(0.0, price + firm * (1.0 + price) * (spent - due) / max(left, _LEAST * budget.minor_amount))


def repriced(program: Program, price: float, *, before: Purse, now: Purse) -> float:
    """Return the price after the time between two looks at the purse.

    Where a new period has begun in between, only what was spent of its own budget counts.

    Args:
        program: declares the budget.
        price: in force between the two.
        before, now: what was left then, and what is left now.
    """
    budget = program.guardrails.budget
    if budget is None or now.at <= before.at:
        return price if budget else 0.0
    start = now.at // budget.period * budget.period
    if before.at < start:
        before = Purse(float(budget.minor_amount), start)
    return pace(
        program,
        spent=before.left - now.left,
        elapsed=now.at - before.at,
        price=price,
        left=before.left,
        remaining=_end(budget, before.at) - before.at,
    )


def _end(budget: Budget, at: float) -> float:
    """Return when the period of a moment ends: periods are counted from the epoch."""
    return (at // budget.period + 1) * budget.period
