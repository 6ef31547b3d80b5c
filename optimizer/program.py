"""What is declared? A journey, its actions, events, rewards and guardrails, read from TOML."""

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from optimizer import syntax
from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.contradictions import contradictions
from optimizer.misreadings import NAME, UNNAMED, salvage

DAY = 86_400.0
MINOR_UNITS = 100
"""Money is counted in integer hundredths of the program's currency."""

PROMPT = 3_600.0
"""For how many seconds what a customer has just done is worth a word at once."""

LAPSE = "lapse"
"""What a stage may expect besides events: falling back to where it lapses to."""

SYSTEM_EVENTS = ("shown", "not_shown", "opt_out", "opt_in")
"""Events that every program knows without declaring them; a program may declare one to give it a value."""

_SECONDS = {"m": 60.0, "h": 3_600.0, "d": DAY, "w": 7 * DAY}

Name = Annotated[str, Meta(pattern=NAME)]
Text = Annotated[str, Meta(min_length=1, max_length=2_000)]
Title = Annotated[str, Meta(min_length=1, max_length=200)]
Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e9)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]


class Duration(float):
    """Seconds, written `"30m"`, `"12h"`, `"3d"` or `"2w"` in TOML.

    >>> Duration.parse("3d")
    259200.0
    """

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read `"12h"`; ValueError if it is not a whole or decimal number followed by m, h, d or w."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text) if isinstance(text, str) else None
        if not match:
            raise ValueError(f'expected a duration such as "30m", "12h", "3d" or "2w", got {text!r}')
        return cls(float(match[1]) * _SECONDS[match[2]])


class Span(Duration):
    """A duration that is longer than nothing.

    >>> Span.parse("12h")
    43200.0
    """

    @classmethod
    def parse(cls, text: object) -> "Span":
        """Read a duration; ValueError if it is none, or `"0h"`."""
        span = cls(Duration.parse(text))
        if not span:
            raise ValueError(f'expected a duration longer than nothing, such as "1h", got {text!r}')
        return span


class Clock(int):
    """Minutes after local midnight, written `"18:30"` in TOML.

    >>> Clock.parse("18:30")
    1110
    """

    @classmethod
    def parse(cls, text: object) -> "Clock":
        """Read `"18:30"`; ValueError if it is not a time of day."""
        match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", text) if isinstance(text, str) else None
        if not match:
            raise ValueError(f'expected a time of day such as "18:30", got {text!r}')
        return cls(int(match[1]) * 60 + int(match[2]))


class _Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Stage(_Struct, frozen=True):
    """A place on the journey. Customers idle for `lapses_after` fall back to `lapses_to`.

    `expects` says, until there is a log, which share of the customers in this stage do an event, or `lapse`, on a day.
    `because` is how a customer would say to be in it ("you are in your free trial"), for why a nudge came.
    """

    name: Name
    title: Title
    description: str = ""
    lapses_after: Span | None = None
    lapses_to: str | None = None
    expects: dict[str, Share] = {}
    because: str = ""


class Event(_Struct, frozen=True):
    """Something a customer does. `micro`: a small step; `macro`: a goal; `signal`: neither (surveys, complaints).

    An event is worth `value` reward units (times the reported value where `scaled`), if it falls within `window`
    after the longest timing delay. `moves` maps the stage a customer is in to the one this event leads to. `because` is
    how a customer would say to have done it ("you finished a workout"), for why a nudge came.
    """

    name: Name
    kind: Literal["micro", "macro", "signal"]
    title: str = ""
    value: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    scaled: bool = False
    window: Span = Span(2 * DAY)
    moves: dict[str, str] = {}
    pauses_promotion: Span | None = None
    pauses_below: Annotated[float, Meta(ge=-1e9, le=1e9)] | None = None
    requests_decision: bool = False
    because: str = ""


