"""What of a program can never happen, or never end? Stages, levels and limits, each against all the others."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from optimizer.actions import Floats
from optimizer.program import DAY, LAPSE, Event, Guardrails, Incentive, Program, Rule, Stage, Tone

Severity = Literal["fault", "warning", "note"]
WEEK = 7 * DAY


class Finding(NamedTuple):
    """One thing to mend: how grave it is, where, what, and what to type instead."""

    severity: Severity
    key: str
    problem: str
    mend: str


class Way(NamedTuple):
    """A way from one stage to another: an event, or a lapse, where `event` is None."""

    start: str
    end: str
    event: Event | None


def ways(program: Program) -> list[Way]:
    """Return every way between two different declared stages, by events in order and then by lapses."""
    known = program.stage_index
    found = [Way(a, b, e) for e in program.events for a, b in e.moves.items()]
    found += [Way(s.name, s.lapses_to, None) for s in program.stages if s.lapses_to]
    return [w for w in found if w.start in known and w.end in known and w.start != w.end]


def reachable(program: Program) -> set[str]:
    """Return the stages that somebody in the first one can come to."""
    reached, there = {program.stages[0].name}, ways(program)
    for _ in program.stages:
        reached |= {w.end for w in there if w.start in reached}
    return reached


def goal_stages(program: Program) -> set[str]:
    """Return the stages that macro-actions lead to: where a journey may end."""
    return {b for e in program.events if e.kind == "macro" for b in e.moves.values()}


def open_in(level: Incentive | Tone, stage: str) -> bool:
    """Whether a level is declared for a stage."""
    return not level.retired and (not level.stages or stage in level.stages)


def highest_momentum(program: Program) -> Floats:
    """Return what momentum somebody who takes one step a day can have in each stage, shape (stages,).

    Where a stage has no step that stays in it, momentum is what was brought along; a lapse takes idleness to happen.
    """
    halves = DAY / program.momentum_half_life
    steady = 1.0 / (1.0 - 2.0**-halves)
    staying = [any(_steps(e) and e.moves.get(s.name, s.name) == s.name for e in program.events) for s in program.stages]
    levels = {s.name: steady if stays else 0.0 for s, stays in zip(program.stages, staying, strict=True)}
    idle = {s.name: float(s.lapses_after or 0.0) / program.momentum_half_life for s in program.stages}
    there, seen = ways(program), reachable(program)
    for _ in program.stages:
        for way in (w for w in there if w.start in seen):
            level = levels[way.start]
            if way.event is None:
                level *= 2.0 ** -idle[way.start]
            elif _steps(way.event):
                level = min(level * 2.0**-halves + 1.0, steady)
            levels[way.end] = max(levels[way.end], level)
    highest: Floats = 1.0 - np.exp2(-np.array([levels[s.name] for s in program.stages]))
    return highest


def _steps(event: Event) -> bool:
    return event.kind != "signal"


def journey(program: Program) -> Iterator[Finding]:
    """Yield stages that nobody comes to, leaves, is nudged in or comes back from, and goals that are worth nothing."""
    reached, there, ends = reachable(program), ways(program), goal_stages(program)
    for s in program.stages:
        key = f"stages[{s.name}]"
        leaving = [w for w in there if w.start == s.name]
        if s.name not in reached:
            mend = "name it in the moves of an event or as a lapses_to, or remove it"
            yield Finding("fault", key, f"cannot be reached from {program.stages[0].name!r}", mend)
        elif any(w.end == s.name and w.event is None for w in there) and not any(w.event for w in leaving):
            mend = f'give an event moves = {{ {s.name} = "..." }}'
            yield Finding("fault", key, "customers lapse to it and no event leads back", mend)
        elif not leaving and s.name not in ends:
            mend = f'give an event moves = {{ {s.name} = "..." }}, or remove the stage'
            yield Finding("fault", key, "is a dead end: nothing leads on from it and it is no goal", mend)
        if s.lapses_to == s.name:
            yield Finding("warning", f"{key}.lapses_to", "lapses to itself", "name another stage, or leave both out")
    yield from _values(program)
    for s in program.stages:
        yield from _expectations(program, s)


def _values(p: Program) -> Iterator[Finding]:
    goal = p.event(p.goal)
    if goal is None or goal.kind != "macro":
        return
    if goal.value <= 0:
        mend = "say what reaching the goal is worth"
        yield Finding("fault", f"events[{p.goal}].value", f"the goal is worth {goal.value:g}", mend)
        return
    for e in p.events:
        if e.kind == "macro" and e.value <= 0:
            mend = 'say what it is worth, or make it a kind = "micro"'
            yield Finding("warning", f"events[{e.name}].value", f"a macro-action is worth {e.value:g}", mend)
        if e.kind == "micro" and not e.scaled and e.value >= goal.value:
            mend = f"use less than the goal's {goal.value:g}"
            yield Finding("warning", f"events[{e.name}].value", "a small step is worth as much as the goal", mend)


def _expectations(p: Program, stage: Stage) -> Iterator[Finding]:
    key = f"stages[{stage.name}].expects"
    known = (*p.event_index, *([LAPSE] if stage.lapses_to else []))
    for name in stage.expects:
        if name not in known:
            yield Finding("fault", key, f"{name!r} is not declared", f"use one of {', '.join(known)}")
    moving = {e.name for e in p.events if e.moves.get(stage.name, stage.name) != stage.name} | {LAPSE}
    if (total := sum(share for name, share in stage.expects.items() if name in moving)) > 1:
        problem = f"more than everybody leaves on a day: the events that move add up to {total:g}"
        yield Finding("fault", key, problem, "use at most 1 in all")


def levels(program: Program) -> Iterator[Finding]:
    """Yield levels, and nudges of rules, that no customer can ever get."""
    if not program.attributes:
        problem = "nothing tells one customer from another, so nothing can be relevant to one"
        yield Finding("warning", "attributes", problem, "declare what your app knows, such as a channel or a plan")
    for s in (s for s in program.stages if s.name in reachable(program)):
        said, told = (any(open_in(x, s.name) for x in rows) for rows in (program.incentives, program.tones))
        if not (said and told):
            problem = f"is a leak: no {'tone' if said else 'incentive'} is allowed in it"
            yield Finding("fault", f"stages[{s.name}]", problem, f'add "{s.name}" to the stages of one')
    for t in program.tones:
        if not t.retired and not any(_meet(i, t, program) for i in program.incentives):
            problem = "is never allowed: no incentive shares a stage with it"
            mend = "give it a stage in which there is something to say"
            yield Finding("fault", f"tones[{t.name}].stages", problem, mend)
    highest = dict(zip(program.stage_index, highest_momentum(program).tolist(), strict=True))
    for i in program.incentives:
        if not i.retired:
            yield from _never(program, i)
            yield from _too_eager(i, {s: m for s, m in highest.items() if open_in(i, s)})
    yield from _timings(program)
    yield from _rules(program, highest)


def _meet(incentive: Incentive, tone: Tone, program: Program) -> bool:
    return any(open_in(incentive, s.name) and open_in(tone, s.name) for s in program.stages)


def _never(p: Program, i: Incentive) -> Iterator[Finding]:
    key, rules = f"incentives[{i.name}]", p.guardrails
    if i.stages and not i.retired and p.tones and not any(_meet(i, t, p) for t in p.tones):
        mend = "add a stage, or give a tone one of its stages"
        yield Finding("fault", f"{key}.stages", "is never allowed: no tone shares a stage with it", mend)
    if i.stock == 0:
        yield Finding("fault", f"{key}.stock", "is never allowed: there are none", "say how many, or leave stock out")
    if rules.cap_per_week_by_kind.get(i.kind) == 0:
        where = f"guardrails.cap_per_week_by_kind.{i.kind}"
        yield Finding("fault", where, f"never allows {i.name}", "allow one, or mark it as retired")
    if i.scarce and rules.scarce_per_week == 0:
        mend = "allow one, or mark it as retired"
        yield Finding("fault", "guardrails.scarce_per_week", f"never allows {i.name}", mend)
    if i.comeback_after is not None:
        stays = [s for s in p.stages if open_in(i, s.name) and not 0 < float(s.lapses_after or 0) <= i.comeback_after]
        if not stays:
            problem = "is never allowed: customers lapse out of all its stages before"
            yield Finding("fault", f"{key}.comeback_after", problem, "shorten it, or add the stage they lapse to")
    for name, barred in i.barred_segments.items():
        declared = next((a.categories for a in p.attributes if a.name == name), ())
        if declared and set(declared) <= set(barred):
            problem = f"bars every category of {name}"
            yield Finding("warning", f"{key}.barred_segments", problem, "leave out one, or mark it as retired")


def _too_eager(i: Incentive, highest: Mapping[str, float]) -> Iterator[Finding]:
    """Yield a min_momentum that a step a day does not reach: anywhere, or in one of the incentive's stages."""
    short = [s for s, most in highest.items() if most < i.min_momentum]
    if not short:
        return
    most = max(highest.values())
    if len(short) == len(highest):
        problem = f"is never allowed: a step a day makes a momentum of {most:.2f} in its stages, not {i.min_momentum:g}"
        yield Finding("fault", f"incentives[{i.name}].min_momentum", problem, f"use at most {int(most * 100) / 100:g}")
        return
    problem = f"asks for {i.min_momentum:g}, which nobody has in {', '.join(short)}"
    mend = f"use at most {int(min(highest.values()) * 100) / 100:g}, or remove the stage"
    yield Finding("warning", f"incentives[{i.name}].min_momentum", problem, mend)


