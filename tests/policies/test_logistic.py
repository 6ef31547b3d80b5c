"""Is the logistic model at its mode, and does it say what it does not do?"""

import numpy as np
import pytest

from optimizer.actions import ActionSpace
from optimizer.policy import Rounds
from policies.factored import summarise
from policies.layout import layout
from policies.logistic import Logistic, _chance, fit
from tests.checks import SPACE, contexts, logged, masks


def _binary(n: int, *, seed: int) -> tuple[Rounds, ActionSpace]:
    """Return rounds whose reward is 1 with a chance of 1 / (1 + exp(1 - momentum)), higher by coupons."""
    rng = np.random.default_rng(seed)
    x, p = contexts(n, seed=seed), np.full((n, SPACE.k), 1 / SPACE.k, dtype=np.float32)
    actions = rng.integers(0, SPACE.k, n)
    odds = -1.0 + x[:, 3] + 1.5 * (SPACE.levels[actions, 0] == 1)
    rewards = (rng.random(n) < _chance(odds)).astype(float)
    nothing, codes = np.zeros(n), np.arange(n)
    allowed = np.ones((n, SPACE.k), dtype=np.bool_)
    return Rounds(x, allowed, p, actions, rewards, codes, nothing, nothing, nothing, codes * 0), SPACE


def test_gains_are_differences_of_chances() -> None:
    """A coupon's gain is the true one to 0.05 on average, and it is smaller where the chance is near 0 or 1."""
    rounds, space = _binary(12_000, seed=1)
    policy = Logistic(space)
    policy.learn(rounds)
    x = contexts(300, seed=2)
    true = _chance(-1.0 + x[:, 3] + 1.5) - _chance(-1.0 + x[:, 3])
    found = policy.effects(x)[:, space.levels[:, 0] == 1].mean(axis=1)
    assert np.abs(found - true).mean() < 0.05
    assert np.abs(policy.effects(x)).max() <= 1.0


def test_a_perfectly_predictable_reward_gives_finite_effects() -> None:
    """Coupons always work, nothing else ever does: the prior keeps log-odds finite."""
    rounds, space = _binary(500, seed=3)
    certain = (space.levels[rounds.actions, 0] == 1).astype(float)
    fitted = fit(layout(space), rounds, certain)
    assert np.isfinite(fitted.mean).all()
    assert np.abs(fitted.mean).max() < 50


def test_rewards_outside_of_the_declared_range_are_refused() -> None:
    """By row, with what to do."""
    with pytest.raises(ValueError, match=r"rewards: row \d+ is .*, outside 0 to 1; give Logistic the lowest"):
        Logistic(SPACE).learn(logged(50, seed=1))
    with pytest.raises(ValueError, match="expected lowest < highest"):
        Logistic(SPACE, lowest=1.0, highest=1.0)


def test_adding_shards_up_is_refused_with_the_reason() -> None:
    """A logistic reward is refitted."""
    with pytest.raises(ValueError, match="a logistic reward is refitted; learn from all rounds at once"):
        Logistic(SPACE).absorb(summarise(SPACE, logged(10, seed=1)))


def test_expected_rewards_are_in_the_declared_unit() -> None:
    """Rewards of 0 and 20 double the gains of rewards of 0 and 10, and leave the probabilities as they are."""
    rounds, space = _binary(600, seed=4)
    ten, twenty = Logistic(space, highest=10.0), Logistic(space, highest=20.0)
    for policy, unit in ((ten, 10.0), (twenty, 20.0)):
        policy.learn(Rounds(**{**vars(rounds), "rewards": unit * rounds.rewards}))
    x, allowed = contexts(40, seed=5), masks(40, seed=5)
    assert twenty.effects(x) == pytest.approx(2 * ten.effects(x))
    none = np.zeros(space.k)
    assert twenty.probabilities(x, allowed, none) == pytest.approx(ten.probabilities(x, allowed, none))
