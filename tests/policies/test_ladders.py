"""Is no larger reward ever predicted to move people less, gross of what it costs?"""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies.greedy import Greedy
from policies.hierarchical import Hierarchical
from policies.ladders import Ladders, isotonic
from policies.squarecb import SquareCB, inverse_gap
from policies.thompson import Thompson, count, votes
from tests.checks import FEATURES, contexts, logged, masks

PLAIN = ActionSpace(
    ("badge", "small", "large", "middle"), ("warm", "brisk"), ("now", "evening"), FEATURES, (0.0, 0.1, 0.4, 0.2)
)
LADDERED = replace(PLAIN, ladders=(("small", "middle", "large"),))


def _gross(effects: Floats) -> Floats:
    """Shape (n, rungs, tones x timings): what is predicted of the rungs, from the smallest on, gross of their cost."""
    grid = effects[:, 1:].reshape(len(effects), 4, 4)
    gross: Floats = grid[:, [1, 3, 2]] + np.array([0.1, 0.2, 0.4])[:, None]
    return gross


def test_isotonic_values_are_those_of_scikit_learn() -> None:
    """Over random sequences of one to six."""
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(1)
    for size in range(1, 7):
        values = rng.normal(size=(30, size))
        expected = [IsotonicRegression().fit_transform(np.arange(size), row) for row in values]
        assert isotonic(values) == pytest.approx(np.array(expected), abs=1e-12)


@pytest.mark.parametrize("kind", [Greedy, SquareCB, Thompson, Hierarchical])
def test_predictions_rise_along_a_ladder_whatever_was_learned(
    kind: type[Greedy | SquareCB | Thompson | Hierarchical],
) -> None:
    """In 300 random contexts, after few and noisy rounds; without the ladder some fall."""
    rounds, x = logged(150, seed=2, space=PLAIN), contexts(300, seed=3)
    rising, plain = kind(LADDERED), kind(PLAIN)
    rising.learn(rounds)
    plain.learn(rounds)
    assert np.diff(_gross(rising.effects(x)), axis=1).min() > -1e-9
    assert np.diff(_gross(plain.effects(x)), axis=1).min() < -0.05


def test_every_draw_of_the_committee_rises_along_a_ladder() -> None:
    """The compiled votes are those of draws that were raised one by one, in plain numpy."""
    policy = Thompson(LADDERED, boldness=2.0)
    policy.learn(logged(100, seed=4, space=PLAIN))
    x, allowed, prices = contexts(80, seed=5), masks(80, seed=5, k=LADDERED.k), np.zeros((80, LADDERED.k))
    ladders = Ladders.of(LADDERED)
    expected = np.zeros(allowed.shape)
    single = np.float32
    used, sizes = policy._weights, LADDERED.shape
    count(used.levels, used.cells, x.astype(single), allowed, prices.astype(single), sizes, ladders, expected)  # type: ignore[arg-type]  # float32
    counted = votes(used, x, sizes=sizes, allowed=allowed, prices=prices, ladders=ladders)
    assert np.abs(counted - expected).sum() <= 0.001 * expected.sum()  # ties by rounding
    unraised = votes(used, x, sizes=sizes, allowed=allowed, prices=prices)
    assert np.abs(counted - unraised).sum() > 0.05 * expected.sum()


@pytest.mark.parametrize("kind", [Greedy, SquareCB])
def test_compiled_probabilities_rise_as_plain_numpy_does(kind: type[Greedy | SquareCB]) -> None:
    """Over random contexts, masks and prices, to 1e-12."""
    policy = kind(LADDERED)
    policy.learn(logged(200, seed=6, space=PLAIN))
    x, allowed = contexts(100, seed=7), masks(100, seed=7, k=LADDERED.k)
    prices = np.random.default_rng(7).random((100, LADDERED.k))
    gamma = policy.gamma if isinstance(policy, SquareCB) else 1e300
    expected = inverse_gap(policy.effects(x) - prices, allowed, gamma=gamma)
    assert policy.probabilities(x, allowed, prices) == pytest.approx(expected, abs=1e-9)


def _world(n: int, *, seed: int, world: int) -> tuple[Floats, Bools, Floats]:
    """Return contexts, masks and true rewards of a world in which a larger reward moves more, by a random amount."""
    gross = np.cumsum(0.4 * np.random.default_rng([world, 7]).random(3))
    x = contexts(n, seed=seed)
    gain = np.zeros((4, 2, 2))
    gain[[1, 3, 2]] = (gross - np.array([0.1, 0.2, 0.4]))[:, None, None]
    gain[0] = 0.15
    means = x[:, 3:4] + np.concatenate([[0.0], gain.ravel()])
    return x, np.ones((n, PLAIN.k), dtype=np.bool_), means


def _rounds(n: int, *, world: int) -> Rounds:
    x, allowed, means = _world(n, seed=world, world=world)
    rng = np.random.default_rng(world)
    p = np.full((n, PLAIN.k), 1.0 / PLAIN.k, dtype=np.float32)
    actions = rng.integers(0, PLAIN.k, n)
    nothing = np.zeros(n)
    rewards = means[np.arange(n), actions] + rng.normal(size=n)
    return Rounds(x, allowed, p, actions, rewards, np.arange(n), nothing, nothing, nothing, np.zeros(n, dtype=np.intp))


def test_a_learner_with_a_ladder_does_not_lose_where_response_rises() -> None:
    """Over 40 random worlds: effects are nearer to the truth, and choices not worse by three standard errors.

    A paired difference further below 0 than that is a false alarm once in 700.
    """
    values, errors = [], []
    for world in range(40):
        rounds = _rounds(200, world=world)
        x, allowed, means = _world(200, seed=99, world=world)
        found = []
        for space in (LADDERED, PLAIN):
            policy = Greedy(space)
            policy.learn(rounds)
            value = (policy.probabilities(x, allowed, np.zeros(space.k)) * means).sum(axis=1).mean()
            found.append((value, np.mean((policy.effects(x) - means + means[:, :1]) ** 2)))
        values.append(found[0][0] - found[1][0])
        errors.append(found[0][1] - found[1][1])
    assert max(errors) < 1e-12
    assert np.mean(errors) < 0
    assert np.mean(values) > -3 * np.std(values) / np.sqrt(len(values))


def test_a_ladder_of_unknown_or_repeated_incentives_is_refused() -> None:
    """With the names that there are."""
    for ladders in ((("small", "huge"),), (("small", "large"), ("large",))):
        with pytest.raises(ValueError, match="expected each of badge, small, large, middle at most once"):
            replace(PLAIN, ladders=ladders)
