"""How sure is an estimate? Intervals for the mean of a row of terms, a customer at a time.

A customer's rounds depend on each other, so the customer is the unit: terms are added up by customer before
their spread is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit

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


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A value and an interval that need not be symmetric, with how it was found."""

    value: float
    low: float
    high: float
    level: float
    method: Literal["bca bootstrap", "poisson bootstrap", "empirical likelihood"]


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
    sums, sizes = _by_customer(terms, customers)
    return by_customer(sums, sizes, level=level)


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


@dataclass(frozen=True)
class Condensed:
    """Sums of terms and numbers of rounds by customer, (G,): all that resampling customers needs."""

    sums: Floats
    sizes: Floats

    @property
    def value(self) -> float:
        """The mean of the terms."""
        return float(self.sums.sum() / self.sizes.sum())

    def bca(self, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 2_000) -> Interval:
        """As the function `bca`."""
        return self.accelerated(_redrawn([self], rng=rng, resamples=resamples)[0], level=level)

    def poisson(self, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 2_000) -> Interval:
        """As the function `poisson`."""
        return self.percentile(_redrawn([self], rng=rng, resamples=resamples, of_poisson=True)[0], level=level)

    def accelerated(self, draws: Floats, *, level: float) -> Interval:
        """Return the bias-corrected and accelerated interval from means of resampled customers (resamples,)."""
        sums, sizes, value, resamples = self.sums, self.sizes, self.value, len(draws)
        below = (np.count_nonzero(draws < value) + 0.5 * np.count_nonzero(draws == value)) / resamples
        bias = float(ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples)))
        without = (sums.sum() - sums) / (sizes.sum() - sizes)
        bent = without.mean() - without
        acceleration = float((bent * bent * bent).sum() / max(6.0 * (bent @ bent) ** 1.5, 1e-300))
        z = ndtri([0.5 - level / 2, 0.5 + level / 2])
        shares = ndtr(bias + (bias + z) / (1.0 - acceleration * (bias + z)))
        low, high = (float(x) for x in np.quantile(draws, shares))
        return Interval(value=value, low=low, high=high, level=level, method="bca bootstrap")

    def percentile(self, draws: Floats, *, level: float) -> Interval:
        """Return the interval between percentiles of means of customers with Poisson counts (resamples,)."""
        low, high = (float(x) for x in np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2]))
        return Interval(value=self.value, low=low, high=high, level=level, method="poisson bootstrap")


class Bootstrapped(NamedTuple):
    """Both bootstrap intervals of one row of terms."""

    bca: Interval
    poisson: Interval


def bootstraps(
    rows: Sequence[Floats], customers: Ints, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 2_000
) -> list[Bootstrapped]:
    """Return both bootstrap intervals of several rows of terms (n,) from the same resamples of customers.

    How often each customer is drawn is found once for all rows, and the rows' means are one product of matrices: a
    dozen rows take hardly longer than one.

    >>> rng, terms = np.random.default_rng(1), np.random.default_rng(2).exponential(size=200)
    >>> one, doubled = bootstraps([terms, 2.0 * terms], np.arange(200), rng=rng)
    >>> bool(np.isclose(doubled.bca.high, 2.0 * one.bca.high)), one.poisson.low < one.poisson.value
    (True, True)
    """
    codes = gathered(customers)
    few = [Condensed(*_by_customer(terms, codes)) for terms in rows]
    drawn = _redrawn(few, rng=rng, resamples=resamples)
    thinned = _redrawn(few, rng=rng, resamples=resamples, of_poisson=True)
    return [
        Bootstrapped(one.accelerated(a, level=level), one.percentile(b, level=level))
        for one, a, b in zip(few, drawn, thinned, strict=True)
    ]


MOST_GROUPS = 2_048
"""Customers that are resampled one by one; more of them are gathered, by a scramble, in so many groups."""


def condensed(terms: Floats, customers: Ints, *, most: int = MOST_GROUPS) -> Condensed:
    """Sum terms (n,) by customer; where there are more than `most`, by as many groups of customers.

    A group of whole customers is a cluster as good as one of them, and a few thousand tell the spread of a mean: a
    million customers take no longer than two thousand.

    >>> condensed(np.array([1.0, 2.0, 4.0]), np.array([5, 5, 9])).sums.tolist()
    [3.0, 4.0]
    """
    return Condensed(*_by_customer(terms, gathered(customers, most=most)))


