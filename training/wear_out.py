"""Does an incentive wear out? What it adds over holding, against how often a customer had it, and for how long it runs.

Customers with many exposures differ from those with few: a policy that learns gives an incentive to those whom it
moves. A slope across customers would take that for wear, or hide wear by it. So only the part of the use that was
chance counts: at each decision the incentive was drawn with a known probability p, and the sum of (drawn - p) over a
customer's earlier decisions is on average 0 for everybody, whoever they are and whatever they did. It serves as the
instrument (Wald, 1940) for the number of exposures; the slope is that of doubly robust terms, clustered by customer.
The slope on weeks is within customers, so that it does not depend on who came when.
"""

from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.actions import Bools, Floats, Ints
from optimizer.policy import Rounds
from optimizer.program import DAY, Program
from training.contrasts import Terms
from training.dataset import Dataset
from training.figures import FEW, Figure, estimated, few, mean, missing
from training.intervals import clustered
from training.record import Record, counted_before

SURE = 0.999
"""How sure it has to be that chance moved the use at all, before anything is said of what the use does."""

_EFFECT = "what it adds over holding, a decision, then the logging policy"


class Wear(msgspec.Struct, frozen=True, kw_only=True):
    """How an incentive's effect changes with use; `rotate` names what to rotate to, or says why not."""

    incentive: str
    title: str
    shown: int
    exposures: float
    effect: Figure
    by_exposure: Figure
    by_week: Figure
    worn: bool = False
    rotate_to: str = ""
    advice: str = ""


def wear_out(record: Record, dataset: Dataset, terms: Terms, *, luck: Floats, level: float = 0.95) -> tuple[Wear, ...]:
    """Return how each incentive wears, the most worn first.

    Args:
        record: everything up to the end of the period: what each customer was shown before each round.
        dataset: n rounds of the period. terms: of its incentives, as `contrasts.terms` returns them.
        luck: (n, incentives), of all that was decided before each round, as `luck_before` returns it.
        level: of all slopes together (Bonferroni over the incentives).
    """
    program = record.program
    each = 1.0 - (1.0 - level) / max(2 * len(program.incentives), 1)
    codes = {name: i for i, name in enumerate(record.customers)}
    people = np.array([codes.get(name, -1) for name in dataset.customers], dtype=np.intp)
    who = people[dataset.rounds.customers]
    rows = [_use(record, dataset, terms, i, who=who, luck=luck[:, i]) for i in range(len(program.incentives))]
    found = [_wear(program, use, i, level=each) for i, use in enumerate(rows)]
    advised = [_advised(program, rows, found, i, level=level) for i in range(len(found))]
    return tuple(sorted(advised, key=lambda w: (not w.worn, w.by_exposure.value is None, w.by_exposure.value or 0.0)))


class _Use(NamedTuple):
    """Rounds at which an incentive and holding were both possible: what it adds, after how much use.

    `by_chance` is the part of the exposures (n,) that the draws made: centred for every customer.
    """

    rows: Ints
    gain: Floats
    exposures: Floats
    by_chance: Floats
    weeks: Floats
    customers: Ints
    shown: int


def _use(record: Record, dataset: Dataset, terms: Terms, incentive: int, *, who: Ints, luck: Floats) -> _Use:
    rounds, decided = dataset.rounds, record.decided
    gain = terms.over_hold[:, incentive]
    rows = np.flatnonzero(np.isfinite(gain))
    theirs = (decided.incentive == incentive) & decided.shown
    when = decided.deliver_at[theirs]
    seen = counted_before(who[rows], rounds.at[rows], whose=decided.customer[theirs], when=when)
    first = float(when.min()) if len(when) else np.inf
    weeks = np.maximum(rounds.at[rows] - first, 0.0) / (7 * DAY)
    drawn = dataset.program.space.levels[rounds.actions[rows], 0] == incentive
    exposures = seen.astype(np.float64)
    return _Use(rows, gain[rows], exposures, luck[rows], weeks, rounds.customers[rows], int(drawn.sum()))


def luck_before(rounds: Rounds, members: Bools) -> Floats:
    """Return how many more actions of each group (k, g) chance drew before each round (n,) than were to be expected.

    Over the customer's earlier rounds, the sum of (drawn - its probability), shape (n, g): 0 on average, whatever
    happened before.
    """
    chance = rounds.probabilities @ members / rounds.probabilities.sum(axis=1, dtype=np.float64)[:, None]
    order = np.lexsort((rounds.at, rounds.customers))
    surplus = (members[rounds.actions] - chance)[order]
    so_far = np.cumsum(surplus, axis=0) - surplus
    first = np.flatnonzero(np.diff(rounds.customers[order], prepend=-1))
    lengths = np.diff(np.append(first, len(order)))
    luck: Floats = np.empty_like(so_far)
    luck[order] = so_far - np.repeat(so_far[first], lengths, axis=0)
    return luck


