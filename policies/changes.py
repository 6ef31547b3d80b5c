"""Has what moves customers changed, so that earlier rounds mislead? Found from the rounds: nothing is to be set."""

from functools import partial, reduce
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from policies.factored import Statistics
from policies.posterior import EXPECTED, Posterior, added, evidence, excess_of_reward, fit, moments, spread_of_reward
from policies.threads import one_thread

CHANGE = 0.001
"""Odds, before any data, that effects have changed."""


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

    At each edge between two spans, effects are the same before and after it or they are not: what is compared is the
    marginal likelihood of one posterior for all, and of one for each side (Bayes factor; Kass and Raftery 1995). Its
    mean over the edges has to outweigh the odds. Each span has a baseline of its own, so that a season that moves all
    rewards alike is no change.
    """
    if len(total.apart) < 2:
        return None
    scales = np.maximum(posterior.prior.scales, EXPECTED * spread_of_reward(total))
    variances = scales[total.layout.groups] ** 2
    empty = Statistics.empty(total.layout)
    excess = excess_of_reward(total, noise=posterior.noise)
    likely = partial(evidence, variances=variances)
    with one_thread():
        spans = [moments(empty.plus(span), posterior, variances=variances, excess=excess) for span in total.apart]
        *before, whole = accumulate(spans, added)
        same = likely(whole)
        factors = [likely(side) + likely(added(whole, side, sign=-1.0)) - same for side in before]
    if np.logaddexp.reduce(factors) - np.log(len(factors)) <= -np.log(CHANGE):
        return None
    return reduce(Statistics.__add__, total.apart[int(np.argmax(factors)) + 1 :])
