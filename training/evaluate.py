"""What is each policy worth on the same log? Targets side by side, each paired with the one in force.

Works through the rounds a block at a time and keeps a few numbers a round, so the length of the log costs no
memory that counts. Results are plain structs that serialise to JSON.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import msgspec
import numpy as np

from optimizer.actions import FACTORS, HOLD, ActionSpace, Bools, Floats, Ints, Nudge
from optimizer.floor import apply_floor
from optimizer.policy import Policy, Rounds
from optimizer.program import DAY, Program
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from training import diagnostics, guardrail_prices, sequence
from training.dataset import Dataset
from training.diagnostics import Check
from training.guardrail_prices import GuardrailPrice
from training.intervals import Estimate, Interval, bootstraps, by_customer, clustered, gathered, likelihood
from training.ope import dm, dr
from training.propensities import Pair, Sensitivity, sensitivity
from training.reading import REWARD, Frozen, Loggers, Reading, Seen, models_of, read
from training.reward_model import RewardModel
from training.vectors import blocks

TODAY = "today"
"""The name of the logging policy as a target."""

_FROZEN_FROM = 200
"""Rounds of history from which a range and a model are frozen."""

_FIXED_FROM = 20
"""Draws of a nudge, and customers, below which it is not said to be the best."""

_FAR = 1e9
"""What stands for an infinite value of a check: JSON has none."""

_LOOKS = 50
_RESAMPLES = 1_000
_SEGMENT_CUSTOMERS = 30

Role = Literal["today", "champion", "baseline", "candidate"]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


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


class StageScore(msgspec.Struct, frozen=True, kw_only=True):
    """A target's worth among the rounds of one stage; None where there are too few customers."""

    stage: str
    title: str
    rounds: int
    share: float
    nudged: float
    value: Estimate | None
    lift: Estimate | None


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What an anytime-valid sequence said once so many customers had had their fixed block."""

    customers: int
    low: float
    high: float
    lift_low: float
    lift_high: float


class AnytimeValid(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals that hold at every look at once: of the mean of customers' means, a customer a term.

    Customers come in the order of enrolment, each once its block of `block_days` is whole; rewards are clipped to
    `low`..`high`, which were fixed beforehand, as was the model. `looks` are evenly spaced, the last is the newest.
    """

    low: float
    high: float
    block_days: float
    frozen_model: bool
    looks: tuple[Look, ...]

    @property
    def last(self) -> Look:
        """The newest look."""
        return self.looks[-1]


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What a target would be expected to spend in a period of the budget, at the rate of decisions of the log."""

    expected: float
    budget: float | None
    period_days: float

    @property
    def feasible(self) -> bool:
        """Whether the budget covers it at the prices of the log."""
        return self.budget is None or self.expected <= self.budget


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What one target is worth per decision, and what it would do.

    `estimates` by estimator; `lift` over the reference and `over_hold` are paired differences by DR, and so is
    `against` over each baseline; `events` are expected counts per decision by DR; `mix` is the share of nudges by
    factor and level; `nudged` the share of decisions that nudge; `cost` is expected per decision. `intervals` are
    others for the value (BCa and Poisson bootstrap of DR, empirical likelihood without a model); `picked` is the kind
    of weights that SLOPE picked. `messages` and `opt_outs` are per customer over the log; `cost_per_outcome` is what
    one more goal event than without nudges costs, None where more were not shown.
    """

    name: str
    title: str
    role: Role
    version: str
    estimates: dict[str, Estimate]
    lift: Estimate
    over_hold: Estimate | None
    events: dict[str, Estimate]
    nudged: float
    cost: float
    mix: dict[str, dict[str, float]]
    stages: tuple[StageScore, ...]
    segments: tuple[StageScore, ...] = ()
    against: dict[str, Estimate] = {}
    intervals: dict[str, Interval] = {}
    picked: str = ""
    sequence: AnytimeValid | None = None
    messages: float = 0.0
    opt_outs: Estimate | None = None
    cost_per_outcome: Estimate | None = None
    spend: Spend | None = None
    sensitivity: Sensitivity | None = None

    @property
    def value(self) -> Estimate:
        """The doubly robust estimate, the one that decides."""
        return self.estimates["dr"]


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What a level adds to the reward of a decision over hold, where it is allowed, the rest mixed as logged."""

    factor: str
    level: str
    drawn: int
    lift: Estimate


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Every target on one log. Values are rewards per decision; estimand: this decision, then the logging policy."""

    program: str
    program_title: str
    program_version: str
    goal: str
    goal_event: str
    currency: str
    reference: str
    level: float
    rounds: int
    customers: int
    decisions_seen: int
    matured_share: float
    since: float
    until: float
    explained: float
    titles: dict[str, str]
    scores: tuple[Score, ...]
    effects: tuple[Effect, ...]
    checks: tuple[Check, ...]
    propensities: Literal["logged", "estimated"] = "logged"
    guardrails: tuple[GuardrailPrice, ...] = ()
    shared_budget: bool = False

    def score(self, name: str) -> Score:
        """Return a target's score; ValueError if there is none of that name."""
        for score in self.scores:
            if score.name == name:
                return score
        known = ", ".join(s.name for s in self.scores)
        raise ValueError(f"no target {name!r} was evaluated: expected one of {known}")

    @property
    def candidates(self) -> tuple[Score, ...]:
        """The challengers, best first."""
        found = [s for s in self.scores if s.role == "candidate"]
        return tuple(sorted(found, key=lambda s: -s.value.value))

    def to_json(self) -> bytes:
        """Return the evaluation as JSON that `from_json` reads."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def from_json(cls, data: bytes | str) -> "Evaluation":
        """Read what `to_json` wrote."""
        return msgspec.json.decode(data, type=cls)


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


def evaluate(
    dataset: Dataset,
    targets: Sequence[Target],
    *,
    reference: str = TODAY,
    history: Dataset | None = None,
    loggers: Mapping[str, Callable[[Rounds], Floats]] = MappingProxyType({}),
    level: float = 0.95,
    progress: Progress | None = None,
) -> Evaluation:
    """Value each target on a log.

    Args:
        dataset: rounds that no target has learned from: a later slice of time.
        targets: policies, with the reference among them.
        reference: the name of the target that lifts are over: the champion, or the logging policy.
        history: earlier rounds of the same log, for the reward model, and for what a sequence must fix beforehand.
        loggers: what each logging policy would have drawn from, by its name in `dataset.loggers`; where every one of
            several is there, targets are weighed over their mixture too (`balanced-dr`).
        level: of the intervals.
        progress: told of the blocks done.

    Raises:
        ValueError: for a log without rounds or customers enough, or vectors that are no distributions.
    """
    _refuse(dataset, targets, reference=reference)
    models = models_of(dataset, history)

    def tick(done: int, of: int) -> None:
        if progress is not None:
            progress("evaluating", done, of)

    frozen = _frozen(dataset, history)
    asked = {t.name: t.vectors for t in targets}
    seen = read(dataset, asked, models=models, frozen=frozen, loggers=_loggers(dataset, loggers), tick=tick)
    program, rounds = dataset.program, dataset.rounds
    scores = _scores(dataset, targets, seen, frozen=frozen, reference=reference, level=level)
    goal = program.event(program.goal)
    return Evaluation(
        program=program.name,
        program_title=program.title,
        program_version=program.version,
        goal=(goal.title if goal else "") or program.goal,
        goal_event=program.goal,
        currency=program.currency,
        reference=reference,
        level=level,
        rounds=len(rounds),
        customers=len(np.unique(rounds.customers)),
        decisions_seen=dataset.total,
        matured_share=dataset.matured_share,
        since=float(rounds.at.min()),
        until=float(rounds.at.max()),
        explained=models[REWARD].explained,
        titles=_titles(program),
        scores=scores,
        effects=_effects(seen, program.space, level=level),
        checks=_checks(dataset, targets, seen, scores=scores),
        propensities="estimated" if dataset.estimated_propensities else "logged",
        guardrails=_guardrails(dataset, targets, scores, model=models[REWARD], frozen=frozen, level=level),
        shared_budget=program.guardrails.budget is not None or any(i.stock is not None for i in program.incentives),
    )


def _frozen(dataset: Dataset, history: Dataset | None) -> Frozen:
    """Fix the range of a reward and a model before the rounds are looked at: by the history, else by the program."""
    if history is not None and len(history) >= _FROZEN_FROM:
        rewards = history.rounds.rewards
        low, high = float(rewards.min()), float(rewards.max())
        if high > low:
            return Frozen(low, high, models_of(history, None)[REWARD])
    low, high = declared_range(dataset.program)
    return Frozen(low, high)


def declared_range(program: Program) -> tuple[float, float]:
    """Return the least and the largest reward of a decision that the program declares, each event counted once."""
    values = [e.value for e in program.events]
    dearest = float(program.space.action_costs.max(initial=0.0))
    low = sum(v for v in values if v < 0) - dearest
    high = sum(v for v in values if v > 0)
    return low, high if high > low else low + 1.0


def _loggers(dataset: Dataset, known: Mapping[str, Callable[[Rounds], Floats]]) -> Loggers | None:
    """Return every logging policy's vectors and share, if there are several and all are known."""
    codes = np.unique(dataset.rounds.loggers).tolist()
    names = {code: dataset.loggers[code] for code in codes if code < len(dataset.loggers)}
    if len(codes) < 2 or len(names) < len(codes) or not set(names.values()) <= set(known):
        return None
    shares = {code: float((dataset.rounds.loggers == code).mean()) for code in codes}
    return Loggers({code: known[name] for code, name in names.items()}, shares)


