"""Faults of every kind in one text, as a hurried reviewer would plant them: each is named, and none hides another."""

import re

import pytest

from optimizer.audit import check
from optimizer.programs import read

FITNESS = read("fitness-coaching")
MIN = "min_momentum = 0.1"

# (what stands there, what is planted, the key that is named, a piece of what is said)
PLANTED = (
    ('title = "Online fitness coaching"', 'title = ""', "title", "length >= 1.*write it out"),
    ('currency = "EUR"', 'currency = "EUO"', "currency", "no currency of ISO 4217"),
    ("discount = 0.98", "discount = nan", "discount", "got nan"),
    ('momentum_half_life = "3d"', 'momentum_half_life = "0d"', "momentum_half_life", "longer than nothing"),
    ('dosage_half_life = "3d"', 'dosage_half_life = "900d"', "dosage_half_life", "900 days"),
    (
        'name = "consider"\ntitle = "Consider"',
        'name = "consider"\ntitel = "Consider"',
        "stages[consider].titel",
        "title?",
    ),
    ("tip_read = 0.06", "tip_read = 0", "stages[aware].expects", "never to happen"),
    ("workout_done = 0.08", "workout_dun = 0.08", "stages[consider].expects", "'workout_dun' is not declared"),
    (
        "expects = { app_opened = 0.06,",
        'lapses_after = "30d"\nlapses_to = "experience"\nexpects = { app_opened = 0.06,',
        "stages[experience].lapses_to",
        "in a circle: experience, at-risk, experience",
    ),
    ('lapses_to = "consider"', 'lapses_to = "considr"', "stages[decide].lapses_to", "use one of aware"),
    (
        'value = 0.5\nwindow = "1d"',
        'value = -0.5\nwindow = "1d"',
        "events[weekly_goal_set].value",
        "forward is worth -0.5",
    ),
    ("value = -10.0", "value = 10.0", "events[opt_out].value", "a policy would seek it"),
    ("pauses_below = 3", "pauses_below = 9", "events[survey_csat].pauses_below", "after every answer"),
    (
        '{ aware = "decide", consider = "decide" }',
        '{ aware = "decide", consider = "consider" }',
        "events[trial_started].moves",
        "to itself",
    ),
    (
        'kind = "macro"\ntitle = "Brought',
        'kind = "makro"\ntitle = "Brought',
        "events[referral].kind",
        "use one of micro, macro",
    ),
    (
        "requests_decision = true # a quick",
        "request_decision = true # a quick",
        "events[workout_done].request_decision",
        "requests_decision?",
    ),
    (
        'window = "1d"\nmoves = { aware = "consider" }',
        'window = "0d"\nmoves = { aware = "consider" }',
        "events[tip_read].window",
        "longer than nothing",
    ),
    (
        '"progress-report"\ntitle = "Your progress report"',
        '"progress-report"\ntitle = "Your last chance"',
        "incentives[progress-report].title",
        "presses",
    ),
    ("cost = 1.0\n", "cost = 0.001\n", "incentives[free-trial-extension].cost", "less than the hundredth"),
    ("cost = 2.5\n", "cost = -2.5\n", "incentives[refer-a-friend].cost", "at least 0"),
    ("cost = 4.0\n", "cost = 4.0\nstock = 2.5\n", "incentives[streak-discount].stock", "`int`, got `float`.*such as 3"),
    (
        'stages = ["aware", "consider", "decide", "at-risk"]',
        'stages = ["aware", "aware", "decide", "at-risk"]',
        "incentives[community-story].stages",
        "'aware' twice",
    ),
    (f'"advocate"]\n{MIN}', f'"advocate"]\noff_beat = true\n{MIN}', "incentives[weekly-goal].off_beat", "no cadence"),
    (
        "min_momentum = 0.3\npromotional = true",
        "min_momentum = 0.3",
        "incentives[streak-discount].promotional",
        "follow a complaint",
    ),
    (
        '["in-app", "push", "email"]',
        '["in-app", "push", "email", "push"]',
        "attributes[channel].categories",
        "'push' twice",
    ),
    (
        'title = "Encouraging"',
        'title = "Encouraging"\nbarred_segments = { channel = ["push", "in-app", "email"] }',
        "tones[encouraging].barred_segments",
        "every category",
    ),
    ('delay = "1h"', 'delay = "0m"', "timings[in-an-hour]", "arrives when now does"),
    ('clock = "12:15"', 'clock = "12:75"', "timings[midday].clock", "time of day"),
    (
        '["morning", "midday", "evening"]',
        '["morning"]',
        "attributes[trains_in].categories",
        "tells nobody apart",
    ),
    ("scale = 60", "scale = 0", "attributes[tenure_days].scale", "more than 0"),
    (
        'event = "workout_done"\ncount = 1\n',
        'event = "workout_dun"\ncount = 1\n',
        "milestones[first-workout].event",
        "'workout_dun' is not",
    ),
    ("streak = 30", "streak = 30000", "milestones[thirty-day-streak].streak", "live to see"),
    ("count = 100\n", "count = 10\n", "milestones[hundred-workouts]", "is reached with ten-workouts"),
    ('quiet_from = "21:00"', 'quiet_from = "24:00"', "guardrails.quiet_from", "time of day"),
    ("cap_per_day = 1", "cap_per_day = 9", "guardrails.cap_per_day", "cap_per_week allows 5"),
    ("social = 2", "socail = 2", "guardrails.cap_per_week_by_kind", "'socail' is not declared"),
    ("amount = 2000", "amount = 3", "guardrails.budget.amount", "never pay for streak-discount"),
    ("[exploration]", "[explorations]", "explorations", "exploration?"),
    ("floor = 0.05", "floor = 0.9", "exploration.floor", "at most 0.5"),
    ("\nhold = 0.05", "\nhold = 0", "exploration.hold", "hold would be impossible"),
    ("holdout = 0.05", "holdout = 1.5", "experiment.holdout", "at most 0.5"),
    ('timing = "evening"', 'timing = "evning"', "rules[1].timing", "'evning' is not declared"),
    (
        '"Five minutes, just for you"',
        '"{name}, five minutes"',
        "messages.five-minute-workout.warm.subject",
        "not a placeholder",
    ),
    ('"A small tip from your coach"', '"Don\u2019t be l\u0430zy"', "messages.coach-tip.warm.subject", "shames"),
    ('"Make your good days repeat!"', '"Selling fast!"', "messages.coach-tip.celebratory.subject", "declared scarce"),
    ('"Let your kettle be the coach"', '"   "', "messages.coach-tip.playful.subject", "is blank"),
    ('"Coach tip: decide when and where"', '"Dear [FIRST NAME]"', "messages.coach-tip.factual.subject", "not finished"),
    (
        'call_to_action = "Read the story"',
        'call_to_action = ""',
        "messages.community-story.warm.call_to_action",
        "length >= 1",
    ),
    (
        "[messages.refer-a-friend.factual]",
        "[messages.refer-a-friend.facts]",
        "messages.refer-a-friend",
        "'facts' is not declared",
    ),
)


@pytest.mark.parametrize("section", ["stages", "events", "incentives", "tones", "timings"])
def test_what_is_missing_altogether_hides_no_other_fault(section: str) -> None:
    text = re.sub(rf"\[\[{section}\]\]\n(?:.+\n)+", "", FITNESS)
    text = text.replace('"Five minutes are enough"', '"Hurry up"').replace("cap_per_day = 1", "cap_per_dy = 1")
    found = check(text, source="mine.toml")
    keys = [f.key for f in found.findings]
    assert {section, "guardrails.cap_per_dy", "messages.five-minute-workout.encouraging.subject"} <= set(keys)
    assert len(keys) < 10, "what follows from that is not told"
    assert found.touches == ()


def test_fifty_faults_in_one_text_are_all_named() -> None:
    text = FITNESS
    for there, plant, *_ in PLANTED:
        assert text.count(there) >= 1, there
        text = text.replace(there, plant, 1)
    found = check(text, source="mine.toml").findings
    for _, plant, key, said in PLANTED:
        near = [f"{f.problem}; {f.mend}" for f in found if f.key == key]
        assert any(re.search(said, x) for x in near), (key, plant, near)
    assert all(f.file == "mine.toml" and f.mend for f in found)
