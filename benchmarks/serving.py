"""How much of its framework's speed is left once a service decides and keeps? Beside an empty FastAPI handler.

One real service (`nudge serve`: embedded Valkey, every commit fsynced, 301 actions, all guardrails) and one empty
handler under the same server and options take turns in one run, asked with the same requests by the same client.
Customers are of all stages, each asks once a wave; ratios are of neighbouring waves, so that a busy machine weighs on
both. The service sends an answer in one piece (`serving.wire`): an empty handler that does so too is shown.
"""

import argparse
import asyncio
import os
import socket
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.load import Answering, Heard, Wave, clients, running
from benchmarks.results import Row, write
from optimizer.customer import Decayed, Sent
from optimizer.engine import CHAMPION
from optimizer.events import Decision, Scalar
from optimizer.policy import Policy
from optimizer.program import DAY, Program
from optimizer.programs import read
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from serving import embedded, publishing, records
from serving.metrics import STAGES
from serving.publishing import Slot
from serving.settings import Settings
from serving.store import Store
from serving.stream import fresh
from simulations.population import populate
from simulations.rollout import rollout, sole
from simulations.worlds import WORLDS

NAME = "fitness-coaching"
NOON = 1_767_614_400.0
"""Monday 5 January 2026, noon UTC."""
WEEK = 7 * DAY
_TRIES = 4
"""How often a wave is asked before it is given up."""

_AT_ONCE = 100
"""Decisions a request while memory is watched."""

TARGETS = {"squarecb": 0.5, "thompson": 0.45}
TITLES = {"squarecb": "SquareCB (closed form)", "thompson": "Thompson (the default)"}
EMPTY = "an empty FastAPI handler"
HOME = Path(__file__).parents[1]


class Sizes(NamedTuple):
    """How long it all takes: seconds a wave, waves of a kind, customers, decisions after which memory is looked at."""

    seconds: float
    waves: int
    customers: int
    million: int


class Served(NamedTuple):
    """A service under test."""

    port: int
    home: Path
    url: str
    pids: tuple[int, ...]
    program: Program


# What is asked about: customers put into the store as they would have become.


def program_text() -> str:
    """Return the program that ships, with a budget that so many customers do not use up."""
    return read(NAME).replace("amount = 2000,", "amount = 20000000,")


async def enrol(served: Served, *, customers: int, wave: int) -> None:
    """Put customers back to where they were: of all stages, with a little history, and nothing pending."""
    at = NOON + wave * WEEK
    people = populate(served.program, WORLDS["demo"], customers=customers, seed=1, start=NOON)
    async with await Store.open(served.url) as store:
        commands = [_enrolled(served.program, f"c{i}", people.attributes_of(i), at=at) for i in range(customers)]
        for start in range(0, customers, 1_000):
            await store.commands(commands[start : start + 1_000])


