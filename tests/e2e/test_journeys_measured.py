"""Rows of docs/journeys.md that are measured: what `nudge report`, `train`, `evaluate` and `promote` say of a log."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest

from optimizer.engine import EVALUATION
from optimizer.program import Program
from serving.loop import asked
from tests.e2e.house import Row, rows, run
from tests.training.lived import Life, lived, text
from training import dataset, record
from training.scorecard import scorecard
from training.train import split

STEADY = Life(step=0.25, goal=0.0, goal_lift=0.0, leaves=0.0, redeems=0.0)
"""Customers of whom nothing but their steps depends on a nudge: little noise."""

PROTECTED = '\n[fairness]\nprotect = ["plan"]\ncustomers = 20\n'


@dataclass
class Log:
    """A folder with the log of a small program that was lived through, and what commands say of it, each once."""

    home: Path

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command in the folder, and return what it prints."""
        return run(self.home, *words, code=code)

    def read(self, *words: str) -> Any:
        """Run a command, and return what it prints as JSON."""
        return msgspec.json.decode(self.run(*words, "--json"))

    def lived(self, life: Life, *, customers: int, days: int, seed: int, extra: str = "") -> "Log":
        """Live through it, with the program where commands find it."""
        programs, toml = self.home / "var" / "programs", text() + extra
        programs.mkdir(parents=True)
        (programs / "small.toml").write_text(toml)
        lived(self.home / "var" / "archive", toml=toml, customers=customers, days=days, seed=seed, life=life)
        return self

    @cached_property
    def report(self) -> Any:
        """The scorecard of the log, by `nudge report`."""
        self.lived(Life(wear=0.4), customers=220, days=24, seed=3)
        return self.read("report", "small", "--days", "8", "--protect", "plan")

    @property
    def card(self) -> Any:
        """The figures of that report."""
        return self.report["scorecard"]

    def beside(self, name: str) -> "Log":
        """Another log, in a folder of its own."""
        return Log(self.home / name)

    @cached_property
    def unjust(self) -> "Log":
        """One in which nudges harm gold customers: a policy that learns leaves them out, and plans are protected."""
        life = replace(STEADY, lift=0.6, harm=0.25)
        return self.beside("unjust").lived(life, customers=260, days=20, seed=3, extra=PROTECTED)

    @cached_property
    def trained(self) -> Any:
        """What `nudge train` made of that one."""
        return self.unjust.read("train", "small", "--kind", "thompson")

    @cached_property
    def evaluated(self) -> Any:
        """What `nudge evaluate` found of it."""
        assert self.trained
        return self.unjust.read("evaluate", "small")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """One log for all rows."""
    return Log(tmp_path_factory.mktemp("log"))


CHECKS: dict[str, Callable[[Log], None]] = {}


def check(function: Callable[[Log], None]) -> Callable[[Log], None]:
    """Make a function a check that rows of the table may name."""
    CHECKS[function.__name__] = function
    return function


# 1. The behavioral-momentum journey.


@check
def drop_off_is_told_stage_by_stage(log: Log) -> None:
    active = next(s for s in log.card["funnel"] if s["stage"] == "active")
    assert 0.0 < active["dropped"]["low"] < active["dropped"]["value"] < active["dropped"]["high"] < 1.0
    log.run("program", "show", "small", "--log", "--map", "lived.html")
    assert "drop" in (log.home / "lived.html").read_text(encoding="utf-8")


@check
def surveys_are_counted_and_silence_is_not_zero(log: Log) -> None:
    overview = log.card["overview"]
    assert 2.0 < overview["csat"]["low"] < overview["csat"]["high"] < 4.0
    assert overview["csat_responses"]["value"] > 20
    assert overview["nps_response_rate"]["value"] < 1.0


