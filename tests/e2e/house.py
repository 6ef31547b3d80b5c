"""The house that rows of docs/journeys.md are run in: a service, a receiver of webhooks, and commands."""

import contextlib
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from standardwebhooks.webhooks import Webhook

from optimizer.program import DAY, Program
from optimizer.programs import read
from serving.cli import main
from tests.e2e.running import call, environment, served
from tests.small_program import TOML
from tests.training.lived import text

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


def run(home: Path, *words: str, code: int = 0) -> str:
    """Run a command in this process, in a folder, and return what it prints."""
    settings = {"NUDGE_HOME": environment(home)["NUDGE_HOME"], "REDIS_URL": None, "MLFLOW_TRACKING_URI": None}
    with contextlib.chdir(home):
        done = CliRunner(env=settings).invoke(main, list(words))
    assert done.exit_code == code, f"{words}: {done.output}\n{done.exception!r}"
    return done.stdout


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
        """Run a command in the house's folder, and return what it prints."""
        return run(self.home, *words, code=code)

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
        answer = self.ask("POST", "/v1/outcomes", {**row, "at": moment(day), **more})
        assert answer["errors"] == []
        return answer

    def decide(self, name: str, program: str, *, day: float = 0.0, **more: object) -> Any:
        """Ask for a decision."""
        return self.ask("POST", "/v1/decide", {"program": program, "customer_id": name, "at": moment(day), **more})

    def dry(self, name: str, program: str, *, day: float = 0.0, **more: object) -> Any:
        """Ask what would be decided, and why not something else; nothing is written."""
        body = {"program": program, "customer_id": name, "at": moment(day), **more}
        return self.ask("POST", "/v1/decide/dry-run", body)

    def where(self, name: str, program: str) -> Any:
        """Return where a customer is."""
        return self.ask("GET", f"/v1/customers/{name}?program={program}")

    def declared(self) -> None:
        """Put the small program where commands find it."""
        (self.home / "var" / "programs" / "small.toml").write_text(text())

    def only(self, name: str, program: str, *, day: float = 0.0, **levels: list[str]) -> Any:
        """Ask until a nudge with these levels comes."""
        for _ in range(60):
            answer = self.decide(name, program, day=day, only=levels, decision_id=f"d{next(self.serial)}")
            if answer["action"]:
                return answer
            assert answer["hold_reason"] == "chosen", answer
        raise AssertionError("the floor never drew a nudge")


def moment(day: float) -> str:
    return str(np.datetime64(int(TODAY + day * DAY), "s")) + "Z"


@contextlib.contextmanager
def opened(home: Path) -> Iterator[House]:
    """Open a house in a folder: a service over the programs that ship and a small one, and a receiver of webhooks."""
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
            'events = ["decision.requested", "customer.progressed"]\n'
        )
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("NUDGE_WEBHOOK_LOOPBACK", "1")
        patch.setenv("NUDGE_WEBHOOK_BACKOFF", "0.05")
        yield House(stack.enter_context(served(home, "--simulated")), home, taken, tries)


def shipped(name: str) -> Program:
    return Program.parse(read(name), source=f"{name}.toml")


def level(program: Program, name: str) -> Any:
    return next(i for i in program.incentives if i.name == name)