def _enrolled(
    program: Program, name: str, attributes: Mapping[str, Scalar], *, at: float
) -> tuple[str | bytes | int, ...]:
    number = int(name[1:])
    sent = Sent(
        decision_id=f"before-{number}",
        incentive=program.space.incentives[number % 7],
        deliver_at=at - 3 * DAY,
        day=int((at - 3 * DAY) // DAY),
        cost=0,
        period=0,
        expires_at=at - 2 * DAY,
    )
    journey = {
        "customer_id": "",
        "enrolled_at": at - 30 * DAY,
        "stage": program.stages[number % len(program.stages)].name,
        "steps": Decayed(2.0, at - DAY),
        "nudges": Decayed(1.0, at - 3 * DAY),
        "streak": number % 5,
        "streak_day": int(at // DAY) - 1,
        "counts": {"workout_done": number % 9, "app_opened": number % 30},
        "sent": (sent,),
        "last_step_at": at - DAY,
    }
    profile = records.Profile(consent=True, time_zone="Europe/Paris", attributes=dict(attributes))
    key = records.customer_key(0, name)
    fields = ("rev", 1, "profile", records.encode(profile), records.journey_field(NAME), records.encode(journey))
    return ("HSET", key, *fields)


def bodies(*, customers: int, wave: int, rows: int = 1) -> list[bytes]:
    """Return a request for each customer of a wave, or one for each so many."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOON + wave * WEEK))
    asks = [
        {"program": NAME, "customer_id": f"c{i}", "context": {"channel": "push"}, "at": at} for i in range(customers)
    ]
    if rows == 1:
        return [msgspec.json.encode(ask) for ask in asks]
    return [msgspec.json.encode({"requests": asks[i : i + rows]}) for i in range(0, customers, rows)]


# What runs.


def learned(kind: str, program: Program) -> Policy:
    """Return a policy that has seen ten days of a thousand customers."""
    policy: Policy = SquareCB(program.space) if kind == "squarecb" else Thompson(program.space)
    people = populate(program, WORLDS["demo"], customers=1_000, seed=2, start=NOON)
    policy.learn(rollout(people, sole(Thompson(program.space)), days=10).rounds)
    return policy


@contextmanager
def service(folder: Path, *, workers: int = 1) -> Iterator[Served]:
    """Run `nudge serve` on a folder of its own."""
    (folder / "programs").mkdir(parents=True, exist_ok=True)
    (folder / "programs" / f"{NAME}.toml").write_text(program_text(), encoding="utf-8")
    port = _free_port()
    words = ["-m", "serving.cli", "serve", "--no-follow", "--simulated", "--port", str(port), "--workers", str(workers)]
    environment = {**_environment(), "NUDGE_HOME": str(folder), "NUDGE_RATE": "1e9", "NUDGE_LOG": "warning"}
    with running(words, port=port, path="/readyz", environment=environment) as pid:
        program = Program.parse(program_text(), source=f"{NAME}.toml")
        url = embedded.Server(folder / "store").url
        yield Served(port, folder, url, _family(pid), program)


@contextmanager
def empty_handler(*, http: str = "httptools") -> Iterator[Answering]:
    """Run the empty handler under the same server and options."""
    port = _free_port()
    words = ["-m", "uvicorn", "benchmarks.load:empty", "--factory", "--port", str(port), "--loop", "uvloop"]
    words += ["--http", http, "--no-access-log", "--no-server-header", "--log-level", "warning"]
    with running(words, port=port, path="/openapi.json", environment=_environment()) as pid:
        yield Answering(port, (pid,))


async def promote(served: Served, policy: Policy, *, version: str) -> None:
    """Publish a policy and wait until it serves."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        secret = publishing.secret(Settings(home=served.home).secret_file)
        async with await Store.open(served.url) as store:
            await publishing.publish(store, Path(folder), Slot(NAME, CHAMPION), version=version, secret=secret)
    while f'version="{version}"' not in _get(served.port, "/metrics"):  # noqa: ASYNC110  (another process's)
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.5)  # every worker looks once a second


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "MLFLOW_TRACKING_URI")}
    return {**kept, "PYTHONPATH": str(HOME), "OPENBLAS_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30.0) as answer:
        return str(answer.read().decode())


def _family(pid: int) -> tuple[int, ...]:
    """Return the processes of `nudge serve` that answer: its workers, or itself."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"multiprocessing" in name and b"spawn_main" in name:
                parents[int(entry.name)] = int(words[1])
    return tuple(child for child, parent in parents.items() if parent == pid) or (pid,)


# Measuring.


class Bench:
    """A service, an empty handler, another that sends as the service does, and who asks them, in turns."""

    def __init__(
        self, served: Served, peer: Answering, ask: Callable[[Wave], Heard], sizes: Sizes, *, alike: Answering
    ) -> None:
        self.served, self.peer, self.alike, self.ask, self.sizes = served, peer, alike, ask, sizes
        self.wave = 0

    def ours(
        self, *, connections: int, rows: int = 1, rate: float = 0.0, seconds: float = 0.0, sure: bool = True
    ) -> Heard:
        """Ask the service, about customers that have just been put back; be sure that all are decided.

        A wave in which the machine was away for so long that some were not is said, and asked again.
        """
        for _ in range(_TRIES):
            heard = self._ours(connections=connections, rows=rows, rate=rate, seconds=seconds)
            if not (sure and heard.bad + heard.degraded):
                return heard
            print(f"{heard.bad} answers were not 200 and {heard.degraded} were degraded: again", flush=True)
        raise RuntimeError(f"none of {_TRIES} waves was answered whole: nothing to report")

    def _ours(self, *, connections: int, rows: int, rate: float, seconds: float) -> Heard:
        self.wave += 1
        customers = self.sizes.customers
        asyncio.run(enrol(self.served, customers=customers, wave=self.wave))
        path = "/v1/decide" if rows == 1 else "/v1/decide/batch"
        asked = bodies(customers=customers, wave=self.wave, rows=rows)
        wave = Wave(self.served.port, path, asked, connections, seconds or self.sizes.seconds, rate)
        return self._heard(wave, pids=self.served.pids)

    def empty(self, *, connections: int, rate: float = 0.0, alike: bool = False) -> Heard:
        """Ask an empty handler the same; the one that sends as the service does, where it is to be alike."""
        peer = self.alike if alike else self.peer
        asked = bodies(customers=self.sizes.customers, wave=self.wave)
        wave = Wave(peer.port, "/v1/decide", asked, connections, self.sizes.seconds, rate)
        return self._heard(wave, pids=peer.pids)

    def _heard(self, wave: Wave, *, pids: Sequence[int]) -> Heard:
        before = _processor_seconds(pids)
        heard = self.ask(wave)
        return heard._replace(busy=_processor_seconds(pids) - before)

    def pairs(self, *, connections: int) -> list[tuple[Heard, Heard]]:
        """Return what came of the service and of the empty handler, wave by wave."""
        found = []
        for i in range(self.sizes.waves):
            both = {0: lambda: self.ours(connections=connections), 1: lambda: self.empty(connections=connections)}
            heard = {kind: both[kind]() for kind in ((0, 1) if i % 2 else (1, 0))}
            found.append((heard[0], heard[1]))
        return found

    def alike_rate(self, *, connections: int) -> float:
        """Return the answers a second of the empty handler that sends as the service does."""
        waves = range(self.sizes.waves)
        return statistics.median(self.empty(connections=connections, alike=True).rate for _ in waves)


def throughput(bench: Bench, kind: str) -> Iterator[Row]:
    """Yield how many decisions a second, beside the empty handler."""
    for connections in (16, 64):
        before = _counts(bench.served.port)
        found = bench.pairs(connections=connections)
        yield from stages(kind, connections, before=before, after=_counts(bench.served.port))
        yield _processor_time(found, kind=kind, connections=connections)
        ratio = statistics.median(ours.rate / empty.rate for ours, empty in found)
        yield _row(
            f"decisions a second, {TITLES[kind]}, {connections} connections",
            statistics.median(ours.rate for ours, _ in found),
            peer=statistics.median(empty.rate for _, empty in found),
            peer_name=EMPTY,
            unit="/s",
            ratio=ratio,
            target=f">= {TARGETS[kind]}",
            met=ratio >= TARGETS[kind],
        )
        alike, ours = bench.alike_rate(connections=connections), statistics.median(ours.rate for ours, _ in found)
        yield _row(
            f"decisions a second, {TITLES[kind]}, {connections} connections, beside one that sends alike",
            ours,
            peer=alike,
            peer_name=f"{EMPTY} that sends in one piece",
            unit="/s",
            ratio=ours / alike,
            target="shown",
            met=True,
        )


def _processor_time(found: Sequence[tuple[Heard, Heard]], *, kind: str, connections: int) -> Row:
    """Return what a decision takes of the API's processor: what else runs on a machine weighs less on it."""
    each = [(1e6 * ours.busy / len(ours.latencies), 1e6 * empty.busy / len(empty.latencies)) for ours, empty in found]
    return _row(
        f"the API's processor time a decision, {TITLES[kind]}, {connections} connections",
        statistics.median(ours for ours, _ in each),
        peer=statistics.median(empty for _, empty in each),
        peer_name=EMPTY,
        unit="µs",
        ratio=statistics.median(ours / empty for ours, empty in each),
        target="shown",
        met=True,
    )


def stages(kind: str, connections: int, *, before: dict[str, float], after: dict[str, float]) -> Iterator[Row]:
    """Yield the time that a batch spends in each stage of deciding, by the service's own metrics."""
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    for stage in STAGES:
        seconds, batches = used.get(f"seconds:{stage}", 0.0), used.get(f"count:{stage}", 0.0)
        if batches:
            rows = used["rows"] / used["batches"]
            name = f"{stage}, {TITLES[kind]}, {connections} connections, of a batch of {rows:.0f}"
            yield _row(name, 1e6 * seconds / batches, unit="µs", target="shown", met=True)


def batches(bench: Bench, _kind: str) -> Iterator[Row]:
    """Yield how many decisions a second come in requests of 500."""
    callers = {64: 3.0, 1: 3.0}
    single: dict[int, list[float]] = {connections: [] for connections in callers}
    many = []
    for _ in range(bench.sizes.waves):
        for connections, rates in single.items():
            rates.append(bench.ours(connections=connections).rate)
        many.append(500 * bench.ours(connections=2, rows=500).rate)
    for connections, least in callers.items():
        ratio = statistics.median(m / s for m, s in zip(many, single[connections], strict=True))
        yield _row(
            "decisions a second in batches of 500",
            statistics.median(many),
            peer=statistics.median(single[connections]),
            peer_name=f"single calls, {connections} connection{'s' if connections > 1 else ''}",
            unit="/s",
            ratio=ratio,
            target=f">= {least:g}",
            met=ratio >= least,
        )


def tails(bench: Bench, _kind: str) -> Iterator[Row]:
    """Yield the slowest hundredth at half of the service's full load, beside the empty handler's at the same load."""
    rate = bench.ours(connections=64).rate / 2
    found = []
    for _ in range(bench.sizes.waves):
        ours, empty = bench.ours(connections=64, rate=rate), bench.empty(connections=64, rate=rate)
        found.append((float(np.quantile(ours.latencies, 0.99)), float(np.quantile(empty.latencies, 0.99))))
    yield _row(
        f"p99 at half of full load, {rate:.0f} a second",
        1e3 * statistics.median(ours for ours, _ in found),
        peer=1e3 * statistics.median(empty for _, empty in found),
        peer_name=EMPTY,
        unit="ms",
        ratio=statistics.median(ours / empty for ours, empty in found),
        target="shown: a decision waits for the batch under way, then for two turns of the store, one of them fsynced",
        met=True,
    )


def memory(bench: Bench, _kind: str) -> Iterator[Row]:
    """Yield what the process has grown by over many decisions, once the first fifth has warmed it up.

    They are asked for a hundred at once, to be through sooner. On a machine that is busy with other things some are
    degraded: they are answered like the others, and not counted.
    """
    done, marks = 0, []
    while done < bench.sizes.million:
        heard = bench.ours(connections=4, rows=_AT_ONCE, seconds=60.0, sure=False)
        done += _AT_ONCE * (len(heard.latencies) - heard.bad - heard.degraded)
        marks.append(sum(_resident(pid) for pid in bench.served.pids))
        print(f"{done:,} decisions: {marks[-1]:.1f} MiB", flush=True)
    early = marks[max(len(marks) // 5, 0)]
    grown = (marks[-1] - early) / early
    yield _row(
        f"growth of memory over {done:,} decisions, from {early:.0f} MiB",
        100 * grown,
        unit="%",
        target="at most 5",
        met=grown <= 0.05,
    )


async def broken(served: Served) -> int:
    """Return how many nudges of the log came to a customer within the cooldown after another."""
    count = 0
    last: dict[str, float] = {}
    async with await Store.open(served.url) as store:
        for entry in await fresh(store, 0, most=10_000_000):
            if isinstance(entry.event, Decision) and entry.event.deliver_at is not None:
                who, at = entry.event.customer_id, entry.event.deliver_at
                count += at - last.get(who, -np.inf) < served.program.guardrails.cooldown
                last[who] = max(at, last.get(who, -np.inf))
    return count


def _counts(port: int) -> dict[str, float]:
    """Return the sums and counts of the decide path's histograms."""
    found = {"rows": 0.0, "batches": 0.0}
    for line in _get(port, "/metrics").splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("nudge_decide_stage_seconds_") and f'program="{NAME}"' in name:
            kind = name.removeprefix("nudge_decide_stage_seconds_").partition("{")[0]
            stage = name.partition('stage="')[2].partition('"')[0]
            if kind in ("sum", "count"):
                found[f"{'seconds' if kind == 'sum' else 'count'}:{stage}"] = float(value)
        elif name.startswith("nudge_decide_batch_rows_sum{") and f'program="{NAME}"' in name:
            found["rows"] = float(value)
        elif name.startswith("nudge_decide_batch_rows_count{") and f'program="{NAME}"' in name:
            found["batches"] = float(value)
    return found


def _processor_seconds(pids: Sequence[int]) -> float:
    """Return the seconds of processor time that processes have used."""
    ticks = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])  # in user mode, in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    words = Path(f"/proc/{pid}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def _row(
    name: str,
    ours: float,
    *,
    unit: str,
    target: str,
    met: bool,
    peer: float | None = None,
    peer_name: str | None = None,
    ratio: float | None = None,
) -> Row:
    beside = f" beside {peer:,.4g} of {peer_name}: {ratio:.2f}" if peer is not None and ratio is not None else ""
    print(f"{name}: {ours:,.4g} {unit}{beside} ({target})", flush=True)
    return Row(
        name=name, ours=ours, peer=peer, peer_name=peer_name, unit=unit, ratio=ratio, target=target, met=bool(met)
    )


