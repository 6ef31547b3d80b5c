"""The programs that ship: complete, kind to read, fit to run; and what a program with a fault is told."""

import re
from collections.abc import Iterator
from itertools import pairwise
from string import Formatter
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from optimizer.actions import Nudge
from optimizer.customer import cohort, new_customer
from optimizer.guardrails import Shared, allowed
from optimizer.journey import follow, settle
from optimizer.program import DAY, Message, Program, ProgramError
from optimizer.programs import SHIPPED, read

PROGRAMS = {name: Program.parse(read(name), source=f"{name}.toml") for name in SHIPPED}
FITNESS = read("fitness-coaching")
MORNING = 1_767_225_600.0 + 10 * 3600
"""Ten in the morning UTC on Thursday 1 January 2026."""

PLACEHOLDERS = {"done", "of", "milestone", "reward"}

MANIPULATIVE = (
    r"last chance",
    r"(do not|don't|never) miss",
    r"miss(ing)? out",
    r"hurry",
    r"act (now|fast|today)",
    r"only (today|now|hours|minutes|\d+ left)",
    r"(before it is|before it's|not) too late",
    r"running out",
    r"now or never",
    r"limited time",
    r"final (call|offer|reminder|notice)",
    r"urgent(ly)?",
    r"while (stocks|supplies) last",
    r"expires? (soon|today|tonight)",
    r"regret",
    r"asham(ed|e)|shame",
    r"guilt(y)?",
    r"laz(y|iness)",
    r"fail(ed|ing|ure)?",
    r"no excuses?",
    r"everyone else",
    r"left behind|fall(ing)? behind",
    r"disappoint(ed|ing)?",
    r"you owe",
    r"you (must|have to|should)",
    r"we (miss|missed) you",
    r"where have you been",
    r"still (have not|haven't)",
    r"lose (your|it|everything)",
)
"""Words that press, shame or scare. A nudge does without."""

PROMISES = {
    "fitness-coaching": {"free-trial-extension": "free day", "streak-discount": "30 %", "refer-a-friend": "free month"},
    "small-wins": {
        "home-trial": "30 days",
        "thrive-guarantee": "6 months",
        "seven-day-discount": "15 %",
        "invite-a-friend": "5 EUR",
    },
    "loyalty-loop": {
        "double-points": "points",
        "five-euro-voucher": "15 EUR or more",
        "welcome-back": "on the house",
        "author-evening": "free with",
        "bring-a-friend": "300 points",
    },
}
"""What every incentive that costs something promises, in words that each of its messages has to contain."""


class Written(NamedTuple):
    """A message and where it stands."""

    program: str
    incentive: str
    tone: str
    message: Message


def written() -> Iterator[Written]:
    for name, program in PROGRAMS.items():
        for incentive, said in program.messages.items():
            for tone, message in said.items():
                yield Written(name, incentive, tone, message)


def texts(message: Message) -> tuple[str, str, str]:
    return message.subject, message.body, message.call_to_action


shipped = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
each_message = pytest.mark.parametrize("w", [pytest.param(w, id="/".join(w[:3])) for w in written()])


def test_fitness_coaching_offers_three_hundred_nudges_and_hold() -> None:
    space = PROGRAMS["fitness-coaching"].space
    assert space.shape == (10, 5, 6)
    assert space.k == 301
    assert 20 <= space.d <= 40


def test_fitness_coaching_uses_every_kind_of_incentive() -> None:
    kinds = {i.kind for i in PROGRAMS["fitness-coaching"].incentives}
    assert kinds == {"content", "convenience", "recognition", "social", "monetary", "access"}


@shipped
def test_a_shipped_program_has_enough_to_choose_from(program: Program) -> None:
    incentives, tones, timings = program.space.shape
    assert incentives >= 6
    assert tones >= 4
    assert timings >= 4


@shipped
def test_a_shipped_program_has_the_name_of_its_file(program: Program) -> None:
    assert PROGRAMS[program.name] is program


