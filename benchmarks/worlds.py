"""In which worlds do learners compete? Some where effects are linear and known, and every world of the simulation.

A world asks for batches of customers with contexts, masks and true expected gains over hold, and answers with rewards.
In the simulation these are the worth of what a customer sets off that day and the program counts, less the cost; caps,
cadence, budget and stock are left out, since they would leave a learner little to choose. Chance is the same for every
learner of a seed; what fatigue and habit make of customers follows from each learner's own choices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from msgspec.structs import replace as replaced

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.customer import deliveries, encode, features
from optimizer.guardrails import Shared
from optimizer.guardrails import allowed as guarded
from optimizer.policy import Rounds
from optimizer.program import Program
from optimizer.programs import read
from simulations.journeys import beginning
from simulations.log import worths
from simulations.population import populate
from simulations.response import expected_of_all
from simulations.rollout import ask, facing, live, slots
from simulations.worlds import WORLDS

BATCH = 500
START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC."""

CUSTOMERS = 2_500
"""Of a simulated world that does not say how many make it what it is: 20,000 decisions are eight days."""


class Asked(NamedTuple):
    """A batch: contexts (n, d), allowed (n, k), expected gains over hold (n, k), codes (n,), times (n,)."""

    contexts: Floats
    allowed: Bools
    gains: Floats
    customers: Ints
    at: Floats


class World(Protocol):
    """Customers who ask in batches, and what they do."""

    name: str
    space: ActionSpace

    def batches(self, decisions: int) -> Iterator[Asked]:
        """Yield customers until so many have asked; `answer` before the next batch."""
        ...

    def answer(self, actions: Ints) -> Floats:
        """Return the rewards (n,) of the actions (n,) chosen for the batch that asked last."""
        ...

    def draws(self) -> Floats:
        """Shape (n,): numbers in [0, 1) that draw the actions of the batch that asked last."""
        ...


# Linear worlds

SPACE = ActionSpace(
    tuple(f"incentive-{i}" for i in range(10)),
    tuple(f"tone-{i}" for i in range(5)),
    tuple(f"timing-{i}" for i in range(6)),
    features=(
        "bias",
        *(f"stage={i}" for i in range(5)),
        *(f"number-{i}" for i in range(7)),
        *(f"category={i}" for i in range(5)),
    ),
)

NUMBERS = np.array([name.startswith("number") for name in SPACE.features[1:]])
BURDEN = 0.1 * (0.3 + 0.3 * float(np.sqrt(2 / np.pi)))
"""What a nudge costs in the world `null`: a tenth of the mean reward under hold."""

LINEAR = ("additive", "pairwise", "threeway", "change", "null")
"""Main effects with slopes; pairs too; triples too; tastes that turn round half way; nudges that only cost."""


class Response(NamedTuple):
    """What nudges do: levels and their slopes by factor, pairs of factors, cells; the nudge; the reward under hold."""

    levels: list[Floats]
    slopes: list[Floats]
    pairs: list[Floats]
    cells: Floats
    nudge: Floats
    baseline: Floats

    def gains(self, x: Floats, *, taste: float = 1.0) -> Floats:
        """Return the expected gain (n, k) over hold."""
        i, t, m = (taste * (a + x @ s.T) for a, s in zip(self.levels, self.slopes, strict=True))
        grid = i[:, :, None, None] + t[:, None, :, None] + m[:, None, None, :] + (x @ self.nudge)[:, None, None, None]
        grid = grid + self.pairs[0][:, :, None] + self.pairs[1][:, None, :] + self.pairs[2][None] + self.cells
        return np.concatenate([np.zeros((len(x), 1)), grid.reshape(len(x), -1)], axis=1)


