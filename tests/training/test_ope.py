"""Estimators: exact on a world small enough to enumerate, and right on data where the truth is known."""

from itertools import product
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from tests.training.worlds import rounds_of
from training.ope import (
    ESTIMATORS,
    Evidence,
    balanced,
    check_vectors,
    dr,
    ips,
    shrunk,
    slope,
    switched,
    weigh,
)
from training.pseudo_inverse import pseudo_inverse

LOGGED = np.array([[0.5, 0.3, 0.2], [0.25, 0.75, 0.0]])
TARGET = np.array([[0.1, 0.2, 0.7], [0.9, 0.1, 0.0]])
ALLOWED = np.array([[True, True, True], [True, True, False]])
TRUTH = np.array([[0.2, 1.0, -0.5], [0.7, 0.4, 9.0]])
CHANCES = np.array([0.5, 0.25])
"""Of a reward of `TRUTH / chance`, else 0, in each of the two contexts: rewards are random too."""


def expected(estimator: str, q: Floats) -> float:
    """Return the exact expectation of an estimator over every log of two rounds: all draws, all rewards."""
    total = 0.0
    for actions in product(range(3), repeat=2):
        for paid in product((0, 1), repeat=2):
            rows = np.arange(2)
            drawn = LOGGED[rows, actions]
            chances = np.where(paid, CHANCES, 1 - CHANCES)
            if (likelihood := float(np.prod(drawn * chances))) == 0:
                continue
            rewards = np.where(paid, TRUTH[rows, actions] / CHANCES, 0.0)
            evidence = weigh(log(actions, rewards), TARGET, q)
            total += likelihood * float(ESTIMATORS[estimator].terms(evidence).mean())
    return total


def log(actions: tuple[int, ...], rewards: Floats) -> Rounds:
    """Return two rounds of the enumerated world."""
    return rounds_of(LOGGED, actions=np.array(actions), rewards=rewards, allowed=ALLOWED, exact=True)


@pytest.mark.parametrize("model", ["right", "wrong", "none"])
@pytest.mark.parametrize("name", [n for n, e in ESTIMATORS.items() if e.unbiased])
def test_what_claims_to_be_unbiased_is_exactly_so(name: str, model: str) -> None:
    q = {"right": TRUTH, "wrong": np.array([[3.0, -2, 1], [0.5, 5, 7]]), "none": np.zeros((2, 3))}[model]
    value = float((TARGET * TRUTH * ALLOWED).sum(axis=1).mean())
    assert expected(name, q) == pytest.approx(value, abs=1e-12)


def test_the_direct_method_is_exact_only_with_the_right_model() -> None:
    value = float((TARGET * TRUTH * ALLOWED).sum(axis=1).mean())
    assert expected("dm", TRUTH) == pytest.approx(value, abs=1e-12)
    assert abs(expected("dm", np.zeros((2, 3))) - value) > 0.1


