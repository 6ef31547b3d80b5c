"""Can this log answer this question? Checks that pass, warn or fail, each with what would mend it.

A failed check means *not enough evidence*: the numbers may still be looked at, but nothing is promoted on
them.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from scipy.special import ndtri
from scipy.stats import chi2

from optimizer.actions import FACTORS, HOLD, ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from optimizer.program import DAY
from training.dataset import Dataset
from training.intervals import Estimate, clustered
from training.ope import SUM_TOLERANCE, Evidence
from training.vectors import blocks

Status = Literal["pass", "warn", "fail"]

ENOUGH = 200.0
"""Effective rounds below which an estimate is not to be relied on."""

_WEEKLY = 30
"""Customers below which a week is not compared."""

RARE = 1e-4
"""A logged probability below this is no support: one draw in ten thousand tells nothing."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked: of the log, or, where `target` names one, of that target on the log."""

    name: str
    title: str
    status: Status
    value: float
    finding: str
    mend: str = ""
    target: str = ""


def vectors(rounds: Rounds) -> Check:
    """Check that every logged vector is a distribution over the allowed actions with the drawn action in it."""
    wrong = np.zeros(len(rounds), dtype=np.bool_)
    for rows, part in blocks(rounds):
        p = part.probabilities
        broken = ~((p >= 0) & (p <= 1 + SUM_TOLERANCE) & (part.allowed | (p == 0))).all(axis=1)
        broken |= ~(np.abs(p.sum(axis=1, dtype=np.float64) - 1.0) <= SUM_TOLERANCE)
        wrong[rows] = broken | ~(p[np.arange(len(p)), part.actions] > 0)
    bad = int(wrong.sum())
    first = f"; the first is round {int(np.argmax(wrong))}" if bad else ""
    return Check(
        name="vectors",
        title="Logged probabilities are valid",
        status="fail" if bad else "pass",
        value=float(bad),
        finding=f"{bad:,} of {len(rounds):,} rounds have a vector that could not have been drawn from{first}",
        mend="log the vector that was drawn from, over the allowed actions" if bad else "",
    )


class Tally(msgspec.Struct, frozen=True):
    """How often each level was drawn, and how often its logged probability says. Tallies of blocks add up.

    `drawn`, `expected`, `variance`: (levels,), hold first, then the levels of each factor.
    """

    drawn: Floats
    expected: Floats
    variance: Floats

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.drawn + other.drawn, self.expected + other.expected, self.variance + other.variance)


def tally(rounds: Rounds, space: ActionSpace) -> Tally:
    """Count draws against what was logged, by level of each factor."""
    member = membership(space)
    p = rounds.probabilities @ member.astype(np.float32)
    chances = p.astype(np.float64)
    return Tally(
        member[rounds.actions].sum(axis=0, dtype=np.float64),
        chances.sum(axis=0),
        (chances * (1.0 - chances)).clip(0.0).sum(axis=0),
    )


def membership(space: ActionSpace) -> Bools:
    """Return which actions (k) belong to hold and to each level of each factor: (k, 1 + levels)."""
    hot = [space.levels[:, [f]] == np.arange(size) for f, size in enumerate(space.shape)]
    return np.hstack([np.arange(space.k)[:, None] == HOLD, *hot])


def level_names(space: ActionSpace) -> list[str]:
    """Name the columns of `membership`: `hold`, then `incentive=coupon` and so on."""
    return ["hold", *(f"{f}={n}" for f, names in zip(FACTORS, space.factors, strict=True) for n in names)]


