"""Relevance: what moves a choice is what is known of the customer, not guardrails or a change of policy."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import Bools, Floats
from tests.training.worlds import made_up
from training.dataset import Dataset
from training.relevance import relevance

WORLD = made_up(n=1_200, customers=150).dataset
PROGRAM = WORLD.program
GOLD = PROGRAM.features.index("plan=gold")


def log(badge: Floats, *, loggers: Bools | None = None) -> Dataset:
    """Return a log in which all is allowed and the first nudge (badge, warm, now) has these chances (n,)."""
    rounds = WORLD.rounds
    p = np.zeros_like(rounds.probabilities)
    p[:, 1], p[:, 0] = badge, 1.0 - badge
    who = rounds.loggers if loggers is None else loggers.astype(np.intp)
    changed = replace(rounds, probabilities=p, allowed=np.ones_like(rounds.allowed), loggers=who)
    return replace(WORLD, rounds=changed)


def test_a_policy_that_treats_all_alike_moves_nothing() -> None:
    found = relevance(log(np.full(len(WORLD), 0.25)))
    assert found.compared == 1.0
    moved = [p.moved.value for p in found.touch_points if p.moved.value is not None]
    assert moved == pytest.approx([0.0] * len(moved), abs=1e-7)
    assert len(moved) > 6
    assert [s.moved.value for s in found.stages] == pytest.approx([0.0] * 3, abs=1e-7)


def test_what_the_context_moves_is_what_a_count_by_hand_gives() -> None:
    """Half of the customers get the badge with 0.5, the others with 0.1: 0.2 up or down, of the whole choice too."""
    half = WORLD.rounds.customers % 2 == 0
    found = relevance(log(np.where(half, 0.5, 0.1)))
    for s, stage in enumerate(PROGRAM.stages):
        here = half[WORLD.stages == s]
        by_hand = 2 * 0.4 * here.mean() * (1 - here.mean())
        (point,) = [p for p in found.touch_points if (p.stage, p.incentive, p.tone) == (stage.name, "badge", "warm")]
        assert point.moved.value == pytest.approx(by_hand, abs=1e-6)
        assert point.chance.value == pytest.approx(0.1 + 0.4 * here.mean(), abs=1e-6)
        assert point.moved.low is not None
        assert point.moved.high is not None
        assert 0.0 <= point.moved.low <= by_hand + 1e-6 <= point.moved.high + 2e-6
        assert found.stages[s].moved.value == pytest.approx(by_hand, abs=1e-6)


def test_a_change_of_policy_or_of_what_is_allowed_is_no_relevance() -> None:
    later = np.arange(len(WORLD)) >= 600
    assert [s.moved.value for s in relevance(log(np.where(later, 0.6, 0.1), loggers=later)).stages] == pytest.approx(
        [0.0] * 3, abs=1e-7
    )
    masked = log(np.where(later, 0.6, 0.1))
    masked.rounds.allowed[later, 5] = False
    assert [s.moved.value for s in relevance(masked).stages] == pytest.approx([0.0] * 3, abs=1e-7)


def test_too_few_that_are_alike_are_not_compared() -> None:
    few = log(np.full(len(WORLD), 0.25)).take(np.arange(30))
    found = relevance(few)
    assert found.compared < 1.0
    assert all(p.moved.value is None and "not enough evidence" in p.moved.missing for p in found.touch_points)
