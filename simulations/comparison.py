"""How do policies compare in a world? The same customers, the same chance, one policy at a time, and all of it again.

Every policy starts from the same past: some weeks of nudges at random. A replication is another population, with other
effects, under other chance; policies are paired within it, and intervals are over replications.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace as replaced
from scipy.special import expit, logit, stdtrit

from optimizer.actions import HOLD, Floats
from optimizer.program import DAY, Experiment, Program
from policies.fixed import Uniform
from simulations import metrics as measured
from simulations.contenders import Result, contender
from simulations.log import History
from simulations.moments import Moment, moments
from simulations.population import Population, populate
from simulations.rollout import Progress, Run, rollout, sole
from simulations.worlds import WORLDS, World, world_of

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

PAST = 14
"""Days at random that every policy starts from, besides the program's evaluation horizon."""

DEFAULT = ("hold", "fixed", "rules", "uniform", "thompson", "best")
"""Policies that are compared where none is named."""

YARDSTICKS = ("hold", "fixed", "clicks")
"""What the others are compared with, where they take part: no nudge, the best single nudge, greed for clicks."""

LEVEL = 0.95
FEWEST = 10


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over replications with a Student-t interval; no interval from a single one."""

    value: float
    low: float | None = None
    high: float | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy came to in a world, per customer, over the days after the past at random.

    `conversion` is the share who reached the goal, `macro` the share with any macro-action, `stages` the share that
    an event led on from each stage, `retention` the share active in the week before a day, `momentum` at the end,
    `regret` per decision against the best that was allowed, one step ahead (reward units).
    """

    reward: Spread
    conversion: Spread
    macro: Spread
    messages: Spread
    opted_out: Spread
    cost: Spread
    momentum: Spread
    regret: Spread
    retention: dict[str, Spread]
    stages: dict[str, Spread]


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """A policy beside a yardstick on the same customers: differences, and ratios of means."""

    yardstick: str
    reward: Spread
    messages: Spread
    opted_out: Spread
    reward_ratio: Spread
    messages_ratio: Spread
    conversion_ratio: Spread
    macro_ratio: Spread
    retention_ratio: dict[str, Spread]


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy came to in one segment: `gain` is its reward over no nudge on the same customers."""

    attribute: str
    segment: str
    customers: float
    messages: Spread
    conversion: Spread
    opted_out: Spread
    gain: Spread | None


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A policy in a world."""

    world: str
    policy: str
    measured: Measured
    against: list[Against]
    segments: list[Segment]


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """A world in which policies were compared, and how near it is to published trials, where that was asked."""

    world: str
    breaks: str
    policies: list[Compared]
    moments: list[Moment]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Policies in worlds, with what it takes to have it again."""

    program: str
    program_title: str
    program_version: str
    currency: str
    goal: str
    customers: int
    days: int
    past: int
    replications: int
    seed: int
    level: float
    stages: dict[str, str]
    worlds: list[Played]


class _One(NamedTuple):
    """A policy in one replication."""

    figures: dict[str, float]
    by_customer: Floats
    history: History


def run(
    program: Program,
    worlds: Sequence[str | World],
    *,
    policies: Sequence[str] = (),
    customers: int,
    days: int,
    seed: int,
    replications: int = 1,
    trials: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run each policy in each world, some times over, and return what came of it.

    Args:
        program: any program.
        worlds: names, or worlds; the first world where none is given.
        policies: names as `contenders.NAMES` has them, or folders of saved policies; `DEFAULT` where none is given.
        customers, days: how many, for how long after the past.
        seed: of the first replication; the others count up from it.
        replications: how often, with other customers and effects.
        trials: also run the published trials in each world.
        progress: told of the policies done.

    Raises:
        ValueError: for a world or a policy that there is not, or too few customers, days or replications.
    """
    named = [world_of(w) if isinstance(w, str) else w for w in worlds] or [next(iter(WORLDS.values()))]
    names = list(dict.fromkeys(policies or DEFAULT))
    for name in names:
        contender(name)
    for key, given, least in (("customers", customers, FEWEST), ("days", days, 1), ("replications", replications, 1)):
        if given < least:
            raise ValueError(f"{key} = {given!r}: simulate at least {least}")
    played = [
        _world(program, world, names, customers=customers, days=days, seeds=range(seed, seed + replications),
               trials=trials, progress=progress)
        for world in named
    ]  # fmt: skip
    return Comparison(
        program=program.name,
        program_title=program.title,
        program_version=program.version,
        currency=program.currency,
        goal=next(e.title or e.name for e in program.events if e.name == program.goal),
        customers=customers,
        days=days,
        past=_past_days(program),
        replications=replications,
        seed=seed,
        level=LEVEL,
        stages={s.name: s.title for s in program.stages},
        worlds=played,
    )


def _past_days(program: Program) -> int:
    return PAST + round(program.evaluation_horizon / DAY)


