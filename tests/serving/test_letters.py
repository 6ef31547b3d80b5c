"""The commands about webhooks and the CRM, as an operator types them."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from standardwebhooks.webhooks import Webhook

from serving import settings
from serving.cli import main
from serving.embedded import Server
from serving.store import Store
from serving.webhooks import Patience, Sender
from tests.contracts.steps import outcome
from tests.serving.test_webhooks import PROGRAM, SECRET


@pytest.fixture
def environment(server: Server, tmp_path: Path) -> dict[str, str]:
    """The variables of an operator, on an empty store."""

    async def empty() -> None:
        async with await Store.open(server.url) as store:
            await store.command("FLUSHALL")

    asyncio.run(empty())
    return {
        "NUDGE_HOME": str(tmp_path / "var"),
        "REDIS_URL": server.url,
        "NUDGE_WEBHOOK_URL": "https://127.0.0.1:9/h",
        "NUDGE_WEBHOOK_SECRET": SECRET,
    }


def nudge(*words: str, env: dict[str, str], code: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env=env)
    assert done.exit_code == code, done.output
    return done


def told(*words: str, env: dict[str, str], code: int = 0) -> Any:
    return json.loads(nudge(*words, "--json", env=env, code=code).stdout)


async def buried(env: dict[str, str], names: tuple[str, ...]) -> None:
    """Queue a message about each, and let it fail until it is dead."""
    (target,) = settings.load(env).targets
    async with await Store.open(env["REDIS_URL"]) as store:
        store.targets = [target]
        for name in names:
            await store.put(name, consent=True)
            await store.report(PROGRAM, [outcome(name, "o", program=PROGRAM)])
        patience = Patience(seconds=2.0, attempts=1)
        sender = Sender(store, target, who="test", clock=lambda: 2e9, chance=lambda: 0.5, patience=patience)
        assert await sender.once() == len(names)


def test_dead_messages_are_listed_replayed_and_dropped(environment: dict[str, str]) -> None:
    asyncio.run(buried(environment, ("ada", "bob", "cy")))
    dead = told("webhooks", "list", env=environment)
    assert [(d["target"], d["event"], d["state"], d["attempts"]) for d in dead] == [
        ("default", "decision.requested", "dead", 1)
    ] * 3
    assert "ada" not in nudge("webhooks", "list", env=environment).stdout, "no customer is shown"
    assert told("webhooks", "replay", dead[0]["id"], env=environment) == {"messages": 1}
    assert sorted(d["state"] for d in told("webhooks", "list", env=environment)) == ["dead", "dead", "waiting"]
    assert told("webhooks", "drop", dead[1]["id"], "--target", "default", env=environment) == {"messages": 1}
    assert told("webhooks", "replay", env=environment) == {"messages": 1}
    assert {d["state"] for d in told("webhooks", "list", env=environment)} == {"waiting"}
    said = nudge("webhooks", "drop", env=environment, code=2).output
    assert "name the messages to forget" in said
    said = nudge("webhooks", "list", "--target", "other", env=environment, code=2).output
    assert "there is no such target; use one of default" in said
    without = {**environment, "NUDGE_WEBHOOK_URL": ""}
    assert "set NUDGE_WEBHOOK_URL" in nudge("webhooks", "list", env=without, code=2).output


def test_a_new_secret_signs(environment: dict[str, str]) -> None:
    secret = nudge("webhooks", "secret", env=environment).stdout.strip()
    Webhook(secret)
    assert settings.load({**environment, "NUDGE_WEBHOOK_SECRET": secret}).targets[0].secrets == (secret,)
    assert nudge("webhooks", "secret", env=environment).stdout.strip() != secret


def test_customers_go_to_a_file_and_come_from_one(environment: dict[str, str], tmp_path: Path) -> None:
    file, bad = tmp_path / "in.csv", tmp_path / "bad.csv"
    file.write_text("no,goal,unsubscribed\nada,get-fit,\nbob,get-fit,maybe\n")
    words = ("crm", "import", str(file), "--column", "customer_id=no", "--rejects", str(bad))
    done = told(*words, env=environment, code=2)
    assert (done["changed"], done["rejected"], done["faults"][0]["line"]) == (1, 1, 3)
    assert bad.read_text().splitlines()[1].startswith("bob,get-fit,maybe,unsubscribed 'maybe' is neither yes nor no,")
    out = tmp_path / "out.parquet"
    assert told("crm", "export", "fitness-coaching", "--to", str(out), env=environment)["customers"] == 1
    assert "write OURS=THEIRS" in nudge("crm", "import", str(file), "--column", "no", env=environment, code=2).output
    assert (
        "ends with '.xls'"
        in nudge("crm", "export", "fitness-coaching", "--to", str(tmp_path / "o.xls"), env=environment, code=2).output
    )
