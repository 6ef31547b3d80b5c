"""What would another policy have been worth? A row of terms for each estimator, one term a round.

An estimate is the mean of its terms and its interval comes from their spread (`training.intervals`), so a
paired comparison of two targets is the difference of two rows. Ratios (SNIPS, SNDR) are linearised about
their value: the mean of their terms is exactly the ratio, and their spread is that of the ratio to first
order.

The estimand is *this decision, then the logging policy*, under the mask and the prices of the log. A target
is the vector that would have been drawn from: the value of deploying a policy is that of its floored vector
(`training.targets.deployed`), not of what the policy says before the floor.

Symbols: n rounds, k actions; `A` the action drawn, `mu` the logged probabilities, `pi` the target's, `q` a
    model of the reward; `w = pi(A) / mu(A)`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from optimizer.actions import Bools, Floats, Floats32, Ints
from optimizer.policy import Rounds

SUM_TOLERANCE = 1e-6
"""How far from 1 a vector may sum; float32 logs of several hundred actions stay within 1e-7."""


@dataclass(frozen=True)
class Evidence:
    """What estimators read of each round about one target: four numbers, so no (n, k) array is kept.

    Args:
        weights: (n,), `pi(A) / mu(A)`.
        rewards: (n,), matured.
        drawn: (n,), `q(x, A)`.
        expected: (n,), `sum_a pi(a) q(x, a)`.
    """

    weights: Floats
    rewards: Floats
    drawn: Floats
    expected: Floats

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def residuals(self) -> Floats:
        """Shape (n,): reward minus what the model predicted for the action drawn."""
        return self.rewards - self.drawn

    def reweighted(self, weights: Floats) -> "Evidence":
        """Return the same evidence under other weights (n,)."""
        return replace(self, weights=weights)

    def take(self, rows: Ints | Bools | slice) -> "Evidence":
        """Return the evidence of some of the rounds."""
        return Evidence(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence["Evidence"]) -> "Evidence":
        """Return the evidence of several blocks of rounds."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


def weigh(rounds: Rounds, target: Floats, q: Floats) -> Evidence:
    """Reduce logged rounds to the evidence they hold about a target policy.

    Args:
        rounds: n rounds.
        target: (n, k), the probabilities that the target would have drawn from.
        q: (n, k), predicted rewards, from a model that has not seen the round's customer.

    Raises:
        ValueError: where a vector of the target or of the log is no distribution over the allowed actions.

    >>> import numpy as np
    >>> rounds = Rounds(
    ...     contexts=np.ones((2, 1)), allowed=np.ones((2, 2), dtype=bool),
    ...     probabilities=np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32), actions=np.array([1, 0]),
    ...     rewards=np.array([1.0, 0.0]), customers=np.array([0, 1]), at=np.zeros(2), cost_prices=np.zeros(2),
    ...     burdens=np.zeros(2), loggers=np.zeros(2, dtype=np.intp))
    >>> evidence = weigh(rounds, np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.1, 0.4], [0.2, 0.5]]))
    >>> evidence.weights.tolist(), evidence.drawn.tolist(), evidence.expected.tolist()
    ([2.0, 4.0], [0.4, 0.2], [0.4, 0.2])
    """
    check_vectors(target, rounds.allowed, whose="the target's")
    check_vectors(rounds.probabilities, rounds.allowed, whose="the logged")
    propensities = rounds.propensities
    if (impossible := np.flatnonzero(propensities <= 0)).size:
        raise ValueError(
            f"round {impossible[0]}: the action drawn has logged probability 0, so it was not drawn from "
            "that vector; log the vector that was drawn from"
        )
    rows = np.arange(len(rounds))
    return Evidence(
        weights=target[rows, rounds.actions] / propensities,
        rewards=rounds.rewards,
        drawn=np.asarray(q[rows, rounds.actions], dtype=np.float64),
        expected=np.einsum("nk,nk->n", target, q, dtype=np.float64),
    )


def check_vectors(vectors: Floats | Floats32, allowed: Bools, *, whose: str) -> None:
    """Refuse probabilities (n, k) that are no distributions over the allowed actions (n, k).

    Raises:
        ValueError: naming the round, the action where one is at fault, and what is wrong.

    >>> check_vectors(np.array([[0.5, 0.5]]), np.array([[True, False]]), whose="the target's")
    Traceback (most recent call last):
        ...
    ValueError: round 0: the target's probability of action 1 is 0.5, but it was blocked; a target chooses
        under the mask of the log
    """
    if vectors.shape != allowed.shape:
        raise ValueError(f"{whose} probabilities have shape {vectors.shape}, expected {allowed.shape}: (n, k)")
    for wrong, problem in (
        (~((vectors >= 0) & (vectors <= 1 + SUM_TOLERANCE)), "expected a number from 0 to 1"),
        ((vectors > 0) & ~allowed, "but it was blocked; a target chooses under the mask of the log"),
    ):
        if wrong.any():
            row, action = (int(i) for i in np.argwhere(wrong)[0])
            given = f"{whose} probability of action {action} is {float(vectors[row, action]):g}"
            raise ValueError(f"round {row}: {given}, {problem}")
    sums = vectors.sum(axis=1, dtype=np.float64)
    if (off := np.flatnonzero(np.abs(sums - 1.0) > SUM_TOLERANCE)).size:
        raise ValueError(f"round {off[0]}: {whose} probabilities sum to {sums[off[0]]:.8g}, expected 1")


