"""What is promised of customer momentum, measured: conversion, retention, and patience against greed for clicks.

Replications are kept as they are done, world by world in turn, so that a run that was broken off goes on. Intervals are
over replications, 95 %; a missed promise stays in the table.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import Row, write
from optimizer.program import Program
from optimizer.programs import read
from simulations import comparison
from simulations.comparison import Spread, ratio

CUSTOMERS, DAYS, REPLICATIONS = 600, 90, 5
FIRST_SEED = 101
KEPT = Path("var") / "benchmarks"
PLAYED = {
    "fatigue": ("hold", "clicks", "thompson", "patient"),
    "calibrated": ("hold", "fixed", "thompson", "patient", "best"),
    "pairwise": ("hold", "fixed", "thompson", "patient", "best"),
}
NAMES = {
    "hold": "no nudge",
    "fixed": "the best single nudge for all",
    "clicks": "greed for clicks",
    "best": "simulator's best, which knows what no policy can",
}

Figures = dict[str, dict[str, float]]
"""What each policy came to in one replication, by policy and figure."""


def gathered(world: str, *, replications: int, customers: int, days: int, fresh: bool) -> Iterator[list[Figures]]:
    """Yield a world's replications, one more each time."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"promises-{world}-{customers}-{days}.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    done: list[Figures] = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    for i in range(replications):
        if i >= len(done):
            done.append(_played(world, seed=FIRST_SEED + i, customers=customers, days=days))
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(done[-1]) + "\n")
        print(f"{world}: {i + 1} of {replications}", flush=True)
        yield done[: i + 1]


def _played(world: str, *, seed: int, customers: int, days: int) -> Figures:
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    found = comparison.run(
        program, [world], policies=PLAYED[world], customers=customers, days=days, seed=seed, replications=1
    )
    return {
        p.policy: {
            "value": p.measured.reward.value,
            "macro-conversion": p.measured.macro.value,
            "messages": p.measured.messages.value,
            "opt-outs": p.measured.opted_out.value,
            **{f"retention at {day}": x.value for day, x in p.measured.retention.items()},
        }
        for p in found.worlds[0].policies
    }


def rows(*, worlds: dict[str, list[Figures]], days: int) -> Iterator[Row]:
    """Yield what came of each promise, in each world that has been played."""
    found = worlds["fatigue"]
    for name in ("thompson", "patient"):
        yield _row("fatigue", found, name, "clicks", "value", least=1.05, over=days)
        yield _row("fatigue", found, name, "clicks", "messages", most=0.75)
        yield _row("fatigue", found, name, "clicks", "opt-outs", most=1.0)
        yield _row("fatigue", found, name, "hold", "value", least=1.0)
    for world in ("calibrated", "pairwise"):
        if world not in worlds:
            continue
        found = worlds[world]
        for name in ("thompson", "patient", "best"):
            for yardstick in ("hold", "fixed"):
                yield _row(world, found, name, yardstick, "macro-conversion", least=2.0)
                yield _row(world, found, name, yardstick, "value", least=1.0)
            for kept in (key for key in found[0][name] if key.startswith("retention")):
                yield _row(world, found, name, "hold", kept, least=1.2)


def _row(
    world: str,
    found: Sequence[Figures],
    name: str,
    yardstick: str,
    figure: str,
    *,
    least: float | None = None,
    most: float | None = None,
    over: int | None = None,
) -> Row:
    x = ratio(*([one[policy][figure] for one in found] for policy in (name, yardstick)))
    what = f"{over}-day {figure}" if over else figure
    said = f"{world}: {NAMES.get(name, name)}, {what} against {NAMES[yardstick]}{_range(x)}"
    return Row(
        name=said,
        ours=x.value,
        peer=None,
        peer_name=None,
        unit="times",
        ratio=None,
        target=f"at least {least:g}" if least is not None else f"at most {most:g}",
        met=x.value >= least if least is not None else most is not None and x.value <= most,
    )


def _range(x: Spread) -> str:
    if x.low is None or x.high is None:
        return " (one replication)"
    return f" (95 %: {x.low:.3f} to {x.high:.3f})"


def main() -> None:
    """Play the worlds in turn, and write the rows after each replication of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=REPLICATIONS)
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run kept")
    asked = parser.parse_args()
    turns = {world: gathered(world, **vars(asked)) for world in PLAYED}
    found: dict[str, list[Figures]] = {}
    for _ in range(asked.replications):
        for world, turn in turns.items():
            found[world] = next(turn)
            write("promises", rows(worlds=found, days=asked.days))


if __name__ == "__main__":
    main()
