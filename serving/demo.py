"""The whole loop as a story: serve, gather, archive, train, judge, promote, serve better. All of it measured, now.

Customers are simulated, so the truth is known; everything else is real: the service in a process of its own, HTTP, the
embedded store, the archive, MLflow.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from optimizer.engine import CHAMPION, HOLDOUT
from optimizer.program import DAY, Program
from optimizer.programs import read
from policies import load as load_policy
from policies.fixed import Rules, Uniform
from serving import loop, output, settings
from serving.output import Told
from simulations.drive import drive
from simulations.metrics import metrics
from simulations.population import Population, populate
from simulations.rollout import Run, rollout, sole
from simulations.truth import Rows, best, truth
from simulations.worlds import WORLDS
from training import dataset, events
from training import targets as contenders
from training import train as training
from training.registry import Registry

CUSTOMERS, SEED = 2_400, 1
START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC: program time, which the simulation advances as fast as it can."""

PERIOD = 14
"""Days of traffic that each policy gets."""

_MARK = ".nudge-demo"
_PATIENCE = 60.0


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """What two weeks came to, per customer. `measured` over HTTP, or simulated beside it from the same start."""

    name: str
    policy: str
    measured: bool
    days: int
    reward: float
    conversion: float
    nudges: float
    opted_out: float


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """The offline estimate of the promoted policy's reward a decision, and the truth that it predicted."""

    policy: str
    estimate: float
    low: float
    high: float
    truth: float
    truth_error: float
    today: float
    rounds: int
    decisions_seen: int
    matured_share: float


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the demo measured."""

    program: str
    customers: int
    seed: int
    periods: list[Period]
    evaluation: Judged
    verdict: str
    promoted: bool
    reasons: list[str]
    acknowledged: int
    archived: int
    seconds: float


def run(*, json_file: Path | None, home: Path | None, customers: int | None) -> None:
    """Tell the story on the terminal, and as data where asked.

    Args:
        json_file: where to write the data.
        home: folder for the store and the archive; emptied first. The demo's own folder where omitted.
        customers: how many simulated customers.
    """
    began = time.monotonic()
    folder = _fresh(home or settings.load().home / "demo")
    registry = _fresh(Path("mlruns") / "demo")
    os.environ |= {"NUDGE_HOME": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{registry / 'mlflow.db'}"}
    os.environ.pop("REDIS_URL", None)
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    population = populate(program, WORLDS["demo"], customers=customers or CUSTOMERS, seed=SEED, start=START)
    console = Console()
    console.print(_opening(population))
    with _service() as url, output.progress() as told:
        story = _tell(population, url, told=told, began=began)
    console.print(_closing(story))
    console.print(_where_next(story, folder=folder), soft_wrap=True)  # a path in two lines is no path
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(story), indent=2) + b"\n")


def _tell(population: Population, url: str, *, told: Told, began: float) -> Story:
    program = population.program
    horizon = round(program.evaluation_horizon / DAY)
    first, kept = asyncio.run(
        drive(population, url, days=PERIOD + horizon, progress=_named(told, "1 weeks 1 and 2, at random"))
    )
    told("2 archiving", 0, 1)
    loop.archive()
    told("2 archiving", 1, 1)
    loop.train(program, progress=_named(told, "3 training"))
    evaluated = loop.evaluate(program, progress=_named(told, "4 judging"))
    judged = _judged(population, first, evaluated, told=_named(told, "5 finding the truth"))
    promoted = loop.promote(program)
    serving = _await_champion(url, program.name) if promoted.promoted else "uniform"
    second, more = asyncio.run(
        drive(population, url, days=PERIOD, since=first, progress=_named(told, "6 weeks 3 and 4, by the champion"))
    )
    loop.archive()
    found = events.read(settings.load().archive, program.name)
    return Story(
        program=program.name,
        customers=len(population),
        seed=SEED,
        periods=[
            _period("before", "uniform", first, measured=True),
            _period("after", serving, second, measured=True),
            *_beside(population, first, told=_named(told, "7 what others would have done")),
        ],
        evaluation=judged,
        verdict=promoted.verdict,
        promoted=promoted.promoted,
        reasons=promoted.reasons,
        acknowledged=kept.total + more.total,
        archived=len(found),
        seconds=time.monotonic() - began,
    )


def _judged(population: Population, first: Run, evaluated: loop.Evaluated, *, told: Told) -> Judged:
    """Put the truth beside the estimate, on the very rounds that were judged."""
    program = population.program
    log = dataset.load(settings.load().archive, program, arms="judging")  # as the loop cuts it
    later = training.split(log).later
    name = evaluated.challenger
    (version,) = (v.version for v in evaluated.values if v.policy == name)
    target = contenders.deployed(
        name, load_policy(Registry.open().get(program.name, version).folder, program.space), program
    )
    true = truth(
        first,
        sole(Uniform(program.space)),
        rows=Rows.of(population, later),
        target=target.vectors(later.rounds),
        progress=told,
    )
    values = {v.policy: v for v in evaluated.values}
    return Judged(
        policy=name,
        estimate=values[name].value,
        low=values[name].low,
        high=values[name].high,
        truth=true.value,
        truth_error=true.error,
        today=values[contenders.TODAY].value,
        rounds=evaluated.rounds,
        decisions_seen=evaluated.decisions_seen,
        matured_share=evaluated.matured_share,
    )


def _beside(population: Population, first: Run, *, told: Told) -> list[Period]:
    """Run others from where the first period ended, in process and with the same chance."""
    program, uniform = population.program, sole(Uniform(population.program.space))
    all_held = replace(first, arms=(HOLDOUT,) * len(population))
    beside: Mapping[str, Callable[[], Run]] = {
        "hold, for all": lambda: rollout(population, uniform, days=PERIOD, since=all_held, logged=False),
        "rules": lambda: rollout(population, sole(Rules.of(program)), days=PERIOD, since=first, logged=False),
        "uniform": lambda: rollout(population, uniform, days=PERIOD, since=first, logged=False),
        "simulator's best": lambda: best(population, days=PERIOD, since=first, logged=False),
    }
    runs = {}
    for done, (name, run_it) in enumerate(beside.items()):
        runs[name] = run_it()
        told("", done + 1, len(beside))
    return [_period("instead", name, found, measured=False) for name, found in runs.items()]


def _period(name: str, policy: str, found: Run, *, measured: bool) -> Period:
    figures = metrics(found.history.start(PERIOD))
    return Period(
        name=name,
        policy=policy,
        measured=measured,
        days=PERIOD,
        reward=figures.reward,
        conversion=figures.converted,
        nudges=figures.nudges,
        opted_out=figures.opted_out,
    )


# The service, in a process of its own.


@contextmanager
def _service() -> Iterator[str]:
    """Run `nudge serve` on a simulated store for as long as the block lasts; yield its address."""
    port = _free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--simulated", "--no-follow", "--port", str(port)]
    log = Path(os.environ["NUDGE_HOME"]) / "serve.log"
    with log.open("wb") as written:
        environment = {**os.environ, "NUDGE_DECIDE_SECONDS": "10"}  # batches of 500 may take turns
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)  # noqa: S603
    url = f"http://127.0.0.1:{port}"
    try:
        _await(lambda: _is_ready(url), process=process, what=f"the service to start; see {log}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1.0) as answer:  # noqa: S310  (our own address)
            return int(answer.status) == 200
    except OSError:
        return False


def _await(done: Callable[[], bool], *, process: "subprocess.Popen[bytes] | None" = None, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            raise ConnectionError(f"waited in vain for {what}")
        time.sleep(0.05)


def _await_champion(url: str, program: str) -> str:
    """Return the name of the policy that serves, once it is no longer the first one."""
    served: dict[str, str] = {}

    def swapped() -> bool:
        with urllib.request.urlopen(f"{url}/v1/programs/{program}", timeout=5.0) as answer:  # noqa: S310
            served.update(msgspec.json.decode(answer.read())["policies"][CHAMPION])
        return served["version"] != "0"

    _await(swapped, what="the service to take the new champion")
    return str(served["name"])


def _fresh(folder: Path) -> Path:
    """Return an empty folder that is the demo's own; ValueError rather than emptying anybody else's."""
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise ValueError(f"{folder} is not empty and not the demo's: name another folder with --home")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()
    return folder


def _named(told: Told, name: str) -> Told:
    """Return a progress callback that keeps one bar, whatever its parts are called."""
    return lambda _, done, of: told(name, done, of)


# What is printed.


def _opening(population: Population) -> str:
    program = population.program
    incentives, tones, timings = program.space.shape
    return (
        f"[bold]{program.title}[/bold]: {len(population):,} simulated customers, {program.space.k - 1} nudges "
        f"({incentives} incentives x {tones} tones x {timings} timings) or none.\n"
        "Two weeks of nudges at random, over HTTP; then a policy is learned, judged, promoted, and serves for two more."
    )


def _closing(story: Story) -> Group:
    return Group(_periods(story), _evaluation(story), _counts(story))


def _periods(story: Story) -> Table:
    table = Table(title="What two weeks came to, per customer", title_justify="left", caption_justify="left")
    table.add_column("weeks")
    table.add_column("policy")
    for name in ("reward", "upgraded", "nudges", "opted out"):
        table.add_column(name, justify="right")
    words = {"before": "1-2, over HTTP", "after": "3-4, over HTTP", "instead": "3-4, beside"}
    for p in story.periods:
        figures = (f"{p.reward:.2f} EUR", f"{p.conversion:.1%}", f"{p.nudges:.1f}", f"{p.opted_out:.1%}")
        table.add_row(words[p.name], p.policy, *figures, style="bold" if p.measured else "dim")
    table.caption = (
        "Beside: the same customers from the same day on, simulated under another policy (which explores a little)."
    )
    return table


def _evaluation(story: Story) -> str:
    e = story.evaluation
    inside = "inside" if e.low <= e.truth <= e.high else "outside"
    reasons = "".join(f"\n  - {escape(reason)}" for reason in story.reasons)
    return (
        f"\n[bold]Offline estimate[/bold] of {e.policy}, before it met a customer: {e.estimate:.3f} EUR a decision "
        f"[{e.low:.3f}, {e.high:.3f}], from {e.rounds:,} decisions; today's policy {e.today:.3f}.\n"
        f"[bold]The truth[/bold] that it predicted, known to the simulator: {e.truth:.3f} (± {e.truth_error:.3f}), "
        f"{inside} the interval.\n"
        f"[bold]Verdict: {story.verdict}[/bold]{reasons}"
    )


def _counts(story: Story) -> str:
    e = story.evaluation
    return (
        f"\nMatured when judged: {e.matured_share:.0%} of {e.decisions_seen:,} decisions; the rest were left out, not "
        f"counted as failures.\nAcknowledged over HTTP: {story.acknowledged:,} decisions and outcomes; found in the "
        f"archive, once each: {story.archived:,}. It took {story.seconds:.0f} s."
    )


def _where_next(story: Story, *, folder: Path) -> str:
    page = max((Path("mlruns") / "demo").rglob("report.html"), key=lambda f: f.stat().st_mtime)
    nudge = _to_type()
    return (
        "\n[bold]Where to look next[/bold]\n"
        f"  the page a marketer reads   {page}\n"
        f"  all runs, in MLflow         {nudge} ui --demo\n"
        f"  the archive                 {folder / 'archive'}\n"
        f"  a service of your own       {nudge} serve, then README.md\n"
        f"  a journey of your own       {nudge} program show {story.program}"
    )


def _to_type() -> str:
    """Return how this command is called from here: `nudge`, or its path where it is not on the PATH."""
    called = Path(sys.argv[0])
    hidden = called.name == "nudge" and shutil.which("nudge") is None
    return os.path.relpath(called) if hidden else "nudge"
