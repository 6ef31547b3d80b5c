"""Is it fair to all? Exposure and incremental value by declared segment, as a gate with reasons.

Exposure: how likely a customer is to be nudged, where a nudge was allowed at all; what consent, caps and a paused
promotion take away is not the policy's doing. Incremental value: what the policy brings over holding, by doubly robust
terms. The gate fails only on what an interval shows, at a level wide enough for all the comparisons made; what merely
looks uneven is a warning.

The ratio of exposure between groups is fairlearn's. Jurity would add a second way to the same ratio (its disparate
impact); neither has intervals clustered by customer or values that rest on propensities, so those are our own.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from fairlearn.metrics import MetricFrame, mean_prediction  # type: ignore[import-untyped]  # it ships no types

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.floor import spread
from optimizer.policy import Rounds
from optimizer.program import Program
from training import reward_model
from training.dataset import Dataset
from training.figures import Figure, Unit, estimated, few, mean, missing
from training.intervals import clustered
from training.ope import dr, weigh
from training.promotion import Reason, Verdict, with_reasons
from training.record import UNKNOWN, segments
from training.targets import Target

_BLOCK = 8_192
_SAYS: Mapping[str, tuple[str, Unit]] = MappingProxyType(
    {
        "exposure": ("chance of a nudge, a decision at which one was allowed", "share"),
        "exposure_ratio": ("the group's exposure over that of the rest", "score"),
        "value": ("what the policy brings over holding, a decision, then the logging policy", "money"),
        "value_gap": ("what it brings the group less what it brings the rest, a decision", "money"),
    }
)

Status = Literal["pass", "warn", "fail"]
Known = Literal["pass", "warn", "fail", "not enough evidence"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as fair. These are the defaults; a program declares others where law or conscience asks for it.

    Args:
        attributes: those that must not decide who is nudged: a shortfall of exposure fails for them and is a warning
            for others, which a policy may well have a reason to go by. Harm fails for every attribute.
        exposure_ratio: a group's exposure over that of the rest, at the least (the four-fifths rule).
        value_loss: how much a decision may cost a group, in reward units, before it counts as harm.
        customers: fewest in a group for a judgement.
        level: of all intervals together (Bonferroni).
    """

    attributes: tuple[str, ...] = ()
    exposure_ratio: float = 0.8
    value_loss: float = 0.0
    customers: int = 50
    level: float = 0.95


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One segment: its exposure, over the rest's, and what nudging is worth to it, over the rest's."""

    attribute: str
    segment: str
    customers: int
    rounds: int
    exposure: Figure
    exposure_ratio: Figure
    value: Figure
    value_gap: Figure
    status: Known


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One reason: which group, of which measure, what was found, what would mend it."""

    code: Literal["fair", "less exposed", "harmed", "gains less", "too few", "nothing to judge"]
    status: Status
    attribute: str
    segment: str
    text: str
    mend: str = ""


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's verdict. `spread` is fairlearn's smallest over largest exposure, by attribute; None where none is."""

    policy: str
    status: Status
    level: float
    comparisons: int
    limits: Limits
    groups: tuple[Group, ...]
    reasons: tuple[Cause, ...]
    spread: dict[str, float | None]

    @property
    def passes(self) -> bool:
        """Whether nothing stands in the way of a promotion: a warning does not."""
        return self.status != "fail"


def declared(program: Program, *, protect: Sequence[str] = ()) -> Limits:
    """Return what a program declares as fair, with further attributes to protect."""
    said = program.fairness
    return Limits(
        attributes=tuple(dict.fromkeys((*said.protect, *protect))),
        exposure_ratio=said.exposure_ratio,
        value_loss=float(said.value_loss),
        customers=said.customers,
    )


def fairness_gate(dataset: Dataset, *, target: Target | None = None, limits: Limits | None = None) -> Fairness:
    """Judge the policy that chose, or one that may replace it, on a log.

    Args:
        dataset: rounds, matured.
        target: the policy to judge, as `evaluate.deployed` returns it; the one that chose where None.
        limits: what counts as fair; what the program declares where None.

    Raises:
        ValueError: for an attribute that the program does not declare, or a share that is none.
    """
    limits = limits or declared(dataset.program)
    _refuse(dataset, limits)
    sorted_ = segments(dataset.program, dataset.rounds.contexts)
    seen = _seen(dataset, target)
    sizes = {
        (name, segment): len(np.unique(dataset.rounds.customers[codes == code]))
        for name, (names, codes) in sorted_.items()
        for code, segment in enumerate(names)
    }
    comparisons = 2 * sum(n >= limits.customers and segment != UNKNOWN for (_, segment), n in sizes.items())
    level = 1.0 - (1.0 - limits.level) / max(comparisons, 1)
    groups = tuple(
        _group(seen, codes == code, place=(name, segment), level=level, limits=limits)
        for name, (names, codes) in sorted_.items()
        for code, segment in enumerate(names)
        if sizes[name, segment]
    )
    causes = [c for g in groups for c in _causes(g, limits)]
    causes = causes if any(g.status in ("pass", "warn", "fail") for g in groups) else [*causes, _nothing(limits)]
    order: Sequence[Status] = ("fail", "warn", "pass")
    return Fairness(
        policy=target.title if target else "the policy that chose",
        status=min((c.status for c in causes), key=order.index, default="pass"),
        level=level,
        comparisons=comparisons,
        limits=limits,
        groups=groups,
        reasons=tuple(sorted(causes or [_fair(comparisons)], key=lambda c: order.index(c.status))),
        spread={name: _spread(seen, names, codes) for name, (names, codes) in sorted_.items()},
    )


def _refuse(dataset: Dataset, limits: Limits) -> None:
    declared = [a.name for a in dataset.program.attributes]
    if strange := [a for a in limits.attributes if a not in declared]:
        raise ValueError(f"program {dataset.program.name!r} declares no attribute {strange[0]!r}: expected {declared}")
    if not 0 < limits.exposure_ratio <= 1:
        raise ValueError(f"exposure_ratio = {limits.exposure_ratio!r} is no share: use 0.8 for the four-fifths rule")


class _Seen(NamedTuple):
    """What is judged of each round (n,): its customer, its chance of a nudge (NaN where none was allowed), its gain."""

    customers: Ints
    exposure: Floats
    gain: Floats


def _seen(dataset: Dataset, target: Target | None) -> _Seen:
    """Work out the chance of a nudge and what it adds over holding, a block of rounds at a time.

    The gain is that of what is chosen: what the floor explores costs every policy the same, and is no harm of this one.
    """
    rounds, program = dataset.rounds, dataset.program
    model = reward_model.cross_fit(rounds, program.space)
    exposure, gain = np.empty(len(rounds)), np.empty(len(rounds))
    for start in range(0, len(rounds), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = rounds.take(rows)
        vectors = target.vectors(part) if target else part.probabilities.astype(np.float64)
        vectors = vectors / vectors.sum(axis=1, keepdims=True)
        holding = np.zeros_like(vectors)
        holding[:, HOLD] = 1.0
        q = model.predict(part)
        chosen = _unexplored(vectors, part, program)
        gain[rows] = dr(weigh(part, chosen, q)) - dr(weigh(part, holding, q))
        exposure[rows] = np.where(part.allowed[:, HOLD + 1 :].any(axis=1), 1.0 - vectors[:, HOLD], np.nan)
    return _Seen(rounds.customers, exposure, gain)


_ROUNDING = 1e-6  # vectors were drawn from in float32


def _unexplored(vectors: Floats, rounds: Rounds, program: Program) -> Floats:
    """Return what a policy does where the floor explores, moved to hold, (n, k); as it is where it has no floor."""
    explored = program.exploration.floor * spread(program.space, rounds.allowed)
    rest = vectors - explored
    if rest.min() < -_ROUNDING:
        return vectors
    rest[:, HOLD] += explored.sum(axis=1)
    rest = np.where(rest > _ROUNDING, rest, 0.0)
    chosen: Floats = rest / rest.sum(axis=1, keepdims=True)
    return chosen


def _group(seen: _Seen, mine: Bools, *, place: tuple[str, str], level: float, limits: Limits) -> Group:
    attribute, segment = place
    people = len(np.unique(seen.customers[mine]))
    whole = Group(
        attribute=attribute,
        segment=segment,
        customers=people,
        rounds=int(mine.sum()),
        **{name: missing(few(people, enough=limits.customers), of=of, unit=unit) for name, (of, unit) in _SAYS.items()},
        status="not enough evidence",
    )
    rest = len(np.unique(seen.customers[~mine]))
    open_ = np.isfinite(seen.exposure)
    if min(people, rest) < limits.customers or not (mine & open_).any() or not (~mine & open_).any():
        return whole
    exposed, customers = seen.exposure[open_], seen.customers
    of = {name: says for name, (says, _) in _SAYS.items()}
    judged = msgspec.structs.replace(
        whole,
        exposure=mean(
            exposed[mine[open_]], customers[open_][mine[open_]], of=of["exposure"], unit="share", level=level
        ),
        exposure_ratio=_ratio(exposed, mine[open_], customers[open_], of=of["exposure_ratio"], level=level),
        value=mean(seen.gain[mine], customers[mine], of=of["value"], unit="money", level=level),
        value_gap=_gap(seen.gain, mine, customers, of=of["value_gap"], level=level),
    )
    if segment == UNKNOWN:
        return judged
    found = {c.status for c in _causes(msgspec.structs.replace(judged, status="pass"), limits)}
    return msgspec.structs.replace(judged, status="fail" if "fail" in found else "warn" if "warn" in found else "pass")


def _gap(values: Floats, mine: Bools, customers: Ints, *, of: str, level: float) -> Figure:
    """Return the mean of a group less that of the rest, (n,) rounds, clustered by customer."""
    one, other = float(values[mine].mean()), float(values[~mine].mean())
    share = mine.mean()
    pull = np.where(mine, (values - one) / share, -(values - other) / (1.0 - share))
    return estimated(clustered(one - other + pull, customers, level=level), of=of, unit="money")


def _ratio(values: Floats, mine: Bools, customers: Ints, *, of: str, level: float) -> Figure:
    """Return the mean of a group over that of the rest: the interval is that of its logarithm."""
    one, other, n = float(values[mine].mean()), float(values[~mine].mean()), len(values)
    if min(one, other) <= 0:
        return missing("nobody in the group, or in the rest, is ever nudged", of=of, unit="score", n=n)
    share = mine.mean()
    pull = np.where(mine, (values - one) / share / one, -(values - other) / (1.0 - share) / other)
    log = clustered(np.log(one / other) + pull, customers, level=level)
    low, high = float(np.exp(log.low)), float(np.exp(log.high))
    return Figure(of=of, unit="score", value=one / other, low=low, high=high, level=level, n=n, customers=log.customers)


def _causes(group: Group, limits: Limits) -> list[Cause]:
    """Return what speaks against a group's treatment; the group is judged where its figures are there."""
    if group.segment == UNKNOWN:
        return []
    name = f"{group.attribute} = {group.segment}"
    ratio, value, gap = group.exposure_ratio, group.value, group.value_gap
    place = {"attribute": group.attribute, "segment": group.segment}
    if value.value is None:
        return [Cause(code="too few", status="warn", text=f"{name}: {value.missing}", **place)]
    found = []
    if value.high is not None and value.high < -limits.value_loss:
        text = f"{name}: nudging costs this group {-value.value:.3g} a decision {_between(value)}"
        mend = "bar what does not suit them (barred_segments), or train with this attribute and evaluate again"
        found.append(Cause(code="harmed", status="fail", text=text, mend=mend, **place))
    elif gap.below:
        text = f"{name}: gains {-(gap.value or 0.0):.3g} a decision less than the rest {_between(gap)}"
        mend = "offer something that suits them: a new incentive is explored from the first day"
        found.append(Cause(code="gains less", status="warn", text=text, mend=mend, **place))
    if ratio.value is not None and ratio.value < limits.exposure_ratio:
        shown = ratio.high is not None and ratio.high < limits.exposure_ratio
        status: Status = "fail" if shown and group.attribute in limits.attributes else "warn"
        text = f"{name}: is nudged {ratio.value:.2f} times as often as the rest {_between(ratio)}"
        mend = f"at least {limits.exposure_ratio:g} is asked for: look at what is barred or unaffordable for this group"
        found.append(Cause(code="less exposed", status=status, text=text, mend=mend, **place))
    return found


