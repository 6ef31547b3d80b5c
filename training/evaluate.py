"""What is each policy worth on the same log? Targets side by side, each paired with the one in force.

Works through the rounds a block at a time and keeps a few numbers a round, so the length of the log costs no
memory that counts. `targets` says what is valued, `evaluation` what is found.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec
import numpy as np

from optimizer.actions import FACTORS, HOLD, ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from optimizer.program import DAY, Program
from training import diagnostics, guardrail_prices, sequence
from training.dataset import Dataset
from training.diagnostics import Check
from training.evaluation import AnytimeValid, Effect, Evaluation, Look, Role, Score, Spend, StageScore
from training.guardrail_prices import GuardrailPrice
from training.intervals import Estimate, Interval, bootstraps, by_customer, clustered, gathered, likelihood
from training.ope import dm, dr
from training.propensities import Pair, Sensitivity, sensitivity
from training.reading import REWARD, Frozen, Loggers, Reading, Seen, models_of, read
from training.reward_model import RewardModel
from training.targets import TODAY, Target
from training.vectors import blocks

_FROZEN_FROM = 200
"""Rounds of history from which a range and a model are frozen."""

_FAR = 1e9
"""What stands for an infinite value of a check: JSON has none."""

_LOOKS = 50
_RESAMPLES = 1_000
_SEGMENT_CUSTOMERS = 30

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


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
