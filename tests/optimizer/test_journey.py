import numpy as np
import pytest

from optimizer.customer import Customer, Sent
from optimizer.journey import done, earned, follow, progress, reached, receive, release, requested, settle, stage_values
from optimizer.program import Program, ProgramError
from tests.small_program import DAY, NOON, TOML, customer, small

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


# What asks for a decision at once.

HOUR = 3600.0
ASKING = Program.parse(
    TOML.replace('name = "step"\nkind = "micro"', 'name = "step"\nkind = "micro"\nrequests_decision = true').replace(
        "count = 10", "count = 3\nrequests_decision = true"
    ),
    source="asking.toml",
)
MILESTONE_ONLY = Program.parse(TOML.replace("streak = 7", "streak = 2\nrequests_decision = true"), source="week.toml")


def reason(program: Program, before: Customer, event: str, *, at: float, heard: float = 1.0) -> str | None:
    trigger = requested(program, before, follow(program, before, event, at=at), now=at + heard)
    return None if trigger is None else trigger.reason


def test_a_declared_event_asks_for_a_decision_and_says_why() -> None:
    ada = customer(ASKING, consent=True)
    assert reason(ASKING, ada, "step", at=NOON) == "quick_win"
    assert reason(ASKING, ada, "spent", at=NOON) is None
    once = follow(ASKING, ada, "step", at=NOON)
    assert reason(ASKING, once, "step", at=NOON + 7 * DAY) == "comeback"  # the shortest `lapses_after`
    assert reason(ASKING, once, "step", at=NOON + 6 * DAY) == "quick_win"
    twice = follow(ASKING, once, "step", at=NOON)
    assert reason(ASKING, twice, "step", at=NOON + 9 * DAY) == "milestone"


def test_a_milestone_asks_whichever_event_reaches_it() -> None:
    ada = follow(MILESTONE_ONLY, customer(MILESTONE_ONLY, consent=True), "spent", at=NOON)
    assert reason(MILESTONE_ONLY, ada, "spent", at=NOON + HOUR) is None
    assert reason(MILESTONE_ONLY, ada, "spent", at=NOON + DAY) == "milestone"
    kept = follow(MILESTONE_ONLY, ada, "spent", at=NOON + DAY)
    assert reason(MILESTONE_ONLY, kept, "spent", at=NOON + 2 * DAY) is None, "it has been reached before"


def test_nobody_is_asked_about_who_said_no_nor_about_old_news() -> None:
    assert reason(ASKING, customer(ASKING, consent=False), "step", at=NOON) is None
    assert reason(ASKING, customer(ASKING), "step", at=NOON) is None, "the program is opt-in"
    ada = customer(ASKING, consent=True)
    assert reason(ASKING, ada, "step", at=NOON, heard=3601.0) is None
    now = follow(ASKING, ada, "step", at=NOON)
    assert reason(ASKING, now, "step", at=NOON - 60) is None, "there was a later one"


def test_a_nudge_is_the_answer_to_what_asked_for_it() -> None:
    ada = follow(ASKING, customer(ASKING, consent=True), "step", at=NOON)
    assert ada.trigger is not None
    assert receive(ASKING, ada, SENT).trigger is None


def test_a_streak_may_name_its_events() -> None:
    program = Program.parse(TOML.replace("streak = 7", 'streak = 2\nstreak_of = ["step"]'), source="x.toml")
    (milestone,) = program.streaks
    ada = customer(program)
    for day, event in enumerate(("step", "spent", "step", "step")):
        ada = follow(program, ada, event, at=NOON + day * DAY)
    assert (ada.streak, done(milestone, ada), reached(milestone, ada)) == (4, 2, True)
    later = settle(program, ada, at=NOON + 9 * DAY)
    assert (later.streak, done(milestone, later), reached(milestone, later)) == (0, 0, True)


def test_a_streak_that_ended_stays_earned_and_the_longest_is_remembered() -> None:
    ada = customer(PROGRAM)
    for day in range(7):
        ada = follow(PROGRAM, ada, "spent", at=NOON + day * DAY)
    assert [m.name for m in earned(PROGRAM, ada)] == ["week"]
    again = follow(PROGRAM, ada, "spent", at=NOON + 10 * DAY)
    assert (again.streak, again.longest_streak) == (1, 7)
    assert [m.name for m in earned(PROGRAM, again)] == ["week"]
    assert progress(PROGRAM, again) == ("Ten steps", 0, 10, "a badge")


@pytest.mark.parametrize(
    ("there", "planted", "said"),
    [
        ("streak = 7", 'streak = 7\nstreak_of = ["stepp"]', "'stepp' is not declared; use one of step"),
        ("streak = 7", 'streak = 7\nstreak_of = ["complaint"]', "'complaint' is not declared; use one of step"),
        ("count = 10", 'count = 10\nstreak_of = ["step"]', "has no streak; add streak = 7, or remove it"),
    ],
)
def test_a_streak_of_nothing_is_refused(there: str, planted: str, said: str) -> None:
    with pytest.raises(ProgramError, match=said):
        Program.parse(TOML.replace(there, planted), source="x.toml")


def test_an_hour_is_learned_from_steps_that_agree_and_is_forgotten() -> None:
    ada = customer(PROGRAM, time_zone="Asia/Kolkata")  # half past five hours ahead
    for day in range(3):
        ada = follow(PROGRAM, ada, "step", at=NOON + day * DAY)
    assert ada.hours.hour(at=NOON + 2 * DAY) == pytest.approx(17.5)
    assert ada.hours.hour(at=NOON + 60 * DAY) is None
    late = follow(PROGRAM, ada, "step", at=NOON + DAY + 6 * HOUR)
    assert late.hours.steps == pytest.approx(3.9, abs=0.15), "a late report counts nearly whole"
    for hour in (3, 9, 15):
        late = follow(PROGRAM, late, "step", at=NOON + 3 * DAY + hour * HOUR)
        late = follow(PROGRAM, late, "step", at=NOON + 3 * DAY + hour * HOUR)
    assert late.hours.hour(at=NOON + 3 * DAY) is None, "at all hours alike"
