"""Whether the project keeps what it says of itself: set-up, documents, and nothing of anyone's machine."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import grimp
import pytest
import threadpoolctl
from rich.console import Console

from benchmarks import __main__ as bench
from benchmarks import results
from policies import KINDS
from training.train import LEARNERS, NAMED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("requirements.txt", "requirements-dev.txt")

# Written apart, so that this file does not hold what it looks for.
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("deb", "debian", "org"),
        ("conda", "anaconda", "org"),
    )
)
MACHINE_PATH = re.compile(r"(?<![\w.}/])/(?:work|root|home/\w+|Users/\w+)/")


def test_every_make_target_is_in_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    documented = re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE)

    assert documented
    assert [target for target in documented if f"make {target}" not in README] == []


def test_every_folder_that_the_readme_names_exists() -> None:
    folders = re.findall(r"^\| `(\w+/)` \|", README, flags=re.MULTILINE)

    assert len(folders) >= 9
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_every_policy_is_on_its_page_and_there_as_it_says() -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|.*\| (.*) \|$", page, flags=re.MULTILINE)
    trained = {kind: how for kinds, how in rows for kind in re.findall(r"\w+", kinds)}

    assert trained.keys() == KINDS.keys()
    assert [kind for kind, how in trained.items() if how == "always"] == sorted(LEARNERS, key=list(trained).index)
    assert {kind for kind, how in trained.items() if how == "by name"} == set(NAMED)


def test_curl_examples_in_the_readme_are_marked_and_well_formed() -> None:
    blocks = re.findall(r"<!-- test: curl -->\n```bash\n(.*?)```", README, flags=re.DOTALL)

    assert blocks
    assert len(blocks) == len(re.findall(r"```bash\n(?:#[^\n]*\n)*curl", README)), "an example is not marked"
    for block in blocks:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for body in re.findall(r"-d '(.*?)'", block, flags=re.DOTALL):
            json.loads(body)


def test_the_picture_of_the_loop_is_drawn_and_shown() -> None:
    assert "docs/loop.svg" in README
    ET.parse(ROOT / "docs" / "loop.svg")


def test_the_changelog_has_a_place_for_what_comes() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_with_hashes_and_no_registry(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    requirements = text.replace("\\\n", " ").splitlines()
    pinned = re.compile(r"[a-z0-9._-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:")

    assert requirements
    assert [line for line in requirements if not pinned.match(line)] == []
    assert "://" not in text


def test_the_build_backend_is_the_pinned_one() -> None:
    [backend] = PYPROJECT["build-system"]["requires"]

    assert f"\n{backend} " in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8")


def test_runtime_dependencies_are_those_of_requirements_in() -> None:
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()

    assert PYPROJECT["project"]["dependencies"] == sorted(line for line in lines if line and line[0] != "#")


def test_no_file_names_a_registry_or_a_path_of_a_machine() -> None:
    listed = git("ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    found = [f"{name}: {place}" for name in listed for place in places(ROOT / name)]

    assert "pyproject.toml" in listed
    assert found == []


def test_a_registry_or_a_path_of_a_machine_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(f"https://{HOSTS[0]}/simple\ncd /{'home'}/ada/nudge\nGET /work-outs and {{root}}/{'work'}/\n")

    assert list(places(file)) == [f"line 1 names {HOSTS[0]}", f"line 2 names /{'home'}/ada/"]


def test_imports_keep_to_the_arrows() -> None:
    ended = run(str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache")

    assert ended.returncode == 0, ended.stdout


def test_the_domain_needs_only_numpy_and_msgspec() -> None:
    graph = grimp.build_graph("optimizer", include_external_packages=True, cache_dir=None)
    packages = {module.partition(".")[0] for module in graph.modules}

    assert packages - sys.stdlib_module_names == {"optimizer", "numpy", "msgspec"}


def test_the_api_process_loads_no_training_and_no_mlflow() -> None:
    heavy = {"training", "simulations", "mlflow", "sklearn", "vowpalwabbit", "pandas", "matplotlib"}

    assert loaded_by("serving.app") & heavy == set()


def test_tests_run_on_one_thread_of_blas() -> None:
    pools = threadpoolctl.threadpool_info()

    assert {pool["num_threads"] for pool in pools} <= {1}, pools


def test_a_missing_program_is_skipped_here_and_fails_in_ci(
    needs: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="'chromium' is not installed: apt-get install chromium"):
        needs("chromium")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="'chromium' is not installed: apt-get install chromium"):
        needs("chromium")


def test_benchmark_results_carry_commit_and_machine_and_keep_a_missed_target(tmp_path: Path) -> None:
    row = results.Row(
        name="batch of 64",
        ours=5123.4,
        peer=10000.0,
        peer_name="VW",
        unit="1/s",
        ratio=0.51234,
        target=">= 1",
        met=False,
    )
    results.write("speed", [row], folder=tmp_path)
    read = results.read(tmp_path)
    with (console := Console(width=160)).capture() as shown:
        console.print(results.table(read))

    assert read["speed"]["rows"] == [row]
    assert read["speed"]["commit"]
    assert read["speed"]["machine"]["cores"] == len(os.sched_getaffinity(0))
    line = next(line for line in shown.get().splitlines() if "batch of 64" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][1:] == [
        "batch of 64",
        "1/s",
        "VW",
        "5,123",
        "10,000",
        "0.512",
        ">= 1",
        "no",
    ]


def test_only_scripts_with_a_main_are_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "speed.py").write_text("def main() -> None: ...\n")
    (tmp_path / "results.py").write_text("def write() -> None: ...\n")
    (tmp_path / "__main__.py").write_text("def main() -> None: ...\n")

    assert bench.discover(tmp_path) == ["speed"]


def places(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, FileNotFoundError):  # a picture; a file that was removed and not yet committed
        return []
    return [
        f"line {number} names {name}"
        for number, line in enumerate(lines, start=1)
        for name in [*(host for host in HOSTS if host in line), *MACHINE_PATH.findall(line)]
    ]


def loaded_by(module: str) -> set[str]:
    """The top-level packages that importing a module brings along, in a process of its own."""
    ended = run(sys.executable, "-c", f"import {module}, sys; print(*sys.modules)")
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in ended.stdout.split()}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