def test_a_program_that_does_not_ship_is_refused_with_the_names_of_those_that_do() -> None:
    with pytest.raises(ValueError, match="no shipped program 'fitness': expected one of fitness-coaching, small-wins"):
        read("fitness")


@shipped
def test_every_incentive_is_said_in_every_tone_and_in_no_other(program: Program) -> None:
    said = {(incentive, tone) for incentive, tones in program.messages.items() for tone in tones}
    assert said == {(i, t) for i in program.space.incentives for t in program.space.tones}


@each_message
def test_a_message_is_short_enough_to_be_read(w: Written) -> None:
    subject, body, call_to_action = texts(w.message)
    assert 5 <= len(subject) <= 50
    assert 60 <= len(body) <= 240
    assert 4 <= len(call_to_action) <= 30


@each_message
def test_a_message_neither_presses_nor_shames(w: Written) -> None:
    said = " ".join(texts(w.message))
    assert not [p for p in MANIPULATIVE if re.search(rf"\b({p})\b", said, re.IGNORECASE)]


@each_message
def test_a_message_does_not_shout(w: Written) -> None:
    said = " ".join(texts(w.message))
    assert set(re.findall(r"\b[A-Z]{3,}\b", said)) <= {"EUR"}
    assert "!!" not in said
    assert "!" not in said or w.tone == "celebratory"


@each_message
def test_a_call_to_action_is_one_short_step(w: Written) -> None:
    words = w.message.call_to_action.split()
    assert 2 <= len(words) <= 6
    assert words[0][0].isupper()
    assert not w.message.call_to_action.endswith((".", "!", "?"))


@each_message
def test_a_message_asks_only_for_what_progress_can_fill_in(w: Written) -> None:
    fields = [field for text in texts(w.message) for _, field, _, _ in Formatter().parse(text)]
    assert {f for f in fields if f is not None} <= PLACEHOLDERS


@each_message
def test_a_message_with_a_reward_says_what_is_promised(w: Written) -> None:
    promised = PROMISES[w.program].get(w.incentive, "")
    assert promised in f"{w.message.subject} {w.message.body}"


@shipped
def test_every_incentive_that_costs_something_has_its_promise_checked(program: Program) -> None:
    assert {i.name for i in program.incentives if i.cost} == set(PROMISES[program.name])


@shipped
def test_what_ends_says_when_and_how_many_there_are_is_counted(program: Program) -> None:
    for incentive in program.incentives:
        if incentive.scarce:
            bodies = [m.body for m in program.messages[incentive.name].values()]
            assert incentive.stock or all("seven days from today" in b for b in bodies), incentive.name


@shipped
def test_each_tone_says_it_in_its_own_words(program: Program) -> None:
    said = [message for tones in program.messages.values() for message in tones.values()]
    assert len({m.subject for m in said}) == len(said)
    assert len({m.body for m in said}) == len(said)
    for incentive, tones in program.messages.items():
        assert len({m.call_to_action for m in tones.values()}) == len(tones), incentive


def test_the_declared_phrases_catch_what_they_are_meant_for() -> None:
    phrases = ["LAST CHANCE to join", "Don't miss this", "Hurry, only 3 left", "No excuses today", "You have to try"]
    for phrase in phrases:
        assert any(re.search(rf"\b({p})\b", phrase, re.IGNORECASE) for p in MANIPULATIVE), phrase


@shipped
def test_every_stage_has_incentives_and_tones_that_are_allowed(program: Program) -> None:
    assert (program.incentive_stages.sum(axis=1) >= 2).all()
    assert (program.tone_stages.sum(axis=1) >= 3).all()


@shipped
def test_no_incentive_and_no_tone_is_for_nobody(program: Program) -> None:
    assert program.incentive_stages.any(axis=0).all()
    assert program.tone_stages.any(axis=0).all()
    retired = [x.retired for x in program.incentives] + [x.retired for x in program.tones]
    assert not any(retired + [x.retired for x in program.timings])


