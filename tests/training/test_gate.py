"""From a log to a champion and back: repeated by one command, approved by a person, rolled back past the first."""

import asyncio
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from serving import loop, settings
from serving.cli import found, main
from serving.processes import store_url
from serving.store import Store
from training.registry import APPROVED_BY, Registry

pytestmark = pytest.mark.slow

MAP = """
name = "mine"
title = "A coupon test"
at = "at"
[columns]
action = "action"
reward = "reward"
propensity = "chance"
[actions]
none = "hold"
coupon = "coupon/warm/now"
[context]
young = "flag"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the log of a coupon that helps the young only, drawn at even chances over five weeks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUDGE_HOME", str(tmp_path / "var"))
    for name in ("REDIS_URL", "MLFLOW_TRACKING_URI", "NUDGE_REQUIRE_APPROVAL"):
        monkeypatch.delenv(name, raising=False)
    rng = np.random.default_rng(4)
    n = 6_000
    young, coupon = rng.random(n) < 0.5, rng.random(n) < 0.5
    bought = rng.random(n) < 0.3 + np.where(coupon, np.where(young, 0.3, -0.1), 0.0)
    at = 1_767_571_200 + np.sort(rng.integers(0, 35 * 86_400, size=n))
    rows = zip(at.tolist(), young.tolist(), coupon.tolist(), bought.tolist(), strict=True)
    lines = ["at,young,action,reward,chance"]
    lines += [f"{a},{int(y)},{'coupon' if c else 'none'},{int(b)},0.5" for a, y, c, b in rows]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "map.toml").write_text(MAP)
    run("import", "log.csv", "--map", "map.toml")
    return tmp_path


def run(*words: str) -> None:
    """Run a command of `nudge` in this process."""
    main(list(words), standalone_mode=False)


def served_version() -> str | None:
    """Return the version of the policy that is published for the champion's arm."""

    async def look(url: str) -> str | None:
        async with await Store.open(url) as store:
            return await store.policy_version("mine", "champion")

    with store_url(settings.load()) as url:
        return asyncio.run(look(url))


def test_a_champion_is_made_approved_repeated_and_rolled_back(home: Path) -> None:
    program = found("mine")
    loop.train(program, kinds=["thompson"])
    first = loop.evaluate(program)
    assert first.verdict == "promote"
    assert "always coupon/warm/now" in {v.policy for v in first.values}  # the best fixed nudge, of the training slice

    # The printed command gives the same numbers, and the run says what it was of.
    words = shlex.split(first.command)
    assert words[:3] == ["nudge", "evaluate", "mine"]
    run(*words[1:])
    last = Registry.open().last_evaluation("mine")
    assert last is not None
    assert last.run != first.run
    again = {s.name: s.value for s in last.evaluation.scores}
    assert {v.policy: (v.value, v.low, v.high) for v in first.values} == {
        name: (e.value, e.low, e.high) for name, e in again.items()
    }
    logged = Registry.open()._client().get_run(last.run)
    assert logged.data.params["command"] == first.command
    assert logged.data.tags["propensities"] == "logged"
    assert re.search(r"thompson@1", logged.data.tags["policy_versions"])

    # Without a person's tag the alias stays; with it, it moves, and the policy is published.
    waiting = loop.promote(program, require_approval=True)
    assert (waiting.verdict, waiting.promoted) == (loop.WAITING, False)
    assert "add the tag approved_by" in waiting.reasons[0]
    assert served_version() is None
    Registry.open()._client().set_model_version_tag("nudge-mine", "1", APPROVED_BY, "Ada")
    assert loop.promote(program, require_approval=True).promoted
    assert served_version() == "1"

    # Rolled back past the first champion, chance serves again: what was published is replaced.
    back = loop.promote(program, rollback=True)
    assert back.champion == "uniform (none was promoted)"
    assert served_version() == "0"


def test_the_audit_says_what_it_found_of_the_log_and_of_each_target(home: Path) -> None:
    checks = {c.check: c for c in loop.audit(found("mine"))}
    for title in (
        "Outcomes find their decisions",
        "Arms have the customers they should",
        "Draws can be made again",
        "Saved policies agree with the log",
        "Logged probabilities are valid",
        "Draws match the logged probabilities",
        "Weeks are alike",
        "The second half is like the first",
        "Nudges at random: Weights average one",
        "No nudges at all: Every stage is covered",
    ):
        assert checks[title].status in ("pass", "warn"), title
