"""What does a nudge do at its moment, and does that wear off? Centred effects of a micro-randomised log.

The outcome after a decision is regressed on what was known before and on the nudge less its chance, which takes the
effect apart from whatever makes some moments better than others: a wrong model of those only costs precision (Boruvka,
Almirall, Witkiewitz and Murphy, 2018, weighted and centred least squares). Errors are clustered by customer.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.policy import Rounds


class Coefficient(NamedTuple):
    """A coefficient of an effect, with its clustered error and its interval."""

    name: str
    value: float
    error: float
    low: float
    high: float


class Trial(NamedTuple):
    """Moments at which a nudge was drawn for or against: (n,) each, `before` (n, b) what was known.

    `chances` of a nudge lie strictly between 0 and 1: moments at which none could come say nothing.
    """

    outcomes: Floats
    nudged: Bools
    chances: Floats
    before: Floats
    customers: Ints


def trial(rounds: Rounds, *, before: Floats) -> Trial:
    """Return the moments of a log at which both a nudge and hold could be drawn, with what was known before (n, b)."""
    p = rounds.probabilities.astype(np.float64)
    chances = 1.0 - p[:, HOLD] / p.sum(axis=1)
    open_ = (chances > 0) & (chances < 1)
    rows = np.flatnonzero(open_)
    return Trial(
        rounds.rewards[rows], rounds.actions[rows] != HOLD, chances[rows], before[rows], rounds.customers[rows]
    )


def centred(given: Trial, moderators: dict[str, Floats] | None = None, *, level: float = 0.95) -> list[Coefficient]:
    """Return the effect of a nudge on the outcome: on average, and how it changes with each moderator (n,).

    Each moment is weighted so that chances that vary count as one fixed chance, their mean. The first coefficient,
    `nudge`, is the effect where all moderators are 0. Moderators are put among what was known before too.

    Raises:
        ValueError: for chances of 0 or 1, or fewer than two customers.

    >>> chance = np.full(6, 0.5)
    >>> given = Trial(
    ...     np.array([1.0, 3.0, 2.0, 4.0, 1.0, 3.5]), np.array([False, True] * 3), chance, np.empty((6, 0)),
    ...     np.array([0, 0, 1, 1, 2, 2]))
    >>> round(centred(given)[0].value, 4)  # 10.5 / 3 - 4 / 3
    2.1667
    """
    if not ((given.chances > 0) & (given.chances < 1)).all():
        row = int(np.argmax(~((given.chances > 0) & (given.chances < 1))))
        raise ValueError(
            f"moment {row}: the chance of a nudge is {given.chances[row]:g}, expected one between 0 and 1; leave out "
            "moments at which nothing was drawn"
        )
    names, codes = np.unique(given.customers, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"an effect needs moments of at least two customers, got {len(codes)} of {len(names)}")
    extra = np.column_stack([np.ones(len(codes)), *(moderators or {}).values()])
    mean = float(given.chances.mean())
    weights = np.where(given.nudged, mean / given.chances, (1.0 - mean) / (1.0 - given.chances))
    design = np.column_stack([extra, given.before, extra * (given.nudged - mean)[:, None]])
    bread = np.linalg.pinv((design.T * weights) @ design)
    fit = bread @ (design.T @ (weights * given.outcomes))
    scores = design * (weights * (given.outcomes - design @ fit))[:, None]
    sums = np.zeros((len(names), design.shape[1]))
    np.add.at(sums, codes, scores)
    covariance = bread @ (sums.T @ sums) @ bread
    start = design.shape[1] - extra.shape[1]
    reach = float(stdtrit(len(names) - 1, 0.5 + level / 2))
    return [
        Coefficient(name, float(fit[i]), error, float(fit[i]) - reach * error, float(fit[i]) + reach * error)
        for i, name in enumerate(["nudge", *(moderators or {})], start=start)
        for error in [float(np.sqrt(covariance[i, i]))]
    ]
