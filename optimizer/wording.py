"""How does a message read? Words that press or shame, the one next step, what it promises, and how easy it is."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from optimizer.program import Incentive, Message

Complaint = tuple[str, str]
"""A problem and its mend."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


REFUSED: dict[str, tuple[str, ...]] = {
    "presses": (
        "last chance",
        "final (?:call|offer|reminder|notice|hours?)",
        "act (?:now|fast|today)",
        "hurry(?: up)?",
        "now or never",
        "limited[- ]time",
        "running out",
        "(?:before it is|before it's|not) too late",
        "urgent(?:ly)?",
        "while (?:stocks?|supplies) lasts?",
        "expires? (?:soon|today|tonight)",
        "only (?:today|now|hours|minutes)",
        "(?:do not|don't) wait",
    ),
    "plays on the fear of missing out": (
        "miss(?:ing)? out",
        "(?:do not|don't|never) miss",
        "left behind",
        "fall(?:ing)? behind",
        "every(?:one|body) else",
        "(?:you will|you'll) regret",
        "regret(?:s|ted)?",
        "lose (?:your|it|everything)",
    ),
    "shames": (
        "ashamed",
        "shame(?:ful)?",
        "guilt(?:y)?",
        "laz(?:y|iness)",
        "no excuses?",
        "disappoint(?:s|ed|ing|ment)?",
        "fail(?:ed|ing|ure|s)?",
        "let (?:us|me|them|yourself) down",
        "you owe",
        "we (?:miss|missed) you",
        "where have you been",
        "still (?:have not|haven't)",
    ),
    "promises what nobody can keep": (
        "guaranteed? (?:results?|success)",
        "no[- ]risk",
        "risk[- ]free",
        "you have won",
        "you've won",
    ),
}
"""What no message may do, and the phrases that do it, as regular expressions of whole words."""

BOSSY = r"you (?:must|have to|need to|should|ought to)"
"""What is not refused, and better said as an offer."""

SCARCITY = (
    r"only \d+ (?:left|seats?|places?|spots?|remain(?:ing)?)",
    r"(?:almost|nearly) (?:gone|sold out)",
    r"(?:a )?few left",
    r"ends (?:soon|today|tonight|tomorrow|at midnight)",
    r"last \d+",
)
"""Claims that something runs out: allowed only where the incentive is declared `scarce`, and so is seldom used."""

VERBS = _words(
    """
    accept activate add answer arrange ask attend begin book borrow bring browse build buy call cancel catch
    celebrate change chat check choose claim collect come compare complete confirm connect continue cook create
    decide discover do donate download draw drop earn eat enjoy enter explore feel fill find finish follow get give
    go grab grow hear help invite join keep know learn leave lend let light listen load log look make manage map
    mark measure meet move name note open order pack park pass pay pick plan plant play post practise practice
    prepare press print publish put rate read receive recommend record recruit redeem refresh register remember
    remind renew repeat reply request reserve return review ride risk run save say schedule see select sell send set
    share ship shop show sign simplify sing skip sleep slip solve spend spread start stay step stop store stretch
    subscribe support swap switch take talk tap taste teach tell test thank think tidy track train translate travel
    treat try turn type unlock unwrap update upgrade upload use view visit vote wake walk warm watch water wear win
    work wrap write
    """
)
"""What a call to action starts with: things that people do."""

VAGUE = frozenset({"click here", "learn more", "more", "more info", "ok", "okay", "submit", "go", "continue", "next"})
"""Calls to action that do not say what happens next."""

MOST_WORDS, MOST_LETTERS = 6, 40
LONGEST_SUBJECT, LONGEST_BODY = 60, 300
HARDEST = 50.0
"""Reading ease below which a text is hard going: "fairly difficult" on Flesch's scale ends there."""

_COMMON = _words(
    """
    about after also and any are been but can does each ever every for from has have her here him his how into its
    just like more most much new not now off one only our out over own she some such than that the their them then
    there these they this those through today too under until very was what when where which while who will with
    within you your yours
    """
)
_SUM = r"(?:(€|£|\$|[A-Z]{3}) ?)?(\d+(?:[.,]\d+)?)(?: ?(%|percent|€|£|\$|[A-Z]{3}\b))?"
_MOMENTS = (
    r"\b(at once|at any time|immediately|instantly|right away|same day|today|as (soon as|you)|when(ever)?|once|after"
    r"|within|until|by itself|((your|the) next)|next (day|week|month|morning)|(in|for|from) (\d+|a|one|two|the next))\b"
)
_UNITS = {"percent": "%", "€": "EUR", "£": "GBP", "$": "USD"}


class Reading(NamedTuple):
    """How long a text is and how easy to read: Flesch's 0 (very hard) to 100 and more (very easy)."""

    words: int
    sentences: int
    letters: int
    ease: float


def reading(text: str) -> Reading:
    """Measure a text: Flesch (1948), 206.835 - 1.015 words per sentence - 84.6 syllables per word.

    Syllables are counted by rule of thumb (groups of vowels, silent e), so the ease is good to a few points, and it
    is meant for English.

    >>> reading("The cat sat on the mat.")
    Reading(words=6, sentences=1, letters=23, ease=116.1)
    """
    plain = re.sub(r"(?<=\d)[.,](?=\d)", "", re.sub(r"\{\w*\}", "it", text))
    sentences = [s for s in re.split(r"[.!?;:]+(?:\s|$)", plain) if re.search(r"\w", s)]
    words = re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?|\d+", plain)
    if not words:
        return Reading(0, 0, len(text), 0.0)
    syllables = sum(_syllables(w) for w in words)
    ease = 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * syllables / len(words)
    return Reading(len(words), len(sentences), len(text), round(ease, 1))