def _guardrails(
    dataset: Dataset,
    targets: Sequence[Target],
    scores: Sequence[Score],
    *,
    model: RewardModel,
    frozen: Frozen,
    level: float,
) -> tuple[GuardrailPrice, ...]:
    """Price stricter rules for the best candidate, or else for the reference; caps and relaxed rules for the log's."""
    candidates = sorted((s for s in scores if s.role == "candidate"), key=lambda s: -s.value.value)
    name = candidates[0].name if candidates else next((s.name for s in scores if s.role == "champion"), TODAY)
    priced = next((t for t in targets if t.name == name), None)
    found: list[GuardrailPrice] = []
    if priced is not None:
        rules = guardrail_prices.stricter_rules(dataset)
        asks = priced.role != "today"
        found += guardrail_prices.stricter(dataset, priced.vectors, rules, model=model, asks=asks, level=level)
    found += guardrail_prices.caps(dataset, level=level)
    found += guardrail_prices.relaxed(dataset, low=frozen.low, high=frozen.high)
    return tuple(found)


def _refuse(dataset: Dataset, targets: Sequence[Target], *, reference: str) -> None:
    names = [t.name for t in targets]
    if reference not in names or len(set(names)) != len(names):
        raise ValueError(f"targets must be distinct and include the reference {reference!r}, got {names!r}")
    if not len(dataset):
        raise ValueError(
            f"program {dataset.program.name!r} has no matured rounds to evaluate on, of {dataset.total:,} "
            "decisions seen: wait until their windows close, or archive first"
        )
    if not np.isfinite(dataset.rounds.rewards).all():
        row = int(np.argmin(np.isfinite(dataset.rounds.rewards)))
        given = dataset.rounds.rewards[row]
        raise ValueError(f"round {row}: the reward is {given}, expected a finite number")
    drawn = [part.probabilities[np.arange(len(part)), part.actions] for _, part in blocks(dataset.rounds)]
    if not (chances := np.concatenate(drawn) > 0).all():
        row = int(np.argmin(chances))
        raise ValueError(
            f"round {row} and {int((~chances).sum()) - 1:,} more: the action taken had no chance by the logged "
            "probabilities; log the vector that each action was drawn from"
        )


