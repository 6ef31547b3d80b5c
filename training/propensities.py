"""What chances did a log draw from that did not say? An estimate, and how wrong it may be before a verdict turns.

Another system's log often holds what was done but not with which chance. The chances are then estimated from the
context: by a multinomial model that has not seen the customer (five folds), its sureness corrected on the customers
left out. Whatever drove the choices and is not in the context stays unseen, so every number built on such chances
carries a range under the marginal sensitivity model: an unseen cause may move the odds of each choice by a factor of
at most gamma (Tan, 2006; Zhao, Small and Bhattacharya, 2019).
"""

from typing import NamedTuple

import msgspec
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from optimizer.actions import Floats, Ints
from training.ope import Evidence
from training.reward_model import fold_of

GAMMAS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
"""How much an unseen cause may move the odds of a choice: what ranges are shown for."""

_LARGEST = 20.0
_FOLDS = 5
_ITERATIONS = 60
_PENALTY = 1.0


def estimate(contexts: Floats, actions: Ints, customers: Ints, *, k: int) -> Floats:
    """Return the estimated chance of each action (n, k), of a model that has not seen the row's customer.

    An action that the log never took has chance 0: nothing can be said of it.

    Args:
        contexts: (n, d), what the chooser may have looked at.
        actions: (n,), what was done.
        customers: (n,), codes: the folds go by customer.
        k: how many actions there are.

    Raises:
        ValueError: for a log in which everybody got the same.

    >>> rng = np.random.Generator(np.random.Philox(key=7))
    >>> x = rng.normal(size=(4_000, 1))
    >>> took = (rng.random(4_000) < 1 / (1 + np.exp(-x[:, 0]))).astype(np.intp)
    >>> found = estimate(x, took, np.arange(4_000), k=2)
    >>> bool(np.abs(found[:, 1] - 1 / (1 + np.exp(-x[:, 0]))).max() < 0.06)
    True
    """
    taken = np.unique(actions)
    if len(taken) < 2:
        raise ValueError(
            "everybody got the same, so the log says nothing of what else could have been done; "
            "add rows of another action"
        )
    codes = np.searchsorted(taken, actions)
    folds = fold_of(customers, folds=_FOLDS)
    design = _standardised(contexts)
    scores = np.zeros((len(actions), len(taken)))
    for fold in np.unique(folds):
        rest = folds != fold
        if len(np.unique(codes[rest])) < len(taken):
            missing = int(taken[np.setdiff1d(np.arange(len(taken)), codes[rest])[0]])
            raise ValueError(
                f"action {missing} was taken by too few customers to estimate its chance without them; "
                "leave its rows out, or map it to an action that is like it"
            )
        weights = _multinomial(design[rest], codes[rest], k=len(taken))
        scores[~rest] = design[~rest] @ weights
    chances = np.zeros((len(actions), k))
    chances[:, taken] = softmax(_sureness(scores, codes) * scores, axis=1)
    return chances