@shipped
def test_every_stage_has_a_rule_that_its_own_gates_allow(program: Program) -> None:
    for at, stage in enumerate(program.stages):
        rules = [r for r in program.rules if stage.name in r.stages]
        assert rules, stage.name
        for rule in rules:
            assert program.incentive_stages[at, program.space.incentives.index(rule.incentive)], (stage.name, rule)
            assert program.tone_stages[at, program.space.tones.index(rule.tone)], (stage.name, rule)


@shipped
def test_every_stage_has_a_rule_that_asks_for_no_momentum(program: Program) -> None:
    easy = {i.name for i in program.incentives if not i.min_momentum and not i.scarce}
    for stage in program.stages:
        assert any(stage.name in r.stages and r.incentive in easy for r in program.rules), stage.name


@pytest.mark.parametrize(("name", "stage"), [(name, s.name) for name, p in PROGRAMS.items() for s in p.stages])
def test_somebody_who_has_done_nothing_yet_can_be_nudged_by_a_rule_in_every_stage(name: str, stage: str) -> None:
    program = PROGRAMS[name]
    idle = replace(new_customer(program, "c", at=MORNING), stage=stage, consent=True, time_zone="UTC")
    guarded = allowed(program, cohort(program, [idle], at=[MORNING]), shared=Shared.unlimited(program))
    rules = [Nudge(r.incentive, r.tone, r.timing) for r in program.rules if stage in r.stages]
    assert any(guarded.mask[0, program.space.index(nudge)] for nudge in rules)
    assert guarded.mask[0].sum() > 1 + 2 * len(program.timings)


@shipped
def test_harder_asks_come_later_and_need_more_momentum(program: Program) -> None:
    first = program.stages[0].name
    for incentive in program.incentives:
        if incentive.min_momentum:
            assert incentive.stages, incentive.name
            assert first not in incentive.stages, incentive.name


@shipped
def test_no_clock_time_falls_into_the_quiet_hours(program: Program) -> None:
    rules = program.guardrails
    assert all(rules.quiet_until <= t.clock < rules.quiet_from for t in program.timings if t.clock is not None)


@shipped
def test_every_stage_can_be_reached_from_the_first(program: Program) -> None:
    ways = {(a, b) for e in program.events for a, b in e.moves.items()}
    ways |= {(s.name, s.lapses_to) for s in program.stages if s.lapses_to}
    reached = {program.stages[0].name}
    for _ in program.stages:
        reached |= {b for a, b in ways if a in reached}
    assert reached == set(program.stage_index)


@shipped
def test_small_steps_are_worth_a_little_and_goals_a_lot(program: Program) -> None:
    micro = [e.value for e in program.events if e.kind == "micro"]
    macro = [e.value for e in program.events if e.kind == "macro"]
    assert all(0 < v <= 1 for v in micro)
    assert min(macro) >= 5
    assert sum(v >= 0.2 for v in micro) >= 6, "too little to learn from"


@shipped
def test_patience_has_a_price_and_discontent_pauses_promotion(program: Program) -> None:
    unsubscribed, complaint, csat = (program.event(e) for e in ("opt_out", "complaint", "survey_csat"))
    assert unsubscribed is not None
    assert unsubscribed.value <= -5
    assert complaint is not None
    assert complaint.pauses_promotion
    assert csat is not None
    assert csat.pauses_promotion
    assert csat.pauses_below == 3
    assert program.guardrails.burden_price > 0
    assert program.experiment.holdout > 0


@shipped
def test_everything_that_costs_is_within_what_a_week_pays(program: Program) -> None:
    budget = program.guardrails.budget
    assert budget is not None
    assert budget.amount >= 100 * max(i.cost for i in program.incentives)
    for incentive in program.incentives:
        assert incentive.promotional or incentive.cost < 1, incentive.name


