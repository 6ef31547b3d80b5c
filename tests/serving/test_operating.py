"""What an operator does while the service runs: edit a program, pause a policy, ask why, hand a nudge over."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest

from optimizer.customer import Sent, new_customer
from optimizer.policy import Rounds
from optimizer.program import Program
from policies.fixed import Hold
from policies.thompson import Thompson
from serving import embedded, programs, publishing
from serving import hand_off as handing
from serving.publishing import Slot
from serving.settings import Settings
from serving.store import Store
from tests.serving.running import Client, Running, running, until, write_program
from tests.small_program import NOON, OPEN, TOML, small

SLOT = Slot("small", "champion")

WITHOUT_SPENT = (
    """
[[events]]
name = "spent"
kind = "macro"
value = 0.1
scaled = true
""",
    "",
)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        # A machine that stands still for a second is not what is tested.
        yield Settings(
            home=tmp_path, redis_url=server.url, follow_seconds=0.02, decide_seconds=20.0, store_seconds=20.0
        )


@pytest.fixture
def service(settings: Settings) -> Iterator[Running]:
    with running(settings) as service:
        yield service


@pytest.fixture
async def client(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


async def publish(settings: Settings, policy: Any, *, version: str) -> None:
    folder = settings.home / f"saved-{version}"
    folder.mkdir()
    policy.save(folder)
    assert settings.redis_url
    async with await Store.open(settings.redis_url) as store:
        await publishing.publish(store, folder, SLOT, version=version, secret=publishing.secret(settings.secret_file))


def edit(settings: Settings, change: tuple[str, str]) -> None:
    """Edit the program as people do: in their own file, then `nudge program publish`."""
    draft = settings.home / "draft" / "programs" / "small.toml"
    write_program(settings.home / "draft", change=change)
    programs.publish(draft, folder=settings.programs)


async def version(client: Client) -> str:
    return str((await client.ask("GET", "/v1/programs/small")).json["version"])


async def until_version(client: Client, old: str) -> str:
    for _ in range(2_000):
        if (now := await version(client)) != old:
            return now
        await asyncio.sleep(0.005)
    raise AssertionError("the edit was not taken up")


async def nudge(client: Client, customer_id: str, **fields: object) -> Any:
    for _ in range(100):
        decision = await client.decide(customer_id, **fields)
        if decision["action"]:
            return decision
    raise AssertionError("always held")


async def report(client: Client, customer_id: str, event: str, **fields: object) -> Any:
    body = {"outcome_id": f"{customer_id}-{event}", "program": "small", "customer_id": customer_id, "event": event}
    return await client.ask("POST", "/v1/outcomes", {**body, **fields})


# Edited programs.


async def test_an_edited_program_is_taken_up_without_a_restart_and_keeps_its_policy(
    settings: Settings, client: Client, service: Running
) -> None:
    await publish(settings, Hold(small().space), version="7")
    until(lambda: service.service.deciders["small"].choosers["champion"].version == "7")
    before = await client.decide("ada", decision_id="before")
    old = await version(client)
    edit(settings, ("One more step and it is yours.", "Only one more."))
    new = await until_version(client, old)
    served = (await client.ask("GET", "/v1/programs/small")).json
    assert set(served["versions"]) == {old, new}
    assert served["policies"] == {"champion": {"name": "hold", "version": "7"}}
    after = await client.decide("ada", decision_id="after")
    assert (after["policy"], after["degraded"]) == ({"name": "hold", "version": "7"}, False)
    assert await client.decide("ada", decision_id="before") == before
    why = "/v1/decisions/{}?program=small&customer_id=ada"
    assert (await client.ask("GET", why.format("before"))).json["program_version"] == old
    assert (await client.ask("GET", why.format("after"))).json["program_version"] == new


async def test_a_policy_trained_on_the_old_version_decides_under_the_new_one_by_name(
    settings: Settings, client: Client, service: Running
) -> None:
    await publish(settings, Thompson(small().space), version="8")
    until(lambda: service.service.deciders["small"].choosers["champion"].version == "8")
    old = await version(client)
    added = '[[tones]]\nname = "calm"\ntitle = "Calm"\n\n[[timings]]\nname = "now"'
    said = '[messages.{0}.calm]\nsubject = "A"\nbody = "B"\ncall_to_action = "C"\n\n'
    words = "".join(said.format(i) for i in ("badge", "coupon", "gift"))
    write_program(settings.home / "wide", change=('[[timings]]\nname = "now"', added))
    file = settings.home / "wide" / "programs" / "small.toml"
    file.write_text(file.read_text().replace("[messages.badge.warm]", f"{words}[messages.badge.warm]"))
    programs.publish(file, folder=settings.programs)
    await until_version(client, old)
    body = {"program": "small", "customer_id": "wide", "only": {"tone": ["calm"]}}
    why = (await client.ask("POST", "/v1/decide/dry-run", body)).json
    assert why["policy"] == {"name": "thompson", "version": "8"}
    assert any("/calm/" in action for action in why["chances"])


async def test_what_was_decided_under_the_old_version_still_resolves(settings: Settings, client: Client) -> None:
    pending = await nudge(client, "bob", only={"timing": ["evening"]})
    old = await version(client)
    edit(settings, WITHOUT_SPENT)
    await until_version(client, old)
    assert (await client.decide("bob"))["hold_reason"] == "pending"
    late = await report(client, "bob", "spent", value=3.0)
    assert late.json["accepted"] == 1, "an event that only the old version declares still counts"
    assert (await report(client, "bob", "leap")).status == 422
    shown = await report(client, "bob", "not_shown", decision_id=pending["decision_id"])
    assert shown.json["accepted"] == 1
    assert (await client.decide("bob"))["hold_reason"] in {None, "chosen"}


async def test_a_faulty_edit_is_refused_told_and_forgotten_once_it_is_mended(
    settings: Settings, client: Client, service: Running
) -> None:
    file, old = settings.programs / "small.toml", await version(client)
    good = file.read_text()
    file.write_text(good.replace('goal = "upgraded"', 'goal = "upgrated"'))
    until(lambda: service.service.watch.faults)
    ready = await client.ask("GET", "/readyz")
    part = ready.json["parts"]["programs"]
    assert (ready.status, part["ok"], part["warning"]) == (200, True, True)
    assert "upgrated" in part["detail"]
    assert await version(client) == old
    assert (await client.decide("ada"))["degraded"] is False
    assert service.service.metrics.registry.get_sample_value("nudge_programs_refused_total") == 1
    file.write_text(good.replace("A small program", "A better one"))
    await until_version(client, old)
    assert (await client.ask("GET", "/readyz")).json["parts"]["programs"]["warning"] is False


async def test_a_new_program_is_served_as_soon_as_it_is_there(settings: Settings, client: Client) -> None:
    assert (await client.ask("GET", "/v1/programs/another")).status == 404
    write_program(settings.home, "another")
    asked = {"program": "another", "customer_id": "ada"}
    reply = await client.ask("POST", "/v1/decide", asked)
    for _ in range(2_000):
        if reply.status == 200:
            break
        await asyncio.sleep(0.005)
        reply = await client.ask("POST", "/v1/decide", asked)
    assert reply.json["program"] == "another"


async def test_requests_never_fail_while_programs_change(settings: Settings, client: Client) -> None:
    going, seen = True, []

    async def ask(i: int) -> None:
        number = 0
        while going:
            number += 1
            seen.append((await client.decide(f"c{i}-{number}"))["degraded"])

    asking = [asyncio.create_task(ask(i)) for i in range(8)]
    for title in ("One", "Two", "Three"):
        old = await version(client)
        edit(settings, ("A small program", title))
        await until_version(client, old)
    going = False
    await asyncio.gather(*asking)
    assert len(seen) > 20
    assert not any(seen)


# Pauses.


async def test_a_paused_policy_decides_nothing_more_and_the_first_logger_stands_in(
    settings: Settings, client: Client, service: Running
) -> None:
    await publish(settings, Hold(small().space), version="7")
    until(lambda: service.service.deciders["small"].choosers["champion"].version == "7")
    paused = await client.ask("POST", "/v1/programs/small/pause", {"level": "policy=champion"})
    assert paused.json == {"program": "small", "paused": ["policy=champion"]}
    stood_in = await client.decide("ada")
    assert (stood_in["policy"], stood_in["degraded"]) == ({"name": "uniform", "version": "0"}, False)
    await client.ask("POST", "/v1/programs/small/resume", {"level": "policy=champion"})
    assert (await client.decide("ada"))["policy"] == {"name": "hold", "version": "7"}
    refused = await client.ask("POST", "/v1/programs/small/pause", {"level": "policy=nobody"})
    assert refused.status == 422


# Why.


def taught() -> Thompson:
    """A policy that has seen badges earn and nothing else."""
    policy, space = Thompson(small().space), small().space
    n, chance = 400, np.random.default_rng(5)
    actions = chance.integers(0, space.k, n)
    rewards = np.where(space.levels[actions, 0] == 0, 1.0, 0.0) * (actions > 0)
    contexts = np.zeros((n, len(space.features)))
    contexts[:, 0] = 1.0
    policy.learn(
        Rounds(
            contexts=contexts,
            actions=actions,
            rewards=rewards,
            probabilities=np.full((n, space.k), 1.0 / space.k, dtype="<f4"),
            allowed=np.ones((n, space.k), dtype=np.bool_),
            cost_prices=np.zeros(n),
            burdens=np.zeros(n),
            at=np.arange(n, dtype=np.float64),
            customers=np.arange(n),
            loggers=np.array(["uniform"] * n),
        )
    )
    return policy


async def test_an_explanation_scores_every_level_of_every_factor(
    settings: Settings, client: Client, service: Running
) -> None:
    await publish(settings, taught(), version="9")
    until(lambda: service.service.deciders["small"].choosers["champion"].version == "9")
    decision = await client.decide("ada")
    why = f"/v1/decisions/{decision['decision_id']}?program=small&customer_id=ada"
    scores = (await client.ask("GET", why)).json["scores"]
    factors = ("incentive=badge", "incentive=coupon", "incentive=gift", "tone=warm", "tone=playful")
    assert set(scores) == {"nudge", *factors, "timing=now", "timing=evening"}
    assert scores["incentive=badge"] - scores["incentive=coupon"] > 0.5, "blocked levels are compared as well"
    assert abs(scores["tone=warm"] - scores["tone=playful"]) < 0.3
    await publish(settings, Hold(small().space), version="10")
    until(lambda: service.service.deciders["small"].choosers["champion"].version == "10")
    assert (await client.ask("GET", why)).json["scores"] is None, "the policy that thought so serves no longer"


# Hand-off.


async def hand_off(client: Client, decision: Any) -> Any:
    body = {"program": "small", "customer_id": decision["customer_id"]}
    reply = await client.ask("POST", f"/v1/decisions/{decision['decision_id']}/hand-off", body)
    assert reply.status == 200, reply.raw
    return reply.json


async def test_a_nudge_that_still_is_allowed_may_be_delivered(client: Client) -> None:
    decision = await nudge(client, "ada", only={"timing": ["evening"]})
    answers = [await hand_off(client, decision) for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0]["deliver"], answers[0]["reason"]) == (True, None)
    assert answers[0]["deliver_at"] == decision["deliver_at"]
    assert answers[0]["expires_at"] == decision["expires_at"]


@pytest.mark.parametrize("how", ["opt_out", "consent", "program", "incentive", "timing", "policy", "left"])
async def test_what_happened_since_the_decision_cancels_it(client: Client, how: str) -> None:
    decision = await nudge(client, how, only={"timing": ["evening"], "tone": ["playful"]})
    level = {"incentive": "incentive=badge", "timing": "timing=evening", "policy": "policy=champion"}.get(
        how, "program"
    )
    if how == "opt_out":
        await report(client, how, "opt_out")
    elif how == "consent":
        await client.ask("PUT", f"/v1/customers/{how}", {"consent": False})
    elif how == "left":
        decision = await nudge(client, "left-2", only={"timing": ["evening"], "tone": ["playful"]})
        await report(client, "left-2", "not_shown", decision_id=decision["decision_id"])
    else:
        await client.ask("POST", "/v1/programs/small/pause", {"level": level})
    answer = await hand_off(client, decision)
    expected = {"opt_out": "consent", "consent": "consent", "left": "cancelled"}.get(how, "paused")
    assert (answer["deliver"], answer["reason"]) == (False, expected)
    again = await hand_off(client, decision)
    assert (again["deliver"], again["reason"]) == (False, "cancelled"), "what it had reserved is free again"


async def test_what_was_shown_or_never_a_nudge_is_not_handed_off(client: Client) -> None:
    decision = await nudge(client, "ada")
    await report(client, "ada", "shown", decision_id=decision["decision_id"])
    assert (await hand_off(client, decision))["reason"] == "shown"
    held = await client.decide("held", only={"incentive": []})
    assert (await hand_off(client, held))["reason"] == "hold"
    unknown = await client.ask("POST", "/v1/decisions/x/hand-off", {"program": "small", "customer_id": "ada"})
    assert (unknown.status, unknown.json["type"]) == (404, "urn:nudge:problem:unknown-decision")


def test_what_expired_is_given_back_only_where_the_program_reports_what_is_shown() -> None:
    kept = b'{"action":{"incentive":"badge","tone":"warm","timing":"now"}}\n{"arm":"champion"}'
    until = NOON + 60.0
    sent = Sent(decision_id="d", incentive="badge", deliver_at=NOON, day=0, cost=0, period=0, expires_at=until)
    for extra, given_back in (("", False), ("reports_shown = true\n", True)):
        program = Program.parse(TOML + OPEN + extra, source="")
        person = msgspec.structs.replace(new_customer(program, "ada", at=NOON), sent=(sent,))
        checked = handing.check(program, person, kept=kept, decision_id="d", paused=frozenset(), at=until + 1.0)
        assert (checked.deliver, checked.reason, checked.releases) == (False, "expired", given_back)


async def test_what_is_paused_can_be_resumed_once_an_edit_has_removed_it(client: Client, settings: Settings) -> None:
    assert settings.redis_url
    async with await Store.open(settings.redis_url) as store:
        await store.pause("small", "incentive=gone")
    reply = await client.ask("POST", "/v1/programs/small/resume", {"level": "incentive=gone"})
    assert (reply.status, reply.json["paused"]) == (200, [])
    assert (await client.ask("POST", "/v1/programs/small/resume", {"level": "incentive=gone"})).status == 422


def test_a_file_that_cannot_be_read_does_not_hide_the_edit_of_another(tmp_path: Path) -> None:
    write_program(tmp_path, "mine")
    (tmp_path / "programs" / "zz.toml").mkdir()
    watch = programs.Watch(tmp_path / "programs")
    assert [source.program.name for source in watch.look()] == ["mine"]
    (fault,) = watch.faults
    assert "cannot be read: Is a directory" in str(fault)
    (tmp_path / "programs" / "zz.toml").rmdir()
    assert (watch.look(), watch.faults) == ([], [])
    (tmp_path / "programs" / "zz.toml").mkdir()
    assert watch.look() == []
    (tmp_path / "programs" / "zz.toml").rmdir()
    write_program(tmp_path, "zz")
    assert ([source.program.name for source in watch.look()], watch.faults) == (["zz"], [])
    (tmp_path / "programs" / "zz.toml").unlink()
    assert watch.look() == []
    assert "'zz' is served as it was" in str(watch.faults[0])


def test_a_file_that_becomes_readable_is_taken_up_though_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(tmp_path, "mine")
    watch = programs.Watch(tmp_path / "programs")

    def forbidden(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "_text", forbidden)
        assert (watch.look(), len(watch.faults)) == ([], 1)
    assert ([source.program.name for source in watch.look()], watch.faults) == (["mine"], [])
