"""What a receiver gets: signed, again until it is taken, nothing lost to kill -9, and nowhere but where it may go."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from msgspec.structs import replace
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from optimizer.program import Program
from serving import hooks, settings, webhooks
from serving.embedded import Server
from serving.public import refusal
from serving.settings import Settings
from serving.store import Store
from serving.targets import KINDS, Target
from serving.webhooks import Patience, Sender
from tests.contracts.steps import active, outcome, propose
from tests.serving.running import Client, running, until, write_program
from tests.small_program import NOON, OPEN, TOML

SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
OLD = "whsec_" + "b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xk"
ASKS = ('name = "step"\nkind = "micro"', 'name = "step"\nkind = "micro"\nrequests_decision = true')
PROGRAM = Program.parse(TOML.replace(*ASKS) + OPEN, source="small.toml")
QUICK = Patience(seconds=0.5, backoff=0.02, attempts=4)


class Receiver:
    """A receiver on loopback: checks signatures, and answers what the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.taken: dict[str, Any] = {}
        self.attempts: list[tuple[str, int]] = []
        self.answers: list[int] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.Response:
        """Verify, remember, and answer the next status of the list, or 204."""
        body = await request.read()
        headers = dict(request.headers)
        message = Webhook(SECRET).verify(body, headers)
        status = self.answers.pop(0) if self.answers else 204
        name = headers["webhook-id"]
        self.attempts.append((name, int(headers["webhook-timestamp"])))
        await self.hold.wait()
        if status < 300:
            self.taken[name] = message
        return web.Response(status=status, headers=self.headers, text="x" * 10_000)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Have a receiver for as long as the block lasts."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{tail:.*}", receiver.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    try:
        yield receiver
    finally:
        receiver.hold.set()
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver."""
    async with receiving() as receiver:
        yield receiver


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        import time

        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def target(url: str, **fields: Any) -> Target:
    return Target("crm", url, (SECRET,), **{"kinds": KINDS, "loopback": True, **fields})


def sender(
    store: Store, to: Target, *, clock: Callable[[], float], patience: Patience = QUICK, who: str = "a"
) -> Sender:
    return Sender(store, to, who=who, clock=clock, chance=lambda: 0.5, patience=patience)


async def eventually(happened: Callable[[], bool]) -> None:
    """Return as soon as something has happened; fail after a minute."""
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110  (what happens, happens in another process)
            await asyncio.sleep(0.005)


async def step(store: Store, name: str = "ada", outcome_id: str = "o1", **more: Any) -> None:
    await store.put(name, consent=True)
    assert await store.report(PROGRAM, [outcome(name, outcome_id, program=PROGRAM, **more)]) == ["accepted"]


async def test_a_quick_win_is_sent_signed_and_once(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store)
    assert await store.report(PROGRAM, [outcome("ada", "o1", program=PROGRAM)]) == ["duplicate"]
    clock = Clock()
    assert await sender(store, store.targets[0], clock=clock).once() == 1
    assert await sender(store, store.targets[0], clock=clock).once() == 0
    (message,) = receiver.taken.values()
    assert message == {
        "type": "decision.requested",
        "timestamp": "2026-01-01T12:00:01Z",
        "data": {"program": "small", "customer_id": "ada", "event": "step", "outcome_id": "o1", "reason": "quick_win"},
    }
    assert await webhooks.listed(store, ["crm"]) == []


async def test_progress_and_decisions_are_sent_where_subscribed(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("customer.progressed", "decision.made"))]
    await active(store, "ada", program=PROGRAM)
    (row,) = await propose(store, "ada", program=PROGRAM, decision_id="d1")
    await store.commit(PROGRAM, [row._replace(answer=b'{"decision_id":"d1"}\n{"arm":"champion"}')])
    assert await store.report(PROGRAM, [outcome("ada", "c", "complaint", program=PROGRAM)]) == ["accepted"]
    clock = Clock()
    while await sender(store, store.targets[0], clock=clock).once():
        pass
    by_kind: dict[str, list[Any]] = {}
    for message in receiver.taken.values():
        by_kind.setdefault(message["type"], []).append(message["data"])
    moved = sorted(by_kind["customer.progressed"], key=lambda d: d["progress"]["done"])
    assert [(d["stage_before"], d["stage"], d["progress"]["done"]) for d in moved] == [
        ("new", "active", 1),
        ("active", "active", 2),
        ("active", "active", 3),
    ]
    assert by_kind["decision.made"] == [{"program": "small", "customer_id": "ada", "decision_id": "d1"}]


async def test_a_receiver_that_fails_gets_it_again_under_the_same_id_and_a_new_time(
    store: Store, receiver: Receiver
) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store)
    receiver.answers = [500, 302, 503]
    clock = Clock()
    sending = sender(store, store.targets[0], clock=clock, patience=QUICK._replace(backoff=10.0))
    waits = []
    for _ in range(3):
        assert await sending.once() == 1
        assert await sending.once() == 0, "it is not due yet"
        (waiting,) = await webhooks.listed(store, ["crm"])
        due = float(await store.command("ZSCORE", hooks.due_key(store.shard("ada"), "crm"), waiting.id))
        waits.append(round(due - clock.now))
        clock.now = due
    assert waits == [10, 20, 40]
    assert await sending.once() == 1
    assert len({name for name, _ in receiver.attempts}) == 1
    assert len({at for _, at in receiver.attempts}) == 4
    assert list(receiver.taken) == [receiver.attempts[0][0]]


async def test_retry_after_is_waited_for(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store)
    receiver.answers, receiver.headers = [429], {"Retry-After": "77"}
    clock = Clock()
    await sender(store, store.targets[0], clock=clock).once()
    (waiting,) = await webhooks.listed(store, ["crm"])
    due = float(await store.command("ZSCORE", hooks.due_key(store.shard("ada"), "crm"), waiting.id))
    assert due - clock.now == pytest.approx(77.0)


async def test_what_is_never_taken_is_dead_until_it_is_replayed_or_dropped(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    for i in range(3):
        await step(store, f"c{i}", "o")
    receiver.answers = [500] * 100
    clock = Clock()
    sending = sender(store, store.targets[0], clock=clock)
    for _ in range(QUICK.attempts):
        await sending.once()
        clock.now += 60
    assert len(receiver.attempts) == 3 * QUICK.attempts
    dead = await webhooks.listed(store, ["crm"])
    assert {(d.state, d.attempts, d.error) for d in dead} == {("dead", 4, "answered 500")}
    assert await webhooks.waiting(store, "crm") == (0, 3)
    receiver.answers = []
    assert await webhooks.replay(store, ["crm"], ids=[dead[0].id], now=clock.now) == 1
    assert await sending.once() == 1
    assert await webhooks.drop(store, ["crm"], ids=[dead[1].id]) == 1
    assert await webhooks.replay(store, ["crm"], now=clock.now) == 1
    assert await sending.once() == 1
    assert set(receiver.taken) == {dead[0].id, dead[2].id}
    assert await webhooks.listed(store, ["crm"]) == []


async def test_what_is_not_wanted_any_more_is_not_tried_again(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store)
    receiver.answers = [410]
    await sender(store, store.targets[0], clock=Clock()).once()
    (dead,) = await webhooks.listed(store, ["crm"])
    assert (dead.state, dead.attempts) == ("dead", 1)


async def test_a_redirect_is_not_followed(store: Store, receiver: Receiver) -> None:
    async with receiving() as elsewhere:
        store.targets = [target(receiver.url, kinds=("decision.requested",))]
        await step(store)
        receiver.answers, receiver.headers = [307], {"Location": elsewhere.url}
        await sender(store, store.targets[0], clock=Clock()).once()
        (waiting,) = await webhooks.listed(store, ["crm"])
        assert waiting.error == "answered 307: redirects are not followed, so give the address that it leads to"
        assert elsewhere.attempts == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_an_address_that_is_not_public_is_not_connected_to(store: Store, receiver: Receiver, host: str) -> None:
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    closed = target(f"http://{host}:{port}/hooks", kinds=("decision.requested",), loopback=False)
    store.targets = [closed]
    await step(store)
    await sender(store, closed, clock=Clock()).once()
    (waiting,) = await webhooks.listed(store, ["crm"])
    assert waiting.error.endswith("is not a public address: use one that is, and https"), waiting.error
    assert receiver.attempts == []


@pytest.mark.parametrize(
    "address",
    [
        *("10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *("240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%1", "fc00::1"),
        *("2002:a00:1::", "2001:db8::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "::127.0.0.1", "::ffff:0:10.0.0.1"),
        *("fec0::1", "64:ff9b:1::8.8.8.8", "4000::1", "5f00::1", "3fff::1"),
    ],
)  # fmt: skip
def test_only_what_the_internet_can_reach_may_be_connected_to(address: str) -> None:
    assert refusal(address) is not None


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"])
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert refusal(address) is None


async def test_a_slow_receiver_is_given_up_and_its_answer_is_not_read(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store)
    receiver.hold.clear()
    await sender(store, store.targets[0], clock=Clock(), patience=QUICK._replace(seconds=0.1)).once()
    (waiting,) = await webhooks.listed(store, ["crm"])
    assert waiting.error == "no answer within 0.1 s"


async def test_two_senders_share_the_work_and_nothing_is_sent_twice(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    for i in range(20):
        await step(store, f"c{i}", "o")
    clock = Clock()
    both = [asyncio.create_task(sender(store, store.targets[0], clock=clock, who=who).run()) for who in "ab"]
    await eventually(lambda: len(receiver.taken) == 20)
    for task in both:
        task.cancel()
    await asyncio.gather(*both, return_exceptions=True)
    assert len(receiver.attempts) == 20


SENDING = """
import asyncio, sys, time
from serving.store import Store
from serving.targets import Target
from serving.webhooks import Patience, Sender

