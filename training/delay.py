"""What will the newest decisions have been worth? Rewards by delay, each part judged by rounds that are old enough.

A purchase may come days after its nudge. To leave the newest decisions out is honest but slow; to count what they have
not earned yet as nothing calls every new policy a failure. So a reward is cut up by when it comes: the part of the
first day is known of all decisions older than a day, the part of the third only of older ones. Each part has a model
and an estimate of its own, on the rounds that know it, and the parts add up (Badanidiyuru et al., 2021).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from optimizer.actions import Bools, Floats
from optimizer.policy import Rounds
from optimizer.program import DAY, Program
from training import dataset
from training import events as log
from training.dataset import Arms, Dataset, Sums
from training.diagnostics import Check
from training.intervals import Estimate, clustered
from training.ope import dr, weigh
from training.reward_model import cross_fit

_FEWEST = 30
"""Rounds that must know a bucket for it to have a model."""


@dataclass(frozen=True)
class Delayed:
    """Every decision of a log, matured or not, with its reward by delay.

    Args:
        dataset: n rounds; rewards are what came so far.
        edges: (b,), where each bucket ends, seconds after the decision; the last is the program's whole window.
        parts: (n, b), what came in each bucket; costs are in the first.
        known: (n, b), whether the bucket was over when the log ended.
    """

    dataset: Dataset
    edges: Floats
    parts: Floats
    known: Bools


class Cohort(msgspec.Struct, frozen=True, kw_only=True):
    """Decisions of one week: what they earned so far, and what they will have earned once all is in."""

    since: float
    rounds: int
    matured_share: float
    so_far: float
    completed: float


def load(archive: Path, program: Program, *, now: float | None = None, arms: Arms = "training") -> Delayed:
    """Read every decision of a log, with its reward by delay: buckets of a day, the last as long as is left.

    Args:
        archive: the folder of the archive.
        program: declares the events and their windows.
        now: up to when the log is complete; its last entry where omitted.
        arms: as for `dataset.load`.
    """
    table = log.read(archive, program.name, until=math.inf if now is None else now)
    matured = dataset.load(archive, program, now=now, arms=arms)
    whole = dataset.load(archive, program, now=math.inf, arms=arms)
    if now is not None:
        whole = whole.take(whole.rounds.at <= now)
    edges = _edges(program)
    happened = dataset.outcomes_of(table)
    sums = Sums(whole.customers, whole.rounds.customers, happened)
    at = whole.rounds.at
    parts = np.zeros((len(whole), len(edges)))
    for event, window in zip(program.events, program.windows.tolist(), strict=True):
        chosen = happened.event == event.name
        if not event.value or not chosen.any():
            continue
        weights = dataset.worth(program, event.name, happened.value)
        for b, (start, end) in enumerate(zip([0.0, *edges[:-1]], edges, strict=True)):
            if start < window:
                parts[:, b] += sums.over(chosen, weights, start=at + start, end=at + min(end, window))
    parts[:, 0] += whole.rounds.rewards - parts.sum(axis=1)  # what is left is what it cost
    return Delayed(whole, edges, parts, at[:, None] + edges <= matured.until)


def _edges(program: Program) -> Floats:
    longest = max([w for w, e in zip(program.windows.tolist(), program.events, strict=True) if e.value], default=DAY)
    days = np.arange(DAY, longest, DAY)
    return np.append(days, longest)


def completed(delayed: Delayed) -> Floats:
    """Shape (n,): what came where it is known, what is expected where it is not, by a model that has not seen the row.

    Raises:
        ValueError: if nearly no decision knows a bucket: nothing tells how much comes so late.
    """
    rounds, space = delayed.dataset.rounds, delayed.dataset.program.space
    found = np.where(delayed.known, delayed.parts, 0.0)
    rows = np.arange(len(rounds))
    for b in range(len(delayed.edges)):
        _refuse(delayed, b)
        if delayed.known[:, b].all():
            continue
        model = cross_fit(_part(rounds, delayed, b), space)
        expected = model.predict(rounds)[rows, rounds.actions]
        missing = ~delayed.known[:, b]
        found[missing, b] = np.maximum(delayed.parts[missing, b], expected[missing])
    whole: Floats = found.sum(axis=1)
    return whole


def _part(rounds: Rounds, delayed: Delayed, bucket: int) -> Rounds:
    """Return the rounds that know a bucket, with what came in it as reward."""
    known = np.flatnonzero(delayed.known[:, bucket])
    part = rounds.take(known)
    return Rounds(**{**vars(part), "rewards": delayed.parts[known, bucket]})


def _refuse(delayed: Delayed, bucket: int) -> None:
    n = int(delayed.known[:, bucket].sum())
    if n < _FEWEST:
        raise ValueError(
            f"only {n} decisions are older than {delayed.edges[bucket] / DAY:g} days, expected {_FEWEST}: nothing says "
            "how much comes so late; wait until more are"
        )


def value(delayed: Delayed, vectors: Callable[[Rounds], Floats], *, level: float = 0.95) -> Estimate:
    """Return a target's value from all decisions: the DR estimate of each bucket on the rounds that know it, added up.

    Unbiased where what comes late is, given context and action, the same for the newest decisions as for older ones.
    """
    rounds, space = delayed.dataset.rounds, delayed.dataset.program.space
    n = len(rounds)
    terms = np.zeros(n)
    for b in range(len(delayed.edges)):
        _refuse(delayed, b)
        known = np.flatnonzero(delayed.known[:, b])
        part = _part(rounds, delayed, b)
        own = dr(weigh(part, vectors(part), cross_fit(part, space).predict(part)))
        terms += own.mean()
        terms[known] += (n / len(known)) * (own - own.mean())
    return clustered(terms, rounds.customers, level=level)


def cohorts(delayed: Delayed) -> list[Cohort]:
    """Return the decisions week by week: what they earned so far, and what they will have earned."""
    at, whole = delayed.dataset.rounds.at, completed(delayed)
    so_far = delayed.parts.sum(axis=1)
    weeks = ((at - at.min()) // (7 * DAY)).astype(np.intp)
    return [
        Cohort(
            since=float(at[rows].min()),
            rounds=len(rows),
            matured_share=float(delayed.known[rows, -1].mean()),
            so_far=float(so_far[rows].mean()),
            completed=float(whole[rows].mean()),
        )
        for rows in _groups(weeks.tolist())
    ]


def _groups(codes: Sequence[int]) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    given = np.asarray(codes)
    return [np.flatnonzero(given == code) for code in np.unique(given)]


def newest(delayed: Delayed) -> Check:
    """Say of the decisions whose windows are open what they earned so far, and what they will have."""
    open_ = ~delayed.known[:, -1]
    title = "The newest decisions are not read as failures"
    if not open_.any():
        return Check(name="newest", title=title, status="pass", value=0.0, finding="every decision has matured")
    try:
        whole = completed(delayed)
    except ValueError as error:
        return Check(name="newest", title=title, status="warn", value=float(open_.mean()), finding=str(error))
    so_far = float(delayed.parts[open_].sum(axis=1).mean())
    return Check(
        name="newest",
        title=title,
        status="pass",
        value=float(open_.mean()),
        finding=f"{int(open_.sum()):,} decisions are too new to judge and left out; each earned {so_far:.4g} so far, "
        f"and {float(whole[open_].mean()):.4g} are expected once all is in, where older ones earned "
        f"{float(whole[~open_].mean()) if (~open_).any() else float('nan'):.4g}",
    )
