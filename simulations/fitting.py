"""Which world is your log from? Settings estimated from logged rounds, and how well they reproduce what was held out.

Two thirds of the customers (by a hash) are fitted, the others judge. Each setting has a moment of the log that moves
with it; the world is simulated under what the log's policy did on average in each stage, its moments are read as the
log's are, and each setting is moved by what its moment is off. What no moment pins down (what each level does,
fatigue's slow part, goal gradient, types) stays as in the world that the fit starts from, and the answer says which
settings were fitted.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import msgspec
import numpy as np
from msgspec.structs import replace as replaced
from scipy.special import expit, logit

from optimizer.actions import HOLD, ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from optimizer.program import DAY, Experiment, Program
from simulations.effects import is_everyday
from simulations.population import populate
from simulations.rollout import Progress, rollout, sole
from simulations.worlds import DEMO, World
from training.dataset import Dataset, load
from training.intervals import clustered
from training.reward_model import fold_of

START = 1_767_571_200.0
FEWEST_CUSTOMERS, FEWEST_ROUNDS, FEWEST_DAYS, FEWEST_ARM = 200, 2_000, 7, 200
"""What a log must have at least, customers and rounds in all, days, and rounds that held and rounds that nudged."""

MOST = 1_500
"""Customers who are simulated in each pass."""

PASSES, KEPT = 9, 4
"""How often settings are moved, and over how many of the last of these they are averaged: each has its own chance."""
LEVEL = 0.99
"""Of the intervals on held-out customers: with a dozen moments, one false alarm in eight tables."""

_RATE = (1e-4, 0.85)

ENOUGH = 0.6
"""Share of the moments that a world must reproduce on held-out customers: below it, it is not the log's."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A moment of the log on held-out customers, with its interval, and the fitted world's."""

    moment: str
    log: float
    low: float
    high: float
    world: float
    reproduced: bool


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A world that was estimated from a log, and how well it reproduces held-out customers.

    `settings` are those that were fitted; every other one is that of `started_from`. `refused` says why it is not to be
    used, with what would mend it; empty where it may be.
    """

    program: str
    program_version: str
    rounds: int
    customers: int
    held_out: int
    days: int
    started_from: str
    settings: dict[str, float]
    moments: list[Moment]
    reproduced: float
    refused: str = ""


class _Read(NamedTuple):
    """A moment of a dataset as terms and weights (n,): its value is the weighted mean."""

    name: str
    terms: Floats
    weights: Floats

    @property
    def value(self) -> float:
        total = float(self.weights.sum())
        return float((self.terms * self.weights).sum()) / total if total else 0.0


class _Knob(NamedTuple):
    """A setting, the moment that moves it, and how: `rate` and `shift` by a difference of logits, `size` by ratio."""

    setting: str
    moment: str
    moves: str


KNOBS = (
    _Knob("everyday", "everyday steps after a hold", "rate"),
    _Knob("turn", "steps that move a stage after a hold", "rate"),
    _Knob("goal", "goals after a hold", "rate"),
    _Knob("signal", "signals", "rate"),
    _Knob("leaving", "opt-outs after a nudge", "rate"),
    _Knob("lift", "everyday steps after a nudge", "shift"),
    _Knob("goal_lift", "goals after a nudge", "shift"),
    _Knob("activity", "how customers differ", "size"),
)


