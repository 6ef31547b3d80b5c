"""How does Vowpal Wabbit come to a probability? In float32, in an order of its own, from text read digit by digit.

Two costs that nearly tie are told apart by their last digits, and `--gamma_scale 1000` makes those count. So a number
is read here as VW's parser reads its text, and what a cost is made of is multiplied and added one by one as VW does it.
Where the sum of probabilities is concerned, VW is not followed: it is 1 in float64.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, chain, repeat
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from optimizer.actions import Bools, Floats, Ints
from policies.compiled import compile_loops

Floats32 = npt.NDArray[np.float32]

NIL = 1e-30
"""No larger number is told to VW, whose parser turns exponents below -128 into positive ones."""

LOWEST = -37
"""The least power of ten in VW's table; what is below counts as 0."""

_down = list(accumulate(repeat(np.float32(10.0), -LOWEST), lambda power, ten: power / ten, initial=np.float32(1.0)))
_up = list(accumulate(repeat(np.float32(10.0), 38), lambda power, ten: power * ten, initial=np.float32(1.0)))
TENS = np.array([*reversed(_down[1:]), *_up], dtype=np.float32)
"""Powers of ten from `LOWEST`, each made from the last as VW makes them: those below 1 err more and more."""


class Sums(NamedTuple):
    """What costs are made of, in the order that VW adds it up.

    Args:
        weights: (m, k), by feature and action; 0 where an action does not have it.
        columns: (m,), which of the context's columns multiplies a feature; -1 where its value is 1.
    """

    weights: Floats32
    columns: Ints

    @classmethod
    def of(cls, *parts: tuple[Floats, Sequence[int]]) -> "Sums":
        """Return those of some features after another: weights (m, k), and the column of each."""
        weights = np.concatenate([np.atleast_2d(part) for part, _ in parts])
        return cls(weights.astype(np.float32), np.fromiter(chain(*(columns for _, columns in parts)), dtype=np.intp))

    def costs(self, values: Floats32) -> Floats32:
        """Return the costs (n, k) of every action, from a context's numbers (n, d) as they were read."""
        out = np.zeros((len(values), self.weights.shape[1]), dtype=np.float32)
        _compiled(_add_up)(self.weights, self.columns, values, out)
        return out


def read(contexts: Floats) -> Floats32:
    """Return numbers (n, d) as VW reads the text of them: `repr`, of which JSON has the same digits.

    >>> float(read(np.array([[0.7071067811865476]]))[0, 0]), float(np.float32(0.7071067811865476))
    (0.7071067094802856, 0.7071067690849304)
    """
    values = np.zeros(contexts.shape, dtype=np.float32)
    text = np.frombuffer(_json(contexts.tolist()), dtype=np.uint8)
    _compiled(_read)(text, TENS, values)
    return values


_json = msgspec.json.Encoder().encode


def inverse_gap(costs: Floats32, allowed: Bools, *, prices: Floats, gamma: float) -> Floats:
    """Return VW's SquareCB (n, k) over the `K` allowed: `1 / (K + gamma gap)`, and the rest to the least cost.

    Args:
        costs: (n, k). allowed: (n, k). prices: (n, k) or (k,), added to the costs. gamma: what a unit of gap counts.

    >>> costs = np.array([[3.0, 1.0, 0.0]], dtype=np.float32)
    >>> inverse_gap(costs, np.array([[True, True, False]]), prices=np.zeros(3), gamma=1.0).tolist()
    [[0.25, 0.75, 0.0]]
    """
    p = np.zeros(costs.shape)
    _compiled(_weigh)(_priced(costs, prices), np.array(allowed, order="C"), gamma, p)
    return p


def votes(members: Sequence[Floats32], allowed: Bools, *, prices: Floats) -> Floats:
    """Return the share (n, k) of members for whom an action costs least; actions that tie share a vote.

    Args:
        members: costs (n, k), by member. allowed: (n, k). prices: (n, k) or (k,), added to the costs.

    >>> costs = np.array([[3.0, 1.0, 1.00001]], dtype=np.float32)
    >>> votes([costs], np.ones((1, 3), dtype=np.bool_), prices=np.zeros(3)).tolist()
    [[0.0, 0.5, 0.5]]
    """
    p, open_ = np.zeros(allowed.shape), np.array(allowed, order="C")
    for costs in members:
        _compiled(_vote)(_priced(costs, prices).astype(np.float32), open_, 1.0 / len(members), p)
    return p