class Incentive(_Struct, frozen=True):
    """A level of the first factor: what is offered, to whom, at what cost.

    `cost` is the expected cost of showing it once, in the program's currency. `promotional` incentives are those
    that a complaint pauses. `earns` says in plain words how an action becomes the reward, and when. On a `ladder` a
    larger `tier` is for those whom the tier below did not move. `comeback_after` makes it a comeback: only for
    customers who have been here and have taken no step for so long. `off_beat` lets it come outside the cadence, at
    once after an event that requests a decision.
    """

    name: Name
    title: Title
    kind: Literal["content", "convenience", "recognition", "social", "monetary", "access"]
    earns: Text
    cost: Amount = 0.0
    stock: Count | None = None
    tier: Annotated[int, Meta(ge=0, le=9)] = 0
    ladder: str = ""
    stages: tuple[str, ...] = ()
    min_momentum: Share = 0.0
    promotional: bool = False
    scarce: bool = False
    comeback_after: Span | None = None
    off_beat: bool = False
    barred_segments: dict[str, tuple[str, ...]] = {}
    retired: bool = False

    @property
    def minor_cost(self) -> int:
        """Cost in integer minor units."""
        return round(self.cost * MINOR_UNITS)


class Tone(_Struct, frozen=True):
    """A level of the second factor: how it is said."""

    name: Name
    title: Title
    stages: tuple[str, ...] = ()
    barred_segments: dict[str, tuple[str, ...]] = {}
    retired: bool = False


class Timing(_Struct, frozen=True):
    """A level of the third factor: after `delay`, or at the next local `clock` time."""

    name: Name
    title: Title
    delay: Duration | None = None
    clock: Clock | None = None
    retired: bool = False

    @property
    def longest(self) -> float:
        """The longest possible delay, in seconds."""
        return DAY if self.delay is None else float(self.delay)


class Message(_Struct, frozen=True):
    """What a customer reads; `{done}`, `{of}`, `{milestone}` and `{reward}` are filled from progress."""

    subject: Text
    body: Text
    call_to_action: Annotated[str, Meta(min_length=1, max_length=60)]


class Attribute(_Struct, frozen=True):
    """A feature of the customer or of the request. `categories` for a name, `mean` and `scale` for a number."""

    name: Name
    kind: Literal["number", "category", "flag"]
    categories: tuple[str, ...] = ()
    mean: Annotated[float, Meta(ge=-1e12, le=1e12)] = 0.0
    scale: Annotated[float, Meta(gt=0, le=1e12)] = 1.0


class Milestone(_Struct, frozen=True):
    """`count` of `event`, days in a row with a step (`streak`), or time since the start (`after`) earns `reward`.

    Any micro- or macro-action keeps a streak, or only the events that `streak_of` names. An anniversary is counted in
    whole days since the customer's start in the program: the first decision or event.
    """

    name: Name
    title: Title
    reward: Title
    event: str | None = None
    count: Annotated[int, Meta(ge=1)] | None = None
    streak: Annotated[int, Meta(ge=1)] | None = None
    streak_of: tuple[str, ...] = ()
    after: Span | None = None
    requests_decision: bool = False

    @property
    def of(self) -> int:
        """How many steps the milestone takes, or days since the start."""
        return self.count or self.streak or (1 if self.after is None else max(math.ceil(self.after / DAY), 1))


class Budget(_Struct, frozen=True):
    """How much may be reserved in a period of program time."""

    amount: Amount
    period: Span = Span(7 * DAY)

    @property
    def minor_amount(self) -> int:
        """Amount in integer minor units."""
        return round(self.amount * MINOR_UNITS)


class Ladder(_Struct, frozen=True):
    """When a larger reward is in order: `waits` after the smaller one, and while that one is in `memory`."""

    waits: Duration = Duration(DAY)
    memory: Span = Span(30 * DAY)


class Cadence(_Struct, frozen=True):
    """A steady rhythm: a nudge comes a whole number of times `every` after the last, give or take `within`.

    With `hour_within` it also comes at most so far from the customer's own hour, learned from when steps are taken.
    """

    every: Span
    within: Duration = Duration(12 * 3600)
    hour_within: Span | None = None


class Guardrails(_Struct, frozen=True):
    """What may never happen. Caps count nudges on their local delivery day; a week is seven such days.

    `refused_phrases` adds the program's own to the words that no message may use.
    """

    consent: Literal["opt-in", "opt-out"] = "opt-in"
    time_zone: str = "UTC"
    quiet_from: Clock = Clock(21 * 60)
    quiet_until: Clock = Clock(8 * 60)
    cap_per_day: Annotated[int, Meta(ge=0, le=24)] = 1
    cap_per_week: Annotated[int, Meta(ge=0, le=32)] = 5
    cap_per_week_by_kind: dict[str, Annotated[int, Meta(ge=0)]] = {}
    scarce_per_week: Annotated[int, Meta(ge=0)] = 1
    cooldown: Duration = Duration(12 * 3600)
    cadence: Cadence | None = None
    ladder: Ladder = Ladder()
    budget: Budget | None = None
    burden_price: Amount = 0.0
    reports_shown: bool = False
    expires_after: Span = Span(12 * 3600)
    refused_phrases: tuple[Text, ...] = ()