def _titles(program: Program) -> dict[str, str]:
    """What people call the levels and the events, by name; a level as `tone=warm`."""
    titles = {f"incentive={x.name}": x.title for x in program.incentives}
    titles |= {f"tone={x.name}": x.title for x in program.tones}
    titles |= {f"timing={x.name}": x.title for x in program.timings}
    return titles | {e.name: e.title or e.name for e in program.events} | {"opt_out": "Opt-outs"}


@dataclass(frozen=True)
class _Compared:
    """What scores share: DR terms (n,) and sequence terms by target, what was frozen, and the interval's level."""

    terms: Mapping[str, Floats]
    bounded: Mapping[str, sequence.Terms]
    blocks: Bools
    frozen: Frozen
    reference: str
    level: float

    def estimate(self, terms: Floats, dataset: Dataset) -> Estimate:
        return clustered(terms, dataset.rounds.customers, level=self.level)


def _scores(
    dataset: Dataset, targets: Sequence[Target], seen: Seen, *, frozen: Frozen, reference: str, level: float
) -> tuple[Score, ...]:
    rounds, program = dataset.rounds, dataset.program
    compared = _Compared(
        {t.name: dr(seen.readings[t.name].evidence) for t in targets},
        {t.name: seen.readings[t.name].bounded for t in targets},
        sequence.blocks(rounds, length=_block(program), until=_until(dataset)),
        frozen,
        reference,
        level,
    )
    roles = {t.name: t.role for t in targets}
    return tuple(_score(t, dataset, seen, compared=compared, roles=roles) for t in targets)


