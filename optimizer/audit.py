"""Is a program fit to meet a customer? Every fault with its mend, and what each touch point has to offer."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.limits import limits
from optimizer.manner import loud, pressing, scarcity
from optimizer.program import Fault, Incentive, Message, Program, Tone, read_draft
from optimizer.soundness import Finding, Severity, highest_momentum, journey, levels, open_in, reachable, ways
from optimizer.wording import (
    HARDEST,
    LONGEST_BODY,
    LONGEST_SUBJECT,
    overpromised,
    promised,
    reading,
    undated,
    unfinished,
    unsteady,
    worthless,
)

SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")


class Found(NamedTuple):
    """One thing to mend: how grave it is, in which file, where, what, and what to type instead."""

    severity: Severity
    file: str
    key: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.problem}; {self.mend}"


class Touch(NamedTuple):
    """A touch point, by the conversion trinity.

    `relevance`: something about it depends on who and where the customer is. `value`: the message says what there is to
    gain. `call_to_action`: it is obvious what to do next.
    """

    stage: str
    incentive: str
    tone: str
    relevance: bool
    value: bool
    call_to_action: bool


class Legible(NamedTuple):
    """A message as it reads: its length in words, and Flesch's reading ease, 0 (very hard) to 100 (very easy)."""

    incentive: str
    tone: str
    subject_letters: int
    words: int
    sentences: int
    ease: float


class StageFacts(NamedTuple):
    """A stage: how one comes to it and leaves it, how many nudges it allows, what momentum a step a day can make."""

    stage: str
    enters_by: tuple[str, ...]
    leaves_by: tuple[str, ...]
    nudges: int
    highest_momentum: float


@dataclass(frozen=True)
class Audit:
    """What is wrong with a program, the gravest first, and what is true of it.

    `touches`, `messages` and `stages` are empty where too little of the program could be read.
    """

    file: str
    program: str
    version: str
    findings: tuple[Found, ...]
    touches: tuple[Touch, ...] = ()
    messages: tuple[Legible, ...] = ()
    stages: tuple[StageFacts, ...] = ()

    @property
    def fit(self) -> bool:
        """Whether there is no fault; warnings and notes do not count."""
        return not self.of("fault")

    def of(self, severity: Severity) -> tuple[Found, ...]:
        """Return the findings of one severity."""
        return tuple(f for f in self.findings if f.severity == severity)

    def share(self, element: str) -> float:
        """Return the share of touch points that have an element: relevance, value or call_to_action; 1 of none."""
        return float(np.mean([getattr(t, element) for t in self.touches])) if self.touches else 1.0


def check(text: str, *, source: str) -> Audit:
    """Read a program from TOML and audit it: faults of kind, of range and of sense, all in one run.

    Args:
        text: the TOML.
        source: the file's name, for messages.

    >>> [f.key for f in check('name = "Mine"', source="mine.toml").findings][:3]
    ['name', 'title', 'goal']
    """
    draft = read_draft(text, source=source)
    faults = tuple(Found("fault", *f) for f in draft.faults)
    p = draft.program
    if p is None:
        return Audit(source, "", "", faults)
    audited = audit(p, source=source)
    found = audited.findings
    if not draft.has("stages", "events"):  # of a journey that is not there nothing can be said
        found = tuple(f for f in _found(limits(p), wording(p), source=source) if f.severity != "note")
    if not draft.has("stages", "events", "incentives", "tones", "timings"):
        audited = Audit(source, p.name, p.version, ())
    rest = tuple(f for f in found if draft.certain(f.key, f.problem, f.mend) and _new(f, draft.faults))
    return replace(audited, findings=_sorted(faults + rest))


def _new(found: Found, faults: tuple[Fault, ...]) -> bool:
    """Whether a finding is about something that has no fault yet: one thing is named once; words may have several."""
    return found.key.startswith("messages.") or all(f.key != found.key for f in faults)


def audit(program: Program, *, source: str = "") -> Audit:
    """Audit a program that can be read.

    Args:
        program: as parsed.
        source: the file's name, for messages; the program's name where omitted.
    """
    source = source or f"{program.name}.toml"
    parts = (journey(program), levels(program), limits(program), wording(program))
    return Audit(
        file=source,
        program=program.name,
        version=program.version,
        findings=_sorted(_found(*parts, source=source)),
        touches=tuple(touches(program)),
        messages=tuple(_legible(i, t, m) for i, t, m in _messages(program)),
        stages=tuple(_facts(program)),
    )