def _syllables(word: str) -> int:
    word = word.lower()
    groups = len(re.findall(r"[aeiouyàâäéèêëïîôöùûü]+", word))
    if groups > 1 and (re.search(r"[^aeiouyl]e$", word) or re.search(r"[^aeioutd]ed$", word)):
        groups -= 1
    return max(groups, 1)


def pressing(text: str, *, also: Sequence[str] = ()) -> Iterator[Complaint]:
    """Yield what is wrong with the manner of a text: phrases that press, shame or frighten, and the program's own.

    >>> list(pressing("Hurry, the sale is on"))[0][0]
    'says "Hurry", which presses'
    """
    for does, phrases in REFUSED.items():
        for match in re.finditer(rf"\b(?:{'|'.join(phrases)})\b", text, re.IGNORECASE):
            yield f'says "{match[0]}", which {does}', "say what there is and leave the choice to the reader"
    for phrase in also:
        words = r"\s+".join(re.escape(word) for word in phrase.split())
        for match in re.finditer(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE):
            yield f'says "{match[0]}", which guardrails.refused_phrases rules out', "say it in other words"


def loud(text: str) -> Iterator[Complaint]:
    """Yield what is loud about a text: orders, words in capitals, several exclamation marks.

    >>> [problem for problem, _ in loud("You MUST see this")]
    ['says "You MUST", which orders about', 'shouts "MUST"']
    """
    if match := re.search(rf"\b{BOSSY}\b", text, re.IGNORECASE):
        yield f'says "{match[0]}", which orders about', "offer it: the choice is the reader's"
    if shout := re.search(r"\b[A-Z]{4,}\b", text):
        yield f'shouts "{shout[0]}"', "write it in small letters"
    if "!!" in text:
        yield 'shouts "!!"', "one exclamation mark is plenty"


def unsteady(call_to_action: str) -> Iterator[Complaint]:
    """Yield what keeps a call to action from being one obvious next step.

    >>> [problem for problem, _ in unsteady("The best offers for our members")]
    ['does not start with something to do, but with "The"']
    >>> list(unsteady("Start the five minutes"))
    []
    """
    said = call_to_action.strip(" .!?>\u203a\u2192")
    words = re.findall(r"[\w'\u2019-]+", said)
    first = next((w for w in words if w.lower() not in ("yes", "please", "now", "let's", "just")), "")
    if said.lower() in VAGUE:
        yield f'"{call_to_action}" does not say what happens next', 'name the step, such as "Start the first workout"'
    elif first.lower() not in VERBS and words[:1] != ["Yes"]:
        yield f'does not start with something to do, but with "{first}"', 'start with a verb, such as "Start" or "See"'
    if len(words) > MOST_WORDS or len(said) > MOST_LETTERS:
        mend = f"use at most {MOST_WORDS} words and {MOST_LETTERS} letters"
        yield f"takes {len(words)} words, {len(said)} letters", mend
    if re.search(r"\bor\b|/|\|", said):
        yield "offers a choice of steps", "ask for one step"


def worthless(incentive: Incentive, message: Message) -> bool:
    """Whether a message shares no two words of substance with what its incentive earns, and shows no progress.

    Where little is said about what is earned, one word is enough.

    >>> coupon = Incentive(name="c", title="Coupon", kind="monetary", earns="10 % off your next order at the till.")
    >>> worthless(coupon, Message(subject="Hello", body="Have a look around.", call_to_action="Look around"))
    True
    """
    said = f"{message.subject} {message.body}"
    shown = any(f"{{{name}}}" in said for name in ("reward", "done", "of"))
    earned = _substance(f"{incentive.title} {incentive.earns}")
    return not shown and len(earned & _substance(said)) < (2 if len(earned) > 5 else 1)


def _substance(text: str) -> set[str]:
    words = re.findall(r"[^\W\d_]{3,}|\d+", text.lower())
    return {w[:5] for w in words if w not in _COMMON}


def overpromised(incentive: Incentive, message: Message) -> Iterator[str]:
    """Yield sums and percentages that a message names and what the incentive earns does not.

    >>> from optimizer.program import Incentive, Message
    >>> coupon = Incentive(name="c", title="Coupon", kind="monetary", earns="10 % off at the till.")
    >>> list(overpromised(coupon, Message(subject="For you", body="Take 20 % off.", call_to_action="Use it")))
    ['20 %']
    """
    declared = set(_sums(f"{incentive.title} {incentive.earns}"))
    if declared:
        yield from (amount for amount in _sums(f"{message.subject} {message.body}") if amount not in declared)


def _sums(text: str) -> Iterator[str]:
    for before, number, behind in re.findall(_SUM, text):
        if unit := behind or before:
            yield f"{number} {_UNITS.get(unit, unit)}"


def undated(earns: str) -> bool:
    """Whether what an incentive earns is said without when it comes.

    >>> undated("A badge for your profile."), undated("A badge as soon as you finish.")
    (True, False)
    """
    return not re.search(_MOMENTS, earns, re.IGNORECASE)
