"""API keys: made, listed, rotated and revoked; and who is let in."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving import auth
from serving.auth import ANYBODY, Gate
from serving.problems import ProblemError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(*, key: str = "", client: str = "127.0.0.1", host: str = "127.0.0.1:8000") -> dict[str, Any]:
    headers = [(b"host", host.encode())]
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    return {"client": (client, 50_000), "headers": headers}


def refusal(gate: Gate, connection: dict[str, Any], needed: auth.Scope = "decide") -> ProblemError:
    with pytest.raises(ProblemError) as refused:
        gate.admit(connection, needed)
    return refused.value


def test_a_key_is_shown_once_and_only_its_hash_is_kept(file: Path) -> None:
    token = auth.create(file, "app", scopes=["decide"])
    assert len(token.rpartition("_")[2]) == 64, "256 random bits"
    assert token.rpartition("_")[2] not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert auth.listed(file)[0] | {"created_at": ""} == {
        "name": "app",
        "scopes": ("decide",),
        "programs": (),
        "created_at": "",
    }
    assert "sha256" not in auth.listed(file)[0]


def test_keys_differ_and_each_lets_in_its_own_name(file: Path) -> None:
    tokens = {n: auth.create(file, n, scopes=["decide"]) for n in ("one", "two")}
    gate = Gate(file, rate=1.0)
    assert {n: gate.admit(asked(key=t), "decide").name for n, t in tokens.items()} == {"one": "one", "two": "two"}
    mixed = tokens["one"][:19] + tokens["two"][19:]
    assert refusal(gate, asked(key=mixed)).status == 401


def test_a_rotated_key_keeps_its_scopes_and_ends_the_old_one(file: Path) -> None:
    clock = Time()
    old = auth.create(file, "app", scopes=["report"], programs=["small"])
    gate = Gate(file, rate=1.0, clock=clock)
    new = auth.rotate(file, "app")
    clock.now += 1.0
    assert refusal(gate, asked(key=old), "report").status == 401
    key = gate.admit(asked(key=new), "report")
    assert (key.scopes, key.programs) == (("report",), ("small",))
    assert key.may_see("small")
    assert not key.may_see("other")


def test_with_an_overlap_the_old_key_goes_on_until_it_ends(file: Path) -> None:
    clock, today = Time(), Time()
    old = auth.create(file, "app", scopes=["decide"])
    new = auth.rotate(file, "app", overlap=60.0, now=today.now)
    gate = Gate(file, rate=1.0, clock=clock, today=today)
    assert {gate.admit(asked(key=token), "decide").name for token in (old, new)} == {"app"}
    assert [("ends_at" in k) for k in auth.listed(file)] == [True, False]
    today.now += 59.0
    gate.admit(asked(key=old), "decide")
    today.now += 1.0
    assert "overlap has ended" in refusal(gate, asked(key=old)).detail
    gate.admit(asked(key=new), "decide")


def test_a_second_rotation_never_lets_an_older_key_live_longer(file: Path) -> None:
    today = Time()
    first = auth.create(file, "app", scopes=["decide"])
    auth.rotate(file, "app", overlap=60.0, now=today.now)
    auth.rotate(file, "app", overlap=600.0, now=today.now)
    gate = Gate(file, rate=1.0, today=today)
    today.now += 60.0
    assert refusal(gate, asked(key=first)).status == 401


def test_revoking_a_rotated_key_ends_both(file: Path) -> None:
    old = auth.create(file, "app", scopes=["decide"])
    new = auth.rotate(file, "app", overlap=3_600.0)
    auth.revoke(file, "app")
    gate = Gate(file, rate=1.0)
    for token in (old, new):
        assert refusal(gate, asked(key=token)).status == 401


def test_a_key_and_the_one_that_replaces_it_share_their_rate(file: Path) -> None:
    clock = Time()
    tokens = [auth.create(file, "app", scopes=["decide"]), auth.rotate(file, "app", overlap=3_600.0)]
    gate = Gate(file, rate=1.0, clock=clock)
    one, other = (gate.admit(asked(key=t), "decide") for t in tokens)
    gate.charge(one, 2)
    with pytest.raises(ProblemError):
        gate.charge(other, 1)


def test_a_revoked_key_is_useless_and_the_service_does_not_open(file: Path) -> None:
    clock = Time()
    token = auth.create(file, "app", scopes=["decide"])
    gate = Gate(file, rate=1.0, clock=clock)
    gate.admit(asked(key=token), "decide")
    auth.revoke(file, "app")
    clock.now += 1.0
    assert refusal(gate, asked(key=token)).status == 401
    assert refusal(gate, asked()).status == 401


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"keys": 3}'])
def test_a_file_that_vanishes_or_breaks_while_running_lets_nobody_in(file: Path, content: bytes | None) -> None:
    clock = Time()
    token = auth.create(file, "app", scopes=["decide"])
    gate = Gate(file, rate=1.0, clock=clock)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    clock.now += 1.0
    assert refusal(gate, asked(key=token)).status == 401
    assert refusal(gate, asked()).status == 401
    assert not gate.is_open


def test_a_broken_file_is_refused_at_start_with_its_name(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"keys": [{"name": "x"}]}))
    with pytest.raises(ValueError, match=r"keys\.json: not a file of API keys"):
        Gate(file, rate=1.0)


def test_keys_made_at_the_same_time_are_all_kept(file: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: auth.create(file, f"k{i}", scopes=["decide"]), range(24)))
    assert len(auth.listed(file)) == 24


@pytest.mark.parametrize(
    ("name", "scopes", "says"),
    [
        ("No Name", ["decide"], "expected 1 to 64"),
        ("", ["decide"], "expected 1 to 64"),
        ("ok", ["decide", "rule"], "'rule'"),
        ("ok", [], "expected one or more of decide, report, admin, simulate"),
        ("taken", ["decide"], "nudge keys rotate taken"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused(file: Path, name: str, scopes: list[str], says: str) -> None:
    auth.create(file, "taken", scopes=["decide"])
    with pytest.raises(ValueError, match=says):
        auth.create(file, name, scopes=scopes)
    assert len(auth.listed(file)) == 1


def test_an_unknown_name_is_refused_with_those_that_there_are(file: Path) -> None:
    auth.create(file, "app", scopes=["decide"])
    for change in (auth.rotate, auth.revoke):
        with pytest.raises(ValueError, match="no key named 'ap'; there are: app"):
            change(file, "ap")


def test_without_keys_this_machine_may_do_anything_and_nobody_else(file: Path) -> None:
    gate = Gate(file, rate=1.0)
    assert gate.admit(asked(), "simulate") is ANYBODY
    assert gate.admit(asked(client="::1", host="[::1]"), "admin") is ANYBODY
    assert gate.admit(asked(host="localhost:8000"), "admin") is ANYBODY
    assert refusal(gate, asked(client="192.168.1.7")).status == 401
    assert refusal(gate, asked(host="evil.example:8000")).status == 401, "a page elsewhere named itself 127.0.0.1"
    assert refusal(gate, {**asked(), "client": None}).status == 401


def test_the_first_key_closes_an_open_service(file: Path) -> None:
    clock = Time()
    gate = Gate(file, rate=1.0, clock=clock)
    assert gate.is_open
    token = auth.create(file, "app", scopes=["decide"])
    clock.now += 1.0
    assert refusal(gate, asked()).status == 401
    assert gate.admit(asked(key=token), "decide").name == "app"


def test_a_scope_that_is_missing_is_named_with_the_command_to_type(file: Path) -> None:
    gate = Gate(file, rate=1.0)
    token = auth.create(file, "app", scopes=["decide"])
    gate = Gate(file, rate=1.0)
    refused = refusal(gate, asked(key=token), "admin")
    assert refused.status == 403
    assert "--scope admin" in refused.detail


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer ", "bearer nudge_x", ""])
def test_a_header_without_a_key_is_refused(file: Path, header: str) -> None:
    auth.create(file, "app", scopes=["decide"])
    gate = Gate(file, rate=1.0)
    connection = asked()
    connection["headers"].append((b"authorization", header.encode()))
    assert refusal(gate, connection).status == 401


def test_a_key_may_send_its_rate_and_twice_as_much_at_once(file: Path) -> None:
    clock = Time()
    auth.create(file, "app", scopes=["decide"])
    (key,) = auth.read(file) or ()
    gate = Gate(file, rate=10.0, clock=clock)
    for _ in range(20):
        gate.charge(key, 1)
    with pytest.raises(ProblemError) as refused:
        gate.charge(key, 1)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    clock.now += 0.5
    for _ in range(5):
        gate.charge(key, 1)
    with pytest.raises(ProblemError):
        gate.charge(key, 1)


def test_a_large_request_gets_its_turn_and_is_paid_off(file: Path) -> None:
    clock = Time()
    auth.create(file, "app", scopes=["decide"])
    (key,) = auth.read(file) or ()
    gate = Gate(file, rate=10.0, clock=clock)
    gate.charge(key, 1000)
    clock.now += 97.0
    with pytest.raises(ProblemError) as refused:
        gate.charge(key, 1)
    assert refused.value.headers["Retry-After"] == "2"
    clock.now += 2.0
    gate.charge(key, 1)


def test_without_keys_there_is_no_rate(file: Path) -> None:
    gate = Gate(file, rate=0.001, clock=Time())
    for _ in range(100):
        gate.charge(ANYBODY, 1000)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_a_public_address_without_keys_is_refused(file: Path, host: str) -> None:
    with pytest.raises(ValueError, match="nudge keys create NAME"):
        auth.refuse_public(host, file)
    auth.refuse_public("127.0.0.1", file)
    auth.refuse_public("localhost", file)
    auth.create(file, "app", scopes=["decide"])
    auth.refuse_public(host, file)
    auth.revoke(file, "app")
    with pytest.raises(ValueError, match="refuses to listen"):
        auth.refuse_public(host, file)


def test_an_overlap_has_an_end(tmp_path: Path) -> None:
    auth.create(tmp_path / "keys.json", "app", scopes=["decide"])
    with pytest.raises(ValueError, match="at most 366 days"):
        auth.rotate(tmp_path / "keys.json", "app", overlap=400 * 86_400.0)
    assert len(auth.read(tmp_path / "keys.json") or ()) == 1
