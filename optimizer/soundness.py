"""What of a program can never happen, or never end? Stages and levels, each against all the others."""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from optimizer.actions import Floats
from optimizer.program import DAY, LAPSE, Event, Guardrails, Incentive, Program, Rule, Stage, Tone

Severity = Literal["fault", "warning", "note"]
LONG = 3_650
"""Days after which nobody waits for anything any more."""


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
    yield from _circles(program)
    yield from _values(program)
    yield from _milestones(program)
    for s in program.stages:
        yield from _expectations(program, s)
    hoped = {name for s in program.stages for name, share in s.expects.items() if share}
    if hoped and program.goal in program.event_index and program.goal not in hoped:
        mend = f"say in the expects of a stage how often {program.goal} happens there on a day"
        yield Finding("warning", "stages.expects", f"no stage expects the goal, {program.goal}", mend)


def _circles(p: Program) -> Iterator[Finding]:
    """Yield lapses that lead back to where they began: an idle customer would go round and round."""
    lapses = {s.name: s.lapses_to for s in p.stages if s.lapses_to in p.stage_index and s.lapses_to != s.name}
    named: set[str] = set()
    for start, to in lapses.items():
        way, at = [start], to
        while at in lapses and at not in way:
            way.append(at)
            at = lapses[at]
        if at == start and start not in named:
            named |= set(way)
            problem = f"lapses in a circle: {', '.join([*way, start])}"
            yield Finding("fault", f"stages[{start}].lapses_to", problem, "let one of them end it, without lapses_to")


def _milestones(p: Program) -> Iterator[Finding]:
    earlier: dict[tuple[object, ...], str] = {}
    for m in p.milestones:
        key = f"milestones[{m.name}]"
        event = p.event(m.event or "")
        if event is not None and event.kind == "signal":
            problem = f"rewards {event.name}, which is a signal and no step"
            yield Finding("warning", f"{key}.event", problem, "name a micro- or macro-action")
        what = "count" if m.count else "streak" if m.streak else "after"
        if m.of > LONG:
            problem = f"takes {m.of} days at a step a day, or more"
            yield Finding("warning", f"{key}.{what}", problem, "use what a customer can live to see")
        same = (m.event, m.count, m.streak, tuple(sorted(m.streak_of)), m.after)
        if same in earlier:
            yield Finding("warning", key, f"is reached with {earlier[same]}", "ask for more, or remove one of them")
        earlier.setdefault(same, m.name)


def _values(p: Program) -> Iterator[Finding]:
    goal = p.event(p.goal)
    worth = goal.value if goal is not None and goal.kind == "macro" else np.inf
    if worth <= 0:
        mend = "say what reaching the goal is worth"
        yield Finding("fault", f"events[{p.goal}].value", f"the goal is worth {worth:g}", mend)
    for e in p.events:
        if e.kind == "macro" and e.value <= 0 and (e is not goal):
            mend = 'say what it is worth, or make it a kind = "micro"'
            yield Finding("warning", f"events[{e.name}].value", f"a macro-action is worth {e.value:g}", mend)
        if e.kind == "micro" and e.value < 0:
            problem = f"a small step forward is worth {e.value:g}"
            yield Finding("warning", f"events[{e.name}].value", problem, 'use 0 or more, or make it a kind = "signal"')
        sad = e.name == "opt_out" or (e.pauses_promotion is not None and e.pauses_below is None)
        if sad and e.value > 0:
            problem = f"is worth {e.value:g}, so a policy would seek it"
            yield Finding("fault", f"events[{e.name}].value", problem, "use a negative value, or 0")
        if e.kind == "micro" and not e.scaled and e.value >= worth > 0:
            mend = f"use less than the goal's {worth:g}"
            yield Finding("warning", f"events[{e.name}].value", "a small step is worth as much as the goal", mend)


def _expectations(p: Program, stage: Stage) -> Iterator[Finding]:
    key = f"stages[{stage.name}].expects"
    known = (*p.event_index, *([LAPSE] if stage.lapses_to else []))
    for name in stage.expects:
        if name not in known:
            yield Finding("fault", key, f"{name!r} is not declared", f"use one of {', '.join(known)}")
    for name in (name for name, share in stage.expects.items() if not share):
        yield Finding("warning", key, f"{name!r} is expected never to happen: 0", "say how often, or leave it out")
    moving = {e.name for e in p.events if e.moves.get(stage.name, stage.name) != stage.name} | {LAPSE}
    if (total := sum(share for name, share in stage.expects.items() if name in moving)) > 1:
        problem = f"more than everybody leaves on a day: the events that move add up to {total:g}"
        yield Finding("fault", key, problem, "use at most 1 in all")


