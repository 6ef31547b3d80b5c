import numpy as np
import pytest

from optimizer.customer import Sent
from optimizer.journey import earned, follow, progress, receive, release, settle, stage_values
from tests.small_program import DAY, NOON, customer, small

PROGRAM = small()
SENT = Sent(decision_id="d", incentive="badge", deliver_at=NOON, day=20_454, cost=0, period=0, expires_at=NOON)


def test_a_micro_action_moves_the_stage_and_raises_momentum_and_streak() -> None:
    ada = follow(PROGRAM, customer(PROGRAM), "step", at=NOON)
    assert (ada.stage, ada.steps.level, ada.streak, ada.counts) == ("active", 1.0, 1, {"step": 1})
    later = follow(PROGRAM, ada, "step", at=NOON + DAY)
    assert later.streak == 2
    assert later.steps.level == pytest.approx(1 + 0.5 ** (1 / 3))


def test_several_steps_on_a_day_are_one_day_of_streak() -> None:
    ada = customer(PROGRAM)
    for hour in range(3):
        ada = follow(PROGRAM, ada, "step", at=NOON + hour * 3600)
    assert ada.streak == 1
    assert ada.counts["step"] == 3


def test_a_missed_day_ends_the_streak() -> None:
    ada = follow(PROGRAM, customer(PROGRAM), "step", at=NOON)
    assert settle(PROGRAM, ada, at=NOON + DAY).streak == 1
    assert settle(PROGRAM, ada, at=NOON + 2 * DAY).streak == 0


def test_an_idle_customer_lapses_and_comes_back() -> None:
    ada = follow(PROGRAM, customer(PROGRAM), "step", at=NOON)
    assert settle(PROGRAM, ada, at=NOON + 7 * DAY).stage == "active"
    quiet = settle(PROGRAM, ada, at=NOON + 8 * DAY)
    assert quiet.stage == "quiet"
    assert follow(PROGRAM, quiet, "step", at=NOON + 8 * DAY).stage == "active"


def test_an_outcome_that_arrives_late_counts_for_momentum_as_if_on_time() -> None:
    on_time = follow(PROGRAM, follow(PROGRAM, customer(PROGRAM), "step", at=NOON), "step", at=NOON + 3600)
    late = follow(PROGRAM, follow(PROGRAM, customer(PROGRAM), "step", at=NOON + 3600), "step", at=NOON)
    assert late.steps.level == pytest.approx(on_time.steps.level)
    assert (late.streak, late.last_step_at) == (on_time.streak, on_time.last_step_at)


def test_a_signal_is_no_step() -> None:
    ada = follow(PROGRAM, customer(PROGRAM), "complaint", at=NOON)
    assert ada.steps.level == ada.streak == 0
    assert ada.promotion_paused_until == NOON + 14 * DAY


@pytest.mark.parametrize(("score", "paused"), [(2.0, True), (3.0, False), (None, False)])
def test_a_low_score_pauses_promotion(score: float | None, paused: bool) -> None:  # noqa: FBT001
    ada = follow(PROGRAM, customer(PROGRAM), "survey", at=NOON, value=score)
    assert (ada.promotion_paused_until > NOON) is paused


def test_opting_out_and_in_is_consent() -> None:
    out = follow(PROGRAM, customer(PROGRAM), "opt_out", at=NOON)
    assert out.consent is False
    assert follow(PROGRAM, out, "opt_in", at=NOON).consent is True


def test_an_unknown_event_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown event 'stepp': program small knows step, upgraded"):
        follow(PROGRAM, customer(PROGRAM), "stepp", at=NOON)


def test_releasing_a_nudge_undoes_receiving_it() -> None:
    ada = customer(PROGRAM)
    again = release(PROGRAM, receive(PROGRAM, ada, SENT), "d")
    assert again.sent == ()
    assert again.nudges.at(NOON, half_life=1.0) == 0
    assert release(PROGRAM, ada, "another") is ada


def test_nudges_of_last_week_are_forgotten() -> None:
    ada = receive(PROGRAM, customer(PROGRAM), SENT)
    assert settle(PROGRAM, ada, at=NOON + 7 * DAY).sent == (SENT,)
    assert settle(PROGRAM, ada, at=NOON + 9 * DAY).sent == ()


def test_progress_names_the_nearest_milestone_and_its_reward() -> None:
    ada = customer(PROGRAM, counts={"step": 3}, streak=3)
    assert progress(PROGRAM, ada) == ("A week in a row", 3, 7, "a gift")
    done = customer(PROGRAM, counts={"step": 12}, streak=7)
    assert progress(PROGRAM, done) is None
    assert [m.name for m in earned(PROGRAM, done)] == ["ten-steps", "week"]


def test_stage_values_are_worked_back_from_the_goal() -> None:
    # new -> active always, active -> quiet always, quiet stays; a day in active earns 1: by hand, with gamma 0.98,
    # V(quiet) = 0, V(active) = 1, V(new) = 0.98.
    transitions = np.array([[0.0, 5.0, 0.0], [0.0, 0.0, 5.0], [0.0, 0.0, 5.0]])
    values = stage_values(PROGRAM, transitions=transitions, rewards=np.array([0.0, 5.0, 0.0]), prior=0.0)
    assert values.tolist() == pytest.approx([0.98, 1.0, 0.0])


def test_a_stage_that_was_never_seen_is_worth_nothing() -> None:
    values = stage_values(PROGRAM, transitions=np.zeros((3, 3)), rewards=np.zeros(3))
    assert values.tolist() == [0, 0, 0]
