"""Are the committee's votes counted right, and where does a level that is added later start?"""

from pathlib import Path

import numpy as np
import pytest

import policies
from optimizer.actions import ActionSpace, Nudge
from policies.posterior import Weights
from policies.thompson import _NO_LADDERS, Thompson, _kernel, count, votes
from tests.checks import SPACE, contexts, logged, masks


def test_compiled_votes_are_those_of_plain_numpy() -> None:
    """Bit for bit, over random weights, masks and prices; zeros among the features are skipped by both."""
    rng = np.random.default_rng(1)
    sizes, d, members = (4, 3, 5), 7, 96
    k = 1 + 4 * 3 * 5
    levels = rng.normal(size=(d, sum(sizes), members)).astype(np.float32)
    cells = rng.normal(size=(k - 1, members)).astype(np.float32)
    x = np.where(rng.random((60, d)) < 0.6, rng.normal(size=(60, d)), 0.0)
    allowed, prices = masks(60, seed=2, k=k), rng.random((60, k)) * 3
    expected = np.zeros((60, k))
    count(levels, cells, x.astype(np.float32), allowed, prices.astype(np.float32), sizes, _NO_LADDERS, expected)
    counted = votes(Weights(levels, cells), x, sizes=sizes, allowed=allowed, prices=prices)
    assert np.array_equal(counted, expected)
    assert (counted.sum(axis=1) == members).all()
    assert len(np.unique(counted.argmax(axis=1))) > 10


def test_one_compilation_serves_every_kind_of_array() -> None:
    """Read-only, strided, and one price list for all: nobody waits for a compiler after the first decision."""
    policy = Thompson(SPACE)
    x, allowed = contexts(8, seed=1), masks(8, seed=1)
    policy.probabilities(x, allowed, np.zeros(SPACE.k))
    before = len(_kernel().signatures)  # type: ignore[attr-defined]  # numba's
    frozen = allowed.copy()
    frozen.setflags(write=False)
    policy.probabilities(x[::2], frozen[::2], np.zeros((4, SPACE.k)))
    policy.probabilities(np.asfortranarray(x), np.asfortranarray(allowed), np.zeros((8, SPACE.k)))
    assert len(_kernel().signatures) == before  # type: ignore[attr-defined]  # numba's


def test_votes_of_two_members_are_those_counted_by_hand() -> None:
    """One feature of 2: nudge 1 is worth 2x1+0 and 2x-1+0 to the members, nudge 2 is worth 2x0.5+0.5 and 2x-1+3.

    So member one prefers nudge 1 (2 to 1.5), member two nudge 2 (1 to -2); where nudge 2 costs 1.6, member two holds.
    """
    levels = np.array([[[1.0, -1.0], [0.5, -1.0], [0.0, 0.0], [0.0, 0.0]]], dtype=np.float32)
    used = Weights(levels, np.array([[0.0, 0.0], [0.5, 3.0]], dtype=np.float32))
    x, allowed = np.array([[2.0]]), np.ones((1, 3), dtype=np.bool_)
    for price, expected in ((0.0, [0, 1, 1]), (1.6, [1, 1, 0])):
        prices = np.array([0.0, 0.0, price])
        assert votes(used, x, sizes=(2, 1, 1), allowed=allowed, prices=prices).tolist() == [expected]


def test_a_tie_goes_to_hold() -> None:
    """A member that sees no gain does not nudge."""
    used = Weights(np.zeros((1, 4, 3), dtype=np.float32), np.zeros((2, 3), dtype=np.float32))
    counted = votes(used, np.ones((1, 1)), sizes=(2, 1, 1), allowed=np.ones((1, 3), dtype=np.bool_), prices=np.zeros(3))
    assert counted.tolist() == [[3, 0, 0]]


WIDER = ActionSpace((*SPACE.incentives, "raffle"), SPACE.tones, SPACE.timings, features=(*SPACE.features, "age"))


def test_a_level_that_is_added_later_starts_from_what_its_factors_know(tmp_path: Path) -> None:
    """The new incentive is explored, most with the tone and timing that are known to be good."""
    policy = Thompson(SPACE, boldness=1.0)
    policy.learn(logged(1_500, seed=3))
    policy.save(tmp_path)
    wider = policies.load(tmp_path, WIDER)
    x = np.column_stack([contexts(200, seed=4), np.zeros(200)])
    p = wider.probabilities(x, np.ones((200, WIDER.k), dtype=np.bool_), np.zeros(WIDER.k)).mean(axis=0)
    good, bad = (p[WIDER.index(Nudge("raffle", t, m))] for t, m in (("warm", "evening"), ("brisk", "now")))
    assert good > 0.02
    assert good > 3 * bad
    again = policies.load(tmp_path, WIDER)
    assert np.array_equal(p, again.probabilities(x, np.ones((200, WIDER.k), dtype=np.bool_), np.zeros(WIDER.k)).mean(0))


def test_a_feature_that_is_added_later_has_no_weight_until_it_is_learned(tmp_path: Path) -> None:
    """Whatever its value, among the levels that were there: the same probabilities as without it."""
    policy = Thompson(SPACE)
    policy.learn(logged(600, seed=5))
    policy.save(tmp_path)
    wider = policies.load(tmp_path, WIDER)
    x, old = contexts(50, seed=6), np.array([WIDER.index(SPACE.nudge(a)) for a in range(SPACE.k)])
    allowed = np.zeros((50, WIDER.k), dtype=np.bool_)
    allowed[:, old] = True
    aged = np.column_stack([x, np.linspace(-9, 9, 50)])
    before = policy.probabilities(x, allowed[:, old], np.zeros(SPACE.k))
    assert np.array_equal(wider.probabilities(aged, allowed, np.zeros(WIDER.k))[:, old], before)


def test_learning_goes_on_across_program_versions(tmp_path: Path) -> None:
    """What was learned before the level was added counts with what is learned after."""
    policy = Thompson(SPACE)
    policy.learn(logged(800, seed=7))
    policy.save(tmp_path)
    wider = Thompson.load(tmp_path, WIDER)
    wider.learn(logged(800, seed=8, space=WIDER))
    assert wider.model.n == 1_600
    x = np.column_stack([contexts(50, seed=9), np.zeros(50)])
    p = wider.probabilities(x, np.ones((50, WIDER.k), dtype=np.bool_), np.zeros(WIDER.k)).mean(axis=0)
    assert p.argmax() == WIDER.index(Nudge("coupon", "warm", "evening"))


def test_settings_out_of_range_are_refused() -> None:
    """With what to use instead."""
    with pytest.raises(ValueError, match="members = 16: a committee needs at least 64"):
        Thompson(SPACE, members=16)
    with pytest.raises(ValueError, match=r"boldness must be positive, got 0\.0; use greedy"):
        Thompson(SPACE, boldness=0.0)


def test_before_any_round_nudges_without_a_price_are_even_and_others_are_voted_on() -> None:
    """Row by row, whatever the rest of the batch costs."""
    x, allowed = contexts(3, seed=1), np.ones((3, SPACE.k), dtype=np.bool_)
    prices = np.zeros((3, SPACE.k))
    prices[1, 1:] = 99.0
    p = Thompson(SPACE).probabilities(x, allowed, prices)
    even = np.append(0.0, np.full(SPACE.k - 1, 1.0 / (SPACE.k - 1)))
    assert p[[0, 2]] == pytest.approx(np.array([even, even]))
    assert p[1].tolist() == np.eye(SPACE.k)[0].tolist()
