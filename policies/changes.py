"""Has what moves customers changed, so that earlier rounds mislead? Found from the rounds: nothing is to be set."""

from functools import partial, reduce
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from optimizer.actions import Floats
from policies.factored import Statistics
from policies.layout import BIAS
from policies.posterior import EXPECTED, Moments, Posterior, fit, marginals, mixed, regressed, spread_of_reward
from policies.threads import one_thread

CHANGE = 0.001
"""Odds, before any data, that effects have changed."""

_FLAT, _EXACT = 1e-6, 1e-9
"""Rounds that the expectation of no baseline weighs; how exact sums are, relative to their size."""


class Learned(NamedTuple):
    """The rounds that count, what they say, and whether others were left out because effects have changed since."""

    statistics: Statistics
    posterior: Posterior
    changed: bool


def learned(total: Statistics) -> Learned:
    """Return what the rounds say, without those before the latest change of effects.

    With a half-life given, all of them count, each as much as that says.
    """
    found = Learned(total, fit(total), changed=False)
    while (later := _since_change(found.statistics, found.posterior)) is not None:
        found = Learned(later, fit(later), changed=True)
    return found


def _since_change(total: Statistics, posterior: Posterior) -> Statistics | None:
    """Return the rounds since the likeliest change; None where no change is likelier than one.

    At each edge between two spans, effects are the same before and after it or they are not (Barry and Hartigan 1993):
    what is compared is the marginal likelihood of one posterior for all, and of one for each side (Bayes factor; Kass
    and Raftery 1995). Its mean over the edges has to outweigh the odds. Each span has a baseline of its own, so that a
    season that moves all rewards alike is no change.
    """
    if len(total.apart) < 2:
        return None
    scales = np.maximum(posterior.prior.scales, EXPECTED * spread_of_reward(total))
    variances = scales[total.layout.groups] ** 2
    excess = _excess(total, noise=posterior.noise)
    empty = Statistics.empty(total.layout)
    likely = partial(_evidence, variances=variances)
    with one_thread():
        spans = [_moments(empty.plus(span), posterior, variances=variances, excess=excess) for span in total.apart]
        *before, whole = accumulate(spans, _added)
        same = likely(whole)
        factors = [likely(side) + likely(_added(whole, side, sign=-1.0)) - same for side in before]
    if np.logaddexp.reduce(factors) - np.log(len(factors)) <= -np.log(CHANGE):
        return None
    return reduce(Statistics.__add__, total.apart[int(np.argmax(factors)) + 1 :])


def _moments(s: Statistics, posterior: Posterior, *, variances: Floats, excess: float) -> Moments:
    """Return the moments of some rounds, with a baseline and a noise of their own, in units of both.

    Nothing is expected of the baseline: rounds that are as few as its parameters tell nothing. Their noise is that of
    the posterior at least. Where rewards are rare and large, it is more the more freely effects follow a round: by how
    much the variance of a quadratic form exceeds a Gaussian's (Seber and Lee 2003, chapter 1).
    """
    units, noise = posterior.prior.units, posterior.noise**2
    joint = regressed(s, s.uu, s.uy, s.ur, units=units, ridge=_FLAT)
    centred = regressed(s, s.zz, s.zy.sum(axis=0), s.zr.sum(axis=0), units=units, ridge=_FLAT)
    both = mixed(joint, centred, trust=posterior.trust, rest=posterior.rest)
    both.zz[np.diag_indices_from(both.zz)] += _EXACT * (np.diag(s.uu) + np.diag(s.zz)) / units**2
    mean, errors = marginals(both, variances=variances, noise=noise)
    left = float(both.ee - 2 * mean @ both.ze + mean @ both.zz @ mean)
    n = max(both.n - len(s.layout.baseline), 1.0)
    noise = max(noise, left / n) * (1.0 + excess * float((1.0 - errors / variances).sum()) / n)
    return Moments(both.zz / noise, both.ze / noise, both.ee / noise, both.n)


def _excess(s: Statistics, *, noise: float) -> float:
    """Return by how much the fourth cumulant of the reward exceeds a Gaussian's, in units of its noise; 0 at least."""
    n = float(s.n.sum())
    first, second = float(s.yr[:, s.layout.columns.index(BIAS)].sum()) / n, float(s.rr.sum()) / n
    third, fourth = (s.r34 / n).tolist()
    variance = second - first**2
    around = fourth - 4.0 * first * third + 6.0 * first**2 * second - 3.0 * first**4
    return float(max(around - 3.0 * variance**2, 0.0) / noise**4)


def _added(one: Moments, other: Moments, *, sign: float = 1.0) -> Moments:
    """Return the moments of both; with `sign` -1, of the first without the second."""
    zz, ze = one.zz + sign * other.zz, one.ze + sign * other.ze
    return Moments(zz, ze, one.ee + sign * other.ee, one.n + sign * other.n)


def _evidence(moments: Moments, *, variances: Floats) -> float:
    """Return the logarithm of the marginal likelihood of rounds with the same effects: Bishop (2006), eq. 3.86.

    Moments are in units of noise. Terms that add up over rounds are left out: they are the same however rounds are
    divided.
    """
    from scipy.linalg import lapack  # only where something is learned

    precision = moments.zz.copy()
    precision[np.diag_indices_from(precision)] += 1.0 / variances
    lower, failed = lapack.dpotrf(precision, lower=1, overwrite_a=1)
    if failed:
        raise ValueError("the sums over rounds are not positive: were they changed after they were summed up?")
    half, _ = lapack.dtrtrs(lower, moments.ze, lower=1)
    return float(half @ half / 2.0 - np.log(np.diag(lower)).sum() - np.log(variances).sum() / 2.0)