# Everything.


def single(sizes: Sizes, kinds: Sequence[str], parts: Sequence[str]) -> Iterator[Row]:
    """Yield what one API process does: each part on a store of its own, whose log nobody archives meanwhile."""
    measures = {"throughput": throughput, "batch": batches, "tail": tails, "million": memory}
    for part, measured in measures.items():
        for kind in (kinds if part == "throughput" else kinds[-1:]) if part in parts else ():
            with _bench(kind, sizes) as bench:
                yield from measured(bench, kind)


@contextmanager
def _bench(kind: str, sizes: Sizes) -> Iterator[Bench]:
    """Run a service with a policy that has learned, and the empty handlers, warm."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nudge-bench-")))
        ask = stack.enter_context(clients())
        peer, alike = (stack.enter_context(empty_handler(http=http)) for http in ("httptools", "serving.wire:Protocol"))
        served = stack.enter_context(service(folder))
        asyncio.run(promote(served, learned(kind, served.program), version=f"{kind}-1"))
        bench = Bench(served, peer, ask, sizes, alike=alike)
        bench.ours(connections=64, seconds=2.0), bench.empty(connections=64)  # warm
        yield bench


def double(sizes: Sizes) -> Iterator[Row]:
    """Yield what two API processes on one store do, beside one."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    violations = 0
    with ExitStack() as stack:
        ask = stack.enter_context(clients())
        benches = {}
        for workers in rates:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nudge-bench-")))
            served = stack.enter_context(service(folder, workers=workers))
            asyncio.run(promote(served, learned("thompson", served.program), version="thompson-1"))
            benches[workers] = Bench(served, Answering(0, ()), ask, sizes, alike=Answering(0, ()))
            benches[workers].ours(connections=64, seconds=2.0)
        for _ in range(sizes.waves):
            for workers, bench in benches.items():
                rates[workers].append(bench.ours(connections=64).rate)
        violations = asyncio.run(broken(benches[2].served))
    ratio = statistics.median(two / one for two, one in zip(rates[2], rates[1], strict=True))
    yield _row(
        "decisions a second of two API processes on one store",
        statistics.median(rates[2]),
        peer=statistics.median(rates[1]),
        peer_name="one API process",
        unit="/s",
        ratio=ratio,
        target=">= 0.9",
        met=ratio >= 0.9,
    )
    yield _row("caps broken by two processes", violations, unit="", target="none", met=violations == 0)


