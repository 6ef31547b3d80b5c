"""What does one pass over the rounds leave? A few numbers a round and a few sums, whatever the length of the log."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import expit

from optimizer.actions import HOLD, ActionSpace, Floats
from optimizer.policy import Rounds
from training import balancing, diagnostics, reward_model, sequence
from training.balancing import Odds
from training.dataset import Dataset
from training.diagnostics import Tally
from training.ope import ESTIMATORS, Evidence, balanced, dr, rung, weigh
from training.pseudo_inverse import Lever, lever
from training.reward_model import RewardModel
from training.vectors import SIZE, give_back, own_pages

PAIRS_UP_TO = 20_000
"""Rounds up to which there are weights by pairs of levels: a third of a millisecond a round of 301 actions."""

_AGREE = 1.0
"""Standard errors within which rungs agree: they differ by little, so a bias must show early."""

_PAIRS, _ACTIONS = 0.5, -2.0
"""Logarithms of the odds, before anything was seen, that pairs matter, and that actions have effects of their own."""

_EVEN = Odds(0.0, 0.0)

BALANCED = "balanced-dr"
"""DR with weights over the mixture of all the logging policies."""


def rungs_of(evidence: Evidence, factored: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return DR terms (n,) under each kind of weight, from the least biased to the least spread."""
    return {"dr": dr(evidence)} | {name: dr(evidence.reweighted(w)) for name, w in factored.items()}


def reported(ladder: Mapping[str, Floats], odds: Odds) -> Floats:
    """Return the terms (n,) of the value that is reported beside DR's: rungs mixed as far as each is to be trusted.

    From levels to pairs, and from there to plain DR, it goes by the odds that the rewards give the richer effects and
    by how far the estimates are apart: what is not there costs no spread, what is there leaves little bias.

    Args:
        ladder: terms of `dr`, `ridge-pairs` and `ridge-levels`.
        odds: what the rewards say.
    """
    found = ladder["ridge-levels"]
    for name, log_odds in (("ridge-pairs", _PAIRS + odds.pairs), ("dr", _ACTIONS + odds.actions)):
        gaps = ladder[name] - (ladder["ridge-levels"] if name == "ridge-pairs" else ladder["ridge-pairs"])
        error = float(gaps.std()) / np.sqrt(len(gaps))
        apart = (float(gaps.mean()) / error) ** 2 if error > 0 else 0.0
        found = found + float(expit(log_odds + (apart - 1.0) / 2.0)) * (ladder[name] - found)
    return found


