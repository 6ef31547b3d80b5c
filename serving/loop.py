"""What does an operator run, and in which order? Archive, train, evaluate, promote, publish.

Each step reads what the one before left behind (the archive, MLflow's registry), so each can be run again, alone, on
another machine.
"""

import asyncio
import logging
import logging.config
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from optimizer.actions import Floats
from optimizer.engine import CHALLENGER, CHAMPION
from optimizer.events import Salt
from optimizer.policy import Policy, Rounds
from optimizer.program import Program
from policies import load as load_policy
from policies.fixed import Uniform
from serving import erasing, logs, programs, publishing, settings, stream, vitals, webhooks
from serving.processes import store_url
from serving.publishing import Slot
from serving.store import Published, Store, StoreError
from training import audit as auditing
from training import dataset, delay, events, fairness, promotion, scorecard_page
from training import evaluate as judging
from training import report as page
from training import scorecard as measuring
from training import targets as contenders
from training import train as training
from training.evaluate import Progress
from training.evaluation import Evaluation, Role, Score
from training.promotion import Verdict
from training.registry import APPROVED_BY, Registered, Registry
from training.scorecard import Asked, Scorecard
from training.targets import Target

_LOG = logging.getLogger("nudge.follow")

POLL_SECONDS = 5.0
"""How often the follower looks at the aliases in MLflow."""


WAITING = "waiting for approval"


class Again(NamedTuple):
    """What an evaluation was of: the log up to a time, the candidates' versions, the champion's (`none` for none)."""

    until: float | None = None
    candidates: Sequence[str] = ()
    champion: str | None = None


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What was moved from the store to Parquet."""

    decisions: int
    outcomes: int
    files: int
    archive: str
    waiting: int = 0
    """Events that are left to another archiver, which holds the log."""


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that was fitted and registered."""

    name: str
    kind: str
    version: str
    rounds: int
    memory: str


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
    notes: list[str] = []
    command: str = ""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One check of the log."""

    check: str
    status: str
    finding: str
    mend: str


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation came to: all of it, its table for a terminal, and where its page went."""

    data: object
    table: object
    wrote: str


class Promoted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the champion's alias, and why."""

    program: str
    verdict: str
    promoted: bool
    champion: str
    reasons: list[str]


class Reported(msgspec.Struct, frozen=True, kw_only=True):
    """Where the program's scorecard is, what it says first, and all of it."""

    page: str
    run: str
    sentence: str
    scorecard: Scorecard


def archive(*, watch: bool = False) -> Archived:
    """Move the event log to Parquet; with `watch`, until interrupted."""
    given = settings.load()
    with store_url(given) as url:
        return asyncio.run(_archive(url, given.archive, watch=watch))


async def _archive(url: str, folder: Path, *, watch: bool) -> Archived:
    async with await Store.open(url) as store:
        done = await erasing.archive(store, folder)
        while watch:
            await asyncio.sleep(POLL_SECONDS)
            try:
                done = done + await erasing.archive(store, folder, every=erasing.SOON)
            except StoreError as error:  # it may come back, and then there is the more to do
                _LOG.warning("the store failed, trying again", extra={"error": type(error).__name__})
        waiting = 0 if done.decisions or done.outcomes else await stream.backlog(store)
    moved = {"decisions": done.decisions, "outcomes": done.outcomes, "files": done.files}
    return Archived(**moved, archive=str(folder), waiting=waiting)


def erase(customers: Sequence[str]) -> erasing.Forgotten:
    """Forget customers everywhere: in the store, its file, messages that have not arrived, and the archive."""
    given = settings.load()
    with store_url(given) as url:
        return asyncio.run(_erase(url, given, customers))


async def _erase(url: str, given: settings.Settings, customers: Sequence[str]) -> erasing.Forgotten:
    async with await Store.open(url) as store:
        for name in customers if given.targets else ():
            await webhooks.forget(store, [t.name for t in given.targets], name)
        return await erasing.erase(store, given.archive, customers, at=time.time())