def _found(*parts: Iterable[Finding], source: str) -> tuple[Found, ...]:
    """Return the findings of some parts, each once."""
    return tuple(Found(f.severity, source, *f[1:]) for f in dict.fromkeys(chain(*parts)))


def _sorted(findings: tuple[Found, ...]) -> tuple[Found, ...]:
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _messages(p: Program) -> Iterator[tuple[Incentive, Tone, Message]]:
    """Yield what is said: the messages of declared incentives in declared tones."""
    for i in p.incentives:
        for t in p.tones:
            if (message := p.messages.get(i.name, {}).get(t.name)) is not None:
                yield i, t, message


def touches(program: Program) -> Iterator[Touch]:
    """Yield every (stage, incentive, tone) that can be, with its share of the conversion trinity."""
    reached = reachable(program)
    for stage in (s.name for s in program.stages if s.name in reached):
        for i, t, message in _messages(program):
            if open_in(i, stage) and open_in(t, stage):
                told = not any(unsteady(message.call_to_action))
                yield Touch(stage, i.name, t.name, _relevant(program, i, message), not worthless(i, message), told)


def _relevant(p: Program, i: Incentive, message: Message) -> bool:
    """Whether something can move the choice, and this nudge is not the same for everybody everywhere."""
    own = bool(i.stages or i.min_momentum or i.barred_segments or i.ladder or i.comeback_after)
    return bool(p.attributes) and (own or bool(_fields(message)))


def _fields(message: Message) -> set[str]:
    """Return what a message leaves to be filled in."""
    parts = msgspec.structs.astuple(message)
    return {name for part in parts for name in re.findall(r"(?<!\{)\{(\w+)\}", part)}


def _legible(i: Incentive, t: Tone, message: Message) -> Legible:
    read = reading(f"{message.subject}. {message.body}")
    return Legible(i.name, t.name, len(message.subject), read.words, read.sentences, min(max(read.ease, 0.0), 100.0))


def _facts(p: Program) -> Iterator[StageFacts]:
    there, momentum = ways(p), highest_momentum(p).tolist()
    timings = sum(not t.retired for t in p.timings)
    for s, highest in zip(p.stages, momentum, strict=True):
        enters = tuple(f"{w.event.name if w.event else 'lapse'} from {w.start}" for w in there if w.end == s.name)
        leaves = tuple(f"{w.event.name if w.event else 'lapse'} to {w.end}" for w in there if w.start == s.name)
        said = [sum(open_in(x, s.name) for x in rows) for rows in (p.incentives, p.tones)]
        yield StageFacts(s.name, enters, leaves, said[0] * said[1] * timings, round(highest, 3))


def wording(program: Program) -> Iterator[Finding]:
    """Yield what is wrong with what is said: manner, promises, the next step, length, and what nobody will read."""
    english = program.language == "en"
    if not english:
        problem = 'is not "en", so calls to action, reading ease and shipped phrases are not checked'
        yield Finding("note", "language", problem, "add phrases of your own to guardrails.refused_phrases")
    for key, text, scarce in _told(program):
        yield from _manner(program, key, text, scarce=scarce)
    for i in program.incentives:
        yield from _earns(program, i)
    yield from _strays(program)
    seen: dict[str, str] = {}
    for i, t, message in _messages(program):
        key = f"messages.{i.name}.{t.name}"
        yield from _message(program, key, i, message)
        yield from _trinity(key, i, message) if english else ()
        yield from _length(key, message, english=english)
        said = " ".join(message.body.split()).casefold()
        if said in seen:
            yield Finding("warning", key, f"says the same as {seen[said]}", "say it in this tone's own words")
        seen.setdefault(said, key)
        if not any(open_in(i, s.name) and open_in(t, s.name) for s in program.stages) and not (i.retired or t.retired):
            problem = f"is never said: {i.name} and the tone {t.name} share no stage"
            yield Finding("note", key, problem, "open the tone to a stage of the incentive, or let it be")


def _strays(p: Program) -> Iterator[Finding]:
    """Yield what is wrong with the manner of messages whose incentive or tone is not declared, or misspelt."""
    known = {(i.name, t.name) for i, t, _ in _messages(p)}
    for incentive, said in p.messages.items():
        for tone, message in said.items():
            if (incentive, tone) not in known:
                for field, part in msgspec.structs.asdict(message).items():
                    yield from _manner(p, f"messages.{incentive}.{tone}.{field}", part, scarce=True)


