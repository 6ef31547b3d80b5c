"""The gate: it promotes what is better, keeps what is not beaten, and says when it cannot tell."""

import numpy as np
import pytest
from msgspec.structs import replace

from optimizer.policy import Rounds
from tests.training.worlds import best_for, made_up
from training.diagnostics import Check
from training.evaluate import evaluate
from training.evaluation import Evaluation, Score
from training.intervals import Estimate
from training.promotion import Reason, always_valid, judge, with_reasons
from training.targets import Target, baselines, deployed, today

WORLD = made_up(n=5_000, seed=21)
PROGRAM = WORLD.dataset.program


def candidate(name: str, actions: dict[str, str]) -> Target:
    """Return a candidate that does one thing a stage."""
    return deployed(name, best_for(PROGRAM, actions), PROGRAM, version=name)


def judged(*candidates: Target, reference: str = "today") -> Evaluation:
    """Return an evaluation of candidates beside the baselines."""
    return evaluate(WORLD.dataset, [*baselines(PROGRAM), *candidates], reference=reference)


def test_a_better_challenger_is_promoted() -> None:
    verdict = judge(judged(candidate("good", {"new": "badge/playful/now"})))
    assert (verdict.choice, verdict.challenger, verdict.challenger_version) == ("promote", "good", "good")
    assert verdict.reasons[0].code == "better"
    assert verdict.reasons[0].lift is not None
    assert verdict.reasons[0].lift.low > 0


def test_a_worse_challenger_is_not() -> None:
    coupons = dict.fromkeys(("new", "active", "quiet"), "coupon/warm/now")
    verdict = judge(judged(candidate("bad", coupons)))
    assert (verdict.choice, verdict.reasons[0].code) == ("keep", "worse")
    assert not verdict.promotes


def test_a_challenger_that_is_the_champion_is_not_shown_to_be_better() -> None:
    same = candidate("same", {"new": "badge/warm/now"})
    verdict = judge(judged(same, candidate("champion", {"new": "badge/warm/now"}), reference="champion"))
    reasons = {r.target: r.code for r in verdict.reasons}
    assert reasons["same"] == "not better"
    assert verdict.choice == "keep"


def test_the_best_of_several_is_promoted_at_a_stricter_level() -> None:
    several = judged(
        candidate("good", {"new": "badge/playful/now"}),
        candidate("half", {"new": "badge/warm/now"}),
        candidate("bad", {"active": "coupon/warm/now"}),
    )
    verdict = judge(several)
    assert verdict.challenger == several.candidates[0].name
    assert verdict.level == pytest.approx(1 - 0.05 / 3)


def test_several_candidates_must_clear_a_higher_bar() -> None:
    """A lift of 1 with error 0.34 is above 0 at any look alone (2.79 errors), but not among five (3.36)."""

    def with_(count: int) -> Evaluation:
        lift = Estimate(
            value=1.0, low=0.33, high=1.67, error=0.34, degrees=10_000, level=0.95, rounds=20_000, customers=10_001
        )
        scores = [_score("today", "today", lift)] + [_score(f"c{i}", "candidate", lift) for i in range(count)]
        return _evaluation(scores)

    assert judge(with_(1)).choice == "promote"
    verdict = judge(with_(5))
    assert verdict.choice == "keep"
    assert "more matured rounds would show a lift of this size" in verdict.reasons[0].mend


def test_a_failed_check_of_the_log_means_not_enough_evidence() -> None:
    lift = Estimate(value=1.0, low=0.9, high=1.1, error=0.05, degrees=1e4, level=0.95, rounds=20_000, customers=5)
    failing = Check(name="calibration", title="Draws", status="fail", value=9.0, finding="off", mend="mend it")
    scores = [_score("today", "today", lift), _score("c", "candidate", lift)]
    verdict = judge(_evaluation(scores, failing))
    assert verdict.choice == "not enough evidence"
    assert [(r.code, r.mend) for r in verdict.reasons] == [("check failed", "mend it")]


