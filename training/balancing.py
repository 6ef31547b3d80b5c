"""Which weights carry the rounds of a log over to a target, if effects are smooth in the levels? Ridge weights.

A propensity weight `pi(A) / mu(A)` balances every action at every context, and pays for it in spread. These weights
solve a ridge regression instead (augmented minimax linear estimation; Hirshberg and Wager, 2021): what the log's design
is, summed over rounds, becomes what the target's is, exactly for the constant, any nudge and each level, and as far as
it is worth its noise for what depends on the context, for pairs of levels and for single actions. In

    sum_a pi(a) q(x, a)  +  w (r - q(x, A))

they take the place of `pi(A) / mu(A)`. How likely the rewards are if effects add up, act in pairs, or are each
action's own, says how far each rung is to be trusted (`odds`). How large a pair, an action's own effect or a dependence
on the context may be expected to be, in standard deviations of a reward, is declared here once; where effects are
larger, a bias is left that falls as rounds are added. So these estimates are reported and never decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from training.reward_model import Design
from training.vectors import own_pages

_FREE = 1e3
"""The variance of what is balanced exactly, in variances of a reward."""

_NONE = 1e-12
_BLOCK = 65_536


class Prior(NamedTuple):
    """The variance that effects are given, in variances of a reward: a pair's, an action's own, with the context."""

    pairs: float
    actions: float
    contexts: float


PRIORS = MappingProxyType(
    {
        "ridge-actions": Prior(0.03, 0.01, 0.1),
        "ridge-pairs": Prior(0.02, _NONE, 0.1),
        "ridge-levels": Prior(_NONE, _NONE, 0.1),
    }
)
"""The rungs of the ladder, from the least biased to the least spread."""


_ADDING, _PAIRED, _OWN = Prior(_NONE, _NONE, 1e-3), Prior(0.003, _NONE, 1e-3), Prior(0.003, 0.03, 1e-3)
"""What rewards are likely under: effects that add up, that act in pairs, that are each action's own."""


class Odds(NamedTuple):
    """Logarithms of how much likelier the rewards are with pairs than without; with actions' own effects than not."""

    pairs: float
    actions: float


@dataclass(frozen=True)
class Sums:
    """What weights are found from, summed over rounds, with `z = (1, context)`.

    Args:
        drawn: (k, d + 1, d + 1), `z` with itself, by the action drawn.
        wanted: for each target, (k, d + 1), its probability of each action times `z`.
        rewarded: (k, d + 1), `z` with the reward, by the action drawn.
        squares: of the rewards.
    """

    drawn: Floats
    wanted: Mapping[str, Floats]
    rewarded: Floats
    squares: float

    def __add__(self, other: "Sums") -> "Sums":
        wanted = {name: x + other.wanted[name] for name, x in self.wanted.items()}
        return Sums(self.drawn + other.drawn, wanted, self.rewarded + other.rewarded, self.squares + other.squares)


def sums(rounds: Rounds, targets: Mapping[str, Floats]) -> Sums:
    """Sum up rounds and targets' probabilities (n, k): blocks of rounds add up.

    >>> rounds = Rounds(
    ...     contexts=np.ones((2, 1)), allowed=np.ones((2, 2), dtype=bool),
    ...     probabilities=np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float32), actions=np.array([1, 0]),
    ...     rewards=np.array([1.0, 0.0]), customers=np.array([0, 1]), at=np.zeros(2), cost_prices=np.zeros(2),
    ...     burdens=np.zeros(2), loggers=np.zeros(2, dtype=np.intp))
    >>> sums(rounds, {"always": np.array([[0.0, 1.0], [0.0, 1.0]])}).wanted["always"].tolist()
    [[0.0, 0.0], [2.0, 2.0]]
    """
    z = _with_constant(rounds.contexts)
    k = rounds.probabilities.shape[1]
    drawn, rewarded = np.zeros((k, z.shape[1], z.shape[1])), np.zeros((k, z.shape[1]))
    order = np.argsort(rounds.actions, kind="stable")
    edges = np.searchsorted(rounds.actions[order], np.arange(k + 1))
    for action in np.flatnonzero(np.diff(edges)):
        mine = order[edges[action] : edges[action + 1]]
        drawn[action] = z[mine].T @ z[mine]
        rewarded[action] = z[mine].T @ rounds.rewards[mine]
    wanted = {name: vectors.T @ z for name, vectors in targets.items()}
    return Sums(drawn, wanted, rewarded, float(rounds.rewards @ rounds.rewards))


