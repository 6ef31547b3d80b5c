"""What every test stands on: one thread for BLAS, repeatable examples, and programs and data from outside."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from tests.browser import Browser

# BLAS reads these once, when numpy is first imported, which is after this file. Workers share the cores, and one
# thread adds up in one order.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"

ROOT = Path(__file__).parents[1]

# The asserts of the battery should explain themselves as those of test files do.
pytest.register_assert_rewrite("tests.checks")

# The same examples each time, and no deadline: CI shares its cores. `--hypothesis-profile=search` looks further.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: files that start whole services must not be what the last worker is still busy with."""
    items.sort(key=lambda item: {"e2e", "faults"}.isdisjoint(item.path.parts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            find(program)


@pytest.fixture
def needs() -> Callable[[str], str]:
    """The path of a program of the system, as `needs("chromium")`."""
    return find


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """A real browser, started once for all the pages it is shown."""
    from tests.browser import started  # numpy comes with it, so only once BLAS has been told

    with started(find("chromium"), tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; they are never shipped, and their sha256 is the reader's to check."""
    folder = Path(os.environ.get("NUDGE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real data: {folder.name!r} is not beside the project and NUDGE_SHARED_DATA is not set to a folder"
        )
    return folder


def find(program: str) -> str:
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program!r} is not installed: apt-get install {program}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason} (under CI=true nothing may be skipped for it)", pytrace=False)
    pytest.skip(reason)