def _wear(program: Program, use: _Use, incentive: int, *, level: float) -> Wear:
    about = program.incentives[incentive]
    return Wear(
        incentive=about.name,
        title=about.title,
        shown=use.shown,
        exposures=float(use.exposures.mean()) if len(use.exposures) else 0.0,
        effect=mean(use.gain, use.customers, of=_EFFECT, unit="money", level=level),
        by_exposure=slope(
            use.gain,
            use.exposures,
            use.customers,
            by=use.by_chance,
            of="change of that with each earlier time",
            level=level,
        ),
        by_week=slope(
            use.gain,
            use.weeks,
            use.customers,
            by=within(use.weeks, use.customers),
            of="change of that with each week since its first use",
            level=level,
        ),
    )


def within(use: Floats, customers: Ints) -> Floats:
    """Return use (n,) less each customer's own mean."""
    _, codes = np.unique(customers, return_inverse=True)
    means = np.bincount(codes, weights=use) / np.maximum(np.bincount(codes), 1)
    centred: Floats = use - means[codes]
    return centred


def slope(gains: Floats, use: Floats, customers: Ints, *, by: Floats, of: str, level: float = 0.95) -> Figure:
    """Return the slope of gains (n,) on use (n,) by an instrument (n,), with an interval clustered by customer.

    Args:
        gains, use: of each round.
        customers: of each round, a code.
        by: the part of the use that nothing else about a customer goes with.
        of: what it is an estimate of.
        level: of the interval.

    >>> use = np.tile([0.0, 1.0, 2.0], 30)
    >>> found = slope(np.tile([3.0, 2.0, 1.0], 30), use, np.arange(90), by=use - 1.0, of="wear")
    >>> found.value, found.below
    (-1.0, True)
    """
    people = len(np.unique(customers))
    if people < FEW:
        return missing(few(people), of=of, unit="change", n=len(gains))
    z = by - by.mean()
    moved = clustered(z * (use - use.mean()), customers, level=SURE)
    if not moved.low > 1e-12:
        why = "as far as chance goes, it was given equally often to all so far: wait"
        return missing(why, of=of, unit="change", n=len(gains))
    value = float(z @ gains) / len(use) / moved.value
    residuals = gains - gains.mean() - value * (use - use.mean())
    return estimated(clustered(value + z * residuals / moved.value, customers, level=level), of=of, unit="change")


def _advised(program: Program, uses: list[_Use], found: list[Wear], i: int, *, level: float) -> Wear:
    """Suggest a rotation where the slope is shown to fall, to what is shown to do more on the same rounds."""
    wear = found[i]
    if not (wear.by_exposure.below or wear.by_week.below):
        unknown = wear.by_exposure.missing
        said = f"nothing can be said: {unknown}" if unknown else "no wear is shown; keep it"
        return msgspec.structs.replace(wear, advice=said)
    others = [j for j in range(len(uses)) if j != i and not program.incentives[j].retired]
    better = {j: gap for j in others if (gap := _better(uses[j], uses[i], level=1 - (1 - level) / len(others))).above}
    if not better:
        said = "it wears out; no other is shown to do more where it is used: add a new one and let it be explored"
        return msgspec.structs.replace(wear, worn=True, advice=said)
    best = max(better, key=lambda j: better[j].low or 0.0)
    gap, name = better[best], program.incentives[best].name
    said = f"it wears out: rotate to {name}, which adds {gap.value:.3g} a decision more [{gap.low:.3g}, {gap.high:.3g}]"
    said += " to those who had this one most"
    return msgspec.structs.replace(wear, worn=True, rotate_to=name, advice=said)


def _better(other: _Use, worn: _Use, *, level: float) -> Figure:
    """What another incentive adds over a worn one, on the rounds of the more exposed half where both were possible."""
    of = "what the alternative adds over it"
    _, mine, theirs = np.intersect1d(worn.rows, other.rows, return_indices=True)
    if not len(mine):
        return missing("they are never possible together", of=of, unit="money")
    used = worn.exposures[mine]
    much = used >= max(float(np.median(used)), 1.0)
    gap = other.gain[theirs][much] - worn.gain[mine][much]
    return mean(gap, worn.customers[mine][much], of=of, unit="money", level=level)