def calibration(counts: Tally, space: ActionSpace) -> Check:
    """Check that actions were drawn as often as their logged probabilities say.

    Each level's z score is compared with the normal quantile for a false alarm of 1 in 10,000 (fail) or 1 in
    100 (warn) over all levels.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.abs(counts.drawn - counts.expected) / np.sqrt(counts.variance)
    z = np.where(counts.variance > 1e-9, z, np.where(np.abs(counts.drawn - counts.expected) > 1e-3, np.inf, 0.0))
    worst = int(np.argmax(z))
    fail, warn = (float(-ndtri(alarm / 2 / len(z))) for alarm in (1e-4, 1e-2))
    status: Status = "fail" if z[worst] > fail else "warn" if z[worst] > warn else "pass"
    drawn, expected = counts.drawn[worst], counts.expected[worst]
    return Check(
        name="calibration",
        title="Draws match the logged probabilities",
        status=status,
        value=float(z[worst]),
        finding=f"furthest off is {level_names(space)[worst]}: drawn {drawn:,.0f} times, {expected:,.1f} expected "
        f"(z = {z[worst]:.1f}, limit {fail:.1f})",
        mend="" if status == "pass" else "find what changes the action or the vector between draw and log",
    )


def maturity(dataset: Dataset) -> Check:
    """Check that enough of the decisions seen are old enough to be judged."""
    share = dataset.matured_share
    days = dataset.program.matures_after / 86_400
    return Check(
        name="maturity",
        title="Outcomes have had their time",
        status="pass" if share >= 0.5 else "warn" if share >= 0.2 else "fail",
        value=share,
        finding=f"{share:.0%} of {dataset.total:,} decisions have matured ({days:g} days after the decision)",
        mend="" if share >= 0.5 else "wait: what is left out is the newest, not the least successful",
    )


def known_propensities(dataset: Dataset) -> Check:
    """Check that probabilities were logged, not guessed."""
    guessed = dataset.estimated_propensities
    return Check(
        name="propensities",
        title="Probabilities were logged",
        status="fail" if guessed else "pass",
        value=float(guessed),
        finding="the log had no probabilities; they were estimated, and whatever drove the choices unseen biases "
        "every number here"
        if guessed
        else "every decision carries the probabilities it was drawn from",
        mend="let this service decide for a share of the customers" if guessed else "",
    )


def mean_weight(evidence: Evidence, customers: Ints, *, target: str) -> Check:
    """Check that weights average 1, as they must if the logged probabilities are right."""
    mean = clustered(evidence.weights, customers)
    z = abs(mean.value - 1.0) / mean.error if mean.error > 0 else (np.inf if abs(mean.value - 1) > 1e-6 else 0.0)
    status: Status = "fail" if z > 4.5 else "warn" if z > 3.3 else "pass"
    return Check(
        name="mean weight",
        title="Weights average one",
        status=status,
        value=mean.value,
        finding=f"mean weight {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]",
        mend="" if status == "pass" else "the log and its probabilities disagree: check how they were logged",
        target=target,
    )


def effective_size(evidence: Evidence, *, target: str) -> Check:
    """Check how many rounds of the target's own the weighted log is worth (Kish, 1965)."""
    ess = effective(evidence.weights)
    share = ess / max(len(evidence), 1)
    status: Status = "fail" if ess < ENOUGH else "warn" if share < 0.1 else "pass"
    need = int(np.ceil(ENOUGH / max(share, 1e-6) - len(evidence)))
    return Check(
        name="effective size",
        title="Enough of the log resembles the target",
        status=status,
        value=ess,
        finding=f"{len(evidence):,} rounds tell as much as {ess:,.0f} of the target's own ({share:.1%})",
        mend={"pass": "", "warn": "explore more where the target would nudge, or log for longer"}.get(
            status, f"about {max(need, 1):,} more decisions, or more exploration where the target would nudge"
        ),
        target=target,
    )


def effective(weights: Floats) -> float:
    """Kish's effective sample size, `(sum w)^2 / sum w^2`.

    >>> effective(np.array([1.0, 1.0, 0.0])), effective(np.array([3.0, 1.0]))
    (2.0, 1.6)
    """
    squares = float(weights @ weights)
    return float(weights.sum() ** 2 / squares) if squares > 0 else 0.0