def raised(p: Floats, allowed: Bools, *, epsilon: float) -> Floats:
    """Return the nearest distributions (n, k) that give each of the `K` allowed actions `epsilon / K` or more.

    Those below are raised, and the others pay in equal parts, over again while that leaves some below.

    >>> raised(np.array([[0.0, 0.25, 0.75]]), np.ones((1, 3), dtype=np.bool_), epsilon=0.6).round(3).tolist()
    [[0.2, 0.2, 0.6]]
    """
    out = p.copy()
    _compiled(_raise)(np.array(allowed, order="C"), epsilon, out)
    return out


def _priced(costs: Floats32, prices: Floats) -> Floats:
    return np.add(costs, prices, out=np.empty(costs.shape))


# Loops that become machine code


def _read(text: npt.NDArray[np.uint8], tens: Floats32, values: Floats32) -> None:  # noqa: C901  (one loop)
    """Read rows of numbers from JSON into `values` (n, d), each as VW's `parse_float` does."""
    at = 0
    ten, zero = np.float32(10.0), np.float32(ord("0"))
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            while text[at] in (ord("["), ord(","), ord("]")):
                at += 1
            sign, number, power = np.float32(1.0), np.float32(0.0), 0
            if text[at] == ord("-"):
                sign = np.float32(-1.0)
                at += 1
            while ord("0") <= text[at] <= ord("9"):
                number = number * ten + np.float32(text[at]) - zero
                at += 1
            if text[at] == ord("."):
                at += 1
                while ord("0") <= text[at] <= ord("9"):
                    number = number * ten + np.float32(text[at] - ord("0"))
                    power -= 1
                    at += 1
            if text[at] == ord("e"):
                at += 1
                raised, direction = 0, 1
                if text[at] == ord("-"):
                    direction = -1
                    at += 1
                while ord("0") <= text[at] <= ord("9"):
                    raised = 10 * raised + int(text[at]) - ord("0")
                    at += 1
                power += direction * raised
            if power >= LOWEST:
                values[row, column] = sign * (number * tens[power - LOWEST])


def _add_up(weights: Floats32, columns: Ints, values: Floats32, costs: Floats32) -> None:
    """Add weights (m, k) times values (n, d) up in `costs` (n, k) of zeros, feature by feature."""
    for row in range(len(values)):
        for feature in range(len(weights)):
            value = np.float32(1.0) if columns[feature] < 0 else values[row, columns[feature]]
            if value != 0:
                for action in range(weights.shape[1]):
                    costs[row, action] += weights[feature, action] * value


def _weigh(costs: Floats, allowed: Bools, gamma: float, p: Floats) -> None:
    """Weigh rows of costs (n, k) as `inverse_gap` does, into `p` (n, k) of zeros."""
    for row in range(len(costs)):
        best, count = 0, 1
        for action in range(1, costs.shape[1]):
            if allowed[row, action]:
                count += 1
                if costs[row, action] < costs[row, best]:
                    best = action
        rest = 0.0
        for action in range(costs.shape[1]):
            if allowed[row, action] and action != best:
                p[row, action] = 1.0 / (count + gamma * (costs[row, action] - costs[row, best]))
                rest += p[row, action]
        p[row, best] = 1.0 - rest


def _vote(costs: Floats32, allowed: Bools, share: float, p: Floats) -> None:
    """Add a member's `share` of each row of `p` (n, k) to what costs (n, k) least: within 1e-4 of the sizes' sum."""
    tolerance = np.float32(1e-4)
    for row in range(len(costs)):
        least, ties = costs[row, 0], 0
        for action in range(1, costs.shape[1]):
            if allowed[row, action]:
                least = min(least, costs[row, action])
        for action in range(costs.shape[1]):
            cost = costs[row, action]
            ties += allowed[row, action] and cost - least <= tolerance * (abs(cost) + abs(least))
        for action in range(costs.shape[1]):
            cost = costs[row, action]
            if allowed[row, action] and cost - least <= tolerance * (abs(cost) + abs(least)):
                p[row, action] += share / ties


def _raise(allowed: Bools, epsilon: float, p: Floats) -> None:
    """Raise entries of rows (n, k) that sum to 1 to `epsilon` over the number that are allowed; the others pay."""
    for row in range(len(p)):
        count, payers, paid = 0, -1, 0.0
        for action in range(p.shape[1]):
            count += allowed[row, action]
        least = epsilon / count
        while True:
            able, total = 0, 0.0
            for action in range(p.shape[1]):
                if allowed[row, action] and p[row, action] - paid >= least:
                    able += 1
                    total += p[row, action]
            if able in (0, payers):
                break
            payers, paid = able, (total + (count - able) * least - 1.0) / able
        for action in range(p.shape[1]):
            if allowed[row, action]:
                p[row, action] = max(p[row, action] - paid, least)


@cache
def _compiled(loops: Callable[..., None]) -> Callable[..., None]:
    return compile_loops(loops)
