"""How fast do our policies choose and learn, and how little do they lose while learning, beside Vowpal Wabbit?

301 actions, 18 features, one core. VW is used as its documentation says: `cb_explore_adf`, a text line for each allowed
action, predict, then learn with cost and probability. Both choose under the same floor, in the same worlds, from
the same contexts and masks, learning every 500 decisions; regret is also shown of the policy alone, before the floor.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one core, as a worker of the service has

import resource
import time
from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple, Protocol

import numpy as np
from vowpalwabbit import Workspace

from benchmarks.results import Row, write
from optimizer.actions import ActionSpace, Bools, Floats, Floats32
from optimizer.events import draw
from optimizer.floor import apply_floor
from optimizer.policy import Rounds
from optimizer.program import Exploration
from policies.factored import Statistics, summarise
from policies.layout import layout
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from policies.vowpal import Vowpal, actions, features, shared

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
BATCH, DECISIONS, SEEDS = 500, 20_000, range(3)
GRID = ("--squarecb", "--squarecb --gamma_scale 1000 -l 2", "--squarecb --gamma_scale 1000", "--epsilon 0.05 -l 2")
FLAGS = "--quiet --noconstant --cb_explore_adf -q xh -q xi -q xt -q xm -q it -q im -q tm"


# Worlds


class World(NamedTuple):
    """A linear response with known effects: main effects, their slopes, and pairs where there are any."""

    name: str
    levels: list[Floats]
    slopes: list[Floats]
    pairs: list[Floats]
    nudge: Floats
    baseline: Floats
    noise: float

    def gains(self, x: Floats) -> Floats:
        """Return the expected gain (n, k) over hold."""
        i, t, m = (level + x @ slope.T for level, slope in zip(self.levels, self.slopes, strict=True))
        grid = i[:, :, None, None] + t[:, None, :, None] + m[:, None, None, :] + (x @ self.nudge)[:, None, None, None]
        grid = grid + self.pairs[0][:, :, None] + self.pairs[1][:, None, :] + self.pairs[2][None]
        gains = np.zeros((len(x), SPACE.k))
        gains[:, 1:] = grid.reshape(len(x), -1)
        return gains

    def expected(self, x: Floats) -> Floats:
        """Return the reward (n,) under hold: not linear, and larger than any effect."""
        return x @ self.baseline + 0.3 * np.abs(x[:, 6])


def world(name: str, *, seed: int) -> World:
    """Make a world: `additive`, `pairwise`, or `null`, where every nudge only costs."""
    rng = np.random.default_rng(seed)
    null, d = name == "null", SPACE.d
    size = 0.0 if null else 0.15
    shapes = [(SPACE.shape[a], SPACE.shape[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    return World(
        name=name,
        levels=[size * rng.normal(size=n) for n in SPACE.shape],
        slopes=[size * rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.3) * 0.7 for n in SPACE.shape],
        pairs=[size * rng.normal(size=shape) * (name == "pairwise") for shape in shapes],
        nudge=np.append(-0.03, np.zeros(d - 1)) if null else np.append(-0.1, 0.1 * rng.normal(size=d - 1)),
        baseline=0.3 * rng.normal(size=d),
        noise=0.5,
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


def logged(n: int, *, seed: int) -> Rounds:
    """Return rounds of an even logger in the pairwise world."""
    rng = np.random.default_rng(seed)
    x, allowed = contexts(n, rng), masks(n, rng)
    p = allowed.astype(np.float32) / allowed.sum(axis=1, keepdims=True, dtype=np.float32)
    return played(world("pairwise", seed=1), x, allowed=allowed, p=p, rng=rng)


def played(told: World, x: Floats, *, allowed: Bools, p: Floats32, rng: np.random.Generator) -> Rounds:
    """Draw an action and a reward for each row; a customer is there for four decisions in a row."""
    n = len(x)
    cumulative = np.cumsum(p, axis=1, dtype=np.float64)
    drawn = (cumulative < (rng.random(n) * cumulative[:, -1])[:, None]).sum(axis=1)
    rewards = told.expected(x) + told.gains(x)[np.arange(n), drawn] + told.noise * rng.normal(size=n)
    nothing = np.zeros(n)
    codes = np.arange(n, dtype=np.intp) // 4
    return Rounds(x, allowed, p, drawn, rewards, codes, nothing, nothing, nothing, np.zeros(n, dtype=np.intp))


# Learners


class Learner(Protocol):
    """What the closed loop needs."""

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats: ...

    def learn(self, rounds: Rounds) -> None: ...


class Peer:
    """Vowpal Wabbit from Python, as its users run it: every allowed action is a line, in predict and in learn."""

    def __init__(self, arguments: str) -> None:
        self.workspace = Workspace(f"{FLAGS} {arguments}")
        named = layout(SPACE)
        self.columns, self.lines = features(named), actions(named)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        p = np.zeros(allowed.shape)
        for row, x in enumerate(contexts):
            p[row, allowed[row]] = self.workspace.predict(self.asked(x, allowed[row]))
        return p

    def asked(self, x: Floats, allowed: Bools) -> list[str]:
        """Return a decision as VW reads it."""
        return [shared(self.columns, x), *(self.lines[a] for a in np.flatnonzero(allowed))]

    def learn(self, rounds: Rounds) -> None:
        for row in range(len(rounds)):
            lines = self.asked(rounds.contexts[row], rounds.allowed[row])
            at = 1 + int(rounds.allowed[row, : rounds.actions[row]].sum())
            cost, share = -float(rounds.rewards[row]), float(rounds.propensities[row])
            lines[at] = f"0:{cost!r}:{share!r} {lines[at]}"
            self.workspace.learn(lines)


class Regret(NamedTuple):
    """Loss a decision, against the best allowed action: of the policy under the floor, and of the policy alone."""

    floored: float
    alone: float


def regret(learner: Learner, told: World, *, seed: int) -> Regret:
    """Let a learner decide for 20,000 customers, learning every 500, in a world where chance is the same for all."""
    people, chance = np.random.default_rng(seed), np.random.default_rng(seed + 1_000)
    lost = np.zeros(2)
    for _ in range(DECISIONS // BATCH):
        x, allowed = contexts(BATCH, people), masks(BATCH, people)
        gains = told.gains(x)
        alone = learner.probabilities(x, allowed, np.zeros(SPACE.k))
        p = apply_floor(alone, SPACE, allowed=allowed, exploration=Exploration())
        best = np.where(allowed, gains, -np.inf).max(axis=1)
        lost += [float((best - (q * gains).sum(axis=1)).sum()) for q in (p, alone)]
        learner.learn(played(told, x, allowed=allowed, p=p.astype(np.float32), rng=chance))
    return Regret(*(lost / DECISIONS).tolist())


# Measures


def seconds(once: Callable[[], object], *, repeat: int) -> float:
    """Return the processor time of one call: the best of five runs, so that a busy machine counts less."""
    once()
    best = np.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeat):
            once()
        best = min(best, (time.process_time() - start) / repeat)
    return best


def row(name: str, *, ours: float, peer: float, peer_name: str, unit: str, at_most: float, said: str) -> Row:
    ratio = ours / peer
    return Row(
        name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, ratio=ratio, target=said, met=ratio <= at_most
    )


def choosing() -> list[Row]:
    """One decision (probabilities, floor, draw) and a row of a batch of 1,000, beside VW's predict."""
    rounds = logged(3_000, seed=2)
    peer = Peer("--squarecb")
    peer.learn(rounds.take(slice(0, 300)))
    x, allowed = rounds.contexts[:1_000], np.ones((1_000, SPACE.k), dtype=np.bool_)
    prices = np.zeros(SPACE.k)
    asked = peer.asked(x[0], allowed[0])
    theirs = 1e6 * seconds(lambda: peer.workspace.predict(asked), repeat=50)
    rows = []
    for learner, single, batch in ((Thompson(SPACE), 15, 30), (SquareCB(SPACE), 20, 100), (Vowpal(SPACE), 50, 50)):
        learner.learn(rounds)

        def choose(learner: Learner = learner) -> int:
            p = learner.probabilities(x[:1], allowed[:1], prices)
            return draw(
                apply_floor(p, SPACE, allowed=allowed[:1], exploration=Exploration())[0].astype(np.float32), 0.5
            )

        def predict(learner: Learner = learner) -> Floats:
            return learner.probabilities(x[:1], allowed[:1], prices)

        def together(learner: Learner = learner) -> Floats:
            return learner.probabilities(x, allowed, prices)

        name = learner.name
        once = predict if name == "vowpal" else choose  # compiled VW beside VW: the same work
        said = "predict, compiled" if name == "vowpal" else "one decision"
        for what, ours, wanted in (
            (f"{name}: {said}", 1e6 * seconds(once, repeat=100), single),
            (f"{name}: a row of 1,000", 1e6 * seconds(together, repeat=2) / 1_000, batch),
        ):
            rows.append(
                row(
                    what,
                    ours=ours,
                    peer=theirs,
                    peer_name="VW predict",
                    unit="µs",
                    at_most=1 / wanted,
                    said=f"1/{wanted}",
                )
            )
    return rows


