"""Who are the simulated customers? What makes each of them act, most of it hidden, some of it shown by attributes."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from optimizer.actions import Bools, Floats, Ints
from optimizer.customer import Columns, utc_offset
from optimizer.events import Scalar
from optimizer.program import DAY, Attribute, Program
from simulations.effects import Effects, effects
from simulations.purse import Gone, Purse
from simulations.worlds import World

TYPE_SHARES = (0.4, 0.35, 0.25)
"""How common the latent types are that like one tone and not another."""

PEAKS = (8.5, 12.5, 19.0)
"""Local hours at which the three chronotypes are at their best; shares as `PEAK_SHARES`."""
PEAK_SHARES = (0.35, 0.25, 0.4)

ASKS_FROM, ASKS_UNTIL = 7.5, 20.0
"""Local hours between which the app asks what to do next, once a day, for each customer at an hour of its own."""

LONGEST_RUN = 1_095
"""Days that a simulation can last: three years."""

_QUARTER = 900.0
_BEFORE = 40
_TRAITS = 8


@dataclass(frozen=True)
class People:
    """What makes `n` customers act, a column a trait, in the order in which they ask. Only attributes and zone show.

    Args:
        first_ask: (n,), seconds since the epoch, ascending; then every 24 hours.
        zone: (n,), index into the population's zones.
        attributes: shown to the policy, as `optimizer.customer.Cohort` has them.
        activity, intent: (n,), added to the logit of everyday steps, and of goals.
        price: (n,), what an incentive that costs something does, relative to the average customer.
        type: (n,), latent type: which tones appeal.
        peak: (n,), local hour at which nudges do most.
        responsiveness, fatigability, leaving, lapsing: (n,), factors about 1.
        gaming: (n,), whether they go through the motions for what incentives give, and never reach a goal.
    """

    first_ask: Floats
    zone: Ints
    attributes: Columns
    activity: Floats
    intent: Floats
    price: Floats
    type: Ints
    peak: Floats
    responsiveness: Floats
    fatigability: Floats
    leaving: Floats
    lapsing: Floats
    gaming: Bools

    def __len__(self) -> int:
        return len(self.first_ask)


@dataclass(frozen=True)
class Population:
    """Simulated customers of a program in a world. Everything follows from the seed.

    Args:
        offsets: (zones, quarters of an hour from `_BEFORE` days before the start), local time minus UTC in seconds.
    """

    program: Program
    world: World
    seed: int
    start: float
    people: People
    effects: Effects
    offsets: Floats

    def __len__(self) -> int:
        return len(self.people)

    @property
    def zones(self) -> tuple[str, ...]:
        """The IANA names that occur."""
        return tuple(name for name, _ in self.world.zones)

    def purse(self) -> Purse:
        """Return what there is to spend and to offer at the start, and what the world will take away later."""
        return Purse.full(self.program, at=self.start, gone=self._gone(), cuts=self._cuts())

    def _gone(self) -> tuple[Gone, ...]:
        """What cannot be offered, and when: the newcomer before it comes, the retired after, all during an outage."""
        world, incentives = self.world, self.program.space.incentives

        def on(day: float) -> float:
            return self.start + day * DAY

        found = []
        if world.arrival_day is not None:
            found.append(Gone(f"incentive={incentives[-1]}", -np.inf, on(world.arrival_day)))
        if world.retirement_day is not None:
            found.append(Gone(f"incentive={incentives[0]}", on(world.retirement_day), np.inf))
        if world.outage is not None:
            found.append(Gone("program", on(world.outage[0]), on(sum(world.outage))))
        return tuple(found)

    def _cuts(self) -> tuple[tuple[float, float], ...]:
        shock = self.world.budget_shock
        return ((self.start + shock[0] * DAY, shock[1]),) if shock else ()

    @property
    def windows(self) -> Floats:
        """Shape (e,): seconds after a decision within which each event counts; 0 for one that is not declared."""
        undeclared = len(self.effects.events) - len(self.program.events)
        return np.concatenate([self.program.windows, np.zeros(undeclared)])

    def name(self, customer: int) -> str:
        """Return the customer's id: the same in every run of a seed."""
        return f"sim-{self.seed}-{customer}"

    def index(self, name: str) -> int:
        """Return the customer of an id; ValueError if this population has none of that name."""
        prefix, _, number = name.rpartition("-")
        if prefix != f"sim-{self.seed}" or not number.isdecimal() or int(number) >= len(self):
            raise ValueError(
                f"{name!r} is none of {len(self)} customers of seed {self.seed}: expected {self.name(0)!r} and so on"
            )
        return int(number)

    def decision_id(self, customer: int, *, day: int) -> str:
        """Return the id of a customer's decision of a day."""
        return f"sim-{self.seed}-{customer}-{day}"

    def asks(self, day: int, *, rows: slice = slice(None)) -> Floats:
        """Shape (n,): when each customer asks on a day."""
        return self.people.first_ask[rows] + day * DAY

    def local(self, customers: Ints, times: Floats) -> Floats:
        """Return local time in seconds (m,) of customers (m,) at times (m,)."""
        quarters = ((times - self.start) // _QUARTER).astype(np.intp) + _BEFORE * 96
        return times + self.offsets[self.people.zone[customers], quarters]

    def chance(self, purpose: str, day: int, *, rows: slice, columns: int, fork: int = 0) -> Floats:
        """Return uniform numbers (n, columns) that are a pure function of seed, purpose, day, fork and customer.

        Counter-based, so that rows may be asked for in any slices (Salmon et al., 2011).
        """
        width = -(-columns // 4) * 4  # a Philox block is four numbers: rows start at a block
        start, stop, _ = rows.indices(len(self))
        bits = np.random.Philox(key=_key(self.seed, purpose, day, fork)).advance(start * width // 4)
        return np.random.Generator(bits).random((stop - start, width))[:, :columns]

    def attributes_of(self, customer: int) -> dict[str, Scalar]:
        """Return what the app knows of a customer: what it would send to the service. Unknown ones are left out."""
        shown: dict[str, Scalar] = {}
        for attribute in self.program.attributes:
            value = self.people.attributes[attribute.name][customer].item()
            if attribute.kind == "category":
                shown |= {attribute.name: attribute.categories[value]} if value >= 0 else {}
            elif not np.isnan(value):
                shown[attribute.name] = bool(value) if attribute.kind == "flag" else value
        return shown


def populate(program: Program, world: World, *, customers: int, seed: int, start: float) -> Population:
    """Return a population whose traits, effects and chance all follow from the seed.

    Args:
        program: any program; its attributes show the hidden traits as faithfully as the world says.
        world: the settings.
        customers: how many.
        seed: of everything.
        start: when the first day begins, seconds since the epoch, on a quarter of an hour.

    Raises:
        ValueError: without customers, or for a start that is not on a quarter of an hour.
    """
    if customers < 1:
        raise ValueError(f"customers = {customers!r}: simulate at least 1")
    if start % _QUARTER:
        raise ValueError(f"start = {start!r} is not on a quarter of an hour: use {start // _QUARTER * _QUARTER!r}")
    offsets = np.stack([_offsets(zone, start=start) for zone, _ in world.zones])
    return Population(
        program=program,
        world=world,
        seed=seed,
        start=start,
        people=_people(program, world, n=customers, seed=seed, start=start, offsets=offsets[:, _BEFORE * 96]),
        effects=effects(program, world, seed=seed),
        offsets=offsets,
    )


def _people(program: Program, world: World, *, n: int, seed: int, start: float, offsets: Floats) -> People:
    u = np.random.Generator(np.random.Philox(key=_key(seed, "people", 0, 0))).random((n, 16))
    zone = _pick(u[:, 0], [share for _, share in world.zones])
    hour = ASKS_FROM + (ASKS_UNTIL - ASKS_FROM) * u[:, 1]
    first = start + (hour * 3_600.0 - start - offsets[zone]) % DAY
    order = np.argsort(first, kind="stable")
    u, zone, first = u[order], zone[order], np.floor(first[order])
    z = ndtri(np.clip(u[:, 4 : 4 + _TRAITS], 1e-12, 1 - 1e-12))
    kind, chronotype = _pick(u[:, 2], TYPE_SHARES), _pick(u[:, 3], PEAK_SHARES)
    shown = Shown(activity=z[:, 0], price=z[:, 1], patience=z[:, 2], type=kind, chronotype=chronotype)
    seen, hidden = np.sqrt(1.0 - world.hidden), np.sqrt(world.hidden)
    return People(
        first_ask=first,
        zone=zone,
        attributes=_attributes(program, world, shown=shown, seed=seed),
        activity=world.activity * (seen * z[:, 0] + hidden * z[:, 3]),
        intent=world.intent * z[:, 4],
        price=_lognormal(z[:, 1], world.price) * np.exp(-world.bargain * world.intent * z[:, 4]),
        type=kind,
        peak=np.array(PEAKS)[chronotype] + 0.5 * z[:, 5],
        responsiveness=_lognormal(z[:, 6], world.responsiveness),
        fatigability=_lognormal(-z[:, 2], 0.4),
        leaving=_lognormal(z[:, 7], 0.7),
        lapsing=_lognormal(ndtri(np.clip(u[:, 13], 1e-12, 1 - 1e-12)), 0.7),
        gaming=u[:, 12] < world.gaming,
    )


@dataclass(frozen=True)
class Shown:
    """The traits (n,) that attributes may show: standard normal, or a kind by index."""

    activity: Floats
    price: Floats
    patience: Floats
    type: Ints
    chronotype: Ints


def _attributes(program: Program, world: World, *, shown: Shown, seed: int) -> Columns:
    """Let each attribute show a trait, in turn: names of timings the chronotype, other categories the type or price.

    A category is the trait's own with chance `fidelity`, else any; a number correlates with it by `fidelity`.
    """
    n = len(shown.type)
    columns: dict[str, npt.NDArray[np.generic]] = {}
    kinds, numbers = _turns(shown)
    for attribute in program.attributes:
        u = np.random.Generator(np.random.Philox(key=_key(seed, f"attribute {attribute.name}", 0, 0))).random((n, 3))
        unknown = u[:, 2] < world.missing
        if attribute.kind == "category":
            if _tells_hours(program, attribute):
                trait = shown.chronotype
            else:
                trait = kinds.pop(0)
                kinds.append(trait)
            columns[attribute.name] = np.where(unknown, -1, _category(attribute, trait, u=u, fidelity=world.fidelity))
        else:
            trait_ = numbers.pop(0)
            numbers.append(trait_)
            mixed = world.fidelity * trait_ + np.sqrt(1.0 - world.fidelity**2) * ndtri(
                np.clip(u[:, 0], 1e-12, 1 - 1e-12)
            )
            columns[attribute.name] = np.where(unknown, np.nan, _number(attribute, mixed))
    return columns


def _turns(shown: Shown) -> tuple[list[Ints], list[Floats]]:
    thirds = _pick_by_rank(shown.price)
    return [shown.type, thirds], [shown.activity, shown.patience, shown.price]


def _pick_by_rank(normal: Floats) -> Ints:
    """Cut a standard normal trait into thirds."""
    return np.digitize(normal, ndtri(np.array([1 / 3, 2 / 3])))


def _tells_hours(program: Program, attribute: Attribute) -> bool:
    return any(category == timing.name for category in attribute.categories for timing in program.timings)


def _category(attribute: Attribute, trait: Ints, *, u: Floats, fidelity: float) -> Ints:
    count = len(attribute.categories)
    anyone = np.minimum((u[:, 1] * count).astype(np.intp), count - 1)
    return np.where(u[:, 0] < fidelity, trait % count, anyone)


def _number(attribute: Attribute, trait: Floats) -> Floats:
    if attribute.kind == "flag":
        return (trait > 0).astype(np.float64)
    values = np.round(attribute.mean + attribute.scale * trait, 3)
    return np.maximum(values, 0.0) if attribute.mean > 0 else values


def _lognormal(z: Floats, sd: float) -> Floats:
    """Positive numbers of mean 1 whose log has a given sd."""
    values: Floats = np.exp(sd * z - sd**2 / 2.0)
    return values


def _pick(u: Floats, shares: Sequence[float]) -> Ints:
    return np.searchsorted(np.cumsum(shares[:-1]), u, side="right").astype(np.intp)


def _key(seed: int, purpose: str, day: int, fork: int) -> int:
    """Return the 128-bit key of a stream of chance."""
    text = f"{seed}|{purpose}|{day}|{fork}".encode()
    return int.from_bytes(blake2b(text, digest_size=16).digest(), "big")


def _offsets(zone: str, *, start: float) -> Floats:
    """Local time minus UTC for each quarter of an hour; a day whose ends agree is taken to be of one piece."""
    days = start + DAY * np.arange(-_BEFORE, LONGEST_RUN + 1)
    ends = [utc_offset(zone, t) for t in days.tolist()]
    offsets = np.repeat(np.array(ends[:-1]), 96)
    for day in np.flatnonzero(np.diff(ends)).tolist():
        quarters = days[day] + _QUARTER * np.arange(96)
        offsets[day * 96 : day * 96 + 96] = [utc_offset(zone, t) for t in quarters.tolist()]
    return offsets