@shipped
def test_the_policies_are_told_which_rewards_grow(program: Program) -> None:
    tiers = {x.name: x.tier for x in program.incentives if x.ladder}
    ladders = program.space.ladders
    assert sorted(name for ladder in ladders for name in ladder) == sorted(tiers)
    assert all([tiers[name] for name in ladder] == sorted(tiers[name] for name in ladder) for ladder in ladders)


@shipped
def test_a_larger_reward_on_a_ladder_costs_more(program: Program) -> None:
    ladders = {i.ladder for i in program.incentives if i.ladder}
    for ladder in ladders:
        rungs = sorted((i for i in program.incentives if i.ladder == ladder), key=lambda i: i.tier)
        assert len(rungs) >= 2, ladder
        assert all(a.tier < b.tier and a.cost < b.cost for a, b in pairwise(rungs)), ladder


def test_a_quiet_member_is_at_risk_and_a_comeback_leads_back() -> None:
    program = PROGRAMS["fitness-coaching"]
    member = new_customer(program, "c", at=0.0)
    for event in ("workout_done", "trial_started", "trial_converted"):
        member = follow(program, member, event, at=0.0)
    assert member.stage == "experience"
    quiet = settle(program, member, at=8 * DAY)
    assert quiet.stage == "at-risk"
    assert follow(program, quiet, "comeback_workout", at=8 * DAY).stage == "experience"


def test_small_wins_walks_through_its_five_stages() -> None:
    program = PROGRAMS["small-wins"]
    customer = new_customer(program, "c", at=0.0)
    seen = [customer.stage]
    for event in ("guide_read", "basket_filled", "order_placed", "photo_shared"):
        customer = follow(program, customer, event, at=0.0)
        seen.append(customer.stage)
    assert seen == ["aware", "consider", "decide", "experience", "advocate"] == list(program.stage_index)


def test_a_purchase_at_the_till_leads_straight_into_the_loop() -> None:
    program = PROGRAMS["loyalty-loop"]
    stranger = new_customer(program, "c", at=0.0)
    assert stranger.stage == "consider"
    assert follow(program, stranger, "joined_at_till", at=0.0).stage == "enjoy"
    joined = program.event("joined_at_till")
    assert joined is not None
    assert joined.requests_decision


def test_small_wins_shows_scarcity_stock_and_barred_segments() -> None:
    program = PROGRAMS["small-wins"]
    discount = next(i for i in program.incentives if i.name == "seven-day-discount")
    assert discount.scarce
    assert discount.barred_segments == {"customer_type": ("trade",)}
    assert [i.stock for i in program.incentives if i.name == "home-trial"] == [150]