def test_a_failed_check_of_one_candidate_leaves_the_others() -> None:
    lift = Estimate(value=1.0, low=0.9, high=1.1, error=0.05, degrees=1e4, level=0.95, rounds=20_000, customers=5)
    failing = Check(name="tails", title="Tails", status="fail", value=9.0, finding="heavy", target="a")
    scores = [_score("today", "today", lift), _score("a", "candidate", lift), _score("b", "candidate", lift)]
    verdict = judge(_evaluation(scores, failing))
    assert (verdict.choice, verdict.challenger) == ("promote", "b")


def test_another_gate_may_stop_a_promotion_but_never_make_one() -> None:
    lift = Estimate(value=1.0, low=0.9, high=1.1, error=0.05, degrees=1e4, level=0.95, rounds=20_000, customers=500)
    better = judge(_evaluation([_score("today", "today", lift), _score("c", "candidate", lift)]))
    unfair = Reason(code="unfair", speaks="against", target="c", text="older customers would lose", mend="weigh them")
    stopped = with_reasons(better, [unfair])
    assert (better.choice, stopped.choice, stopped.reasons[0].code) == ("promote", "keep", "unfair")
    unknown = replace(unfair, speaks="unknown", target="")
    assert with_reasons(better, [unknown]).choice == "not enough evidence"
    assert with_reasons(better, [replace(unfair, target="another")]).promotes
    assert with_reasons(better, [replace(unfair, speaks="for")]).promotes
    assert with_reasons(replace(better, choice="keep"), [replace(unfair, speaks="for")]).choice == "keep"


def test_a_bound_for_every_look_is_wider_than_one_for_a_single_look() -> None:
    lift = Estimate(value=1.0, low=0.9, high=1.1, error=0.05, degrees=1e4, level=0.95, rounds=20_000, customers=500)
    assert always_valid(lift, level=0.95).low == pytest.approx(1.0 - 2.79 * 0.05, abs=1e-3)
    assert always_valid(lift, level=0.99).low < always_valid(lift, level=0.95).low < lift.low


def test_a_shared_budget_is_said_with_the_verdict() -> None:
    """The small program's coupons are counted."""
    assert any("share a budget or a stock" in note for note in judge(judged()).notes)


def test_without_candidates_there_is_no_verdict_but_a_hint() -> None:
    verdict = judge(judged())
    assert (verdict.choice, verdict.challenger) == ("not enough evidence", "")
    assert verdict.reasons[0].mend == "train some first: nudge train"


@pytest.mark.slow
def test_a_policy_no_better_than_today_is_rarely_promoted() -> None:
    """Chance against chance, 40 logs, at 2.5 % a promotion each: more than 5 has a chance below 1 in 1,000."""
    promoted = 0
    for seed in range(40):
        dataset = made_up(n=600, customers=200, seed=5_000 + seed, lift=0.0).dataset

        def shuffled(rounds: Rounds, seed: int = seed) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
            rng = np.random.default_rng(seed)
            tilted = rounds.probabilities * rng.uniform(0.5, 1.5, size=(len(rounds), 1)) ** (
                PROGRAM.space.levels[:, 2] == 0
            )
            vectors: np.ndarray[tuple[int, int], np.dtype[np.float64]] = tilted / tilted.sum(axis=1, keepdims=True)
            return vectors

        other = Target("other", "Other timings", "candidate", shuffled)
        promoted += judge(evaluate(dataset, [today(), other])).promotes
    assert promoted <= 5


def _score(name: str, role: str, lift: Estimate) -> Score:
    return Score(
        name=name,
        title=name,
        role=role,  # type: ignore[arg-type]
        version="",
        estimates={"dr": lift},
        lift=lift,
        over_hold=None,
        events={},
        nudged=0.5,
        cost=0.0,
        mix={},
        stages=(),
    )


def _evaluation(scores: list[Score], *checks: Check) -> Evaluation:
    return Evaluation(
        program="p",
        program_title="P",
        program_version="v",
        goal="Goal",
        goal_event="goal",
        currency="EUR",
        reference="today",
        level=0.95,
        rounds=10,
        customers=5,
        decisions_seen=10,
        matured_share=1.0,
        since=0.0,
        until=1.0,
        explained=0.1,
        titles={},
        scores=tuple(scores),
        effects=(),
        checks=checks,
    )
