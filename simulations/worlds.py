"""In which worlds is a policy tried? Named settings of the simulation, each with what it is there to break."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec.structs import replace as replaced

from optimizer.program import Budget, Program


class _Bound(NamedTuple):
    """Which numbers a setting may be: from `low` to `high`, both included, and what is said of others."""

    low: float
    high: float
    says: str


_HARDLY, _LARGE = 1e-9, 1e9
_SIZE = _Bound(0.0, _LARGE, "is impossible: use a number of 0 or more")
_ABOVE = _Bound(_HARDLY, _LARGE, "is impossible: use a number above 0")
_EITHER = _Bound(-_LARGE, _LARGE, "is impossible: use a finite number")
_SHARE = _Bound(0.0, 1.0, "is no share: use 0 to 1")
_CHANCE = _Bound(_HARDLY, 0.9 - _HARDLY, "is impossible: a chance within a day is above 0 and below 0.9")
_RARE = _Bound(0.0, 0.9 - _HARDLY, "is impossible: a chance is 0 or more and below 0.9")
_LEFT = _Bound(0.0, 1.0 - _HARDLY, "is impossible: what is left of fatigue is 0 or more and below 1")


def _as(bound: _Bound, default: float) -> float:
    """Return a setting's default, with the bound of what it may be."""
    return field(default=default, metadata={"bound": bound})


