"""Evaluation: all targets on one log, and the truth within their intervals."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from tests.training.worlds import World, best_for, made_up
from training import reading
from training.balancing import PRIORS
from training.evaluate import evaluate
from training.evaluation import Evaluation
from training.ope import ESTIMATORS
from training.reward_model import cross_fit
from training.targets import Target, baselines, best_fixed, deployed, today
from training.vectors import room

WORLD = made_up(n=5_000, seed=11)
PROGRAM = WORLD.dataset.program


def targets(*extra: Target) -> list[Target]:
    """Return the baselines, a good policy and more."""
    good = deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM, title="A good one", version="3")
    return [*baselines(PROGRAM), good, *extra]


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate(WORLD.dataset, targets())


def test_every_target_has_every_estimate(result: Evaluation) -> None:
    assert [s.name for s in result.scores] == ["today", "hold", "rules", "uniform", "good"]
    for score in result.scores:
        assert set(score.estimates) == {*ESTIMATORS, "pi-pairs", "pi-levels", *PRIORS, "slope", "ladder"}
        assert score.value.low <= score.value.value <= score.value.high
        assert sum(s.share for s in score.stages) == pytest.approx(1.0)


def test_the_truth_lies_within_the_intervals(result: Evaluation) -> None:
    for target in targets():
        found = result.score(target.name).value.at_level(0.999)
        assert found.low <= WORLD.value(target.vectors(WORLD.dataset.rounds)) <= found.high, target.name


def test_a_better_policy_is_seen_to_be_better(result: Evaluation) -> None:
    good = result.score("good")
    assert good.lift.low > 0
    assert good.over_hold is not None
    assert good.over_hold.low > 0
    assert result.candidates == (good,)
    assert next(s for s in good.stages if s.stage == "new").lift.low > 0  # type: ignore[union-attr]


def test_today_is_worth_the_mean_reward_and_no_lift_over_itself(result: Evaluation) -> None:
    today_ = result.score("today")
    mean = WORLD.dataset.rounds.rewards.mean()
    for name in ("ips", "snips"):
        assert today_.estimates[name].value == pytest.approx(mean, abs=1e-9)
    assert (today_.lift.value, today_.lift.error) == (0.0, 0.0)


def test_a_paired_difference_is_surer_than_two_values_apart(result: Evaluation) -> None:
    good, today_ = result.score("good"), result.score("today")
    assert good.lift.value == pytest.approx(good.value.value - today_.value.value)
    assert good.lift.error < np.hypot(good.value.error, today_.value.error)


def test_vectors_in_a_file_change_nothing(result: Evaluation) -> None:
    """As a long log is read: what was let go of is there again."""
    rounds = WORLD.dataset.rounds
    filed = {
        name: room(getattr(rounds, name).shape, getattr(rounds, name).dtype, large=1)
        for name in ("allowed", "probabilities")
    }
    for name, array in filed.items():
        array[:] = getattr(rounds, name)
    again = evaluate(replace(WORLD.dataset, rounds=replace(rounds, **filed)), targets())
    assert again.to_json() == result.to_json()


def test_reading_in_blocks_changes_nothing(result: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SIZE", 700)
    calls: list[tuple[str, int, int]] = []
    again = evaluate(WORLD.dataset, targets(), progress=lambda *told: calls.append(told))
    for score in again.scores:
        assert score.lift.low == pytest.approx(result.score(score.name).lift.low, abs=1e-9)
        assert score.value.error == pytest.approx(result.score(score.name).value.error, rel=1e-9)
    assert [c.status for c in again.checks] == [c.status for c in result.checks]
    assert calls[-1] == ("evaluating", 5_000, 5_000)
    assert len(calls) == 8


def test_the_value_of_a_policy_is_that_of_its_floored_vector() -> None:
    hold = deployed("h", best_for(PROGRAM, {}), PROGRAM)
    vectors = hold.vectors(WORLD.dataset.rounds.take(slice(10)))
    nudging = 1 - vectors[:, 0]
    allowed = WORLD.dataset.rounds.allowed[:10]
    assert nudging[allowed[:, 1:].any(axis=1)] == pytest.approx(PROGRAM.exploration.floor, abs=1e-6)
    assert (vectors[~allowed] == 0).all()
    assert vectors.sum(axis=1) == pytest.approx(np.ones(10), abs=1e-12)


def test_levels_add_what_they_truly_add(result: Evaluation) -> None:
    """Coupons take 0.3 wherever they are; badges add 0.4 to new customers, a third of all, and playful ones 0.1."""
    effects = {(e.factor, e.level): e.lift.at_level(0.999) for e in result.effects}
    coupon, badge = effects["incentive", "coupon"], effects["incentive", "badge"]
    assert coupon.low <= -0.3 <= coupon.high < 0
    assert 0 < badge.low <= 0.4 / 3 + 0.05 <= badge.high
    assert effects["timing", "now"].low < effects["timing", "evening"].value < effects["timing", "now"].high


def test_earlier_rounds_serve_the_reward_model_only(result: Evaluation) -> None:
    history = made_up(n=4_000, seed=12).dataset
    richer = evaluate(WORLD.dataset, targets(), history=history)
    assert richer.rounds == result.rounds
    assert richer.score("good").estimates["snips"] == result.score("good").estimates["snips"]
    assert richer.score("good").estimates["dm"] != result.score("good").estimates["dm"]


def test_events_are_counted_per_decision(result: Evaluation) -> None:
    upgraded = result.score("today").events["upgraded"]
    assert upgraded.low <= WORLD.dataset.events["upgraded"].mean() <= upgraded.high
    assert set(result.score("good").events) == {"upgraded", "opt_out"}


def test_each_policy_is_compared_with_every_baseline(result: Evaluation) -> None:
    good = result.score("good")
    assert set(good.against) == {"today", "hold", "rules", "uniform"}
    assert good.against["today"] == good.lift
    assert good.against["hold"] == good.over_hold


def test_other_intervals_agree_with_student_t(result: Evaluation) -> None:
    score = result.score("good")
    assert set(score.intervals) == {"bca", "poisson", "likelihood"}
    for name in ("bca", "poisson"):
        assert score.intervals[name].low == pytest.approx(score.value.low, abs=0.3 * score.value.error)
        assert score.intervals[name].high == pytest.approx(score.value.high, abs=0.3 * score.value.error)
    assert score.picked in ("dr", "pi-pairs", "pi-levels")
    assert score.estimates["slope"] == score.estimates[score.picked]
    rungs = [score.estimates[name].value for name in ("dr", "ridge-pairs", "ridge-levels")]
    assert min(rungs) <= score.estimates["ladder"].value <= max(rungs)


def test_the_same_log_gives_the_same_intervals(result: Evaluation) -> None:
    again = evaluate(WORLD.dataset, targets())
    assert again.score("good").intervals == result.score("good").intervals


def test_the_sequence_covers_the_truth_at_every_look_with_what_was_frozen_beforehand() -> None:
    history = made_up(n=2_000, seed=12).dataset
    score = evaluate(WORLD.dataset, targets(), history=history).score("good")
    assert score.sequence is not None
    assert score.sequence.frozen_model
    assert (score.sequence.low, score.sequence.high) == (history.rounds.rewards.min(), history.rounds.rewards.max())
    truth = WORLD.value(targets()[-1].vectors(WORLD.dataset.rounds))
    assert len(score.sequence.looks) == 50
    assert all(look.low <= truth <= look.high for look in score.sequence.looks)
    assert [look.customers for look in score.sequence.looks] == sorted(
        {look.customers for look in score.sequence.looks}
    )


def test_several_loggers_are_weighed_over_their_mixture_where_all_are_known() -> None:
    """The second half was drawn by another policy: its rounds, and those of the first, are weighed over both."""
    n = len(WORLD.dataset)
    codes = (np.arange(n) >= n // 2).astype(np.intp)
    dataset = replace(
        WORLD.dataset, rounds=replace(WORLD.dataset.rounds, loggers=codes), loggers=("uniform@0", "thompson@1")
    )
    known = {name: today().vectors for name in dataset.loggers}
    score = evaluate(dataset, targets(), loggers=known).score("good")
    assert score.estimates["balanced-dr"].value == pytest.approx(score.value.value, abs=1e-6)  # both drew alike
    alone = evaluate(dataset, targets(), loggers={"uniform@0": today().vectors}).score("good")
    assert "balanced-dr" not in alone.estimates


def test_messages_costs_and_spend_are_per_customer_and_period(result: Evaluation) -> None:
    today_, rounds = result.score("today"), WORLD.dataset.rounds
    per = len(rounds) / len(np.unique(rounds.customers))
    assert today_.messages == pytest.approx(today_.nudged * per)
    assert today_.spend is not None
    days = (rounds.at[-1] - rounds.at[0]) / 86_400
    assert today_.spend.expected == pytest.approx(today_.cost * len(rounds) / days * 7)
    assert today_.spend.feasible
    good = result.score("good").cost_per_outcome
    assert good is not None
    assert good.low < good.value < good.high
    assert result.score("hold").cost_per_outcome is None


def test_the_best_fixed_nudge_is_chosen_on_the_slice_it_is_given() -> None:
    history = made_up(n=6_000, seed=77, lift=0.6).dataset
    assert best_fixed(history).startswith("badge/playful/")
    assert best_fixed(history.take(slice(0, 30))) == ""


def test_it_survives_json(result: Evaluation) -> None:
    assert Evaluation.from_json(result.to_json()) == result


def test_the_mix_says_what_would_change(result: Evaluation) -> None:
    good = result.score("good")
    assert good.mix["incentive"]["badge"] > 0.8
    assert sum(good.mix["tone"].values()) == pytest.approx(1.0)
    assert result.score("hold").nudged == 0.0
    assert result.score("today").cost == pytest.approx(
        float((WORLD.dataset.rounds.probabilities @ PROGRAM.space.action_costs).mean()), abs=1e-5
    )


def test_a_target_that_ignores_the_mask_is_refused() -> None:
    def first_nudge(rounds: Rounds) -> Floats:
        return np.tile(np.eye(PROGRAM.space.k)[1], (len(rounds), 1))

    with pytest.raises(ValueError, match="but it was blocked"):
        evaluate(WORLD.dataset, [today(), Target("rash", "Rash", "candidate", first_nudge)])


def test_an_empty_log_is_refused_with_what_to_do() -> None:
    empty = replace(WORLD.dataset.take(slice(0)), matured=0)
    with pytest.raises(ValueError, match="no matured rounds to evaluate on, of 5,000 decisions seen"):
        evaluate(empty, targets())


def test_a_log_of_one_customer_is_refused() -> None:
    one = WORLD.dataset.take(WORLD.dataset.rounds.customers == 3)
    with pytest.raises(ValueError, match="at least two customers"):
        evaluate(one, [today()])


def test_a_reward_that_is_no_number_is_refused() -> None:
    rewards = WORLD.dataset.rounds.rewards.copy()
    rewards[5] = np.nan
    broken = replace(WORLD.dataset, rounds=replace(WORLD.dataset.rounds, rewards=rewards))
    with pytest.raises(ValueError, match="round 5: the reward is nan"):
        evaluate(broken, targets())


def test_an_action_that_had_no_chance_is_refused() -> None:
    rounds = WORLD.dataset.rounds
    vectors = rounds.probabilities.copy()
    vectors[3] = 0.0  # not even a sum to divide by
    vectors[8, rounds.actions[8]] = 0.0
    broken = replace(WORLD.dataset, rounds=replace(rounds, probabilities=vectors))
    with pytest.raises(ValueError, match="round 3 and 1 more: the action taken had no chance"):
        evaluate(broken, targets())


def test_the_reference_must_be_among_the_targets() -> None:
    with pytest.raises(ValueError, match="include the reference 'champion'"):
        evaluate(WORLD.dataset, targets(), reference="champion")


@pytest.mark.slow
def test_doubly_robust_intervals_cover_the_truth() -> None:
    """Of 120 logs of 400 rounds, 95 % should cover: fewer than 105 has a chance below 1 in 1,000."""
    covered = 0
    for seed in range(120):
        world: World = made_up(n=400, customers=150, seed=1_000 + seed)
        rounds = world.dataset.rounds
        target = targets()[-1].vectors(rounds)
        from training.intervals import clustered
        from training.ope import weigh

        q = cross_fit(rounds, PROGRAM.space).predict(rounds)
        found = clustered(ESTIMATORS["dr"].terms(weigh(rounds, target, q)), rounds.customers)
        covered += found.low <= world.value(target) <= found.high
    assert covered >= 105
