"""What is wrong with a program that its types cannot say? Each finding is (key, problem, mend)."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from string import Formatter
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from optimizer.actions import FACTORS

if TYPE_CHECKING:
    from optimizer.program import Message, Program

DAY = 86_400.0
Finding = tuple[str, str, str]

PLACEHOLDERS = ("done", "of", "milestone", "reward")
"""What a message may leave to be filled from the customer's progress."""


_ISO_4217 = """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF
    CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD
    HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD
    MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN
    PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY
    TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG XXX
"""
CURRENCIES = frozenset(_ISO_4217.split())
"""ISO 4217, of 2025; XXX is no currency, for rewards that are not money."""


def contradictions(program: "Program") -> Iterator[Finding]:
    """Yield (key, problem, mend) for everything that makes a program impossible to run as declared."""
    found = list(_repeats(program))
    yield from found
    if not found:  # names that stand for one thing each are what the other checks look things up by
        checks = (_goal, _stages, _events, _levels, _timings, _messages, _attributes, _milestones, _rules, _limits)
        yield from chain.from_iterable(check(program) for check in checks)


def _repeats(p: "Program") -> Iterator[Finding]:
    for key in ("stages", "events", "incentives", "tones", "timings", "attributes", "milestones"):
        names = [x.name for x in getattr(p, key)]
        if not names and key not in ("attributes", "milestones"):
            yield key, "is empty", "declare at least one"
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"{key}[{name}]", "is declared twice", "rename or remove one of them"


def _goal(p: "Program") -> Iterator[Finding]:
    goal = p.event(p.goal)
    if goal is None:
        yield "goal", f"{p.goal!r} is not a declared event", _one_of(p.event_index)
    elif goal.kind != "macro":
        yield "goal", f"{p.goal!r} is a {goal.kind} event", f'declare events[{p.goal}].kind = "macro"'


def _stages(p: "Program") -> Iterator[Finding]:
    for s in p.stages:
        yield from _unknown(f"stages[{s.name}].lapses_to", [s.lapses_to] if s.lapses_to else [], p.stage_index)
        if (s.lapses_after is None) != (s.lapses_to is None):
            yield f"stages[{s.name}]", "has only one of lapses_after and lapses_to", "give both or neither"


def _events(p: "Program") -> Iterator[Finding]:
    for e in p.events:
        yield from _unknown(f"events[{e.name}].moves", [*e.moves, *e.moves.values()], p.stage_index)
        if e.name in ("shown", "not_shown"):
            yield f"events[{e.name}]", "is reported by every app and cannot be declared", "choose another name"
        for stage, to in e.moves.items():
            if stage == to:
                yield f"events[{e.name}].moves", f"moves {stage!r} to itself", "leave it out, or name another stage"
        if e.pauses_below is not None and e.pauses_promotion is None:
            yield f"events[{e.name}].pauses_below", "has no pauses_promotion", 'add pauses_promotion = "14d"'


def _levels(p: "Program") -> Iterator[Finding]:
    for key, owners in (("incentives", p.incentives), ("tones", p.tones)):
        for x in owners:
            yield from _unknown(f"{key}[{x.name}].stages", x.stages, p.stage_index)
            for stage in sorted({s for s in x.stages if x.stages.count(s) > 1}):
                yield f"{key}[{x.name}].stages", f"names {stage!r} twice", "leave one out"
            yield from _segments(p, f"{key}[{x.name}].barred_segments", x.barred_segments)


def _segments(p: "Program", key: str, segments: Mapping[str, Iterable[str]]) -> Iterator[Finding]:
    categories = {a.name: a.categories for a in p.attributes if a.kind == "category"}
    for name, given in segments.items():
        if name not in categories and any(a.name == name for a in p.attributes):
            yield key, f"{name!r} is not a category, so it has no segments", "declare it as one, or use another"
            continue
        yield from _unknown(key, [name], categories)
        yield from _unknown(f"{key}.{name}", given, categories.get(name, tuple(given)))


def _timings(p: "Program") -> Iterator[Finding]:
    for t in p.timings:
        if (t.delay is None) == (t.clock is None):
            yield f"timings[{t.name}]", "needs exactly one of delay and clock", 'write delay = "1h" or clock = "18:00"'
        elif t.delay is not None and t.delay > 7 * DAY:
            yield f"timings[{t.name}].delay", "is longer than a week", 'use at most "7d"'


def _messages(p: "Program") -> Iterator[Finding]:
    yield from _unknown("messages", p.messages, p.space.incentives)
    for i in p.space.incentives:
        said = p.messages.get(i, {})
        yield from _unknown(f"messages.{i}", said, p.space.tones)
        for tone in p.space.tones:
            if tone not in said:
                yield f"messages.{i}.{tone}", "is missing", "write its subject, body and call_to_action"
            else:
                yield from _placeholders(f"messages.{i}.{tone}", said[tone])