class Averaged:
    """Chooses as a log did on average in each stage, among what is allowed."""

    def __init__(self, space: ActionSpace, *, shares: Floats, columns: Ints) -> None:
        self.space, self.shares, self.columns = space, shares, columns

    @classmethod
    def of(cls, log: Dataset) -> Self:
        """Return the average of a log's probabilities, by stage."""
        size = len(log.program.stages)
        columns = np.array([log.program.features.index(f"stage={s.name}") for s in log.program.stages], dtype=np.intp)
        shares = np.tile(_average(log.rounds), (size, 1))
        open_ = log.rounds.allowed[:, 1:].any(axis=1)
        for stage in range(size):
            rows = open_ & (log.stages == stage)
            if rows.any():
                shares[stage] = _average(log.rounds.take(rows))
        return cls(log.program.space, shares=shares, columns=columns)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        shares = self.shares[contexts[:, self.columns].argmax(axis=1)] * allowed
        shares[:, HOLD] += 1e-9
        found: Floats = shares / shares.sum(axis=1, keepdims=True)
        return found

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def save(self, folder: Path) -> None:
        np.savez(folder / "shares.npz", shares=self.shares, columns=self.columns)

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        with np.load(folder / "shares.npz") as saved:
            return cls(space, shares=saved["shares"], columns=saved["columns"])


def _average(rounds: Rounds) -> Floats:
    """Shape (k,): the mean probability of each action where it was allowed."""
    found: Floats = rounds.probabilities.sum(axis=0, dtype=np.float64) / np.maximum(rounds.allowed.sum(axis=0), 1)
    return found


def fit(
    archive: Path, program: Program, *, seed: int = 1, start: World = DEMO, progress: Progress | None = None
) -> Fitted:
    """Estimate a world from a program's archived rounds.

    Args:
        archive: the folder of the archive.
        program: whose log it is.
        seed: of the simulations.
        start: the world whose other settings are kept.
        progress: told of the passes done.

    Raises:
        ValueError: for a log that is too small or lacks what a world needs, with what would mend it.
    """
    if not archive.is_dir():
        raise ValueError(f"{archive} is no folder: give the archive that nudge archive or nudge import wrote")
    return fitted(load(archive, program), seed=seed, start=start, progress=progress)


def fitted(log: Dataset, *, seed: int = 1, start: World = DEMO, progress: Progress | None = None) -> Fitted:
    """Do what `fit` does, for a log that was read already."""
    check(log)
    judges = fold_of(log.rounds.customers, folds=3) == 2
    learned, held = log.take(~judges), log.take(judges)
    policy, days = Averaged.of(log), _days(log)
    wanted = {m.name: m.value for m in read(learned)}
    world = replace(start, name="fitted", breaks="nothing: it is estimated from a log")
    trail = []
    for done in range(PASSES):
        if progress:
            progress("fitting a world", done, PASSES + 1)
        found = {m.name: m.value for m in read(_simulated(log, world, policy, days=days, seed=seed + 1_000 + done))}
        world = _moved(world, wanted, found)
        trail.append(world)
    settled = {k.setting: float(np.mean([getattr(w, k.setting) for w in trail[-KEPT:]])) for k in KNOBS}
    world = replace(world, **settled)  # type: ignore[arg-type]  # settings that are numbers
    fresh = [_simulated(log, world, policy, days=days, seed=seed + 2_000 + i) for i in range(2)]
    if progress:
        progress("fitting a world", PASSES + 1, PASSES + 1)
    moments = _judged(held, fresh)
    return Fitted(
        program=log.program.name,
        program_version=log.program.version,
        rounds=len(log),
        customers=len(np.unique(log.rounds.customers)),
        held_out=len(np.unique(held.rounds.customers)),
        days=days,
        started_from=start.name,
        settings={k.setting: round(settled[k.setting], 5) for k in KNOBS if k.moment in wanted},
        moments=moments,
        reproduced=float(np.mean([m.reproduced for m in moments])),
        refused=_refused(log.program.name, moments, settings={k.setting: settled[k.setting] for k in KNOBS}),
    )


