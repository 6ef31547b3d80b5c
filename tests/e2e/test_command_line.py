"""Every command says what it does, and says what is wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from optimizer.programs import read
from serving.cli import main
from tests.e2e.running import call as http
from tests.e2e.running import environment, nudge, nudge_json, served, serving, wait_until

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(main.commands)


def check(file: Path, *, home: Path) -> Any:
    """Return what `nudge program check` finds wrong with a file."""
    command = [sys.executable, "-m", "serving.cli", "program", "check", str(file), "--json"]
    done = subprocess.run(command, cwd=home, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return msgspec.json.decode(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert f"`nudge {name}`" in (ROOT / "README.md").read_text(encoding="utf-8")
    for part in command.commands.values() if isinstance(command, click.Group) else ():
        assert part.help


def test_help_imports_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from serving.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'fastapi', 'mlflow', 'sklearn', 'redis', 'pyarrow') if m in sys.modules])"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_broken_program_ends_with_code_2_and_names_key_and_mend(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(read("small-wins").replace("cap_per_week", "cap_per_weak", 1))
    found = check(file, home=tmp_path)
    assert not found["fit"]
    assert any("guardrails.cap_per_weak" in f["place"] and "spelling" in f["mend"] for f in found["findings"])
    assert "cap_per_weak" in nudge("program", "show", str(file), home=tmp_path, code=2)


def test_on_a_narrow_terminal_every_key_is_whole_and_reading_ease_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(read("small-wins").replace("cap_per_week", "a_key_that_is_much_longer_than_any_narrow_column", 1))
    monkeypatch.setenv("COLUMNS", "60")
    said = CliRunner().invoke(main, ["program", "check", str(file)])
    assert said.exit_code == 2
    (line,) = (line for line in said.stdout.splitlines() if line.startswith("fault"))
    assert f"{file}: guardrails.a_key_that_is_much_longer_than_any_narrow_column: " in line
    assert "1 fault, 0 warnings" in said.stdout
    assert "ease" in said.stdout


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    said = nudge("program", "show", "small-wins", "--map", "nowhere/map.html", home=tmp_path, code=2)
    assert "nowhere/map.html: No such file or directory; name another place" in said


@pytest.mark.parametrize("words", [("archive",), ("backup", "b"), ("erase", "ada"), ("webhooks", "list")])
def test_a_store_that_is_away_is_told_in_a_sentence(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUDGE_HOME", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/nobody")
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 2, said.exception
    assert said.stderr.startswith("nudge: the store at ")


@pytest.mark.parametrize("fault", [("programs/b.toml", "x ["), ("secret", "short")])
def test_what_workers_would_stumble_over_ends_the_command(
    fault: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / fault[0]).write_text(fault[1])
    monkeypatch.setenv("NUDGE_HOME", str(tmp_path))
    said = CliRunner().invoke(main, ("serve", "--workers", "2", "--port", "0", "--no-follow"))
    assert said.exit_code == 2, said.exception
    assert said.stderr.startswith("nudge: ")


@pytest.mark.parametrize("words", [("serve",), ("archive",), ("keys", "create", "app"), ("erase", "ada")])
def test_a_home_that_cannot_be_a_folder_is_named_with_what_to_do(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("NUDGE_HOME", str(tmp_path / "file" / "home"))
    said = CliRunner().invoke(main, words)
    assert said.exit_code == 2, said.exception
    assert said.stderr.startswith(f"nudge: {tmp_path}/file/home")
    assert said.stderr.endswith("Not a directory; name another place\n")


def test_a_new_program_passes_the_check_and_names_each_fault_by_its_row(tmp_path: Path) -> None:
    nudge("program", "new", "mine", home=tmp_path)
    file = tmp_path / "mine.toml"
    assert nudge_json("program", "check", str(file), home=tmp_path)["findings"] == []
    assert "exists already" in nudge("program", "new", "mine", home=tmp_path, code=2)
    file.write_text(file.read_text().replace('kind = "micro"', 'kind = "mikro"', 1))
    (fault,) = [f for f in check(file, home=tmp_path)["findings"] if "mikro" in f["problem"]]
    assert "events[" in fault["place"]


def test_a_journey_is_drawn(tmp_path: Path) -> None:
    nudge("program", "show", "small-wins", "--map", "map.html", home=tmp_path)
    assert "<svg" in (tmp_path / "map.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [("train",), ("evaluate",), ("audit",)])
def test_a_step_without_a_log_says_what_to_run_first(words: tuple[str, ...], tmp_path: Path) -> None:
    said = nudge(*words, "fitness-coaching", home=tmp_path, code=2)
    assert "run nudge archive or nudge import" in said
    assert "Traceback" not in said


def test_an_unknown_program_is_told_from_a_missing_file(tmp_path: Path) -> None:
    assert "no program 'fitnes'" in nudge("program", "show", "fitnes", home=tmp_path, code=2)


def test_a_shipped_program_can_be_shown_as_data(tmp_path: Path) -> None:
    shown = nudge_json("program", "show", "fitness-coaching", home=tmp_path)
    assert shown["actions"] == 301
    assert [s["stage"] for s in shown["stages"]][:2] == ["aware", "consider"]


def test_a_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    key = nudge("keys", "create", "shop", "--scope", "decide", home=tmp_path).strip()
    kept = (tmp_path / "var" / "keys.json").read_text(encoding="utf-8")
    assert key.rpartition("_")[2] not in kept
    assert nudge_json("keys", "list", home=tmp_path)[0]["name"] == "shop"


def test_the_public_address_is_refused_without_keys(tmp_path: Path) -> None:
    assert "nudge keys create" in nudge("serve", "--host", "0.0.0.0", home=tmp_path, code=2)


def test_what_was_acknowledged_is_archived_once(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        for i in range(20):
            ask = {"program": "fitness-coaching", "customer_id": f"c{i}", "decision_id": "d"}
            assert http("POST", f"{url}/v1/decide", ask)[0] == 200
        moved = nudge_json("archive", home=tmp_path)
    assert (moved["decisions"], moved["outcomes"]) == (20, 0)
    assert nudge_json("archive", home=tmp_path)["decisions"] == 0


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGTERM, 1), (signal.SIGKILL, 2)])
def test_whatever_ends_the_service_ends_all_that_it_has_started(tmp_path: Path, how: int, workers: int) -> None:
    with serving(tmp_path, "--workers", str(workers)) as (process, _):
        wait_until(lambda: "follow" in _family(process.pid).values(), what="the follower")
        family = _family(process.pid)
        assert "valkey-server" in family.values()
        process.send_signal(how)
        assert process.wait(60) == (0 if how == signal.SIGTERM else -how)
        wait_until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()], what=f"{family} to end")


def _family(pid: int) -> dict[int, str]:
    """Return the processes that one has started, and theirs, by what each does."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            name = "follow" if b"follow" in words else Path(f"/proc/{child}/exe").readlink().name
            found |= {child: name, **_family(child)}
    return found