@given(
    rewards=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_on_its_own_log_a_policy_is_worth_the_mean_reward(rewards: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logged = rng.dirichlet(np.ones(4), size=len(rewards)).astype(np.float32)
    actions = np.array([rng.choice(4, p=p / p.sum()) for p in logged.astype(np.float64)])
    rounds = rounds_of(logged, actions=actions, rewards=np.array(rewards))
    target = logged.astype(np.float64) / logged.sum(axis=1, dtype=np.float64, keepdims=True)
    evidence = weigh(rounds, target, np.zeros((len(rewards), 4)))
    mean = np.mean(rewards)
    for name in ("ips", "snips", "dr", "sndr"):
        assert ESTIMATORS[name].terms(evidence).mean() == pytest.approx(mean, abs=1e-9), name


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
@settings(deadline=None, max_examples=50)
def test_self_normalised_estimates_move_with_a_constant_added_to_the_rewards(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    weights, rewards = rng.exponential(size=20) + 0.1, rng.normal(size=20)
    zero = np.zeros(20)
    for name in ("snips", "sndr"):
        terms = ESTIMATORS[name].terms
        before = terms(Evidence(weights, rewards, zero, zero)).mean()
        after = terms(Evidence(weights, rewards + shift, zero, zero)).mean()
        assert after == pytest.approx(before + shift, abs=1e-9), name


def test_a_ratio_is_the_mean_of_its_terms() -> None:
    rng = np.random.default_rng(5)
    weights, rewards = rng.exponential(size=100), rng.normal(size=100)
    evidence = Evidence(weights, rewards, np.zeros(100), np.zeros(100))
    ratio = weights @ rewards / weights.sum()
    assert ESTIMATORS["snips"].terms(evidence).mean() == pytest.approx(ratio, abs=1e-12)


def test_a_target_on_a_blocked_action_is_refused() -> None:
    with pytest.raises(ValueError, match=r"round 1: the target's probability of action 2 is 0.5, but it was blocked"):
        weigh(log((0, 0), np.ones(2)), np.array([[1.0, 0, 0], [0.5, 0, 0.5]]), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.5, 0.4]], "round 0: the logged probabilities sum to 0.9, expected 1"),
        ([[1.5, -0.5]], "round 0: the logged probability of action 0 is 1.5, expected a number from 0 to 1"),
        ([[np.nan, 1.0]], "round 0: the logged probability of action 0 is nan"),
        ([[0.2, 0.3, 0.5]], "shape"),
    ],
)
def test_what_is_no_distribution_is_refused(vectors: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_vectors(np.array(vectors), np.ones((1, 2), dtype=bool), whose="the logged")


def test_an_action_that_could_not_have_been_drawn_is_refused() -> None:
    rounds = rounds_of(np.array([[1.0, 0.0]]), actions=np.array([1]), rewards=np.ones(1))
    with pytest.raises(ValueError, match="round 0: the action drawn has logged probability 0"):
        weigh(rounds, np.array([[1.0, 0.0]]), np.zeros((1, 2)))


def test_a_target_that_the_log_never_resembles_has_no_ratio() -> None:
    evidence = Evidence(np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="every weight is 0"):
        ESTIMATORS["snips"].terms(evidence)
    assert ips(evidence).mean() == 0.0


GRID = ActionSpace(("a", "b", "c"), ("x", "y"), ("u", "v"))


def factored_world(*, pairs: bool) -> tuple[Floats, Floats, Floats]:
    """Return logged vectors, a target and rewards (6, k) under masks; rewards add up over levels, or pairs of them."""
    rng = np.random.default_rng(8)
    allowed = rng.random((6, GRID.k)) < 0.7
    allowed[:, 0] = True
    allowed[0] = True
    logged, target = (np.where(allowed, rng.exponential(size=allowed.shape), 0.0) for _ in range(2))
    target[:, 0] *= 0.1
    truth = rng.normal(size=(6, 1)) + np.zeros((6, GRID.k))
    for f, size in enumerate(GRID.shape):
        truth[:, 1:] += rng.normal(size=(6, size))[:, GRID.levels[1:, f]]
    if pairs:
        for f, g in ((0, 1), (0, 2), (1, 2)):
            effects = rng.normal(size=(6, GRID.shape[f], GRID.shape[g]))
            truth[:, 1:] += effects[:, GRID.levels[1:, f], GRID.levels[1:, g]]
    return _normal(logged), _normal(target), truth


def _normal(vectors: Floats) -> Floats:
    normal: Floats = vectors / vectors.sum(axis=1, keepdims=True)
    return normal


def expected_pi(logged: Floats, target: Floats, truth: Floats, *, order: Literal[1, 2], q: Floats) -> Floats:
    """Return the exact expectation (6,) of DR with pseudo-inverse weights, over every action that may be drawn."""
    total = np.zeros(len(logged))
    for action in range(GRID.k):
        actions = np.full(len(logged), action)
        rounds = rounds_of(logged, actions=actions, rewards=truth[:, action], exact=True)
        weights = (target * pseudo_inverse(rounds, GRID, order=order)).sum(axis=1)
        terms = (target * q).sum(axis=1) + weights * (truth[:, action] - q[:, action])
        possible = logged[:, action] > 0
        total[possible] += logged[possible, action] * terms[possible]
    return total


@pytest.mark.parametrize("model", ["right", "wrong", "none"])
@pytest.mark.parametrize(("order", "effects"), [(1, "levels"), (2, "levels"), (2, "pairs")])
def test_factored_weights_are_exactly_unbiased_where_effects_are_factored(
    order: Literal[1, 2], effects: str, model: str
) -> None:
    """A wrong model is wrong in the same factored way: what it leaves must be factored too."""
    logged, target, truth = factored_world(pairs=effects == "pairs")
    q = {"right": truth, "wrong": -0.5 * truth + 1.0, "none": np.zeros_like(truth)}[model]
    found = expected_pi(logged, target, truth, order=order, q=q)
    assert found == pytest.approx((target * truth).sum(axis=1), abs=1e-12)


def test_weights_by_level_are_wrong_where_pairs_matter() -> None:
    logged, target, truth = factored_world(pairs=True)
    found = expected_pi(logged, target, truth, order=1, q=np.zeros_like(truth))
    assert np.abs(found - (target * truth).sum(axis=1)).max() > 0.05


def test_factored_weights_of_the_logging_policy_are_one() -> None:
    logged, _, _ = factored_world(pairs=False)
    actions = np.array([int(np.flatnonzero(row)[-1]) for row in logged])
    rounds = rounds_of(logged, actions=actions, rewards=np.ones(6), exact=True)
    orders: tuple[Literal[1, 2], ...] = (1, 2)
    for order in orders:
        weights = (logged * pseudo_inverse(rounds, GRID, order=order)).sum(axis=1)
        assert weights == pytest.approx(np.ones(6), abs=1e-9)


def test_no_shrinkage_and_no_threshold_are_plain_dr() -> None:
    rng = np.random.default_rng(2)
    evidence = Evidence(rng.exponential(size=50), rng.normal(size=50), rng.normal(size=50), rng.normal(size=50))
    assert shrunk(evidence, shrinkage=1e12) == pytest.approx(dr(evidence), abs=1e-6)
    assert switched(evidence, threshold=np.inf) == pytest.approx(dr(evidence))
    assert switched(evidence, threshold=-1.0) == pytest.approx(evidence.expected)


def test_slope_stops_before_the_first_that_disagrees() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=400) * 3, rng.normal(size=400), rng.normal(size=400) * 0.1 + 5, np.zeros(400)]
    assert slope(rows) is rows[1]
    assert slope([rows[0], rows[1], np.zeros(400)])[0] == 0.0