def ladder_of(evidence: Evidence, ridged: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return DR terms (n,) under each rung of ridge weights, from the least biased to the least spread."""
    return {name: dr(evidence.reweighted(ridged[name])) for name in balancing.PRIORS}


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
class Frozen:
    """What was fixed before the rounds were looked at: the range of a reward, and a model, or none (which is 0)."""

    low: float
    high: float
    model: RewardModel | None = None


@dataclass(frozen=True)
class Loggers:
    """What each logging policy would have drawn from, by its code, and its share of the log."""

    vectors: Mapping[int, Callable[[Rounds], Floats]]
    shares: Mapping[int, float]


@dataclass(frozen=True)
class Reading:
    """What rounds say of one target: its evidence, DR terms for each event, and its probabilities summed.

    `factored` has its weights (n,) where effects are factored, and over the mixture of the loggers; `ridged` those on
    each rung of the ladder, and `odds` what the rewards say of them, once all the rounds were seen; `unsupported`
    (n,) is its mass on what the log hardly ever drew; `costs` and
    `nudging` (n,) what it would spend and whether it would nudge; `bounded` its
    terms for the sequence; `chosen` (stages, k) sums its probabilities.
    """

    evidence: Evidence
    factored: Mapping[str, Floats]
    events: Mapping[str, Floats]
    unsupported: Floats
    costs: Floats
    nudging: Floats
    bounded: sequence.Terms
    chosen: Floats
    ridged: Mapping[str, Floats] = field(default_factory=dict)
    odds: Odds = _EVEN

    def room(self, rewards: Floats, drawn: Floats) -> "Reading":
        """Return an empty reading like this one, for all rounds; what is the same for every target is given."""

        def new() -> Floats:
            return own_pages(len(rewards))

        return Reading(
            Evidence(new(), rewards, drawn, new()),
            {name: new() for name in self.factored},
            {name: new() for name in self.events},
            new(),
            new(),
            new(),
            sequence.Terms(new(), new()),
            np.zeros_like(self.chosen),
        )

    def fill(self, rows: slice, part: "Reading") -> None:
        """Put the reading of a block into this one of all rounds."""
        for ours, theirs in zip(self.columns(), part.columns(), strict=True):
            ours[rows] = theirs
        self.evidence.drawn[rows] = part.evidence.drawn
        self.chosen[:] += part.chosen

    def columns(self) -> list[Floats]:
        """What it has of each round that differs from target to target."""
        own = self.evidence.weights, self.evidence.expected, self.unsupported, self.costs, self.nudging
        return [*own, *self.bounded, *self.factored.values(), *self.events.values()]

    def rungs(self) -> dict[str, Floats]:
        """DR terms (n,) under each kind of weight, from the least biased to the least spread."""
        return rungs_of(self.evidence, {n: w for n, w in self.factored.items() if n != BALANCED})

    def estimates(self) -> dict[str, Floats]:
        """Terms (n,) of every estimator, of factored weights and what SLOPE picks of them, of the ladder's rungs."""
        rungs, ladder = self.rungs(), ladder_of(self.evidence, self.ridged)
        plain = {name: e.terms(self.evidence) for name, e in ESTIMATORS.items()}
        if BALANCED in self.factored:
            plain[BALANCED] = dr(self.evidence.reweighted(self.factored[BALANCED]))
        mixed = {"slope": rungs[self.picked()], "ladder": reported(plain | ladder, self.odds)}
        return plain | rungs | ladder | mixed

    def picked(self) -> str:
        """The factored weights that SLOPE picks, or `dr`."""
        rungs = self.rungs()
        return list(rungs)[rung([*rungs.values()], agree=_AGREE)]

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
    frozen: Frozen,
    loggers: Loggers | None,
    tick: Callable[[int, int], None],
) -> Seen:
    """Go through the rounds once, a block at a time.

    Args:
        dataset: n rounds.
        targets: what each would have drawn from, (n, k) for n rounds.
        models: of each outcome.
        frozen: what the sequence rests on.
        loggers: what every logging policy would have drawn from, where that is known.
        tick: told how many rounds are done, and of how many.
    """
    space, n = dataset.program.space, len(dataset)
    people, codes = np.unique(dataset.rounds.customers, return_inverse=True)
    width = 1 + sum(space.shape)
    sums, sizes = np.zeros((len(people), width)), np.zeros((len(people), width))
    readings: dict[str, Reading] = {}
    drawn = own_pages(n)
    counts: Tally | None = None
    balance: balancing.Sums | None = None
    for start in range(0, n, SIZE):
        block = slice(start, start + SIZE)
        part = dataset.take(block)
        q = {outcome: model.predict(part.rounds) for outcome, model in models.items()}
        prepared = _Prepared(
            q,
            _levers(part.rounds, space, pairs=n <= PAIRS_UP_TO),
            _normalised(part.rounds),
            frozen,
            frozen.model.predict(part.rounds) if frozen.model else np.zeros(q[REWARD].shape),
            _mixed(part.rounds, loggers),
        )
        asked = {name: vectors(part.rounds) for name, vectors in targets.items()}
        for name, found in asked.items():
            reading = _reading(part, found, prepared)
            readings.setdefault(name, reading.room(dataset.rounds.rewards, drawn)).fill(block, reading)
        balanced_by, counted = balancing.sums(part.rounds, asked), diagnostics.tally(part.rounds, space)
        balance = balanced_by if balance is None else balance + balanced_by  # summed at once: a block has megabytes
        counts = counted if counts is None else counts + counted
        terms = _contrasts(part.rounds, q[REWARD], space)
        known = np.isfinite(terms)
        np.add.at(sums, codes[block], np.where(known, terms, 0.0))
        np.add.at(sizes, codes[block], known)
        give_back(dataset.rounds)
        tick(min(start + SIZE, n), n)
    if balance is None or counts is None:
        raise ValueError("a log without rounds cannot be read")
    ridged, odds = balancing.weights(dataset.rounds, balance, space), balancing.odds(balance, space)
    whole = {name: replace(reading, ridged=ridged[name], odds=odds) for name, reading in readings.items()}
    return Seen(whole, sums, sizes, counts.drawn, counts)


def _levers(rounds: Rounds, space: ActionSpace, *, pairs: bool) -> dict[str, Lever]:
    """What a round's factored weights are found from: by pairs of levels, and by levels."""
    second = {"pi-pairs": lever(rounds, space, order=2)} if pairs else {}
    return second | {"pi-levels": lever(rounds, space, order=1)}


@dataclass(frozen=True)
class _Prepared:
    """What a block's readings share: predictions, levers, logged vectors, what is frozen, mixed propensities."""

    q: Mapping[str, Floats]
    levers: Mapping[str, Lever]
    logged: Floats
    frozen: Frozen
    fixed: Floats
    mixed: Floats | None


def _normalised(rounds: Rounds) -> Floats:
    logged: Floats = rounds.probabilities / rounds.probabilities.sum(axis=1, dtype=np.float64, keepdims=True)
    return logged


def _mixed(rounds: Rounds, loggers: Loggers | None) -> Floats | None:
    """Shape (n,): the chance that the mixture of all loggers gave to the action drawn."""
    if loggers is None:
        return None
    vectors = {code: ask(rounds) for code, ask in loggers.vectors.items()}
    return balanced(rounds, vectors, shares=loggers.shares).propensities


def _reading(part: Dataset, vectors: Floats, prepared: _Prepared) -> Reading:
    rounds, q, frozen = part.rounds, prepared.q, prepared.frozen
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
    factored = {name: one.weights(vectors) for name, one in prepared.levers.items()}
    if prepared.mixed is not None:
        factored[BALANCED] = vectors[drawn] / prepared.mixed
    fixed = Evidence(evidence.weights, rounds.rewards, prepared.fixed[drawn], evidence.expected)
    bounded = sequence.bounded(fixed, prepared.logged, vectors, prepared.fixed, low=frozen.low, high=frozen.high)
    costs = vectors @ part.program.space.action_costs
    return Reading(evidence, factored, events, unsupported, costs, 1.0 - vectors[:, HOLD], bounded, chosen)


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
