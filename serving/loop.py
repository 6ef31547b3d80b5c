"""What does an operator run, and in which order? Archive, train, evaluate, promote, publish.

Each step reads what the one before left behind (the archive, MLflow's registry), so each can be run again, alone, on
another machine.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from optimizer.engine import CHALLENGER, CHAMPION
from optimizer.program import Program
from policies import load as load_policy
from serving import archive as archiver
from serving import programs, publishing, settings, vitals
from serving.processes import store_url
from serving.publishing import Slot
from serving.store import Published, Store
from training import dataset, promotion
from training import evaluate as judging
from training import report as page
from training import train as training
from training.evaluate import Evaluation, Progress, Score, Target
from training.promotion import Verdict
from training.registry import Registered, Registry

_LOG = logging.getLogger("nudge.follow")

POLL_SECONDS = 5.0
"""How often the follower looks at the aliases in MLflow."""


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What was moved from the store to Parquet."""

    decisions: int
    outcomes: int
    files: int
    archive: str


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was fitted and registered."""

    name: str
    kind: str
    version: str
    rounds: int


class Trainings(msgspec.Struct, frozen=True, kw_only=True):
    """What was trained, and from how much of the log."""

    program: str
    program_version: str
    decisions_seen: int
    matured_share: float
    candidates: list[Trained]


class Valued(msgspec.Struct, frozen=True, kw_only=True):
    """A policy's value per decision, with its interval, and its lift over the reference."""

    policy: str
    version: str
    value: float
    low: float
    high: float
    snips: float
    ips: float
    dm: float
    lift: float
    lift_low: float
    lift_high: float


class Estimated(msgspec.Struct, frozen=True, kw_only=True):
    """What one estimator says of a policy's value per decision, with its interval, clustered by customer."""

    policy: str
    estimator: str
    value: float
    low: float
    high: float


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation found, and where its page is."""

    program: str
    run: str
    verdict: str
    challenger: str
    rounds: int
    customers: int
    decisions_seen: int
    matured_share: float
    values: list[Valued]
    estimates: list[Estimated]
    reasons: list[str]
    failed_checks: list[str]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One check of the log."""

    check: str
    status: str
    finding: str
    mend: str


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the champion's alias, and why."""

    program: str
    verdict: str
    promoted: bool
    champion: str
    reasons: list[str]


def archive(*, watch: bool = False) -> Archived:
    """Move the event log to Parquet; with `watch`, until interrupted."""
    given = settings.load()
    with store_url(given) as url:
        return asyncio.run(_archive(url, given.archive, watch=watch))


async def _archive(url: str, folder: Path, *, watch: bool) -> Archived:
    async with await Store.open(url) as store:
        done = await archiver.archive(store, folder)
        while watch:
            await asyncio.sleep(POLL_SECONDS)
            done = done + await archiver.archive(store, folder)
    return Archived(decisions=done.decisions, outcomes=done.outcomes, files=done.files, archive=str(folder))


def train(program: Program, *, kinds: Sequence[str] = (), progress: Progress | None = None) -> Trainings:
    """Fit candidates on the earlier part of the archived log and register each in MLflow."""
    whole = dataset.load(settings.load().archive, program)
    earlier = training.split(whole).earlier.with_stage_values()
    found = training.train(earlier, kinds=tuple(kinds) or training.LEARNERS, progress=progress)
    store = Registry.open()
    done = []
    for i, candidate in enumerate(found):
        registered = store.log_training(
            earlier, name=candidate.name, policy=candidate.policy, kind=candidate.kind, params=candidate.params
        )
        done.append(Trained(name=candidate.name, kind=candidate.kind, version=registered.version, rounds=len(earlier)))
        if progress is not None:
            progress("registering in MLflow", i + 1, len(found))
    return Trainings(
        program=program.name,
        program_version=program.version,
        decisions_seen=whole.total,
        matured_share=whole.matured_share,
        candidates=done,
    )


def evaluate(
    program: Program, *, whole: bool = False, always: Sequence[str] = (), progress: Progress | None = None
) -> Evaluated:
    """Judge the newest candidates on the part of the log that they did not learn from; the page goes to MLflow.

    Args:
        program: whose archive is read.
        whole: value what learned nothing (today's policy, hold, rules, chance, `always`) on the whole log instead;
            candidates, which learned from a part of it, are left out.
        always: nudges (`incentive/tone/timing`) to value as if always made.
        progress: told of the blocks done.
    """
    store = Registry.open()
    log = dataset.load(settings.load().archive, program)
    targets = [*judging.baselines(program), *(judging.always(program.space, nudge) for nudge in always)]
    champion = store.champion(program.name)
    if whole:
        judged, history = log, None
    else:
        history, judged = training.split(log)
        targets += _learned(program, store, champion=champion)
    reference = CHAMPION if any(t.name == CHAMPION for t in targets) else judging.TODAY
    found = judging.evaluate(judged, targets, reference=reference, history=history, progress=progress)
    verdict = promotion.judge(found)
    command = " ".join(
        ["nudge evaluate", program.name, *(["--whole"] if whole else []), *(f"--always {a}" for a in always)]
    )
    files: dict[str, str | bytes] = {
        "report.html": page.html(found, verdict, command=command),
        "report.png": page.png(found, verdict),
    }
    params = {"program": program.name, "program_version": program.version, "command": command}
    run = store.log_evaluation(found, verdict, dataset=judged, files=files, params=params)
    return _evaluated(found, verdict, run=run)


