"""A world can be estimated from a log, judged on customers whom it was not fitted to, and refused where it cannot."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.actions import HOLD
from optimizer.program import Program
from policies.fixed import Hold, Uniform
from simulations import fitting, page
from simulations.fitting import Averaged, Fitted
from simulations.population import populate
from simulations.rollout import rollout, sole
from simulations.worlds import DEMO
from tests.small_program import small
from training.dataset import Dataset

TRUE = replace(DEMO, everyday=0.12, turn=0.12, goal=0.03, lift=0.5, leaving=0.004, signal=0.02)


def _program() -> Program:
    program = small()
    return replaced(program, incentives=tuple(replaced(i, stock=None) for i in program.incentives))


def _log(*, customers: int = 600, days: int = 13) -> Dataset:
    population = populate(_program(), TRUE, customers=customers, seed=71, start=fitting.START)
    return rollout(population, sole(Uniform(_program().space)), days=days).dataset


@pytest.fixture(scope="module")
def log() -> Dataset:
    """Ten days of six hundred customers in a world that is none of ours."""
    return _log()


@pytest.fixture(scope="module")
def found(log: Dataset) -> Fitted:
    """The world that is estimated from it."""
    return fitting.fitted(log, seed=1)


def test_most_moments_of_held_out_customers_are_reproduced(found: Fitted) -> None:
    assert found.reproduced >= 0.7
    assert 100 < found.held_out < found.customers == 600


def test_a_world_that_was_not_fitted_reproduces_fewer(log: Dataset, found: Fitted) -> None:
    policy = Averaged.of(log)
    held = log.take(np.arange(len(log)) % 2 == 0)
    far = fitting._judged(held, [fitting._simulated(log, DEMO, policy, days=10, seed=5)])
    assert np.mean([m.reproduced for m in far]) < found.reproduced


def test_rates_are_found_again_within_a_factor_of_two_and_a_half(found: Fitted) -> None:
    for setting in ("everyday", "signal", "goal"):
        assert 0.4 < found.settings[setting] / getattr(TRUE, setting) < 2.5, setting


def test_the_average_policy_nudges_as_often_as_the_log_did(log: Dataset) -> None:
    policy, rounds = Averaged.of(log), log.rounds
    vectors = policy.probabilities(rounds.contexts, rounds.allowed, np.zeros(rounds.probabilities.shape[1]))
    assert vectors[:, HOLD].mean() == pytest.approx(float(rounds.probabilities[:, HOLD].mean()), abs=0.05)
    assert not vectors[~rounds.allowed].any()


def test_a_log_too_small_or_without_holds_or_outcomes_is_refused_with_the_mend(log: Dataset) -> None:
    few = log.take(log.rounds.customers < 50)
    with pytest.raises(ValueError, match=r"program 'small' cannot be fitted: it has 50 customers .*wait for 200"):
        fitting.fitted(few)
    with pytest.raises(ValueError, match=r"it has \d+ rounds that held; 200 show .* raise exploration.hold"):
        fitting.fitted(log.take(log.rounds.actions != HOLD))
    silent = replace(log, events={name: np.zeros(len(log)) for name in log.events})
    with pytest.raises(ValueError, match="it has no outcome at all; report events"):
        fitting.fitted(silent)
    with pytest.raises(ValueError, match="estimated probabilities; log the vector"):
        fitting.fitted(replace(log, estimated_propensities=True))


def test_a_log_of_holds_says_nothing_of_nudges() -> None:
    population = populate(_program(), TRUE, customers=250, seed=71, start=fitting.START)
    held = rollout(population, sole(Hold(_program().space)), days=13).dataset
    held = held.take(held.rounds.actions == HOLD)
    with pytest.raises(ValueError, match="it has 0 rounds that nudged"):
        fitting.check(held)


def test_an_archive_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder: give the archive that nudge archive"):
        fitting.fit(tmp_path / "none", _program())


def test_the_page_and_the_table_say_each_moment(found: Fitted) -> None:
    html = page.fit_html(found, command="nudge simulate --fit var/archive")
    assert all(m.moment in html for m in found.moments)
    assert len(fitting.table(found)["held_out"]) == len(found.moments)  # type: ignore[arg-type]  # a list of rows
    assert fitting.figures(found)["fit/goal"] == found.settings["goal"]


def test_a_log_of_customers_who_act_as_none_of_ours_do_is_refused(log: Dataset, found: Fitted) -> None:
    """Everybody moves on every day, from every stage, and nobody reaches the goal unless held."""
    held = (log.rounds.actions == HOLD).astype(np.float64)
    odd = {e.name: held if e.kind == "macro" else np.full(len(log), 1.0) for e in log.program.events}
    strange = fitting.fitted(replace(log, events={**log.events, **odd}), seed=1)
    assert not found.refused
    assert "cannot be fitted: on held-out customers no world that was tried reproduces" in strange.refused
    assert "everyday steps after a hold: " in strange.refused
    assert "Do not judge policies by it" in " ".join(page.fit_html(strange, command="").split())