def _block(program: Program) -> float:
    return float(program.evaluation_horizon)


def _until(dataset: Dataset) -> float:
    """Until when decisions are known; for ever, for a log of one moment."""
    at = dataset.rounds.at
    return np.inf if at[0] == at[-1] else float(at.max()) + 1.0


def _score(target: Target, dataset: Dataset, seen: Seen, *, compared: _Compared, roles: Mapping[str, Role]) -> Score:
    reading, terms = seen.readings[target.name], compared.terms
    customers, level = dataset.rounds.customers, compared.level
    own, other = terms[target.name], terms[compared.reference]
    share = reading.chosen.sum(axis=0) / len(dataset)
    per = len(dataset) / len(np.unique(customers))
    events = {name: clustered(x, customers, level=level) for name, x in reading.events.items()}
    lift = clustered(own - other, customers, level=level)
    return Score(
        name=target.name,
        title=target.title,
        role=target.role,
        version=target.version,
        estimates={name: clustered(x, customers, level=level) for name, x in reading.estimates().items()},
        lift=lift,
        over_hold=clustered(own - terms["hold"], customers, level=level) if "hold" in terms else None,
        against={
            name: clustered(own - terms[name], customers, level=level)
            for name, role in roles.items()
            if role in ("today", "baseline", "champion") and name != target.name
        },
        events=events,
        nudged=float(1.0 - share[HOLD]),
        cost=float(share @ dataset.program.space.action_costs),
        mix=_mix(share, dataset.program.space),
        stages=_stages(dataset, reading, own=own, other=other, level=level),
        segments=_segments(dataset, reading, own=own, other=other, level=level),
        intervals=_intervals(own, reading, customers, level=level),
        picked=reading.picked(),
        sequence=_sequence(target.name, dataset, compared),
        messages=float(1.0 - share[HOLD]) * per,
        opt_outs=_times(events["opt_out"], per) if "opt_out" in events else None,
        cost_per_outcome=_cost_per_outcome(target.name, dataset, seen, level=level),
        spend=_spend(dataset, cost=float(reading.costs.mean())),
        sensitivity=_sensitivity(target.name, dataset, seen, lift=lift, reference=compared.reference, roles=roles),
    )


def _times(e: Estimate, factor: float) -> Estimate:
    """Return an estimate in another unit."""
    return msgspec.structs.replace(
        e, value=e.value * factor, low=e.low * factor, high=e.high * factor, error=e.error * factor
    )


def _intervals(own: Floats, reading: Reading, customers: Ints, *, level: float) -> dict[str, Interval]:
    """Return other intervals for a value: by resampling customers, and by likelihood without a model."""
    key = int.from_bytes(hashlib.blake2b(own.tobytes(), digest_size=8).digest(), "big")
    rng = np.random.Generator(np.random.Philox(key=key))  # keyed by the terms: the same log gives the same interval
    both = bootstraps([own], customers, rng=rng, level=level, resamples=_RESAMPLES)[0]
    evidence, groups = reading.evidence, gathered(customers)
    low, high = float(evidence.rewards.min()), float(evidence.rewards.max())
    found = {
        "bca": both.bca,
        "poisson": both.poisson,
    }
    if high > low and evidence.weights.any():
        found["likelihood"] = likelihood(evidence.weights, evidence.rewards, groups, low=low, high=high, level=level)
    return found


