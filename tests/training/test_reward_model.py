"""The reward model: the same as plain ridge regression, never from the customer's own rounds."""

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from tests.training.worlds import made_up
from training import reward_model
from training.reward_model import cross_fit, fit, fold_of, moments

WORLD = made_up(n=6_000, customers=900, seed=2)
SPACE = WORLD.dataset.program.space
ROUNDS = WORLD.dataset.rounds


def columns(space: ActionSpace, rounds: Rounds) -> Floats:
    """Return the design row by row (n, p): the plain way, for comparison."""
    crossed, pairs = reward_model._level_columns(space), reward_model._pair_columns(space)
    rows = []
    for x, action in zip(rounds.contexts, rounds.actions, strict=True):
        rows.append(np.concatenate([np.kron(crossed[action], np.concatenate([[1.0], x])), pairs[action]]))
    return np.array(rows)


def test_sums_by_action_give_the_same_fit_as_ridge_regression_on_rows() -> None:
    model = cross_fit(ROUNDS, SPACE, folds=3)
    design = reward_model.Design(SPACE, width=1 + SPACE.d)
    X = columns(SPACE, ROUNDS)
    folds = fold_of(ROUNDS.customers, folds=3)
    for fold in range(3):
        kept = folds != fold
        ridge = np.diag(design.caution * model.penalty)
        weights = np.linalg.solve(X[kept].T @ X[kept] + ridge, X[kept].T @ ROUNDS.rewards[kept])
        out = ROUNDS.take(~kept)
        predicted = model.predict(out)[np.arange(len(out)), out.actions]
        assert predicted == pytest.approx(X[~kept] @ weights, abs=1e-6)


def test_a_customer_is_predicted_from_others_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "PENALTIES", (30.0,))
    model = cross_fit(ROUNDS, SPACE)
    mine = ROUNDS.customers == 7
    (poisoned,) = fit(moments(ROUNDS, np.where(mine, 1e6, ROUNDS.rewards)[:, None], k=SPACE.k), SPACE)
    assert poisoned.predict(ROUNDS.take(mine)) == pytest.approx(model.predict(ROUNDS.take(mine)))
    others = fold_of(ROUNDS.customers, folds=5) != fold_of(np.array([7]), folds=5)[0]
    assert abs(poisoned.predict(ROUNDS.take(others)).mean()) > 100


def test_shards_add_up_to_the_whole() -> None:
    half = len(ROUNDS) // 2
    shards = [ROUNDS.take(rows) for rows in (slice(half), slice(half, None))]
    parts = [moments(r, r.rewards[:, None], k=SPACE.k) for r in shards]
    whole, (merged,) = cross_fit(ROUNDS, SPACE), fit(parts[0] + parts[1], SPACE)
    assert merged.coefficients == pytest.approx(whole.coefficients, abs=1e-8)


def test_it_finds_what_is_there() -> None:
    model = cross_fit(ROUNDS, SPACE)
    q, truth = model.predict(ROUNDS), WORLD.truth
    unexplained = ((q - truth) ** 2).mean() / truth.var()
    assert unexplained < 0.35
    assert model.explained > 0.08


def test_noise_is_not_explained() -> None:
    rng = np.random.default_rng(0)
    (model,) = fit(moments(ROUNDS, rng.normal(size=(len(ROUNDS), 1)), k=SPACE.k), SPACE)
    assert -0.1 < model.explained < 0.01


def test_outcomes_fitted_together_are_as_fitted_alone() -> None:
    other = ROUNDS.rewards**2
    both = fit(moments(ROUNDS, np.column_stack([ROUNDS.rewards, other]), k=SPACE.k), SPACE)
    (alone,) = fit(moments(ROUNDS, other[:, None], k=SPACE.k), SPACE)
    assert both[1].penalty == alone.penalty
    assert both[1].coefficients == pytest.approx(alone.coefficients)
    assert both[0].coefficients == pytest.approx(cross_fit(ROUNDS, SPACE).coefficients)


def test_an_action_that_nobody_saw_borrows_from_its_levels() -> None:
    unseen = SPACE.names.index("badge/playful/evening")
    model = cross_fit(ROUNDS.take(ROUNDS.actions != unseen), SPACE)
    new = ROUNDS.take(WORLD.dataset.stages == 0)
    q = model.predict(new)
    assert q[:, unseen].mean() - q[:, 0].mean() > 0.15


def test_folds_are_even_and_stay_with_the_customer() -> None:
    codes = np.arange(10_000)
    folds = fold_of(codes, folds=5)
    counts = np.bincount(folds)
    assert counts.min() > 1_850
    assert (fold_of(codes[::-1], folds=5)[::-1] == folds).all()


def test_one_fold_is_refused() -> None:
    with pytest.raises(ValueError, match="folds must be at least 2, got 1"):
        cross_fit(ROUNDS, SPACE, folds=1)