def _between(figure: Figure) -> str:
    return f"[{figure.low:.3g}, {figure.high:.3g}]"


def _fair(comparisons: int) -> Cause:
    text = f"no group is shown to be harmed, to gain less or to be left out ({comparisons} comparisons)"
    return Cause(code="fair", status="pass", attribute="", segment="", text=text)


def _nothing(limits: Limits) -> Cause:
    text = f"no declared attribute has two groups of {limits.customers} customers"
    mend = "declare attributes that your app knows, such as a plan or an age band, or wait for more customers"
    return Cause(code="nothing to judge", status="warn", attribute="", segment="", text=text, mend=mend)


def _spread(seen: _Seen, names: Sequence[str], codes: Ints) -> float | None:
    """Return the exposure of the least over that of the most exposed group, as fairlearn computes it."""
    rows = np.isfinite(seen.exposure) & (codes < len(names) - 1)
    if len(np.unique(codes[rows])) < 2:
        return None
    exposed = seen.exposure[rows]
    frame = MetricFrame(
        metrics=mean_prediction, y_true=np.zeros(len(exposed)), y_pred=exposed, sensitive_features=codes[rows]
    )
    return float(frame.ratio(method="between_groups"))


def verdict_on(verdict: Verdict, gate: Fairness, *, must_be_known: bool = False) -> Verdict:
    """Return a verdict after the gate on fairness: what is shown to be unfair keeps the champion.

    What merely looks uneven, and what cannot be judged, is said with the verdict's reasons and stops nothing, unless
    too little evidence is to stop it.

    Args:
        verdict: of the evaluation.
        gate: on the verdict's challenger.
        must_be_known: where nothing can be judged, leave not enough evidence.
    """
    return with_reasons(verdict, [_reason(verdict, gate, c, must_be_known=must_be_known) for c in gate.reasons])


def _reason(verdict: Verdict, gate: Fairness, cause: Cause, *, must_be_known: bool) -> Reason:
    unknown = cause.code == "nothing to judge" and must_be_known
    speaks: Literal["for", "against", "unknown", "beside"] = (
        "against" if cause.status == "fail" else "unknown" if unknown else "for" if cause.status == "pass" else "beside"
    )
    text = f"fairness of {gate.policy}: {cause.text}"
    return Reason(code=f"fairness: {cause.code}", speaks=speaks, target=verdict.challenger, text=text, mend=cause.mend)