async def main(url, to, secret):
    async with await Store.open(url) as store:
        target = Target("crm", to, (secret,), ("decision.requested",), loopback=True)
        patience = Patience(seconds=0.5, backoff=0.02, attempts=10)
        await Sender(store, target, who="killed", clock=time.time, chance=lambda: 0.5, patience=patience).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_sender_killed_while_sending_again_loses_nothing(
    store: Store, receiver: Receiver, server: Server
) -> None:
    import time

    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    for i in range(12):
        await step(store, f"c{i}", "o")
    receiver.answers = [500] * 12 + [204] * 3
    command = [sys.executable, "-c", SENDING, server.url, receiver.url, SECRET]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    await eventually(lambda: len(receiver.attempts) >= 14)
    receiver.hold.clear()  # it is now in the middle of attempts that will never be answered
    process.kill()
    await process.wait()
    receiver.hold.set()
    other = asyncio.create_task(sender(store, store.targets[0], clock=time.time, who="other").run())
    await eventually(lambda: len(receiver.taken) == 12)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert {m["data"]["customer_id"] for m in receiver.taken.values()} == {f"c{i}" for i in range(12)}


async def test_a_message_about_an_erased_customer_is_forgotten(store: Store, receiver: Receiver) -> None:
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    for name in ("ada", "bob"):
        await step(store, name, "o")
    await webhooks.forget(store, ["crm"], "ada")
    await sender(store, store.targets[0], clock=Clock()).once()
    assert [m["data"]["customer_id"] for m in receiver.taken.values()] == ["bob"]


