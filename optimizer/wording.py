"""How does a message read? The one next step, what it promises, how easy it is, and whether it is finished."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from optimizer.manner import Complaint
from optimizer.program import Incentive, Message


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


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
    yield from promised(f"{message.subject} {message.body}", f"{incentive.title} {incentive.earns}")


def promised(said: str, earned: str) -> Iterator[str]:
    """Yield sums and percentages of a text that what is earned does not name, if it names any."""
    declared = set(_sums(earned))
    yield from (amount for amount in _sums(said) if declared and amount not in declared)


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


_UNFINISHED = (
    r"\b(?:TODO|TBD|TBC|FIXME|XXX+|lorem ipsum)\b|%(?:s|d|\(\w+\)s)|%%\w+%%|\$\{?[A-Za-z_]\w*\}?|"
    r"\[[A-Z][A-Z _-]+\]|<[a-z][\w -]*>|\?\?\?|\b(?:insert|your) text(?: here)?\b"
)


def unfinished(text: str) -> str | None:
    """Return what shows that a text is not finished, such as a note to oneself or another tool's placeholder.

    >>> unfinished("Dear [FIRST NAME], TODO"), unfinished("Nothing to do for [now]")
    ('[FIRST NAME]', None)
    """
    match = re.search(_UNFINISHED, text)
    return match[0] if match else None
