"""When were rounds, as far as it matters? Cut by time, finer the later: where a change may be found."""

import numpy as np

from optimizer.actions import Floats

FINEST = 64
"""At least one in so many parts of all the time is kept apart while it is recent, at most one in twice as many."""


def cells(at: Floats, *, since: float, as_of: float) -> Floats:
    """Return when the cell of each time (n,) begins, of all the time from `since` to `as_of`.

    Cells are dyadic intervals, as long as they are old at most (exponential histogram, Datar et al. 2002): one or two
    for every doubling of age. They depend on the two times alone, and grow as these move apart: shards that were
    cut each by its own times add up to what would have been cut at once.

    >>> cells(np.array([0.0, 9.0, 20.0, 33.0, 50.0, 63.0]), since=0.0, as_of=64.0).tolist()
    [0.0, 0.0, 0.0, 32.0, 48.0, 63.0]
    """
    if not as_of > since:
        return np.full(len(at), since)
    width = 2.0 ** np.floor(np.log2((as_of - since) / FINEST))
    begins: Floats = np.floor(at / width) * width
    while True:
        width *= 2.0
        wider = np.floor(at / width) * width
        old = wider + 2.0 * width <= as_of
        if not old.any():
            return begins
        begins = np.where(old, wider, begins)
