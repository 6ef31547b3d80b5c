"""Is a larger reward ever predicted to move people less? Not on a declared ladder: the response rises with its size."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from optimizer.actions import ActionSpace, Floats, Ints


@dataclass(frozen=True)
class Ladders:
    """The incentives that are rungs, ladder by ladder, each from the smallest reward to the largest.

    What is predicted of a nudge, gross of what its incentive costs, never falls from a rung to the next with the same
    tone and timing: where it would, the rungs concerned share their mean (isotonic regression, Barlow et al. 1972).

    Args:
        rungs: (r,), positions of incentives. edges: (ladders + 1,), where each ladder starts among them.
        costs: (incentives,), expected cost of each in reward units.

    >>> space = ActionSpace(("s", "m", "l"), ("t",), ("now",), costs=(1.0, 2.0, 3.0), ladders=(("s", "m", "l"),))
    >>> net = np.array([0.0, -2.0, -1.0]).reshape(1, 3, 1, 1)
    >>> Ladders.of(space).raised(net).ravel().tolist()  # gross 1, 0, 2: the first two share 0.5
    [-0.5, -1.5, -1.0]
    """

    rungs: Ints
    edges: Ints
    costs: Floats

    @classmethod
    def of(cls, space: ActionSpace) -> Self:
        """Return the ladders that a space declares."""
        rungs = [space.incentives.index(name) for ladder in space.ladders for name in ladder]
        edges = np.cumsum([0, *map(len, space.ladders)])
        costs = np.asarray(space.costs or np.zeros(len(space.incentives)), dtype=np.float64)
        return cls(np.array(rungs, dtype=np.intp), edges.astype(np.intp), costs)

    def raised(self, grid: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Return gains less costs (n, incentives, ...) as they are once no larger reward is worth less, gross."""
        if not len(self.rungs):
            return grid
        out = grid.copy()
        for start, stop in pairwise(self.edges.tolist()):
            rungs = self.rungs[start:stop]
            costs = self.costs[rungs].astype(grid.dtype).reshape(1, -1, *[1] * (grid.ndim - 2))
            out[:, rungs] = isotonic(grid[:, rungs] + costs) - costs
        return out


def isotonic(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return the nearest values (n, r, ...) that never fall along r: `max over a <= i, min over b >= i, mean of a..b`.

    >>> isotonic(np.array([[3.0, 1.0, 2.0, 5.0]])).tolist()
    [[2.0, 2.0, 2.0, 5.0]]
    """
    size = values.shape[1]
    out = np.full_like(values, -np.inf)
    for first in range(size):
        least = np.full_like(values[:, 0], np.inf)
        means, total = [], np.zeros_like(least)
        for last in range(first, size):
            total = total + values[:, last]
            means.append(total / values.dtype.type(last - first + 1))
        for last in range(size - 1, first - 1, -1):
            least = np.minimum(least, means[last - first])
            out[:, last] = np.maximum(out[:, last], least)
    return out
