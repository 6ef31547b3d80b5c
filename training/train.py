"""Which policies could serve next? Several candidates, learned from the earlier part of the log.

What judges them is the later part, so a candidate may know only what was known when that part began: rounds whose
window had closed by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from optimizer.actions import Floats
from optimizer.policy import Policy
from optimizer.program import DAY
from policies import KINDS
from training.dataset import Dataset
from training.evaluate import Progress
from training.events import IMPORTED
from training.reward_model import fold_of

LEARNERS = tuple(kind for kind in ("thompson", "squarecb", "boosted", "vowpal") if kind in KINDS)
"""The kinds that are trained where nobody says otherwise, the default first."""

NAMED = tuple(kind for kind in ("greedy", "hierarchical", "recovering", "logistic") if kind in KINDS)
"""Kinds that are trained where they are asked for by name."""

SETTINGS: Mapping[str, Mapping[str, float]] = MappingProxyType({"thompson": MappingProxyType({"boldness": 1.0})})
"""How candidates differ from a kind's defaults. A bolder committee keeps to Thompson's rule: on a log of nudges at
random it was worth five times as many rounds of its own as the keener default, for nine tenths of the gain, and what
cannot be judged is not promoted."""

_TWENTIETHS = 20


class Halves(NamedTuple):
    """The log in two: to learn from, and to judge by."""

    earlier: Dataset
    later: Dataset


_TITLES = {
    "thompson": "Thompson sampling",
    "squarecb": "SquareCB",
    "boosted": "Boosted trees",
    "vowpal": "Vowpal Wabbit",
    "greedy": "Greedy",
    "hierarchical": "Thompson sampling by segment",
    "recovering": "Recovering differences",
    "logistic": "Logistic factors",
}


@dataclass(frozen=True)
class Candidate:
    """A trained policy: its name, its kind in `policies.KINDS`, what it was trained with, and what it goes by."""

    name: str
    title: str
    kind: str
    policy: Policy
    params: dict[str, float]
    memory: str


def split(dataset: Dataset, *, share: float = 0.65) -> Halves:
    """Cut a log in two at the time by which `share` of its rounds had been decided.

    The earlier part keeps only rounds that had matured by the cut: no reward is in both parts, and a candidate knows
    no more than it would have known. Rounds of the evaluation arm judge, and are never learned
    from. A log without time (one date) is cut by customer.

    Raises:
        ValueError: if either part has no rounds.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share!r}: write 0.65 to learn from the first 65 %")
    at = dataset.rounds.at
    if len(at) and (at[0] == at[-1] or (_came_whole(dataset) and at[-1] - at[0] < DAY)):
        first = fold_of(dataset.rounds.customers, folds=_TWENTIETHS) < share * _TWENTIETHS
        halves = Halves(dataset.take(first).learnable(), dataset.take(~first))
    else:
        cut = at[int(share * len(at))] if len(at) else 0.0
        matures = dataset.program.matures_after
        halves = Halves(dataset.take(at + matures <= cut).learnable(), dataset.take(at >= cut))
    if not len(halves.earlier) or not len(halves.later):
        span = (at[-1] - at[0]) / DAY if len(at) else 0.0
        raise ValueError(
            f"the log is too short to learn from one part and judge by another: {len(at):,} matured rounds over "
            f"{span:.1f} days, {len(halves.earlier):,} of them matured before the cut; wait for about "
            f"{2 * dataset.program.matures_after / DAY / min(share, 1 - share):.0f} days of decisions, or change share"
        )
    return halves


def _came_whole(dataset: Dataset) -> bool:
    """Whether another system's log was imported: its rows of one date are minutes apart only to be told apart."""
    return all(name.startswith(IMPORTED) for name in dataset.loggers)


def _range(rewards: Floats) -> dict[str, float]:
    """Return the least and the largest reward: what a model of yes or no takes for no and yes."""
    low, high = (float(rewards.min()), float(rewards.max())) if len(rewards) else (0.0, 1.0)
    return {"lowest": low, "highest": high if high > low else low + 1.0}


def _memory(changed: float | None, *, counted: int, of: int, looked: bool) -> str:
    """Return which rounds count, in a sentence; `changed` is since when, where what moves customers has changed."""
    if changed is None:
        found = "no change of what moves customers was found" if looked else "this kind looks for no change"
        return f"All {of:,} rounds count: {found}."
    day = f"{datetime.fromtimestamp(changed, UTC):%-d %B %Y}"
    return (
        f"What moves customers changed around {day}: the {counted:,} rounds since then count, "
        f"the {of - counted:,} before are left out."
    )


def train(dataset: Dataset, *, kinds: Sequence[str] = LEARNERS, progress: Progress | None = None) -> list[Candidate]:
    """Train a policy of each kind on a dataset, from its shaped rewards.

    Raises:
        ValueError: for a kind that there is not.
    """
    if unknown := [k for k in kinds if k not in (*LEARNERS, *NAMED)]:
        raise ValueError(
            f"there is no policy kind {unknown[0]!r} that learns: expected some of {', '.join((*LEARNERS, *NAMED))}"
        )
    dataset = dataset.learnable()
    rounds = replace(dataset.rounds, rewards=dataset.training_rewards)
    candidates = []
    for done, kind in enumerate(kinds):
        if progress is not None:
            progress(f"training {kind}", done, len(kinds))
        settings = _range(rounds.rewards) if kind == "logistic" else SETTINGS.get(kind, {})
        policy: Policy = KINDS[kind](dataset.program.space, **settings)  # type: ignore[call-arg]  # learners take a space
        policy.learn(rounds)
        changed: float | None = getattr(policy, "changed", None)
        counted = int((rounds.at >= changed).sum()) if changed is not None else len(rounds)
        params = {"rounds": float(len(rounds)), "rounds_that_count": float(counted), **settings}
        memory = _memory(changed, counted=counted, of=len(rounds), looked=hasattr(policy, "changed"))
        candidates.append(Candidate(kind, _TITLES.get(kind, kind), kind, policy, params, memory))
    if progress is not None:
        progress("training", len(kinds), len(kinds))
    return candidates
