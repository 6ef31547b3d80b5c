"""How sure is an estimate? Intervals for the mean of a row of terms, a customer at a time.

A customer's rounds depend on each other, so the customer is the unit: terms are added up by customer before
their spread is taken.
"""

import msgspec
import numpy as np
from scipy.special import stdtrit

from optimizer.actions import Floats, Ints


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A value and how sure it is: `low` to `high` should cover the truth with probability `level`.

    `error` is the standard error, `degrees` the degrees of freedom of its t distribution.
    """

    value: float
    low: float
    high: float
    error: float
    degrees: float
    level: float
    rounds: int
    customers: int

    def at_level(self, level: float) -> "Estimate":
        """Return the same estimate with an interval of another level, as several comparisons need."""
        reach = _reach(self.error, degrees=self.degrees, level=level)
        return msgspec.structs.replace(self, low=self.value - reach, high=self.value + reach, level=level)


def clustered(terms: Floats, customers: Ints, *, level: float = 0.95) -> Estimate:
    """Student-t interval for the mean of terms (n,), clustered by customer codes (n,).

    The variance is `G / (G - 1) sum_c (sum_(i in c) (t_i - mean))^2 / n^2`, with G - 1 degrees of freedom
    (Liang and Zeger, 1986; Cameron and Miller, 2015).

    Raises:
        ValueError: for fewer than two customers: one cannot show how customers differ.

    >>> clustered(np.array([0.0, 2.0]), np.array([7, 9])).error  # sqrt(2 / 1 x (1 + 1) / 2^2)
    1.0
    >>> clustered(np.array([0.0, 0.0, 2.0, 2.0]), np.array([0, 0, 1, 1])).error  # no surer for being repeated
    1.0
    """
    names, codes = np.unique(customers, return_inverse=True)
    sums = np.bincount(codes, weights=terms, minlength=len(names)).astype(np.float64)
    return by_customer(sums, np.bincount(codes).astype(np.float64), level=level)


def by_customer(sums: Floats, sizes: Floats, *, level: float = 0.95) -> Estimate:
    """As `clustered`, from each customer's sum of terms (G,) and number of rounds (G,)."""
    groups, n = len(sizes), int(sizes.sum())
    if groups < 2:
        raise ValueError(
            f"an interval needs rounds of at least two customers, got {n} rounds of {groups}: "
            "wait until more customers have matured rounds"
        )
    value = float(sums.sum() / n)
    deviations = sums - value * sizes
    error = float(np.sqrt(groups / (groups - 1) * (deviations @ deviations)) / n)
    reach = _reach(error, degrees=groups - 1, level=level)
    return Estimate(
        value=value,
        low=value - reach,
        high=value + reach,
        error=error,
        degrees=groups - 1,
        level=level,
        rounds=n,
        customers=groups,
    )


def _reach(error: float, *, degrees: float, level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}: write 0.95 for 95 %")
    return float(stdtrit(degrees, 0.5 + level / 2)) * error