def _placeholders(key: str, message: "Message") -> Iterator[Finding]:
    mend = f"use only {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}; write a brace as {{{{ or }}}}"
    for field in ("subject", "body", "call_to_action"):
        try:
            names = {name for _, name, _, _ in Formatter().parse(getattr(message, field)) if name is not None}
        except ValueError as error:
            yield f"{key}.{field}", f"cannot be filled: {error}", mend
            continue
        for name in sorted(names - set(PLACEHOLDERS)):
            yield f"{key}.{field}", f"{{{name}}} is not a placeholder", mend


def _attributes(p: "Program") -> Iterator[Finding]:
    for a in p.attributes:
        if (a.kind == "category") != bool(a.categories):
            mend = "list its categories" if a.kind == "category" else "remove categories"
            yield f"attributes[{a.name}].categories", f"does not go with kind = {a.kind!r}", mend
        for c in sorted({c for c in a.categories if a.categories.count(c) > 1}):
            yield f"attributes[{a.name}].categories", f"names {c!r} twice", "leave one out"
        if any(not c.strip() for c in a.categories):
            yield f"attributes[{a.name}].categories", "has one without a name", "name it, or leave it out"
        if a.name in ("stage", "momentum", "dosage", "streak", "nudge_recency", "hour", "weekend", "bias"):
            yield f"attributes[{a.name}]", "is a feature that every program has", "choose another name"


def _milestones(p: "Program") -> Iterator[Finding]:
    for m in p.milestones:
        given = [x is not None for x in (m.event, m.count, m.streak, m.after)]
        if given not in ([True, True, False, False], [False, False, True, False], [False, False, False, True]):
            needs = "needs either event and count, or streak, or after"
            yield f"milestones[{m.name}]", needs, "give one of the three"
        elif m.event is not None:
            yield from _unknown(f"milestones[{m.name}].event", [m.event], p.event_index)
        yield from _unknown(f"milestones[{m.name}].streak_of", m.streak_of, _steps(p))
        if m.after is not None and m.after < DAY:
            yield f"milestones[{m.name}].after", "is shorter than a day", 'count days, such as after = "365d"'
        if m.streak_of and m.streak is None:
            yield f"milestones[{m.name}].streak_of", "has no streak", "add streak = 7, or remove it"


def _steps(p: "Program") -> list[str]:
    return [e.name for e in p.events if e.kind != "signal"]


def _rules(p: "Program") -> Iterator[Finding]:
    for i, r in enumerate(p.rules):
        yield from _unknown(f"rules[{i}].stages", r.stages, p.stage_index)
        for factor, names in zip(FACTORS, p.space.factors, strict=True):
            yield from _unknown(f"rules[{i}].{factor}", [getattr(r, factor)], names)
        yield from _segments(p, f"rules[{i}].where", r.where)


def _limits(p: "Program") -> Iterator[Finding]:
    x, g, arms = p.exploration, p.guardrails, p.experiment
    if not x.hold:
        problem = "is 0: where a policy never holds, hold would be impossible, and what nudges add could not be told"
        yield "exploration.hold", problem, "use 0.01 or more, such as 0.05"
    if x.floor + x.hold > 0.9:
        yield "exploration", f"floor + hold = {x.floor + x.hold:g} leaves too little to the policy", "use at most 0.9"
    if (taken := arms.holdout + arms.challenger + arms.evaluation) > 0.9:
        yield "experiment", f"its arms take {taken:.0%} of the customers", "leave at least 10 % to the champion"
    yield from _unknown("fairness.protect", p.fairness.protect, [a.name for a in p.attributes])
    if not zone_exists(g.time_zone):
        yield "guardrails.time_zone", f"{g.time_zone!r} is not a time zone", 'use an IANA name such as "Europe/Paris"'
    if p.currency not in CURRENCIES:
        yield "currency", f"{p.currency!r} is no currency of ISO 4217", 'use its three letters, such as "EUR"'
    if p.matures_after > p.evaluation_horizon:
        need = f"{p.matures_after / DAY:g}d"
        problem = f"is shorter than the longest timing delay plus the longest valued window ({need})"
        yield "evaluation_horizon", problem, f'use at least "{need}"'
    kinds = {i.kind for i in p.incentives}
    yield from _unknown("guardrails.cap_per_week_by_kind", g.cap_per_week_by_kind, kinds)
    dear = [i.name for i in p.incentives if g.budget and i.cost > g.budget.amount]
    if dear:
        yield "guardrails.budget.amount", f"can never pay for {', '.join(dear)}", "raise it or lower their cost"


def zone_exists(name: str) -> bool:
    """Whether a time zone of that IANA name exists."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _unknown(key: str, given: Iterable[str], known: Iterable[str]) -> Iterator[Finding]:
    known = tuple(known)
    for name in given:
        if name not in known:
            yield key, f"{name!r} is not declared", _one_of(known)


def _one_of(names: Iterable[str]) -> str:
    return f"use one of {', '.join(names)}"