def train(program: Program, *, kinds: Sequence[str] = (), progress: Progress | None = None) -> Trainings:
    """Fit candidates on the earlier part of the archived log and register each in MLflow."""
    whole = dataset.load(settings.load().archive, program, arms="judging")
    earlier = training.split(whole).earlier.with_stage_values()
    found = training.train(earlier, kinds=tuple(kinds) or training.LEARNERS, progress=progress)
    store = Registry.open()
    done = []
    for i, c in enumerate(found):
        params = {**c.params, "memory": c.memory}
        registered = store.log_training(earlier, name=c.name, policy=c.policy, kind=c.kind, params=params)
        done.append(Trained(name=c.name, kind=c.kind, version=registered.version, rounds=len(earlier), memory=c.memory))
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
    program: Program,
    *,
    whole: bool = False,
    always: Sequence[str] = (),
    accept_estimated: bool = False,
    again: Again | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Judge the newest candidates on the part of the log that they did not learn from; the page goes to MLflow.

    Args:
        program: whose archive is read.
        whole: value what learned nothing (today's policy, hold, rules, chance, `always`) on the whole log instead;
            candidates, which learned from a part of it, are left out.
        always: nudges (`incentive/tone/timing`) to value as if always made.
        accept_estimated: let the gate promote on propensities that were estimated.
        again: what an earlier evaluation was of, to have it once more.
        progress: told of the blocks done.
    """
    store, again = Registry.open(), again or Again()
    log = dataset.load(settings.load().archive, program, now=again.until, arms="judging")
    targets = [*contenders.baselines(program), *(contenders.always(program.space, nudge) for nudge in always)]
    champion = _champion(program, store, again)
    if whole:
        judged, history = log, None
    else:
        history, judged = training.split(log)
        targets += _learned(program, store, champion=champion, versions=again.candidates)
        targets += _best_fixed(program, history, known={t.name for t in targets})
    reference = CHAMPION if any(t.name == CHAMPION for t in targets) else contenders.TODAY
    vectors = _loggers(program, store, judged)
    found = judging.evaluate(judged, targets, reference=reference, history=history, loggers=vectors, progress=progress)
    verdict = promotion.judge(found, accept_estimated=accept_estimated)
    verdict, gate = _fair(program, judged, verdict, targets)
    flags = [f for f, given in (("--whole", whole), ("--accept-estimated", accept_estimated)) if given]
    command = " ".join(
        ["nudge evaluate", program.name, *flags, *(f"--always {a}" for a in always), *_again(log, found, whole=whole)]
    )
    files: dict[str, str | bytes] = {
        "report.html": page.html(found, verdict, command=command),
        "report.png": page.png(found, verdict),
        **({"fairness.json": msgspec.json.format(msgspec.json.encode(gate), indent=1)} if gate else {}),
    }
    params = {"program": program.name, "program_version": program.version, "command": command}
    run = store.log_evaluation(found, verdict, dataset=judged, files=files, params=params)
    return _evaluated(found, verdict, run=run, command=command)


def _fair(
    program: Program, log: dataset.Dataset, verdict: Verdict, targets: Sequence[Target]
) -> tuple[Verdict, fairness.Fairness | None]:
    """Return the verdict once the challenger was judged for fairness, as the program declares it, and the gate's."""
    challenger = next((t for t in targets if t.name == verdict.challenger), None)
    if challenger is None or not len(log):
        return verdict, None
    gate = fairness.fairness_gate(log, target=challenger, limits=fairness.declared(program))
    return fairness.verdict_on(verdict, gate, must_be_known=program.fairness.must_be_known), gate


def _champion(program: Program, store: Registry, again: Again) -> Registered | None:
    """Return the champion, or who it was then."""
    if again.champion is None:
        return store.champion(program.name)
    return None if again.champion == "none" else store.get(program.name, again.champion)


def _again(log: dataset.Dataset, found: Evaluation, *, whole: bool) -> list[str]:
    """Return the options that make an evaluation give the same numbers, whatever has come in since."""
    options = [f"--until {log.until!r}"] if math.isfinite(log.until) else []
    if whole:
        return options
    versions = [f"--candidate {s.version}" for s in found.scores if s.role == "candidate" and s.version]
    champion = next((s.version for s in found.scores if s.role == "champion"), "none")
    return [*options, *versions, f"--champion {champion}"]


def _best_fixed(program: Program, history: dataset.Dataset, *, known: set[str]) -> list[Target]:
    """Return the nudge that did best on the training slice, always made: the simplest policy to beat."""
    best = contenders.best_fixed(history)
    return [contenders.always(program.space, best)] if best and f"always {best}" not in known else []


def _loggers(program: Program, store: Registry, log: dataset.Dataset) -> dict[str, Callable[[Rounds], Floats]]:
    """Return what each policy that logged would have drawn from, where the registry still has it."""
    found: dict[str, Callable[[Rounds], Floats]] = {}
    if log.estimated_propensities or len(log.loggers) < 2:
        return found
    for logger, policy in _policies(program, store, log.loggers).items():
        found[logger] = contenders.deployed(logger, policy, program).vectors
    return found


def _policies(program: Program, store: Registry, loggers: Sequence[str]) -> dict[str, Policy]:
    """Return the policies that logged, by `name@version`, as far as they are known: the first of all is chance."""
    found: dict[str, Policy] = {}
    for logger in loggers:
        name, _, version = logger.partition("@")
        if name == Uniform.name and version == publishing.uniform(program).version:
            found[logger] = Uniform(program.space)
        elif version.isdecimal() and (saved := store.find(program.name, version)) is not None:
            found[logger] = load_policy(saved.folder, program.space)
    return found


def _learned(
    program: Program, store: Registry, *, champion: Registered | None, versions: Sequence[str] = ()
) -> list[Target]:
    """Return the champion, as what candidates are compared with, and every candidate that is not the champion."""
    newest = [store.get(program.name, v) for v in versions] or store.newest(program.name)
    new = [f for f in newest if champion is None or f.version != champion.version]
    targets = [_target(program, found, name=found.name, role="candidate") for found in new]
    if champion is not None:
        targets.append(_target(program, champion, name=CHAMPION, role="champion"))
    return targets


def _target(program: Program, found: Registered, *, name: str, role: Role) -> Target:
    policy = load_policy(found.folder, program.space)
    return contenders.deployed(
        name, policy, program, title=f"{found.name} (version {found.version})", role=role, version=found.version
    )


def _evaluated(found: Evaluation, verdict: Verdict, *, run: str, command: str) -> Evaluated:
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
        notes=list(verdict.notes),
        command=command,
    )