@check
def a_policy_is_retrained_from_the_log(log: Log) -> None:
    """`nudge train` fits a policy to what was archived, registers it, and `nudge evaluate` judges it.

    Customers of the evaluation arm are only judged on.
    """
    (candidate,) = log.trained["candidates"]
    assert candidate["kind"] == "thompson"
    assert 100 < candidate["rounds"] < log.trained["decisions_seen"]
    assert (
        candidate["memory"] == f"All {candidate['rounds']:,} rounds count: no change of what moves customers was found."
    )
    archive, program = log.unjust.home / "var" / "archive", Program.parse(text(), source="small.toml")
    seen = record.load(archive, program)
    apart = {name for name, arm in zip(seen.customers, seen.arms, strict=True) if arm == EVALUATION}
    halves = split(dataset.load(archive, program, arms="judging"))
    learned_on, judged_on = ({d.customers[i] for i in d.rounds.customers} for d in halves)
    assert len(halves.earlier) == candidate["rounds"]
    assert not learned_on & apart
    assert judged_on & apart
    assert len(halves.later) == log.evaluated["rounds"]
    judged = {v["policy"]: v for v in log.evaluated["values"]}
    assert judged["thompson"]["version"] == candidate["version"]
    assert judged["thompson"]["low"] < judged["thompson"]["value"] < judged["thompson"]["high"]


# 2. Small wins.


@check
def conversion_csat_and_nps_are_told_by_stage(log: Log) -> None:
    for stage in log.card["funnel"]:
        assert {"advanced", "dropped", "time", "csat", "nps"} <= set(stage)
    active = next(s for s in log.card["funnel"] if s["stage"] == "active")
    assert 1.0 <= active["csat"]["value"] <= 5.0
    assert -100.0 <= active["nps"]["low"] <= active["nps"]["high"] <= 100.0
    assert active["time"]["value"] or active["time"]["missing"]


@check
def what_a_change_brings_has_an_interval(log: Log) -> None:
    lift = log.card["lift"]["program"][0]
    assert lift["always"]["low"] < lift["fixed"]["low"] < lift["fixed"]["high"] < lift["always"]["high"]
    assert "holdout" in lift["fixed"]["of"]


@check
def the_report_is_kept_in_mlflow(log: Log) -> None:
    run = log.report["run"]
    with sqlite3.connect(log.home / "mlruns" / "mlflow.db") as store:
        named = dict(store.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (run,)).fetchall())
        (where,) = store.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run,)).fetchone()
    assert {"participation", "participation_low", "participation_high"} <= set(named)
    folder = Path(where.removeprefix("file://"))
    assert "At a glance" in (folder / "scorecard.html").read_text(encoding="utf-8")
    assert (folder / "tables" / "figures.json").is_file()


@check
def a_period_and_a_policy_can_be_asked_for(log: Log) -> None:
    assert log.card["days"] == 8.0  # as the command line was told
    assert log.card["fairness"]["limits"]["attributes"] == ["plan"]
    program = Program.parse(text(), source="small.toml")
    week = asked(since="2026-01-10", until="2026-01-16", policy="uniform", arm="champion", days=4.0)
    short = scorecard(log.home / "var" / "archive", program, week)
    assert 0 < short.decisions < log.card["decisions"]
    assert (short.since, short.until, short.days) == (1_768_003_200.0, 1_768_521_600.0, 4.0)
    with pytest.raises(ValueError, match="'soon' is no day"):
        asked(since="soon", until=None)


# 5. Micro-incentives.


@check
def fairness_is_a_gate_with_reasons(log: Log) -> None:
    gate = log.card["fairness"]
    assert gate["status"] in ("pass", "warn", "fail")
    assert gate["reasons"][0]["text"]
    plans = {g["segment"]: g for g in gate["groups"] if g["attribute"] == "plan"}
    assert set(plans) == {"free", "gold"}
    assert plans["gold"]["exposure"]["value"] > 0
    assert plans["gold"]["value"]["low"] < plans["gold"]["value"]["high"]
    judged = log.evaluated
    assert any("is better than" in reason for reason in judged["reasons"])
    kept = log.unjust.read("promote", "small")  # better on the whole, and some customers pay for it
    assert (kept["verdict"], kept["promoted"]) == ("keep", False)
    assert any("plan = gold: is nudged 0." in reason and "fairness" in reason for reason in kept["reasons"])
    assert kept["champion"].startswith("uniform")


