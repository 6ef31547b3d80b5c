"""Words are judged as whole words, sums by what is earned, and a text by how easily it reads."""

import pytest

from optimizer.manner import loud, pressing
from optimizer.program import Incentive, Message
from optimizer.wording import LONGEST_BODY, overpromised, reading, undated, unsteady, worthless

COUPON = Incentive(name="c", title="Coupon", kind="monetary", earns="5 EUR off your next order of 20 EUR or more.")


def message(body: str, subject: str = "Hello") -> Message:
    return Message(subject=subject, body=body, call_to_action="Have a look")


def test_an_easy_text_is_told_from_a_hard_one() -> None:
    # By hand: 6 words, 1 sentence, 6 syllables: 206.835 - 1.015 x 6 - 84.6.
    assert reading("The cat sat on the mat.").ease == pytest.approx(116.1, abs=0.05)
    # 4 words, 1 sentence, 16 syllables by rule of thumb: far below zero.
    assert reading("Organisational considerations necessitate reconsideration.").ease < -150
    assert reading("One. Two! Three? Four: five.").sentences == 5
    assert reading("It costs 1,000.50 in {reward}.").words == 5
    assert reading("") == (0, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("word", "syllables"),
    [("walk", 1), ("walked", 1), ("wanted", 2), ("little", 2), ("make", 1), ("idea", 2), ("table", 2), ("you", 1)],
)
def test_syllables_are_counted_well_enough(word: str, syllables: int) -> None:
    ease = 206.835 - 1.015 - 84.6 * syllables
    assert reading(word).ease == pytest.approx(ease, abs=0.05)


@pytest.mark.parametrize(
    "text",
    ["HURRY up", "Do not miss it", "your last chance!", "You will regret it", "no excuses", "Act now", "risk-free"],
)
def test_a_phrase_that_presses_is_refused_in_any_case(text: str) -> None:
    assert list(pressing(text))


@pytest.mark.parametrize(
    "text",
    ["Hurrying is not needed", "Mission possible", "an unfailing friend", "an urgentness", "dismissed", "shamrock"],
)
def test_a_word_inside_another_is_not_taken_for_it(text: str) -> None:
    assert list(pressing(text)) == []


def test_a_house_may_refuse_phrases_of_its_own() -> None:
    found = list(pressing("What a crazy  deal", also=["crazy deal", "C++"]))
    assert found == [('says "crazy deal", which guardrails.refused_phrases rules out', "say it in other words")]
    assert list(pressing("We teach C++ here", also=["C++"]))
    assert list(pressing("a crazy dealer", also=["crazy deal"])) == []


def test_loud_is_not_the_same_as_pressing() -> None:
    assert [p for p, _ in loud("Wow!! SUPER")] == ['shouts "SUPER"', 'shouts "!!"']
    assert list(loud("Well done! 5 EUR for you, NPS and all")) == []
    assert list(pressing("You have to see it")) == []
    assert [p for p, _ in loud("You have to see it")] == ['says "You have to", which orders about']


@pytest.mark.parametrize("said", ["Start the trial", "Yes, keep me a seat", "See 3 plans", "Try it now", "Read on →"])
def test_a_clear_step_is_taken_for_one(said: str) -> None:
    assert list(unsteady(said)) == []


@pytest.mark.parametrize(
    "said", ["Learn more", "OK", "The shop", "Discounts here", "Open the app or the page", "Go", ""]
)
def test_an_unclear_step_is_named(said: str) -> None:
    assert list(unsteady(said))


@pytest.mark.parametrize(
    ("body", "amounts"),
    [
        ("Take 5 EUR off.", []),
        ("Take €5 off from 20 EUR.", []),
        ("Take 6 EUR off.", ["6 EUR"]),
        ("Take $5 off.", ["5 USD"]),
        ("Take 5 percent off.", ["5 %"]),
        ("Take 5 off.", []),
        ("In 30 days.", []),
    ],
)
def test_a_message_promises_only_the_sums_that_are_earned(body: str, amounts: list[str]) -> None:
    assert list(overpromised(COUPON, message(body))) == amounts


def test_what_names_no_sum_binds_no_sum() -> None:
    badge = Incentive(name="b", title="Badge", kind="recognition", earns="A badge at once.")
    assert list(overpromised(badge, message("Over 90 % of our members like it."))) == []


def test_value_is_what_is_earned_in_the_message_s_own_words() -> None:
    assert worthless(COUPON, message("Have a look around in our shop."))
    assert not worthless(COUPON, message("Your next order is cheaper: five euros, with the coupon."))
    assert not worthless(COUPON, message("You are at {done} of {of}."))


@pytest.mark.parametrize(
    "earns", ["A badge the same day.", "Off your next order.", "When a friend joins, a month.", "In 3 days."]
)
def test_when_a_reward_comes_is_found(earns: str) -> None:
    assert not undated(earns)


def test_the_longest_body_can_be_read_in_half_a_minute() -> None:
    words = reading("word " * (LONGEST_BODY // 5)).words
    assert words <= 0.5 * 240  # a slow reader's words in a minute