def _sequence(name: str, dataset: Dataset, compared: _Compared) -> AnytimeValid | None:
    """Return the sequence of a target's value and of its lift, at evenly spaced looks."""
    rows, frozen = np.flatnonzero(compared.blocks), compared.frozen
    if not len(rows):
        return None
    customers = dataset.rounds.customers[rows]
    own = sequence.Terms(*(x[rows] for x in compared.bounded[name]))
    other = sequence.Terms(*(x[rows] for x in compared.bounded[compared.reference]))
    value = sequence.looks(own, customers, low=frozen.low, high=frozen.high, level=compared.level)
    width = frozen.high - frozen.low
    gap = sequence.difference(own, other)
    lift = sequence.looks(gap, customers, low=-width, high=width, level=compared.level)
    shown = np.unique(np.linspace(1, len(value.low), _LOOKS).round().astype(np.intp)) - 1
    same = name == compared.reference
    return AnytimeValid(
        low=frozen.low,
        high=frozen.high,
        block_days=_block(dataset.program) / DAY,
        frozen_model=frozen.model is not None,
        looks=tuple(
            Look(
                customers=int(i) + 1,
                low=float(value.low[i]),
                high=float(value.high[i]),
                lift_low=0.0 if same else float(lift.low[i]),
                lift_high=0.0 if same else float(lift.high[i]),
            )
            for i in shown
        ),
    )


def _cost_per_outcome(name: str, dataset: Dataset, seen: Seen, *, level: float) -> Estimate | None:
    """Return what one more goal event than without nudges costs (delta method); None where more are not shown."""
    goal = dataset.program.goal
    if "hold" not in seen.readings or name == "hold" or goal not in seen.readings[name].events:
        return None
    customers = dataset.rounds.customers
    more = seen.readings[name].events[goal] - seen.readings["hold"].events[goal]
    gained = clustered(more, customers, level=level)
    if gained.low <= 0:
        return None
    costs = seen.readings[name].costs
    ratio = float(costs.mean() / more.mean())
    return clustered(ratio + (costs - ratio * more) / more.mean(), customers, level=level)


def _spend(dataset: Dataset, *, cost: float) -> Spend | None:
    """Return a target's expected spend in a period of the budget, at the log's rate of decisions, if it has one."""
    at, budget = dataset.rounds.at, dataset.program.guardrails.budget
    span = float(at[-1] - at[0])
    if span <= 0:
        return None
    period = float(budget.period) if budget else 7.0 * DAY
    return Spend(
        expected=cost * len(at) / span * period,
        budget=float(budget.amount) if budget else None,
        period_days=period / DAY,
    )


def _sensitivity(
    name: str,
    dataset: Dataset,
    seen: Seen,
    *,
    lift: Estimate,
    reference: str,
    roles: Mapping[str, Role],
) -> Sensitivity | None:
    """Return how far off estimated propensities may be before the lift is not shown; None where they were logged."""
    if not dataset.estimated_propensities or name == reference:
        return None
    pair = Pair(
        seen.readings[name].evidence,
        seen.readings[reference].evidence,
        dataset.rounds.propensities,
        lift.high - lift.value,
        roles[reference] == "today",
    )
    return sensitivity(pair, target=name)


