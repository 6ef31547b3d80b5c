"""Whatever fails, whenever: what was acknowledged is there, once, and no guardrail was broken."""

import json
from pathlib import Path

import pytest

from benchmarks import results
from tests.faults.driver import FAULTS, Counts, run

NONE = ("lost", "doubled", "another_answer_to_the_same_id", "overspent", "over_cap", "other_mask")


def check(counts: Counts) -> None:
    said = counts.said()
    print(json.dumps(said))
    assert {name: said[name] for name in NONE} == dict.fromkeys(NONE, 0), counts.verdict.first
    assert set(counts.points) == set(FAULTS)
    assert counts.verdict.checked >= len(counts.decided)


@pytest.mark.slow
async def test_twenty_fault_points_lose_and_double_nothing_and_break_no_guardrail(tmp_path: Path) -> None:
    counts = await run(tmp_path, seed=1, points=20)
    check(counts)
    assert sum(counts.points.values()) == 20


@pytest.mark.soak
async def test_two_hundred_fault_points_lose_and_double_nothing_and_break_no_guardrail(tmp_path: Path) -> None:
    said: list[dict[str, object]] = []
    for seed in range(5):
        counts = await run(tmp_path / str(seed), seed=seed, points=40)
        said.append(counts.said())
        check(counts)
    total = {name: sum(int(str(s[name])) for s in said) for name in (*NONE, "acknowledged", "masks_checked")}
    results.write(
        "faults",
        [
            results.Row(
                name=f"{name.replace('_', ' ')}, of {total['acknowledged']:,} acknowledged over 200 fault points",
                ours=total[name],
                peer=None,
                peer_name=None,
                unit="",
                ratio=None,
                target="none",
                met=total[name] == 0,
            )
            for name in NONE
        ],
    )
