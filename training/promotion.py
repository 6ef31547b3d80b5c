"""May a challenger replace the champion? Promote, keep, or not enough evidence, with reasons as data.

Only the doubly robust, paired difference over the champion decides, its error clustered by customer; an estimate that
was shrunk or selected has no honest interval. The bound holds at every look at once (`sequence.stretched`), so a gate
may be asked every day, and is stricter the more challengers there are (Bonferroni).
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from training.diagnostics import Check, failed
from training.evaluation import Evaluation, Score
from training.intervals import Estimate
from training.sequence import stretched

Choice = Literal["promote", "keep", "not enough evidence"]

SHARED_BUDGET = (
    "customers share a budget or a stock: what one gets another may not, so a policy that serves everybody may do less "
    "well than one that served a few; paired values at logged prices do not see that"
)


_STOPS = ("against", "unknown")


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One ground of a verdict. `speaks` says which way: for the challenger, against it, or against judging at all.

    What speaks `beside` is to be known and stops nothing.

    `code` names it for programs: those of this gate, or of whoever appends a reason of its own (`with_reasons`).
    """

    code: str
    speaks: Literal["for", "against", "unknown", "beside"]
    target: str
    text: str
    mend: str = ""
    lift: Estimate | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate decided. `challenger` is the one to promote, or the best of those that were not.

    Versions are those of the registry; empty for what is not in it. `level` is what `comparisons` challengers leave of
    the evaluation's; `notes` are what a reader must know and no interval says.
    """

    program: str
    choice: Choice
    champion: str
    champion_version: str
    challenger: str
    challenger_version: str
    level: float
    reasons: tuple[Reason, ...]
    comparisons: int = 1
    notes: tuple[str, ...] = ()

    @property
    def promotes(self) -> bool:
        """Whether the challenger replaces the champion."""
        return self.choice == "promote"


def judge(evaluation: Evaluation, *, accept_estimated: bool = False) -> Verdict:
    """Judge every candidate of an evaluation against its reference.

    A candidate is promoted if no check failed, of the log or of the candidate, and the lower bound of its lift is above
    0 with chance `1 - (1 - level) / candidates` at every look. Among several, the one of the largest value.

    Args:
        evaluation: what was found.
        accept_estimated: promote on propensities that were estimated, too; by default a gate never does.
    """
    candidates = evaluation.candidates
    level = 1.0 - (1.0 - evaluation.level) / max(len(candidates), 1)
    reasons = [r for c in candidates for r in _reasons(evaluation, c, level=level, accept_estimated=accept_estimated)]
    better = [r.target for r in reasons if r.code == "better"]
    judged = any(r.speaks == "against" for r in reasons)
    choice: Choice = "promote" if better else "keep" if judged else "not enough evidence"
    if not candidates:
        reasons = [_no_challenger()]
    champion = evaluation.score(evaluation.reference)
    challenger = next((c for c in candidates if not better or c.name == better[0]), None)
    return Verdict(
        program=evaluation.program,
        choice=choice,
        champion=champion.name,
        champion_version=champion.version,
        challenger=challenger.name if challenger else "",
        challenger_version=challenger.version if challenger else "",
        level=level,
        reasons=tuple(reasons),
        comparisons=len(candidates),
        notes=_notes(evaluation, challenger, accept_estimated=accept_estimated),
    )


def with_reasons(verdict: Verdict, more: Sequence[Reason]) -> Verdict:
    """Return a verdict with the reasons of other gates: one that speaks against, or against judging, stops it.

    A reason with an empty target is about every candidate. What speaks against keeps the champion; what says that
    nothing can be said leaves not enough evidence.
    """
    about = [r for r in more if r.target in ("", verdict.challenger)]
    choice = verdict.choice
    if verdict.promotes and any(r.speaks in _STOPS for r in about):
        choice = "keep" if any(r.speaks == "against" for r in about) else "not enough evidence"
    stops = tuple(r for r in more if r.speaks in _STOPS)
    rest = tuple(r for r in more if r.speaks not in _STOPS)
    return msgspec.structs.replace(verdict, choice=choice, reasons=(*stops, *verdict.reasons, *rest))


def always_valid(lift: Estimate, *, level: float) -> Estimate:
    """Return a lift between bounds each of which holds at every look at once, with chance `level`."""
    reach = stretched(lift.rounds, alpha=1.0 - level) * lift.error
    return msgspec.structs.replace(lift, low=lift.value - reach, high=lift.value + reach, level=level)


def _notes(evaluation: Evaluation, challenger: Score | None, *, accept_estimated: bool) -> tuple[str, ...]:
    notes = [SHARED_BUDGET] if evaluation.shared_budget else []
    if evaluation.propensities == "estimated":
        flips = challenger.sensitivity.flips_at if challenger and challenger.sensitivity else None
        odds = "more than 20" if flips is None else f"{flips:.2f}"
        word = "a person accepted them" if accept_estimated else "nothing is promoted on them"
        notes.append(
            f"the log did not say its probabilities; they were estimated, and {word}. An unseen cause that moves the "
            f"odds of a choice by a factor of {odds} would turn what is said of the lift"
        )
    return tuple(notes)


def _stops(checks: tuple[Check, ...], candidate: Score, *, accept_estimated: bool) -> list[Check]:
    found = failed(checks, target=candidate.name)
    return [c for c in found if not (accept_estimated and c.name == "propensities")]


def _reasons(evaluation: Evaluation, candidate: Score, *, level: float, accept_estimated: bool) -> list[Reason]:
    """Return the failed checks, or else what the interval says."""
    if stops := _stops(evaluation.checks, candidate, accept_estimated=accept_estimated):
        return [
            Reason(
                code="check failed",
                speaks="unknown",
                target=candidate.name,
                text=f"{c.title}: {c.finding}",
                mend=c.mend,
            )
            for c in stops
        ]
    lift = always_valid(candidate.lift, level=level)
    code: Literal["better", "worse", "not better"] = (
        "better" if lift.low > 0 else "worse" if lift.high < 0 else "not better"
    )
    said = {
        "better": "is better than",
        "worse": "is worse than",
        "not better": "is not shown to be better than",
    }[code]
    return [
        Reason(
            code=code,
            speaks="for" if code == "better" else "against",
            target=candidate.name,
            text=f"{candidate.title} {said} {evaluation.score(evaluation.reference).title}: {lift.value:+.4g} a "
            f"decision [{lift.low:+.4g}, {lift.high:+.4g}] at {level:.1%}, at any look",
            mend="" if code == "better" else _mend(lift),
            lift=lift,
        )
    ]


def _mend(lift: Estimate) -> str:
    """Say how many rounds would have shown a lift of this size: the interval shrinks with their square root."""
    reach = lift.high - lift.value
    if lift.value <= 0:
        return "train on more matured rounds, or let a simpler policy compete"
    need = lift.rounds * (reach / lift.value) ** 2
    return f"about {need - lift.rounds:,.0f} more matured rounds would show a lift of this size"


def _no_challenger() -> Reason:
    return Reason(
        code="no challenger",
        speaks="unknown",
        target="",
        text="no candidate was evaluated",
        mend="train some first: nudge train",
    )