def main(words: Sequence[str] = ()) -> None:
    """Measure and write the rows; with words, as much as they say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a wave")
    parser.add_argument("--waves", type=int, default=12, help="of each kind")
    parser.add_argument("--customers", type=int, default=12_000)
    parser.add_argument("--decisions", type=int, default=1_000_000, help="of the part `million`: watches memory")
    parser.add_argument("--kind", dest="kinds", action="append", choices=list(TARGETS))
    parts = ("throughput", "batch", "tail", "workers")
    parser.add_argument("--part", dest="parts", action="append", choices=(*parts, "million"))
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    asked = parser.parse_args(words)
    sizes = Sizes(asked.seconds, asked.waves, asked.customers, asked.decisions)
    chosen = asked.parts or parts
    if "million" in chosen and len(chosen) > 1:
        parser.error("--part million is measured alone: it takes long, and is written to a file of its own")
    found: list[Row] = []
    if set(chosen) - {"workers"}:
        found += single(sizes, asked.kinds or tuple(TARGETS), chosen)
    if "workers" in chosen:
        found += double(sizes)
    load = os.getloadavg()[1]
    found.append(
        _row(
            "load of the machine meanwhile", load, unit="", target="shown: the benchmark itself makes about 2", met=True
        )
    )
    if not asked.dry:
        write("memory" if "million" in chosen else "serving", found)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
