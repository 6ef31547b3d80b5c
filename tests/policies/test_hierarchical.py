"""Do segments get effects of their own where they differ, and are they pooled where they do not?"""

import numpy as np

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from policies.hierarchical import Hierarchical
from policies.thompson import Thompson

FEATURES = ("bias", *(f"club={i}" for i in range(8)), "momentum")
SPACE = ActionSpace(("badge", "coupon"), ("warm", "brisk"), ("now",), features=FEATURES)


def _log(n: int, *, seed: int, apart: float) -> tuple[Rounds, Floats]:
    """Return rounds, and what coupons gain over badges: in half of the clubs momentum helps them, in half it hurts."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, SPACE.d))
    club = rng.integers(0, 8, n)
    x[:, 0], x[:, -1] = 1.0, rng.normal(size=n)
    x[np.arange(n), 1 + club] = 1.0
    slope = np.where(club % 2, apart, -apart)
    gain = np.zeros((n, SPACE.k))
    gain[:, 3:] = (slope * x[:, -1])[:, None]
    actions = rng.integers(0, SPACE.k, n)
    rewards = gain[np.arange(n), actions] + 0.5 * rng.normal(size=n)
    p, allowed = np.full((n, SPACE.k), 1 / SPACE.k, dtype=np.float32), np.ones((n, SPACE.k), dtype=np.bool_)
    nothing, codes = np.zeros(n), np.arange(n)
    return Rounds(x, allowed, p, actions, rewards, codes, nothing, nothing, nothing, codes * 0), gain


def _error(policy: Thompson | Hierarchical, *, apart: float) -> float:
    rounds, _ = _log(2_000, seed=1, apart=apart)
    policy.learn(rounds)
    asked, gain = _log(500, seed=2, apart=apart)
    return float(np.sqrt(np.mean((policy.effects(asked.contexts) - gain) ** 2)))


def test_segments_that_differ_get_slopes_of_their_own() -> None:
    """The error of the predicted effects is less than half of what it is with slopes that all share."""
    assert _error(Hierarchical(SPACE), apart=0.5) < 0.5 * _error(Thompson(SPACE), apart=0.5)


def test_segments_that_are_alike_are_pooled() -> None:
    """Where they do not differ, slopes of their own cost next to nothing, and their scale is found to be small."""
    alike, apart = Hierarchical(SPACE), Hierarchical(SPACE)
    assert _error(alike, apart=0.0) < 1.25 * _error(Thompson(SPACE), apart=0.0)
    _error(apart, apart=0.5)
    own = slice(11, 15)
    assert alike.inner.model.prior.scales[own].max() < 0.3 * apart.inner.model.prior.scales[own].max()
