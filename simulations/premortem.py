"""What would break this program, how soon, for whom, and which guardrail would have caught it? Before customers do.

A policy learns while all is well. Then trouble comes: the same customers, under the same chance, live on in a world
that is hostile in one way. What differs from the calm course is what the trouble did; each guardrail that might catch
it is tightened in turn, the trouble is lived again, and what that saves is measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace as replaced

from optimizer.actions import Floats
from optimizer.program import DAY, Budget, Duration, Experiment, Guardrails, Program
from policies.fixed import Uniform
from simulations import metrics as measured
from simulations.contenders import contender, under
from simulations.log import History
from simulations.population import Population, populate
from simulations.rollout import Progress, Run, rollout, sole
from simulations.worlds import DEMO, World

START = 1_767_571_200.0
PAST = 14
LOOKS = (3, 7, 14, 21, 28, 42, 56, 90)
"""Days after which it is asked whether something is broken."""

SHOWN = 2
"""Guardrails that a terminal names, those that save most; page and data have all."""

SURE = 3.0
"""Standard errors, over customers, beyond which a difference is no chance: one false alarm in 700 looks."""


class Figure(NamedTuple):
    """What may break: a number a customer, whether more is worse, and how much of it is too much.

    `share` is of the calm course's figure, `least` absolute; both must be passed.
    """

    name: str
    worse: float
    share: float
    least: float


FIGURES = (
    Figure("reward", -1.0, 0.05, 0.0),
    Figure("macro-actions", -1.0, 0.1, 0.002),
    Figure("opted out", 1.0, 0.5, 0.01),
    Figure("cost", 1.0, 0.25, 0.01),
)


class Hazard(NamedTuple):
    """A kind of trouble: what happens, and the settings of the world from then on."""

    name: str
    title: str
    explains: str
    settings: Mapping[str, object]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A figure a customer, without and with the trouble."""

    name: str
    calm: float
    trouble: float


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """A guardrail that was tightened: what it saved of the damage, and whether that is at least half."""

    guardrail: str
    setting: str
    saved: float
    caught: bool
    says: str


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """What a kind of trouble did. `day` is the first look at which something was broken; None where nothing was."""

    hazard: str
    title: str
    explains: str
    broken: bool
    day: int | None
    figure: str
    damage: float
    severity: float
    says: str
    whom: str
    figures: list[Line]
    remedies: list[Remedy]


class Premortem(msgspec.Struct, frozen=True, kw_only=True):
    """A program in every kind of trouble, what breaks first first."""

    program: str
    program_title: str
    program_version: str
    policy: str
    customers: int
    days: int
    replications: int
    seed: int
    hazards: list[Broken]


def hazards(*, day: int) -> tuple[Hazard, ...]:
    """Return the kinds of trouble, those that come at a moment a week after a day."""
    then = day + 7
    return (
        Hazard("fatigue", "Customers tire", "Every nudge wears out the next ones, and the tired leave.",
               {"decay": 0.92, "blunting": 0.3, "burden": 0.15, "leaving": 0.002,
                "leaving_growth": 0.6, "repetition": 0.6}),
        Hazard("harm", "Nudges put people off", "What helped before now annoys, and many opt out.",
               {"lift": -0.4, "goal_lift": -0.4, "burden": 0.1, "leaving": 0.004}),
        Hazard("drift", "Tastes turn", "A week in, tones do the opposite of what they did.",
               {"tone": 0.4, "affinity": 0.7, "drift_day": then}),
        Hazard("budget shock", "The budget is cut", "A week in, budgets are a tenth of what the program says.",
               {"budget_shock": (then, 0.1)}),
        Hazard("outage", "The service is down", "A week in, nothing can be decided for a week.", {"outage": (then, 7)}),
        Hazard("gaming", "Rewards are gamed",
               "A fifth of the customers go through the motions for what incentives give, and reach no goal.",
               {"gaming": 0.2}),
        Hazard("lost events", "Events get lost", "Half of what customers do is never reported.", {"lost": 0.5}),
        Hazard("late events", "Outcomes come late", "Most of what a nudge brings comes after a week.",
               {"delays": ((24.0, 0.2), (240.0, 0.8))}),
        Hazard("empty shelf", "An incentive goes", "A week in, the first incentive cannot be offered any more.",
               {"retirement_day": then}),
    )  # fmt: skip


