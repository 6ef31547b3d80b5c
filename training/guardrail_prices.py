"""What does each guardrail cost? A price where the log identifies one, bounds where it does not.

A stricter rule without memory (no coupons, nobody nudged in a stage) only takes actions away: the log drew from what is
left, so doubly robust estimation prices it. A rule with memory (at most so many nudges in a row of decisions) changes
what later decisions may do: it is priced over a customer's first six decisions by the product of the ratios along the
way. A relaxed rule would do what the log never could: without customers for whom it was relaxed at random there are
only the worst and the best case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from optimizer.actions import FACTORS, HOLD, Bools, Floats, Ints
from optimizer.policy import Rounds
from training.dataset import Dataset
from training.intervals import Estimate, by_customer, clustered
from training.ope import dr, weigh
from training.reward_model import RewardModel
from training.vectors import chances, give_back

Method = Literal["doubly robust", "sequential weights", "randomised by customer", "bounds"]

LONGEST = 6
"""Decisions of a customer over which weights are multiplied: beyond, they spread too far to say anything."""

MOST = 4_000
"""Rounds on which stricter rules are priced: a policy is asked again for each rule."""

_SMALLEST = 1e-9
_BLOCK = 512


class GuardrailPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What changing a rule would do to the value of a decision: below 0, the change costs.

    `price` is None where the log identifies none; then `low` and `high` are the worst and the best case.
    """

    rule: str
    change: str
    method: Method
    price: Estimate | None
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class Stricter:
    """A rule without memory: which actions (n, k) it would still allow; hold always is."""

    rule: str
    change: str
    still: Callable[[Dataset], Bools]


def stricter_rules(dataset: Dataset) -> list[Stricter]:
    """Return a stricter rule for each level of each factor, and for each stage: without it."""
    space, found = dataset.program.space, []
    titles = {
        "incentive": {i.name: i.title for i in dataset.program.incentives},
        "timing": {t.name: t.title for t in dataset.program.timings},
    }
    for axis, (factor, names) in enumerate(zip(FACTORS, space.factors, strict=True)):
        if factor not in titles or len(names) < 2:
            continue
        for level, name in enumerate(names):
            keeps = space.levels[:, axis] != level
            found.append(Stricter(factor, f"no nudge with {titles[factor][name]}", _always(keeps)))
    for i, stage in enumerate(dataset.program.stages):
        if (dataset.stages == i).any() and len(dataset.program.stages) > 1:
            found.append(Stricter("stage", f"no nudges in {stage.title}", _silent(i)))
    return found


def _always(keeps: Bools) -> Callable[[Dataset], Bools]:
    return lambda dataset: np.tile(keeps, (len(dataset), 1))


def _silent(stage: int) -> Callable[[Dataset], Bools]:
    def still(dataset: Dataset) -> Bools:
        keeps = np.ones(dataset.rounds.allowed.shape, dtype=np.bool_)
        keeps[dataset.stages == stage, 1:] = False
        return keeps

    return still