@check
def participation_redemption_and_time_are_measured(log: Log) -> None:
    overview = log.card["overview"]
    assert 0.5 < overview["participation"]["low"] <= overview["participation"]["value"]
    assert 0.2 < overview["redeemers"]["value"] <= 1.0
    badge = next(i for i in log.card["incentives"] if i["incentive"] == "badge")
    assert badge["rate"]["low"] < 0.4 < badge["rate"]["high"] + 0.03
    assert badge["time"]["low"] <= badge["time"]["value"] <= badge["time"]["high"]


@check
def signs_of_leaving_are_measured(log: Log) -> None:
    churn = log.card["churn"]
    assert {"unsubscribed", "complained", "inactive", "falling_momentum"} <= set(churn)
    assert 0.0 < churn["unsubscribed"]["low"] < churn["unsubscribed"]["high"] < 1.0


@check
def small_now_is_compared_with_larger_later(log: Log) -> None:
    sizes = [(t["ladder"], t["tier"]) for t in log.card["tiers"]]
    assert sizes == [("reward", 1), ("reward", 2)]
    larger = log.card["tiers"][1]["over_smaller"]
    assert larger["low"] < larger["value"] < larger["high"]
    (pays,) = log.card["thresholds"]
    assert pays["ladder"] == "reward"
    assert (pays["tier"] is not None) == (pays["adds"]["low"] > 0)
    assert pays["says"]


@check
def relevance_is_reported_for_each_touch_point(log: Log) -> None:
    """The log's policy chose by chance: the context moved nothing, and the report says so, one by one."""
    found = log.card["relevance"]
    points = {(p["stage"], p["incentive"], p["tone"]): p for p in found["touch_points"]}
    assert {("active", "coupon", "warm"), ("new", "badge", "playful")} <= set(points)
    moved = points["active", "badge", "warm"]["moved"]
    assert 0.0 <= moved["low"] <= moved["value"] <= moved["high"] < 0.02
    assert {s["stage"] for s in found["stages"]} == {"new", "active", "quiet"}


@check
def every_segment_has_its_figures(log: Log) -> None:
    rows_ = [s for s in log.card["segments"] if s["attribute"] == "plan"]
    assert {s["segment"] for s in rows_} == {"free", "gold"}
    assert all(s["participation"]["value"] and s["exposure"]["value"] for s in rows_)


@check
def what_a_further_goal_costs_is_said_or_refused(log: Log) -> None:
    cost = log.card["lift"]["cost_per_goal"]
    assert (cost["value"] is None) == ("cannot say" in cost["missing"])
    assert cost["value"] is None or cost["low"] < cost["value"] < cost["high"]


@check
def what_wears_out_is_told_with_what_to_rotate_to(log: Log) -> None:
    worn = log.beside("worn").lived(replace(STEADY, step=0.2, lift=0.3, wear=0.35), customers=450, days=20, seed=1)
    wear = {w["incentive"]: w for w in worn.read("report", "small")["scorecard"]["wear"]}
    assert set(wear) == {"badge", "coupon", "gift"}
    assert wear["coupon"]["by_exposure"]["high"] < 0  # coupons wear in this log, and badges do not
    assert wear["coupon"]["rotate_to"] == "badge"
    assert not wear["badge"]["worn"]
    assert all(w["advice"] for w in wear.values())


@pytest.mark.parametrize(
    "row", [r for r in rows() if r.check in CHECKS], ids=lambda row: f"{row.check}: {row.asks[:40]}"
)
def test_each_row_is_run(row: Row, log: Log) -> None:
    CHECKS[row.check](log)
