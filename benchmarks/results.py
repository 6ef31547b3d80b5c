"""Where a benchmark's rows are written, and how they are shown.

A benchmark is a script beside this file with a `main()` that runs us and the peer in turn and calls `write`. A missed
target stays in the table.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from rich.table import Table

FOLDER = Path(__file__).with_name("results")


class Row(TypedDict):
    name: str
    ours: float
    peer: float | None  # None where the target is a bound, not a rival
    peer_name: str | None
    unit: str
    ratio: float | None  # ours over peer
    target: str  # as a person reads it: ">= 0.5", "at least 34 of 40"
    met: bool


class Result(TypedDict):
    commit: str
    machine: dict[str, str | int]
    rows: list[Row]


def write(name: str, rows: Iterable[Row], *, folder: Path = FOLDER) -> Path:
    """Write a benchmark's rows to `<name>.json`, with the commit and the machine that they were measured on."""
    result = Result(commit=commit(), machine=machine(), rows=list(rows))
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read(folder: Path = FOLDER) -> dict[str, Result]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def table(results: dict[str, Result]) -> Table:
    """One line a row; beside each benchmark the commit it was measured at, since they need not be the same."""
    shown = Table("benchmark", "measure", "unit", "peer", title="Measured against peers", title_justify="left")
    for heading in ("ours", "peer's", "ratio"):
        shown.add_column(heading, justify="right")
    shown.add_column("target")
    shown.add_column("met")
    for benchmark, result in results.items():
        for row in result["rows"]:
            shown.add_row(
                f"{benchmark} @ {result['commit']}",
                row["name"],
                row["unit"],
                row["peer_name"] or "",
                number(row["ours"]),
                number(row["peer"]),
                number(row["ratio"]),
                row["target"],
                "yes" if row["met"] else "[bold red]no[/]",
            )
    return shown


def number(value: float | None) -> str:
    """Three digits that matter; whole above a thousand, where an exponent would hide them."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def commit() -> str:
    """The short hash, with a plus where the tree held changes that it does not name."""
    described = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "uncommitted"


def machine() -> dict[str, str | int]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
