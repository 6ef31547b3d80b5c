"""Made-up logs whose truth is known: rounds of the small program, and worlds small enough to enumerate."""

from dataclasses import dataclass

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats, Floats32, Ints
from optimizer.floor import apply_floor
from optimizer.policy import Rounds
from optimizer.program import Program
from policies.fixed import Fits, Rules, Uniform
from tests.small_program import NOON, small
from training.dataset import Dataset


@dataclass(frozen=True)
class World:
    """A log, and the expected reward (n, k) of every action on each of its rounds."""

    dataset: Dataset
    truth: Floats

    def value(self, vectors: Floats) -> float:
        """Return what a target (n, k) is truly worth on these contexts and masks."""
        return float((vectors * self.truth).sum(axis=1).mean())


def made_up(
    *, n: int = 3_000, customers: int = 600, seed: int = 0, lift: float = 0.4, program: Program | None = None
) -> World:
    """Return a log of the small program under the uniform policy.

    Badges add `lift` for stage `new`, coupons cost more than they bring, customers differ, rewards are noisy.
    """
    program = program or small()
    space, rng = program.space, np.random.default_rng(seed)
    stages = rng.integers(0, len(program.stages), size=n)
    contexts = rng.normal(size=(n, space.d)) * 0.3
    contexts[:, : 1 + len(program.stages)] = np.hstack([np.ones((n, 1)), np.eye(len(program.stages))[stages]])
    allowed = rng.random((n, space.k)) < 0.8
    allowed[:, 0] = True
    vectors = uniform_vectors(program, contexts, allowed)
    actions = np.array([rng.choice(space.k, p=p / p.sum()) for p in vectors.astype(np.float64)])
    truth = 0.5 + 0.2 * contexts[:, [4]] + _effects(space, stages, lift=lift)
    who = rng.integers(0, customers, size=n)
    temper = rng.normal(size=customers) * 0.3
    rewards = truth[np.arange(n), actions] + temper[who] + rng.normal(size=n) * 0.5
    rounds = Rounds(
        contexts=contexts,
        allowed=allowed,
        probabilities=vectors,
        actions=actions,
        rewards=rewards,
        customers=who,
        at=NOON + np.sort(rng.random(n)) * 14 * 86_400,
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.zeros(n, dtype=np.intp),
    )
    dataset = Dataset(
        program=program,
        rounds=rounds,
        training_rewards=rewards,
        stages=stages,
        events={"upgraded": (rewards > 1.0).astype(np.float64), "opt_out": (rewards < -1.0).astype(np.float64)},
        customers=tuple(f"c{i}" for i in range(customers)),
        loggers=("uniform",),
        total=n,
        matured=n,
    )
    return World(dataset, truth)


def _effects(space: ActionSpace, stages: Ints, *, lift: float) -> Floats:
    badge = (space.levels[:, 0] == space.incentives.index("badge")).astype(np.float64)
    coupon = (space.levels[:, 0] == space.incentives.index("coupon")).astype(np.float64)
    playful = (space.levels[:, 1] == space.tones.index("playful")).astype(np.float64)
    new = (stages == 0)[:, None]
    effects: Floats = np.where(new, lift * badge, 0.0) - 0.3 * coupon + 0.1 * playful * badge
    return effects


def uniform_vectors(program: Program, contexts: Floats, allowed: Bools) -> Floats32:
    """Return what `Uniform` would draw from, floored, as it is logged (n, k)."""
    space = program.space
    vectors = Uniform(space).probabilities(contexts, allowed, np.zeros(space.k))
    floored = apply_floor(vectors, space, allowed=allowed, exploration=program.exploration)
    return floored.astype(np.float32)


def best_for(program: Program, actions: dict[str, str]) -> Rules:
    """Return the policy that does one action in each stage where it is allowed, else holds."""
    space = program.space
    nudges = {s: n for s, a in actions.items() if (n := space.nudge(space.names.index(a)))}
    return Rules(space, rules=[Fits(((f"stage={s}",),), n) for s, n in nudges.items()])


def rounds_of(
    probabilities: Floats | Floats32,
    *,
    actions: Ints,
    rewards: Floats,
    allowed: Bools | None = None,
    customers: Ints | None = None,
    exact: bool = False,
) -> Rounds:
    """Return bare rounds (n, k): one customer each, no context. `exact` keeps probabilities in float64."""
    n = len(actions)
    return Rounds(
        contexts=np.ones((n, 1)),
        allowed=np.ones(probabilities.shape, dtype=np.bool_) if allowed is None else allowed,
        probabilities=probabilities if exact else probabilities.astype(np.float32),  # type: ignore[arg-type]
        actions=actions,
        rewards=rewards,
        customers=np.arange(n) if customers is None else customers,
        at=np.arange(n, dtype=np.float64),
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.zeros(n, dtype=np.intp),
    )