def _standardised(contexts: Floats) -> Floats:
    """A constant, then every column with mean 0 and spread 1."""
    spread = contexts.std(axis=0)
    scaled = (contexts - contexts.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return np.column_stack([np.ones(len(contexts)), scaled[:, spread > 0]])


def _multinomial(design: Floats, codes: Ints, *, k: int) -> Floats:
    """Fit a multinomial logistic model with a slight ridge: weights (p, k), the first action's are 0 (Newton steps)."""
    n, p = design.shape
    weights = np.zeros((p, k - 1))
    ridge = np.diag(np.tile([1e-9, *[_PENALTY] * (p - 1)], k - 1))
    hot = np.eye(k)[codes][:, 1:]
    for _ in range(_ITERATIONS):
        chances = softmax(np.column_stack([np.zeros(n), design @ weights]), axis=1)[:, 1:]
        slope = (design.T @ (hot - chances)).T.ravel() - ridge @ weights.T.ravel()
        bend = np.block([[_block(design, chances, i, j) for j in range(k - 1)] for i in range(k - 1)])
        step = np.linalg.solve(bend + ridge + 1e-9 * np.eye(len(bend)), slope)
        step /= max(1.0, float(np.abs(step).max()) / 2.0)  # no step of more than 2 in the log odds of a unit
        weights += step.reshape(k - 1, p).T
        if np.abs(step).max() < 1e-8:
            break
    return np.column_stack([np.zeros(p), weights])


def _block(design: Floats, chances: Floats, i: int, j: int) -> Floats:
    weight = chances[:, i] * (float(i == j) - chances[:, j])
    block: Floats = (design * weight[:, None]).T @ design
    return block


def _sureness(scores: Floats, codes: Ints) -> float:
    """Return the factor on the scores that predicts best the choices of customers left out (temperature scaling)."""
    rows = np.arange(len(codes))

    def loss(factor: float) -> float:
        return -float(log_softmax(factor * scores, axis=1)[rows, codes].mean())

    return float(minimize_scalar(loss, bounds=(0.0, 2.0), method="bounded").x)


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What a value and its lift could be, were the odds of each choice off by a factor of up to each gamma.

    `flips_at` is the least gamma at which the lift is no longer shown to be on its side of 0, statistical error
    included: 1 where it never was, None where it takes more than 20.
    """

    target: str
    gammas: tuple[float, ...]
    value: tuple[tuple[float, float], ...]
    lift: tuple[tuple[float, float], ...]
    flips_at: float | None


class Range(NamedTuple):
    """The least and the most that something can be."""

    low: float
    high: float


def bounds(evidence: Evidence, propensities: Floats, *, gamma: float) -> Range:
    """Return what a target's value can be if each choice's odds are off by a factor of at most gamma.

    The weight `pi / mu` of a round lies between `pi (1 + (1 / mu - 1) / gamma)` and `pi (1 + (1 / mu - 1) gamma)`.
    The doubly robust correction with normalised weights is largest where the largest residuals have the largest
    weights, so the extreme is found by sorting.

    >>> e = Evidence(np.array([2.0, 2.0]), np.array([1.0, 0.0]), np.zeros(2), np.zeros(2))
    >>> tuple(round(x, 3) for x in bounds(e, np.array([0.5, 0.5]), gamma=2.0))  # weights from 1.5 to 3
    (0.333, 0.667)
    """
    target = evidence.weights * propensities
    odds = 1.0 / propensities - 1.0
    least, most = target * (1.0 + odds / gamma), target * (1.0 + odds * gamma)
    base = float(evidence.expected.mean())
    high = _largest_ratio(evidence.residuals, least, most)
    return Range(base - _largest_ratio(-evidence.residuals, least, most), base + high)


def _largest_ratio(values: Floats, least: Floats, most: Floats) -> float:
    """Return the largest `sum w v / sum w` over weights between least and most: a threshold rule attains it."""
    order = np.argsort(-values, kind="stable")
    v, low, high = values[order], least[order], most[order]
    mass = np.concatenate([[0.0], np.cumsum(high)]) + np.concatenate([np.cumsum(low[::-1])[::-1], [0.0]])
    worth = np.concatenate([[0.0], np.cumsum(high * v)]) + np.concatenate([np.cumsum((low * v)[::-1])[::-1], [0.0]])
    possible = mass > 0
    return float((worth[possible] / mass[possible]).max()) if possible.any() else 0.0


class Pair(NamedTuple):
    """What the log holds about a target and about the reference, and how far chance alone may move their difference."""

    target: Evidence
    reference: Evidence
    propensities: Floats
    reach: float
    today: bool


def sensitivity(pair: Pair, *, target: str) -> Sensitivity:
    """Return ranges over `GAMMAS` and the gamma at which the verdict on the lift would turn.

    Where the reference is today's policy its value is the mean reward, whatever the chances were; of another
    reference each side takes its own worst case, which is careful.
    """
    return Sensitivity(
        target=target,
        gammas=GAMMAS,
        value=tuple(bounds(pair.target, pair.propensities, gamma=g) for g in GAMMAS),
        lift=tuple(_lift(pair, g) for g in GAMMAS),
        flips_at=_flips_at(pair),
    )


def _lift(pair: Pair, gamma: float) -> Range:
    own = bounds(pair.target, pair.propensities, gamma=gamma)
    if pair.today:
        mean = float(pair.reference.rewards.mean())
        return Range(own.low - mean, own.high - mean)
    other = bounds(pair.reference, pair.propensities, gamma=gamma)
    return Range(own.low - other.high, own.high - other.low)


def _flips_at(pair: Pair) -> float | None:
    def shown(gamma: float) -> bool:
        lift = _lift(pair, gamma)
        return lift.low - pair.reach > 0 or lift.high + pair.reach < 0

    if not shown(1.0):
        return 1.0
    if shown(_LARGEST):
        return None
    low, high = 1.0, _LARGEST
    while high - low > 1e-3:
        middle = (low + high) / 2.0
        low, high = (middle, high) if shown(middle) else (low, middle)
    return round(high, 3)
