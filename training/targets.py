"""Which policies are valued? Today's, baselines, and what would be deployed: each by what it would have drawn from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optimizer.actions import HOLD, ActionSpace, Floats, Nudge
from optimizer.floor import apply_floor
from optimizer.policy import Policy, Rounds
from optimizer.program import Program
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from training.dataset import Dataset
from training.evaluation import Role
from training.reading import REWARD, models_of
from training.vectors import blocks

TODAY = "today"
"""The name of the logging policy as a target."""

_FIXED_FROM = 20
"""Draws of a nudge, and customers, below which it is not said to be the best."""


@dataclass(frozen=True)
class Target:
    """A policy to be valued: its name, and what it would have drawn from.

    `vectors` maps n rounds to probabilities (n, k), under the masks and prices of the log.
    """

    name: str
    title: str
    role: Role
    vectors: Callable[[Rounds], Floats]
    version: str = ""


def today() -> Target:
    """Return the logging policy: the vectors that were drawn from."""
    return Target(TODAY, "Today's policy", "today", _logged)


def plain(name: str, policy: Policy, space: ActionSpace, *, title: str) -> Target:
    """Return a baseline without a floor: people who follow a rule, or switch a service off, explore nothing."""
    return Target(name, title, "baseline", _asking(policy, space))


def hold_all(space: ActionSpace) -> Target:
    """Return the target that nudges nobody."""
    return plain("hold", Hold(space), space, title="No nudges at all")


def always(space: ActionSpace, action: str) -> Target:
    """Return the target that always makes one nudge, named `incentive/tone/timing`, where it is allowed."""
    if action == "hold" or action not in space.names:
        raise ValueError(f"there is no nudge {action!r}: expected incentive/tone/timing, such as {space.names[1]!r}")
    nudge = Nudge(*action.split("/"))
    return plain(f"always {action}", FixedNudge(space, nudge=nudge), space, title=f"Always {action}")


def best_fixed(history: Dataset) -> str:
    """Return the nudge that did best on an earlier slice of the log, by DR, or "" where none was drawn often enough.

    Chosen there and valued elsewhere: a best that is chosen on the rounds that value it looks better than it is.
    """
    rounds, space = history.rounds, history.program.space
    counts = np.bincount(rounds.actions, minlength=space.k)
    often = np.flatnonzero(counts >= _FIXED_FROM)
    if not (often != HOLD).any() or len(np.unique(rounds.customers)) < _FIXED_FROM:
        return ""
    model = models_of(history, None)[REWARD]
    worth = np.full(space.k, -np.inf)
    for _, part in blocks(rounds):
        q = model.predict(part)
        found = np.where(part.allowed, q, q[:, [HOLD]])[:, often].sum(axis=0)
        drawn = np.arange(len(part)), part.actions
        extra = np.bincount(part.actions, weights=(part.rewards - q[drawn]) / part.propensities, minlength=space.k)
        blocked = (part.actions == HOLD) * (part.rewards - q[drawn]) / part.propensities
        found = found + extra[often] + np.where(often == HOLD, 0.0, (~part.allowed[:, often]).T @ blocked)
        worth[often] = np.where(np.isfinite(worth[often]), worth[often], 0.0) + found
    worth[HOLD] = -np.inf
    return space.names[int(np.argmax(worth))]


def deployed(
    name: str, policy: Policy, program: Program, *, title: str = "", role: Role = "candidate", version: str = ""
) -> Target:
    """Return the target of deploying a policy: its probabilities after the engine's floor, in float32 as drawn."""
    ask = _asking(policy, program.space)

    def vectors(rounds: Rounds) -> Floats:
        floored = apply_floor(ask(rounds), program.space, allowed=rounds.allowed, exploration=program.exploration)
        return _normalised(floored.astype(np.float32).astype(np.float64))

    return Target(name, title or name, role, vectors, version)


def baselines(program: Program) -> list[Target]:
    """Return what every candidate is compared with: today, no nudges, the marketers' rules, chance."""
    rules = plain("rules", Rules.of(program), program.space, title="The program's rules")
    chance = deployed("uniform", Uniform(program.space), program, title="Nudges at random", role="baseline")
    return [today(), hold_all(program.space), *([rules] if program.rules else []), chance]


def _asking(policy: Policy, space: ActionSpace) -> Callable[[Rounds], Floats]:
    return lambda rounds: policy.probabilities(rounds.contexts, rounds.allowed, rounds.prices(space))


def _logged(rounds: Rounds) -> Floats:
    return _normalised(rounds.probabilities.astype(np.float64))


def _normalised(vectors: Floats) -> Floats:
    normalised: Floats = vectors / vectors.sum(axis=1, keepdims=True)
    return normalised
