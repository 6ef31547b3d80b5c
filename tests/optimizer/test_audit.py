"""What is wrong with a program is named by file, key and mend: all of it, at once, and nothing else."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.audit import audit, check
from optimizer.program import Program, ProgramError
from optimizer.programs import SHIPPED, read
from optimizer.soundness import highest_momentum
from tests.small_program import TOML

FITNESS = read("fitness-coaching")
SMALL_WINS = read("small-wins")

# (what stands there, what is planted, the key that is named, a piece of the problem, a piece of the mend)
TWENTY = (
    # of kind and range
    ("cap_per_day = 1", "cap_per_dy = 1", "guardrails.cap_per_dy", "not a key", "spelling: cap_per_day?"),
    ("cost = 4.0", 'cost = "four"', "incentives[streak-discount].cost", "got `str`", "a value of that kind"),
    ('"convenience"', '"conveniense"', "incentives[recommended-workout].kind", "conveniense", "use one of content"),
    ('window = "1d"', 'window = "one day"', "events[app_opened].window", "got 'one day'", "a value of that kind"),
    ('clock = "12:15"', 'clock = "12h15"', "timings[midday].clock", "a time of day", "a value of that kind"),
    (
        'subject = "Coach tip: decide when and where"\n',
        "",
        "messages.coach-tip.factual.subject",
        "is missing",
        "add it",
    ),
    ("discount = 0.98", "discount = 1.5", "discount", "<= 1.0, got 1.5", "a value of that kind"),
    # of sense
    ('"Europe/Paris"', '"Paris"', "guardrails.time_zone", "'Paris' is not a time zone", "Europe/Paris"),
    ("streak = 30", "count = 30", "milestones[thirty-day-streak]", "needs either event", "give one of the three"),
    ('"after-work"\n\n[[rules]]', '"tonight"\n\n[[rules]]', "rules[0].timing", "'tonight' is not", "now, in-an-hour"),
    ('{ aware = "decide"', '{ aware = "decied"', "events[trial_started].moves", "'decied' is not", "use one of aware"),
    ('name = "hundred-workouts"', 'name = "ten-workouts"', "milestones[ten-workouts]", "declared twice", "rename"),
    # of the journey, its levels and its limits
    (
        '[[stages]]\nname = "at-risk"',
        '[[stages]]\nname = "paused"\ntitle = "Paused"\n\n[[stages]]\nname = "at-risk"',
        "stages[paused]",
        "cannot be reached from 'aware'",
        "name it in the moves of an event",
    ),
    ('clock = "19:30"', 'clock = "22:30"', "timings[evening].clock", "quiet hours, 21:00 to 08:00", "choose a time"),
    (
        'on one page."\nstages = ["decide", "experience", "advocate"]\nmin_momentum = 0.1',
        'on one page."\nstages = ["decide", "experience", "advocate"]\nmin_momentum = 0.99',
        "incentives[progress-report].min_momentum",
        "is never allowed: a step a day makes a momentum of 0.97 in its stages, not 0.99",
        "use at most 0.96",
    ),
    (
        'cooldown = "12h"',
        'cooldown = "48h"',
        "guardrails.cooldown",
        "cap_per_week = 5 unreachable: at most 4",
        "42 hours",
    ),
    ("tier = 2\nladder", "tier = 4\nladder", "incentives[streak-discount].tier", "gap on the ladder 'streak'", "use 2"),
    # of what is said
    (
        "Five minutes are enough",
        "Hurry, five minutes are enough",
        "messages.five-minute-workout.encouraging.subject",
        'says "Hurry", which presses',
        "leave the choice to the reader",
    ),
    (
        '"Open the story"',
        '"The full story of a member"',
        "messages.community-story.factual.call_to_action",
        'does not start with something to do, but with "The"',
        "start with a verb",
    ),
    (
        "of your longest streak, up to 30 %. Updated daily",
        "of your longest streak, up to 40 %. Updated daily",
        "messages.streak-discount.factual",
        "promises 40 %",
        "mend the message or what the incentive earns",
    ),
)


def planted() -> str:
    text = FITNESS
    for there, plant, *_ in TWENTY:
        assert there in text, there
        text = text.replace(there, plant, 1)
    return text


def test_twenty_planted_faults_are_all_named_in_one_run_and_nothing_else() -> None:
    findings = check(planted(), source="mine.toml").findings
    assert sorted(f.key for f in findings) == sorted(key for _, _, key, _, _ in TWENTY)
    found = {f.key: f for f in findings}
    for _, _, key, problem, mend in TWENTY:
        assert found[key].file == "mine.toml"
        assert problem in found[key].problem, str(found[key])
        assert mend in found[key].mend, str(found[key])
        assert str(found[key]) == f"mine.toml: {key}: {found[key].problem}; {found[key].mend}"


@pytest.mark.parametrize("planted", TWENTY, ids=[key for _, _, key, _, _ in TWENTY])
def test_each_of_the_twenty_is_named_alone(planted: tuple[str, str, str, str, str]) -> None:
    there, plant, key, problem, mend = planted
    findings = check(FITNESS.replace(there, plant, 1), source="mine.toml").findings
    assert [f.key for f in findings] == [key], findings
    assert problem in findings[0].problem
    assert mend in findings[0].mend


def test_a_program_that_is_read_to_be_run_names_the_faults_that_keep_it_from_running() -> None:
    with pytest.raises(ProgramError) as caught:
        Program.parse(planted(), source="mine.toml")
    assert {f.key for f in caught.value.faults} == {key for _, _, key, _, _ in TWENTY[:12]}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_program_leaves_nothing_to_be_said(name: str) -> None:
    found = check(read(name), source=f"{name}.toml")
    assert found.findings == ()
    assert found.fit
    assert found.share("relevance") == found.share("value") == found.share("call_to_action") == 1.0


GOALS = {
    tone: re.search(rf"messages\.weekly-goal\.{tone}\]\n((?:subject|body).*\n(?:body).*\n)", FITNESS)[1]  # type: ignore[index]
    for tone in ("encouraging", "playful")
}

# As above, in fitness-coaching; the severity as well.
OTHERS = (
    (
        '"Read the tip"',
        '"Click here"',
        "messages.coach-tip.warm.call_to_action",
        "warning: .*does not say what happens",
    ),
    ('"Read the tip"', '"Read or share the tip"', "messages.coach-tip.warm.call_to_action", "warning: offers a choice"),
    (
        '"Read the tip"',
        '"Read the small tip that your coach wrote"',
        "messages.coach-tip.warm.call_to_action",
        "warning: takes 8 words",
    ),
    ("A small tip from", "A SMALL tip from", "messages.coach-tip.warm.subject", 'warning: shouts "SMALL"'),
    ("encore! Tie", "encore!! Tie", "messages.coach-tip.celebratory.body", 'warning: shouts "!!"'),
    ("No actors,", "Only 3 left,", "messages.community-story.playful.subject", 'fault: .*"Only 3 left".*scarce'),
    ("You need not be fit", "You must be fit", "messages.community-story.encouraging.body", "warning: .*orders about"),
    ("Everyone here was", "Shame: everyone was", "messages.community-story.encouraging.subject", "fault: .*shames"),
    ("Read the tip, one", "Read it or miss out, one", "incentives[coach-tip].earns", "fault: .*missing out"),
    (
        "cap_per_week = 5",
        'cap_per_week = 5\nrefused_phrases = ["kettle"]',
        "messages.coach-tip.playful.subject",
        "fault: .*refused_phrases",
    ),
    (
        next(line for line in FITNESS.splitlines() if "Is there someone you would like to train with?" in line),
        'body = "We think of you. Come by and look around when the time suits; it is always good to see a known face."',
        "messages.refer-a-friend.warm",
        "warning: does not say what there is to gain",
    ),
    ("You do not need an hour to do", "X" * 250 + " to do", "messages.five-minute-workout.encouraging.body", "letters"),
    ("Shorter than a coffee queue", "S" * 70, "messages.five-minute-workout.playful.subject", "warning: is 70 letters"),
    (
        "Your progress is on the home screen, and a goal reached is marked with a star the same day.",
        "Multidimensional visualisations facilitate extraordinarily comprehensive self-evaluation, the same day.",
        "messages.weekly-goal.factual.body",
        "warning: is hard to read: ease -",
    ),
    (
        GOALS["encouraging"],
        GOALS["playful"],
        "messages.weekly-goal.playful",
        "warning: says the same as messages.weekly-goal.encouraging",
    ),
    (
        "premium, up to 30 %, on your account the same day.",
        "premium, up to 30 %.",
        "incentives[streak-discount].earns",
        "",
    ),
    ("holdout = 0.05", "holdout = 0", "experiment.holdout", "note: nobody is held out"),
    ("cap_per_day = 1", "cap_per_day = 0", "guardrails.cap_per_day", "fault: allows no nudge"),
    ("cap_per_week = 5", "cap_per_week = 8", "guardrails.cap_per_week", "warning: .*1 a day make 7"),
    ("social = 2", "social = 6", "guardrails.cap_per_week_by_kind.social", "warning: allows 6, more than the 5"),
    ("social = 2", "social = 0", "guardrails.cap_per_week_by_kind.social", "fault: never allows community-story"),
    ("cap_per_week = 5", "cap_per_week = 5\nscarce_per_week = 6", "guardrails.scarce_per_week", "warning: allows 6"),
    ('budget = { amount = 2000, period = "1w" }', "", "guardrails.budget", "warning: is missing, and free-trial"),
    ('quiet_from = "21:00"', 'quiet_from = "08:30"', "guardrails.quiet_from", "warning: the quiet hours leave 30 min"),
    ('memory = "30d"', 'memory = "1d"', "guardrails.ladder.memory", "fault: .*none ever may"),
    (
        'cooldown = "12h"',
        'cooldown = "12h"\ncadence = { every = "1d" }',
        "guardrails.cadence.within",
        "warning: is half of every",
    ),
    (
        'cooldown = "12h"',
        'cooldown = "12h"\ncadence = { every = "3d" }',
        "guardrails.cadence",
        "warning: of 60 hours makes cap_per_week = 5 unreachable: at most 3",
    ),
    (
        "tier = 1\nladder",
        "cost = 9.0\ntier = 1\nladder",
        "incentives[achievement-badge].cost",
        "warning: costs 9, more",
    ),
    ('tier = 1\nladder = "streak"\n', "", "incentives[streak-discount].ladder", "warning: .*'streak' has one rung"),
    (
        'ladder = "streak"\nstages = ["consider", "decide", "experience", "advocate"]',
        'ladder = "streak"\nstages = ["consider", "decide", "advocate"]',
        "incentives[streak-discount].stages",
        "warning: shares no stage with achievement-badge",
    ),
    (
        "cost = 2.5\n",
        "cost = 2.5\nstock = 0\n",
        "incentives[refer-a-friend].stock",
        "fault: is never allowed: there are",
    ),
    (
        'stages = ["experience"]\nmin',
        'stages = ["experience"]\ncomeback_after = "8d"\nmin',
        "incentives[streak-discount].comeback_after",
        "fault: .*customers lapse out of all its stages",
    ),
    (
        "cost = 2.5\n",
        'cost = 2.5\nbarred_segments = { channel = ["in-app", "push", "email"] }\n',
        "incentives[refer-a-friend].barred_segments",
        "warning: bars every category of channel",
    ),
    ("value = 40.0", "value = 0", "events[premium_upgrade].value", "fault: the goal is worth 0"),
    ("value = 15.0", "value = 0", "events[referral].value", "warning: a macro-action is worth 0"),
    ("value = 0.2", "value = 50", "events[app_opened].value", "warning: a small step is worth as much"),
    (
        'lapses_after = "21d"\nlapses_to = "experience"',
        'lapses_after = "21d"\nlapses_to = "advocate"',
        "stages[advocate].lapses_to",
        "warning: lapses to itself",
    ),
    (
        "tip_read = 0.06",
        "tip_red = 0.06",
        "stages[aware].expects",
        "fault: 'tip_red' is not declared; use one of app_op",
    ),
    ("tip_read = 0.06", "lapse = 0.06", "stages[aware].expects", "fault: 'lapse' is not declared"),  # no lapses_to
    ("tip_read = 0.06", "tip_read = 1", "stages[aware].expects", "fault: .*add up to 1.05; use at most 1"),
    (
        'timing = "evening"\n\n[[rules]]\nstages = ["decide", "advocate"]',
        (
            'timing = "evening"\n\n[[rules]]\nstages = ["experience"]\nincentive = "coach-tip"\ntone = "warm"\n'
            'timing = "now"\n\n[[rules]]\nstages = ["experience"]\nincentive = "weekly-goal"\ntone = "warm"\n'
            'timing = "now"\n\n[[rules]]\nstages = ["decide", "advocate"]'
        ),
        "rules[7]",
        r"warning: is never reached: rules\[6\]",
    ),
    (
        'stages = ["at-risk"]\nincentive = "five-minute-workout"\ntone = "encouraging"',
        'stages = ["at-risk"]\nincentive = "five-minute-workout"\ntone = "playful"',
        "rules[8].stages",
        "warning: can never apply in at-risk",
    ),
    ('title = "In the evening"', 'title = "In the evening"\nretired = true', "rules[1].timing", "fault: 'evening' is"),
    (
        'currency = "EUR"',
        'currency = "EUR"\nlanguage = "other"',
        "language",
        "note: .*own to guardrails.refused_phrases",
    ),
)


@pytest.mark.parametrize(("there", "plant", "key", "said"), OTHERS, ids=[f"{key}: {s}" for _, _, key, s in OTHERS])
def test_what_the_audit_finds_has_its_severity_key_and_words(there: str, plant: str, key: str, said: str) -> None:
    assert there in FITNESS, there
    findings = check(FITNESS.replace(there, plant, 1), source="mine.toml").findings
    near = [f for f in findings if f.key == key]
    assert near, [str(f) for f in findings]
    assert any(re.search(said, f"{f.severity}: {f.problem}; {f.mend}") for f in near), near
    assert all(f.mend for f in findings)


# In the small program, of three stages: new, active, quiet.
IN_SMALL = (
    (', quiet = "active"', "", "stages[quiet]", "fault: customers lapse to it and no event leads back"),
    ('lapses_after = "7d"\nlapses_to = "quiet"', "", "stages[quiet]", "fault: cannot be reached from 'new'"),
    (
        'title = "Quiet"\n',
        (
            'title = "Quiet"\n[[stages]]\nname = "end"\ntitle = "End"\n[[events]]\nname = "ended"\nkind = "micro"\n'
            'moves = { new = "end" }\n'
        ),
        "stages[end]",
        "fault: is a dead end",
    ),
    ('title = "Warm"', 'title = "Warm"\nstages = ["new", "active"]', "stages[quiet]", "fault: is a leak: no tone"),
    ('stages = ["new", "active"]', 'stages = ["new"]', "messages.coupon.playful", "note: is never said: coupon and"),
    ('stages = ["active", "quiet"]', 'stages = ["quiet"]\nretired = true', "rules[0].incentive", "fault: 'coupon' is"),
    ("scarce = true", "scarce = true\nmin_momentum = 0.99", "incentives[coupon].min_momentum", "fault: .*0.97 in its"),
    ("promotional = true", "", "events[complaint].pauses_promotion", "warning: pauses nothing"),
    ('finish."', 'finish."', "incentives[badge].stages", "warning: is offered to everybody in every stage alike"),
    ("One more step earns", "{done} steps earn", "messages.badge.warm", "fault: .*has no milestones"),
)


@pytest.mark.parametrize(("there", "plant", "key", "said"), IN_SMALL, ids=[f"{key}: {s}" for _, _, key, s in IN_SMALL])
def test_what_the_audit_finds_in_a_small_program(there: str, plant: str, key: str, said: str) -> None:
    assert there in TOML, there
    text = TOML.replace(there, plant, 1)
    if "milestones" in said:
        text = re.sub(r"\[\[milestones\]\]\n(.+\n)+", "", text)
    near = [f for f in check(text, source="small.toml").findings if f.key == key]
    assert any(re.search(said, f"{f.severity}: {f.problem}; {f.mend}") for f in near), near


def test_what_no_customer_can_be_told_apart_by_cannot_be_relevant() -> None:
    text = re.sub(r"\[\[attributes\]\]\n(.+\n)+", "", TOML).replace('barred_segments = { plan = ["gold"] }', "")
    found = check(text, source="small.toml")
    assert "attributes" in [f.key for f in found.findings]
    assert found.share("relevance") == 0.0


def test_promotion_that_nothing_pauses_is_named() -> None:
    text = TOML.replace('pauses_promotion = "14d"', "").replace('pauses_promotion = "7d"\npauses_below = 3.0', "")
    found = {f.key: f for f in check(text, source="small.toml").findings}
    assert "coupon would follow a complaint" in found["events"].problem


def test_quiet_hours_that_swallow_every_timing_are_named_once() -> None:
    text = TOML.replace('delay = "0m"', 'clock = "22:00"').replace('clock = "18:00"', 'clock = "07:59"')
    keys = [f.key for f in check(text, source="small.toml").findings]
    assert "guardrails.quiet_from" in keys
    assert not [key for key in keys if key.startswith("timings")]


def test_a_milestone_that_rewards_a_complaint_is_named() -> None:
    text = SMALL_WINS.replace('event = "care_step_done"\ncount = 3', 'event = "complaint"\ncount = 3', 1)
    found = {f.key: f for f in check(text, source="mine.toml").findings}
    assert "is a signal and no step" in found["milestones[first-leaf].event"].problem


def test_a_title_that_promises_more_than_is_earned_is_named() -> None:
    text = SMALL_WINS.replace('earns = "15 % off one order', 'earns = "20 % off one order', 1)
    found = {f.key: f for f in check(text, source="mine.toml").findings}
    assert found["incentives[seven-day-discount].title"].problem.startswith("promises 15 %")


def test_a_scarce_incentive_without_a_place_in_the_week_is_named() -> None:
    found = {f.key: f for f in check(TOML + "[guardrails]\nscarce_per_week = 0\n", source="small.toml").findings}
    assert found["guardrails.scarce_per_week"].severity == "fault"


def test_the_gravest_comes_first() -> None:
    severities = [f.severity for f in check(planted().replace("holdout = 0.05", "holdout = 0"), source="x").findings]
    assert severities == sorted(severities, key=("fault", "warning", "note").index)
    assert {"fault", "warning", "note"} == set(severities)


def test_every_touch_point_of_a_stage_is_audited() -> None:
    found = audit(Program.parse(TOML, source="small.toml"))
    # new: badge and gift in two tones; active: three in two tones; quiet: three in warm, playful being for others.
    assert len(found.touches) == 4 + 6 + 3
    facts = {s.stage: s for s in found.stages}
    assert facts["active"].enters_by == ("step from new", "step from quiet")
    assert facts["active"].leaves_by == ("lapse to quiet",)
    assert [facts[s].nudges for s in ("new", "active", "quiet")] == [3 * 2 * 2 - 4, 12, 6]
    badge = next(m for m in found.messages if (m.incentive, m.tone) == ("badge", "warm"))
    assert (badge.words, badge.sentences, badge.subject_letters) == (8, 2, 11)


def arriving() -> str:
    """The small program, where every step leads out of `new`, and out of `quiet`."""
    moves = 'moves = { new = "active", quiet = "active" }'
    text = TOML.replace('kind = "macro"\nvalue = 10.0', f'kind = "macro"\nvalue = 10.0\n{moves}')
    return text.replace('name = "spent"\nkind = "macro"', 'name = "spent"\nkind = "signal"')


def test_the_highest_momentum_is_that_of_a_step_a_day() -> None:
    # By hand, with a half-life of three days: a step a day makes 1 / (1 - 2^(-1/3)) = 4.847, and 1 - 2^-4.847 = 0.965.
    # A lapse takes seven days without a step: 4.847 x 2^(-7/3) = 0.962, and 1 - 2^-0.962 = 0.487. In `new` nobody has
    # taken a step yet.
    momentum = highest_momentum(Program.parse(arriving(), source="small.toml"))
    assert momentum.tolist() == pytest.approx([0.0, 0.965, 0.487], abs=1e-3)


def test_an_ask_that_is_too_eager_for_one_of_its_stages_is_named() -> None:
    text = arriving().replace('finish."', 'finish."\nmin_momentum = 0.5\nstages = ["active", "quiet"]', 1)
    found = {f.key: f for f in check(text, source="small.toml").findings}["incentives[badge].min_momentum"]
    assert found.severity == "warning"
    assert "which nobody has in quiet" in found.problem
    assert "use at most 0.48" in found.mend


def test_a_stage_in_which_nobody_can_be_nudged_is_a_leak() -> None:
    text = TOML.replace('finish."', 'finish."\nstages = ["new"]', 1).replace('"active", "quiet"]', '"active"]', 1)
    text = text.replace("min_momentum = 0.5", 'stages = ["active"]', 1)
    found = {f.key: f for f in check(text, source="small.toml").findings}["stages[quiet]"]
    assert (
        str(found)
        == 'small.toml: stages[quiet]: is a leak: no incentive is allowed in it; add "quiet" to the stages of one'
    )


LINES = SMALL_WINS.splitlines(keepends=True)


@given(
    cut=st.lists(st.integers(0, len(LINES) - 1), max_size=8),
    swapped=st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["= 3", '= "x"', "= []", "= true", "= {}"])),
        max_size=4,
    ),
)
@settings(max_examples=40)
def test_whatever_is_broken_is_named_and_nothing_is_raised(cut: list[int], swapped: list[tuple[int, str]]) -> None:
    lines = list(LINES)
    for at, value in swapped:
        lines[at] = re.sub(r"= .*", value, lines[at], count=1)
    text = "".join(line for at, line in enumerate(lines) if at not in cut)
    findings = check(text, source="mine.toml").findings
    assert all(f.key and f.problem and f.mend for f in findings)
    assert len({(f.key, f.problem) for f in findings}) == len(findings)


@pytest.mark.parametrize("text", ["", "stages = 3", "[[stages]]", "messages = []", "a = [", 'name = "x"\nstages = []'])
def test_a_text_that_is_hardly_a_program_is_told_what_is_missing(text: str) -> None:
    found = check(text, source="mine.toml")
    assert not found.fit
    assert found.touches == ()


def test_a_name_is_mended_once_and_not_complained_about_where_it_is_used() -> None:
    text = FITNESS.replace('name = "warm"', 'name = "Warm"', 1).replace(".warm]", ".Warm]")
    text = text.replace('tone = "warm"', 'tone = "Warm"')
    assert [f.key for f in check(text, source="mine.toml").findings] == ["tones[Warm].name"]
