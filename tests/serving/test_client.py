"""The client: typed answers from a real service, and what it does when the way there is bad."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving import auth, embedded, schemas
from serving import client as clients
from serving.client import Client, Outcome, ProblemError, UnreachableError
from serving.settings import Settings
from tests.serving.running import Running, running, write_program

ODD = {
    "page": b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n<html></html>\r\n",
    "empty": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "login": b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nConnection: close\r\n\r\n",
    "null": b'HTTP/1.1 422 No\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"errors":null}',
}
"""What others answer in the service's place."""

Fault = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    write_program(home)
    with embedded.serve(home / "store") as server, running(Settings(home=home, redis_url=server.url)) as service:
        yield service


class Slept:
    """Remembers how long was slept, and does not sleep."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)


@asynccontextmanager
async def through(service: Running, faults: list[str]) -> AsyncIterator[str]:
    """Stand between client and service, and spoil one exchange after the other as told; then let all pass.

    `refuse` closes before anything is read, `lose` lets the service work and cuts the reply in the middle,
    `503` and `429` answer so, `hang` never answers.
    """
    port = int(service.url.rpartition(":")[2])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = faults.pop(0) if faults else "pass"
        try:
            if fault != "refuse":
                await spoil(fault, reader, writer)
        finally:
            writer.close()

    async def spoil(fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(v) for k, v in _headers(head) if k == b"content-length"), 0)
        body = await reader.readexactly(length)
        if fault in ODD:
            writer.write(ODD[fault])
        elif fault.isdecimal():
            lines = (f"HTTP/1.1 {fault} Busy", "Retry-After: 1", "Connection: close", "Content-Length: 2", "", "{}")
            writer.write("\r\n".join(lines).encode())
        elif fault == "hang":
            await reader.read()
        else:
            inner, outer = await asyncio.open_connection("127.0.0.1", port)
            outer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
            answer = await inner.read()
            writer.write(answer[: len(answer) // 2] if fault == "lose" else answer)
            outer.close()
        await writer.drain()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _headers(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        yield name.lower(), value.strip()


async def test_every_call_gives_its_type(service: Running) -> None:
    async with Client(service.url) as nudge:
        profile = await nudge.change_customer("ada", consent=True, attributes={"plan": "gold"})
        assert (profile.consent, profile.attributes) == (True, {"plan": "gold"})
        decision = await nudge.decide("small", "ada", only={"incentive": ["badge"]}, context={"tenure": 2.0})
        while decision.action is None:
            decision = await nudge.decide("small", "ada", only={"incentive": ["badge"]}, context={"tenure": 2.0})
        assert decision.action.incentive == "badge"
        assert decision.message
        why = await nudge.explain("small", "ada", decision.decision_id)
        assert why.blocked["incentive=gift"]
        assert (await nudge.hand_off("small", "ada", decision.decision_id)).deliver
        received = await nudge.report("small", "ada", "step", decision_id=decision.decision_id)
        assert (received.accepted, received.duplicates) == (1, 0)
        rows = [Outcome(program="small", customer_id="ada", event=e) for e in ("step", "leap")]
        many = await nudge.report_many(rows)
        assert (many.accepted, many.errors[0].index, many.errors[0].code) == (1, 1, "unknown_event")
        state = await nudge.customer("small", "ada")
        assert (state.stage, state.milestones[0].done) == ("active", 2)
        assert decision in await nudge.history("small", "ada")
        assert (await nudge.dry_run("small", "ada", at="2031-05-01T12:00:00Z")).at.startswith("2031")
        batch = await nudge.decide_batch([{"program": "small", "customer_id": f"b{i}"} for i in range(3)])
        assert [d.customer_id for d in batch] == ["b0", "b1", "b2"]
        assert await nudge.pause("small", "incentive=coupon") == ["incentive=coupon"]
        assert await nudge.resume("small", "incentive=coupon") == []
        served = await nudge.program("small")
        assert (served.name, "step" in served.events, served.budget) == ("small", True, None)
        assert await nudge.erase("ada")
        assert not await nudge.erase("ada")


def test_its_types_have_the_fields_of_the_contract() -> None:
    names = ("Decision", "Explanation", "HandedOff", "Profile", "CustomerState", "Latest", "RowError", "Received",
             "DecideNow", "Served", "BudgetState")  # fmt: skip
    for name in names:
        ours, contract = getattr(clients, name), getattr(schemas, name)
        assert {f.name for f in msgspec.structs.fields(ours)} == set(contract.model_fields), name


@pytest.mark.parametrize("fault", ["page", "empty", "login"])
async def test_whatever_else_answers_in_the_place_of_the_service_is_no_answer(service: Running, fault: str) -> None:
    async with through(service, [fault] * 8) as url, Client(url, seconds=30.0, pause=Slept()) as nudge:
        with pytest.raises(UnreachableError):
            await nudge.decide("small", "odd")
    async with through(service, [fault] * 8) as url, Client(url, pause=Slept(), hold_on_failure=True) as nudge:
        assert (await nudge.decide("small", "odd")).degraded


async def test_a_problem_that_names_no_errors_is_a_problem(service: Running) -> None:
    async with through(service, ["null"]) as url, Client(url) as nudge:
        with pytest.raises(ProblemError) as refused:
            await nudge.decide("small", "odd")
    assert (refused.value.status, refused.value.errors) == (422, [])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_number_that_json_does_not_have_is_not_sent(service: Running, number: float) -> None:
    async with Client(service.url) as nudge:
        with pytest.raises(ValueError, match="finite"):
            await nudge.report("small", "nan", "step", value=number)
        with pytest.raises(ValueError, match="finite"):
            await nudge.decide("small", "nan", context={"tenure": number})
        with pytest.raises(ProblemError):
            await nudge.customer("small", "nan")


@pytest.mark.parametrize("fault", ["refuse", "lose", "503", "429"])
async def test_what_goes_wrong_on_the_way_is_tried_again_and_counts_once(service: Running, fault: str) -> None:
    slept = Slept()
    async with through(service, [fault, fault]) as url, Client(url, seconds=30.0, pause=slept) as nudge:
        decision = await nudge.decide("small", f"once-{fault}")
        history = await nudge.history("small", f"once-{fault}")
    assert [d.decision_id for d in history] == [decision.decision_id]
    assert len(slept.pauses) == 2
    if fault.isdecimal():
        assert all(1.0 <= p <= 1.05 for p in slept.pauses), "Retry-After is honoured"
    else:
        assert slept.pauses[0] < 0.05
        assert slept.pauses[1] < 0.1


async def test_an_outcome_whose_reply_was_lost_counts_once(service: Running) -> None:
    async with through(service, []) as url, Client(url, seconds=30.0) as nudge:
        await nudge.decide("small", "lost")
    async with through(service, ["lose"]) as url, Client(url, seconds=30.0, pause=Slept()) as nudge:
        received = await nudge.report("small", "lost", "step")
        assert (received.accepted, received.duplicates) == (0, 1), "it was kept the first time"
        assert (await nudge.customer("small", "lost")).milestones[0].done == 1


async def test_pauses_double_at_random_and_end_with_the_tries(service: Running) -> None:
    slept = Slept()
    chance: dict[str, Any] = {"chance": lambda: 0.5, "pause": slept}
    async with through(service, ["refuse"] * 9) as url, Client(url, seconds=30.0, tries=5, **chance) as nudge:
        with pytest.raises(UnreachableError, match="could not be asked"):
            await nudge.decide("small", "away")
    assert slept.pauses == [0.025, 0.05, 0.1, 0.2]


async def test_a_service_that_hangs_costs_no_more_than_the_time_given(service: Running) -> None:
    clock = asyncio.get_running_loop().time
    async with through(service, ["hang"] * 9) as url, Client(url, seconds=0.4, tries=9) as nudge:
        started = clock()
        with pytest.raises(UnreachableError):
            await nudge.decide("small", "slow")
        assert clock() - started < 2.0
    async with through(service, ["hang"]) as url, Client(url, seconds=4.0) as nudge:
        assert not (await nudge.decide("small", "slow")).degraded, "a call that hangs leaves time for another"


async def test_a_pause_that_is_longer_than_the_time_left_is_not_waited_for(service: Running) -> None:
    async with through(service, ["503"] * 9) as url, Client(url, seconds=0.5) as nudge:
        with pytest.raises(ProblemError) as refused:
            await nudge.decide("small", "busy")
    assert refused.value.status == 503


@pytest.mark.parametrize("fault", ["refuse", "503", "429", "hang"])
async def test_hold_is_answered_on_failure_if_asked_for(service: Running, fault: str) -> None:
    async with through(service, [fault] * 99) as url, Client(url, seconds=0.3, hold_on_failure=True) as nudge:
        decision = await nudge.decide("small", "safe", decision_id="mine")
        batch = await nudge.decide_batch([{"program": "small", "customer_id": "safe-2"}])
        with pytest.raises((UnreachableError, ProblemError)):
            await nudge.report("small", "safe", "step")
    assert (decision.degraded, decision.action, decision.decision_id) == (True, None, "mine")
    assert (batch[0].degraded, batch[0].hold_reason) == (True, "degraded")


async def test_what_is_refused_is_raised_at_once_with_its_reasons(service: Running) -> None:
    slept = Slept()
    async with Client(service.url, pause=slept, hold_on_failure=True) as nudge:
        with pytest.raises(ProblemError, match="not a declared attribute") as refused:
            await nudge.decide("small", "wrong", context={"plna": "gold"})
        assert (refused.value.status, refused.value.type) == (422, "urn:nudge:problem:invalid-request")
        assert refused.value.errors[0]["field"] == "context.plna"
        with pytest.raises(ProblemError) as unknown:
            await nudge.report("small", "wrong", "leap")
        assert unknown.value.errors[0]["code"] == "unknown_event"
    assert slept.pauses == []


async def test_its_key_is_sent_and_ids_may_be_anything(tmp_path: Path) -> None:
    write_program(tmp_path)
    token = auth.create(tmp_path / "keys.json", "app", scopes=["decide"])
    with (
        embedded.serve(tmp_path / "store") as server,
        running(Settings(home=tmp_path, redis_url=server.url)) as service,
    ):
        async with Client(service.url, key=token) as nudge:
            for name in ("a b", "ü?&#%2F", "../x y"[3:], "{0}"):
                decision = await nudge.decide("small", name)
                assert (await nudge.explain("small", name, decision.decision_id)).customer_id == name
        async with Client(service.url) as nudge:
            with pytest.raises(ProblemError, match="no API key"):
                await nudge.decide("small", "ada")


async def test_many_at_once_through_a_bad_line_are_each_decided_once(service: Running) -> None:
    faults = ["refuse", "pass", "lose", "503", "pass"] * 12
    async with through(service, faults) as url, Client(url, seconds=60.0, tries=12, pause=Slept()) as nudge:
        decisions = await asyncio.gather(*(nudge.decide("small", f"crowd-{i % 10}") for i in range(40)))
        counts = Counter(d.customer_id for d in decisions)
        histories = [await nudge.history("small", name) for name in counts]
    assert [len(h) for h in histories] == list(counts.values())
    assert not any(d.degraded for d in decisions)


def test_it_loads_nothing_of_the_service() -> None:
    code = (
        "import sys, serving.client; print([m for m in ('fastapi', 'pydantic', 'numpy', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
