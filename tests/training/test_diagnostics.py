"""Diagnostics: quiet on a good log, loud on a doctored one."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from tests.training.worlds import made_up, rounds_of
from training import diagnostics
from training.diagnostics import Check
from training.ope import Evidence

WORLD = made_up(n=6_000, seed=4)
DATASET = WORLD.dataset
SPACE = DATASET.program.space


def evidence(weights: Floats) -> Evidence:
    """Return evidence that has only weights."""
    zeros = np.zeros(len(weights))
    return Evidence(weights, zeros, zeros, zeros)


def test_a_good_log_passes() -> None:
    assert diagnostics.vectors(DATASET.rounds).status == "pass"
    assert diagnostics.calibration(diagnostics.tally(DATASET.rounds, SPACE), SPACE).status == "pass"
    assert diagnostics.maturity(DATASET).status == "pass"
    assert diagnostics.known_propensities(DATASET).status == "pass"


def test_propensities_that_were_not_drawn_from_fail_calibration() -> None:
    """The log claims twice the share of the badge that was drawn."""
    rounds = DATASET.rounds
    badge = SPACE.levels[:, 0] == 0
    vectors = np.where(badge, rounds.probabilities * 2, rounds.probabilities)
    doctored = replace(rounds, probabilities=vectors / vectors.sum(axis=1, keepdims=True))
    check = diagnostics.calibration(diagnostics.tally(doctored, SPACE), SPACE)
    assert check.status == "fail"
    assert "incentive=badge" in check.finding or "hold" in check.finding
    assert check.mend


def test_calibration_raises_no_alarm_over_many_good_logs() -> None:
    """40 good logs at 1 alarm in 100 each: more than 4 warnings have a chance below 1 in 1,000."""
    checks = []
    for seed in range(40):
        dataset = made_up(n=400, seed=100 + seed).dataset
        checks.append(diagnostics.calibration(diagnostics.tally(dataset.rounds, SPACE), SPACE).status)
    assert checks.count("fail") == 0
    assert checks.count("warn") <= 4


def test_tallies_of_blocks_add_up() -> None:
    rounds = DATASET.rounds
    whole = diagnostics.tally(rounds, SPACE)
    parts = diagnostics.tally(rounds.take(slice(1_000)), SPACE) + diagnostics.tally(
        rounds.take(slice(1_000, None)), SPACE
    )
    assert parts.drawn.tolist() == whole.drawn.tolist()
    assert parts.expected == pytest.approx(whole.expected, rel=1e-5)


def test_an_invalid_vector_is_counted_and_its_round_named() -> None:
    vectors = DATASET.rounds.probabilities.copy()
    vectors[17, DATASET.rounds.actions[17]] = 0.0
    check = diagnostics.vectors(replace(DATASET.rounds, probabilities=vectors))
    assert (check.status, check.value) == ("fail", 1.0)
    assert "the first is round 17" in check.finding


def test_guessed_probabilities_fail() -> None:
    assert diagnostics.known_propensities(replace(DATASET, estimated_propensities=True)).status == "fail"


@pytest.mark.parametrize(("matured", "status"), [(6_000, "pass"), (2_000, "warn"), (600, "fail")])
def test_unripe_logs_are_told_apart(matured: int, status: str) -> None:
    assert diagnostics.maturity(replace(DATASET, matured=matured)).status == status


def test_weights_that_do_not_average_one_fail() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.exponential(size=5_000), 1.3 * rng.exponential(size=5_000)
    customers = np.arange(5_000)
    assert diagnostics.mean_weight(evidence(good), customers, target="t").status == "pass"
    assert diagnostics.mean_weight(evidence(bad), customers, target="t").status == "fail"


def test_too_few_rounds_like_the_targets_own_fail_and_say_how_many_are_missing() -> None:
    weights = np.where(np.arange(10_000) % 100 == 0, 100.0, 0.0)
    check = diagnostics.effective_size(evidence(weights), target="t")
    assert (check.status, check.value) == ("fail", 100.0)
    assert "about 10,000 more decisions" in check.mend


def test_a_heavy_tail_is_told_from_a_light_one() -> None:
    """The shape of a Pareto tail is known: 1 over its index."""
    rng = np.random.default_rng(0)
    for shape in (0.3, 0.6, 1.2):
        weights = 1 + rng.pareto(1 / shape, size=50_000)
        assert diagnostics.pareto_shape(weights) == pytest.approx(shape, rel=0.2)
    assert diagnostics.tails(evidence(rng.exponential(size=5_000)), target="t").status == "pass"
    heavy = diagnostics.tails(evidence(rng.pareto(1 / 2, size=5_000)), target="t")
    assert heavy.status == "fail"


def test_mass_on_what_the_log_never_tried_fails_with_bounds() -> None:
    """A tenth of the target is unsupported and rewards lie in 0 to 1: the value may move by -0.05 to +0.05."""
    half = replace(evidence(np.ones(100)), expected=np.full(100, 0.5))
    check = diagnostics.support(np.full(100, 0.1), half, target="t", floor=0.0, ceiling=1.0)
    assert check.status == "fail"
    assert "-0.05 to +0.05" in check.finding
    assert diagnostics.support(np.zeros(100), half, target="t", floor=0.0, ceiling=1.0).status == "pass"


def test_a_stage_without_overlap_is_named() -> None:
    stages = np.repeat([0, 1], 500)
    weights = np.where(stages == 0, 1.0, np.where(np.arange(1_000) % 250 == 0, 250.0, 0.0))
    check = diagnostics.overlap(
        evidence(weights), {"New": stages == 0, "Active": stages == 1}, kind="stage", target="t"
    )
    assert check.status == "warn"
    assert "Active" in check.finding
    assert "Active" in check.mend


def test_failures_of_other_targets_do_not_count() -> None:
    def check(target: str) -> Check:
        return Check(name="x", title="X", status="fail", value=0.0, finding="", target=target)

    checks = (check("a"), check("b"), check(""))
    assert [c.target for c in diagnostics.failed(checks, target="a")] == ["a", ""]


def weekly(shift: float, *, n: int = 4_000) -> Rounds:
    """Return four weeks of customers whose reward moves by `shift` in the last of them."""
    rng = np.random.default_rng(5)
    at = np.sort(rng.random(n)) * 28 * 86_400
    rounds = rounds_of(np.full((n, 2), 0.5), actions=np.zeros(n, dtype=np.intp), rewards=rng.normal(size=n))
    return replace(rounds, at=at, rewards=rounds.rewards + shift * (at > 21 * 86_400))


def test_a_week_unlike_the_others_is_named() -> None:
    assert diagnostics.drift(weekly(0.0).rewards, weekly(0.0)).status == "pass"
    found = diagnostics.drift(weekly(0.4).rewards, weekly(0.4))
    assert found.status == "warn"
    assert "week 4" in found.finding


def test_customers_who_change_in_the_second_half_are_seen() -> None:
    rng = np.random.default_rng(6)
    n = 2_000
    rounds = rounds_of(np.full((n, 2), 0.5), actions=np.zeros(n, dtype=np.intp), rewards=np.zeros(n))
    same = replace(rounds, contexts=rng.normal(size=(n, 2)))
    moved = replace(rounds, contexts=same.contexts + np.column_stack([np.zeros(n), 1.0 * (np.arange(n) >= n / 2)]))
    assert diagnostics.context_drift(same, ["a", "b"]).status == "pass"
    found = diagnostics.context_drift(moved, ["a", "b"])
    assert (found.status, "b" in found.finding) == ("warn", True)


def test_a_target_above_the_budget_reads_infeasible_at_these_prices() -> None:
    said = "100.00 EUR in 7 days"
    over = diagnostics.spending(120.0, 100.0, target="t", said=said)
    assert (over.status, "infeasible at these prices" in over.finding) == ("warn", True)
    assert diagnostics.spending(80.0, 100.0, target="t", said=said).status == "pass"