@dataclass(frozen=True)
class World:
    """The settings of a simulation. Effects are on the logit of a customer's chance to act within a day.

    Args:
        name: what to type.
        breaks: what it is there to break.
        customers: how many make it what it is.
        zones: IANA names and their shares.
        advanced: how the base is spread over the stages at the start: each stage has this times the one before.
        willing: share of the customers who have opted in at the start, where a program asks for it.
        everyday, turn, goal, signal: daily chance of the commonest everyday step, of the commonest step that moves a
            stage, of the commonest goal, of a signal, without a nudge, where they occur.
        depth: how much likelier everyday steps are from the first stage to the last.
        activity, intent: how customers differ (sd) in everyday steps, and in goals.
        hidden: share of the variance of activity that no attribute shows.
        fidelity: how faithfully attributes show the latent types: 0 not at all, 1 exactly.
        missing: share of the attributes that are unknown.
        lift: what any nudge does to everyday steps; `goal_lift` to goals.
        incentive, tone, timing: sizes of what a level does for everybody.
        null: share of the levels that do nothing for everybody; `harm`: share of the others that put people off.
        price: how customers differ (sd of the log) in what an incentive that costs something does to them.
        fit: sd over stages of what an incentive does. affinity: sd over latent types of what a tone does.
        chronotype: how much the hour of delivery matters.
        pair, triple: sd of what two and three levels do together.
        responsiveness: how customers differ (sd of the log) in what any nudge does; nothing shows it.
        decay: what is left of fatigue a day later. blunting: fatigue's damping of a nudge's effect. burden: what a
            nudge takes from the day's steps for each unit of fatigue.
        leaving: chance that a nudge makes a rested customer opt out; `leaving_growth` with fatigue (log).
        repetition: share of the effect that an incentive or tone loses when just repeated, back after
            `repetition_days` (1/e).
        habit_gain, habit_loss: how fast a day with and without a step builds and wears habit, 0 to 1.
        habit_pull: what habit adds to steps; habit also halves what nudges do.
        gradient: what a milestone within reach adds to steps; `gradient_shape` bends how that grows with the share
            done: 1 straight, 2 late. comeback: share by which a nudge does more after a missed day or two. dip: what
            a reached goal takes from the next, wearing off over `dip_days`.
        lapsing: chance that a customer without any habit drifts away within a day; half of it with full habit. Those
            who have hardly act, until a step brings them back.
        deal: what an incentive adds to goals for being dear, at most: half of it where the cost is `deal_half` of
            the goal's value. bargain: how much less those likely to buy anyway care for what costs something (log).
        delays: mean delays of what a nudge brings, in hours, and their shares. prompt: mean delay of all but goals, in
            hours, where goals alone take `delays`; 0 where everything takes as long.
        lost, twice: shares of the outcomes that are never reported, or reported twice.
        drift_day: the day from which tones do the opposite. season: swing of everyday steps over a week.
        arrival_day: the day from which the program's last incentive can be offered; `retirement_day`: from which its
            first one cannot.
        outage: the day from which nothing can be decided, and for how many days. budget_shock: the day from which
            budgets are cut, and to which share. gaming: share of the customers who go through the motions for what
            incentives give and reach no goal.
        budget: replaces the program's budget, money a customer and week; None leaves it.
    """

    name: str
    breaks: str
    customers: int = 2_400
    zones: tuple[tuple[str, float], ...] = (
        ("Europe/Paris", 0.8),
        ("Europe/London", 0.15),
        ("America/New_York", 0.05),
    )
    advanced: float = _as(_ABOVE, 0.85)
    willing: float = _as(_SHARE, 0.85)
    everyday: float = _as(_CHANCE, 0.2)
    turn: float = _as(_CHANCE, 0.05)
    goal: float = _as(_CHANCE, 0.015)
    signal: float = _as(_CHANCE, 0.005)
    depth: float = _as(_EITHER, 0.6)
    activity: float = 0.7
    intent: float = 0.4
    hidden: float = _as(_SHARE, 0.5)
    fidelity: float = _as(_SHARE, 0.8)
    missing: float = _as(_SHARE, 0.03)
    lift: float = _as(_EITHER, 0.1)
    goal_lift: float = _as(_EITHER, 0.05)
    incentive: float = 0.5
    tone: float = 0.2
    timing: float = 0.2
    null: float = _as(_SHARE, 0.55)
    harm: float = _as(_SHARE, 0.15)
    price: float = 0.5
    fit: float = 0.25
    affinity: float = 0.3
    chronotype: float = 0.2
    pair: float = 0.0
    triple: float = 0.0
    responsiveness: float = 0.3
    decay: float = _as(_LEFT, 0.8)
    blunting: float = 0.1
    burden: float = 0.03
    leaving: float = _as(_RARE, 0.0008)
    leaving_growth: float = _as(_EITHER, 0.4)
    repetition: float = _as(_SHARE, 0.3)
    repetition_days: float = _as(_ABOVE, 4.0)
    habit_gain: float = _as(_SHARE, 0.04)
    habit_loss: float = _as(_SHARE, 0.012)
    habit_pull: float = _as(_EITHER, 0.6)
    gradient: float = _as(_EITHER, 0.3)
    gradient_shape: float = _as(_ABOVE, 2.0)
    comeback: float = _as(_EITHER, 0.3)
    dip: float = 1.0
    dip_days: float = _as(_ABOVE, 14.0)
    lapsing: float = _as(_SHARE, 0.0)
    deal: float = _as(_EITHER, 0.0)
    deal_half: float = _as(_ABOVE, 0.1)
    bargain: float = _as(_EITHER, 0.0)
    delays: tuple[tuple[float, float], ...] = ((1.0, 0.6), (24.0, 0.3), (168.0, 0.1))
    prompt: float = 0.0
    lost: float = _as(_SHARE, 0.005)
    twice: float = _as(_SHARE, 0.01)
    drift_day: int | None = None
    arrival_day: int | None = None
    retirement_day: int | None = None
    outage: tuple[int, int] | None = None
    budget_shock: tuple[int, float] | None = None
    gaming: float = _as(_SHARE, 0.0)
    season: float = 0.1
    budget: float | None = None

    def __post_init__(self) -> None:
        for setting in fields(self):
            if setting.type is float:
                self._check(setting.name, getattr(self, setting.name), setting.metadata.get("bound", _SIZE))
        self._check_days()
        for key in ("zones", "delays"):
            total = sum(share for _, share in getattr(self, key))
            if abs(total - 1.0) > 1e-9:
                raise ValueError(f"world {self.name!r}: the shares of {key} add up to {total:g}: make it 1")
        if self.budget is not None:
            self._check("budget", self.budget, _SIZE)

    def _check(self, key: str, value: object, bound: _Bound) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and bound.low <= value <= bound.high):  # type: ignore[operator]  # a number
            raise ValueError(f"world {self.name!r}: {key} = {value!r} {bound.says}")

    def _check_days(self) -> None:
        for key in ("drift_day", "arrival_day", "retirement_day"):
            day = getattr(self, key)
            if day is not None and not (isinstance(day, int) and day >= 0):
                raise ValueError(f"world {self.name!r}: {key} = {day!r} is no day: use a whole number of 0 or more")
        if self.outage is not None and not (self.outage[0] >= 0 and self.outage[1] >= 1):
            raise ValueError(f"world {self.name!r}: outage = {self.outage!r} never happens: use (first day, days >= 1)")
        if self.budget_shock is not None and not (self.budget_shock[0] >= 0 and 0.0 <= self.budget_shock[1] <= 1.0):
            raise ValueError(
                f"world {self.name!r}: budget_shock = {self.budget_shock!r} is no cut: use (first day, share 0 to 1)"
            )
        for zone, _ in self.zones:
            try:
                ZoneInfo(zone)
            except (ZoneInfoNotFoundError, ValueError):
                raise ValueError(
                    f"world {self.name!r}: zones has {zone!r}, which is no time zone: use an IANA name"
                ) from None
        if any(hours <= 0.0 or share < 0.0 for hours, share in self.delays):
            raise ValueError(f"world {self.name!r}: delays = {self.delays!r}: use (hours above 0, share of 0 or more)")

    def program(self, program: Program, *, customers: int) -> Program:
        """Return the program as this world funds it: with a budget in proportion to the customers, if it sets one."""
        if self.budget is None:
            return program
        period = program.guardrails.budget.period if program.guardrails.budget else Budget(amount=0.0).period
        weeks = period / Budget(amount=0.0).period
        budget = Budget(amount=round(self.budget * customers * weeks, 2), period=period)
        return replaced(program, guardrails=replaced(program.guardrails, budget=budget))