class Exploration(_Struct, frozen=True):
    """The floor: `floor` spread over the factors' levels, `hold` reserved for hold."""

    floor: Annotated[float, Meta(ge=0.001, le=0.5)] = 0.05
    hold: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.05


class Experiment(_Struct, frozen=True):
    """Sticky arms by customer: always held; deciding by the challenger; deciding for evaluation only."""

    holdout: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    challenger: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    evaluation: Annotated[float, Meta(ge=0, le=0.5)] = 0.0


class Fairness(_Struct, frozen=True):
    """What counts as fair, for `nudge report` and for the gate of `nudge promote`.

    `protect` names attributes that must not decide who is nudged: a group of theirs that is left out stops a policy.
    Harm to a group of any attribute does. Where too little is known to judge, that is said, and stops a policy only
    with `must_be_known`.
    """

    protect: tuple[str, ...] = ()
    exposure_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.8
    value_loss: Amount = 0.0
    customers: Annotated[int, Meta(ge=10, le=1_000_000)] = 50
    must_be_known: bool = False


class Rule(_Struct, frozen=True):
    """What marketers run today: in these stages, for these segments, this nudge.

    The first rule that fits and whose nudge is allowed applies. Without `stages` a rule is for all of them; `where`
    maps a category attribute to the categories that the rule is for, and without it the rule is for everybody.
    """

    incentive: str
    tone: str
    timing: str
    stages: tuple[str, ...] = ()
    where: dict[str, tuple[str, ...]] = {}


class Fault(NamedTuple):
    """One thing wrong with a program: where, what, and what to type instead."""

    file: str
    key: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.problem}; {self.mend}"