def _timings(p: Program) -> Iterator[Finding]:
    live = [t for t in p.timings if not t.retired]
    night = [t for t in live if t.clock is not None and quiet(p.guardrails, t.clock)]
    hours = f"{_clock(p.guardrails.quiet_from)} to {_clock(p.guardrails.quiet_until)}"
    if live and len(night) == len(live):
        problem = f"the quiet hours, {hours}, swallow every timing"
        yield Finding("fault", "guardrails.quiet_from", problem, "shorten them, or choose other clock times")
        return
    for t in night:
        problem = f"is never allowed: it lies in the quiet hours, {hours}"
        yield Finding("fault", f"timings[{t.name}].clock", problem, "choose a time outside of them")


def quiet(rules: Guardrails, minute: int) -> bool:
    """Whether a minute of the day lies in the quiet hours."""
    start, end = rules.quiet_from, rules.quiet_until
    return start <= minute < end if start <= end else minute >= start or minute < end


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _rules(p: Program, highest: Mapping[str, float]) -> Iterator[Finding]:
    incentives, tones = {i.name: i for i in p.incentives}, {t.name: t for t in p.tones}
    gone = {("incentive", i.name) for i in p.incentives if i.retired} | {("tone", t.name) for t in p.tones if t.retired}
    gone |= {("timing", t.name) for t in p.timings if t.retired}
    for at, rule in enumerate(p.rules):
        retired = [x for x in gone if getattr(rule, x[0]) == x[1]]
        for factor, name in retired:
            problem = f"{name!r} is retired"
            yield Finding("fault", f"rules[{at}].{factor}", problem, "name another, or remove the rule")
        incentive, tone = incentives.get(rule.incentive), tones.get(rule.tone)
        if retired or incentive is None or tone is None:
            continue
        shut = [s for s in rule.stages if not open_in(incentive, s) or not open_in(tone, s)]
        short = [s for s, most in highest.items() if open_in(incentive, s) and most < incentive.min_momentum]
        if len(short) < len([s for s in highest if open_in(incentive, s)]):  # else it is named at the incentive
            shut += [s for s in rule.stages if s in short and s not in shut]
        if shut:
            problem = f"can never apply in {', '.join(shut)}"
            yield Finding("warning", f"rules[{at}].stages", problem, "remove the stage, or open the nudge to it")
        if (first := _shadow(p, at, incentives)) is not None:
            problem = f"is never reached: rules[{first}] always applies before it"
            yield Finding("warning", f"rules[{at}]", problem, "move it up, or give the earlier one a where")


