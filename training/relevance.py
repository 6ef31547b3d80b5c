"""Is what is offered relevant? How much the context moves the choice, at each touch point, by logged probabilities.

A touch point is an incentive in a tone at a stage. Its chance is compared with the mean chance of decisions of the same
stage, policy and allowed set, so that what moves it is what is known of the customer and the moment, and neither the
guardrails nor a change of policy. A policy that treats all alike moves nothing; that says nothing of what the choice
brings, which the evaluation does. Nothing is drawn here: a probability is a function of the context, known exactly.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.actions import HOLD, Bools, Floats, Ints
from training.dataset import Dataset
from training.figures import FEW, Figure, few, mean, missing

ALIKE = 20
"""Fewest decisions of one stage, policy and allowed set that are compared with each other."""

_CHANCE = "chance of being offered here, a decision at which it was allowed"
_MOVED = "how far the context moves that chance, up or down, from what it is at this stage on average"
_STAGE = "share of the choice at this stage that the context decides (total variation, 0: alike for all)"


class TouchPoint(msgspec.Struct, frozen=True, kw_only=True):
    """An incentive in a tone at a stage: its chance, and how far the context moves it."""

    stage: str
    incentive: str
    tone: str
    chance: Figure
    moved: Figure


class StageRelevance(msgspec.Struct, frozen=True, kw_only=True):
    """A stage: how much of its whole choice, hold included, the context decides."""

    stage: str
    moved: Figure


class Relevance(msgspec.Struct, frozen=True, kw_only=True):
    """Relevance as it was learned. `compared` is the share of decisions that have enough others to compare with."""

    stages: tuple[StageRelevance, ...]
    touch_points: tuple[TouchPoint, ...]
    compared: float


class _Seen(NamedTuple):
    """Chances by touch point (n, t + 1), the last one hold; from the mean of those alike; where allowed (n, t)."""

    chances: Floats
    apart: Floats
    allowed: Bools
    known: Bools


def relevance(dataset: Dataset, *, level: float = 0.95) -> Relevance:
    """Measure how much the context moves the choice, on the rounds of a log, with intervals clustered by customer."""
    seen, customers, program = _seen(dataset), dataset.rounds.customers, dataset.program
    stages, points = [], []
    tones = len(program.tones)
    for s, stage in enumerate(program.stages):
        here = seen.known & (dataset.stages == s)
        whole = 0.5 * np.abs(seen.apart[here]).sum(axis=1)
        stages.append(StageRelevance(stage=stage.name, moved=_mean(whole, customers[here], of=_STAGE, level=level)))
        for t in np.flatnonzero((seen.allowed & (dataset.stages == s)[:, None]).any(axis=0)).tolist():
            mine = here & seen.allowed[:, t]
            points.append(
                TouchPoint(
                    stage=stage.name,
                    incentive=program.incentives[t // tones].name,
                    tone=program.tones[t % tones].name,
                    chance=_mean(seen.chances[mine, t], customers[mine], of=_CHANCE, level=level),
                    moved=_mean(np.abs(seen.apart[mine, t]), customers[mine], of=_MOVED, level=level),
                )
            )
    compared = float(seen.known.mean()) if len(seen.known) else 0.0
    return Relevance(stages=tuple(stages), touch_points=tuple(points), compared=compared)


def _mean(values: Floats, customers: Ints, *, of: str, level: float) -> Figure:
    people = len(np.unique(customers))
    if people < FEW:
        return missing(few(people), of=of, unit="share", n=len(values))
    return mean(values, customers, of=of, unit="share", level=level)


def _seen(dataset: Dataset) -> _Seen:
    """Sum the logged chances over timings, and compare them with those of decisions that were alike."""
    rounds, (incentives, tones, timings) = dataset.rounds, dataset.program.space.shape
    p = rounds.probabilities.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    shape = (len(p), incentives * tones, timings)
    chances = np.column_stack([p[:, HOLD + 1 :].reshape(shape).sum(axis=2), p[:, HOLD]])
    allowed: Bools = np.any(rounds.allowed[:, HOLD + 1 :].reshape(shape), axis=2)
    keys = np.column_stack([dataset.stages, rounds.loggers, _codes(rounds.allowed)])
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    sizes = np.bincount(group, minlength=1)
    means = np.zeros((len(sizes), chances.shape[1]))
    np.add.at(means, group, chances)
    apart = chances - means[group] / sizes[group][:, None]
    known: Bools = sizes[group] >= ALIKE
    return _Seen(chances, apart, allowed, known)


def _codes(allowed: Bools) -> Ints:
    """Number the allowed sets (n, k): the same number for the same set."""
    packed = np.packbits(allowed, axis=1)
    _, codes = np.unique(packed, axis=0, return_inverse=True)
    return codes.reshape(-1).astype(np.intp)
