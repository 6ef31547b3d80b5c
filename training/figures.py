"""How is a number said so that nobody reads more into it than it holds? With its interval, its estimand, and its n.

Where a number cannot be had, a figure says so in its place, with what would mend it: unknown is not zero.
"""

from typing import Literal

import msgspec
import numpy as np
from scipy.special import ndtri

from optimizer.actions import Bools, Floats, Ints
from training.intervals import Estimate, clustered

FEW = 20
"""Customers below which a share or a mean is not said: its interval would hold nearly everything."""

Unit = Literal["share", "money", "days", "score", "points", "count", "change"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a report.

    `of` says what it is an estimate of. Where `value` is None it is not known, and `missing` says why and what would
    mend it. `low` and `high` are None for what was counted and not estimated.
    """

    of: str
    unit: Unit
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    n: int = 0
    customers: int = 0
    missing: str = ""

    @property
    def above(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def below(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0


def counted(value: float, *, of: str, unit: Unit = "count", n: int = 0) -> Figure:
    """Return what was counted: nothing is uncertain about it."""
    return Figure(of=of, unit=unit, value=float(value), n=n)


def missing(why: str, *, of: str, unit: Unit, n: int = 0) -> Figure:
    """Return a number that is not known."""
    return Figure(of=of, unit=unit, n=n, missing=why)


def few(customers: int, *, enough: int = FEW, what: str = "customers") -> str:
    """Say that there is not enough evidence, and how much more it takes."""
    return (
        f"not enough evidence: {customers:,} {what}; it takes {enough:,}, so wait for about {enough - customers:,} more"
    )


def share(hits: Bools | Floats, customers: Ints, *, of: str, level: float = 0.95, enough: int = FEW) -> Figure:
    """Return a share of rows (n,) with an interval clustered by customer that stays within 0 and 1.

    Wilson's interval (1927) for as many independent rows as have the variance that customers show; where all rows are
    alike, for as many rows as there are customers.

    >>> share(np.zeros(40), np.arange(40), of="nothing").high
    0.0876...
    """
    n, people = len(hits), len(np.unique(customers))
    if people < enough:
        return missing(few(people, enough=enough), of=of, unit="share", n=n)
    value = float(np.mean(hits))
    spread = clustered(np.asarray(hits, dtype=np.float64), customers).error ** 2
    size = min(value * (1 - value) / spread, float(n)) if spread > 0 and 0 < value < 1 else float(people)
    z = float(ndtri(0.5 + level / 2))
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * float(np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)))
    low, high = max(middle - reach, 0.0), min(middle + reach, 1.0)
    return Figure(of=of, unit="share", value=value, low=low, high=high, level=level, n=n, customers=people)


def mean(
    terms: Floats, customers: Ints, *, of: str, unit: Unit, level: float = 0.95, scale: float = 1.0, enough: int = FEW
) -> Figure:
    """Return the mean of terms (n,), scaled, with a Student-t interval clustered by customer; of a share, in 0 to 1."""
    people = len(np.unique(customers))
    if people < enough:
        return missing(few(people, enough=enough), of=of, unit=unit, n=len(terms))
    return estimated(clustered(terms * scale, customers, level=level), of=of, unit=unit)


def estimated(e: Estimate, *, of: str, unit: Unit) -> Figure:
    """Return an estimate as a figure; the interval of a share stays within 0 and 1."""
    low, high = (max(e.low, 0.0), min(e.high, 1.0)) if unit == "share" else (e.low, e.high)
    return Figure(of=of, unit=unit, value=e.value, low=low, high=high, level=e.level, n=e.rounds, customers=e.customers)
