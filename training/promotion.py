"""May a challenger replace the champion? Promote, keep, or not enough evidence, with reasons as data.

Only the doubly robust, paired difference over the champion decides, with an interval clustered by customer
and wide enough for the number of challengers (Bonferroni); an estimate that was shrunk or selected has no
honest interval.
"""

from typing import Literal

import msgspec

from training.diagnostics import failed
from training.evaluate import Evaluation, Score
from training.intervals import Estimate

Choice = Literal["promote", "keep", "not enough evidence"]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One ground of a verdict. `speaks` says which way: for the challenger, against it, or against judging at all."""

    code: Literal["better", "not better", "worse", "check failed", "no challenger"]
    speaks: Literal["for", "against", "unknown"]
    target: str
    text: str
    mend: str = ""
    lift: Estimate | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate decided. `challenger` is the one to promote, or the best of those that were not.

    Versions are those of the registry; empty for what is not in it.
    """

    program: str
    choice: Choice
    champion: str
    champion_version: str
    challenger: str
    challenger_version: str
    level: float
    reasons: tuple[Reason, ...]

    @property
    def promotes(self) -> bool:
        """Whether the challenger replaces the champion."""
        return self.choice == "promote"


def judge(evaluation: Evaluation) -> Verdict:
    """Judge every candidate of an evaluation against its reference.

    A candidate is promoted if no check failed, of the log or of the candidate, and the lower bound of its
    lift is above 0 at level `1 - (1 - level) / candidates`. Among several, the one of the largest value.
    """
    candidates = evaluation.candidates
    level = 1.0 - (1.0 - evaluation.level) / max(len(candidates), 1)
    reasons = [r for c in candidates for r in _reasons(evaluation, c, level=level)]
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
    )


def _reasons(evaluation: Evaluation, candidate: Score, *, level: float) -> list[Reason]:
    """Return the failed checks, or else what the interval says."""
    if stops := failed(evaluation.checks, target=candidate.name):
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
    lift = candidate.lift.at_level(level)
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
            f"decision [{lift.low:+.4g}, {lift.high:+.4g}] at {level:.1%}",
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
