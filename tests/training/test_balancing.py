"""Ridge weights: what they balance, and that a noiseless world of levels is valued exactly."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from tests.training.worlds import rounds_of
from training.balancing import PRIORS, odds, sums, weights

SPACE = ActionSpace(("a", "b", "c"), ("w", "x"), ("1", "2"), features=("u", "v"))


def _logged(n: int, rng: np.random.Generator) -> tuple[Rounds, Floats]:
    """A log of n rounds and the vectors of a target (n, k): actions are masked now and then."""
    allowed = rng.random((n, SPACE.k)) < 0.8
    allowed[:, 0] = True
    odds = rng.exponential(size=(2, n, SPACE.k)) ** np.array([1.0, 3.0])[:, None, None] * allowed
    logged, target = odds / odds.sum(axis=2, keepdims=True)
    actions = (np.cumsum(logged, axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, SPACE.k - 1)
    rounds = rounds_of(logged, actions=actions, rewards=np.zeros(n), allowed=allowed)
    return replace(rounds, contexts=np.column_stack([np.ones(n), rng.normal(size=n)])), target


@pytest.mark.parametrize("rung", PRIORS)
def test_levels_are_balanced_exactly(rung: str) -> None:
    """The weighted share of every level, of nudges and of rounds is the target's: what adds up cannot mislead."""
    rng = np.random.default_rng(1)
    rounds, target = _logged(3_000, rng)
    w = weights(rounds, sums(rounds, {"target": target}), SPACE)["target"][rung]
    parts = np.array([0.3, -0.2, 0.5]), np.array([0.1, -0.4]), np.array([0.0, 0.2])
    effects = np.where(
        SPACE.levels[:, 0] >= 0, 1.0 + sum(part[SPACE.levels[:, f]] for f, part in enumerate(parts)), 0.0
    )
    truth = float((target @ effects).mean())
    naive = float(effects[rounds.actions].mean())
    assert w.mean() == pytest.approx(1.0, abs=1e-6)
    assert (w * effects[rounds.actions]).mean() == pytest.approx(truth, abs=1e-5)
    assert abs(naive - truth) > 1e-3


def test_blocks_of_rounds_add_up() -> None:
    rng = np.random.default_rng(2)
    rounds, target = _logged(600, rng)
    cuts = slice(0, 250), slice(250, 600)
    first, second = (sums(rounds.take(rows), {"target": target[rows]}) for rows in cuts)
    whole = weights(rounds, sums(rounds, {"target": target}), SPACE)["target"]
    apart = weights(rounds, first + second, SPACE)["target"]
    for rung in PRIORS:
        np.testing.assert_allclose(whole[rung], apart[rung], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("effects", ["adding", "pairs", "own"])
def test_the_odds_tell_what_kind_of_effects_there_are(effects: str) -> None:
    rng = np.random.default_rng(4)
    rounds, target = _logged(6_000, rng)
    a, b, c = SPACE.levels.T
    own = (np.array([0.4, -0.2, 0.1])[a] + np.array([0.2, -0.3])[b] + np.array([0.0, 0.1])[c]) * (a >= 0)
    own += rng.normal(size=(3, 2))[a, b] * (a >= 0) * (effects == "pairs") * 0.07
    own += rng.normal(size=SPACE.k) * (a >= 0) * (effects == "own") * 0.3
    rewards = own[rounds.actions] + rng.normal(size=len(rounds))
    found = odds(sums(replace(rounds, rewards=rewards), {"target": target}), SPACE)
    assert (found.pairs > 2.0) == (effects != "adding")
    assert (found.actions > 2.0) == (effects == "own")


def test_rungs_go_from_the_least_biased_to_the_least_spread() -> None:
    """Where single actions matter the first rung errs least, and the last one spreads least."""
    rng = np.random.default_rng(3)
    rounds, target = _logged(4_000, rng)
    found = weights(rounds, sums(rounds, {"target": target}), SPACE)["target"]
    own = np.concatenate([[0.0], rng.normal(size=SPACE.k - 1)])
    truth = float((target @ own).mean())
    errors = [abs(float((found[rung] * own[rounds.actions]).mean()) - truth) for rung in PRIORS]
    assert errors[0] == min(errors)
    spreads = [float(found[rung].std()) for rung in PRIORS]
    assert spreads[-1] == min(spreads)