def levels(program: Program) -> Iterator[Finding]:
    """Yield levels, and nudges of rules, that no customer can ever get."""
    yield from _attributes(program)
    yield from _leaks(program)
    for t in program.tones:
        if not t.retired and not any(_meet(i, t, program) for i in program.incentives):
            problem = "is never allowed: no incentive shares a stage with it"
            mend = "give it a stage in which there is something to say"
            yield Finding("fault", f"tones[{t.name}].stages", problem, mend)
    for key, rows in (("incentives", program.incentives), ("tones", program.tones)):
        for row in (row for row in rows if not row.retired):
            yield from _barred(program, f"{key}[{row.name}].barred_segments", row)
    highest = dict(zip(program.stage_index, highest_momentum(program).tolist(), strict=True))
    for i in program.incentives:
        if not i.retired:
            yield from _never(program, i)
            here = {s: m for s, m in highest.items() if open_in(i, s)}
            yield from _too_eager(i, here, half_life=program.momentum_half_life)
    yield from _timings(program)
    yield from _rules(program, highest)


def _attributes(p: Program) -> Iterator[Finding]:
    if not p.attributes:
        problem = "nothing tells one customer from another, so nothing can be relevant to one"
        yield Finding("warning", "attributes", problem, "declare what your app knows, such as a channel or a plan")
    for a in p.attributes:
        if a.kind == "category" and len(a.categories) == 1:
            problem = f"has {a.categories[0]!r} alone, which tells nobody apart"
            yield Finding("warning", f"attributes[{a.name}].categories", problem, "add another, or make it a flag")


def _leaks(p: Program) -> Iterator[Finding]:
    """Yield stages in which nothing may be offered, or said: to anybody, or to some."""
    for s in (s for s in p.stages if s.name in reachable(p)):
        said, told = (any(open_in(x, s.name) for x in rows) for rows in (p.incentives, p.tones))
        if said and told:
            yield from _spared(p, s)
            continue
        problem = f"is a leak: no {'tone' if said else 'incentive'} is allowed in it"
        yield Finding("fault", f"stages[{s.name}]", problem, f'add "{s.name}" to the stages of one')


def _meet(incentive: Incentive, tone: Tone, program: Program) -> bool:
    return any(open_in(incentive, s.name) and open_in(tone, s.name) for s in program.stages)


def _never(p: Program, i: Incentive) -> Iterator[Finding]:
    key, rules = f"incentives[{i.name}]", p.guardrails
    if i.stages and not i.retired and p.tones and not any(_meet(i, t, p) for t in p.tones):
        mend = "add a stage, or give a tone one of its stages"
        yield Finding("fault", f"{key}.stages", "is never allowed: no tone shares a stage with it", mend)
    if i.cost and not i.minor_cost:
        problem = f"is {i.cost:g}, less than the hundredth that money is counted in, so it is free"
        yield Finding("warning", f"{key}.cost", problem, "use 0.01 or more, or leave it out")
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
    if i.off_beat and rules.cadence is None:
        mend = 'add cadence = { every = "2d" } to the guardrails, or leave it out'
        yield Finding("warning", f"{key}.off_beat", "there is no cadence that it could be off", mend)


def _barred(p: Program, key: str, level: Incentive | Tone) -> Iterator[Finding]:
    for name, barred in level.barred_segments.items():
        declared = next((a.categories for a in p.attributes if a.name == name), ())
        if declared and set(declared) <= set(barred):
            problem = f"bars every category of {name}"
            yield Finding("warning", key, problem, "leave out one, or mark it as retired")


def _spared(p: Program, stage: Stage) -> Iterator[Finding]:
    """Yield categories of customers to whom nothing can be offered, or nothing said, in a stage."""
    for what, rows in (("incentive", p.incentives), ("tone", p.tones)):
        here = [row for row in rows if open_in(row, stage.name)]
        for a in p.attributes:
            for c in a.categories:
                if all(c in row.barred_segments.get(a.name, ()) for row in here):
                    problem = f"is a leak for {a.name} = {c}: every {what} in it is barred for them"
                    yield Finding("warning", f"stages[{stage.name}]", problem, f"open one {what} to them")


def _too_eager(i: Incentive, highest: Mapping[str, float], *, half_life: float) -> Iterator[Finding]:
    """Yield a min_momentum that a step a day does not reach: anywhere, or in one of the incentive's stages.

    Momentum is 1 - 2^-m, and m halves every half-life without a step, which a comeback takes.
    """
    idle = float(i.comeback_after or 0.0) / half_life
    short = [s for s, most in highest.items() if most < i.min_momentum]
    left = 1.0 - (1.0 - max(highest.values(), default=0.0)) ** 2.0**-idle
    if not short and left < i.min_momentum:
        problem = f"is never allowed: after comeback_after a momentum of {left:.2f} is left at most, not"
        mend = f"use at most {int(left * 100) / 100:g}, or leave it out"
        yield Finding("fault", f"incentives[{i.name}].min_momentum", f"{problem} {i.min_momentum:g}", mend)
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
    if not live:
        yield Finding("fault", "timings", "are all retired, so no nudge can come", "leave one in use")
    seen: dict[tuple[float | None, int | None], str] = {}
    for t in live:
        when = (t.delay, t.clock)
        if when in seen:
            problem = f"arrives when {seen[when]} does, so nothing can be learned from choosing"
            yield Finding("warning", f"timings[{t.name}]", problem, "choose another time, or mark it as retired")
        seen.setdefault(when, t.name)
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
