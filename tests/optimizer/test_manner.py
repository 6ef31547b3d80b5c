"""Words that press, shame or frighten are found however they are dressed up, and honest words are left alone."""

import pytest

from optimizer.manner import plain, pressing, scarcity

REFUSED = (
    # pressure and made-up deadlines
    "Last chance!!",
    "LAST  CHANCE",
    "Final warning",
    "Act immediately",
    "Don\u2019t wait",
    "Your code expires in 2 hours",
    "2 hours left",
    "today only",
    "The clock is ticking",
    "once-in-a-lifetime offer",
    "The deadline is tonight",
    "Prices rise tonight",
    "Buy now or pay more",
    "before it\u2019s gone",
    # fear of missing out
    "you\u2019ll regret it",
    "You would be sorry",
    "everyone else already did",
    "Everybody is doing it",
    "All your friends are here",
    "9 of 10 members have already upgraded",
    "You're the only one left",
    "don't be the last",
    "do not feel left out",
    "you can't afford to miss it",
    "Your streak will die",
    "You will lose all your progress",
    "Your account will be closed",
    # shame and guilt
    "don't be lazy",
    "lazybones",
    "Stop making excuses",
    "get off the couch",
    "You promised",
    "You haven't trained in days",
    "Why have you not started?",
    "Your coach is sad",
    "We\u2019ve missed you",
    "only losers stop here",
    "you are weak",
    "beach body",
    "Real men train",
    "you let your coach down",
    "your family deserves better",
    # promises
    "results guaranteed",
    "You have been selected",
    # disguises
    "l\u0430st ch\u0430nce",
    "La\u200bst chance",
    "last\u00a0chance",
    "l.a.s.t chance",
    "L@st chance",
    "\uff2c\uff21\uff33\uff34 chance",
    "H U R R Y",
    "hurrrry",
    "g\u00failty",
    "Act n0w",
    "\u0406\u0430zy, are you not l\u0430zy",
)
HONEST = (
    "Hurrying is not needed",
    "In the last 7 days you trained 3 times",
    "The last 30 days on one page",
    "The trial ends after 7 days, by itself",
    "It is never too late to start",
    "There is no deadline",
    "A missed day takes nothing away",
    "Everyone here was a beginner once",
    "The sofa will wait, it always does",
    "Order from your sofa",
    "A guilt-free snack and a fail-safe recipe",
    "You are already on your way",
    "The lost city, an MP3, H2O and a 5GHz router",
    "Known in the U.S.A. and in I.B.M. circles",
    "Only one page to go",
    "A second chance",
    "They never come back, do they?",
)


@pytest.mark.parametrize("text", REFUSED)
def test_what_presses_shames_or_frightens_is_refused(text: str) -> None:
    assert list(pressing(f"A word: {text}, says the page"))


@pytest.mark.parametrize("text", HONEST)
def test_what_is_honest_may_be_said(text: str) -> None:
    assert list(pressing(text)) == []
    assert scarcity(text) is None


@pytest.mark.parametrize(
    "text",
    ["Only 2 left", "only a few seats left", "Almost gone", "Selling fast", "Limited edition", "Ends tonight",
     "Offer ends in 10 minutes", "Last few seats", "0nly a few \u200bleft"],
)  # fmt: skip
def test_a_claim_that_something_runs_out_is_found(text: str) -> None:
    assert scarcity(text)


def test_a_phrase_of_ones_own_is_found_in_disguise() -> None:
    assert list(pressing("What a cr\u00e0zy\u00a0 d3al", also=["crazy deal"]))
    assert list(pressing("fine", also=[" "])) == []


def test_a_text_without_disguise_stays_as_it_is() -> None:
    text = "5 EUR for {reward}, 100 % yours! It's 8:30, seat A4."
    assert plain(text) == text