async def test_both_secrets_sign_while_one_replaces_the_other(store: Store, receiver: Receiver) -> None:
    store.targets = [replace_secrets(target(receiver.url), (OLD, SECRET))]
    await step(store)
    await sender(store, store.targets[0], clock=Clock()).once()
    assert receiver.taken, "the receiver still has the old secret, which is the second one here"


def replace_secrets(to: Target, secrets: tuple[str, ...]) -> Target:
    from dataclasses import replace as changed

    return changed(to, secrets=secrets)


async def test_another_secret_does_not_verify(store: Store) -> None:
    to = replace_secrets(target("https://shop.example"), (OLD,))
    await step(store)
    message = hooks.Message(id="m", target="crm", kind=KINDS[0], customer_id="ada", body=b"{}", made_at=0.0)
    headers = sender(store, to, clock=Clock())._headers(message)
    Webhook(OLD).verify(b"{}", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b"{}", headers)


async def test_logs_name_neither_customers_nor_secrets(
    store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="nudge")
    store.targets = [target(receiver.url, kinds=("decision.requested",))]
    await step(store, "ada-lovelace", "outcome-of-ada")
    receiver.answers = [500]
    clock = Clock()
    await sender(store, store.targets[0], clock=clock).once()
    clock.now += 60
    await sender(store, store.targets[0], clock=clock).once()
    said = " ".join(str(vars(record)) for record in caplog.records if record.name == "nudge.webhooks")
    assert "msg_" in said
    assert not [word for word in ("ada-lovelace", "outcome-of-ada", SECRET[6:], receiver.url) if word in said]
    assert SECRET not in repr(store.targets[0])


# Whole: over HTTP, as an app and a receiver see it.