def _shadow(p: Program, at: int, incentives: Mapping[str, Incentive]) -> int | None:
    """Return an earlier rule that applies whenever this one could, for each of its stages; None if there is none."""
    rule = p.rules[at]
    for first, other in enumerate(p.rules[:at]):
        same = other.timing == rule.timing and not other.where and set(rule.stages) <= set(other.stages)
        incentive = incentives.get(other.incentive)
        if same and incentive is not None and _always(p, incentive, other):
            return first
    return None


def _always(p: Program, i: Incentive, rule: Rule) -> bool:
    """Whether nothing but what blocks every nudge can block this incentive in the stages of a rule."""
    tone = next((t for t in p.tones if t.name == rule.tone), None)
    gates = (i.min_momentum, i.barred_segments, i.promotional, i.scarce, i.ladder, i.comeback_after)
    paid = (i.cost and p.guardrails.budget) or i.stock is not None or i.kind in p.guardrails.cap_per_week_by_kind
    here = tone is not None and not tone.barred_segments and all(open_in(tone, s) for s in rule.stages)
    return bool(here and not paid and not any(gates) and all(open_in(i, s) for s in rule.stages))


def limits(program: Program) -> Iterator[Finding]:
    """Yield guardrails that contradict one another, or that have nothing to guard."""
    yield from _caps(program.guardrails)
    yield from _narrower_caps(program)
    yield from _money(program)
    yield from _pauses(program)
    yield from _rhythm(program.guardrails)
    for ladder in sorted({i.ladder for i in program.incentives if i.ladder and not i.retired}):
        yield from _ladder(program, ladder)
    if not program.experiment.holdout:
        problem = "nobody is held out, so nobody will know what the program adds"
        yield Finding("note", "experiment.holdout", problem, "use 0.05 or more")