def run(
    program: Program,
    *,
    policy: str = "thompson",
    customers: int,
    days: int,
    seed: int,
    replications: int = 1,
    world: World = DEMO,
    progress: Progress | None = None,
) -> Premortem:
    """Live every kind of trouble and return what it broke, what breaks first first.

    Args:
        program: as it would be served.
        policy: who decides, by a name of `contenders.NAMES`.
        customers: how many in each replication, 100 or more: fewer show nothing.
        days: for how long after the past; trouble that comes at a moment comes after a week, so 14 or more.
        seed: of the first replication. replications: how often.
        world: the calm one.
        progress: told of the kinds of trouble done.

    Raises:
        ValueError: for too few customers or days, or a policy that there is not.
    """
    for key, given, least in (("customers", customers, 100), ("days", days, 14), ("replications", replications, 1)):
        if given < least:
            raise ValueError(f"{key} = {given!r} shows nothing of trouble: use at least {least}")
    contender(policy)
    tried = replaced(program, experiment=Experiment())
    past_days = PAST + round(program.evaluation_horizon / DAY)
    known = hazards(day=past_days)
    stories = [
        _Story(tried, world, policy, customers=customers, days=days, past=past_days, seed=seed + i)
        for i in range(replications)
    ]
    found = []
    for done, hazard in enumerate(known):
        if progress:
            progress("pre-mortem", done, len(known))
        found.append(_broken(hazard, stories))
    if progress:
        progress("pre-mortem", len(known), len(known))
    return Premortem(
        program=program.name,
        program_title=program.title,
        program_version=program.version,
        policy=policy,
        customers=customers,
        days=days,
        replications=replications,
        seed=seed,
        hazards=sorted(found, key=lambda h: (not h.broken, h.day or 0, -h.severity)),
    )


class _Story:
    """A population that was calm, learned from, and can go on in any world."""

    def __init__(
        self, program: Program, world: World, policy: str, *, customers: int, days: int, past: int, seed: int
    ) -> None:
        self.program = world.program(program, customers=customers)
        self.world, self.policy, self.days, self.seed, self.customers = world, policy, days, seed, customers
        population = populate(self.program, world, customers=customers, seed=seed, start=START)
        self.past = rollout(population, sole(Uniform(self.program.space)), days=past)
        self.calm = self.live(self.past)

    def live(self, past: Run) -> History:
        return contender(self.policy).play(past, self.days).history

    def troubled(self, hazard: Hazard, **rules: object) -> History:
        """Return how it goes on in trouble, with some guardrails changed from then on."""
        hostile = replace(self.world, name=hazard.name, **hazard.settings)  # type: ignore[arg-type]  # a world's
        population = populate(self.program, hostile, customers=self.customers, seed=self.seed, start=START)
        past = _in(self.past, population)
        if rules:
            past = under(past, guardrails=replaced(self.program.guardrails, **rules))
        return self.live(past)


def _in(past: Run, population: Population) -> Run:
    """Return a past whose customers find themselves in another world from here on."""
    shelf = population.purse()
    left = replace(past.left, gone=shelf.gone, cuts=shelf.cuts)
    return replace(past, history=past.history._replace(population=population), left=left)


def _figure(history: History, name: str) -> Floats:
    """Shape (n,): a figure of each customer."""
    if name == "reward":
        return measured.earned(history)
    if name == "macro-actions":
        return measured.macro(history).astype(np.float64)
    if name == "opted out":
        return measured.left(history).astype(np.float64)
    return np.asarray(history.population.program.space.action_costs[history.actions].sum(axis=0))


