"""What is each policy worth on the same log? Targets side by side, each paired with the one in force.

Works through the rounds a block at a time and keeps a few numbers a round, so the length of the log costs no
memory that counts. Results are plain structs that serialise to JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from optimizer.actions import FACTORS, HOLD, ActionSpace, Floats, Nudge
from optimizer.floor import apply_floor
from optimizer.policy import Policy, Rounds
from optimizer.program import Program
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from training import diagnostics
from training.dataset import Dataset
from training.diagnostics import Check
from training.intervals import Estimate, by_customer, clustered
from training.ope import dm, dr
from training.reading import REWARD, Reading, Seen, models_of, read

TODAY = "today"
"""The name of the logging policy as a target."""

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


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What one target is worth per decision, and what it would do.

    `estimates` by estimator; `lift` over the reference and `over_hold` are paired differences by DR;
    `events` are expected counts per decision by DR; `mix` is the share of nudges by factor and level;
    `nudged` the share of decisions that nudge; `cost` is expected per decision.
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
    level: float = 0.95,
    progress: Progress | None = None,
) -> Evaluation:
    """Value each target on a log.

    Args:
        dataset: rounds that no target has learned from: a later slice of time.
        targets: policies, with the reference among them.
        reference: the name of the target that lifts are over: the champion, or the logging policy.
        history: earlier rounds of the same log, for the reward model only.
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

    seen = read(dataset, {t.name: t.vectors for t in targets}, models=models, tick=tick)
    program, rounds = dataset.program, dataset.rounds
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
        scores=_scores(dataset, targets, seen, reference=reference, level=level),
        effects=_effects(seen, program.space, level=level),
        checks=_checks(dataset, targets, seen),
    )


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


def _titles(program: Program) -> dict[str, str]:
    """What people call the levels and the events, by name; a level as `tone=warm`."""
    titles = {f"incentive={x.name}": x.title for x in program.incentives}
    titles |= {f"tone={x.name}": x.title for x in program.tones}
    titles |= {f"timing={x.name}": x.title for x in program.timings}
    return titles | {e.name: e.title or e.name for e in program.events} | {"opt_out": "Opt-outs"}


def _scores(
    dataset: Dataset, targets: Sequence[Target], seen: Seen, *, reference: str, level: float
) -> tuple[Score, ...]:
    terms = {t.name: dr(seen.readings[t.name].evidence) for t in targets}
    return tuple(
        _score(t, dataset, seen.readings[t.name], terms=terms, reference=reference, level=level) for t in targets
    )


def _score(
    target: Target,
    dataset: Dataset,
    reading: Reading,
    *,
    terms: Mapping[str, Floats],
    reference: str,
    level: float,
) -> Score:
    customers, space = dataset.rounds.customers, dataset.program.space
    own = terms[target.name]
    share = reading.chosen.sum(axis=0) / len(dataset)
    return Score(
        name=target.name,
        title=target.title,
        role=target.role,
        version=target.version,
        estimates={name: clustered(x, customers, level=level) for name, x in reading.estimates().items()},
        lift=clustered(own - terms[reference], customers, level=level),
        over_hold=clustered(own - terms["hold"], customers, level=level) if "hold" in terms else None,
        events={name: clustered(x, customers, level=level) for name, x in reading.events.items()},
        nudged=float(1.0 - share[HOLD]),
        cost=float(share @ space.action_costs),
        mix=_mix(share, space),
        stages=_stages(dataset, reading, own=own, other=terms[reference], level=level),
    )


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


def _checks(dataset: Dataset, targets: Sequence[Target], seen: Seen) -> tuple[Check, ...]:
    rounds = dataset.rounds
    found = [
        diagnostics.vectors(rounds),
        diagnostics.calibration(seen.counts, dataset.program.space),
        diagnostics.known_propensities(dataset),
        diagnostics.maturity(dataset),
    ]
    low, high = float(rounds.rewards.min()), float(rounds.rewards.max())
    stages = tuple(s.title for s in dataset.program.stages)
    for t in targets:
        if t.role == "today":
            continue
        reading = seen.readings[t.name]
        e = reading.evidence
        gap = clustered(dr(e) - dm(e), rounds.customers)
        found += [
            diagnostics.support(reading.unsupported, e, target=t.name, floor=low, ceiling=high),
            diagnostics.mean_weight(e, rounds.customers, target=t.name),
            diagnostics.effective_size(e, target=t.name),
            diagnostics.tails(e, target=t.name),
            diagnostics.overlap(e, dataset.stages, names=stages, target=t.name),
            diagnostics.agreement(gap, target=t.name),
            diagnostics.interactions(clustered(reading.interactions(), rounds.customers), target=t.name),
        ]
    return tuple(found)
