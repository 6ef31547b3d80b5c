"""What does each level do, and how often does each event happen by itself? Tables drawn by seed and name."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import product

import numpy as np
from scipy.special import logit, ndtri

from optimizer.actions import Bools, Floats, Ints
from optimizer.program import Event, Incentive, Program
from simulations.worlds import World

TYPES = 3
"""How many latent types there are."""

STEP, GOAL, SIGNAL, LEAVE = range(4)
"""Channels of events: what nudges and traits act on. Leaving is opting out."""

OPT_OUT, OPT_IN = "opt_out", "opt_in"
SHOWN = "shown"
DISCONTENTED = 0.2
"""Share of the reported values that are low: below what pauses promotions, if something does."""

_RARE = 0.08
"""How rare a goal is where another stage is its natural place."""


@dataclass(frozen=True)
class Effects:
    """What events and levels do in a world, `e` events: those declared, and opting out and in where they are not.

    Args:
        events: (e,) names. channels: (e,), one of STEP, GOAL, SIGNAL, LEAVE.
        base: (stages, e), logit of the chance within a day; -inf where it does not happen.
        worth: (e,), expected value of one that is reported, in reward units.
        reported: (2, e), the value reported by one in `DISCONTENTED`, and by the others; NaN where none is reported.
        shift: (2, k), what an action does to the logit of steps and of goals, for everybody.
        priced: (2, incentives), what an incentive that costs something does, times the customer's price.
        fit: (stages, incentives), what the stage adds to an incentive.
        tones: (TYPES, tones), what a tone does to a latent type.
    """

    events: tuple[str, ...]
    channels: Ints
    base: Floats
    worth: Floats
    reported: Floats
    shift: Floats
    priced: Floats
    fit: Floats
    tones: Floats

    @property
    def leave(self) -> int:
        """Index of opting out."""
        return self.events.index(OPT_OUT)

    @property
    def join(self) -> int:
        """Index of opting in."""
        return self.events.index(OPT_IN)

    def of_channel(self, channel: int) -> Bools:
        """Shape (e,): which events are of a channel."""
        chosen: Bools = self.channels == channel
        return chosen


def effects(program: Program, world: World, *, seed: int) -> Effects:
    """Draw the tables of a program in a world; a level's numbers depend on seed and name alone."""
    declared = [e.name for e in program.events]
    names = (*declared, *(x for x in (OPT_OUT, OPT_IN) if x not in declared))
    extra = len(names) - len(declared)
    channels = [LEAVE if x == OPT_OUT else SIGNAL for x in names]
    channels[: len(declared)] = map(_channel, program.events)
    reported = np.array([_reported(e) for e in program.events] + [(np.nan, np.nan)] * extra).T
    values = np.array([e.value for e in program.events] + [0.0] * extra)
    scaled = np.array([e.scaled for e in program.events] + [False] * extra)
    means = DISCONTENTED * reported[0] + (1.0 - DISCONTENTED) * reported[1]
    draw = Draws(seed, world)
    return Effects(
        events=names,
        channels=np.array(channels, dtype=np.intp),
        base=_base(program, world, e=len(names)),
        worth=np.where(scaled, values * means, values),
        reported=reported,
        shift=_shift(program, world, draw),
        priced=_incentives(program, draw, size=world.incentive, costly=True) + _deals(program, world),
        fit=draw.normals(world.fit, "fit", [s.name for s in program.stages], program.space.incentives),
        tones=_tones(program, world, draw),
    )


@dataclass(frozen=True)
class Draws:
    """Numbers that depend on seed and names alone."""

    seed: int
    world: World

    def uniform(self, *words: str) -> Floats:
        """Shape (3,): numbers in (0, 1)."""
        digest = blake2b("|".join((str(self.seed), *words)).encode(), digest_size=24).digest()
        numbers = np.frombuffer(digest, dtype="<u8") >> np.uint64(11)
        return (numbers.astype(np.float64) + 0.5) * 2.0**-53

    def level(self, size: float, *words: str) -> float:
        """Return what a level does: often nothing, sometimes harm, else 0.5 to 1.5 times the size."""
        which, sign, magnitude = self.uniform(*words).tolist()
        if which < self.world.null:
            return 0.0
        return float(size * (0.5 + magnitude) * (-1.0 if sign < self.world.harm else 1.0))

    def normals(self, sd: float, what: str, *names: Sequence[str]) -> Floats:
        """Return normal numbers of a given sd, one for each combination of names."""
        shape = [len(n) for n in names]
        if sd == 0.0:
            return np.zeros(shape)
        uniform = [self.uniform(what, *cell)[0] for cell in product(*names)]
        drawn: Floats = sd * ndtri(np.array(uniform)).reshape(shape)
        return drawn


def _channel(event: Event) -> int:
    if event.name == OPT_OUT:
        return LEAVE
    return {"micro": STEP, "macro": GOAL, "signal": SIGNAL}[event.kind]


def _reported(event: Event) -> tuple[float, float]:
    """Values reported by the discontented and by the others: 1 on average, unless it is a score."""
    if "nps" in event.name and not event.value:
        return 5.0, 9.0  # of 10
    if event.pauses_below is not None:
        return event.pauses_below - 1.0, event.pauses_below + 1.0
    return (0.6, 1.1) if event.scaled else (float("nan"), float("nan"))