def _mix(share: Floats, space: ActionSpace) -> dict[str, dict[str, float]]:
    """Share of the nudges by factor and level, from the share of decisions by action (k,)."""
    grid = share[1:].reshape(space.shape) / max(share[1:].sum(), 1e-12)
    sums = [grid.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return {
        factor: dict(zip(names, by_level.tolist(), strict=True))
        for factor, names, by_level in zip(FACTORS, space.factors, sums, strict=True)
    }


def _stages(dataset: Dataset, reading: Reading, *, own: Floats, other: Floats, level: float) -> tuple[StageScore, ...]:
    """Score a target among the rounds of each stage that has any."""
    found = []
    for i, stage in enumerate(dataset.program.stages):
        rows = np.flatnonzero(dataset.stages == i)
        if not len(rows):
            continue
        customers = dataset.rounds.customers[rows]
        several = len(np.unique(customers)) > 1
        found.append(
            StageScore(
                stage=stage.name,
                title=stage.title,
                rounds=len(rows),
                share=len(rows) / len(dataset),
                nudged=float(1.0 - reading.chosen[i, HOLD] / len(rows)),
                value=clustered(own[rows], customers, level=level) if several else None,
                lift=clustered(own[rows] - other[rows], customers, level=level) if several else None,
            )
        )
    return tuple(found)


def _segments(
    dataset: Dataset, reading: Reading, *, own: Floats, other: Floats, level: float
) -> tuple[StageScore, ...]:
    """Score a target among the rounds of each segment: each category of an attribute that has customers enough."""
    found = []
    for key, rows in _segment_rows(dataset).items():
        customers = dataset.rounds.customers[rows]
        if len(np.unique(customers)) < _SEGMENT_CUSTOMERS:
            continue
        found.append(
            StageScore(
                stage=key,
                title=_segment_title(key),
                rounds=int(rows.sum()),
                share=float(rows.mean()),
                nudged=float(reading.nudging[rows].mean()),
                value=clustered(own[rows], customers, level=level),
                lift=clustered((own - other)[rows], customers, level=level),
            )
        )
    return tuple(found)


def _segment_title(key: str) -> str:
    """What a person reads for `age_band=18-29`."""
    return key.replace("_", " ").replace("=", ": ", 1)


def _segment_rows(dataset: Dataset) -> dict[str, Bools]:
    """Which rounds (n,) are of each category of each attribute, by the name of its feature."""
    features = dataset.program.features
    names = [f"{a.name}={c}" for a in dataset.program.attributes if a.kind == "category" for c in a.categories]
    contexts = dataset.rounds.contexts
    return {
        n: contexts[:, features.index(n)] > 0 for n in names if n in features and features.index(n) < contexts.shape[1]
    }


def _effects(seen: Seen, space: ActionSpace, *, level: float) -> tuple[Effect, ...]:
    """Return what each level adds over hold, where enough customers could have received it."""
    found = []
    names = [(f, n) for f, names in zip(FACTORS, space.factors, strict=True) for n in names]
    for column, (factor, name) in enumerate(names, start=1):
        rows = seen.sizes[:, column] > 0
        if np.count_nonzero(rows) > 1:
            lift = by_customer(seen.sums[rows, column], seen.sizes[rows, column], level=level)
            found.append(Effect(factor=factor, level=name, drawn=int(seen.drawn[column]), lift=lift))
    return tuple(found)


def _checks(dataset: Dataset, targets: Sequence[Target], seen: Seen, *, scores: Sequence[Score]) -> tuple[Check, ...]:
    rounds, program = dataset.rounds, dataset.program
    found = [
        diagnostics.vectors(rounds),
        diagnostics.calibration(seen.counts, program.space),
        diagnostics.known_propensities(dataset),
        diagnostics.maturity(dataset),
        diagnostics.drift(rounds.rewards, rounds),
        diagnostics.context_drift(rounds, program.features[: rounds.contexts.shape[1]]),
    ]
    for t, score in zip(targets, scores, strict=True):
        if t.role != "today":
            found += _target_checks(t, dataset, seen.readings[t.name], spend=score.spend)
    return tuple(
        msgspec.structs.replace(c, value=float(np.nan_to_num(c.value, posinf=_FAR, neginf=-_FAR))) for c in found
    )


def _target_checks(target: Target, dataset: Dataset, reading: Reading, *, spend: Spend | None) -> list[Check]:
    rounds, e, name = dataset.rounds, reading.evidence, target.name
    low, high = float(rounds.rewards.min()), float(rounds.rewards.max())
    stages = {s.title: dataset.stages == i for i, s in enumerate(dataset.program.stages)}
    gap = clustered(dr(e) - dm(e), rounds.customers)
    found = [
        diagnostics.support(reading.unsupported, e, target=name, floor=low, ceiling=high),
        diagnostics.mean_weight(e, rounds.customers, target=name),
        diagnostics.effective_size(e, target=name),
        diagnostics.tails(e, target=name),
        diagnostics.overlap(e, stages, kind="stage", target=name),
        diagnostics.agreement(gap, target=name),
        diagnostics.interactions(clustered(reading.interactions(), rounds.customers), target=name),
        diagnostics.drift(dr(e), rounds, target=name),
    ]
    if segments := {_segment_title(key): rows for key, rows in _segment_rows(dataset).items()}:
        found.append(diagnostics.overlap(e, segments, kind="segment", target=name))
    if spend is not None and spend.budget is not None:
        said = f"{spend.budget:,.2f} {dataset.program.currency} in {spend.period_days:g} days"
        found.append(diagnostics.spending(spend.expected, spend.budget, target=name, said=said))
    return found