def _learned(program: Program, store: Registry, *, champion: Registered | None) -> list[Target]:
    """Return the champion, as what candidates are compared with, and every candidate that is not the champion."""
    new = [f for f in store.newest(program.name) if champion is None or f.version != champion.version]
    targets = [_target(program, found, name=found.name, role="candidate") for found in new]
    if champion is not None:
        targets.append(_target(program, champion, name=CHAMPION, role="champion"))
    return targets


def _target(program: Program, found: Registered, *, name: str, role: judging.Role) -> Target:
    policy = load_policy(found.folder, program.space)
    return judging.deployed(
        name, policy, program, title=f"{found.name} (version {found.version})", role=role, version=found.version
    )


def _evaluated(found: Evaluation, verdict: Verdict, *, run: str) -> Evaluated:
    return Evaluated(
        program=found.program,
        run=run,
        verdict=verdict.choice,
        challenger=verdict.challenger,
        rounds=found.rounds,
        customers=found.customers,
        decisions_seen=found.decisions_seen,
        matured_share=found.matured_share,
        values=[_valued(score) for score in found.scores],
        estimates=[
            Estimated(policy=score.name, estimator=name, value=e.value, low=e.low, high=e.high)
            for score in found.scores
            for name, e in score.estimates.items()
        ],
        reasons=_reasons(verdict),
        failed_checks=[f"{c.target or 'log'}: {c.finding}" for c in found.checks if c.status == "fail"],
    )


def _reasons(verdict: Verdict) -> list[str]:
    """Return one reason a candidate, the challenger's first, with what would mend it."""
    first = {r.target: r for r in reversed(verdict.reasons)}
    ordered = sorted(first.values(), key=lambda r: r.target != verdict.challenger)
    texts = [f"{r.target}: {r.text}" if r.code == "check failed" else r.text for r in ordered]
    return [f"{text}; {r.mend}" if r.mend else text for text, r in zip(texts, ordered, strict=True)]


def _valued(score: Score) -> Valued:
    return Valued(
        policy=score.name,
        version=score.version,
        value=score.value.value,
        low=score.value.low,
        high=score.value.high,
        snips=score.estimates["snips"].value,
        ips=score.estimates["ips"].value,
        dm=score.estimates["dm"].value,
        lift=score.lift.value,
        lift_low=score.lift.low,
        lift_high=score.lift.high,
    )


def promote(program: Program, *, rollback: bool = False) -> Promoted:
    """Move the champion's alias if the newest evaluation says so, and publish the champion to a running service.

    Raises:
        ValueError: if nothing was evaluated, or the champion changed since.
    """
    store = Registry.open()
    if rollback:
        champion, verdict, reasons = store.rollback(program.name), "rollback", ["asked for by a person"]
    else:
        last = store.last_evaluation(program.name)
        if last is None:
            raise ValueError(f"program {program.name!r} was not evaluated yet: nudge evaluate {program.name}")
        verdict, reasons = last.verdict.choice, _reasons(last.verdict)
        if last.verdict.promotes:
            champion = store.promote(program.name, last.verdict.challenger_version, last.verdict)
        else:
            champion = store.champion(program.name)
    publish_now([program])
    return Promoted(
        program=program.name,
        verdict=verdict,
        promoted=verdict == "promote",
        champion=f"{champion.name} (version {champion.version})" if champion else "uniform (none was promoted)",
        reasons=reasons,
    )


def report(program: Program, *, target: Path | None) -> str:
    """Write the newest evaluation's page to a file and return its name."""
    last = Registry.open().last_evaluation(program.name)
    if last is None:
        raise ValueError(f"program {program.name!r} was not evaluated yet: nudge evaluate {program.name}")
    path = target or Path(f"{program.name}-report.html")
    path.write_text(
        page.html(last.evaluation, last.verdict, command=f"nudge evaluate {program.name}"), encoding="utf-8"
    )
    return str(path)


def audit(program: Program) -> list[Checked]:
    """Check the log itself: whether its probabilities, weights and maturity allow questions at all."""
    log = dataset.load(settings.load().archive, program)
    found = judging.evaluate(log, [judging.today(), judging.hold_all(program.space)])
    return [
        Checked(check=c.title, status=c.status, finding=c.finding, mend=c.mend) for c in found.checks if not c.target
    ]


def publish_now(served: Sequence[Program]) -> list[str]:
    """Publish each program's champion to the store, which keeps it for whoever serves; return what was published."""
    with store_url(settings.load()) as url:
        return asyncio.run(_publish_all(url, served))


def follow(names: Sequence[str], *, once: bool = False) -> None:
    """Publish champions whenever their alias moves, until interrupted."""
    given = settings.load()
    served = [programs.find(n, folder=given.programs) for n in names] or [
        s.program for s in programs.load(given.programs).values()
    ]
    while True:
        try:
            publish_now(served)
        except Exception:
            if once:
                raise
            # MLflow or the store may be away for a while: the service goes on with what it has, and so does this.
            _LOG.warning("could not look at the champions", exc_info=True)
        if once:
            return
        time.sleep(POLL_SECONDS)


async def _publish_all(url: str, served: Sequence[Program]) -> list[str]:
    given = settings.load()
    secret = publishing.secret(given.secret_file, given=given.secret)
    done = []
    async with await Store.open(url) as store:
        await vitals.beat(store, at=time.time())
        for program in served:
            for arm, found in (
                (CHAMPION, Registry.open().champion(program.name)),
                (CHALLENGER, Registry.open().challenger(program.name)),
            ):
                if found is None or await store.policy_version(program.name, arm) == found.version:
                    continue
                payload = publishing.pack(found.folder, Slot(program.name, arm), version=found.version, secret=secret)
                await store.publish_policy(program.name, arm, Published(found.version, payload))
                done.append(f"{program.name}: {arm} is {found.name} (version {found.version})")
    return done
