"""What does a learner lose while it learns? A closed loop in a world, every result kept, so that a run can be stopped.

All choose under the same floor, in the same worlds, from the same contexts, and learn every 500 decisions. Regret is
the expected loss against the best allowed action: of the policy under the floor, and net of it, of the policy alone.
"""

import ast
import json
import time
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from benchmarks import peers
from benchmarks.peers import CACHE, HERE, Apart, Setting, vowpal
from benchmarks.worlds import World, rounds, world
from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.events import draws
from optimizer.floor import apply_floor
from optimizer.policy import Rounds
from optimizer.program import Exploration
from policies import KINDS

MADE_OF = (
    *("changes", "compiled", "factored", "ladders", "layout", "model"),
    *("posterior", "spans", "squarecb", "thompson", "threads"),
)
"""The modules that what our judged learners choose depends on."""


class Learner(Protocol):
    """What the closed loop needs."""

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats: ...

    def learn(self, rounds: Rounds) -> None: ...


class Cell(NamedTuple):
    """One learner in one world under one seed."""

    family: str
    world: str
    learner: str
    seed: int
    decisions: int


class Lost(msgspec.Struct, frozen=True):
    """What a learner lost, by batch: under the floor, and alone; what it could have gained; how often it nudged."""

    floored: list[float]
    alone: list[float]
    best: list[float]
    nudged: list[float]
    seconds: float

    @property
    def regret(self) -> float:
        """Return the loss a decision under the floor."""
        return float(np.mean(self.floored))

    @property
    def net(self) -> float:
        """Return the loss a decision of the policy alone."""
        return float(np.mean(self.alone))


def play(learner: Learner, told: World, *, decisions: int) -> Lost:
    """Let a learner decide and learn, batch by batch."""
    lost: dict[str, list[float]] = {"floored": [], "alone": [], "best": [], "nudged": []}
    began = time.process_time()
    for asked in told.batches(decisions):
        alone = learner.probabilities(asked.contexts, asked.allowed, np.zeros(told.space.k))
        p = apply_floor(alone, told.space, allowed=asked.allowed, exploration=Exploration())
        best = np.where(asked.allowed, asked.gains, -np.inf).max(axis=1)
        lost["floored"].append(float(np.mean(best - (p * asked.gains).sum(axis=1))))
        lost["alone"].append(float(np.mean(best - (alone * asked.gains).sum(axis=1))))
        lost["best"].append(float(best.mean()))
        lost["nudged"].append(float(1.0 - alone[:, 0].mean()))
        actions = draws(p.astype(np.float32), told.draws())
        learner.learn(rounds(asked, p=p, actions=actions, rewards=told.answer(actions)))
    return Lost(**lost, seconds=time.process_time() - began)


def settings() -> dict[str, Setting]:
    """Return the peers' settings, by what a table calls them."""
    return {peers.name(s): s for s in peers.GRID}


def found(cell: Cell, *, make: Callable[[ActionSpace], Learner] | None = None) -> Lost:
    """Return what a learner loses in a cell, from what is kept where it is."""
    path = kept(cell)
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Lost)
    told = world(cell.family, cell.world, seed=cell.seed, decisions=cell.decisions)
    learner = make(told.space) if make else _learner(cell, told.space)
    lost = play(learner, told, decisions=cell.decisions)
    if isinstance(learner, Apart):
        learner.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(lost))
    return lost


def kept(cell: Cell) -> Path:
    """Return where a cell is kept: named by all that it depends on."""
    ours = cell.learner.split()[0] in KINDS  # "thompson half-life inf" too
    key = json.dumps([*cell, _world_code(*cell._replace(learner="")), _code() if ours else _peers_code()])
    return CACHE / "regret" / f"{sha256(key.encode()).hexdigest()[:24]}.json"


def _learner(cell: Cell, space: ActionSpace) -> Learner:
    if cell.learner in KINDS:
        return KINDS[cell.learner](space)  # type: ignore[call-arg]  # learners take a space
    setting = settings()[cell.learner]
    return vowpal(space, setting) if setting.peer == peers.VW else Apart(space, setting, seed=cell.seed)


@cache
def _world_code(family: str, name: str, _learner: str, seed: int, decisions: int) -> str:
    """Return a hash of what a world's first customers are and are offered: another world, another name."""
    told = world(family, name, seed=seed, decisions=decisions)
    asked = next(iter(told.batches(decisions)))
    return sha256(asked.gains.round(9).tobytes() + asked.contexts.round(9).tobytes()).hexdigest()


@cache
def _code() -> str:
    """Return a hash of what our learners are made of."""
    return _hashed(HERE.parent / "policies" / f"{name}.py" for name in MADE_OF)


@cache
def _peers_code() -> str:
    return _hashed([HERE / "peers_worker.py"]) + (HERE / "peers-requirements.txt").read_text(encoding="utf-8")


def _hashed(paths: Iterable[Path]) -> str:
    """Return a hash of programs, whatever their comments and layout."""
    parsed = [ast.dump(ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(paths)]
    return sha256("".join(parsed).encode()).hexdigest()
