"""Every policy through every check of the battery, and what only some of them promise."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import policies
from tests.checks import CASES, CHECKS, SPACE


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_battery(name: str, check: Callable[[str, Path], None], tmp_path: Path) -> None:
    """Each policy does what each check says."""
    check(name, tmp_path)


def test_every_kind_of_policy_is_in_the_battery() -> None:
    """A policy that is registered is under test."""
    made = {getattr(case.make(SPACE), "name", "") for case in CASES.values()}
    assert made == set(policies.KINDS)


def test_importing_policies_loads_no_training_library() -> None:
    """The API process imports policies, and stays small."""
    code = "import sys, policies; print([m for m in ('sklearn', 'vowpalwabbit', 'numba', 'scipy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