DEMO = World(
    "demo",
    "nothing: an ordinary app, livelier than life, so that two weeks of a few thousand customers tell something",
    everyday=0.33,
    goal=0.006,
    lift=0.2,
    incentive=1.3,
    tone=0.15,
    timing=0.05,
    null=0.4,
    harm=0.3,
    price=0.4,
    affinity=0.4,
    chronotype=0.15,
    blunting=0.05,
    repetition=0.15,
    habit_pull=0.4,
)

CALIBRATED = World(
    "calibrated",
    "wishful thinking: what nudges do, for how long and after how long, is what published trials found",
    everyday=0.01,
    turn=0.01,
    goal=0.002,
    intent=0.95,
    lift=0.02,
    goal_lift=0.0,
    incentive=1.85,
    tone=0.0,
    timing=0.0,
    harm=0.0,
    fit=0.1,
    affinity=0.05,
    chronotype=0.05,
    decay=0.96,
    blunting=0.22,
    leaving=0.0005,
    leaving_growth=0.1,
    repetition=0.7,
    repetition_days=7.0,
    habit_gain=0.06,
    habit_pull=1.9,
    burden=0.003,
    lapsing=0.02,
    gradient=2.6,
    gradient_shape=1.0,
    deal=1.8,
    deal_half=0.18,
    bargain=0.42,
    delays=((0.4, 0.385), (24.0, 0.085), (216.0, 0.53)),
    prompt=1.0,
)
"""Its moments are those of `simulations.moments`. What nudges do fades to nothing within weeks, as in the trial of
suggestions, and hardly turns against the day's steps: burden is small and blunting is not. Where a setting
is not pinned down by a trial, it is that of `World`."""

