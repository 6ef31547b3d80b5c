"""How long does it take? Kaplan-Meier for what has not happened yet, with intervals clustered by customer.

Who has not redeemed, or not moved on, by the end of the log is censored: known to take longer, not dropped and not
counted as never. Spread comes from each customer's influence on the curve (the infinitesimal jackknife), so that
several nudges of one customer count as one customer's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from optimizer.actions import Bools, Floats, Ints
from optimizer.program import DAY
from training.figures import FEW, Figure, few, missing

_GRID = 200
"""At how many times the curve's spread is worked out."""


@dataclass(frozen=True)
class Curve:
    """The share that it has happened to by each time.

    Args:
        times: (t,), seconds, ascending.
        happened: (t,), the share by then, 1 - S.
        influence: (t, customers), of each customer on it; the variance is the sum of its squares.
        n: durations. customers: how many they are of. longest: the longest that anybody was followed.
    """

    times: Floats
    happened: Floats
    influence: Floats
    n: int
    customers: int
    longest: float

    def at(self, time: float) -> int:
        """Return the place of the last time that is not after a given one; -1 where there is none."""
        return int(np.searchsorted(self.times, time, side="right")) - 1


def curve(durations: Floats, happened: Bools, customers: Ints) -> Curve:
    """Estimate the curve from durations (n,), whether each ended (or was cut off), and whose each is.

    >>> found = curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, True]), np.arange(4))
    >>> found.times.tolist(), found.happened.tolist()
    ([1.0, 3.0, 4.0], [0.25, 0.625, 1.0])
    """
    names, codes = np.unique(customers, return_inverse=True)
    order = np.argsort(durations, kind="stable")
    times, ended, codes = durations[order], happened[order], codes[order]
    instants = np.unique(times[ended])
    at_risk = len(times) - np.searchsorted(times, instants, side="left")
    deaths = np.bincount(np.searchsorted(instants, times[ended]), minlength=len(instants))
    surviving: Floats = np.cumprod(1.0 - deaths / at_risk).astype(np.float64)
    kept = np.unique(np.linspace(0, len(instants) - 1, min(_GRID, len(instants))).round().astype(np.intp))
    influence = np.zeros((len(kept), len(names)))
    hazard = np.concatenate([[0.0], np.cumsum(deaths / at_risk.astype(np.float64) ** 2)])
    place = np.searchsorted(instants, times, side="right")  # instants at or before each time
    jump = np.where(ended, 1.0 / at_risk[np.minimum(place - 1, len(instants) - 1)] if len(instants) else 0.0, 0.0)
    for row, k in enumerate(kept.tolist()):
        # -S(t) times the integral of dM_i / Y up to t (Reid, 1981)
        martingale = np.where(times <= instants[k], jump, 0.0) - hazard[np.minimum(place, k + 1)]
        influence[row] = surviving[k] * np.bincount(codes, weights=martingale, minlength=len(names))
    longest = float(times[-1]) if len(times) else 0.0
    return Curve(instants[kept], 1.0 - surviving[kept], influence, len(times), len(names), longest)


def by(found: Curve, time: float, *, of: str, level: float = 0.95) -> Figure:
    """Return the share that it has happened to by a time, with an interval within 0 and 1 (log minus log)."""
    if found.customers < FEW:
        return missing(few(found.customers), of=of, unit="share", n=found.n)
    if found.longest < time:
        days = (time - found.longest) / DAY
        why = f"not enough evidence: nobody was followed for {time / DAY:g} days; wait {days:.0f} more"
        return missing(why, of=of, unit="share", n=found.n)
    place = found.at(time)
    if place < 0:
        # none of n: the bound of Wilson for as many rows as customers
        z2 = float(ndtri(0.5 + level / 2)) ** 2
        high = z2 / (found.customers + z2)
        return Figure(of=of, unit="share", value=0.0, low=0.0, high=high, n=found.n, customers=found.customers)
    value, error = float(found.happened[place]), float(np.sqrt((found.influence[place] ** 2).sum()))
    low, high = _within(value, error, level=level)
    return Figure(
        of=of, unit="share", value=value, low=low, high=high, level=level, n=found.n, customers=found.customers
    )


def _within(value: float, error: float, *, level: float) -> tuple[float, float]:
    if not 0.0 < value < 1.0 or error == 0.0:
        return value, value
    left, z = 1.0 - value, float(ndtri(0.5 + level / 2))
    reach = z * error / (left * abs(np.log(left)))
    low, high = 1.0 - left ** np.exp(-reach), 1.0 - left ** np.exp(reach)
    return float(min(low, high)), float(max(low, high))


def median(found: Curve, *, of: str, within: float = np.inf, level: float = 0.95) -> Figure:
    """Return the time, in days, by which half have; of those to whom it happens within a time, if one is given.

    The interval holds every time that a test at that time would not refuse (Brookmeyer and Crowley, 1982).
    """
    if found.customers < FEW:
        return missing(few(found.customers), of=of, unit="days", n=found.n)
    if np.isinf(within):
        goal, pull = 0.5, np.zeros(found.influence.shape[1])
    else:
        last = found.at(within)
        goal = found.happened[last] / 2.0 if last >= 0 else 0.0
        pull = found.influence[last] / 2.0 if last >= 0 else np.zeros(found.influence.shape[1])
    if not goal or not len(found.times) or found.happened[-1] < goal:
        why = "more than half have not by the end of the log" if goal else "it has not happened yet"
        return missing(why, of=of, unit="days", n=found.n)
    errors = np.sqrt(((found.influence - pull) ** 2).sum(axis=1))
    z = float(ndtri(0.5 + level / 2))
    value = float(found.times[int(np.argmax(found.happened >= goal))])
    low = found.times[np.argmax(found.happened + z * errors >= goal)]
    past = found.happened - z * errors > goal
    high = float(found.times[int(np.argmax(past))]) if past.any() else None
    return Figure(
        of=of,
        unit="days",
        value=value / DAY,
        low=float(min(low, value)) / DAY,
        high=None if high is None else max(high, value) / DAY,
        level=level,
        n=found.n,
        customers=found.customers,
    )