def ips(evidence: Evidence) -> Floats:
    """Inverse propensity scoring: `w r` (Horvitz and Thompson, 1952). Unbiased.

    >>> ips(_example()).tolist()
    [2.0, 0.0]
    """
    return evidence.weights * evidence.rewards


def snips(evidence: Evidence) -> Floats:
    """Self-normalised IPS: `sum w r / sum w`, linearised; biased by O(1/n) (Swaminathan and Joachims, 2015).

    >>> terms = snips(_example())  # 2 / (2 + 0.5) = 0.8, mean weight 1.25: 0.8 + 1.6 x 0.2, 0.8 - 0.4 x 0.8
    >>> terms.round(2).tolist(), float(terms.mean())
    ([1.12, 0.48], 0.8)
    """
    return _ratio(evidence.weights, evidence.rewards)


def dm(evidence: Evidence) -> Floats:
    """Direct method: `sum_a pi(a) q(x, a)`. As right as the model, and no less wrong.

    >>> dm(_example()).tolist()
    [0.5, 0.25]
    """
    return evidence.expected


def dr(evidence: Evidence) -> Floats:
    """Doubly robust: the direct method plus `w (r - q(x, A))` (Dudik et al., 2011). Unbiased.

    >>> dr(_example()).tolist()  # 0.5 + 2 (1 - 0.75), 0.25 + 0.5 (0 - 0.5)
    [1.0, 0.0]
    """
    return evidence.expected + evidence.weights * evidence.residuals


def sndr(evidence: Evidence) -> Floats:
    """Self-normalised doubly robust: its correction is a ratio (Thomas and Brunskill, 2016).

    >>> float(sndr(_example()).mean())  # 0.375 + (0.5 - 0.25) / 2.5
    0.475
    """
    return evidence.expected + _ratio(evidence.weights, evidence.residuals)


def shrunk(evidence: Evidence, *, shrinkage: float) -> Floats:
    """DR with weights shrunk to `s w / (w^2 + s)`: at most `sqrt(s) / 2`, `w` where s is large (Su et al., 2020).

    >>> shrunk(_example(), shrinkage=4.0).round(4).tolist()  # weights 8 / 8 = 1 and 2 / 4.25
    [0.75, 0.0147]
    """
    w = evidence.weights
    return dr(evidence.reweighted(shrinkage * w / (w**2 + shrinkage)))


def switched(evidence: Evidence, *, threshold: float) -> Floats:
    """DR where the weight is at most the threshold, the model alone where it is not (Wang et al., 2017).

    >>> switched(_example(), threshold=1.0).tolist()
    [0.5, 0.0]
    """
    return dr(evidence.reweighted(np.where(evidence.weights <= threshold, evidence.weights, 0.0)))


def dros(evidence: Evidence) -> Floats:
    """DR with optimistic shrinkage, as much of it as SLOPE finds to be harmless. Its interval is not honest.

    >>> dros(_example()).shape
    (2,)
    """
    largest = max(float(evidence.weights.max(initial=0.0)), 1.0) ** 2
    return slope([dr(evidence), *(shrunk(evidence, shrinkage=largest / 4.0**step) for step in range(6))])


def switch(evidence: Evidence) -> Floats:
    """Switch-DR, with the lowest threshold that SLOPE finds to be harmless. Its interval is not honest.

    >>> switch(_example()).shape
    (2,)
    """
    quantiles = np.quantile(evidence.weights, (0.99, 0.97, 0.95, 0.9, 0.8))
    return slope([dr(evidence), *(switched(evidence, threshold=float(t)) for t in quantiles)])


AGREE = 1.5
"""Standard errors of a difference within which two rows agree: looser, bias passes; tighter, little is gained."""


def slope(rows: Sequence[Floats], *, agree: float = AGREE) -> Floats:
    """Return the last of several rows of terms whose estimate agrees with all before it.

    The rows go from the least biased to the least spread (Su, Srinath and Krishnamurthy, 2020). Their terms are of the
    same rounds, so agreement is judged by the paired difference: far sharper than by the overlap of two intervals,
    which lets a bias as large as the interval pass.

    >>> rough, fine, wrong = np.array([-1.0, 3.0, 1.0]), np.array([0.9, 1.1, 1.0]), np.array([9.0, 9.0, 9.0])
    >>> slope([rough, fine, wrong]).tolist()
    [0.9, 1.1, 1.0]
    """
    return rows[rung(rows, agree=agree)]