def gathered(customers: Ints, *, most: int = MOST_GROUPS) -> Ints:
    """Return a code (n,) for each round's customer, or, where there are more than `most`, for its group of customers.

    >>> gathered(np.array([5, 9, 5])).tolist(), len(np.unique(gathered(np.arange(9_000))))
    ([0, 1, 0], 2048)
    """
    codes = _dense(customers)
    if len(codes) and codes.max() >= most:
        mixed = codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        codes = ((mixed >> np.uint64(32)) % np.uint64(most)).astype(np.intp)
    return np.asarray(codes, dtype=np.intp)


def bca(
    terms: Floats, customers: Ints, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 2_000
) -> Interval:
    """Bootstrap customers, bias-corrected and accelerated (Efron, 1987): for few customers and skewed terms.

    >>> rng = np.random.default_rng(1)
    >>> found = bca(rng.exponential(size=200), np.arange(200), rng=rng)
    >>> found.low < found.value < found.high and found.high - found.value > found.value - found.low
    True
    """
    return condensed(terms, customers, most=len(terms)).bca(rng=rng, level=level, resamples=resamples)


def poisson(
    terms: Floats, customers: Ints, *, rng: np.random.Generator, level: float = 0.95, resamples: int = 2_000
) -> Interval:
    """Bootstrap customers with Poisson(1) counts: each shard draws its own, so it needs no second look at the log.

    >>> rng = np.random.default_rng(1)
    >>> found = poisson(rng.normal(size=200), np.arange(200), rng=rng)
    >>> found.low < 0 < found.high
    True
    """
    return condensed(terms, customers, most=len(terms)).poisson(rng=rng, level=level, resamples=resamples)


def _by_customer(terms: Floats, customers: Ints) -> tuple[Floats, Floats]:
    """Return each customer's sum of terms and number of rounds."""
    codes = customers if _compact(customers) else _dense(customers)
    sizes = np.bincount(codes)
    there = sizes > 0
    if (groups := np.count_nonzero(there)) < 2:
        raise ValueError(
            f"an interval needs rounds of at least two customers, got {len(terms)} rounds of {groups}: "
            "wait until more customers have matured rounds"
        )
    sums = np.bincount(codes, weights=terms)[there].astype(np.float64)
    return sums, sizes[there].astype(np.float64)


def _compact(customers: Ints) -> bool:
    """Whether codes can be counted as they are: a dataset's run from 0 to the number of its customers."""
    whole = len(customers) > 0 and customers.dtype.kind in "iu"
    return whole and bool(customers.min() >= 0) and bool(customers.max() < 8 * len(customers))


def _dense(customers: Ints) -> Ints:
    """Return codes (n,) from 0 on, without gaps, in the order of the codes given."""
    if not _compact(customers):
        return np.asarray(np.unique(customers, return_inverse=True)[1], dtype=np.intp)
    there = np.bincount(customers) > 0
    return np.asarray((np.cumsum(there) - 1)[customers], dtype=np.intp)


_COUNTS = 262_144
"""How many counts a block of resamples may hold: they stay in the cache."""


