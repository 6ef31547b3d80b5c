"""Do the limits of a program contradict one another, guard nothing, or make no sense?"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from optimizer.program import DAY, Event, Guardrails, Program
from optimizer.soundness import Finding

WEEK = 7 * DAY

SCORES = {"csat": (1, 5), "nps": (0, 10)}
"""The scores that surveys give, by a word in their name."""


def limits(program: Program) -> Iterator[Finding]:
    """Yield guardrails that contradict one another, or that have nothing to guard."""
    yield from _caps(program.guardrails)
    yield from _narrower_caps(program)
    yield from _money(program)
    yield from _pauses(program)
    yield from _rhythm(program.guardrails)
    yield from _spans(program)
    for ladder in sorted({i.ladder for i in program.incentives if i.ladder and not i.retired}):
        yield from _ladder(program, ladder)
    if not program.experiment.holdout:
        problem = "nobody is held out, so nobody will know what the program adds"
        yield Finding("note", "experiment.holdout", problem, "use 0.05 or more")


def _caps(g: Guardrails) -> Iterator[Finding]:
    for key, cap in (("cap_per_day", g.cap_per_day), ("cap_per_week", g.cap_per_week)):
        if cap == 0:
            yield Finding("fault", f"guardrails.{key}", "allows no nudge at all", "use 1 or more")
    if g.cap_per_day > g.cap_per_week > 0:
        problem = f"can never be reached: cap_per_week allows {g.cap_per_week} in all"
        yield Finding("warning", "guardrails.cap_per_day", problem, f"use at most {g.cap_per_week}")
    if g.cap_per_day > 1 and not g.cooldown and g.cadence is None:
        problem = f"is nothing, so {g.cap_per_day} nudges may come at the same moment"
        yield Finding("warning", "guardrails.cooldown", problem, 'keep two apart, such as "3h"')
    if g.cap_per_week > 7 * g.cap_per_day > 0:
        most = 7 * g.cap_per_day
        problem = f"can never be reached: {g.cap_per_day} a day make {most} a week"
        yield Finding("warning", "guardrails.cap_per_week", problem, f"use at most {most}")
    yield from _gaps(g)


def _gaps(g: Guardrails) -> Iterator[Finding]:
    """Yield a night that leaves no day, or is none, and gaps between nudges that leave no room for the caps."""
    awake = DAY - 60.0 * ((g.quiet_until - g.quiet_from) % 1440)
    if g.quiet_from == g.quiet_until != 0:
        problem = "is when they end, so there are no quiet hours, and a nudge may come at night"
        yield Finding("warning", "guardrails.quiet_from", problem, 'let people sleep, such as from "21:00" to "08:00"')
    if awake < 3600:
        problem = f"leave {awake / 60:g} minutes a day"
        yield Finding("warning", "guardrails.quiet_from", f"the quiet hours {problem}", "shorten them")
    gap = g.cooldown if g.cadence is None else max(g.cooldown, g.cadence.every - g.cadence.within)
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
    for i in p.incentives:
        if i.kind == "monetary" and not i.cost and not i.retired:
            problem = "is missing or 0, and money is given: no budget would hold it"
            yield Finding("warning", f"incentives[{i.name}].cost", problem, "say what showing it once costs on average")
    if p.guardrails.budget is None:
        paid = [i.name for i in p.incentives if i.cost and not i.retired]
        if paid:
            problem = f"is missing, and {', '.join(paid)} cost money"
            yield Finding("warning", "guardrails.budget", problem, 'add budget = { amount = 500, period = "1w" }')
    elif not any(i.cost and not i.retired for i in p.incentives):
        problem = "has nothing to pay for: no incentive in use has a cost"
        yield Finding("warning", "guardrails.budget", problem, "say what an incentive costs, or leave the budget out")


def _pauses(p: Program) -> Iterator[Finding]:
    pausing = [e for e in p.events if e.pauses_promotion is not None]
    promotional = [i.name for i in p.incentives if i.promotional and not i.retired]
    if promotional and not pausing:
        problem = f"none pauses promotion, and {', '.join(promotional)} would follow a complaint"
        yield Finding("warning", "events", problem, 'give a complaint pauses_promotion = "14d"')
    for i in p.incentives:
        if i.kind == "monetary" and not i.promotional and not i.retired:
            problem = "is monetary and not promotional, so it would follow a complaint"
            yield Finding("warning", f"incentives[{i.name}].promotional", problem, "add promotional = true")
    for e in pausing:
        yield from _threshold(e)
        if not promotional:
            key = f"events[{e.name}].pauses_promotion"
            yield Finding("warning", key, "pauses nothing: no incentive is promotional", "mark those that are")


def _threshold(e: Event) -> Iterator[Finding]:
    """Yield a pauses_below that every score of a survey is below, or none."""
    scale = next((ends for word, ends in SCORES.items() if word in e.name), None)
    if e.pauses_below is None or scale is None:
        return
    (least, most), key = scale, f"events[{e.name}].pauses_below"
    if e.pauses_below > most:
        problem = f"of {e.pauses_below:g} pauses promotion after every answer: scores go up to {most}"
        yield Finding("warning", key, problem, f"use {least + 1} to {most}")
    if e.pauses_below <= least:
        problem = f"of {e.pauses_below:g} never pauses promotion: scores start at {least}"
        yield Finding("warning", key, problem, f"use {least + 1} to {most}")


def _spans(p: Program) -> Iterator[Finding]:
    """Yield times that are declared, and that no journey is measured in."""
    for key in ("momentum_half_life", "dosage_half_life"):
        half = getattr(p, key)
        if not 3600.0 <= half <= 365 * DAY:
            problem = f"is {half / DAY:g} days, so it is always gone at once, or never"
            yield Finding("warning", key, problem, 'use some days, such as "3d"')
    if p.evaluation_horizon > 90 * DAY:
        problem = f"is {p.evaluation_horizon / DAY:g} days: no policy can be judged before"
        yield Finding("warning", "evaluation_horizon", problem, f'use as little as "{p.matures_after / DAY:g}d"')
    if p.discount < 0.5:
        problem = f"makes what happens tomorrow worth {p.discount:.0%} of today, so that only today counts"
        yield Finding("warning", "discount", problem, "use 0.9 to 1: it is per day")


def _rhythm(g: Guardrails) -> Iterator[Finding]:
    if g.ladder.memory <= max(g.ladder.waits, g.cooldown):
        problem = "is forgotten before a larger reward may follow, so none ever may"
        yield Finding("fault", "guardrails.ladder.memory", problem, "make it longer than waits and cooldown")
    if g.cadence is not None and g.cadence.within * 2 >= g.cadence.every:
        problem = "is half of every or more, so every moment is in the rhythm"
        yield Finding("warning", "guardrails.cadence.within", problem, "use less than half of every")
    if g.cadence is not None and (g.cadence.hour_within or 0.0) >= DAY / 2:
        problem = "is half a day or more, so every hour is the customer's own"
        yield Finding("warning", "guardrails.cadence.hour_within", problem, 'use less, such as "3h"')


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
