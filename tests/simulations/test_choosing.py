"""The lean way to a decision is the engine's: the same actions, whoever asks together."""

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.engine import CHALLENGER, CHAMPION, Chooser
from optimizer.policy import Policy
from optimizer.program import Budget, Experiment, Program
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from policies.thompson import Thompson
from simulations.population import Population, populate
from simulations.rollout import Run, rollout, sole
from simulations.worlds import WORLDS
from tests.small_program import small

START = 1_767_571_200.0
PROGRAM = small()
TIGHT = replaced(PROGRAM, guardrails=replaced(PROGRAM.guardrails, budget=Budget(amount=12.0)))


def _population(program: Program, *, customers: int = 60) -> Population:
    return populate(program, WORLDS["demo"], customers=customers, seed=3, start=START)


@pytest.fixture(scope="module")
def past() -> Run:
    return rollout(_population(TIGHT), sole(Uniform(TIGHT.space)), days=8)


def _policies(past: Run) -> list[Policy]:
    space = TIGHT.space
    learned = Thompson(space)
    learned.learn(past.rounds)
    nudge = space.nudge(1)
    assert nudge is not None
    return [Hold(space), Uniform(space), FixedNudge(space, nudge=nudge), Rules.of(TIGHT), learned]


def test_without_a_log_the_actions_are_those_of_the_engine_under_a_budget_that_runs_out(past: Run) -> None:
    for policy in _policies(past):
        kept = rollout(past.population, sole(policy), days=4, since=past)
        for slot in (7, None):
            lean = rollout(past.population, sole(policy), days=4, since=past, logged=False, slot=slot)
            np.testing.assert_array_equal(lean.history.actions, kept.history.actions)
            assert lean.left.left.budget == kept.left.left.budget
            assert lean.metrics == kept.metrics
    assert past.left.left.budget < 12.0 * 100, "something should have been spent"


def test_without_a_log_the_held_out_are_held_and_arms_have_their_policies() -> None:
    shared = replaced(PROGRAM, experiment=Experiment(holdout=0.3, challenger=0.3))
    choosers = {
        CHAMPION: Chooser(Uniform(shared.space), "uniform", "1"),
        CHALLENGER: Chooser(Hold(shared.space), "hold", "1"),
    }
    kept = rollout(_population(shared), choosers, days=4)
    lean = rollout(_population(shared), choosers, days=4, logged=False, slot=31)
    np.testing.assert_array_equal(lean.history.actions, kept.history.actions)
    nudged = np.flatnonzero((lean.history.actions > 0).any(axis=0))
    assert CHAMPION in {lean.arms[i] for i in nudged.tolist()}
    assert "holdout" not in {lean.arms[i] for i in nudged.tolist()}
