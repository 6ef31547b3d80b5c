"""What does a nudge cost later, after its own reward is counted? The price of burden, estimated from a log.

A reward sees what comes within its windows. Fatigue, opting out and purchases that were only brought forward come
after them. Which decisions were nudges was drawn, so the later days of those nudged and those held, at the same moment
with the same chance, differ by what the nudge did to them: weighted and centred least squares, clustered by customer
(`training.effects`). A program puts the price on nudges as `burden_price`: eta, times the dosage at the moment.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from optimizer.actions import Bools, Floats
from optimizer.policy import Rounds
from optimizer.program import DAY
from training.dataset import Dataset
from training.effects import Trial, centred, trial

LONGEST = 28
"""Days after a decision that are looked at, at most; half of the log where it is shorter."""

FEWEST = 30
"""Customers from which on a price is estimated."""


class BurdenPrice(NamedTuple):
    """A price of burden, in reward units: what a nudge to somebody of full dosage takes from the days that follow.

    Args:
        value: what to put into the program: the estimate, drawn towards the program's own price where it is unsure,
            and never below 0.
        estimate, error: of the log alone, with its clustered error; NaN where nothing could be estimated.
        days: after the first, that were looked at.
        moments: at which a nudge was drawn for or against, of how many customers.
        customers: see `moments`.
    """

    value: float
    estimate: float
    error: float
    days: int
    moments: int
    customers: int

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the estimate."""
        return self.estimate - float(ndtri(0.975)) * self.error

    @property
    def high(self) -> float:
        """The upper end of it."""
        return self.estimate + float(ndtri(0.975)) * self.error


def burden_price(log: Dataset) -> BurdenPrice:
    """Return what nudges cost in the days after the first, for each unit of dosage.

    The later days count relative to what their stage usually earns: what a stage is worth is in the stage values. Use
    the training slice, put the price into the program and leave it there until the next training.

    Args:
        log: matured rounds of a policy that draws, with the worth of the day after each (`Dataset.after`).
    """
    prior = log.program.guardrails.burden_price
    rounds, none = log.rounds, BurdenPrice(prior, np.nan, np.nan, 0, 0, 0)
    if log.after is None or not len(rounds):
        return none
    span = int((rounds.at.max() - rounds.at.min()) // DAY)
    days = min(LONGEST, span // 2)
    later, whole = _later(log, days=days)
    rows = np.flatnonzero(whole & _drawn(rounds))
    people = len(np.unique(rounds.customers[rows]))
    if days < 1 or people < FEWEST:
        return none
    some = rounds.take(rows)
    dosage = some.contexts[:, log.program.features.index("dosage")]
    given = trial(some, before=_known(some.contexts))._replace(outcomes=later[rows])
    effect = centred(given)[0]
    weight = _dosage_of(given, dosage)
    if weight <= 0.0:
        return none
    estimate, error = -effect.value / weight, effect.error / weight
    scale = float(np.abs(log.after.day_rewards).mean())  # a price of more than a usual day earns is unlikely
    trust = scale**2 / (scale**2 + error**2) if scale else 0.0
    value = max(prior + trust * (estimate - prior), 0.0)
    return BurdenPrice(value, estimate, error, days, len(rows), people)


def _drawn(rounds: Rounds) -> Bools:
    """Shape (n,): at which moments both a nudge and hold could be drawn."""
    p = rounds.probabilities
    drawn: Bools = (p[:, 0] > 0) & (p[:, 1:] > 0).any(axis=1)
    return drawn


def _known(contexts: Floats) -> Floats:
    """Return the contexts (n, d) without what is the same for all."""
    varying: Floats = contexts[:, contexts.std(axis=0) > 1e-9]
    return varying


def _dosage_of(given: Trial, dosage: Floats) -> float:
    """Return the dosage at which a nudge's effect was estimated: a mean over the moments, weighted as there."""
    mean = float(given.chances.mean())
    weights = np.where(given.nudged, mean / given.chances, (1.0 - mean) / (1.0 - given.chances))
    centre = weights * (given.nudged - mean) ** 2
    return float((centre * dosage).sum() / centre.sum())


def _later(log: Dataset, *, days: int) -> tuple[Floats, Bools]:
    """Return what each customer earned on the days after each round's first, beyond what the stages usually earn.

    Shapes (n,) and (n,): the sums, and whether all of these days are in the log.
    """
    assert log.after is not None  # noqa: S101  (the caller has looked)
    rounds, stages = log.rounds, log.stages
    size = len(log.program.stages)
    earned = np.bincount(stages, weights=log.after.day_rewards, minlength=size)
    usual = earned / np.maximum(np.bincount(stages, minlength=size), 1)
    beyond = log.after.day_rewards - usual[stages]
    order = np.lexsort((rounds.at, rounds.customers))
    stride = float(rounds.at.max() - rounds.at.min()) + (days + 3.0) * DAY  # keeps customers apart on one axis
    when = rounds.at[order] - rounds.at.min() + stride * rounds.customers[order]
    total = np.r_[0.0, np.cumsum(beyond[order])]
    start = np.searchsorted(when, when + DAY - 1.0)
    stop = np.searchsorted(when, when + (days + 1.0) * DAY - 1.0)
    sums, whole = np.empty(len(rounds)), np.empty(len(rounds), dtype=np.bool_)
    sums[order] = total[stop] - total[start]
    whole[order] = rounds.at[order] + days * DAY <= rounds.at.max() + 1.0
    return sums, whole
