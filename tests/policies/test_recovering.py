"""Are scores differences to being eligible and left, and does what was sent lately recover at its pace?"""

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.policy import Rounds
from policies.recovering import Recovering
from tests.checks import SPACE, contexts, logged, masks

TWO = ActionSpace(("badge", "coupon"), ("warm",), ("now",), features=("bias", "nudge_recency=coupon", "nudge_recency"))


def _rounds(actions: list[int], rewards: list[float], *, allowed: Bools, p: Floats) -> Rounds:
    n = len(actions)
    nothing = np.zeros(n)
    x = np.tile([1.0, 0.0, 0.0], (n, 1))
    codes = np.arange(n)
    some = np.array(actions), np.array(rewards), codes, nothing, nothing, nothing, codes * 0
    return Rounds(x, allowed, p.astype(np.float32), *some)


def test_an_arm_is_not_credited_with_the_moments_at_which_it_is_eligible() -> None:
    """Coupons are eligible only where rewards are 5 anyway: there they bring 5 too, so they make no difference."""
    good, poor = [True, True, True], [True, True, False]
    allowed = np.array([good] * 400 + [poor] * 400)
    p = np.where(allowed, 1 / allowed.sum(axis=1, keepdims=True), 0.0)
    actions = [1, 2] * 200 + [0, 1] * 200
    rewards = [5.0] * 400 + [0.0] * 400
    policy = Recovering(TWO)
    policy.learn(_rounds(actions, rewards, allowed=allowed, p=p))
    badge, coupon = policy.sums.differences[1:3]
    assert abs(coupon) < 1e-12
    assert policy.sums.taken[1, 2] / policy.sums.taken[0, 2] == 5.0
    assert abs(badge) < 1e-12  # where something else could have been, it brought as much


def test_probabilities_are_the_softmax_worked_out_by_hand() -> None:
    """Exactly, from scores, penalties and prices; what was just sent loses `penalty` standard deviations."""
    policy = Recovering(TWO, penalty=0.5, recovery=2.0)
    allowed = np.ones((300, 3), dtype=np.bool_)
    rewards = [0.0, 1.0, 2.0] * 100
    policy.learn(_rounds([0, 1, 2] * 100, rewards, allowed=allowed, p=np.full((300, 3), 1 / 3)))
    x = np.array([[1.0, np.exp(-2.0), 0.9]])  # the coupon two days ago: half of its penalty is left
    penalty = policy.penalties(x)
    assert penalty == pytest.approx(np.array([[0.0, 0.0, 0.5 * policy.sums.spread / 2]]))
    prices = np.array([0.0, 0.1, 0.2])
    scores = policy._scores - penalty[0] - prices
    expected = np.exp(scores / policy.width)
    p = policy.probabilities(x, allowed[:1], prices)
    assert p[0] == pytest.approx(expected / expected.sum())
    assert policy.probabilities(np.array([[1.0, 1.0, 0.0]]), allowed[:1], prices)[0, 2] < p[0, 2]


def test_any_recent_nudge_counts_where_no_level_has_a_recency_of_its_own() -> None:
    """`nudge_recency` then weighs on every nudge, and not on hold."""
    space = ActionSpace(TWO.incentives, TWO.tones, TWO.timings, features=("bias", "nudge_recency"))
    policy = Recovering(space, penalty=1.0)
    assert policy.penalties(np.array([[1.0, 1.0], [1.0, 0.0]])).tolist() == [[0, 1, 1], [0, 0, 0]]


def test_what_was_learned_does_not_depend_on_how_the_log_was_sharded() -> None:
    """Sums of two shards are those of the whole."""
    rounds = logged(300, seed=1)
    whole, parts = Recovering(SPACE), Recovering(SPACE)
    whole.learn(rounds)
    for some in (slice(100, 300), slice(0, 100)):
        parts.learn(rounds.take(some))
    assert parts.sums.differences == pytest.approx(whole.sums.differences, abs=1e-12)
    asked = contexts(20, seed=2), masks(20, seed=2), np.zeros(SPACE.k)
    assert parts.probabilities(*asked) == pytest.approx(whole.probabilities(*asked), abs=1e-9)


def test_settings_out_of_range_are_refused() -> None:
    """With what is expected."""
    with pytest.raises(ValueError, match=r"recovery = 0\.0.*days above 0"):
        Recovering(SPACE, recovery=0.0)