# (what stands there, what is put in its place, the key that is named, what is said about it and how to mend it)
FAULTS = (
    ("cap_per_day = 1", "cap_per_dy = 1", "guardrails.cap_per_dy", "is not a key .* mend its spelling"),
    ("[experiment]", "[experiments]", "experiments", "is not a key"),
    ("cost = 4.0", "cots = 4.0", "incentives[streak-discount].cots", "is not a key"),
    ('goal = "premium_upgrade"', "", "goal", "is missing; add it"),
    ('goal = "premium_upgrade"', 'goal = "premium"', "goal", "'premium' is not a declared event; use one of app_op"),
    ('goal = "premium_upgrade"', 'goal = "workout_done"', "goal", 'is a micro event; declare .*kind = "macro"'),
    ('kind = "macro"\ntitle = "Upgraded', 'title = "Upgraded', "events[premium_upgrade].kind", "is missing; add it"),
    (
        'aware = "consider", at-risk = "experience"',
        'aware = "considr"',
        "events[workout_done].moves",
        "'considr' is not declared; use one of aware, consider",
    ),
    ('stages = ["aware"]', 'stages = ["awre"]', "rules[0].stages", "'awre' is not declared; use one of aware"),
    ('lapses_to = "consider"\n', "", "stages[decide]", "only one of lapses_after and lapses_to; give both or neither"),
    ('"at-risk"\n\n[[stages]]', '"lost"\n\n[[stages]]', "stages[experience].lapses_to", "'lost' is not declared"),
    ('name = "evening"\ntitle', 'name = "midday"\ntitle', "timings[midday]", "declared twice; rename or remove"),
    ('name = "warm"', 'name = "Warm"', "tones[Warm].name", "got 'Warm'; use small letters, digits"),
    ('currency = "EUR"', 'currency = "euro"', "currency", "got 'euro'; use three capitals"),
    ("cost = 4.0", 'cost = "four"', "incentives[streak-discount].cost", "expected `float`, got `str`"),
    ("cost = 4.0", "cost = -4.0", "incentives[streak-discount].cost", r">= 0.0, got -4.0"),
    ("discount = 0.98", "discount = nan", "discount", "> 0.0, got nan"),
    (
        'kind = "content"',
        'kind = "contents"',
        "incentives[five-minute-workout].kind",
        "'contents'; use one of content,",
    ),
    ('consent = "opt-out"', 'consent = "none"', "guardrails.consent", "'none'; use one of opt-in, opt-out"),
    ('window = "1d"', 'window = "one day"', "events[app_opened].window", "a duration such as .* got 'one day'"),
    ('window = "1d"', "window = 1", "events[app_opened].window", "a duration such as .* got 1"),
    ('clock = "08:30"', 'clock = "8:30"', "timings[morning].clock", "a time of day such as .* got '8:30'"),
    ('clock = "08:30"', 'clock = "25:00"', "timings[morning].clock", "a time of day such as .* got '25:00'"),
    ('delay = "1h"', "", "timings[in-an-hour]", 'exactly one of delay and clock; write delay = "1h" or'),
    ('delay = "1h"', 'delay = "1h"\nclock = "09:00"', "timings[in-an-hour]", "exactly one of delay and clock"),
    ('delay = "1h"', 'delay = "8d"', "timings[in-an-hour].delay", 'longer than a week; use at most "7d"'),
    ('evaluation_horizon = "3d"', 'evaluation_horizon = "2d"', "evaluation_horizon", 'shorter .*; use at least "3d"'),
    ("[messages.coach-tip.warm]", "[messages.coach-tips.warm]", "messages", "'coach-tips' is not declared"),
    ("[messages.coach-tip.warm]", "[messages.coach-tips.warm]", "messages.coach-tip.warm", "is missing; write its sub"),
    (
        "[messages.coach-tip.warm]",
        "[messages.coach-tip.hot]",
        "messages.coach-tip",
        "'hot' is not declared; use one of",
    ),
    ('subject = "A small tip', 'subjekt = "A small tip', "messages.coach-tip.warm.subjekt", "is not a key"),
    ('action = "Show me how"', 'action = ""', "messages.coach-tip.encouraging.call_to_action", "length >= 1"),
    ('time_zone = "Europe/Paris"', 'time_zone = "Paris"', "guardrails.time_zone", "not a time zone; use an IANA"),
    ("amount = 2000", "amount = 3", "guardrails.budget.amount", "can never pay for streak-discount; raise it"),
    ("monetary = 1", "money = 1", "guardrails.cap_per_week_by_kind", "'money' is not declared; use one of"),
    ("floor = 0.05", "floor = 0", "exploration.floor", ">= 0.001, got 0"),
    ("floor = 0.05\nhold = 0.05", "floor = 0.5\nhold = 0.45", "exploration", "leaves too little .* use at most 0.9"),
    ("holdout = 0.05", "holdout = 0.5\nchallenger = 0.45", "experiment", "take 95% of the customers; leave at least"),
    ('incentive = "streak-discount"', 'incentive = "discount"', "rules[4].incentive", "'discount' is not declared"),
    ('timing = "after-work"', 'timing = "tonight"', "rules[0].timing", "'tonight' is not declared; use one of now"),
    ('event = "workout_done"', 'event = "workout"', "milestones[first-workout].event", "'workout' is not declared"),
    ("streak = 30", "count = 30", "milestones[thirty-day-streak]", "needs either event and count, or streak, or after"),
    ('reward = "the First Step badge"', "", "milestones[first-workout].reward", "is missing; add it"),
    ('kind = "flag"', 'kind = "category"', "attributes[has_friends].categories", "does not go with .*; list its cat"),
    ('name = "trains_in"', 'name = "streak"', "attributes[streak]", "every program has; choose another name"),
    ("pauses_below = 3", "pauses_beneath = 3", "events[survey_csat].pauses_beneath", "is not a key"),
    (
        'pauses_promotion = "14d"\npauses_below',
        "pauses_below",
        "events[survey_csat].pauses_below",
        'has no pauses_promotion; add pauses_promotion = "14d"',
    ),
    (
        'name = "redeemed"',
        'name = "shown"',
        "events[shown]",
        "is reported by every app and cannot be declared; choose another name",
    ),
    (
        "promotional = true",
        'barred_segments = { age = ["18-29"] }',
        "incentives[community-story].barred_segments",
        "'age' is not declared; use one of channel, age_band",
    ),
    ("[exploration]", "[exploration", "TOML", r"at line \d+, column \d+.*; mend the syntax at that place"),
)