class ProgramError(ValueError):
    """A program that cannot be run. `faults` names each with file, key and mend."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, faults)))


class Encoding(NamedTuple):
    """Where columns stand among the features.

    Args:
        categories: the names of those with codes, stage first.
        first, unknown: (categories, 1), where each has its first code, and where it is 1 if unknown.
        of_all: where what is seen of every customer begins.
        numbers: names of numbers and flags.
        at: (numbers,), where each is; the next one is 1 if it is unknown.
        mean, scale: (numbers, 1), what they are standardised by.
    """

    categories: tuple[str, ...]
    first: Ints
    unknown: Ints
    of_all: int
    numbers: tuple[str, ...]
    at: Ints
    mean: Floats
    scale: Floats


class WeeklyCaps(NamedTuple):
    """Rules that limit incentives to so many a week, together: shapes (caps,), (caps,) and (caps, incentives)."""

    rules: list[str]
    most: Ints
    counted: Bools


class Program(_Struct, frozen=True, dict=True):
    """A declared journey with its actions, events, rewards and guardrails.

    `value` and `cost` are in the program's `currency`, which is the unit of reward. `discount` is per day. `language`
    is that of the messages: wording is audited in full where it is "en".
    """

    name: Name
    title: Title
    goal: str
    stages: tuple[Stage, ...]
    events: tuple[Event, ...]
    incentives: tuple[Incentive, ...]
    tones: tuple[Tone, ...]
    timings: tuple[Timing, ...]
    messages: dict[str, dict[str, Message]]
    description: str = ""
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$")] = "EUR"
    language: Literal["en", "other"] = "en"
    evaluation_horizon: Span = Span(3 * DAY)
    discount: Annotated[float, Meta(gt=0, le=1)] = 0.98
    momentum_half_life: Span = Span(3 * DAY)
    dosage_half_life: Span = Span(3 * DAY)
    attributes: tuple[Attribute, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    guardrails: Guardrails = Guardrails()
    exploration: Exploration = Exploration()
    experiment: Experiment = Experiment()
    fairness: Fairness = Fairness()
    rules: tuple[Rule, ...] = ()
    version: str = ""

    @classmethod
    def parse(cls, text: str, *, source: str) -> "Program":
        """Read a program from TOML.

        Args:
            text: the TOML.
            source: the file's name, for messages.

        Raises:
            ProgramError: naming every fault found with file, key and mend.
        """
        draft = read_draft(text, source=source)
        if draft.faults or draft.program is None:
            raise ProgramError(draft.faults)
        return draft.program

    # What is declared, as arrays: computed once, read by the engine.

    @cached_property
    def space(self) -> ActionSpace:
        """The actions and the features of this program, by name."""
        return ActionSpace(
            incentives=tuple(x.name for x in self.incentives),
            tones=tuple(x.name for x in self.tones),
            timings=tuple(x.name for x in self.timings),
            features=self.features,
            costs=tuple(x.cost for x in self.incentives),
            ladders=self.ladders,
        )

    @cached_property
    def ladders(self) -> tuple[tuple[str, ...], ...]:
        """The incentives of each ladder, from the smallest to the largest; those of one tier by their cost."""
        rungs = sorted((x for x in self.incentives if x.ladder), key=lambda x: (x.tier, x.cost))
        names = dict.fromkeys(x.ladder for x in self.incentives if x.ladder)
        return tuple(tuple(x.name for x in rungs if x.ladder == name) for name in names)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the columns of `customer.encode`, shape (d,)."""
        names = ["bias", *(f"stage={s.name}" for s in self.stages)]
        names += ["momentum", "dosage", "streak", "nudge_recency", "hour_sin", "hour_cos", "weekend"]
        for a in self.attributes:
            if a.kind == "category":
                names += [f"{a.name}={c}" for c in a.categories]
            else:
                names.append(a.name)
            names.append(f"{a.name}=?")
        return tuple(names)

    @cached_property
    def encoding(self) -> Encoding:
        """Where `customer.encode` puts what it is given."""
        place = {name: i for i, name in enumerate(self.features)}
        categories = [a for a in self.attributes if a.kind == "category"]
        numbers = [a for a in self.attributes if a.kind != "category"]
        first = [1, *(place[f"{a.name}={a.categories[0]}"] for a in categories)]
        return Encoding(
            categories=("stage", *(a.name for a in categories)),
            first=np.array(first, dtype=np.intp)[:, None],
            unknown=np.array([0, *(place[f"{a.name}=?"] for a in categories)], dtype=np.intp)[:, None],
            of_all=place["momentum"],
            numbers=tuple(a.name for a in numbers),
            at=np.array([place[a.name] for a in numbers], dtype=np.intp),
            mean=np.array([a.mean for a in numbers])[:, None],
            scale=np.array([a.scale for a in numbers])[:, None],
        )

    @cached_property
    def stage_index(self) -> dict[str, int]:
        """Position of each stage."""
        return {s.name: i for i, s in enumerate(self.stages)}

    @cached_property
    def event_index(self) -> dict[str, int]:
        """Position of each declared event."""
        return {e.name: i for i, e in enumerate(self.events)}

    @cached_property
    def moves(self) -> Ints:
        """Shape (stages, events): the stage after the event; the same stage where it moves nobody."""
        moves = np.repeat(np.arange(len(self.stages))[:, None], len(self.events), axis=1)
        for j, event in enumerate(self.events):
            for a, b in event.moves.items():
                moves[self.stage_index[a], j] = self.stage_index[b]
        return moves.astype(np.intp)

    @cached_property
    def incentive_stages(self) -> Bools:
        """Shape (stages, incentives): which incentive is declared for which stage."""
        return self._stages_of([x.stages for x in self.incentives])

    @cached_property
    def tone_stages(self) -> Bools:
        """Shape (stages, tones): which tone is declared for which stage."""
        return self._stages_of([x.stages for x in self.tones])

    @cached_property
    def minor_costs(self) -> Ints:
        """Shape (incentives,): cost in minor units."""
        return np.array([x.minor_cost for x in self.incentives], dtype=np.intp)

    @cached_property
    def min_momentum(self) -> Floats:
        """Shape (incentives,): the momentum that each asks for."""
        return np.array([x.min_momentum for x in self.incentives])

    @cached_property
    def rungs_below(self) -> Bools:
        """Shape (incentives, incentives): row i has those of the next lower tier on the ladder of i, if it has one."""
        below = np.zeros((len(self.incentives), len(self.incentives)), dtype=np.bool_)
        for i, incentive in enumerate(self.incentives):
            lower = [x.tier if self._lower(x, incentive) else -1 for x in self.incentives]
            below[i] = [tier >= 0 and tier == max(lower) for tier in lower]
        return below

    @cached_property
    def upper_rungs(self) -> Ints:
        """Which incentives have a rung below them: positions, shape (rungs,)."""
        return np.flatnonzero(self.rungs_below.any(axis=1))

    @cached_property
    def laddered(self) -> frozenset[str]:
        """The incentives that are on a ladder."""
        return frozenset(x.name for x in self.incentives if x.ladder)

    @staticmethod
    def _lower(rung: Incentive, than: Incentive) -> bool:
        return bool(than.ladder) and rung.ladder == than.ladder and rung.tier < than.tier and not rung.retired

    @cached_property
    def comebacks(self) -> Floats:
        """Shape (incentives,): seconds without a step that a comeback asks for; -inf for all other incentives."""
        return np.array([-np.inf if x.comeback_after is None else x.comeback_after for x in self.incentives])

    @cached_property
    def has_comebacks(self) -> bool:
        """Whether any incentive is a comeback."""
        return any(x.comeback_after is not None for x in self.incentives)

    @cached_property
    def promotional(self) -> Bools:
        """Shape (incentives,): which are paused after a complaint."""
        return np.array([x.promotional for x in self.incentives], dtype=np.bool_)

    @cached_property
    def weekly_caps(self) -> WeeklyCaps:
        """What limits some incentives to so many a week."""
        scarce = [x.scarce for x in self.incentives]
        caps = [("scarcity", self.guardrails.scarce_per_week, scarce)] if any(scarce) else []
        caps += [
            ("kind_cap", cap, [x.kind == kind for x in self.incentives])
            for kind, cap in self.guardrails.cap_per_week_by_kind.items()
        ]
        counted = np.array([which for _, _, which in caps], dtype=np.bool_).reshape(len(caps), len(self.incentives))
        return WeeklyCaps([rule for rule, _, _ in caps], np.array([cap for _, cap, _ in caps], dtype=np.intp), counted)

    @cached_property
    def off_beat(self) -> Bools:
        """Shape (incentives,): which may come outside the cadence after an event that requests a decision."""
        return np.array([x.off_beat for x in self.incentives], dtype=np.bool_)

    @cached_property
    def prompt(self) -> Bools:
        """Shape (timings,): which deliver while what has just happened is fresh."""
        delays = [np.inf if x.delay is None else float(x.delay) for x in self.timings]
        return np.array([delay <= PROMPT for delay in delays], dtype=np.bool_)

    @cached_property
    def by_clock(self) -> Bools:
        """Shape (timings,): which deliver at a time of day, not after a delay."""
        return np.array([x.clock is not None for x in self.timings], dtype=np.bool_)

    @cached_property
    def after(self) -> Floats:
        """Shape (timings,): seconds after the decision, or after local midnight where it delivers by the clock."""
        return np.array([float(x.delay or 0.0) if x.clock is None else int(x.clock) * 60.0 for x in self.timings])

    @cached_property
    def away_after(self) -> float:
        """Seconds without a step after which the next one is a comeback; infinite where nothing says how long."""
        comebacks = [float(x.comeback_after) for x in self.incentives if x.comeback_after is not None]
        lapses = [float(x.lapses_after) for x in self.stages if x.lapses_after is not None]
        return min(comebacks or lapses, default=np.inf)

    @cached_property
    def streaks(self) -> tuple[Milestone, ...]:
        """The milestones that count days in a row with events of their own."""
        return tuple(m for m in self.milestones if m.streak_of)

    @cached_property
    def anniversaries(self) -> tuple[Milestone, ...]:
        """The milestones that are counted in time since the customer's start."""
        return tuple(m for m in self.milestones if m.after is not None)

    @cached_property
    def longest_delay(self) -> float:
        """The longest timing delay, in seconds: windows of all actions start with it."""
        return max(t.longest for t in self.timings)

    @cached_property
    def windows(self) -> Floats:
        """Shape (events,): seconds after a decision within which each event counts, whatever the action."""
        return np.array([self.longest_delay + e.window for e in self.events])

    @property
    def matures_after(self) -> float:
        """Seconds after which a round is mature: when its longest window has closed."""
        valued = [w for w, e in zip(self.windows.tolist(), self.events, strict=True) if e.value]
        return max(valued, default=self.longest_delay)

    def event(self, name: str) -> Event | None:
        """Return a declared event, or None."""
        at = self.event_index.get(name)
        return None if at is None else self.events[at]

    def knows(self, event: str) -> bool:
        """Whether an outcome may name this event."""
        return event in SYSTEM_EVENTS or event in self.event_index

    def _stages_of(self, declared: Sequence[Sequence[str]]) -> Bools:
        rows = [[not stages or s.name in stages for stages in declared] for s in self.stages]
        return np.array(rows, dtype=np.bool_)