WORLDS: Mapping[str, World] = MappingProxyType(
    {
        world.name: world
        for world in (
            DEMO,
            CALIBRATED,
            replace(
                DEMO,
                name="null",
                breaks="gates that promote what is no better: nudges do nothing but cost",
                lift=0.0,
                goal_lift=0.0,
                incentive=0.0,
                tone=0.0,
                timing=0.0,
                fit=0.0,
                affinity=0.0,
                chronotype=0.0,
                burden=0.0,
                leaving=0.0,
            ),
            replace(
                DEMO,
                name="harmful",
                breaks="policies that cannot keep still: nudges put people off, and many opt out",
                lift=-0.4,
                goal_lift=-0.4,
                burden=0.1,
                leaving=0.004,
            ),
            replace(
                DEMO,
                name="additive",
                breaks="models that see interactions everywhere: each factor adds its own, the same for everybody",
                fit=0.0,
                affinity=0.0,
                chronotype=0.0,
                price=0.0,
                responsiveness=0.0,
            ),
            replace(
                DEMO,
                name="pairwise",
                breaks="models of main effects: what two levels do together matters as much as each",
                incentive=0.6,
                pair=0.5,
            ),
            replace(
                DEMO,
                name="threeway",
                breaks="models of pairs: three levels do together what no two of them show",
                incentive=0.4,
                pair=0.2,
                triple=0.7,
            ),
            replace(
                DEMO,
                name="fatigue",
                breaks="greed for today: every nudge wears out the next ones, and the tired leave",
                decay=0.92,
                blunting=0.3,
                burden=0.15,
                leaving=0.002,
                leaving_growth=0.6,
                repetition=0.6,
            ),
            replace(
                DEMO,
                name="drift",
                breaks="policies that never forget: from the tenth day on, tones do the opposite",
                tone=0.4,
                affinity=0.7,
                incentive=0.5,
                drift_day=10,
                season=0.3,
            ),
            replace(
                DEMO,
                name="shelf",
                breaks="policies that know a fixed list: the last incentive comes on day 14, the first goes on day 21",
                arrival_day=14,
                retirement_day=21,
            ),
            replace(
                DEMO,
                name="delayed",
                breaks="logs that take unknown for zero: half of what a nudge brings comes days later",
                delays=((1.0, 0.2), (24.0, 0.3), (168.0, 0.5)),
                lost=0.05,
                twice=0.1,
            ),
            replace(
                DEMO,
                name="tight-budget",
                breaks="overspending: money for one customer in twenty a week, and dear incentives that work",
                budget=0.15,
                price=0.8,
                harm=0.05,
            ),
            replace(
                DEMO,
                name="few-customers",
                breaks="intervals from too little: five hundred customers",
                customers=500,
            ),
            replace(
                DEMO,
                name="heterogeneous",
                breaks="one size for all: what one type likes puts another off",
                incentive=0.4,
                tone=0.0,
                affinity=1.0,
                fit=0.6,
                chronotype=0.5,
                price=0.9,
                responsiveness=0.6,
                fidelity=0.9,
            ),
        )
    }
)
"""The worlds by name."""


def world_of(name: str) -> World:
    """Return the world of a name, or of what `nudge simulate --fit --json` wrote; ValueError if there is none."""
    if name in WORLDS:
        return WORLDS[name]
    file = Path(name)
    if file.suffix != ".json" or not file.is_file():
        raise ValueError(f"there is no world {name!r}: expected one of {', '.join(WORLDS)}, or a fitted world's .json")
    try:
        told = msgspec.json.decode(file.read_bytes(), type=_Fitted)
    except msgspec.DecodeError as wrong:
        raise ValueError(f"{name} is no fitted world: {wrong}; write it with nudge simulate --fit --json") from wrong
    world = replace(world_of(told.started_from), name=file.stem, breaks="nothing: it is estimated from a log")
    return changed(world, told.settings)


class _Fitted(msgspec.Struct):
    """What a world is made of again: `simulations.fitting.Fitted` has more."""

    started_from: str
    settings: dict[str, float]


def read_settings(written: Sequence[str]) -> dict[str, object]:
    """Return settings from what was typed, `key=value` each, a value as TOML has it, or none.

    >>> read_settings(["lift=0.5", "outage=[20, 7]", "budget=none"])
    {'lift': 0.5, 'outage': [20, 7], 'budget': None}
    """
    found: dict[str, object] = {}
    for item in written:
        key, given, text = item.partition("=")
        if not given:
            raise ValueError(f"setting {item!r} has no value: write it as key=value, such as lift=0.5")
        try:
            found[key.strip()] = None if text.strip() == "none" else tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            raise ValueError(
                f"setting {key.strip()} = {text!r} is no value: write a number, or [1, 2] for two"
            ) from None
    return found


def changed(world: World, settings: Mapping[str, object]) -> World:
    """Return a world with other settings; ValueError for one that there is not, or that cannot be.

    >>> changed(DEMO, {"lift": 0.5}).lift
    0.5
    """
    known = [f.name for f in fields(World) if f.name not in ("name", "breaks", "customers")]
    for key in settings:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"world {world.name!r} has no setting {key!r}: {hint}")
    try:
        return replace(world, **{key: _tupled(value) for key, value in settings.items()})  # type: ignore[arg-type]
    except TypeError as wrong:
        said = ", ".join(f"{key} = {value!r}" for key, value in settings.items())
        raise ValueError(f"world {world.name!r}: {said}: {wrong}; give it the form that it has in the world") from wrong


def _tupled(value: object) -> object:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
