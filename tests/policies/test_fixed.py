"""Do the policies that learn nothing do what they are told?"""

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Nudge
from optimizer.floor import spread
from policies.fixed import Fits, FixedNudge, Hold, Rules, Uniform
from policies.mixture import Mixture
from tests.checks import SPACE, contexts, masks

FIRST, SECOND, THIRD = Nudge("coupon", "warm", "now"), Nudge("tip", "brisk", "evening"), Nudge("tip", "warm", "now")
NEW = ("stage=new",)


def test_uniform_holds_a_third_of_the_time_and_spreads_the_rest_over_levels() -> None:
    """Exactly the floor's distribution; hold alone where nothing else is allowed."""
    allowed = masks(50, seed=1)
    p = Uniform(SPACE).probabilities(contexts(50, seed=1), allowed, np.zeros(SPACE.k))
    expected = 2 / 3 * spread(SPACE, allowed)
    expected[:, 0] += 1 / 3
    assert p == pytest.approx(expected)
    assert p[0, 0] == 1.0
    assert p[1, 0] == pytest.approx(1 / 3)


def test_rules_take_the_first_allowed_nudge_of_the_stage() -> None:
    """First, second where the first is blocked, hold where both are, and hold where the stage has no rule."""
    rules = Rules(SPACE, rules=[Fits((NEW,), FIRST), Fits((NEW,), SECOND)])
    x = contexts(4, seed=1)
    x[:, 1:3] = [[1, 0], [1, 0], [1, 0], [0, 1]]
    allowed = np.ones((4, SPACE.k), dtype=np.bool_)
    first, second = SPACE.index(FIRST), SPACE.index(SECOND)
    allowed[1:3, first], allowed[2, second] = False, False
    p = rules.probabilities(x, allowed, np.zeros(SPACE.k))
    assert p.argmax(axis=1).tolist() == [first, second, 0, 0]
    assert p.max(axis=1).tolist() == [1, 1, 1, 1]


def test_rules_leave_out_what_a_program_has_retired() -> None:
    """A nudge, or a stage, that is gone."""
    narrow = ActionSpace(("tip",), SPACE.tones, SPACE.timings, features=("stage=new",))
    rules = Rules(narrow, rules=[Fits((NEW,), FIRST), Fits((("stage=gone",),), SECOND), Fits((NEW,), THIRD)])
    p = rules.probabilities(np.ones((1, 1)), np.ones((1, narrow.k), dtype=np.bool_), np.zeros(narrow.k))
    assert p.argmax() == narrow.index(THIRD)


def test_a_rule_with_several_groups_wants_a_feature_of_each() -> None:
    """Both stages and a positive hour; a rule without groups is for everybody else."""
    either = ("stage=new", "stage=loyal")
    rules = Rules(SPACE, rules=[Fits((either, ("hour",)), FIRST), Fits((), SECOND)])
    x = contexts(2, seed=1)
    x[:, 4] = [1.0, -1.0]
    p = rules.probabilities(x, np.ones((2, SPACE.k), dtype=np.bool_), np.zeros(SPACE.k))
    assert p.argmax(axis=1).tolist() == [SPACE.index(FIRST), SPACE.index(SECOND)]


def test_a_fixed_nudge_that_is_retired_is_hold() -> None:
    """And one that is blocked too."""
    narrow = ActionSpace(("tip",), SPACE.tones, SPACE.timings)
    policy = FixedNudge(narrow, nudge=FIRST)
    p = policy.probabilities(np.empty((1, 0)), np.ones((1, narrow.k), dtype=np.bool_), np.zeros(narrow.k))
    assert p.argmax() == 0


def test_a_mixture_is_the_weighted_mean_of_its_parts() -> None:
    """One part in four holds."""
    allowed, x = masks(20, seed=2), contexts(20, seed=2)
    fixed = FixedNudge(SPACE, nudge=FIRST)
    mixed = Mixture(SPACE, parts=[Hold(SPACE), fixed], weights=[0.5, 1.5])
    expected = 0.75 * fixed.probabilities(x, allowed, np.zeros(SPACE.k))
    expected[:, 0] += 0.25
    assert mixed.probabilities(x, allowed, np.zeros(SPACE.k)) == pytest.approx(expected)


def test_a_mixture_without_positive_weights_is_refused() -> None:
    """A policy that never acts is left out, not weighted 0."""
    with pytest.raises(ValueError, match=r"weights must be positive, got \[1, 0\]"):
        Mixture(SPACE, parts=[Hold(SPACE), Uniform(SPACE)], weights=[1, 0])
    with pytest.raises(ValueError, match="one weight a policy, got 1 for 2"):
        Mixture(SPACE, parts=[Hold(SPACE), Uniform(SPACE)], weights=[1])