class _Damage(NamedTuple):
    """A figure that got worse: by how much a customer, in multiples of what is too much; and who lost how much."""

    figure: Figure
    calm: float
    damage: float
    severity: float
    by_customer: Floats


def _worst(calm: Sequence[History], trouble: Sequence[History]) -> _Damage | None:
    """Return the figure that is most broken; None where none is."""
    found = []
    for figure in FIGURES:
        before = np.concatenate([_figure(h, figure.name) for h in calm])
        after = np.concatenate([_figure(h, figure.name) for h in trouble])
        worse = figure.worse * (after - before)
        limit = max(figure.share * abs(float(before.mean())), figure.least)
        error = float(worse.std(ddof=1)) / np.sqrt(len(worse))
        damage = float(worse.mean())
        if damage > limit and damage > SURE * error:
            found.append(_Damage(figure, float(before.mean()), damage, damage / limit, worse))
    return max(found, key=lambda d: d.severity, default=None)


def _broken(hazard: Hazard, stories: Sequence[_Story]) -> Broken:
    calm, trouble = [s.calm for s in stories], [s.troubled(hazard) for s in stories]
    worst = _worst(calm, trouble)
    return Broken(
        hazard=hazard.name,
        title=hazard.title,
        explains=hazard.explains,
        broken=worst is not None,
        day=_first_day(calm, trouble) if worst else None,
        figure=worst.figure.name if worst else "",
        damage=worst.damage if worst else 0.0,
        severity=worst.severity if worst else 0.0,
        says=_says(worst, day=_first_day(calm, trouble)) if worst else "Nothing breaks beyond what is allowed.",
        whom=_whom(stories, worst) if worst else "",
        figures=[_line(figure, calm, trouble) for figure in FIGURES],
        remedies=_remedies(hazard, stories, worst, calm=calm) if worst else [],
    )


def _line(figure: Figure, calm: Sequence[History], trouble: Sequence[History]) -> Line:
    def mean(histories: Sequence[History]) -> float:
        return float(np.concatenate([_figure(h, figure.name) for h in histories]).mean())

    return Line(name=figure.name, calm=mean(calm), trouble=mean(trouble))


def _first_day(calm: Sequence[History], trouble: Sequence[History]) -> int:
    days = len(calm[0].actions)
    for look in (*(d for d in LOOKS if d < days), days):
        if _worst([h.start(look) for h in calm], [h.start(look) for h in trouble]) is not None:
            return look
    return days


def _says(worst: _Damage, *, day: int) -> str:
    after = worst.calm + worst.figure.worse * worst.damage
    if worst.figure.name in ("opted out", "macro-actions"):
        before, now = f"{100 * worst.calm:.1f} %", f"{100 * after:.1f} %"
    else:
        before, now = f"{worst.calm:.2f}", f"{after:.2f}"
    names = {"reward": "Reward a customer", "macro-actions": "Customers with a macro-action", "opted out": "Opt-outs",
             "cost": "Cost a customer"}  # fmt: skip
    return f"By day {day}: {names[worst.figure.name]}, {before} without it, {now} with it at the end."


def _whom(stories: Sequence[_Story], worst: _Damage) -> str:
    """Name the segment, of attributes and stages at the start, that is hurt most; empty if it could be chance."""
    people = [s.past.population for s in stories]
    total, best_z, named = worst.by_customer, SURE, ""
    for name, rows in _groups(stories, people):
        if 30 <= rows.sum() < len(rows) - 30:
            gap = float(total[rows].mean() - total[~rows].mean())
            error = float(np.sqrt(total[rows].var() / rows.sum() + total[~rows].var() / (~rows).sum()))
            if error and gap / error > best_z:
                best_z = gap / error
                named = f"{name} ({total[rows].mean() / max(worst.damage, 1e-12):.1f} times the average damage)"
    return named or "nobody in particular: every segment alike"