class Draft(NamedTuple):
    """What could be read of a program's text, and every fault found on the way.

    Where something could not be read, something harmless stands in for it; `keys` are the places of it, `words` the
    names about which there may be complaints only for that, `names` those of them that rows are called by.
    """

    program: Program | None
    faults: tuple[Fault, ...]
    keys: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def has(self, *kinds: str) -> bool:
        """Whether the program declares rows of each of these kinds, and none of them is made up."""
        return self.program is not None and not any(
            row.name == f"{UNNAMED}{kind}" for kind in kinds for row in getattr(self.program, kind)
        )

    def certain(self, key: str, problem: str, mend: str) -> bool:
        """Whether a complaint is about what was read, not about what stands in for a fault that has been named."""
        near = any(_within(key, other) or _within(other, key) for other in self.keys)
        named = set(re.findall(r"'([^']*)'", problem)) & self.words
        named |= set(re.split(r"[.\[\]]+", key)) & self.names
        offered = {word for word in re.findall(r"[\w-]+", mend) if word.startswith(UNNAMED)}
        return not (near or named or offered)


def read_draft(text: str, *, source: str) -> Draft:
    """Read as much of a program as can be read, and find all its faults at once: of kind, of range and of sense."""
    parsed = syntax.parse(text)
    faults = [Fault(source, "TOML", *fault) for fault in parsed.faults]
    if (raw := parsed.tables) is None:
        return Draft(None, tuple(faults))
    if raw.pop("version", None) is not None:
        faults.append(Fault(source, "version", "is the hash of the text, not a key", "remove it"))
    salvaged = salvage(raw, Program, decode=_decode)
    faults += [Fault(source, *f) for f in salvaged.findings]
    if salvaged.read is None:
        return Draft(None, tuple(faults))
    whole = replace(salvaged.read, version=hashlib.sha256(text.encode()).hexdigest()[:16])
    once = _furnished(_without_repeats(whole))
    made_up = frozenset(f"{UNNAMED}{key}" for key in _FURNITURE)
    draft = Draft(once, (), salvaged.keys, salvaged.words | made_up, salvaged.names | made_up)
    for program in (whole,) if once is whole else (whole, once):
        faults += [Fault(source, *found) for found in contradictions(program) if draft.certain(*found)]
    return draft._replace(faults=tuple(dict.fromkeys(faults)))