def stricter(
    dataset: Dataset,
    vectors: Callable[[Rounds], Floats],
    rules: Sequence[Stricter],
    *,
    model: RewardModel,
    asks: bool = True,
    level: float = 0.95,
) -> list[GuardrailPrice]:
    """Price rules without memory for a policy, paired with the policy as it is, by DR.

    Args:
        dataset: rounds; at most `MOST` of them, evenly spaced, are read.
        vectors: what the policy would have drawn from.
        rules: each takes actions away.
        model: of the reward, cross-fitted.
        asks: whether the policy can be asked again under a smaller mask; else, as for the logging policy, its vector is
            renormalised over what is left.
        level: of the intervals.
    """
    read = np.arange(0, len(dataset), max(1, len(dataset) // MOST))
    gains = np.empty((len(rules), len(read)))
    for start in range(0, len(read), _BLOCK):
        rows = slice(start, start + _BLOCK)
        part = dataset.take(read[rows])
        q = model.predict(part.rounds)
        now = vectors(part.rounds)
        own = dr(weigh(part.rounds, now, q))
        for gain, rule in zip(gains, rules, strict=True):
            keeps = rule.still(part) & part.rounds.allowed
            keeps[:, HOLD] = True
            less = vectors(replace(part.rounds, allowed=keeps)) if asks else _left(now, keeps)
            gain[rows] = dr(weigh(part.rounds, less, q)) - own
        give_back(dataset.rounds)
    customers = dataset.rounds.customers[read]
    return [
        _priced(rule.rule, rule.change, "doubly robust", clustered(gain, customers, level=level))
        for gain, rule in zip(gains, rules, strict=True)
    ]


def _left(vectors: Floats, keeps: Bools) -> Floats:
    """What is left of vectors (n, k), renormalised; hold, where nothing is."""
    left = np.where(keeps, vectors, 0.0)
    sums = left.sum(axis=1, keepdims=True)
    left[sums[:, 0] < _SMALLEST, HOLD] = 1.0
    left /= np.maximum(left.sum(axis=1, keepdims=True), _SMALLEST)
    return left


def _priced(rule: str, change: str, method: Method, price: Estimate, note: str = "") -> GuardrailPrice:
    return GuardrailPrice(
        rule=rule, change=change, method=method, price=price, low=price.low, high=price.high, note=note
    )


def capped(dataset: Dataset, *, most: int, longest: int = LONGEST, level: float = 0.95) -> GuardrailPrice:
    """Price a cap with memory for the logging policy: at most so many nudges in a customer's first decisions.

    Until the cap is reached the rule changes nothing; from then on it holds: the weight of a decision is the product of
    `pi / mu` over the customer's decisions so far (Precup, Sutton and Singh, 2000), with what is common taken off the
    rewards first.

    Args:
        dataset: rounds, `at` ascending.
        most: nudges that the rule allows.
        longest: decisions of a customer that are read: at most `LONGEST`.
        level: of the interval.

    Raises:
        ValueError: for more decisions than weights can carry.
    """
    if not 1 <= longest <= LONGEST:
        raise ValueError(
            f"a rule with memory is priced over 1 to {LONGEST} decisions of a customer, got {longest}: beyond, the "
            "weights spread too far; simulate it instead: nudge simulate"
        )
    rounds = dataset.rounds
    order = np.lexsort((rounds.at, rounds.customers))
    who = rounds.customers[order]
    starts = np.flatnonzero(np.diff(who, prepend=-1))
    step = np.arange(len(who)) - np.repeat(starts, np.diff(np.append(starts, len(who))))
    early = order[step < longest]
    step, who = step[step < longest], rounds.customers[early]
    nudged = rounds.actions[early] != HOLD
    ratio = _ratios(rounds, early, nudged, step, most=most)
    weights = _products(ratio, step)
    common = float(rounds.rewards[early].mean())
    gain = (weights - 1.0) * (rounds.rewards[early] - common)
    changed = clustered(gain, who, level=level)
    note = f"over the first {longest} decisions of a customer, {len(early):,} in all"
    return _priced(
        "cap",
        f"at most {most} nudge{'' if most == 1 else 's'} in {longest} decisions",
        "sequential weights",
        changed,
        note,
    )


def _ratios(rounds: Rounds, rows: Ints, nudged: Bools, step: Ints, *, most: int) -> Floats:
    """Shape (n,): 1 below the cap; at it `1 / mu(hold)` for a hold and 0 for a nudge."""
    before: Ints = np.cumsum(nudged, dtype=np.intp) - nudged
    first = np.maximum.accumulate(np.where(step == 0, np.arange(len(step)), 0))
    sent: Ints = before - before[first]
    hold = chances(rounds, HOLD)[rows]
    full = sent >= most
    ratios: Floats = np.where(~full, 1.0, np.where(nudged, 0.0, 1.0 / np.maximum(hold, _SMALLEST)))
    return ratios


def _products(ratios: Floats, step: Ints) -> Floats:
    """Shape (n,): the product of each customer's ratios so far; rows go by customer, then by step."""
    products = ratios.copy()
    for s in range(1, int(step.max(initial=0)) + 1):
        rows = np.flatnonzero(step == s)
        products[rows] *= products[rows - 1]
    return products


def caps(dataset: Dataset, *, level: float = 0.95) -> list[GuardrailPrice]:
    """Price caps of one and two nudges in six decisions, where customers have several decisions."""
    sizes = np.bincount(dataset.rounds.customers)
    if len(sizes) == 0 or sizes.max() < 2:
        return []
    return [capped(dataset, most=most, level=level) for most in (1, 2)]


def relaxed(dataset: Dataset, *, low: float, high: float) -> list[GuardrailPrice]:
    """Bound what relaxing each rule could do: the log never did what it forbade, so there is only worst and best.

    Args:
        dataset: rounds, with what blocked them.
        low, high: the least and the largest reward that a decision can have.
    """
    found = []
    for rule, rows in dataset.blocked.items():
        if not rows.any():
            continue
        share, mean = float(rows.mean()), float(dataset.rounds.rewards[rows].mean())
        found.append(
            GuardrailPrice(
                rule=rule,
                change="lifted",
                method="bounds",
                price=None,
                low=share * (low - mean),
                high=share * (high - mean),
                note=f"it bore on {share:.0%} of decisions; to know, lift it for customers chosen at random",
            )
        )
    return found


def randomised(dataset: Dataset, relaxed_for: Mapping[str, bool], *, rule: str, level: float = 0.95) -> GuardrailPrice:
    """Price a relaxed rule by customers for whom it was relaxed at random: their mean reward less the others'.

    Args:
        dataset: rounds.
        relaxed_for: for each customer of the trial, whether the rule was relaxed; drawn by the customer, not by what
            they do.
        rule: its name.
        level: of the interval.

    Raises:
        ValueError: if either side has fewer than two customers.
    """
    names = np.array([relaxed_for.get(name) for name in dataset.customers], dtype=object)[dataset.rounds.customers]
    sides = []
    for side in (True, False):
        rows = names == side
        people = dataset.rounds.customers[rows]
        if len(np.unique(people)) < 2:
            word = "relaxed" if side else "kept"
            raise ValueError(f"rule {rule!r} was {word} for fewer than two customers of this log: name more of them")
        sides.append(clustered(dataset.rounds.rewards[rows], people, level=level))
    gain, error = sides[0].value - sides[1].value, float(np.hypot(sides[0].error, sides[1].error))
    degrees = error**4 / sum(s.error**4 / s.degrees for s in sides) if error > 0 else sides[0].degrees  # Welch (1947)
    whole = by_customer(np.array([gain, gain]), np.ones(2), level=level)
    price = msgspec.structs.replace(
        whole,
        error=error,
        degrees=degrees,
        rounds=sides[0].rounds + sides[1].rounds,
        customers=sides[0].customers + sides[1].customers,
    ).at_level(level)
    return _priced(rule, "relaxed", "randomised by customer", price)