def odds(found: Sums, space: ActionSpace) -> Odds:
    """Return what the rewards say of the sizes of effects: ratios of marginal likelihoods, the noise profiled out."""
    design = Design(space, width=found.drawn.shape[1])
    gram, products = _gram(design, found.drawn), _columns(design, found.rewarded)
    n = float(found.drawn[:, 0, 0].sum())
    adding, paired, own = (
        _log_likelihood(gram, products, found.squares, n, variances=_variances(design, prior))
        for prior in (_ADDING, _PAIRED, _OWN)
    )
    return Odds(paired - adding, own - max(paired, adding))


def _log_likelihood(gram: Floats, products: Floats, squares: float, n: float, *, variances: Floats) -> float:
    """That of rewards whose effects are normal with these variances (p,), in variances of the noise; up to a constant.

    Where rewards are without noise the sum of squares left is held above rounding.
    """
    factor = cho_factor(gram + np.diag(1.0 / variances))
    left = max(squares - float(products @ cho_solve(factor, products)), 1e-9 * squares, 1e-300)
    spread = 2.0 * float(np.log(np.diag(factor[0])).sum()) + float(np.log(variances).sum())
    return -0.5 * (n * float(np.log(left / n)) + spread)


def weights(rounds: Rounds, found: Sums, space: ActionSpace) -> dict[str, dict[str, Floats]]:
    """Return for each target the weights (n,) of rounds on each rung; `found` are the sums over all of them."""
    design = Design(space, width=found.drawn.shape[1])
    gram = _gram(design, found.drawn)
    names = list(found.wanted)
    wanted = np.column_stack([_columns(design, found.wanted[name]) for name in names])
    answers = {name: {rung: own_pages(len(rounds)) for rung in PRIORS} for name in names}
    coefficients = {}
    for rung, prior in PRIORS.items():
        solved = solve(gram + np.diag(1.0 / _variances(design, prior)), wanted, assume_a="pos")
        for column, name in enumerate(names):
            by_action = design.by_action(solved[: len(design.caution), column])
            by_action[1:, 0] += solved[len(design.caution) :, column]
            coefficients[name, rung] = by_action
    for start in range(0, len(rounds), _BLOCK):
        rows = slice(start, start + _BLOCK)
        z, actions = _with_constant(rounds.contexts[rows]), rounds.actions[rows]
        for (name, rung), by_action in coefficients.items():
            answers[name][rung][rows] = np.einsum("nj,nj->n", z, by_action[actions])
    return answers


def _with_constant(contexts: Floats) -> Floats:
    return np.column_stack([np.ones(len(contexts)), contexts])


def _gram(design: Design, drawn: Floats) -> Floats:
    """Shape (p + k - 1, p + k - 1): the model's columns with themselves, and with each nudge's own."""
    shared = _shared(design, drawn)[1:]
    return np.block([[design.gram(drawn), shared.T], [shared, np.diag(drawn[1:, 0, 0])]])


def _shared(design: Design, drawn: Floats) -> Floats:
    """Shape (k, p): each action's own column with the model's."""
    crossed = np.einsum("ap,aj->apj", design.crossed, drawn[:, 0]).reshape(len(drawn), -1)
    return np.hstack([crossed, drawn[:, 0, 0, None] * design.pairs])


def _columns(design: Design, wanted: Floats) -> Floats:
    """Shape (p + k - 1,): the model's columns summed over what a target wants, then each nudge's own."""
    return np.concatenate([design.product(wanted[:, :, None])[:, 0], wanted[1:, 0]])


def _variances(design: Design, prior: Prior) -> Floats:
    """Shape (p + k - 1,): how large the effect of each column may be expected to be."""
    levels, width = design.crossed.shape[1], design.width
    crossed = np.full((levels, width), prior.contexts)
    crossed[:, 0] = _FREE
    crossed[0] = _FREE
    pairs, actions = np.full(design.pairs.shape[1], prior.pairs), np.full(len(design.crossed) - 1, prior.actions)
    return np.concatenate([crossed.ravel(), pairs, actions])