def _groups(stories: Sequence[_Story], people: Sequence[Population]) -> Iterator[tuple[str, np.ndarray]]:
    program = people[0].program
    for attribute in program.attributes:
        for code, segment in enumerate(attribute.categories):
            rows = [p.people.attributes[attribute.name] == code for p in people]
            yield f"{attribute.name} = {segment}", np.concatenate(rows)
    for i, stage in enumerate(program.stages):
        yield f"stage {stage.title}", np.concatenate([s.calm.stages[0] == i for s in stories])


def _remedies(hazard: Hazard, stories: Sequence[_Story], worst: _Damage, *, calm: Sequence[History]) -> list[Remedy]:
    """Tighten one guardrail after the other, live the trouble again, and say what each saved."""
    before = float(np.concatenate([_figure(h, worst.figure.name) for h in calm]).mean())
    found = []
    for name, setting, rules in _tightened(stories[0]):
        again = [s.troubled(hazard, **rules) for s in stories]
        after = float(np.concatenate([_figure(h, worst.figure.name) for h in again]).mean())
        saved = 1.0 - worst.figure.worse * (after - before) / worst.damage
        caught = saved >= 0.5
        found.append(
            Remedy(
                guardrail=name,
                setting=setting,
                saved=saved,
                caught=caught,
                says=f"{setting} would have saved {100 * min(saved, 1.0):.0f} % of the damage."
                if saved > 0
                else f"{setting} would not have helped.",
            )
        )
    return sorted(found, key=lambda r: -r.saved)


def _tightened(story: _Story) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Each guardrail that can be tightened: its name, what to write, and the change."""
    rules: Guardrails = story.program.guardrails
    if (cap := max(1, rules.cap_per_week // 2)) < rules.cap_per_week:
        yield "cap_per_week", f"cap_per_week = {cap}", {"cap_per_week": cap}
    hours = max(48, round(rules.cooldown / 3_600 * 3))
    yield "cooldown", f'cooldown = "{hours}h"', {"cooldown": Duration(hours * 3_600.0)}
    reward = abs(float(story.past.rounds.rewards.mean()))
    price = round(max(4.0 * rules.burden_price, 0.5 * reward), 2)
    yield "burden_price", f"burden_price = {price:g}", {"burden_price": price}
    spent = float(story.calm.population.program.space.action_costs[story.calm.actions].sum()) / story.days * 7.0
    if spent > 0:
        amount = round(min(spent, rules.budget.amount if rules.budget else np.inf) * 0.5, 2)
        yield "budget", f'budget = {{ amount = {amount:g}, period = "1w" }}', {"budget": Budget(amount=amount)}
    kinds = sorted({i.kind for i in story.program.incentives if i.cost})
    if kinds:
        caps: dict[str, int] = rules.cap_per_week_by_kind | {str(kind): 0 for kind in kinds}
        words = ", ".join(f"{k} = 0" for k in kinds)
        yield "cap_per_week_by_kind", f"cap_per_week_by_kind = {{ {words} }}", {"cap_per_week_by_kind": caps}


def table(found: Premortem) -> list[dict[str, object]]:
    """Return a pre-mortem as rows for a terminal."""
    return [
        {
            "trouble": h.title,
            "breaks_by_day": h.day if h.broken else "-",
            "what": h.says if h.broken else "-",
            "whom": h.whom or "-",
            "caught_by": ", ".join(
                f"{r.setting} ({100 * min(r.saved, 1.0):.0f} %)" for r in [r for r in h.remedies if r.caught][:SHOWN]
            )
            or ("no guardrail that was tried" if h.broken else "-"),
        }
        for h in found.hazards
    ]


def figures(found: Premortem) -> dict[str, float]:
    """Return a pre-mortem as metrics by name."""
    return {f"premortem/{h.hazard.replace(' ', '_')}/severity": h.severity for h in found.hazards}
