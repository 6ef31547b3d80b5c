"""What does one pass over the rounds leave? A few numbers a round and a few sums, whatever the length of the log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from training import diagnostics, reward_model
from training.dataset import Dataset
from training.diagnostics import Tally
from training.ope import ESTIMATORS, Evidence, dr, pseudo_inverse, slope, weigh
from training.reward_model import RewardModel

BLOCK = 8_192
"""Rounds worked on at a time: an (n, k) array of them is a few tens of megabytes."""

PAIRS_UP_TO = 10_000
"""Rounds up to which the ladder has the rung of pairs: a millisecond a round of 301 actions; more rounds do without."""

REWARD = ""
"""The outcome that is the reward itself, among events."""


def outcomes(dataset: Dataset) -> Mapping[str, Floats]:
    """The reward, then the counts of macro events and of opting out."""
    wanted = {e.name for e in dataset.program.events if e.kind == "macro"} | {"opt_out"}
    return {REWARD: dataset.rounds.rewards} | {k: v for k, v in dataset.events.items() if k in wanted}


def models_of(dataset: Dataset, history: Dataset | None) -> dict[str, RewardModel]:
    """A model of each outcome, from the rounds and the history."""
    k, found = dataset.program.space.k, outcomes(dataset)
    sums = reward_model.moments(dataset.rounds, np.column_stack([*found.values()]), k=k)
    if history is not None and len(history):
        earlier = np.column_stack([*outcomes(history).values()])
        sums = sums + reward_model.moments(history.rounds, earlier, k=k)
    return dict(zip(found, reward_model.fit(sums, dataset.program.space), strict=True))


@dataclass(frozen=True)
class Reading:
    """What rounds say of one target: its evidence, DR terms for each event, and its probabilities summed.

    `factored` has its weights (n,) on each rung of the ladder; `unsupported` (n,) is its mass on what the log hardly
    ever drew; `chosen` (stages, k) sums its probabilities.
    """

    evidence: Evidence
    factored: Mapping[str, Floats]
    events: Mapping[str, Floats]
    unsupported: Floats
    chosen: Floats

    @classmethod
    def merge(cls, parts: Sequence["Reading"]) -> "Reading":
        return cls(
            Evidence.concatenate([p.evidence for p in parts]),
            {name: np.concatenate([p.factored[name] for p in parts]) for name in parts[0].factored},
            {name: np.concatenate([p.events[name] for p in parts]) for name in parts[0].events},
            np.concatenate([p.unsupported for p in parts]),
            np.sum([p.chosen for p in parts], axis=0),
        )

    def rungs(self) -> dict[str, Floats]:
        """DR terms (n,) under each kind of weight, from the least biased to the least spread."""
        return {"dr": dr(self.evidence)} | {n: dr(self.evidence.reweighted(w)) for n, w in self.factored.items()}

    def estimates(self) -> dict[str, Floats]:
        """Terms (n,) of every estimator, the ladder of factored weights and what SLOPE picks on it."""
        rungs = self.rungs()
        plain = {name: e.terms(self.evidence) for name, e in ESTIMATORS.items()}
        return plain | rungs | {"ladder": slope([*rungs.values()])}

    def interactions(self) -> Floats:
        """How far DR is from what it would be if incentive, tone and timing simply added up: terms (n,)."""
        rungs = self.rungs()
        gap: Floats = rungs["dr"] - rungs["pi-levels"]
        return gap


@dataclass(frozen=True)
class Seen:
    """What one pass over the rounds leaves.

    `readings` by target; `sums` and `sizes` (customers, levels) of the contrast of each level with hold.
    """

    readings: dict[str, Reading]
    sums: Floats
    sizes: Floats
    drawn: Floats
    counts: Tally


def read(
    dataset: Dataset,
    targets: Mapping[str, Callable[[Rounds], Floats]],
    *,
    models: Mapping[str, RewardModel],
    tick: Callable[[int, int], None],
) -> Seen:
    """Go through the rounds once, a block at a time.

    Args:
        dataset: n rounds.
        targets: what each would have drawn from, (n, k) for n rounds.
        models: of each outcome.
        tick: told how many rounds are done, and of how many.
    """
    space, n = dataset.program.space, len(dataset)
    people, codes = np.unique(dataset.rounds.customers, return_inverse=True)
    width = 1 + sum(space.shape)
    sums, sizes = np.zeros((len(people), width)), np.zeros((len(people), width))
    parts: dict[str, list[Reading]] = {name: [] for name in targets}
    tallies: list[Tally] = []
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        part = dataset.take(block)
        q = {outcome: model.predict(part.rounds) for outcome, model in models.items()}
        levers = _levers(part.rounds, space, pairs=n <= PAIRS_UP_TO)
        for name, vectors in targets.items():
            parts[name].append(_reading(part, vectors(part.rounds), q, levers=levers))
        terms = _contrasts(part.rounds, q[REWARD], space)
        known = np.isfinite(terms)
        np.add.at(sums, codes[block], np.where(known, terms, 0.0))
        np.add.at(sizes, codes[block], known)
        tallies.append(diagnostics.tally(part.rounds, space))
        tick(min(start + BLOCK, n), n)
    counts = sum(tallies[1:], start=tallies[0])
    readings = {name: Reading.merge(found) for name, found in parts.items()}
    return Seen(readings, sums, sizes, counts.drawn, counts)


def _levers(rounds: Rounds, space: ActionSpace, *, pairs: bool) -> dict[str, Floats]:
    """What probability on each action (n, k) adds to a round's factored weights: by pairs of levels, and by levels."""
    second = {"pi-pairs": pseudo_inverse(rounds, space, order=2)} if pairs else {}
    return second | {"pi-levels": pseudo_inverse(rounds, space, order=1)}


def _reading(part: Dataset, vectors: Floats, q: Mapping[str, Floats], *, levers: Mapping[str, Floats]) -> Reading:
    rounds = part.rounds
    evidence = weigh(rounds, vectors, q[REWARD])
    drawn = np.arange(len(rounds)), rounds.actions
    events = {
        name: dr(Evidence(evidence.weights, counts, q[name][drawn], np.einsum("nk,nk->n", vectors, q[name])))
        for name, counts in outcomes(part).items()
        if name != REWARD
    }
    chosen = np.zeros((len(part.program.stages), vectors.shape[1]))
    np.add.at(chosen, part.stages, vectors)
    unsupported = np.where(rounds.probabilities < diagnostics.RARE, vectors, 0.0).sum(axis=1)
    factored = {name: np.einsum("nk,nk->n", vectors, lever) for name, lever in levers.items()}
    return Reading(evidence, factored, events, unsupported, chosen)


def _contrasts(rounds: Rounds, q: Floats, space: ActionSpace) -> Floats:
    """DR terms (n, 1 + levels) of each level over hold, its other parts mixed as logged; NaN where not possible."""
    member = diagnostics.membership(space).astype(np.float64)
    logged = rounds.probabilities.astype(np.float64)
    chance = logged @ member
    with np.errstate(divide="ignore", invalid="ignore"):
        model = (logged * q) @ member / chance
        drawn = member[rounds.actions] / chance
    rows = np.arange(len(rounds))
    terms = model + drawn * (rounds.rewards - q[rows, rounds.actions])[:, None]
    terms[chance < diagnostics.RARE] = np.nan
    contrast: Floats = terms - terms[:, :1]
    return contrast