def _refused(program: str, moments: Sequence[Moment], *, settings: dict[str, float]) -> str:
    """Return why a world is not the log's; empty if it may be."""
    missed = [m for m in moments if not m.reproduced]
    if len(missed) <= (1.0 - ENOUGH) * len(moments):
        return ""
    rates = [k.setting for k in KNOBS if k.moves == "rate" and settings[k.setting] > 0.99 * _RATE[1]]
    ends = f" ({', '.join(rates)} went as far as it may)" if rates else ""
    named = "; ".join(f"{m.moment}: {m.log:.3g} in the log, {m.world:.3g} in the world" for m in missed)
    return (
        f"the log of program {program!r} cannot be fitted: on held-out customers no world that was tried reproduces "
        f"{len(missed)} of {len(moments)} moments{ends}: {named}. Its customers do not act as simulated ones do: check "
        "that events and windows are those that the app reports, or judge policies by the log itself, with "
        "nudge evaluate"
    )


def check(log: Dataset) -> None:
    """Raise ValueError, with the mend, unless a world can be estimated from a log."""
    customers, rounds, days = len(np.unique(log.rounds.customers)), len(log), _days(log) if len(log) else 0
    held, nudged = int((log.rounds.actions == HOLD).sum()), int((log.rounds.actions != HOLD).sum())
    problems = [
        (customers < FEWEST_CUSTOMERS, f"{customers:,} customers with matured rounds",
         f"wait for {FEWEST_CUSTOMERS:,}"),
        (rounds < FEWEST_ROUNDS, f"{rounds:,} matured rounds", f"wait for {FEWEST_ROUNDS:,}"),
        (days < FEWEST_DAYS, f"{days} days", f"wait for {FEWEST_DAYS}: a week has its own rhythm"),
        (held < FEWEST_ARM, f"{held:,} rounds that held",
         f"{FEWEST_ARM:,} show what happens by itself: raise exploration.hold"),
        (nudged < FEWEST_ARM, f"{nudged:,} rounds that nudged",
         f"{FEWEST_ARM:,} show what nudges do: let more through"),
        (log.estimated_propensities, "estimated probabilities", "log the vector that each action was drawn from"),
        (not any(c.any() for c in log.events.values()), "no outcome at all",
         "report events, or check that their names are those of the program"),
    ]  # fmt: skip
    wrong = [f"it has {what}; {mend}" for bad, what, mend in problems if bad]
    if wrong:
        raise ValueError(f"the log of program {log.program.name!r} cannot be fitted: " + ". Also, ".join(wrong))


def _days(log: Dataset) -> int:
    return int(np.ceil((log.rounds.at.max() - log.rounds.at.min()) / DAY)) if len(log) else 0


def _simulated(log: Dataset, world: World, policy: Averaged, *, days: int, seed: int) -> Dataset:
    program = replaced(log.program, experiment=Experiment())
    count = min(MOST, max(600, len(np.unique(log.rounds.customers))))
    population = populate(program, world, customers=count, seed=seed, start=START)
    length = min(days, 28) + int(np.ceil(program.evaluation_horizon / DAY))
    return rollout(population, sole(policy), days=length).dataset


def read(log: Dataset) -> list[_Read]:
    """Read the moments of a dataset: rates after holds and nudges, and how customers and incentives differ.

    Rates after a nudge or a hold are weighted by the inverse of its logged probability, so they say what it does.
    """
    program, rounds = log.program, log.rounds
    micro = [e for e in program.events if e.kind == "micro"]
    everyday = [e.name for e in micro if is_everyday(program, e)]
    turning = [e.name for e in micro if not is_everyday(program, e)]
    goals = [e.name for e in program.events if e.kind == "macro"]
    signals = [e.name for e in program.events if e.kind == "signal" and e.name != "opt_out"]
    totals = rounds.probabilities.sum(axis=1, dtype=np.float64)
    holds = rounds.probabilities[:, HOLD] / totals
    open_ = rounds.allowed[:, 1:].any(axis=1)
    nudged = rounds.actions != HOLD
    after_hold = np.where(~nudged & open_, 1.0 / np.maximum(holds, 1e-6), 0.0)
    after_nudge = np.where(nudged, 1.0 / np.maximum(1.0 - holds, 1e-6), 0.0)
    ones = np.ones(len(log))
    named: list[_Read] = []

    def rate(what: str, names: Sequence[str], weights: Floats) -> None:
        if names:
            named.append(_Read(what, _per_event(log, names), weights))

    rate("everyday steps after a hold", everyday, after_hold)
    rate("everyday steps after a nudge", everyday, after_nudge)
    rate("steps that move a stage after a hold", turning, after_hold)
    rate("steps that move a stage after a nudge", turning, after_nudge)
    rate("goals after a hold", goals, after_hold)
    rate("goals after a nudge", goals, after_nudge)
    rate("signals", signals, ones)
    if "opt_out" in log.events:
        rate("opt-outs after a nudge", ["opt_out"], after_nudge)
    named += [
        _Read("share of decisions that nudge", nudged.astype(np.float64), ones),
        _Read("momentum", rounds.contexts[:, program.features.index("momentum")], ones),
        _between(log, everyday or turning or goals),
        _incentives(log, everyday or turning or goals, weights=after_nudge),
    ]
    return named