def _without_repeats(program: Program) -> Program:
    """Return the program itself, or what is left of it where names are declared twice: the first of each."""
    kept: dict[str, tuple[Stage | Event | Incentive | Tone | Timing | Attribute | Milestone, ...]] = {}
    for key in ("stages", "events", "incentives", "tones", "timings", "attributes", "milestones"):
        rows = getattr(program, key)
        if len(first := {row.name: row for row in reversed(rows)}) < len(rows):
            kept[key] = tuple(row for row in rows if row is first[row.name])
    return replace(program, **kept) if kept else program


_FURNITURE: dict[str, tuple[Stage | Event | Incentive | Tone | Timing]] = {
    "stages": (Stage(name=f"{UNNAMED}stages", title="-"),),
    "events": (Event(name=f"{UNNAMED}events", kind="macro", value=1.0),),
    "incentives": (Incentive(name=f"{UNNAMED}incentives", title="-", kind="content", earns="-"),),
    "tones": (Tone(name=f"{UNNAMED}tones", title="-"),),
    "timings": (Timing(name=f"{UNNAMED}timings", title="-", delay=Duration(0)),),
}


def _furnished(program: Program) -> Program:
    """Return the program itself, or one with a row of each kind that it has none of: so that the rest can be judged."""
    missing = {key: rows for key, rows in _FURNITURE.items() if not getattr(program, key)}
    return replace(program, **missing) if missing else program


def _within(key: str, other: str) -> bool:
    """Whether a key is another or lies in it: `incentives[coupon].cost` lies in `incentives[coupon]`."""
    return key == other or key.startswith((f"{other}.", f"{other}["))


def _decode(kind: type, value: object) -> object:
    if kind in (Duration, Span, Clock):
        return kind.parse(value)
    raise NotImplementedError(kind)