def _base(program: Program, world: World, *, e: int) -> Floats:
    """Shape (stages, e): how likely each event is by itself; opting out and in never are."""
    chances = np.zeros((len(program.stages), e))
    depth = _depths(program)
    for j, event in enumerate(program.events):
        if event.name not in (OPT_OUT, OPT_IN):
            chances[:, j] = _places(program, event) * _commonness(program, world, event)
    everyday = np.array([is_everyday(program, x) for x in program.events] + [False] * (e - len(program.events)))
    with np.errstate(divide="ignore"):
        base: Floats = logit(chances)
    base += np.where(everyday, (world.depth * (depth - 0.5))[:, None], 0.0)
    return base


def _depths(program: Program) -> Floats:
    """Shape (stages,): how far along the journey, 0 to 1; stages that one lapses into from earlier are at 0."""
    index = program.stage_index
    quiet = {s.lapses_to for i, s in enumerate(program.stages) if s.lapses_to and index[s.lapses_to] > i}
    ahead = [s.name for s in program.stages if s.name not in quiet]
    return np.array([0.0 if s.name in quiet else ahead.index(s.name) / max(len(ahead) - 1, 1) for s in program.stages])


def is_everyday(program: Program, event: Event) -> bool:
    """Whether a step is done any day: not one that moves a stage and has longer to be counted than others."""
    shortest = min((x.window for x in program.events if x.kind == "micro"), default=event.window)
    return event.kind == "micro" and not (event.moves and event.window > shortest)


def _places(program: Program, event: Event) -> Floats:
    """Shape (stages,): where an event happens: 1 in its natural stages, 0 where it makes no sense."""
    if not event.moves or event.kind == "signal" or is_everyday(program, event):
        return np.ones(len(program.stages))
    index = program.stage_index
    moves = {index[a]: index[b] for a, b in event.moves.items()}
    places = np.zeros(len(program.stages))
    if event.kind == "micro":
        places[list(moves)] = 1.0
        return places
    places[list(moves)] = _RARE
    furthest = max((b, a) for a, b in moves.items() if b > a) if any(b > a for a, b in moves.items()) else None
    if furthest:
        places[furthest[1]] = 1.0
        if event.name != program.goal:
            places[furthest[0]] = max(places[furthest[0]], 1.0 if len(moves) == 1 else places[furthest[0]])
    return places


def _commonness(program: Program, world: World, event: Event) -> float:
    """How likely an event is within a day, where it happens: what is worth more is rarer."""
    if event.kind == "signal":
        return world.signal
    if event.kind == "macro":
        group, rate = [x for x in program.events if x.kind == "macro"], world.goal
    elif is_everyday(program, event):
        group, rate = [x for x in program.events if is_everyday(program, x)], world.everyday
    else:
        group, rate = [x for x in program.events if x.kind == "micro" and not is_everyday(program, x)], world.turn
    least = min(abs(x.value) for x in group)
    return rate * float(np.sqrt((least + 0.1) / (abs(event.value) + 0.1)))


def _shift(program: Program, world: World, draw: Draws) -> Floats:
    """Shape (2, k): incentives that cost nothing, timings, pairs and triples, for everybody."""
    space, levels = program.space, program.space.levels[1:]
    i, t, m = levels.T
    names = [list(space.incentives), list(space.tones), list(space.timings)]
    together = draw.normals(world.pair, "incentive x tone", names[0], names[1])[i, t]
    together = together + draw.normals(world.pair, "incentive x timing", names[0], names[2])[i, m]
    together = together + draw.normals(world.pair, "tone x timing", names[1], names[2])[t, m]
    together = together + draw.normals(world.triple, "incentive x tone x timing", *names).reshape(-1)
    together = together + np.array([draw.level(world.timing, "timing", x) for x in space.timings])[m]
    free = _incentives(program, draw, size=world.incentive, costly=False)
    shift = np.zeros((2, space.k))
    shift[STEP, 1:] = world.lift + free[STEP, i] + together
    shift[GOAL, 1:] = world.goal_lift + free[GOAL, i] + together / 2.0
    return shift


def _incentives(program: Program, draw: Draws, *, size: float, costly: bool) -> Floats:
    """Shape (2, incentives): what incentives do to steps and to goals; 0 for those that are not of this sort."""

    def does(incentive: Incentive, channel: str) -> float:
        return draw.level(size, f"incentive on {channel}", incentive.name) if _costs(incentive) is costly else 0.0

    return np.array([[does(x, channel) for x in program.incentives] for channel in ("steps", "goals")])


def _deals(program: Program, world: World) -> Floats:
    """Shape (2, incentives): what being dear adds to goals, saturating in the cost (Michaelis and Menten's curve)."""
    goal = next(abs(e.value) for e in program.events if e.name == program.goal)
    costs = np.array([x.cost for x in program.incentives])
    half = world.deal_half * goal if goal else 1.0
    return np.stack([np.zeros(len(costs)), world.deal * costs / (costs + half)])


def _costs(incentive: Incentive) -> bool:
    return incentive.cost > 0.0


def _tones(program: Program, world: World, draw: Draws) -> Floats:
    main = np.array([draw.level(world.tone, "tone", x) for x in program.space.tones])
    return main + draw.normals(world.affinity, "affinity", [str(i) for i in range(TYPES)], program.space.tones)