def _reasons(verdict: Verdict) -> list[str]:
    """Return one reason a candidate and each of fairness, the challenger's first, with what would mend it."""
    first = {(r.target, r.text if r.code.startswith("fairness") else ""): r for r in reversed(verdict.reasons)}
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


def promote(program: Program, *, rollback: bool = False, require_approval: bool = False) -> Promoted:
    """Move the champion's alias if the newest evaluation says so, and publish the champion to a running service.

    Args:
        program: whose champion it is.
        rollback: go back to the champion before; past the first, to chance.
        require_approval: wait until a person has set the tag `approved_by` on the version in MLflow's UI.

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
        verdict, reasons = last.verdict.choice, [*_reasons(last.verdict), *last.verdict.notes]
        version = last.verdict.challenger_version
        if last.verdict.promotes and require_approval and not store.approved_by(program.name, version):
            champion, verdict = store.champion(program.name), WAITING
            reasons = [_waits(program, version), *reasons]
        elif last.verdict.promotes:
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


def _waits(program: Program, version: str) -> str:
    return (
        f"version {version} waits for a person: in MLflow's UI (nudge ui) open the model nudge-{program.name}, version "
        f"{version}, add the tag {APPROVED_BY} with your name, then: nudge promote {program.name} --require-approval"
    )


def report(program: Program, asked: Asked, *, target: Path | None = None, command: str = "") -> Reported:
    """Measure the program from its archive: write the page to a file and log all of it to MLflow.

    Raises:
        ValueError: for an archive without a decision that was asked about.
    """
    card = measuring.scorecard(settings.load().archive, program, asked)
    written = scorecard_page.html(card, command=command or f"nudge report {program.name}")
    path = target or Path(f"{program.name}-report.html")
    path.write_text(written, encoding="utf-8")
    run = Registry.open().log_report(
        program.name,
        figures=measuring.figures(card),
        files={"scorecard.html": written, "scorecard.json": card.to_json(), **measuring.tables(card)},
        params={"program": program.name, "program_version": program.version, "command": command},
        note=scorecard_page.sentence(card),
    )
    return Reported(page=str(path), run=run, sentence=scorecard_page.sentence(card), scorecard=card)


def asked(*, since: str | None, until: str | None, protect: Sequence[str] = (), **more: object) -> Asked:
    """Return what a report is asked for, with days as people write them; ValueError for what is no day."""
    return Asked(
        since=_moment(since, "--since"),
        until=_moment(until, "--until"),
        protect=tuple(protect),
        **more,  # type: ignore[arg-type]
    )


def _moment(text: str | None, option: str) -> float | None:
    """Return a day or a moment as seconds since the epoch; UTC where it says no zone."""
    if text is None:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option} {text!r} is no day: write it as 2026-11-01, or 2026-11-01T12:00") from None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def in_short(reported: Reported) -> dict[str, object]:
    """Return what a terminal shows of a report."""
    short = scorecard_page.in_short(reported.scorecard)
    return {"says": reported.sentence, "page": reported.page, "mlflow_run": reported.run, **short}


def evaluation_report(program: Program, *, target: Path | None) -> str:
    """Write the newest evaluation's page to a file and return its name."""
    last = Registry.open().last_evaluation(program.name)
    if last is None:
        raise ValueError(f"program {program.name!r} was not evaluated yet: nudge evaluate {program.name}")
    path = target or Path(f"{program.name}-evaluation.html")
    path.write_text(
        page.html(last.evaluation, last.verdict, command=f"nudge evaluate {program.name}"), encoding="utf-8"
    )
    return str(path)


