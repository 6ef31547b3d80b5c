"""What is promised of customer momentum, measured: conversion, retention, and patience against greed for clicks.

`python -m benchmarks.promises [customers [days [replications]]]`. Intervals are over replications, 95 %; a missed
promise stays in the table.
"""

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.results import Row, write
from optimizer.program import Program
from optimizer.programs import read
from simulations import comparison
from simulations.comparison import Against, Compared, Comparison, Spread

CUSTOMERS, DAYS, REPLICATIONS = 400, 90, 3
NAMES = {"hold": "no nudge", "fixed": "the best single nudge for all", "clicks": "greed for clicks"}


def rows(*, customers: int, days: int, replications: int) -> Iterator[Row]:
    """Yield what came of each promise, in each world."""
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    sizes: dict[str, Any] = {"customers": customers, "days": days, "replications": replications, "seed": 101}
    for world in ("calibrated", "pairwise"):
        found = comparison.run(program, [world], policies=["hold", "fixed", "thompson", "patient"], **sizes)
        for name in ("thompson", "patient"):
            for against in _of(found, name).against:
                yield _row(
                    f"{world}: {name}, macro-conversion against {NAMES[against.yardstick]}",
                    against.macro_ratio,
                    least=2.0,
                )
                yield _row(
                    f"{world}: {name}, reward against {NAMES[against.yardstick]}", against.reward_ratio, least=1.0
                )
            held = _against(_of(found, name), "hold")
            for day, kept in held.retention_ratio.items():
                yield _row(f"{world}: {name}, retention at {day} against no nudge", kept, least=1.2)
    found = comparison.run(program, ["fatigue"], policies=["hold", "clicks", "thompson", "patient"], **sizes)
    for name in ("thompson", "patient"):
        against = _against(_of(found, name), "clicks")
        yield _row(f"fatigue: {name}, {days}-day value against greed for clicks", against.reward_ratio, least=1.05)
        yield _row(f"fatigue: {name}, messages against greed for clicks", against.messages_ratio, most=0.75)
        yield _row(
            f"fatigue: {name}, value against no nudge", _against(_of(found, name), "hold").reward_ratio, least=1.0
        )


def _of(found: Comparison, name: str) -> Compared:
    return next(p for p in found.worlds[0].policies if p.policy == name)


def _against(one: Compared, yardstick: str) -> Against:
    return next(a for a in one.against if a.yardstick == yardstick)


def _row(name: str, x: Spread, *, least: float | None = None, most: float | None = None) -> Row:
    range_ = f" (95 %: {x.low:.3f} to {x.high:.3f})" if x.low is not None and x.high is not None else ""
    print(f"{name}: {x.value:.3f}{range_}", flush=True)
    met = x.value >= least if least is not None else most is not None and x.value <= most
    return Row(
        name=name + range_,
        ours=x.value,
        peer=None,
        peer_name=None,
        unit="times",
        ratio=None,
        target=f"at least {least:g}" if least is not None else f"at most {most:g}",
        met=met,
    )


def main() -> None:
    """Measure and write the rows."""
    given = [int(x) for x in sys.argv[1:4]]
    customers, days, replications = (*given, *(CUSTOMERS, DAYS, REPLICATIONS)[len(given) :])
    write("promises", rows(customers=customers, days=days, replications=replications))


if __name__ == "__main__":
    main()
