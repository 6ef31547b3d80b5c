"""Every row of docs/journeys.md is run: what the texts ask for, on a running service, the command line and the log."""

import contextlib
import csv
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook

from optimizer.audit import check as audit
from optimizer.customer import Decayed, Sent
from optimizer.engine import Ask
from optimizer.guardrails import Shared
from optimizer.program import DAY, Program
from optimizer.programs import SHIPPED, read
from optimizer.values import journey_values
from policies.thompson import Thompson
from serving.cli import main
from serving.loop import asked
from tests.e2e.running import call, environment, nudge_json, served, wait_until
from tests.small_program import NOON, TOML, customer, optimizer, small
from tests.training.lived import Life, lived, text
from tests.training.worlds import made_up
from training.scorecard import scorecard

DOC = Path(__file__).parents[2] / "docs" / "journeys.md"
TODAY = time.time() // DAY * DAY + DAY / 2
"""Today's noon, UTC: out of the quiet hours, and near enough to the service's own clock for streaks and stages."""

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
BACK = (
    TOML.replace('name = "small"', 'name = "back"', 1).replace(
        'earns = "A badge as soon as you finish."', 'earns = "A badge as soon as you finish."\ncomeback_after = "2d"'
    )
    + '[guardrails]\nconsent = "opt-out"\nquiet_from = "00:00"\nquiet_until = "00:00"\n'
)
"""A small program that asks people back after two days, and that is edited while it runs."""

FITNESS, WINS, LOOP = "fitness-coaching", "small-wins", "loyalty-loop"


class Row(NamedTuple):
    """A row of the table: what is asked for, what shows it, and the name of the check."""

    asks: str
    shows: str
    check: str


