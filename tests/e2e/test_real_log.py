"""A real, randomised log through every step a person takes: import, evaluate, train, evaluate, promote, report."""

import gzip
from pathlib import Path

import pytest

from tests.e2e.running import nudge, nudge_json

ROOT = Path(__file__).parents[2]
MAP = ROOT / "docs" / "examples" / "hillstrom.toml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hillstrom_is_imported_judged_and_reported(shared_data: Path, tmp_path: Path) -> None:
    imported = nudge_json("import", str(shared_data / "hillstrom.csv.gz"), "--map", str(MAP), home=tmp_path)
    assert (imported["rounds"], imported["customers"], imported["rewarded"]) == (64_000, 64_000, 9_394)

    whole = nudge_json("evaluate", "hillstrom", "--whole", "--always", "mens/plain/now", home=tmp_path)
    values = {v["policy"]: (round(v["ips"], 6), round(v["snips"], 6)) for v in whole["values"]}
    assert values["always mens/plain/now"] == (0.182531, 0.182757)
    assert values["rules"] == (0.184688, 0.184233)
    assert values["hold"][1] == 0.106167

    trained = nudge_json("train", "hillstrom", "--kind", "thompson", home=tmp_path)
    assert [c["name"] for c in trained["candidates"]] == ["thompson"]
    judged = nudge_json("evaluate", "hillstrom", home=tmp_path)
    by_name = {v["policy"]: v for v in judged["values"]}
    # Personalisation gains about 0.0015 over the best single arm: more than 0.006 over the rules would be a leak.
    assert by_name["thompson"]["value"] - by_name["rules"]["value"] < 0.006
    promoted = nudge_json("promote", "hillstrom", home=tmp_path)
    assert promoted["promoted"] is (judged["verdict"] == "promote") is True
    assert promoted["reasons"]
    page = tmp_path / "page.html"
    nudge("report", "hillstrom", "--output", str(page), home=tmp_path)
    assert "Hillstrom e-mail test" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("3,a,zero", "log.csv: row 4, column reward: 'zero' is not a number; write one, or leave the row out"),
        ("3,a,", "log.csv: row 4, column reward: is empty; write 0 if nothing happened, or leave the row out"),
        ("3,z,1", "log.csv: row 4, column action: 'z' is not in [actions] of map.toml; add it"),
    ],
)
def test_a_malformed_log_is_refused_with_its_place_and_nothing_is_written(row: str, said: str, tmp_path: Path) -> None:
    mapping = tmp_path / "map.toml"
    mapping.write_text(
        'name = "mine"\nat = "2026-01-31"\n[columns]\naction = "action"\nreward = "reward"\npropensity = 0.5\n'
        '[actions]\na = "hold"\nb = "coupon/warm/now"\n'
    )
    log = tmp_path / "log.csv"
    log.write_text(f"x,action,reward\n1,a,0\n2,b,1\n{row}\n")
    assert said in nudge("import", str(log), "--map", str(mapping), home=tmp_path, code=2)
    assert not (tmp_path / "var" / "archive").exists()


def test_a_propensity_that_is_no_probability_is_refused_with_its_row(tmp_path: Path) -> None:
    mapping = tmp_path / "map.toml"
    mapping.write_text(
        'name = "mine"\nat = "2026-01-31"\n[columns]\naction = "action"\nreward = "reward"\npropensity = "p"\n'
        '[actions]\na = "hold"\nb = "coupon/warm/now"\n'
    )
    log = tmp_path / "log.csv.gz"
    log.write_bytes(gzip.compress(b"p,action,reward\n0.5,a,0\n0,b,1\n"))
    said = nudge("import", str(log), "--map", str(mapping), home=tmp_path, code=2)
    assert "row 3, column p: 0 is no probability of a drawn action" in said
    assert not (tmp_path / "var" / "archive").exists()