def test_shrinkage_that_does_no_harm_makes_the_estimate_surer() -> None:
    """With a right model every shrinkage is unbiased: the strongest should be chosen."""
    rng = np.random.default_rng(4)
    weights = rng.pareto(2.0, size=2_000) + 0.5
    q = rng.normal(size=2_000)
    evidence = Evidence(weights, q + rng.normal(size=2_000), q, q)
    for name in ("dros", "switch"):
        assert ESTIMATORS[name].terms(evidence).std() < 0.7 * dr(evidence).std(), name


def test_a_mixture_of_loggers_is_exactly_unbiased() -> None:
    """One round from each of two loggers: IPS over their mixture, enumerated."""
    vectors = np.array([[0.9, 0.05, 0.05], [0.1, 0.2, 0.7]])
    target, truth = np.array([0.2, 0.3, 0.5]), np.array([1.0, -2.0, 4.0])
    total = 0.0
    for actions in product(range(3), repeat=2):
        likelihood = vectors[0, actions[0]] * vectors[1, actions[1]]
        rounds = rounds_of(vectors, actions=np.array(actions), rewards=truth[list(actions)], exact=True)
        rounds = Rounds(**{**vars(rounds), "loggers": np.array([0, 1])})
        mixed = balanced(rounds, {code: np.tile(vectors[code], (2, 1)) for code in (0, 1)})
        evidence = weigh(mixed, np.tile(target, (2, 1)), np.zeros((2, 3)))
        total += likelihood * float(ips(evidence).mean())
    assert total == pytest.approx(float(target @ truth), abs=1e-6)


def test_a_logger_without_vectors_is_refused() -> None:
    rounds = rounds_of(np.array([[0.5, 0.5]]), actions=np.array([0]), rewards=np.ones(1))
    with pytest.raises(ValueError, match=r"rounds of loggers \[0\] are there"):
        balanced(rounds, {1: np.array([[0.5, 0.5]])})


def test_weights_over_a_mixture_of_loggers_are_exactly_unbiased() -> None:
    """Two rounds by two loggers: over every pair of draws balanced DR averages to the value, whatever the model."""
    rng = np.random.default_rng(3)
    first, second = (_normal(rng.exponential(size=(2, 3)) + 0.05) for _ in range(2))
    target, truth = _normal(rng.exponential(size=(2, 3))), rng.normal(size=(1, 3)) + np.zeros((2, 3))
    # A context that both rounds share: the mixture is over who drew it, so each of the two may have drawn either.
    first, second, target = (np.tile(x[:1], (2, 1)) for x in (first, second, target))
    vectors = {0: first, 1: second}
    for q in (truth, np.zeros((2, 3)), rng.normal(size=(1, 3)) + np.zeros((2, 3))):
        total = 0.0
        for a, b in product(range(3), repeat=2):
            actions = np.array([a, b])
            drawn = np.array([first[0], second[1]])
            rounds = rounds_of(drawn, actions=actions, rewards=truth[[0, 1], actions], exact=True)
            rounds = Rounds(**{**vars(rounds), "loggers": np.array([0, 1])})
            mixed = balanced(rounds, vectors)
            assert mixed.probabilities.dtype == np.float64
            total += first[0, a] * second[1, b] * float(dr(weigh(mixed, target, q)).mean())
        assert total == pytest.approx(float((target * truth).sum(axis=1).mean()), abs=1e-12)


def test_only_what_is_unbiased_says_so_and_only_dr_decides() -> None:
    assert {n for n, e in ESTIMATORS.items() if e.unbiased} == {"ips", "dr"}
    assert {n for n, e in ESTIMATORS.items() if e.gates} == {"dr"}