def tails(evidence: Evidence, *, target: str) -> Check:
    """Check that no few rounds carry the estimate: the shape of the tail, and what its heaviest 1 % carries."""
    k = pareto_shape(evidence.weights)
    ordered = np.sort(evidence.weights)[::-1]
    top = float(ordered[: max(len(ordered) // 100, 1)].sum() / max(ordered.sum(), 1e-300))
    status: Status = "pass" if k < 0.7 else "fail" if k >= 1.0 and top > 0.5 else "warn"
    return Check(
        name="tails",
        title="No few rounds carry the estimate",
        status=status,
        value=k,
        finding=f"the heaviest 1 % of rounds carry {top:.0%} of the weight; largest {ordered[0]:.1f}, "
        f"Pareto k = {k:.2f} (limit 0.7)",
        mend="" if status == "pass" else "a higher floor, so that the target's actions are drawn more often",
        target=target,
    )


def pareto_shape(weights: Floats) -> float:
    """Return the shape k of the tail of weights (n,): their mean is reliable below 0.7.

    The estimator of Hill (1975) on the largest `min(n / 5, 3 sqrt n)` weights (Vehtari et al., 2024). Unlike
    a fitted generalised Pareto tail it takes ties, which floored policies give.

    >>> pareto_shape(np.ones(1_000))
    0.0
    """
    size = int(min(len(weights) / 5, 3 * np.sqrt(len(weights))))
    if size < 1:
        return 0.0
    ordered = np.sort(weights)
    threshold = ordered[-size - 1]
    if threshold <= 0:
        return 0.0 if ordered[-1] <= 0 else np.inf
    return float(np.log(ordered[-size:] / threshold).mean())


def support(unsupported: Floats, evidence: Evidence, *, target: str, floor: float, ceiling: float) -> Check:
    """Check that the log could have drawn what the target would.

    Args:
        unsupported: (n,), the target's mass on actions with a logged probability below `RARE`.
        evidence: of the target.
        target: its name.
        floor, ceiling: the least and the largest reward seen: what the unsupported share could be worth.
    """
    share = float(unsupported.mean())
    model = float(np.clip(evidence.expected.mean(), floor, ceiling))
    low, high = share * (floor - model), share * (ceiling - model)
    status: Status = "pass" if share < 0.001 else "warn" if share < 0.02 else "fail"
    bounds = f"; taking the best and the worst there, the value may move by {low:+.3g} to {high:+.3g}"
    return Check(
        name="support",
        title="The log tried what the target would do",
        status=status,
        value=share,
        finding=f"{share:.2%} of the target's choices were (nearly) impossible in the log"
        + (bounds if share > 0 else ""),
        mend="" if status == "pass" else "log under a floor that keeps every allowed action possible",
        target=target,
    )


def overlap(evidence: Evidence, parts: Mapping[str, Bools], *, kind: Literal["stage", "segment"], target: str) -> Check:
    """Check that every stage, or segment, with customers in it has enough rounds that resemble the target.

    Args:
        evidence: of the target.
        parts: which rounds (n,) are of each stage or segment.
        kind: which of the two.
        target: its name.
    """
    n = len(evidence)
    counts = {name: int(rows.sum()) for name, rows in parts.items()}
    sizes = {name: effective(evidence.weights[rows]) for name, rows in parts.items() if counts[name] >= 0.01 * n}
    thin = {name: ess for name, ess in sizes.items() if ess < ENOUGH / 4}
    least = min(sizes, key=lambda name: sizes[name], default="")
    need = int(np.ceil(counts[least] * (ENOUGH / 4 / max(sizes[least], 1.0) - 1.0))) if thin else 0
    return Check(
        name="overlap" if kind == "stage" else "overlap by segment",
        title=f"Every {kind} is covered",
        status="warn" if thin else "pass",
        value=sizes.get(least, float(n)),
        finding=f"the thinnest {kind} is {least}: worth {sizes[least]:,.0f} rounds of the target's own"
        if sizes
        else f"there is no {kind}",
        mend=f"read nothing into {', '.join(thin)}: explore more there, or log about {need:,} more decisions of {least}"
        if thin
        else "",
        target=target,
    )


def drift(terms: Floats, rounds: Rounds, *, target: str = "") -> Check:
    """Check that a value was the same every week: Cochran's Q over weeks, each with its clustered error.

    Args:
        terms: (n,), of an estimator; the rewards for the log itself.
        rounds: the rounds of the terms.
        target: whose value it is; the logging policy's where omitted.
    """
    weeks = ((rounds.at - rounds.at.min()) // (7 * DAY)).astype(np.intp)
    found = {}
    for week in np.unique(weeks):
        rows = weeks == week
        if len(np.unique(rounds.customers[rows])) >= _WEEKLY:
            found[int(week) + 1] = clustered(terms[rows], rounds.customers[rows])
    values, errors = (np.array([getattr(e, f) for e in found.values()]) for f in ("value", "error"))
    title = "Its value is the same every week" if target else "Weeks are alike"
    if len(found) < 2 or not (errors > 0).all():
        finding = "there are not two weeks with customers enough to compare"
        return Check(name="drift", title=title, status="pass", value=np.nan, finding=finding, target=target)
    pooled = float((values / errors**2).sum() / (1.0 / errors**2).sum())
    chance = float(chi2.sf((((values - pooled) / errors) ** 2).sum(), len(values) - 1))
    worst = list(found)[int(np.argmax(np.abs(values - pooled) / errors))]
    return Check(
        name="drift",
        title=title,
        status="warn" if chance < 1e-3 else "pass",
        value=chance,
        finding=f"over {len(found)} weeks the value is furthest off in week {worst}: {found[worst].value:.4g} where "
        f"{pooled:.4g} is usual; like weeks differ as much with a chance of {chance:.2g}",
        mend="judge by the latest weeks, and look for what changed" if chance < 1e-3 else "",
        target=target,
    )


def context_drift(rounds: Rounds, names: Sequence[str]) -> Check:
    """Check that the second half of the log has the customers and moments of the first.

    The population stability index of each feature over tenths of its first half; 0.25 is a usual limit.
    """
    half = len(rounds) // 2
    shifts = {name: _shift(rounds.contexts[:half, i], rounds.contexts[half:, i]) for i, name in enumerate(names)}
    worst = max(shifts, key=lambda name: shifts[name], default="")
    value = shifts.get(worst, 0.0)
    return Check(
        name="context drift",
        title="The second half is like the first",
        status="warn" if value > 0.25 else "pass",
        value=value,
        finding=f"what shifts most is {worst}: stability index {value:.2f} (limit 0.25)",
        mend="judge by the later half, and train on it" if value > 0.25 else "",
    )


def _shift(before: Floats, after: Floats) -> float:
    """Return the population stability index; each bin has half a count added, so that none is empty."""
    if len(before) < _WEEKLY or len(after) < _WEEKLY:
        return 0.0
    edges = np.unique(np.quantile(before, np.linspace(0.1, 0.9, 9)))
    sides = [
        np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) + 0.5 for x in (before, after)
    ]
    p, q = (x / x.sum() for x in sides)
    return float(((q - p) * np.log(q / p)).sum())


def spending(expected: float, budget: float, *, target: str, said: str) -> Check:
    """Check that a target would stay within the budget at the prices of the log.

    Args:
        expected: what it would spend in a period of the budget.
        budget: of a period.
        target: its name.
        said: the budget in words.
    """
    over = expected > budget
    return Check(
        name="spending",
        title="The budget would do",
        status="warn" if over else "pass",
        value=expected / budget if budget > 0 else np.inf,
        finding=f"it would spend about {expected:,.2f} of {said}" + ("; infeasible at these prices" if over else ""),
        mend="its value is not to be had at these prices: raise the budget, or let pacing raise the price and log again"
        if over
        else "",
        target=target,
    )


def agreement(gap: Estimate, *, target: str) -> Check:
    """Check that the model alone and the doubly robust estimate agree: `gap` is dr minus dm, paired."""
    z = abs(gap.value) / gap.error if gap.error > 0 else 0.0
    return Check(
        name="agreement",
        title="The reward model agrees with the log",
        status="pass" if z < 3 else "warn",
        value=z,
        finding=f"the log corrects the model by {gap.value:+.4g} [{gap.low:+.4g}, {gap.high:+.4g}]",
        mend="" if z < 3 else "rely on the doubly robust value, not on the model's: it misses something",
        target=target,
    )


def interactions(gap: Estimate, *, target: str) -> Check:
    """Check whether incentive, tone and timing simply add up: `gap` is dr less its factored form, paired."""
    z = abs(gap.value) / gap.error if gap.error > 0 else 0.0
    return Check(
        name="interactions",
        title="Incentive, tone and timing add up",
        status="pass" if z < 3 else "warn",
        value=z,
        finding=f"combinations differ from the sum of their parts by {gap.value:+.4g} "
        f"[{gap.low:+.4g}, {gap.high:+.4g}]",
        mend="" if z < 3 else "read the effects of single ingredients with care: some act only together",
        target=target,
    )


def failed(checks: tuple[Check, ...], *, target: str) -> tuple[Check, ...]:
    """Return the checks that stand in the way of a verdict on a target: the log's failures and its own."""
    return tuple(c for c in checks if c.status == "fail" and c.target in ("", target))
