"""`nudge simulate` refuses what it cannot do before it takes anybody's time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from optimizer.program import Program
from serving import loop
from tests.small_program import small


def _simulate(worlds: Sequence[str] = (), **asked: Any) -> loop.Simulated:
    sizes = {"customers": 10, "days": 1, "replications": 1, "seed": 1, "trials": False, "mlflow": False}
    given = {"policies": ["hold"], "settings": [], "output": None, "archive": None, "premortem": None, **sizes, **asked}
    return loop.simulate(worlds, find=_found, command="nudge simulate", program="small", **given)


def _found(_: str) -> Program:
    return small()


def test_a_page_for_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; make it first"):
        _simulate(["demo"], output=tmp_path / "nowhere" / "page.html")


def test_settings_and_a_fit_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fit estimates a world from a log: leave out worlds, --policy, --set"):
        _simulate(policies=[], settings=["lift=1"], archive=tmp_path)


def test_a_setting_that_cannot_be_is_refused_and_one_that_can_is_simulated() -> None:
    with pytest.raises(ValueError, match="world 'demo': twice = 3 is no share: use 0 to 1"):
        _simulate(["demo"], settings=["twice=3"])
    assert _simulate(["demo"], settings=["twice=0.5"]).table
