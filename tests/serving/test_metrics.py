"""What is measured: by stage, by worker, and what a dashboard and alerts can stand on."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]

from policies.fixed import Hold
from serving import auth, embedded, publishing
from serving.metrics import STAGES, Metrics, bury
from serving.publishing import Slot
from serving.rates import Buckets
from serving.settings import Settings
from serving.store import Store
from tests.e2e.running import call, served, wait_until
from tests.serving.running import Client, Running, running, until, write_program
from tests.small_program import OPEN, small

ROOT = Path(__file__).parents[2]

SPENDING = """
[guardrails.budget]
amount = 90.0
period = "52w"
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    write_program(home, extra=OPEN + SPENDING)
    with embedded.serve(home / "store") as server, running(Settings(home=home, redis_url=server.url)) as service:
        yield service


@pytest.fixture
async def client(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


def value(service: Running, name: str, **labels: str) -> float:
    return service.service.metrics.registry.get_sample_value(name, labels) or 0.0


async def look(service: Running) -> None:
    """Have the service measure now what it measures every few seconds."""
    loop = service.service._tasks["_look"].get_loop()
    programs = [d.program for d in service.service.deciders.values()]
    work = service.service.vitals.look(service.service._store, programs)
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


async def test_every_stage_of_the_decide_path_has_its_time(client: Client, service: Running) -> None:
    await asyncio.gather(*(client.decide(f"staged-{i}") for i in range(40)))
    seen = {s: value(service, "nudge_decide_stage_seconds_sum", program="small", stage=s) for s in STAGES}
    assert all(seconds > 0 for seconds in seen.values()), seen


async def test_entropy_is_the_share_of_the_largest_possible(client: Client, service: Running) -> None:
    labels = {"program": "small", "arm": "champion"}
    service.service.metrics.take_entropy()
    rows, total = (value(service, f"nudge_entropy{n}_total", **labels) for n in ("_rows", ""))
    await client.decide("even", only={"incentive": ["badge"]})
    service.service.metrics.take_entropy()
    rows = value(service, "nudge_entropy_rows_total", **labels) - rows
    total = value(service, "nudge_entropy_total", **labels) - total
    p = np.array([0.05 + 0.9 / 3, *[(1 - 0.05 - 0.9 / 3) / 4] * 4])  # hold, and four nudges alike
    assert rows == 1
    assert total == pytest.approx(-(p * np.log(p)).sum() / np.log(5), rel=0.02)


async def test_a_policy_that_always_does_the_same_shows_as_a_collapse(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(home=tmp_path, redis_url=server.url, follow_seconds=0.02)
        with running(settings) as service:
            folder = tmp_path / "saved"
            folder.mkdir()
            Hold(small().space).save(folder)
            async with await Store.open(server.url) as store:
                secret = publishing.secret(settings.secret_file)
                await publishing.publish(store, folder, Slot("small", "champion"), version="7", secret=secret)
            until(lambda: service.service.deciders["small"].choosers["champion"].version == "7")
            async with aiohttp.ClientSession(service.url) as session:
                await Client(session).decide("ada")
            service.service.metrics.take_entropy()
            labels = {"program": "small", "arm": "champion"}
            share = value(service, "nudge_entropy_total", **labels) / value(
                service, "nudge_entropy_rows_total", **labels
            )
    assert share < 0.25, "the floor alone keeps it above 0"


async def test_budget_backlog_and_joined_outcomes_are_measured_now_and_then(client: Client, service: Running) -> None:
    for i in range(30):
        await client.decide(f"spent-{i}")
    row = {"program": "small", "event": "step"}
    late = {**row, "outcome_id": "old", "customer_id": "spent-1", "at": "2020-01-01T00:00:00Z"}
    await client.ask("POST", "/v1/outcomes", [{**row, "outcome_id": "new", "customer_id": "spent-0"}, late])
    joined = [value(service, "nudge_outcome_joins_total", program="small", joined=j) for j in ("yes", "no")]
    await look(service)
    now = [value(service, "nudge_outcome_joins_total", program="small", joined=j) for j in ("yes", "no")]
    assert [b - a for a, b in zip(joined, now, strict=True)] == [1, 1]
    assert value(service, "nudge_budget_amount", program="small") == 90.0
    assert 0 <= value(service, "nudge_budget_left", program="small") <= 90.0
    assert value(service, "nudge_stock_left", program="small", incentive="gift") == 2
    assert value(service, "nudge_stream_backlog") >= 32
    assert 0 < value(service, "nudge_disk_free_ratio") <= 1


async def test_readiness_knows_its_parts(client: Client) -> None:
    ready = await client.ask("GET", "/readyz")
    parts = ready.json["parts"]
    assert set(parts) >= {"store", "log", "tasks", "programs", "policy:small", "archive", "follower", "disk"}
    assert ready.status == 200
    assert parts["follower"]["warning"]
    assert "nudge follow" in parts["follower"]["detail"]


def test_what_a_worker_that_ended_left_behind_is_no_queue(tmp_path: Path) -> None:
    ended = os.spawnlp(os.P_WAIT, "true", "true")
    assert ended == 0
    dead, mine = tmp_path / "gauge_livesum_999999999.db", tmp_path / f"gauge_livesum_{os.getpid()}.db"
    counted = tmp_path / "counter_999999999.db"
    for file in (dead, mine, counted):
        file.touch()
    bury(tmp_path)
    assert [f.exists() for f in (dead, mine, counted)] == [False, True, True]


# Several workers.


def counted(url: str, headers: dict[str, str], name: str) -> float:
    """The sum of a metric over its labels, as one scrape gives it."""
    import urllib.request

    with urllib.request.urlopen(urllib.request.Request(f"{url}/metrics", headers=headers), timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{| )", line))


def workers_of(url: str, home: Path) -> set[int]:
    (folder,) = (home / "var" / "run").glob("[0-9]*")
    return {int(f.stem.rpartition("_")[2]) for f in folder.glob("counter_*.db")}


def test_metrics_and_rates_of_several_workers_add_up_and_outlive_one_that_is_killed(tmp_path: Path) -> None:
    token = auth.create(tmp_path / "var" / "keys.json", "app", scopes=["decide"])
    os.environ["NUDGE_RATE"] = "5"
    try:
        with served(tmp_path, "--workers", "2") as url:
            headers = {"Authorization": f"Bearer {token}"}
            started = time.monotonic()
            made, refused = asyncio.run(_flood(url, headers))
            assert made + refused == 300
            most = 10 + 5 * (time.monotonic() - started) + 1
            assert made <= most, "both workers take from one bucket of 10 that fills by 5 a second"
            assert counted(url, headers, "nudge_requests_total") >= 300
            assert {counted(url, headers, "nudge_decisions_total") for _ in range(20)} == {made}
            wait_until(lambda: len(workers_of(url, tmp_path)) == 2, what="both workers to have counted")
            victim = min(workers_of(url, tmp_path))
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: _answers(url) and counted(url, headers, "nudge_decisions_total") == made, what="the sum")
        assert not list((tmp_path / "var" / "run").glob("[0-9]*"))
    finally:
        del os.environ["NUDGE_RATE"]


def _answers(url: str) -> bool:
    try:
        return call("GET", f"{url}/healthz")[0] == 200
    except OSError:
        return False


async def _flood(url: str, headers: dict[str, str]) -> tuple[int, int]:
    statuses = []

    async def one(number: int) -> None:
        async with aiohttp.ClientSession(url, headers=headers) as session:  # a connection of its own: either worker
            for i in range(15):
                body = {"program": "small-wins", "customer_id": f"c{number}-{i}"}
                async with session.post("/v1/decide", json=body) as response:
                    statuses.append(response.status)
                    await response.read()

    await asyncio.gather(*(one(n) for n in range(20)))
    return statuses.count(200), statuses.count(429)


def test_two_processes_share_what_a_key_may_send(tmp_path: Path) -> None:
    one, other = (Buckets(tmp_path / "rates", rate=10.0, most=20.0) for _ in range(2))
    for _ in range(10):
        assert one.take("app", 1, now=100.0) > 0
        assert other.take("app", 1, now=100.0) > 0
    assert one.take("app", 1, now=100.0) == 0
    assert other.take("crm", 1, now=100.0) == 20.0, "each key has its own"
    assert other.take("app", 1, now=100.5) == 5.0


# The dashboard and the alerts.


async def test_dashboard_and_alerts_stand_on_metrics_that_exist(client: Client, service: Running) -> None:
    await client.decide("shown", only={"incentive": []})
    await look(service)
    text = (await client.ask("GET", "/metrics")).raw.decode()
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    suffixed = families | {f"{f}_{s}" for f in families for s in ("bucket", "sum", "count")}
    expressions = [*_dashboard(), *(rule["expr"] for rule in _alerts())]
    named = {name for e in expressions for name in re.findall(r"\bnudge_[a-z_]+\b", e)}
    assert named <= suffixed, named - suffixed
    assert len(named) >= 15


def _dashboard() -> list[str]:
    dashboard: dict[str, Any] = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    panels = [p for p in dashboard["panels"] if p["type"] != "row"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert all(p["title"] and p["gridPos"]["w"] <= 24 for p in panels)
    return [target["expr"] for p in panels for target in p["targets"]]


def _alerts() -> list[dict[str, Any]]:
    read = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())
    rules = [rule for group in read["groups"] for rule in group["rules"]]
    assert {"NudgeEntropyCollapse", "NudgeOutcomesDoNotJoin", "NudgeDegraded"} <= {r["alert"] for r in rules}
    for rule in rules:
        assert {"summary", "description"} <= set(rule["annotations"]), rule["alert"]
    return rules


def test_counting_is_cheap_enough_to_do_for_each_batch() -> None:
    """A batch of 64 is counted in the time of a few hundred additions: nothing is taken row by row."""
    metrics, rows = Metrics(), [("champion", np.full(301, 1 / 301, dtype="<f4").tobytes())] * 64
    for _ in range(1_000):
        metrics.sample("small", rows)
    assert len(metrics._sampled) == metrics._sampled.maxlen