def response(name: str, *, seed: int) -> Response:
    """Draw the effects of a linear world."""
    rng = np.random.default_rng(seed)
    null, d = name == "null", SPACE.d
    size = 0.0 if null else 0.15
    shapes = [(SPACE.shape[a], SPACE.shape[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    return Response(
        levels=[size * rng.normal(size=n) for n in SPACE.shape],
        slopes=[size * rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.3) * 0.7 for n in SPACE.shape],
        pairs=[size * rng.normal(size=shape) * (name in ("pairwise", "threeway")) for shape in shapes],
        cells=size * rng.normal(size=SPACE.shape) * (name == "threeway"),
        nudge=np.append(-BURDEN, np.zeros(d - 1)) if null else np.append(-0.1, 0.1 * rng.normal(size=d - 1)),
        baseline=np.append(0.3, 0.3 * rng.normal(size=d - 1) * NUMBERS) if null else 0.3 * rng.normal(size=d),
    )


def contexts(n: int, rng: np.random.Generator) -> Floats:
    """Shape (n, d): a constant, a stage, seven numbers and a category."""
    x = np.zeros((n, SPACE.d))
    x[:, 0] = 1.0
    x[np.arange(n), 1 + rng.integers(0, 5, n)] = 1.0
    x[:, 6:13] = rng.normal(size=(n, 7))
    x[np.arange(n), 13 + rng.integers(0, 5, n)] = 1.0
    return x


def masks(n: int, rng: np.random.Generator) -> Bools:
    """Shape (n, k): seven nudges in ten."""
    allowed = rng.random((n, SPACE.k)) < 0.7
    allowed[:, 0] = True
    return allowed


@dataclass
class Linear:
    """A linear response with known effects; under hold a reward that is not linear, and larger than any effect."""

    name: str
    seed: int
    decisions: int
    space: ActionSpace = SPACE
    _now: Asked | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.noise = 0.15 if self.name == "change" else 0.5  # there 90 % of the best is within reach, before and after
        self._response = response(self.name, seed=self.seed)
        self._people = np.random.default_rng([self.seed, 1])
        self._chance = np.random.default_rng([self.seed, 2])

    def batches(self, decisions: int) -> Iterator[Asked]:
        for start in range(0, decisions, BATCH):
            n = min(BATCH, decisions - start)
            x = contexts(n, self._people)
            taste = -1.0 if self.name == "change" and start >= self.decisions / 2 else 1.0
            gains = self._response.gains(x, taste=taste)
            order = start + np.arange(n)
            at = np.asarray(START + 30.0 * order, dtype=np.float64)
            self._now = Asked(x, masks(n, self._people), gains, order // 4, at)
            yield self._now

    def draws(self) -> Floats:
        return self._chance.random(len(self._asked.contexts))

    def answer(self, actions: Ints) -> Floats:
        x, gains = self._asked.contexts, self._asked.gains
        expected = x @ self._response.baseline + 0.3 * np.abs(x[:, 6])
        rewards: Floats = expected + gains[np.arange(len(x)), actions] + self.noise * self._chance.normal(size=len(x))
        return rewards

    @property
    def _asked(self) -> Asked:
        assert self._now is not None
        return self._now


# The simulation's worlds


class Simulated:
    """A world of the simulation, on the program with 300 nudges; tastes turn round half way in `drift`."""

    def __init__(self, name: str, *, seed: int, decisions: int) -> None:
        self.name, self.seed = name, seed
        world = WORLDS[name]
        customers = min(world.customers if world.customers < CUSTOMERS // 2 else CUSTOMERS, decisions)
        if world.drift_day is not None:
            world = replace(world, drift_day=max(decisions // customers // 2, 1))
        self.program = _open(Program.parse(read("fitness-coaching"), source="fitness-coaching.toml"))
        self.space = self.program.space
        self.population = populate(self.program, world, customers=customers, seed=seed, start=START)
        self.state = beginning(self.population)

    def batches(self, decisions: int) -> Iterator[Asked]:
        left, day = decisions, 0
        while left > 0:
            for rows in slots(self.population, day=day, size=BATCH):
                if left <= 0:
                    return
                yield self._ask(rows, day)
                left -= rows.stop - rows.start
            day += 1

    def _ask(self, rows: slice, day: int) -> Asked:
        self.asking = ask(self.population, self.state, rows=rows, day=day)
        self.now = facing(self.asking, deliveries(self.program, self.asking.cohort)[0])
        self.until = self.now.asks[:, None] + self.population.windows
        mask = guarded(self.program, self.asking.cohort, shared=Shared.unlimited(self.program)).mask
        worth = expected_of_all(self.now, until=self.until, worth=self.population.effects.worth)
        gains: Floats = worth - worth[:, :1] - self.space.action_costs
        x = encode(self.program, features(self.program, self.asking.cohort))
        return Asked(x, mask, gains, np.arange(rows.start, rows.stop), self.now.asks)

    def draws(self) -> Floats:
        return self.population.chance("draw", self.asking.day, rows=self.asking.rows, columns=1)[:, 0]

    def answer(self, actions: Ints) -> Floats:
        rewards = -self.space.action_costs[actions]
        happened = live(self.asking, self.now, actions)
        happened = happened.take(happened.event < len(self.program.events))
        row = happened.customer - self.asking.rows.start
        counts = happened.at < self.until[row, happened.event]
        np.add.at(rewards, row[counts], worths(self.program, happened)[counts])
        return rewards


def _open(program: Program) -> Program:
    """Return the program without what rations nudges: caps, cooldown, cadence, budget, stock, ladder and tiers."""
    rules = replaced(
        program.guardrails,
        cap_per_day=32,
        cap_per_week=32,
        cap_per_week_by_kind={},
        scarce_per_week=32,
        cooldown=type(program.guardrails.cooldown)(0),
        cadence=None,
        budget=None,
    )
    incentives = tuple(replaced(i, stock=None, ladder="", min_momentum=0.0) for i in program.incentives)
    return replaced(program, guardrails=rules, incentives=incentives)


def world(family: str, name: str, *, seed: int, decisions: int) -> World:
    """Return a world of a family, `linear` or `simulated`."""
    if family == "linear":
        return Linear(name, seed, decisions)
    return Simulated(name, seed=seed, decisions=decisions)


def rounds(asked: Asked, *, p: Floats, actions: Ints, rewards: Floats) -> Rounds:
    """Return what a learner is told of a batch."""
    nothing = np.zeros(len(actions))
    return Rounds(
        asked.contexts,
        asked.allowed,
        p.astype(np.float32),
        actions,
        rewards,
        asked.customers,
        asked.at,
        nothing,
        nothing,
        np.zeros(len(actions), dtype=np.intp),
    )


def names(families: Sequence[str] = ("linear", "simulated")) -> list[tuple[str, str]]:
    """Return every world, as (family, name)."""
    known = {"linear": LINEAR, "simulated": tuple(WORLDS)}
    return [(family, name) for family in families for name in known[family]]