def _per_event(log: Dataset, names: Sequence[str]) -> Floats:
    """Shape (n,): how many events of some names fell in each round's windows, a day."""
    index = log.program.event_index
    return np.asarray(
        sum(log.events[n] * (DAY / max(float(log.program.windows[index[n]]), DAY)) for n in names) / len(names)
    )


def _between(log: Dataset, names: Sequence[str]) -> _Read:
    """How customers differ in what they do, beyond chance: the covariance of their odd and even rounds."""
    counts = np.minimum(_per_event(log, names), 1.0)
    codes = log.rounds.customers
    order = np.lexsort((log.rounds.at, codes))
    turn = np.zeros(len(codes), dtype=np.intp)
    sorted_ = codes[order]
    first = np.r_[True, np.diff(sorted_) > 0]
    position = np.arange(len(codes))
    turn[order] = position - np.maximum.accumulate(np.where(first, position, 0))
    size = int(codes.max()) + 1
    halves = []
    for parity in (0, 1):
        rows = (turn // 4) % 2 == parity  # stretches of four, so that windows do not overlap much
        weight = np.maximum(np.bincount(codes[rows], minlength=size), 1)
        halves.append(np.bincount(codes[rows], weights=counts[rows], minlength=size) / weight)
    mean = counts.mean()
    product = (halves[0] - mean) * (halves[1] - mean) / max(mean * mean, 1e-9)
    seen = np.bincount(codes, minlength=size) > 8
    return _Read("how customers differ", product[codes] * seen[codes], seen[codes].astype(np.float64))


def _incentives(log: Dataset, names: Sequence[str], *, weights: Floats) -> _Read:
    """How incentives differ in what they do, beyond chance: the covariance of two halves of the customers."""
    counts = np.minimum(_per_event(log, names), 1.0)
    half = fold_of(log.rounds.customers + 7, folds=2)
    incentive = log.program.space.levels[log.rounds.actions, 0]
    rates = np.full((2, len(log.program.incentives)), np.nan)
    for h in (0, 1):
        base = counts[(half == h) & (weights > 0)]
        for i in range(rates.shape[1]):
            rows = (half == h) & (incentive == i)
            if rows.sum() >= 30 and len(base):
                rates[h, i] = np.average(counts[rows], weights=weights[rows]) / max(base.mean(), 1e-9) - 1.0
    usable = np.isfinite(rates).all(axis=0)
    centred = rates[:, usable] - rates[:, usable].mean(axis=1, keepdims=True) if usable.any() else np.zeros((2, 1))
    value = float((centred[0] * centred[1]).mean())
    return _Read("how incentives differ", np.full(len(log), value), np.ones(len(log)))


def _moved(world: World, wanted: dict[str, float], found: dict[str, float]) -> World:
    """Return the world with each setting moved by what its moment is off, damped."""
    changes: dict[str, float] = {}
    for knob in KNOBS:
        if knob.moment not in wanted:
            continue
        now, target, ours = getattr(world, knob.setting), wanted[knob.moment], found[knob.moment]
        changes[knob.setting] = _MOVES[knob.moves](now, target, ours)
    # What a nudge does is what it adds to what happens by itself.
    for lift, hold in (("lift", "everyday steps after a hold"), ("goal_lift", "goals after a hold")):
        if lift in changes and hold in wanted:
            changes[lift] -= 0.6 * (_logit(wanted[hold]) - _logit(found[hold]))
    return replace(world, **changes)  # type: ignore[arg-type]  # settings that are numbers


def _logit(x: float) -> float:
    return float(logit(np.clip(x, 1e-5, 0.95)))


def _rate(now: float, target: float, ours: float) -> float:
    moved = expit(_logit(now) + 0.7 * np.clip(_logit(target) - _logit(ours), -1.5, 1.5))
    return float(np.clip(moved, *_RATE))


def _size(now: float, target: float, ours: float) -> float:
    ratio = np.sqrt(max(target, 1e-4) / max(ours, 1e-4))
    return float(np.clip(now * np.clip(ratio, 0.75, 1.33), 0.02, 4.0))


def _shift(now: float, target: float, ours: float) -> float:
    return float(np.clip(now + 0.6 * np.clip(_logit(target) - _logit(ours), -1.0, 1.0), -4.0, 4.0))


_MOVES: dict[str, Callable[[float, float, float], float]] = {"rate": _rate, "size": _size, "shift": _shift}


def _judged(held: Dataset, fresh: Sequence[Dataset]) -> list[Moment]:
    """Compare the moments of held-out customers with those of the world, under chance that the fit has not seen.

    The world's own chance is finite too: its error is added to the log's.
    """
    ours = [{m.name: m for m in read(d)} for d in fresh]
    found = []
    for moment in read(held):
        value, error = _with_error(moment, held)
        worlds = [_with_error(o[moment.name], d) for o, d in zip(ours, fresh, strict=True)]
        world = float(np.mean([w for w, _ in worlds]))
        error = float(np.hypot(error, np.sqrt(np.sum([e * e for _, e in worlds])) / len(worlds)))
        if moment.name == "how incentives differ":  # drawn anew in each world: one draw of few levels says little
            error = max(error, 0.6 * max(abs(value), abs(world)), 0.05)
        low, high = value - 2.58 * error, value + 2.58 * error
        found.append(
            Moment(moment=moment.name, log=value, low=low, high=high, world=world, reproduced=low <= world <= high)
        )
    return found


def _with_error(moment: _Read, log: Dataset) -> tuple[float, float]:
    """Return a moment and its standard error, customers being the unit (a ratio of means, linearised)."""
    value, mean = moment.value, float(moment.weights.mean())
    if not mean:
        return value, 0.0
    residual = moment.weights * (moment.terms - value) / mean
    return value, clustered(residual, log.rounds.customers).error


def table(found: Fitted) -> dict[str, object]:
    """Return a fit as rows for a terminal."""
    return {
        "program": found.program,
        "rounds": found.rounds,
        "customers": found.customers,
        "held_out_customers": found.held_out,
        "days": found.days,
        "moments_reproduced": f"{sum(m.reproduced for m in found.moments)} of {len(found.moments)}",
        "settings": [{"setting": k, "fitted": v} for k, v in found.settings.items()],
        "held_out": [
            {
                "moment": m.moment,
                "log": m.log,
                "99_%_interval": f"{m.low:.4g} to {m.high:.4g}",
                "world": m.world,
                "reproduced": "yes" if m.reproduced else "no",
            }
            for m in found.moments
        ],
    }


def figures(found: Fitted) -> dict[str, float]:
    """Return a fit as metrics by name."""
    return {"fit/reproduced": found.reproduced, **{f"fit/{k}": v for k, v in found.settings.items()}}


__all__ = ["Fitted", "Moment", "check", "figures", "fit", "fitted", "read", "table"]
