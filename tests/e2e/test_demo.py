"""The demo's story, with fewer customers: every part real, every figure accounted for."""

from pathlib import Path

import msgspec
import pytest

from tests.e2e.running import nudge


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_accounts_for_everything_it_shows(tmp_path: Path) -> None:
    said = nudge("demo", "--customers", "200", "--json", "story.json", home=tmp_path)
    story = msgspec.json.decode((tmp_path / "story.json").read_bytes())
    assert story["acknowledged"] == story["archived"] > 5_000
    judged = story["evaluation"]
    assert judged["low"] < judged["estimate"] < judged["high"]
    # Seventeen days were decided; the last three have open windows, and are said to.
    assert judged["matured_share"] == pytest.approx(14 / 17, abs=0.01)
    assert f"Matured when judged: {judged['matured_share']:.0%}" in said
    assert {p["policy"] for p in story["periods"]} >= {"uniform", "hold, for all", "rules", "simulator's best"}
    assert [p["name"] for p in story["periods"][:2]] == ["before", "after"]
    assert story["promoted"] is (story["verdict"] == "promote")
    assert "nudge ui --demo" in said


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "mine"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert "not empty and not the demo's" in nudge("demo", "--home", str(precious), home=tmp_path, code=2)
    assert (precious / "thesis.txt").read_text() == "years of work"
