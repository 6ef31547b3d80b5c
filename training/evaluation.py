"""What was found of each policy on a log? Plain structs that serialise to JSON, and what their parts mean."""

from typing import Literal

import msgspec

from training.diagnostics import Check
from training.guardrail_prices import GuardrailPrice
from training.intervals import Estimate, Interval
from training.propensities import Sensitivity

Role = Literal["today", "champion", "baseline", "candidate"]
"""What a target is to the others."""


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