@pytest.mark.parametrize(
    ("there", "planted", "key", "said"), FAULTS, ids=[f"{key}: {planted or 'removed'}" for _, planted, key, _ in FAULTS]
)
def test_a_planted_fault_is_named_by_file_key_and_mend(there: str, planted: str, key: str, said: str) -> None:
    assert there in FITNESS
    with pytest.raises(ProgramError) as caught:
        Program.parse(FITNESS.replace(there, planted, 1), source="mine.toml")
    fault = {f.key: f for f in caught.value.faults}[key]
    assert fault.file == "mine.toml"
    assert fault.mend
    assert re.search(said, f"{fault.problem}; {fault.mend}", re.DOTALL), str(fault)
    assert str(fault) in str(caught.value)


def test_faults_that_contradict_are_named_all_at_once() -> None:
    text = FITNESS.replace('goal = "premium_upgrade"', 'goal = "premium"', 1)
    text = text.replace('time_zone = "Europe/Paris"', 'time_zone = "Paris"', 1)
    text = text.replace('timing = "after-work"', 'timing = "tonight"', 1)
    with pytest.raises(ProgramError) as caught:
        Program.parse(text, source="mine.toml")
    assert {f.key for f in caught.value.faults} == {"goal", "guardrails.time_zone", "rules[0].timing"}


def test_an_unmarked_change_of_the_text_is_a_new_version() -> None:
    again = Program.parse(FITNESS, source="elsewhere.toml")
    changed = Program.parse(FITNESS + "\n# a word more\n", source="fitness-coaching.toml")
    assert again.version == PROGRAMS["fitness-coaching"].version
    assert changed.version != again.version


SECOND = [
    ("Nicely done", "{dne} of {of}", "messages.badge.warm.subject", "{dne} is not a placeholder"),
    ("Badge ahead", "Badge ahead {", "messages.badge.playful.subject", "cannot be filled"),
    ("streak = 7\n", 'streak = 7\nevent = "step"\n', "milestones[week]", "needs either event and count, or streak"),
    ("mean = 10.0", "mean = nan", "attributes[tenure].mean", ""),
    ('name = "small"', 'name = "small"\nversion = "3"', "version", "is the hash of the text"),
    ('{ plan = ["gold"] }', '{ tenure = ["gold"] }', "incentives[gift].barred_segments", "is not a category"),
]


@pytest.mark.parametrize(("text", "planted", "key", "problem"), SECOND)
def test_a_fault_in_a_small_program_is_named(text: str, planted: str, key: str, problem: str) -> None:
    from tests.small_program import TOML

    assert text in TOML
    with pytest.raises(ProgramError) as caught:
        Program.parse(TOML.replace(text, planted, 1), source="small.toml")
    assert any(f.key == key and problem in f.problem for f in caught.value.faults), str(caught.value)
