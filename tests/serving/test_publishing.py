"""How policies reach the service: signed, checked, swapped under load, refused when they are bad."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.actions import Bools, Floats, Nudge
from optimizer.engine import CHALLENGER, CHAMPION, Chooser
from optimizer.policy import Policy
from policies.fixed import FixedNudge, Hold, Uniform
from serving import embedded, publishing
from serving.publishing import Slot
from serving.settings import Settings
from serving.store import Published, Store
from tests.serving.running import Client, Running, running, until, write_program
from tests.small_program import Even, small

SECRET = b"s" * 32
SLOT = Slot("small", CHAMPION)


def saved(folder: Path, policy: Policy) -> Path:
    folder.mkdir(parents=True)
    policy.save(folder)
    return folder


@pytest.fixture
def payload(tmp_path: Path) -> bytes:
    folder = saved(tmp_path / "saved", Hold(small().space))
    return publishing.pack(folder, SLOT, version="7", secret=SECRET)


def test_what_is_unpacked_is_what_was_packed(payload: bytes, tmp_path: Path) -> None:
    files = publishing.unpack(payload, SLOT, version="7", secret=SECRET)
    assert files == {n: (tmp_path / "saved" / n).read_bytes() for n in ("policy.json", "arrays.npz")}
    chooser = publishing.load(files, small(), version="7")
    assert (chooser.name, chooser.version) == ("hold", "7")


@pytest.mark.parametrize(
    ("slot", "version", "secret", "says"),
    [
        (SLOT, "7", b"t" * 32, "signature is wrong"),
        (SLOT, "8", SECRET, "version '7', and found under small, champion, version '8'"),
        (Slot("other", CHAMPION), "7", SECRET, "signed for small"),
        (Slot("small", CHALLENGER), "7", SECRET, "found under small, challenger"),
    ],
)
def test_a_policy_signed_for_something_else_is_refused(
    payload: bytes, slot: Slot, version: str, secret: bytes, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        publishing.unpack(payload, slot, version=version, secret=secret)


@given(st.data())
def test_a_policy_with_any_byte_changed_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = saved(tmp_path_factory.mktemp("p") / "saved", Hold(small().space))
    payload = publishing.pack(folder, SLOT, version="7", secret=SECRET)
    at = data.draw(st.integers(0, len(payload) - 1))
    change = data.draw(st.integers(1, 255))
    changed = payload[:at] + bytes([payload[at] ^ change]) + payload[at + 1 :]
    with pytest.raises(ValueError, match="publish it again"):
        publishing.unpack(changed, SLOT, version="7", secret=SECRET)


@pytest.mark.parametrize("cut", [0, 10, 40, -1])
def test_a_truncated_policy_is_refused(payload: bytes, cut: int) -> None:
    with pytest.raises(ValueError, match="publish it again"):
        publishing.unpack(payload[:cut], SLOT, version="7", secret=SECRET)


def npz(**arrays: Any) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


def with_member(content: bytes, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as members:
        members.writestr("weights.npy", content)
    return packed.getvalue()


def header(text: str) -> bytes:
    line = text.ljust(118 - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line.encode()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (npz(weights=np.array([object()])), "expected plain numbers"),
        (npz(weights=np.zeros((1,) * 5)), "5-dimensional"),
        (with_member(header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }")), "8000000000 bytes"),
        (with_member(b"\0" * 10_000, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (with_member(b"not an array"), "magic"),
        (b"not a zip file", "cannot be read"),
    ],
)
def test_arrays_that_are_not_what_their_header_says_are_refused_unread(arrays: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        publishing.check_arrays(arrays)


def test_plain_arrays_pass(tmp_path: Path) -> None:
    publishing.check_arrays(npz(a=np.zeros((2, 3)), b=np.array(["x", "yz"]), c=np.array(3, dtype=np.int32)))
    publishing.check_arrays(npz())


def test_a_folder_that_holds_no_policy_or_too_much_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no such file"):
        publishing.pack(tmp_path, SLOT, version="1", secret=SECRET)
    folder = saved(tmp_path / "saved", Hold(small().space))
    monkeypatch.setattr(publishing, "LARGEST", 100)
    with pytest.raises(ValueError, match="more than the 100"):
        publishing.pack(folder, SLOT, version="1", secret=SECRET)


class Broken(Even):
    """A policy that is wrong in a way of its choice."""

    def __init__(self, wrong: Callable[[Floats, Bools], Floats]) -> None:
        super().__init__(small().space)
        self.wrong = wrong

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        return self.wrong(super().probabilities(contexts, allowed, prices), allowed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda p, _: p * 0.9, "add up to 1"),
        (lambda p, _: p[:, 1:], "answers with shape"),
        (lambda p, _: p * np.nan, "negative or infinite"),
        (lambda p, _: 2 * p - (np.arange(p.shape[1]) == 0), "gives negative"),
        (lambda p, _: np.full(p.shape, 1 / p.shape[1]), "blocked actions"),
    ],
)
def test_a_policy_that_gives_no_distributions_fails_its_trial(
    wrong: Callable[[Floats, Bools], Floats], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        publishing.try_out(Chooser(Broken(wrong), "broken", "1"), small())
    publishing.try_out(publishing.uniform(small()), small())


def test_the_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "home" / "secret"
    first = publishing.secret(file)
    assert publishing.secret(file) == first
    assert len(first) == 64
    assert file.stat().st_mode & 0o077 == 0
    assert [p.name for p in file.parent.iterdir()] == ["secret"]
    assert publishing.secret(file, given="g" * 32) == b"g" * 32
    file.write_text("short")
    with pytest.raises(ValueError, match="holds 5 characters, expected 32"):
        publishing.secret(file)


# In service.


@asynccontextmanager
async def asking(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


async def publish(settings: Settings, folder: Path, *, version: str) -> None:
    secret = publishing.secret(settings.secret_file)
    async with await Store.open(str(settings.redis_url)) as store:
        await publishing.publish(store, folder, SLOT, version=version, secret=secret)


async def served(client: Client) -> str:
    shown = await client.ask("GET", "/v1/programs/small")
    return str(shown.json["policies"]["champion"]["version"])


async def until_served(client: Client, version: str) -> None:
    async with asyncio.timeout(20):
        while await served(client) != version:  # noqa: ASYNC110  (the service says so when asked)
            await asyncio.sleep(0.01)


async def test_a_policy_is_swapped_under_load_without_a_failed_request(tmp_path: Path) -> None:
    write_program(tmp_path)
    program = small()
    policies: list[Policy] = [
        FixedNudge(program.space, nudge=Nudge("badge", "warm", "now")),
        Hold(program.space),
        Uniform(program.space),
    ]
    with embedded.serve(tmp_path / "store") as server:
        # A machine that stands still for a second is not what is tested.
        settings = Settings(
            home=tmp_path, redis_url=server.url, follow_seconds=0.02, decide_seconds=20.0, store_seconds=20.0
        )
        with running(settings) as service:
            async with asking(service) as client:
                stopping, answers = asyncio.Event(), []

                async def load(worker: int) -> None:
                    i = 0
                    while not stopping.is_set():
                        answers.append(await client.decide(f"w{worker}-{i}"))
                        i += 1

                workers = [asyncio.create_task(load(i)) for i in range(8)]
                for i, policy in enumerate(policies):
                    await publish(settings, saved(tmp_path / f"p{i}", policy), version=str(i + 1))
                    await until_served(client, str(i + 1))
                stopping.set()
                await asyncio.gather(*workers)
    versions = [a["policy"]["version"] for a in answers]
    assert {"0", "1", "2"} <= set(versions) <= {"0", "1", "2", "3"}
    assert not any(a["degraded"] for a in answers)
    likely = {"1": "badge", "2": None}
    for version, incentive in likely.items():
        chosen = [a["action"] and a["action"]["incentive"] for a in answers if a["policy"]["version"] == version]
        assert chosen.count(incentive) >= len(chosen) * 0.5


async def test_a_tampered_policy_is_refused_and_the_old_one_keeps_serving(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(home=tmp_path, redis_url=server.url, follow_seconds=0.02)
        with running(settings) as service:
            async with asking(service) as client, await Store.open(server.url) as store:
                folder = saved(tmp_path / "p", Hold(small().space))
                await publish(settings, folder, version="good")
                await until_served(client, "good")
                payload = publishing.pack(folder, SLOT, version="bad", secret=b"x" * 32)
                await store.publish_policy(*SLOT, Published("bad", payload))
                metrics = service.service.metrics
                until(lambda: metrics.registry.get_sample_value("nudge_policies_refused_total", SLOT._asdict()) == 1)
                assert await served(client) == "good"
                assert (await client.decide("ada"))["policy"] == {"name": "hold", "version": "good"}
                await publish(settings, folder, version="better")
                await until_served(client, "better")


async def test_the_last_good_copy_serves_when_nothing_is_published_or_the_store_is_away(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(home=tmp_path, redis_url=server.url, follow_seconds=0.02)
        with running(settings) as service:
            async with asking(service) as client:
                await publish(settings, saved(tmp_path / "p", Hold(small().space)), version="7")
                await until_served(client, "7")
    with embedded.serve(tmp_path / "another") as server:
        again = Settings(home=tmp_path, redis_url=server.url)
        with running(again) as service:
            async with asking(service) as client:
                assert (await client.decide("ada"))["policy"] == {"name": "hold", "version": "7"}
    with running(again) as service:
        assert service.service.deciders["small"].choosers[CHAMPION].version == "7"


async def test_a_copy_on_disk_that_was_changed_is_not_served(tmp_path: Path) -> None:
    write_program(tmp_path)
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(home=tmp_path, redis_url=server.url, follow_seconds=0.02)
        with running(settings) as service:
            async with asking(service) as client:
                await publish(settings, saved(tmp_path / "p", Hold(small().space)), version="7")
                await until_served(client, "7")
        file = settings.policies / "small.champion.policy"
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    with running(settings) as service:
        assert service.service.deciders["small"].choosers[CHAMPION].version == "0"


async def test_a_challenger_serves_its_own_customers(tmp_path: Path) -> None:
    write_program(tmp_path, extra='\n[guardrails]\nconsent = "opt-out"\n[experiment]\nchallenger = 0.5\n')
    with embedded.serve(tmp_path / "store") as server:
        settings = Settings(home=tmp_path, redis_url=server.url, follow_seconds=0.02)
        with running(settings) as service:
            async with asking(service) as client, await Store.open(server.url) as store:
                folder = saved(tmp_path / "p", Hold(small().space))
                secret = publishing.secret(settings.secret_file)
                await publishing.publish(store, folder, Slot("small", CHALLENGER), version="5", secret=secret)
                until(lambda: CHALLENGER in service.service.deciders["small"].choosers)
                policies = [(await client.decide(f"c{i}"))["policy"]["version"] for i in range(40)]
    assert {policies.count(v) > 5 for v in ("0", "5")} == {True}