def _redrawn(
    few: Sequence[Condensed], *, rng: np.random.Generator, resamples: int, of_poisson: bool = False
) -> list[Floats]:
    """Return for each row the mean (resamples,) of as many customers drawn anew, or of Poisson counts of each.

    Poisson counts are a Poisson number of draws, so either way customers are drawn by number and counted.
    """
    sizes = few[0].sizes
    groups, columns = len(sizes), np.column_stack([sizes, *(one.sums for one in few)])
    means, step = [], max(1, _COUNTS // groups)
    for start in range(0, resamples, step):
        times = min(step, resamples - start)
        drawn = rng.poisson(groups, size=times) if of_poisson else np.full(times, groups)
        which = rng.integers(0, groups, size=int(drawn.sum()), dtype=np.int32)
        which += np.repeat(np.arange(times, dtype=np.int32) * groups, drawn)
        counts = np.bincount(which, minlength=times * groups).reshape(times, groups).astype(np.float64)
        totals = counts @ columns
        means.append(totals[:, 1:] / np.maximum(totals[:, :1], 1.0))
    return [np.ascontiguousarray(column) for column in np.concatenate(means).T]


def likelihood(
    weights: Floats, rewards: Floats, customers: Ints, *, low: float, high: float, level: float = 0.95
) -> Interval:
    """Empirical likelihood interval for the value of a target, from bounded rewards and no model.

    Customers are reweighted so that weights average one; what values leave such a reweighting likely enough make the
    interval (Owen, 2001; Karampatziakis, Langford and Mineiro, 2020).

    Args:
        weights, rewards, customers: (n,).
        low, high: the range that rewards are declared to have.
        level: of the interval.

    Raises:
        ValueError: for a reward out of its range.

    >>> rng = np.random.default_rng(0)
    >>> rewards = (rng.random(500) < 0.1).astype(float)
    >>> found = likelihood(np.ones(500), rewards, np.arange(500), low=0.0, high=1.0)
    >>> found.low < 0.1 < found.high and found.low > 0.0
    True
    """
    if not ((rewards >= low) & (rewards <= high)).all():
        row = int(np.argmax(~((rewards >= low) & (rewards <= high))))
        raise ValueError(f"round {row}: reward {rewards[row]:g} is out of the declared range {low:g} to {high:g}")
    worth, sizes = _by_customer(weights * rewards, customers)
    masses, _ = _by_customer(weights, customers)
    extra = masses - sizes
    at_best = _log_ratio(extra[:, None])
    pulls = 1.0 / (1.0 + extra * at_best.multiplier[0])
    value = float(np.clip((pulls @ worth) / (pulls @ sizes), low, high))
    limit = float(stdtrit(len(sizes) - 1, 0.5 + level / 2)) ** 2

    last = np.concatenate([[0.0], at_best.multiplier])

    def beyond(v: float) -> float:
        nonlocal last  # the next value asked for is near: its weights are nearly the same
        tilt = _log_ratio(np.column_stack([worth - v * sizes, extra]), start=last)
        last = tilt.multiplier
        return tilt.ratio - at_best.ratio - limit

    ends = [
        float(brentq(beyond, end, value, xtol=1e-9 * (high - low))) if beyond(end) > 0 else end for end in (low, high)
    ]
    return Interval(value=value, low=ends[0], high=ends[1], level=level, method="empirical likelihood")


class _Tilt(msgspec.Struct, frozen=True):
    """Minus twice the log of the largest likelihood ratio, and the multiplier that attains it."""

    ratio: float
    multiplier: Floats


_HALVINGS = 60


def _log_ratio(gaps: Floats, *, start: Floats | None = None) -> _Tilt:
    """Maximise `sum log*(1 + lambda . g)` over lambda for gaps (G, p) by damped Newton steps (Owen, 2001, 3.14).

    From `start`, where that is nearer than 0: the maximum is the same from anywhere, for the sum is concave.
    """
    edge = 1.0 / len(gaps)
    scale = np.maximum(np.abs(gaps).max(axis=0), 1e-12)
    g = gaps / scale
    found, best = np.zeros(g.shape[1]), 0.0
    if start is not None and (there := _log_star(1.0 + g @ (start * scale), edge)) > best:
        found, best = start * scale, there
    for _ in range(60):
        inside = 1.0 + g @ found
        near = inside < edge
        slope = np.where(near, 2.0 / edge - inside / edge**2, 1.0 / np.where(near, 1.0, inside))
        bend = np.where(near, 1.0 / edge**2, slope**2)
        curve = (g.T * bend) @ g
        # Far out, where no weights make the gaps average 0, the curve is all but flat: the ridge goes with its size.
        step = np.linalg.solve(curve + (1e-10 * np.trace(curve) + 1e-300) * np.eye(len(found)), g.T @ slope)
        slack = 1e-11 * max(1.0, abs(best))  # what rounding may take from a sum of logs
        for _ in range(_HALVINGS):
            if (reached := _log_star(1.0 + g @ (found + step), edge)) >= best - slack:
                break
            step = step / 2.0
        else:
            break
        found = found + step
        if reached - best < 1e-11 * max(1.0, abs(best)):
            break
        best = reached
    return _Tilt(2.0 * _log_star(1.0 + g @ found, edge), found / scale)


def _log_star(inside: Floats, edge: float) -> float:
    """Sum of logs, continued as a parabola below `edge`, so that it is finite everywhere."""
    ratio = inside / edge
    parabola = np.log(edge) - 1.5 + 2.0 * ratio - 0.5 * ratio**2
    return float(np.where(inside < edge, parabola, np.log(np.maximum(inside, edge))).sum())


def _reach(error: float, *, degrees: float, level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}: write 0.95 for 95 %")
    return float(stdtrit(degrees, 0.5 + level / 2)) * error