def rung(rows: Sequence[Floats], *, agree: float = AGREE) -> int:
    """Return which of several rows of terms `slope` picks.

    >>> rung([np.array([-1.0, 3.0, 1.0]), np.array([0.9, 1.1, 1.0]), np.array([9.0, 9.0, 9.0])])
    1
    """
    chosen = 0
    for i in range(1, len(rows)):
        if any(_apart(rows[i], rows[j], agree=agree) for j in range(i)):
            break
        chosen = i
    return chosen


def _apart(terms: Floats, other: Floats, *, agree: float) -> bool:
    """Whether two rows differ by more than their paired difference may by chance."""
    gaps = terms - other
    return abs(float(gaps.mean())) > agree * float(gaps.std()) / float(np.sqrt(len(gaps))) + 1e-12


def balanced(rounds: Rounds, vectors: Mapping[int, Floats], *, shares: Mapping[int, float] | None = None) -> Rounds:
    """Return rounds of several logging policies as if one mixture of them had drawn them all.

    Where policies differ, weights over the mixture spread far less than over each round's own vector, and stay
    unbiased (Agarwal et al., 2017).

    Args:
        rounds: n rounds.
        vectors: for each logger's code, what it would have drawn from on every round (n, k).
        shares: of each logger in the whole log, where these rounds are a part of it; else as they are here.

    >>> rounds = Rounds(
    ...     contexts=np.ones((2, 1)), allowed=np.ones((2, 2), dtype=bool),
    ...     probabilities=np.array([[0.9, 0.1], [0.1, 0.9]], dtype=np.float32), actions=np.array([1, 1]),
    ...     rewards=np.ones(2), customers=np.arange(2), at=np.zeros(2), cost_prices=np.zeros(2), burdens=np.zeros(2),
    ...     loggers=np.array([0, 1]))
    >>> by_policy = {0: np.array([[0.9, 0.1], [0.9, 0.1]]), 1: np.array([[0.1, 0.9], [0.1, 0.9]])}
    >>> balanced(rounds, by_policy).probabilities.tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    if missing := set(np.unique(rounds.loggers).tolist()) - set(vectors):
        raise ValueError(
            f"rounds of loggers {sorted(missing)} are there, but not what those policies would draw from on the other "
            "rounds; give their vectors, or evaluate each logger's rounds apart"
        )
    shares = shares or {code: float((rounds.loggers == code).mean()) for code in vectors}
    mixture = np.sum([share * vectors[code] for code, share in shares.items()], axis=0)
    return replace(rounds, probabilities=mixture.astype(rounds.probabilities.dtype))


def _ratio(weights: Floats, values: Floats) -> Floats:
    """Terms whose mean is `sum w v / sum w` and whose spread is that ratio's, to first order (the delta method)."""
    mean_weight = weights.mean()
    if mean_weight == 0.0:
        raise ValueError(
            "every weight is 0: the log never drew an action that this target would; use dr, or explore there"
        )
    ratio = float(weights @ values / weights.sum())
    terms: Floats = ratio + weights / mean_weight * (values - ratio)
    return terms


class Estimator(NamedTuple):
    """An estimator by name.

    `unbiased`: its expectation is the value exactly, for any fixed `q` (for dm, only a right one). `gates`:
    its interval may decide a promotion; what was shrunk or selected has no honest one.
    """

    title: str
    terms: Callable[[Evidence], Floats]
    unbiased: bool
    gates: bool = False


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "ips": Estimator("inverse propensity", ips, unbiased=True),
        "snips": Estimator("self-normalised inverse propensity", snips, unbiased=False),
        "dm": Estimator("direct method (model alone)", dm, unbiased=False),
        "dr": Estimator("doubly robust", dr, unbiased=True, gates=True),
        "sndr": Estimator("self-normalised doubly robust", sndr, unbiased=False),
        "dros": Estimator("doubly robust, shrunk", dros, unbiased=False),
        "switch": Estimator("doubly robust, switching to the model", switch, unbiased=False),
    }
)
"""Every estimator, by name: what tests and reports run over."""


def _example() -> Evidence:
    """Two rounds for the doctests: weights 2 and 1/2, rewards 1 and 0."""
    return Evidence(
        weights=np.array([2.0, 0.5]),
        rewards=np.array([1.0, 0.0]),
        drawn=np.array([0.75, 0.5]),
        expected=np.array([0.5, 0.25]),
    )
