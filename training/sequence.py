"""May we look every day? A confidence sequence: intervals that hold at every look at once.

One term a customer, in the order of enrolment, each once the customer's fixed block of rounds has matured. It needs
rewards within a declared range and a model frozen beforehand, and no bound on the weights; the logging policy may
change on the way (Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro, 2022).
"""

from typing import NamedTuple

import numpy as np

from optimizer.actions import Bools, Floats, Ints
from optimizer.policy import Rounds
from training.ope import Evidence, weigh

SLACK = 3.0
"""How far below 0 a term may lie, in ranges of the reward: more lets the model help more, and costs at the start."""

_BOLDEST = 0.5


class Looks(NamedTuple):
    """The interval after each customer, (customers,): all of them hold at once."""

    low: Floats
    high: Floats


class Terms(NamedTuple):
    """What bounds a value from below and from above, (n,), for rewards scaled to 0..1."""

    lower: Floats
    upper: Floats


def terms(rounds: Rounds, target: Floats, q: Floats, *, low: float, high: float) -> Terms:
    """Return doubly robust terms (n,) that are never below `-SLACK`.

    Where the weight of an action is large the model's word for it is cut: `q` becomes `min(q, SLACK / w)` (eq. 10).
    Rewards are clipped to `low`..`high`, which must be declared before looking.

    Args:
        rounds: n rounds.
        target: (n, k), probabilities.
        q: (n, k), of a model that was frozen before these rounds.
        low, high: the declared range of a reward.
    """
    if not high > low:
        raise ValueError(f"the range of a reward goes from low to high, got {low:g} to {high:g}")
    evidence = weigh(rounds, target, q)
    logged = rounds.probabilities / rounds.probabilities.sum(axis=1, dtype=np.float64, keepdims=True)
    return bounded(evidence, logged, target, q, low=low, high=high)


def bounded(evidence: Evidence, logged: Floats, target: Floats, q: Floats, *, low: float, high: float) -> Terms:
    """As `terms`, of rounds that were weighed already; `logged` and `target` (n, k) sum to 1.

    `pi min(q, SLACK mu / pi)` is `min(pi q, SLACK mu)`: no division, no action left out.
    """
    width = high - low
    scaled = np.clip((evidence.rewards - low) / width, 0.0, 1.0)
    model = np.clip((q - low) / width, 0.0, 1.0)
    drawn = np.clip((evidence.drawn - low) / width, 0.0, 1.0)
    w = evidence.weights
    most = SLACK * logged
    limit = SLACK / np.maximum(w, 1e-300)
    below = target * model
    lower = np.minimum(below, most).sum(axis=1) + w * (scaled - np.minimum(drawn, limit))
    above = np.minimum(target - below, most).sum(axis=1) + w * (1.0 - scaled - np.minimum(1.0 - drawn, limit))
    return Terms(lower, above)


def difference(target: Terms, reference: Terms) -> Terms:
    """Return terms for the value of a target less that of a reference, as a share from -1 to 1 scaled to 0..1."""
    return Terms((target.lower + reference.upper) / 2.0, (target.upper + reference.lower) / 2.0)


def blocks(rounds: Rounds, *, length: float, until: float) -> Bools:
    """Return which rounds (n,) make up customers' fixed blocks: those within `length` seconds of the customer's first.

    A customer whose block may still grow at `until` has none yet: its term comes once it is whole.
    """
    names, codes = np.unique(rounds.customers, return_inverse=True)
    enrolled = np.full(len(names), np.inf)
    np.minimum.at(enrolled, codes, rounds.at)
    mine = enrolled[codes]
    within: Bools = (rounds.at < mine + length) & (mine + length <= until)
    return within


def looks(found: Terms, customers: Ints, *, low: float, high: float, level: float = 0.95) -> Looks:
    """Return the interval for the mean of customers' means after each customer.

    Args:
        found: terms (n,) of rounds, customers in the order of enrolment.
        customers: (n,), codes.
        low, high: the declared range of a reward.
        level: of all intervals together.
    """
    alpha = (1.0 - level) / 2.0
    below = _below(_means(found.lower, customers), alpha=alpha)
    above = 1.0 - _below(_means(found.upper, customers), alpha=alpha)
    return Looks(
        low + (high - low) * np.maximum.accumulate(below.clip(0.0, 1.0)),
        low + (high - low) * np.minimum.accumulate(above.clip(0.0, 1.0)),
    )


def _means(values: Floats, customers: Ints) -> Floats:
    """Each customer's mean, in the order in which customers first appear."""
    _, first, codes = np.unique(customers, return_index=True, return_inverse=True)
    means = np.bincount(codes, weights=values) / np.bincount(codes)
    ordered: Floats = means[np.argsort(first)]
    return ordered


def _below(values: Floats, *, alpha: float) -> Floats:
    """Return a lower bound on the mean of terms of at least `-SLACK` that holds at every time with chance 1 - alpha.

    The predictable plug-in empirical Bernstein supermartingale (Waudby-Smith and Ramdas, 2024, Theorem 2; here for
    what is bounded from below only).
    """
    scaled = values / (SLACK + 1.0)
    count = np.arange(1, len(scaled) + 1)
    guess = np.concatenate([[0.0], (np.cumsum(np.minimum(scaled, 1.0)) / count)[:-1]])
    guess = guess.clip(0.0, 1.0 / (SLACK + 1.0))  # so that no term lies more than 1 below its guess
    spread = (0.25 + np.cumsum((np.minimum(scaled, 1.0) - guess) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.minimum(np.sqrt(2.0 * np.log(1.0 / alpha) / (before * count * np.log1p(count))), _BOLDEST)
    price = (-np.log1p(-bets) - bets) * (scaled - guess) ** 2
    bound: Floats = (np.cumsum(bets * scaled) - np.log(1.0 / alpha) - np.cumsum(price)) / np.cumsum(bets)
    return bound * (SLACK + 1.0)


_INTRINSIC = 2_000.0
"""Rounds at which the boundary begins to be tight: it is least, in errors, from ten to a hundred times as many."""


def stretched(rounds: int, *, alpha: float) -> float:
    """Return how many standard errors below an estimate its lower bound lies, to hold at every look with 1 - alpha.

    The one-sided boundary of a normal mixture for sums of martingale differences, as in asymptotic confidence sequences
    (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, 2024): it asks for no range and no order of customers. It is right
    once the central limit theorem is: from about as many effective rounds as a gate asks for.

    Args:
        rounds: in the estimate.
        alpha: chance of being wrong at any look.

    >>> round(stretched(20_000, alpha=0.05), 2), round(stretched(2_000, alpha=0.05), 2)
    (2.79, 3.29)
    """
    x = max(rounds, 1) / _INTRINSIC
    return float(np.sqrt(2.0 * (x + 1.0) / x * np.log1p(np.sqrt(x + 1.0) / (2.0 * alpha))))