def audit(program: Program) -> list[Checked]:
    """Check the log itself: whether its probabilities, weights and maturity allow questions at all."""
    given = settings.load()
    log = dataset.load(given.archive, program, arms="judging")
    found = judging.evaluate(log, contenders.baselines(program))
    raw = events.read(given.archive, program.name)
    written = [auditing.joins(raw), auditing.arms(raw, program), auditing.replay(raw, _salt(), program=program.name)]
    if len(raw) and not log.estimated_propensities:
        every = dataset.load(given.archive, program, now=math.inf, arms="judging")
        written.append(auditing.rescoring(every, _policies(program, Registry.open(), every.loggers)))
        if math.isfinite(log.until):
            written.append(delay.newest(delay.load(given.archive, program, now=log.until)))
    return [
        Checked(
            check=f"{found.score(c.target).title}: {c.title}" if c.target else c.title,
            status=c.status,
            finding=c.finding,
            mend=c.mend,
        )
        for c in [*written, *found.checks]
    ]


def _salt() -> Salt | None:
    """Return the salt of the store, if there is a store."""
    given = settings.load()
    if not given.redis_url and not (given.home / "store").exists():
        return None
    with store_url(given) as url:
        return asyncio.run(_salt_of(url))


async def _salt_of(url: str) -> Salt:
    async with await Store.open(url) as store:
        return store.salt


def publish_now(served: Sequence[Program]) -> list[str]:
    """Publish each program's champion to the store, which keeps it for whoever serves; return what was published."""
    with store_url(settings.load()) as url:
        return asyncio.run(_publish_all(url, served))