def _caps(g: Guardrails) -> Iterator[Finding]:
    for key, cap in (("cap_per_day", g.cap_per_day), ("cap_per_week", g.cap_per_week)):
        if cap == 0:
            yield Finding("fault", f"guardrails.{key}", "allows no nudge at all", "use 1 or more")
            return
    if g.cap_per_week > 7 * g.cap_per_day:
        most = 7 * g.cap_per_day
        problem = f"can never be reached: {g.cap_per_day} a day make {most} a week"
        yield Finding("warning", "guardrails.cap_per_week", problem, f"use at most {most}")
        return
    gap = g.cooldown if g.cadence is None else max(g.cooldown, g.cadence.every - g.cadence.within)
    awake = DAY - 60.0 * ((g.quiet_until - g.quiet_from) % 1440)
    if awake < 3600:
        problem = f"leave {awake / 60:g} minutes a day"
        yield Finding("warning", "guardrails.quiet_from", f"the quiet hours {problem}", "shorten them")
    for key, cap, span in (("cap_per_week", g.cap_per_week, WEEK), ("cap_per_day", g.cap_per_day, awake)):
        if gap and (cap - 1) * gap >= span:
            most = int(np.ceil(span / gap))
            which = "cooldown" if gap == g.cooldown else "cadence"
            problem = f"of {gap / 3600:g} hours makes {key} = {cap} unreachable: at most {most} fit"
            mend = f"shorten it to less than {span / (cap - 1) / 3600:g} hours, or set {key} = {most}"
            yield Finding("warning", f"guardrails.{which}", problem, mend)


def _narrower_caps(p: Program) -> Iterator[Finding]:
    g = p.guardrails
    caps = {"scarce_per_week": g.scarce_per_week}
    caps |= {f"cap_per_week_by_kind.{kind}": cap for kind, cap in g.cap_per_week_by_kind.items()}
    for key, cap in caps.items():
        if cap > g.cap_per_week > 0:
            problem = f"allows {cap}, more than the {g.cap_per_week} that cap_per_week allows of all nudges"
            yield Finding("warning", f"guardrails.{key}", problem, f"use at most {g.cap_per_week}")


def _money(p: Program) -> Iterator[Finding]:
    if p.guardrails.budget is None:
        paid = [i.name for i in p.incentives if i.cost and not i.retired]
        if paid:
            problem = f"is missing, and {', '.join(paid)} cost money"
            yield Finding("warning", "guardrails.budget", problem, 'add budget = { amount = 500, period = "1w" }')


def _pauses(p: Program) -> Iterator[Finding]:
    pausing = [e for e in p.events if e.pauses_promotion is not None]
    promotional = [i.name for i in p.incentives if i.promotional and not i.retired]
    if promotional and not pausing:
        problem = f"none pauses promotion, and {', '.join(promotional)} would follow a complaint"
        yield Finding("warning", "events", problem, 'give a complaint pauses_promotion = "14d"')
    for e in pausing:
        if not promotional:
            key = f"events[{e.name}].pauses_promotion"
            yield Finding("warning", key, "pauses nothing: no incentive is promotional", "mark those that are")


def _rhythm(g: Guardrails) -> Iterator[Finding]:
    if g.ladder.memory <= max(g.ladder.waits, g.cooldown):
        problem = "is forgotten before a larger reward may follow, so none ever may"
        yield Finding("fault", "guardrails.ladder.memory", problem, "make it longer than waits and cooldown")
    if g.cadence is not None and g.cadence.within * 2 >= g.cadence.every:
        problem = "is half of every or more, so every moment is in the rhythm"
        yield Finding("warning", "guardrails.cadence.within", problem, "use less than half of every")


def _ladder(p: Program, ladder: str) -> Iterator[Finding]:
    rungs = sorted((i for i in p.incentives if i.ladder == ladder and not i.retired), key=lambda i: i.tier)
    if len({i.tier for i in rungs}) < 2:
        key = f"incentives[{rungs[0].name}].ladder"
        yield Finding("warning", key, f"the ladder {ladder!r} has one rung", "add a larger or smaller reward to it")
    for small, large in pairwise(rungs):
        key = f"incentives[{large.name}]"
        if large.tier > small.tier + 1:
            problem = f"leaves a gap on the ladder {ladder!r}: {small.name} below it is tier {small.tier}"
            yield Finding("warning", f"{key}.tier", problem, f"use {small.tier + 1}")
        if large.tier > small.tier and large.cost < small.cost:
            problem = f"costs {small.cost:g}, more than {large.name} above it with {large.cost:g}"
            yield Finding("warning", f"incentives[{small.name}].cost", problem, "exchange their tiers or mend a cost")
        apart = bool(small.stages and large.stages and not set(small.stages) & set(large.stages))
        if large.tier > small.tier and apart:
            problem = f"shares no stage with {small.name}, the rung below, which has to be tried first"
            yield Finding("warning", f"{key}.stages", problem, "add a stage of the rung below")
