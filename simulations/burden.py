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
"""Days after a reward is counted that are looked at, at most; half of the log where it is shorter."""

FEWEST = 30
"""Customers from which on a price is estimated."""

CAUTION = 0.95
"""How sure the price is not too low: what wears people out is not undone by a lower price later, while a nudge too few
costs one reward and is learned from."""


class BurdenPrice(NamedTuple):
    """A price of burden, in reward units: what a nudge to somebody of full dosage takes from the days that follow.

    Args:
        value: what to put into the program: not too low with a confidence of `CAUTION`, given the log and, where it is
            unsure, the program's own price; never below 0. A longer log brings it closer to the estimate.
        estimate, error: of the log alone, with its clustered error; NaN where nothing could be estimated.
        days: after the reward is counted, that were looked at.
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
    """Return what nudges cost once their own reward is counted, for each unit of dosage.

    The later days count relative to what their stage usually earns: what a stage is worth is in the stage values. Use
    the training slice, put the price into the program and leave it there until the next training.

    Args:
        log: matured rounds of a policy that draws.
    """
    prior = log.program.guardrails.burden_price
    rounds, none = log.rounds, BurdenPrice(prior, np.nan, np.nan, 0, 0, 0)
    if not len(rounds):
        return none
    days = min(LONGEST, int((rounds.at.max() - rounds.at.min()) // DAY) // 2)
    later, usual = _later(log, days=days)
    rows = np.flatnonzero(np.isfinite(later) & _drawn(rounds))
    people = len(np.unique(rounds.customers[rows]))
    if days < 1 or people < FEWEST:
        return none
    some = rounds.take(rows)
    dosage = some.contexts[:, log.program.features.index("dosage")]
    given = trial(some, before=_known(some.contexts))._replace(outcomes=later[rows])
    effect = centred(given)[0]
    weight = _dosage_of(given, dosage)
    if weight <= 0.0 or not usual:
        return none
    estimate, error = -effect.value / weight, effect.error / weight
    # A price is unlikely to be more than a usual day earns: normal, about the program's own, before the log is seen.
    trust = usual**2 / (usual**2 + error**2)
    value = prior + trust * (estimate - prior) + float(ndtri(CAUTION)) * error * float(np.sqrt(trust))
    return BurdenPrice(max(value, 0.0), estimate, error, days, len(rows), people)


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


def _later(log: Dataset, *, days: int) -> tuple[Floats, float]:
    """Return what each round's customer earned in some days after the round's windows, beyond what stages usually earn.

    A later day's earnings are read off the rounds of that day: each event by its own window, which begins where the
    first round's ends, so that nothing counts twice. NaN (n,) where fewer than half of these days are in the log; the
    others are scaled up. With it, what a usual day earns, in absolute terms.
    """
    rounds, program = log.rounds, log.program
    order = np.lexsort((rounds.at, rounds.customers))
    reach = float(program.windows.max(initial=0.0)) + (days + 1.0) * DAY
    stride = float(rounds.at.max() - rounds.at.min()) + reach + DAY  # keeps customers apart on one axis
    when = rounds.at[order] - rounds.at.min() + stride * rounds.customers[order]
    sums, usual = np.zeros(len(rounds)), 0.0
    for event, window in zip(program.events, program.windows.tolist(), strict=True):
        if event.value:
            a_day = log.events[event.name] * (event.value * DAY / window)
            usual += float(np.abs(a_day).mean())
            total = np.r_[0.0, np.cumsum((a_day - _usual(log, a_day))[order])]
            start = np.searchsorted(when, when + window - 1.0)
            stop = np.searchsorted(when, when + window + days * DAY - 1.0)
            known = np.where(2 * (stop - start) >= days, stop - start, np.nan)
            sums[order] += (total[stop] - total[start]) * days / known
    return sums, usual


def _usual(log: Dataset, a_day: Floats) -> Floats:
    """Shape (n,): the mean of `a_day` (n,) over the rounds of the same stage."""
    size = len(log.program.stages)
    sums, counts = np.bincount(log.stages, weights=a_day, minlength=size), np.bincount(log.stages, minlength=size)
    found: Floats = (sums / np.maximum(counts, 1))[log.stages]
    return found