def learning() -> list[Row]:
    """Learning from a million rounds, shard by shard, beside VW's rate on the same rounds."""
    shard, shards = logged(20_000, seed=3), 50
    start = time.process_time()
    summed = reduce(Statistics.__add__, (summarise(SPACE, shard) for _ in range(shards)))
    Thompson(SPACE).absorb(summed)
    ours = time.process_time() - start
    few, peer = shard.take(slice(0, 400)), Peer("--squarecb")
    peer.learn(few)
    theirs = seconds(lambda: peer.learn(few), repeat=1) / len(few) * len(shard) * shards
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        row(
            "learning a million rounds",
            ours=ours,
            peer=theirs,
            peer_name="VW learn",
            unit="s",
            at_most=1 / 20,
            said="1/20",
        ),
        _bound("learning a million rounds: time", ours=ours, unit="s", most=60.0),
        _bound("learning a million rounds: memory", ours=gib, unit="GiB", most=2.0),
    ]


def _bound(name: str, *, ours: float, unit: str, most: float) -> Row:
    return Row(
        name=name, ours=ours, peer=None, peer_name=None, unit=unit, ratio=None, target=f"<= {most:g}", met=ours <= most
    )


def losing() -> list[Row]:
    """Mean regret a decision over seeds, ours untuned, VW at its defaults and at the best of the grid in each world."""
    rows = []
    for name, default, tuned in (("additive", 0.5, 0.75), ("pairwise", 0.5, 0.75), ("null", 1.05, 1.05)):
        peers = {a: _mean(partial(Peer, a), name) for a in GRID}
        best = min(GRID, key=lambda a: peers[a].floored)
        for kind in (Thompson, SquareCB):
            ours = _mean(partial(kind, SPACE), name)
            for peer, wanted in ((GRID[0], default), (best, tuned)):
                for part in Regret._fields:
                    what = f"{kind.name}: regret, {name} world, {'with floor' if part == 'floored' else 'policy alone'}"
                    rows.append(
                        row(
                            what,
                            ours=getattr(ours, part),
                            peer=getattr(peers[peer], part),
                            peer_name=f"VW {peer}",
                            unit="reward",
                            at_most=wanted,
                            said=f"<= {wanted:g}",
                        )
                    )
    return rows


def _mean(make: Callable[[], Learner], name: str) -> Regret:
    runs = [regret(make(), world(name, seed=seed), seed=seed) for seed in SEEDS]
    return Regret(*np.mean(runs, axis=0).tolist())


def main() -> None:
    write("policies", [*choosing(), *learning(), *losing()])


if __name__ == "__main__":
    main()