def follow(names: Sequence[str], *, once: bool = False) -> None:
    """Publish champions whenever their alias moves, until interrupted."""
    given = settings.load()
    logging.config.dictConfig(logs.configuration(given.log_level))
    served = [programs.find(n, folder=given.programs) for n in names] or [
        s.program for s in programs.load(given.programs).values()
    ]
    while True:
        try:
            publish_now(served)
        except Exception as error:
            if once:
                raise
            # MLflow or the store may be away for a while: the service goes on with what it has, and so does this.
            away = isinstance(error, StoreError | OSError)
            _LOG.warning(
                "could not look at the champions",
                extra={"error": type(error).__name__},
                exc_info=None if away else error,
            )
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
                served_version = await store.policy_version(program.name, arm)
                first = publishing.uniform(program)
                if found is None and arm == CHAMPION and served_version not in (None, first.version):
                    # Rolled back past the first champion: chance serves again, and has to be published to be served.
                    with tempfile.TemporaryDirectory() as temporary:
                        Uniform(program.space).save(Path(temporary))
                        payload = publishing.pack(
                            Path(temporary), Slot(program.name, arm), version=first.version, secret=secret
                        )
                    await store.publish_policy(program.name, arm, Published(first.version, payload))
                    done.append(f"{program.name}: {arm} is {first.name} (none was promoted)")
                if found is None or served_version == found.version:
                    continue
                payload = publishing.pack(found.folder, Slot(program.name, arm), version=found.version, secret=secret)
                await store.publish_policy(program.name, arm, Published(found.version, payload))
                done.append(f"{program.name}: {arm} is {found.name} (version {found.version})")
    return done


def simulate(
    worlds: Sequence[str],
    *,
    find: Callable[[str], Program],
    command: str,
    program: str,
    policies: Sequence[str],
    settings: Sequence[str],
    customers: int,
    days: int,
    replications: int,
    seed: int,
    trials: bool,
    output: Path | None,
    mlflow: bool,
    archive: Path | None,
    premortem: str | None,
    progress: Progress | None = None,
) -> Simulated:
    """Compare policies in worlds, or fit a world to an archive, or put a program into trouble; see `nudge simulate`."""
    from simulations import comparison, fitting, page  # noqa: PLC0415  (heavy, and only for this command)
    from simulations import premortem as trouble  # noqa: PLC0415  (as above)
    from simulations import worlds as played  # noqa: PLC0415  (as above)

    if archive is not None and (premortem or worlds or policies or settings):
        raise ValueError("--fit estimates a world from a log: leave out worlds, --policy, --set and --premortem")
    if output is not None and not output.resolve().parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}; make it first")
    if premortem is not None and (worlds or len(policies) > 1):
        raise ValueError("--premortem has worlds of its own: leave out worlds, and name at most one --policy")
    sizes: dict[str, Any] = {"customers": customers, "days": days, "replications": replications, "seed": seed}
    data: object
    table: object
    refused = ""
    if archive is not None:
        fitted = fitting.fit(archive, find(program), seed=seed, progress=progress)
        data, table, text = msgspec.to_builtins(fitted), fitting.table(fitted), page.fit_html(fitted, command=command)
        figures, about, refused = fitting.figures(fitted), find(program), fitted.refused
    elif premortem is not None:
        about = find(premortem)
        calm = played.changed(played.DEMO, played.read_settings(settings))
        found = trouble.run(about, policy=next(iter(policies), "thompson"), **sizes, world=calm, progress=progress)
        data, table, text = (
            msgspec.to_builtins(found),
            trouble.table(found),
            page.premortem_html(found, command=command),
        )
        figures = trouble.figures(found)
    else:
        about = find(program)
        given = played.read_settings(settings)
        named = [played.changed(played.world_of(name), given) for name in worlds or ["demo"]]
        compared = comparison.run(about, named, policies=policies, trials=trials, **sizes, progress=progress)
        data, table, text = (
            msgspec.to_builtins(compared),
            comparison.table(compared),
            page.html(compared, command=command),
        )
        figures = comparison.figures(compared)
    wrote = []
    if output is not None:
        output.write_text(text, encoding="utf-8")
        wrote.append(f"wrote {output}")
    if mlflow:
        files: dict[str, str | bytes] = {"simulation.html": text, "simulation.json": msgspec.json.encode(data)}
        run = Registry.open().log_simulation(
            about.name, figures=figures, files=files, params={"command": command, **sizes}
        )
        wrote.append(f"logged to MLflow as run {run}")
    if refused:
        raise ValueError("\n".join([*wrote, refused]))
    return Simulated(data=data, table=table, wrote="\n".join(wrote))