def _message(p: Program, key: str, i: Incentive, message: Message) -> Iterator[Finding]:
    for field, part in msgspec.structs.asdict(message).items():
        yield from _manner(p, f"{key}.{field}", part, scarce=i.scarce)
        for problem, mend in loud(part):
            yield Finding("warning", f"{key}.{field}", problem, mend)
    for amount in overpromised(i, message):
        problem = f'promises {amount}, and what {i.name} earns says "{i.earns}"'
        yield Finding("fault", key, problem, "mend the message or what the incentive earns")
    if not p.milestones and _fields(message):
        problem = "is to be filled from progress, and the program has no milestones"
        yield Finding("fault", key, problem, "declare a milestone, or write the words out")


def _earns(p: Program, i: Incentive) -> Iterator[Finding]:
    key = f"incentives[{i.name}]"
    if p.language == "en" and (i.cost or i.kind in ("monetary", "access", "recognition")) and undated(i.earns):
        mend = 'add it, such as "the same day" or "at once"'
        yield Finding("warning", f"{key}.earns", "does not say when the reward comes", mend)
    for amount in promised(i.title, i.earns):
        problem = f'promises {amount}, and what it earns says "{i.earns}"'
        yield Finding("fault", f"{key}.title", problem, "mend the title or what the incentive earns")
    alike = not any(_relevant(p, i, message) for message in p.messages.get(i.name, {}).values())
    if alike and p.attributes and len(p.stages) > 1 and not i.retired:
        mend = f'name the stages that it is for, such as stages = ["{p.stages[0].name}"]'
        yield Finding("warning", f"{key}.stages", "is offered to everybody in every stage alike", mend)


def _told(p: Program) -> Iterator[tuple[str, str, bool]]:
    """Yield what a customer reads besides messages, and whether it may say that something runs out."""
    for i in p.incentives:
        yield f"incentives[{i.name}].title", i.title, i.scarce
        yield f"incentives[{i.name}].earns", i.earns, i.scarce
    for m in p.milestones:
        yield f"milestones[{m.name}].title", m.title, False
        yield f"milestones[{m.name}].reward", m.reward, False
    for key, rows in (("stages", p.stages), ("events", p.events)):
        yield from ((f"{key}[{row.name}].because", row.because, False) for row in rows)


def _manner(p: Program, key: str, text: str, *, scarce: bool) -> Iterator[Finding]:
    for problem, mend in pressing(text, also=p.guardrails.refused_phrases):
        yield Finding("fault", key, problem, mend)
    if not scarce and (claim := scarcity(text)):
        mend = "add scarce = true to the incentive, or leave the words out"
        yield Finding("fault", key, f'says "{claim}", which is for what is declared scarce', mend)
    if left := unfinished(text):
        yield Finding("fault", key, f'is not finished: "{left}"', "write it out; {reward} and the like are filled in")


def _trinity(key: str, i: Incentive, message: Message) -> Iterator[Finding]:
    if worthless(i, message):
        problem = f'does not say what there is to gain: "{i.earns}"'
        yield Finding("warning", key, problem, "name in the body what is earned, and when")
    for problem, mend in unsteady(message.call_to_action):
        yield Finding("warning", f"{key}.call_to_action", problem, mend)


def _length(key: str, message: Message, *, english: bool) -> Iterator[Finding]:
    for field, text, most in (("subject", message.subject, LONGEST_SUBJECT), ("body", message.body, LONGEST_BODY)):
        if not text.strip():
            yield Finding("fault", f"{key}.{field}", "is blank", "write it out")
        if len(text) > most:
            problem = f"is {len(text)} letters long"
            yield Finding("warning", f"{key}.{field}", problem, f"say it in {most}")
    if "\n" in message.subject.strip():
        yield Finding("warning", f"{key}.subject", "has more than one line", "say it in one")
    read = reading(message.body)
    if english and read.words >= 10 and read.ease < HARDEST:
        problem = f"is hard to read: ease {read.ease:.0f} of 100, {read.words} words in {read.sentences} sentences"
        yield Finding("warning", f"{key}.body", problem, "use shorter sentences and shorter words")
