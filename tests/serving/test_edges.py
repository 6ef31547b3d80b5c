"""Programs from files, log lines without customers, and what the service does not load."""

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.program import ProgramError
from optimizer.programs import SHIPPED
from serving import logs, programs
from tests.serving.running import write_program
from tests.small_program import OPEN, TOML


def test_programs_are_those_that_ship_and_those_of_the_folder(tmp_path: Path) -> None:
    write_program(tmp_path)
    found = programs.load(tmp_path / "programs")
    assert set(found) == {*SHIPPED, "small"}
    assert found["small"].text == (tmp_path / "programs" / "small.toml").read_text()
    assert set(programs.load(tmp_path / "nothing")) == set(SHIPPED)


def test_a_program_of_ones_own_wins_over_a_shipped_one(tmp_path: Path) -> None:
    write_program(tmp_path, SHIPPED[0])
    assert programs.load(tmp_path / "programs")[SHIPPED[0]].program.title == "A small program"


def test_every_fault_of_every_file_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    write_program(tmp_path)
    (folder / "copy.toml").write_text(TOML + OPEN)
    (folder / "broken.toml").write_text("name = ")
    (folder / "latin.toml").write_bytes("# Müsli".encode("latin-1"))
    with pytest.raises(ProgramError) as refused:
        programs.load(folder)
    said = [str(f) for f in refused.value.faults]
    files = [next(n for n in ("broken", "small", "latin") if f"{n}.toml" in s) for s in said]
    assert list(dict.fromkeys(files)) == ["broken", "latin", "small"]
    assert files == sorted(files)
    assert "'small' is taken by" in said[-1]


def test_a_program_is_found_by_file_by_name_and_by_shipped_name(tmp_path: Path) -> None:
    write_program(tmp_path)
    folder = tmp_path / "programs"
    assert programs.find(str(folder / "small.toml"), folder=tmp_path).name == "small"
    assert programs.find("small", folder=folder).name == "small"
    assert programs.find(SHIPPED[0], folder=folder).name == SHIPPED[0]
    with pytest.raises(ValueError, match=r"no program 'smal'.*\(small\)"):
        programs.find("smal", folder=folder)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines())
    logger = logging.getLogger("nudge.test")
    logger.addHandler(handler)
    yield written
    logger.removeHandler(handler)


def test_a_line_is_json_with_its_fields(lines: io.StringIO) -> None:
    logging.getLogger("nudge.test").warning("the store failed", extra={"request_id": "r1", "rows": 3})
    line = json.loads(lines.getvalue())
    assert line.pop("at").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "nudge.test",
        "message": "the store failed",
        "request_id": "r1",
        "rows": 3,
    }


def test_an_exception_is_logged_by_kind_and_place_without_its_words(lines: io.StringIO) -> None:
    try:
        raise ValueError("ada@example.org is wrong")
    except ValueError:
        logging.getLogger("nudge.test").exception("it failed")
    line = json.loads(lines.getvalue())
    assert line["exception"] == "ValueError"
    assert line["where"][0].startswith("test_edges.py:")
    assert "example.org" not in lines.getvalue()


def test_the_configuration_is_one_that_logging_takes() -> None:
    before = logging.getLogger("nudge").level
    logging.config.dictConfig(logs.configuration("error"))
    try:
        assert logging.getLogger("nudge").level == logging.ERROR
    finally:
        for name in ("nudge", "uvicorn"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
        logging.getLogger("nudge").setLevel(before)
        logging.getLogger("uvicorn").setLevel(logging.NOTSET)


def test_a_process_that_is_configured_by_its_environment_logs_json(tmp_path: Path) -> None:
    code = "import logging, serving.app as a; a.from_environment(); logging.getLogger('nudge.x').info('up')"
    environment = {**os.environ, "NUDGE_HOME": str(tmp_path), "NUDGE_LOG": "info"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stderr)["message"] == "up"


def test_the_api_process_loads_nothing_heavy() -> None:
    heavy = ("mlflow", "sklearn", "pyarrow", "pandas", "scipy", "numba", "matplotlib", "vowpalwabbit")
    code = f"import sys, serving.app; print([m for m in {(*heavy, 'training', 'simulations')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