def _world(
    program: Program,
    world: World,
    names: Sequence[str],
    *,
    customers: int,
    days: int,
    seeds: range,
    trials: bool,
    progress: Progress | None,
) -> Played:
    funded = replaced(world.program(program, customers=customers), experiment=Experiment())
    found: dict[str, list[_One]] = {name: [] for name in names}
    total = len(seeds) * len(names)
    for done, seed in enumerate(seeds):
        population = populate(funded, world, customers=customers, seed=seed, start=START)
        past = rollout(population, sole(Uniform(funded.space)), days=_past_days(funded))
        for name in names:
            if progress:
                progress(f"{world.name}: policies", done * len(names) + names.index(name), total)
            found[name].append(_one(contender(name).play(past, days)))
    if progress:
        progress(f"{world.name}: policies", total, total)
    return Played(
        world=world.name,
        breaks=world.breaks,
        policies=[_compared(funded, world.name, name, found) for name in names],
        moments=moments(world, seed=seeds[0], progress=progress) if trials else [],
    )


def _one(result: Result) -> _One:
    history, program = result.history, result.history.population.program
    found, first = measured.metrics(history), history.first
    retained = [day for day in measured.RETENTION if 7 <= day <= len(history.actions)]
    on = dict(zip((s.name for s in program.stages), measured.advanced(history).tolist(), strict=True))
    figures = {
        "reward": found.reward,
        "conversion": found.converted,
        "macro": float(measured.macro(history).mean()),
        "messages": found.nudges,
        "opted_out": found.opted_out,
        "cost": found.cost,
        "momentum": float(measured.momentum(result.run.end, history).mean()),
        "regret": result.regret,
        **{f"day {day}": float(measured.active(history, first + day).mean()) for day in retained},
        **{f"stage {name}": share for name, share in on.items()},
    }
    return _One(figures, measured.earned(history), history)


def spread(values: Sequence[float] | Floats) -> Spread:
    """Return the mean of replications with its interval; those that say nothing (NaN) are left out.

    >>> spread([1.0, 3.0]).value, round(spread([1.0, 3.0]).high or 0, 1)
    (2.0, 14.7)
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return Spread(value=0.0)
    mean = float(kept.mean())
    if len(kept) == 1:
        return Spread(value=mean)
    reach = _reach(float(kept.std(ddof=1)), count=len(kept))
    return Spread(value=mean, low=mean - reach, high=mean + reach)


def share_spread(values: Sequence[float] | Floats, *, people: int) -> Spread:
    """Return the mean of shares over replications with an interval within 0 and 1: Student-t on the logit.

    Args:
        values: shares, one a replication; those that say nothing (NaN) are left out.
        people: in each replication: a share of none or of all is as good as half a customer.

    >>> few = share_spread([0.0, 0.02], people=100)
    >>> round(few.value, 4), 0.0 < few.low < few.value < few.high < 1.0
    (0.01, True)
    """
    plain = spread(values)
    if plain.low is None or plain.high is None:
        return plain
    least = 0.5 / people
    mean = min(max(plain.value, least), 1.0 - least)
    kept = int((~np.isnan(np.asarray(values, dtype=np.float64))).sum())
    chance = _reach(float(np.sqrt(mean * (1.0 - mean) / people)), count=kept) if plain.high == plain.low else 0.0
    reach = max((plain.high - plain.low) / 2.0, chance) / (mean * (1.0 - mean))
    low, high = expit(logit(mean) - reach), expit(logit(mean) + reach)
    return Spread(value=plain.value, low=min(float(low), plain.value), high=max(float(high), plain.value))


def ratio(ours: Sequence[float] | Floats, theirs: Sequence[float] | Floats) -> Spread:
    """Return the ratio of two means over paired replications, with its interval by linearisation.

    >>> ratio([2.0, 4.0], [1.0, 2.0]).value
    2.0
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if b.mean() == 0.0:
        return Spread(value=float("inf") if a.mean() > 0 else 1.0)
    value = float(a.mean() / b.mean())
    if len(a) == 1:
        return Spread(value=value)
    reach = _reach(float((a - value * b).std(ddof=1)) / abs(float(b.mean())), count=len(a))
    return Spread(value=value, low=value - reach, high=value + reach)


def _reach(sd: float, *, count: int) -> float:
    return float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * sd / float(np.sqrt(count))


def _compared(program: Program, world: str, name: str, found: Mapping[str, list[_One]]) -> Compared:
    ours = found[name]
    plain = ("reward", "messages", "cost", "regret")
    return Compared(
        world=world,
        policy=name,
        measured=Measured(
            **{key: _spread(ours, key) for key in plain},
            **{key: _share(ours, key) for key in ("conversion", "macro", "opted_out", "momentum")},
            retention={key: _share(ours, key) for key in ours[0].figures if key.startswith("day ")},
            stages={s.name: _share(ours, f"stage {s.name}") for s in program.stages},
        ),
        against=[_against(ours, found[y], name=y) for y in YARDSTICKS if y in found and y != name],
        segments=_segments(ours, found.get("hold") if name != "hold" else None),
    )


def _column(runs: Sequence[_One], key: str) -> Floats:
    return np.array([one.figures[key] for one in runs])