def test_the_answer_names_the_rows_that_ask_for_a_decision_and_the_receiver_hears_of_them(
    server: Server, tmp_path: Path
) -> None:
    write_program(tmp_path, extra=OPEN, change=ASKS)

    async def scene() -> tuple[list[Any], list[Any]]:
        async with await Store.open(server.url) as old:
            await old.command("FLUSHALL")
        async with receiving() as receiver:
            given = Settings(home=tmp_path, redis_url=server.url, targets=(target(receiver.url, kinds=KINDS[:1]),))
            return await asyncio.to_thread(asked, given), await heard(receiver)

    async def heard(receiver: Receiver) -> list[Any]:
        await eventually(lambda: len(receiver.taken) == 2)
        return sorted(m["data"]["reason"] for m in receiver.taken.values())

    def asked(given: Settings) -> list[Any]:
        with running(given) as service:
            rows = asyncio.run(reported(service.url))
            until(lambda: asyncio.run(waiting()) == (0, 0))
            return rows

    async def waiting() -> tuple[int, int]:
        async with await Store.open(server.url) as store:
            return await webhooks.waiting(store, "crm")

    async def reported(url: str) -> list[Any]:
        async with ClientSession(url) as session:
            client = Client(session)
            await client.decide("ada")
            await client.decide("bob")
            happened = [("ada", "step"), ("ada", "survey"), ("bob", "step"), ("ada", "step")]
            steps = [
                {"outcome_id": f"o{i}", "program": "small", "customer_id": who, "event": event}
                for i, (who, event) in enumerate(happened)  # the last is of the same moment: one word is enough
            ]
            steps.append({**steps[0], "outcome_id": "old", "at": "2026-01-01T00:00:00Z"})
            steps.append({**steps[0], "outcome_id": "refused", "event": "leap"})
            found = (await client.ask("POST", "/v1/outcomes", steps)).json["decide_now"]
            assert isinstance(found, list)
            return found

    rows, sent = asyncio.run(scene())
    assert [(r["index"], r["customer_id"], r["event"], r["reason"]) for r in rows] == [
        (0, "ada", "step", "quick_win"),
        (2, "bob", "step", "quick_win"),
    ]
    assert sent == ["quick_win", "quick_win"]


# Settings.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"NUDGE_WEBHOOK_URL": "http://shop.example/h"}, "NUDGE_WEBHOOK_URL starts with 'http': expected https://"),
        ({"NUDGE_WEBHOOK_URL": "http://127.0.0.1/h"}, "NUDGE_WEBHOOK_URL is on this machine: .*LOOPBACK=1"),
        ({"NUDGE_WEBHOOK_URL": "https://u:p@shop.example"}, "has a user or a password in it"),
        ({"NUDGE_WEBHOOK_URL": "https://shop.example:x/"}, "is not an address"),
        ({"NUDGE_WEBHOOK_URL": "https://shop.example", "NUDGE_WEBHOOK_SECRET": ""}, "SECRET is missing: make one"),
        ({"NUDGE_WEBHOOK_URL": "https://shop.example", "NUDGE_WEBHOOK_SECRET": "whsec_short"}, "24 to 64 bytes"),
        ({"NUDGE_WEBHOOK_URL": "https://shop.example", "NUDGE_WEBHOOK_EVENTS": "all"}, "all cannot be sent: use some"),
    ],
)
def test_a_target_that_cannot_be_right_is_refused_with_what_to_type(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        settings.load({"NUDGE_WEBHOOK_SECRET": SECRET, **given})
    assert SECRET not in str(refused.value)


def test_targets_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "webhooks.toml").write_text(
        f'[[targets]]\nname = "crm"\nurl = "https://crm.example/h"\nsecret = ["{SECRET}", "{OLD}"]\n'
        'events = ["decision.made"]\nprograms = ["small-wins"]\n'
    )
    environment = {
        "NUDGE_HOME": str(tmp_path),
        "NUDGE_WEBHOOK_URL": "https://shop.example",
        "NUDGE_WEBHOOK_SECRET": OLD,
    }
    default, crm = settings.load(environment).targets
    assert (default.name, default.kinds, crm.secrets) == ("default", ("decision.requested",), (SECRET, OLD))
    assert crm.wants("decision.made", "small-wins")
    assert not crm.wants("decision.made", "loyalty-loop")
    assert not crm.wants("decision.requested", "small-wins")
    twice = (tmp_path / "webhooks.toml").read_text().replace('"crm"', '"default"')
    (tmp_path / "webhooks.toml").write_text(twice)
    with pytest.raises(ValueError, match="'default' is there twice"):
        settings.load(environment)
    (tmp_path / "webhooks.toml").write_text("[[targets]]\nnme = 1\n")
    with pytest.raises(ValueError, match=r"webhooks.toml: .*nme"):
        settings.load(environment)


def test_a_message_reads_as_it_was_kept() -> None:
    message = hooks.Message(id="m", target="t", kind=KINDS[0], customer_id="c", body=b"{}", made_at=NOON, attempts=2)
    assert hooks.decode(msgspec.msgpack.encode(replace(message, error="e"))) == replace(message, error="e")