def rows() -> list[Row]:
    """Return the rows of every table of the document."""
    lines = [line for line in DOC.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [Row(a, b, c.strip("`")) for a, b, c in cells if c.startswith("`")]


# What the checks run on: one service over the programs that ship, with a receiver of webhooks, and one log.


class _Receiver(BaseHTTPRequestHandler):
    """A CRM that refuses every message the first time."""

    taken: list[Any]
    tries: dict[str, int]

    def do_POST(self) -> None:
        body, name = self.rfile.read(int(self.headers["content-length"])), self.headers["webhook-id"]
        message = Webhook(SECRET).verify(body, dict(self.headers))
        self.tries[name] = self.tries.get(name, 0) + 1
        if self.tries[name] > 1:
            self.taken.append(message)
        self.send_response(204 if self.tries[name] > 1 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@dataclass
class House:
    """A service that answers at `url`, and a folder in which commands run. Times are days after today's noon."""

    url: str
    home: Path
    taken: list[Any]
    tries: dict[str, int]
    serial: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return what the service answers."""
        status, answer = call(method, f"{self.url}{path}", body)
        assert status < 300, answer
        return answer

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command in this process, in the house's folder, and return what it prints."""
        settings = {"NUDGE_HOME": environment(self.home)["NUDGE_HOME"], "REDIS_URL": None, "MLFLOW_TRACKING_URI": None}
        with contextlib.chdir(self.home):
            done = CliRunner(env=settings).invoke(main, list(words))
        assert done.exit_code == code, f"{words}: {done.output}\n{done.exception!r}"
        return done.stdout

    def welcome(self, name: str, **attributes: object) -> str:
        """Introduce a customer who agreed to be nudged; return an id of which the program holds nobody out."""
        self.ask("PUT", f"/v1/customers/{name}", {"consent": True, "time_zone": "UTC", "attributes": attributes})
        return name

    def served(self, program: str, **attributes: object) -> str:
        """Introduce a customer whom the program serves, not one of the holdout."""
        while True:
            name = self.welcome(f"c{next(self.serial)}", **attributes)
            if self.dry(name, program)["hold_reason"] != "holdout":
                return name

    def did(self, name: str, event: str, program: str, *, day: float = 0.0, **more: object) -> Any:
        """Report an event."""
        row = {"outcome_id": f"o{next(self.serial)}", "program": program, "customer_id": name, "event": event}
        answer = self.ask("POST", "/v1/outcomes", {**row, "at": _time(day), **more})
        assert answer["errors"] == []
        return answer

    def decide(self, name: str, program: str, *, day: float = 0.0, **more: object) -> Any:
        """Ask for a decision."""
        return self.ask("POST", "/v1/decide", {"program": program, "customer_id": name, "at": _time(day), **more})

    def dry(self, name: str, program: str, *, day: float = 0.0, **more: object) -> Any:
        """Ask what would be decided, and why not something else; nothing is written."""
        body = {"program": program, "customer_id": name, "at": _time(day), **more}
        return self.ask("POST", "/v1/decide/dry-run", body)

    def where(self, name: str, program: str) -> Any:
        """Return where a customer is."""
        return self.ask("GET", f"/v1/customers/{name}?program={program}")

    def only(self, name: str, program: str, *, day: float = 0.0, **levels: list[str]) -> Any:
        """Ask until a nudge with these levels comes."""
        for _ in range(60):
            answer = self.decide(name, program, day=day, only=levels, decision_id=f"d{next(self.serial)}")
            if answer["action"]:
                return answer
            assert answer["hold_reason"] == "chosen", answer
        raise AssertionError("the floor never drew a nudge")

    def declared(self) -> None:
        """Put the small program where commands find it."""
        programs = self.home / "var" / "programs"
        programs.mkdir(parents=True, exist_ok=True)
        (programs / "small.toml").write_text(text())

    @cached_property
    def trained(self) -> Any:
        """What `nudge train` made of that log, once."""
        assert self.report
        return msgspec.json.decode(self.run("train", "small", "--kind", "thompson", "--json"))

    @cached_property
    def evaluated(self) -> Any:
        """What `nudge evaluate` found of it, once."""
        assert self.trained
        return msgspec.json.decode(self.run("evaluate", "small", "--json"))

    @cached_property
    def report(self) -> Any:
        """The scorecard of a small program's log, by `nudge report`, made once."""
        self.declared()
        lived(self.home / "var" / "archive", customers=220, days=24, seed=3, life=Life(wear=0.4))
        return nudge_json("report", "small", "--days", "8", "--protect", "plan", home=self.home)

    @property
    def card(self) -> Any:
        """The figures of that report."""
        return self.report["scorecard"]


def _time(day: float) -> str:
    return str(np.datetime64(int(TODAY + day * DAY), "s")) + "Z"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("home")
    taken: list[Any] = []
    tries: dict[str, int] = {}
    with ExitStack() as stack:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Receiver", (_Receiver,), {"taken": taken, "tries": tries}))
        Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        (home / "var" / "programs").mkdir(parents=True)
        (home / "var" / "programs" / "back.toml").write_text(BACK)
        (home / "var" / "webhooks.toml").write_text(
            f'[[targets]]\nname = "crm"\nurl = "http://127.0.0.1:{server.server_port}/"\nsecret = "{SECRET}"\n'
            'events = ["decision.requested", "customer.progressed", "decision.made"]\n'
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("NUDGE_WEBHOOK_LOOPBACK", "1")
        patch.setenv("NUDGE_WEBHOOK_BACKOFF", "0.05")
        yield House(stack.enter_context(served(home, "--simulated")), home, taken, tries)


Check = Callable[[House], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Make a function a check that rows of the table may name."""
    CHECKS[function.__name__] = function
    return function


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.check}: {row.asks[:40]}")
def test_each_row_is_run(row: Row, house: House) -> None:
    CHECKS[row.check](house)


def test_every_row_has_a_check_and_every_check_a_row() -> None:
    assert {row.check for row in rows()} == set(CHECKS)
    assert len(rows()) > 60


def test_every_command_and_call_in_the_table_exists(house: House) -> None:
    paths = house.ask("GET", "/openapi.json")["paths"]
    known = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(p))) for p in paths]
    for row in rows():
        for method, path in re.findall(r"`(GET|PUT|POST) (/v1/[^`?]+)", row.shows):
            assert any(p.fullmatch(path) for p in known), f"{method} {path}"
        for words in re.findall(r"`nudge ([^`]+)`", row.shows):
            _exists(words.split())


def _exists(words: list[str]) -> None:
    command: click.Command = main
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    options = {name for p in command.params for name in p.opts}
    assert {w for w in words if w.startswith("--")} <= options, (command.name, words)


def _program(name: str) -> Program:
    return Program.parse(read(name), source=f"{name}.toml")


def _level(program: Program, name: str) -> Any:
    return next(i for i in program.incentives if i.name == name)


# 1. The behavioral-momentum journey.


@check
def a_goal_is_valued_back(house: House) -> None:
    for name in SHIPPED:
        program = _program(name)
        found = journey_values(program).values.value
        goal = program.event(program.goal)
        assert goal is not None
        assert goal.kind == "macro"
        assert goal.value > 0
        nearest = program.stage_index[next(iter(goal.moves.values()))]
        assert found[nearest] > found[0] > 0
    house.run("program", "show", FITNESS, "--map", "map.html")
    assert "Upgraded to premium" in (house.home / "map.html").read_text(encoding="utf-8")


@check
def end_goals_are_macro_actions_with_a_value(house: House) -> None:
    wanted = {FITNESS: {"premium_upgrade", "referral"}, LOOP: {"repeat_purchase"}}
    for name, goals in wanted.items():
        events = {e.name: e for e in _program(name).events}
        assert all(events[g].kind == "macro" and events[g].value > 0 for g in goals)
        assert goals <= set(house.ask("GET", f"/v1/programs/{name}")["events"])


@check
def the_first_asks_are_small_and_say_what_to_do(house: House) -> None:
    who = house.served(FITNESS)
    answer = house.only(who, FITNESS)
    assert _level(_program(FITNESS), answer["action"]["incentive"]).cost == 0.0
    assert 0 < len(answer["message"]["call_to_action"]) <= 60
    assert house.dry(who, FITNESS, day=2.0)["blocked"]["incentive=refer-a-friend"] == "stage"


@check
def a_quick_win_asks_for_the_next_decision_at_once(house: House) -> None:
    who = house.served(FITNESS)
    asked = house.did(who, "workout_done", FITNESS)["decide_now"]
    assert [(a["customer_id"], a["event"]) for a in asked] == [(who, "workout_done")]
    assert house.did(who, "app_opened", FITNESS)["decide_now"] == []


@check
def recognition_costs_nothing(house: House) -> None:
    for name in SHIPPED:
        badges = [i for i in _program(name).incentives if i.kind == "recognition"]
        assert badges
        assert all(i.cost == 0.0 and not i.promotional for i in badges)
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    spent = house.ask("GET", f"/v1/programs/{FITNESS}")["budget"]["spent"]
    assert house.only(who, FITNESS, day=0.1, incentive=["achievement-badge"])["message"]["subject"]
    assert house.ask("GET", f"/v1/programs/{FITNESS}")["budget"]["spent"] == spent


@check
def harder_asks_wait_for_momentum(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_converted", FITNESS, day=-9.0)
    assert house.dry(who, FITNESS, day=-2.5)["blocked"]["incentive=streak-discount"] == "momentum"
    house.did(who, "workout_done", FITNESS, day=-2.4)
    house.did(who, "workout_done", FITNESS, day=-2.3)
    assert house.dry(who, FITNESS, day=-2.2)["blocked"]["incentive=streak-discount"] == "ladder"


@check
def one_rung_at_a_time(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_converted", FITNESS, day=-1.0)
    house.did(who, "workout_done", FITNESS, day=0.0)
    house.did(who, "workout_done", FITNESS, day=0.01)
    assert house.dry(who, FITNESS, day=0.02)["blocked"]["incentive=streak-discount"] == "ladder"
    house.only(who, FITNESS, day=0.02, incentive=["achievement-badge"], timing=["now"])
    assert "incentive=streak-discount" not in house.dry(who, FITNESS, day=1.2)["blocked"]


@check
def tips_and_reports_are_offered(house: House) -> None:
    kinds = {i.kind for i in _program(FITNESS).incentives}
    assert {"content", "convenience", "social"} <= kinds
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    answer = house.only(who, FITNESS, day=0.01, incentive=["progress-report"])
    assert answer["message"]["call_to_action"]
    assert answer["because"].startswith("Because")


@check
def a_progress_report_is_there_for_every_customer(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    seen = house.where(who, FITNESS)
    assert seen["rewards"]["earned"][0]["reward"] == "the First Step badge"
    assert next(m["title"] for m in seen["milestones"] if not m["reached"]) == "ten workouts"
    assert seen["rewards"]["to_come"][0]["milestone"] == "ten workouts"
    assert 0.4 < seen["momentum"] <= 0.5


@check
def a_complaint_stops_promotion(house: House) -> None:
    who = house.served(FITNESS)
    assert "incentive=community-story" not in house.dry(who, FITNESS)["blocked"]
    house.did(who, "complaint", FITNESS)
    blocked = house.dry(who, FITNESS, day=0.1)["blocked"]
    assert blocked["incentive=community-story"] == "complaint"
    assert "incentive=coach-tip" not in blocked


@check
def a_low_score_stops_promotion_and_a_high_one_does_not(house: House) -> None:
    who, content = house.served(FITNESS), house.served(FITNESS)
    house.did(who, "survey_csat", FITNESS, value=2)
    house.did(content, "survey_csat", FITNESS, value=5)
    assert house.dry(who, FITNESS, day=0.1)["blocked"]["incentive=community-story"] == "complaint"
    assert "incentive=community-story" not in house.dry(content, FITNESS, day=0.1)["blocked"]


@check
def milestones_and_streaks_are_in_every_decision(house: House) -> None:
    who = house.served(FITNESS)
    for day in range(5):
        house.did(who, "workout_done", FITNESS, day=-5.0 + day)
    progress = house.decide(who, FITNESS)["progress"]
    assert (progress["milestone"], progress["done"], progress["of"]) == ("ten workouts", 5, 10)  # half of it done
    assert progress["reward"]
    streak = next(m for m in house.where(who, FITNESS)["milestones"] if m["name"] == "thirty-day-streak")
    assert (streak["done"], streak["of"]) == (5, 30)


@check
def advocates_have_incentives_and_goals_of_their_own(house: House) -> None:
    who = house.served(FITNESS)
    assert house.dry(who, FITNESS)["blocked"]["incentive=refer-a-friend"] == "stage"
    house.did(who, "premium_upgrade", FITNESS, day=-1.0)
    house.did(who, "trial_converted", FITNESS, day=-1.1)
    house.did(who, "review_written", FITNESS, day=-0.5)
    house.did(who, "workout_done", FITNESS, day=-0.1)
    assert house.where(who, FITNESS)["stage"] == "advocate"
    blocked = house.dry(who, FITNESS)["blocked"]
    assert "incentive=refer-a-friend" not in blocked
    assert blocked["incentive=five-minute-workout"] == "stage"


@check
def drop_off_is_told_stage_by_stage(house: House) -> None:
    active = next(s for s in house.card["funnel"] if s["stage"] == "active")
    assert 0.0 < active["dropped"]["low"] < active["dropped"]["value"] < active["dropped"]["high"] < 1.0
    house.run("program", "show", "small", "--log", "--map", "lived.html")
    assert "drop" in (house.home / "lived.html").read_text(encoding="utf-8")


@check
def surveys_are_counted_and_silence_is_not_zero(house: House) -> None:
    overview = house.card["overview"]
    assert 2.0 < overview["csat"]["low"] < overview["csat"]["high"] < 4.0
    assert overview["csat_responses"]["value"] > 20
    assert overview["nps_response_rate"]["value"] < 1.0


@check
def arms_are_assigned_by_customer_and_stay(house: House) -> None:
    names = [house.welcome(f"arm{i}") for i in range(40)]
    for day in (0.0, 2.0):
        body = [{"program": LOOP, "customer_id": n, "decision_id": f"{n}-{day}", "at": _time(day)} for n in names]
        house.ask("POST", "/v1/decide/batch", {"requests": body})
    arms = {
        name: {
            house.ask("GET", f"/v1/decisions/{name}-{day}?program={LOOP}&customer_id={name}")["arm"]
            for day in (0.0, 2.0)
        }
        for name in names
    }
    assert all(len(found) == 1 for found in arms.values())
    assert {"champion", "challenger"} <= {arm for found in arms.values() for arm in found}


@check
def a_policy_is_retrained_from_the_log(house: House) -> None:
    """`nudge train` fits a policy to what was archived, registers it, and `nudge evaluate` judges it."""
    (candidate,) = house.trained["candidates"]
    assert candidate["kind"] == "thompson"
    assert 100 < candidate["rounds"] < house.trained["decisions_seen"]
    judged = {v["policy"]: v for v in house.evaluated["values"]}
    assert judged["thompson"]["version"] == candidate["version"]
    assert judged["thompson"]["low"] < judged["thompson"]["value"] < judged["thompson"]["high"]


@check
def a_missed_step_asks_for_a_comeback_by_itself(house: House) -> None:
    """Nobody comes back first: two days after the last step the app is told, once, to ask for a decision."""
    who, other = house.welcome("away"), house.welcome("here")
    house.decide(who, "back", day=-3.0)
    house.did(who, "step", "back", day=-3.0)
    house.decide(other, "back", day=0.0)  # the clock of a simulated program is that of who asks

    def told() -> list[Any]:
        return [m["data"] for m in list(house.taken) if m["data"].get("reason") == "comeback"]

    wait_until(told, what="the comeback")
    assert {(d["program"], d["customer_id"]) for d in told()} == {("back", who)}
    assert "incentive=badge" not in house.dry(who, "back", day=0.0)["blocked"]


@check
def an_anniversary_is_a_milestone(house: House) -> None:
    who, new = house.served(LOOP), house.served(LOOP)
    house.decide(who, LOOP, day=-366.0)
    house.decide(new, LOOP)
    year, days = (
        next(m for m in house.where(name, LOOP)["milestones"] if m["name"] == "first-year") for name in (who, new)
    )
    assert (year["reached"], days["reached"]) == (True, False)
    assert (days["done"], days["of"]) == (0, 365)
    assert year["reward"] in [r["reward"] for r in house.where(who, LOOP)["rewards"]["earned"]]


@check
def the_fitness_example_ships(house: House) -> None:
    offered = set(house.ask("GET", f"/v1/programs/{FITNESS}")["incentives"])
    assert {
        "five-minute-workout", "free-trial-extension", "achievement-badge", "recommended-workout", "weekly-goal",
        "progress-report", "coach-tip", "streak-discount", "refer-a-friend",
    } <= offered  # fmt: skip
    assert msgspec.json.decode(house.run("program", "check", FITNESS, "--json"))["findings"] == []


@check
def thirty_days_in_a_row_earn_the_discount(house: House) -> None:
    streak = next(m for m in _program(FITNESS).milestones if m.streak == 30)
    assert "premium" in streak.reward
    who = house.served(FITNESS)
    for day in range(30):
        house.did(who, "workout_done", FITNESS, day=float(day) - 30.0)
    earned = house.where(who, FITNESS)["rewards"]["earned"]
    assert streak.reward in [r["reward"] for r in earned]


# 2. Small wins.


@check
def five_stages_follow_each_other(house: House) -> None:
    assert house.ask("GET", f"/v1/programs/{WINS}")["stages"] == [
        "aware", "consider", "decide", "experience", "advocate",
    ]  # fmt: skip
    who = house.served(WINS)
    seen = []
    for i, event in enumerate(("guide_read", "basket_filled", "order_placed", "review_written")):
        seen.append(house.where(who, WINS)["stage"] if i else "aware")
        house.did(who, event, WINS, day=i * 0.1)
    assert [*seen, house.where(who, WINS)["stage"]] == ["aware", "consider", "decide", "experience", "advocate"]


TACTICS = {
    "aware": {"care-guide", "customer-photos"},
    "consider": {"home-trial", "customer-photos"},
    "decide": {"saved-basket", "thrive-guarantee", "seven-day-discount"},
    "experience": {"first-week-plan", "care-check-in"},
    "advocate": {"invite-a-friend", "two-question-survey"},
}


@check
def each_stage_has_its_tactics(house: House) -> None:
    program = _program(WINS)
    for stage, wanted in TACTICS.items():
        allowed = program.incentive_stages[program.stage_index[stage]]
        offered = {n for n, yes in zip(program.space.incentives, allowed, strict=True) if yes}
        assert wanted <= offered, stage
    who = house.served(WINS)
    blocked = house.dry(who, WINS)["blocked"]
    assert blocked["incentive=seven-day-discount"] == "stage"
    assert "incentive=care-guide" not in blocked


@check
def conversion_csat_and_nps_are_told_by_stage(house: House) -> None:
    for stage in house.card["funnel"]:
        assert {"advanced", "dropped", "time", "csat", "nps"} <= set(stage)
    active = next(s for s in house.card["funnel"] if s["stage"] == "active")
    assert 1.0 <= active["csat"]["value"] <= 5.0
    assert -100.0 <= active["nps"]["low"] <= active["nps"]["high"] <= 100.0
    assert active["time"]["value"] or active["time"]["missing"]


@check
def what_a_change_brings_has_an_interval(house: House) -> None:
    lift = house.card["lift"]["program"][0]
    assert lift["always"]["low"] < lift["fixed"]["low"] < lift["fixed"]["high"] < lift["always"]["high"]
    assert "holdout" in lift["fixed"]["of"]


@check
def the_choice_depends_on_the_customer(house: House) -> None:
    """Badges help new customers only; a policy that learned that offers them to new customers."""
    world = made_up(n=3_000, lift=1.0)
    rounds = world.dataset.rounds
    policy = Thompson(world.dataset.program.space)
    policy.learn(rounds)
    found = policy.probabilities(rounds.contexts, np.ones_like(rounds.allowed), np.zeros(13))
    badge = found[:, world.dataset.program.space.levels[:, 0] == 0].sum(axis=1)
    assert badge[world.dataset.stages == 0].mean() > badge[world.dataset.stages > 0].mean() + 0.2


@check
def the_report_is_kept_in_mlflow(house: House) -> None:
    run = house.report["run"]
    with sqlite3.connect(house.home / "mlruns" / "mlflow.db") as store:
        named = dict(store.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", (run,)).fetchall())
        (where,) = store.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run,)).fetchone()
    assert {"participation", "participation_low", "participation_high"} <= set(named)
    folder = Path(where.removeprefix("file://"))
    assert "At a glance" in (folder / "scorecard.html").read_text(encoding="utf-8")
    assert (folder / "tables" / "figures.json").is_file()


@check
def a_period_and_a_policy_can_be_asked_for(house: House) -> None:
    assert house.card["days"] == 8.0  # as the command line was told
    assert house.card["fairness"]["limits"]["attributes"] == ["plan"]
    program = Program.parse(text(), source="small.toml")
    week = asked(since="2026-01-10", until="2026-01-16", policy="uniform", arm="champion", days=4.0)
    short = scorecard(house.home / "var" / "archive", program, week)
    assert 0 < short.decisions < house.card["decisions"]
    assert (short.since, short.until, short.days) == (1_768_003_200.0, 1_768_521_600.0, 4.0)
    with pytest.raises(ValueError, match="'soon' is no day"):
        asked(since="soon", until=None)


@check
def the_same_figures_come_from_simulation(house: House) -> None:
    house.declared()
    words = ("--program", "small", "--policy", "hold", "--customers", "40", "--days", "3", "--replications", "2")
    found = msgspec.json.decode(house.run("simulate", "demo", *words, "--json"))
    (held,) = [p["measured"] for p in found["worlds"][0]["policies"] if p["policy"] == "hold"]
    conversion = held["conversion"]
    assert conversion["low"] <= conversion["value"] <= conversion["high"]
    assert 0.0 <= conversion["value"] <= 1.0
    assert set(held["stages"]) == {"new", "active", "quiet"}


# 3. Persuasive momentum.


@check
def a_small_step_is_worth_what_it_adds_to_the_goal(house: House) -> None:
    program = _program(FITNESS)
    worths = dict(zip((e.name for e in program.events), journey_values(program).worths.value.tolist(), strict=True))
    assert worths["trial_started"] > worths["tip_read"] > 0
    assert np.isnan(worths["app_opened"])  # it leads nowhere by itself


@check
def a_touch_point_without_relevance_is_named(house: House) -> None:
    report = audit(read(FITNESS), source="mine.toml")
    assert report.share("relevance") == 1.0
    sections = r"\[\[attributes\]\].*?(?=\[\[attributes\]\]|\[\[milestones\]\]|\[\[rules\]\]|\[guardrails)"
    bare = re.sub(sections, "", TOML, flags=re.DOTALL)
    plain = re.sub(
        r"stages = \[.*\]\n|barred_segments = .*\n|min_momentum = .*\n|\[\[rules\]\](.|\n)*?(?=\n\n)", "", bare
    )
    found = audit(plain, source="mine.toml")
    assert found.share("relevance") < 1.0


@check
def a_touch_point_without_value_is_named(house: House) -> None:
    there = 'subject = "Three euros for you"\nbody = "Three euros off your next order."'
    assert there in TOML
    found = _planted(TOML.replace(there, 'subject = "Hello"\nbody = "How are you today?"'))
    assert "messages.coupon.warm" in found


@check
def a_touch_point_without_a_call_to_action_is_named(house: House) -> None:
    found = _planted(read(FITNESS).replace('"Open the story"', '"The full story of a member"', 1))
    assert "messages.community-story.factual.call_to_action" in found


def _planted(text: str) -> dict[str, str]:
    return {f.key: f.problem for f in audit(text, source="mine.toml").findings}


@check
def a_program_is_broken_before_customers_do_it(house: House) -> None:
    house.declared()
    words = ("--premortem", "small", "--policy", "uniform", "--customers", "100", "--days", "14", "--replications", "1")
    found = msgspec.json.decode(house.run("simulate", *words, "--json"))
    hazards = {h["hazard"] for h in found["hazards"]}
    assert {"fatigue", "budget shock", "drift", "outage"} <= hazards
    assert all(h["says"] for h in found["hazards"])


@check
def dead_ends_leaks_and_unreachable_stages_are_named(house: House) -> None:
    island = '[[stages]]\nname = "island"\ntitle = "Island"\n\n[[stages]]\nname = "at-risk"'
    found = _planted(read(FITNESS).replace('[[stages]]\nname = "at-risk"', island, 1))
    assert "cannot be reached" in found["stages[island]"]
    leak = read(FITNESS).replace(', at-risk = "experience"', "").replace('at-risk = "experience"', "")
    leak = leak.replace(', at-risk = "advocate"', "")
    assert any(key.startswith("stages[at-risk]") for key in _planted(leak))
    file = house.home / "mine.toml"
    file.write_text(read(FITNESS).replace("cap_per_day = 1", "cap_per_dy = 1"))
    assert "cap_per_dy" in house.run("program", "check", str(file), "--json", code=2)


# 4. The loyalty loop.


@check
def customers_enter_straight_into_the_loop(house: House) -> None:
    who = house.served(LOOP)
    assert house.dry(who, LOOP)["stage"] == "consider"
    house.did(who, "joined_at_till", LOOP)
    assert house.where(who, LOOP)["stage"] == "enjoy"


@check
def one_touch_triggers_many_steps(house: House) -> None:
    """One purchase: the stage moves, the milestone counts, a decision is asked for, and the CRM is told, signed."""
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP, day=-1.0)
    answer = house.did(who, "repeat_purchase", LOOP)
    assert [a["event"] for a in answer["decide_now"]] == ["repeat_purchase"]
    seen = house.where(who, LOOP)
    assert seen["stage"] == "bond"
    assert next(m for m in seen["milestones"] if m["name"] == "three-returns")["done"] == 1

    def told() -> bool:
        mine = [m for m in list(house.taken) if who in str(m)]
        return {m["type"] for m in mine} >= {"decision.requested", "customer.progressed"}

    wait_until(told, what="the signed webhooks")


@check
def a_message_is_sent_again_until_it_is_taken(house: House) -> None:
    """The CRM refuses everything once: what it has, it was sent again, under the same id."""
    one_touch_triggers_many_steps(house)
    assert house.taken
    assert sum(tries >= 2 for tries in dict(house.tries).values()) >= 2
    assert house.ask("GET", "/readyz")["parts"]["webhooks"]["ok"]


@check
def why_this_nudge_is_said_in_plain_words(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    answer = house.only(who, FITNESS, day=0.01)
    assert answer["because"].startswith("Because you finished a workout today")


@check
def stage_and_context_are_in_every_decision(house: House) -> None:
    who = house.served(FITNESS, goal="get-fit")
    house.did(who, "trial_started", FITNESS)
    seen = house.dry(who, FITNESS, day=0.01, context={"channel": "push"})
    assert seen["stage"] == "decide"
    assert (seen["context"]["goal"], seen["context"]["channel"]) == ("get-fit", "push")
    assert seen["context"]["momentum"] > 0.4


STAMP = """[[incentives]]
name = "stamp"
title = "Stamp"
kind = "recognition"
earns = "A stamp at once."

[[tones]]"""
STAMPS = "".join(
    f'[messages.stamp.{tone}]\nsubject = "Stamp"\nbody = "A stamp at once."\ncall_to_action = "Take it"\n\n'
    for tone in ("warm", "playful")
)


def _edited(house: House, text: str, *, until: Callable[[Any], bool]) -> None:
    """Edit the program of a running service, and wait until that is what it serves."""
    (house.home / "var" / "programs" / "back.toml").write_text(text)
    wait_until(lambda: until(house.ask("GET", "/v1/programs/back")), what="the edited program")


def _stamped(*, retired: bool = False) -> str:
    """Return the program with one more incentive."""
    stamp = STAMP.replace('title = "Stamp"', 'title = "Stamp"\nretired = true') if retired else STAMP
    return BACK.replace("[[tones]]", stamp, 1).replace("[messages.badge.warm]", STAMPS + "[messages.badge.warm]", 1)


@check
def a_new_incentive_starts_from_what_is_known_and_is_explored(house: House) -> None:
    """Put into a running program it is offered at once; a policy that learned without it gives it a chance."""
    _edited(house, _stamped(), until=lambda seen: "stamp" in seen["incentives"])
    who = house.welcome("collector")
    assert house.only(who, "back", incentive=["stamp"])["message"]["subject"] == "Stamp"
    world = made_up(n=1_500)
    policy = Thompson(world.dataset.program.space)
    policy.learn(world.dataset.rounds)
    folder = house.home / "policy"
    folder.mkdir(exist_ok=True)
    policy.save(folder)
    program = Program.parse(_stamped().replace('\ncomeback_after = "2d"', ""), source="back.toml")
    engine = optimizer(program, Thompson.load(folder, program.space))
    (made,) = engine.decide([Ask(customer(program, stage="active"), "d", NOON)], Shared.unlimited(program))
    stamp = made.vector[[n.startswith("stamp/") for n in program.space.names]]
    assert (stamp > 0).all()


@check
def a_retired_incentive_is_never_chosen_again(house: House) -> None:
    """Retired in a running program it is blocked from the next decision on; what it was stays readable."""
    _edited(house, _stamped(), until=lambda seen: "stamp" in seen["incentives"])
    who = house.welcome("before")
    had = house.only(who, "back", incentive=["stamp"])
    version = house.ask("GET", "/v1/programs/back")["version"]
    _edited(house, _stamped(retired=True), until=lambda seen: seen["version"] != version)
    assert house.dry(house.welcome("after"), "back")["blocked"]["incentive=stamp"] == "retired"
    seen = house.ask("GET", f"/v1/decisions/{had['decision_id']}?program=back&customer_id={who}")
    assert seen["action"]["incentive"] == "stamp"


# 5. Micro-incentives.


@check
def every_reward_says_how_it_is_earned_and_when(house: House) -> None:
    for name in SHIPPED:
        assert all(len(i.earns) > 20 for i in _program(name).incentives)
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP)
    answer = house.only(who, LOOP, day=0.01, incentive=["double-points"])
    assert "points" in f"{answer['message']['subject']} {answer['message']['body']}"
    assert answer["deliver_at"]
    assert answer["expires_at"]
    assert "worthless" not in str(audit(read(LOOP), source="x.toml").findings)


@check
def the_rhythm_is_steady(house: House) -> None:
    program = small('[guardrails]\nconsent = "opt-out"\ncadence = { every = "2d", within = "3h" }\ncooldown = "0m"\n')
    engine = optimizer(program)
    who = replace(customer(program, stage="active"), sent=())
    sent = Sent(decision_id="d", incentive="badge", deliver_at=NOON, day=0, cost=0, period=0, expires_at=NOON)
    who = replace(who, sent=(sent,))
    off, on = (
        engine.decide([Ask(who, "x", NOON + days * DAY)], Shared.unlimited(program))[0].blocked for days in (1.0, 2.0)
    )
    assert "cadence" in off.values()
    assert "cadence" not in {on.get("nudge"), on.get("timing=now")}


@check
def a_larger_reward_comes_after_a_smaller_one(house: House) -> None:
    who = house.served(LOOP)
    house.did(who, "joined_at_till", LOOP)
    assert house.dry(who, LOOP, day=0.01)["blocked"]["incentive=five-euro-voucher"] == "ladder"
    house.only(who, LOOP, day=0.01, incentive=["double-points"], timing=["now"])
    assert house.dry(who, LOOP, day=2.0)["blocked"]["incentive=five-euro-voucher"] == "ladder"
    assert "incentive=five-euro-voucher" not in house.dry(who, LOOP, day=7.0)["blocked"]


@check
def scarcity_is_sparing(house: House) -> None:
    program = small('[guardrails]\nconsent = "opt-out"\nscarce_per_week = 1\ncooldown = "0m"\ncap_per_day = 9\n')
    sent = Sent(decision_id="d", incentive="coupon", deliver_at=NOON, day=int(NOON // DAY), cost=0, period=0,
                expires_at=NOON)  # fmt: skip
    who = customer(program, stage="active", steps=Decayed(3.0, NOON), sent=(sent,))
    made = optimizer(program).decide([Ask(who, "x", NOON + DAY)], Shared.unlimited(program))[0]
    assert made.blocked["incentive=coupon"] == "scarcity"
    claimed = read(FITNESS).replace("Five minutes are enough", "Only 3 left: five minutes are enough", 1)
    assert any(key.startswith("messages.five-minute-workout") for key in _planted(claimed))


@check
def what_others_did_is_shown(house: House) -> None:
    for name in SHIPPED:
        assert any(i.kind == "social" for i in _program(name).incentives)
    who = house.served(WINS)
    answer = house.only(who, WINS, incentive=["customer-photos"])
    assert answer["action"]["incentive"] == "customer-photos"


@check
def the_story_moves_on_with_progress(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "trial_started", FITNESS)
    said = []
    for day in (0.0, 2.0):
        house.did(who, "workout_done", FITNESS, day=day)
        answer = house.only(who, FITNESS, day=day + 0.05, incentive=["achievement-badge"], tone=["factual"],
                            timing=["now"])  # fmt: skip
        said.append(answer["message"]["body"])
    assert "1 of 10" in said[0]
    assert "2 of 10" in said[1]


@check
def fairness_is_a_gate_with_reasons(house: House) -> None:
    gate = house.card["fairness"]
    assert gate["status"] in ("pass", "warn", "fail")
    assert gate["reasons"][0]["text"]
    plans = {g["segment"]: g for g in gate["groups"] if g["attribute"] == "plan"}
    assert set(plans) == {"free", "gold"}
    assert plans["gold"]["exposure"]["value"] > 0
    assert plans["gold"]["value"]["low"] < plans["gold"]["value"]["high"]
    assert any("fairness of" in reason for reason in house.evaluated["reasons"])  # what nudge promote goes by


@check
def words_that_press_are_refused(house: House) -> None:
    found = _planted(read(FITNESS).replace("Five minutes are enough", "Hurry, five minutes are enough", 1))
    assert any("which presses" in problem for problem in found.values())
    for name in SHIPPED:
        assert audit(read(name), source=f"{name}.toml").findings == ()


@check
def tones_are_barred_by_stage_and_segment(house: House) -> None:
    who = house.served(FITNESS)
    assert house.dry(who, FITNESS)["blocked"]["tone=celebratory"] == "stage"
    trade = house.served(WINS, customer_type="trade")
    assert house.dry(trade, WINS)["blocked"]["tone=playful"] == "segment"


@check
def participation_redemption_and_time_are_measured(house: House) -> None:
    overview = house.card["overview"]
    assert 0.5 < overview["participation"]["low"] <= overview["participation"]["value"]
    assert 0.2 < overview["redeemers"]["value"] <= 1.0
    badge = next(i for i in house.card["incentives"] if i["incentive"] == "badge")
    assert badge["rate"]["low"] < 0.4 < badge["rate"]["high"] + 0.03
    assert badge["time"]["low"] <= badge["time"]["value"] <= badge["time"]["high"]


@check
def signs_of_leaving_are_measured(house: House) -> None:
    churn = house.card["churn"]
    assert {"unsubscribed", "complained", "inactive", "falling_momentum"} <= set(churn)
    assert 0.0 < churn["unsubscribed"]["low"] < churn["unsubscribed"]["high"] < 1.0


@check
def small_now_is_compared_with_larger_later(house: House) -> None:
    sizes = [(t["ladder"], t["tier"]) for t in house.card["tiers"]]
    assert sizes == [("reward", 1), ("reward", 2)]
    larger = house.card["tiers"][1]["over_smaller"]
    assert larger["low"] < larger["value"] < larger["high"]
    (pays,) = house.card["thresholds"]
    assert pays["ladder"] == "reward"
    assert (pays["tier"] is not None) == (pays["adds"]["low"] > 0)
    assert pays["says"]


@check
def relevance_is_reported_for_each_touch_point(house: House) -> None:
    """The log's policy chose by chance: the context moved nothing, and the report says so, one by one."""
    found = house.card["relevance"]
    points = {(p["stage"], p["incentive"], p["tone"]): p for p in found["touch_points"]}
    assert {("active", "coupon", "warm"), ("new", "badge", "playful")} <= set(points)
    moved = points["active", "badge", "warm"]["moved"]
    assert 0.0 <= moved["low"] <= moved["value"] <= moved["high"] < 0.02
    assert {s["stage"] for s in found["stages"]} == {"new", "active", "quiet"}


@check
def every_segment_has_its_figures(house: House) -> None:
    rows_ = [s for s in house.card["segments"] if s["attribute"] == "plan"]
    assert {s["segment"] for s in rows_} == {"free", "gold"}
    assert all(s["participation"]["value"] and s["exposure"]["value"] for s in rows_)


@check
def what_a_further_goal_costs_is_said_or_refused(house: House) -> None:
    cost = house.card["lift"]["cost_per_goal"]
    assert (cost["value"] is None) == ("cannot say" in cost["missing"])
    assert cost["value"] is None or cost["low"] < cost["value"] < cost["high"]


@check
def what_wears_out_is_told_with_what_to_rotate_to(house: House) -> None:
    wear = {w["incentive"]: w for w in house.card["wear"]}
    assert set(wear) == {"badge", "coupon", "gift"}
    assert wear["coupon"]["by_exposure"]["value"] < 0  # coupons wear in this log, and badges do not
    assert wear["coupon"]["by_exposure"]["value"] < wear["badge"]["by_exposure"]["value"]
    assert all(w["advice"] for w in wear.values())
    assert not wear["badge"]["rotate_to"]


@check
def the_same_customer_on_every_channel(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    house.only(who, FITNESS, day=0.01, timing=["now"])
    for channel in ("push", "email", "in-app"):
        answer = house.decide(who, FITNESS, day=0.05, context={"channel": channel}, only={"timing": ["now"]})
        assert answer["action"] is None
        assert answer["hold_reason"] in ("cap_per_day", "cooldown")
        assert answer["progress"]["done"] == 1


@check
def customers_go_to_a_crm_and_come_back(house: House) -> None:
    who = house.served(WINS, customer_type="trade")
    house.decide(who, WINS)
    house.run("crm", "export", WINS, "--to", "crm.csv")
    house.run("crm", "export", WINS, "--to", "crm.parquet")
    with (house.home / "crm.csv").open(encoding="utf-8", newline="") as file:
        listed = {row["customer_id"]: row for row in csv.DictReader(file)}
    assert who in listed
    assert who in pq.read_table(house.home / "crm.parquet")["customer_id"].to_pylist()
    (house.home / "back.csv").write_text(f"customer_id,consent,customer_type\n{who},yes,private\n", encoding="utf-8")
    house.run("crm", "import", "back.csv")
    assert house.where(who, WINS)["attributes"]["customer_type"] == "private"


@check
def caps_and_cooldown_hold_on_a_running_service(house: House) -> None:
    who = house.served(FITNESS)
    house.did(who, "workout_done", FITNESS)
    answers = [house.decide(who, FITNESS, day=0.3 * i, decision_id=f"{who}-{i}") for i in range(40)]
    delivered = [np.datetime64(a["deliver_at"][:19], "s") for a in answers if a["action"]]
    assert 3 <= len(delivered) <= 10  # not quite two weeks, at most five in any seven days
    days = [moment.astype("datetime64[D]") for moment in delivered]
    assert len(set(days)) == len(days)
    assert all(later - sooner >= np.timedelta64(12, "h") for sooner, later in pairwise(delivered))
    assert all(np.timedelta64(6, "D") < days[i + 5] - days[i] for i in range(len(days) - 5))


@check
def incentives_have_kinds_and_tiers(house: House) -> None:
    kinds = {i.kind for name in SHIPPED for i in _program(name).incentives}
    assert kinds == {"content", "convenience", "recognition", "social", "monetary", "access"}
    capped = _program(FITNESS).guardrails.cap_per_week_by_kind
    assert {"monetary", "access", "social"} <= set(capped)
    tiers = {i.tier for i in _program(LOOP).incentives if i.ladder == "reward"}
    assert tiers == {1, 2}