def _spread(runs: Sequence[_One], key: str) -> Spread:
    return spread(_column(runs, key))


def _share(runs: Sequence[_One], key: str) -> Spread:
    return share_spread(_column(runs, key), people=len(runs[0].by_customer))


def _against(ours: Sequence[_One], theirs: Sequence[_One], *, name: str) -> Against:
    def difference(key: str) -> Spread:
        return spread(_column(ours, key) - _column(theirs, key))

    def quotient(key: str) -> Spread:
        return ratio(_column(ours, key), _column(theirs, key))

    return Against(
        yardstick=name,
        reward=difference("reward"),
        messages=difference("messages"),
        opted_out=difference("opted_out"),
        reward_ratio=quotient("reward"),
        messages_ratio=quotient("messages"),
        conversion_ratio=quotient("conversion"),
        macro_ratio=quotient("macro"),
        retention_ratio={key: quotient(key) for key in ours[0].figures if key.startswith("day ")},
    )


def _segments(ours: Sequence[_One], held: Sequence[_One] | None) -> list[Segment]:
    """What each segment of each category or flag gets, and what it gains over no nudge."""
    population = ours[0].history.population
    return [
        _segment(ours, held, attribute=attribute.name, code=code, segment=segment)
        for attribute in population.program.attributes
        if attribute.kind != "number"
        for code, segment in enumerate(attribute.categories or ("no", "yes"))
    ]


def _segment(ours: Sequence[_One], held: Sequence[_One] | None, *, attribute: str, code: int, segment: str) -> Segment:
    rows = [one.history.population.people.attributes[attribute] == code for one in ours]

    people = max(min(int(r.sum()) for r in rows), 1)

    def means(values: Sequence[Floats]) -> list[float]:
        return [float(v[r].mean()) if r.any() else np.nan for v, r in zip(values, rows, strict=True)]

    gains = [one.by_customer - other.by_customer for one, other in zip(ours, held or (), strict=bool(held))]
    return Segment(
        attribute=attribute,
        segment=segment,
        customers=float(np.mean([r.mean() for r in rows])),
        messages=spread(means([(one.history.actions != HOLD).sum(axis=0).astype(np.float64) for one in ours])),
        conversion=share_spread(
            means([measured.reached(one.history).astype(np.float64) for one in ours]), people=people
        ),
        opted_out=share_spread(means([measured.left(one.history).astype(np.float64) for one in ours]), people=people),
        gain=spread(means(gains)) if held else None,
    )


def table(found: Comparison) -> list[dict[str, object]] | dict[str, object]:
    """Return a comparison as rows for a terminal: a policy in a world each; beside them trials that were run."""
    trials = [
        {
            "world": p.world,
            "figure": m.figure,
            "published": m.published,
            "here": m.ours,
            "near": "yes" if m.met else "no",
        }
        for p in found.worlds
        for m in p.moments
    ]
    return {"policies": _policies(found), "trials": trials} if trials else _policies(found)


def _policies(found: Comparison) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for one in (compared for played in found.worlds for compared in played.policies):
        m = one.measured
        rows.append(
            {
                "world": one.world,
                "policy": one.policy,
                "reward": said(m.reward),
                "macro": said(m.macro, percent=True),
                "goal": said(m.conversion, percent=True),
                "messages": said(m.messages),
                "opted_out": said(m.opted_out, percent=True),
                "cost": said(m.cost),
                "momentum": said(m.momentum),
                "regret": said(m.regret),
                **{f"active_{key}": said(x, percent=True) for key, x in m.retention.items()},
            }
        )
    return rows


def figures(found: Comparison) -> dict[str, float]:
    """Return a comparison as metrics by name: `demo/thompson/reward`."""
    flat: dict[str, float] = {}
    for one in (compared for played in found.worlds for compared in played.policies):
        m = one.measured
        kinds = ("reward", "conversion", "macro", "messages", "opted_out", "cost", "momentum", "regret")
        plain = {k: getattr(m, k) for k in kinds}
        by_day = {k.replace(" ", "_"): v for k, v in m.retention.items()}
        by_stage = {f"onward/{k}": v for k, v in m.stages.items()}
        for key, x in {**plain, **by_day, **by_stage}.items():
            flat[f"{one.world}/{Path(one.policy).name}/{key}"] = x.value
    return flat


def said(x: Spread, *, percent: bool = False) -> str:
    """Write a mean with half its interval's width.

    >>> said(Spread(value=0.25, low=0.2, high=0.3), percent=True), said(Spread(value=2.0))
    ('25.0 ± 5.0 %', '2.00')
    """
    scale, digits, unit = (100.0, 1, " %") if percent else (1.0, 2, "")
    reach = f" ± {(x.high - x.low) / 2 * scale:.{digits}f}" if x.low is not None and x.high is not None else ""
    return f"{x.value * scale:.{digits}f}{reach}{unit}"


__all__ = ["DEFAULT", "Comparison", "Population", "Run", "Spread", "ratio", "run", "said", "spread", "table"]
