"""How does the command line speak? Tables for people, JSON for programs, progress bars on stderr."""

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from optimizer.audit import SEVERITIES, Audit
from optimizer.program import DAY, Clock, Duration, Program

if TYPE_CHECKING:
    from serving.loop import Checked

TRINITY = ("relevance", "value", "call_to_action")
"""The conversion trinity: what a touch point needs."""

_SENTENCE = 60
"""Letters from which an item of a list has a line of its own."""

_COLOURS = {"fault": "red", "warning": "yellow", "note": "cyan"}

_STATUSES = {"fail": "red", "warn": "yellow", "pass": "green"}

Told = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


def show(result: object, *, as_json: bool, long: Sequence[str] = ()) -> None:
    """Print a result: as JSON, or as tables of its fields, of which the long ones are only counted."""
    plain = msgspec.to_builtins(result)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode() + "\n")
        return
    console = Console()
    if isinstance(plain, Mapping):
        counted = {name: f"{len(plain[name])} rows, with --json" for name in long if plain.get(name)}
        _fields(console, {**plain, **counted})
    elif isinstance(plain, list):
        _rows(console, "", plain)
    else:
        console.print(plain)


def described(program: Program) -> dict[str, object]:
    """Return what a program declares, in the words and the order that people ask in."""
    return {
        "program": program.name,
        "title": program.title,
        "version": program.version,
        "goal": program.goal,
        "actions": program.space.k,
        "features": program.space.d,
        "matures_after_days": program.matures_after / DAY,
        "stages": [
            {
                "stage": s.name,
                "title": s.title,
                "leads_to": sorted({e.moves[s.name] for e in program.events if s.name in e.moves}),
            }
            for s in program.stages
        ],
        "events": [{"event": e.name, "kind": e.kind, "value": e.value} for e in program.events],
        "incentives": [
            {"incentive": i.name, "kind": i.kind, "cost": i.cost, "stages": list(i.stages) or ["all"]}
            for i in program.incentives
        ],
        "tones": [{"tone": t.name, "title": t.title} for t in program.tones],
        "timings": [{"timing": t.name, "title": t.title} for t in program.timings],
        "guardrails": msgspec.to_builtins(program.guardrails, enc_hook=_as_declared),
    }


def audited(audit: Audit) -> dict[str, object]:
    """Return what an audit found: each finding with its place and mend, each touch point, how each message reads."""
    return {
        "fit": audit.fit,
        **{part: audit.share(part) for part in TRINITY},
        "findings": [{**f._asdict(), "place": f"{f.file}: {f.key}"} for f in audit.findings],
        "touch_points": [t._asdict() for t in audit.touches],
        "messages": [m._asdict() for m in audit.messages],
    }


def show_audit(audit: Audit) -> None:
    """Print what an audit found: touch points and messages in sum, then a line a finding."""
    console = Console()
    if audit.touches:
        _rows(console, "Touch points: share with each element, by stage", _by_stage(audit))
    if audit.messages:
        _rows(
            console,
            "Messages: letters of the subject, words, reading ease of 100 (means over tones)",
            _by_incentive(audit),
        )
    for f in audit.findings:
        where, said = escape(f"{f.file}: {f.key}:"), escape(f"{f.problem}; {f.mend}")
        console.print(f"[bold {_COLOURS[f.severity]}]{f.severity}[/] {where} {said}", soft_wrap=True, highlight=False)
    counts = [f"{len(audit.of(s))} {s}{'' if len(audit.of(s)) == 1 else 's'}" for s in SEVERITIES]
    said = "fit to meet a customer" if audit.fit else "not fit to meet a customer until the faults are mended"
    console.print(f"{escape(audit.file)}: {', '.join(counts)}: {said}", soft_wrap=True, highlight=False)


def show_checks(checks: Sequence["Checked"]) -> None:
    """Print the checks of a log, the worst first, a line each; then how many there are of each status."""
    console = Console()
    for status, colour in _STATUSES.items():
        for c in (c for c in checks if c.status == status):
            said = escape(f"{c.check}: {c.finding}{f'; {c.mend}' if c.mend else ''}")
            console.print(f"[bold {colour}]{status}[/] {said}", soft_wrap=True, highlight=False)
    counts = ", ".join(f"{sum(c.status == status for c in checks)} {status}" for status in _STATUSES)
    console.print(f"{len(checks)} checks: {counts}")


def _by_stage(audit: Audit) -> list[dict[str, object]]:
    rows = []
    for stage in dict.fromkeys(t.stage for t in audit.touches):
        touches = [t for t in audit.touches if t.stage == stage]
        shares = {part: f"{_mean(getattr(t, part) for t in touches):.0%}" for part in TRINITY}
        rows.append({"stage": stage, "touch_points": len(touches), **shares})
    return rows


def _by_incentive(audit: Audit) -> list[dict[str, object]]:
    rows = []
    for incentive in dict.fromkeys(m.incentive for m in audit.messages):
        messages = [m for m in audit.messages if m.incentive == incentive]
        hardest = min(messages, key=lambda m: m.ease)
        rows.append(
            {
                "incentive": incentive,
                "subject": round(_mean(m.subject_letters for m in messages)),
                "words": round(_mean(m.words for m in messages)),
                "ease": round(_mean(m.ease for m in messages)),
                "hardest": f"{hardest.tone} ({hardest.ease:.0f})",
            }
        )
    return rows


def _mean(numbers: Iterable[float]) -> float:
    return statistics.fmean(numbers)


def _as_declared(value: object) -> str:
    if isinstance(value, Clock):
        return f"{value // 60:02d}:{value % 60:02d}"
    if isinstance(value, Duration):
        return f"{value / 3600:g}h"
    raise NotImplementedError(f"{type(value).__name__} is written nowhere in a program")


@contextmanager
def progress() -> Iterator[Told]:
    """Show a bar for each kind of work that is reported, on stderr, where that is a terminal."""
    columns = (TextColumn("{task.description:<38}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def told(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield told


def _fields(console: Console, fields: Mapping[str, object]) -> None:
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in fields.items():
        if not _is_table(value):
            facts.add_row(f"[bold]{_words(name)}[/bold]", _text(value))
    console.print(facts)
    for name, value in fields.items():
        if _is_table(value):
            _rows(console, _words(name), value)  # type: ignore[arg-type]


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _rows(console: Console, title: str, rows: Sequence[Mapping[str, object]]) -> None:
    if not rows:
        console.print("nothing to show")
        return
    table = Table(title=title or None, title_justify="left")
    rows = [_with_intervals(row) for row in rows]
    names = list(rows[0])
    for name in names:
        number = isinstance(rows[0][name], int | float)
        table.add_column(_words(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    if len(rows) <= len(names) and _width(table) > console.width:
        table = _on_its_side(rows, names, title=title)
    console.print(table)


def _width(table: Table) -> int:
    """Return how wide a table is where there is room."""
    endless = Console(width=10_000)
    return Measurement.get(endless, endless.options, table).maximum


def _on_its_side(rows: Sequence[Mapping[str, object]], names: Sequence[str], *, title: str) -> Table:
    """Return a table of few rows and many columns with a line for each column."""
    table = Table(title=title or None, title_justify="left", show_header=False)
    for _ in range(1 + len(rows)):
        table.add_column(overflow="fold")
    for name in names:
        table.add_row(f"[bold]{_words(name)}[/bold]", *(_text(row.get(name)) for row in rows))
    return table


def _with_intervals(row: Mapping[str, object]) -> dict[str, object]:
    """Put each interval beside the number that it is of: `lift`, `lift_low` and `lift_high` in one, and so `value`."""
    out = dict(row)
    for name in row:
        at = "" if name == "value" else f"{name}_"
        if f"{at}low" in out and f"{at}high" in out:
            low, high = out.pop(f"{at}low"), out.pop(f"{at}high")
            out[name] = f"{_text(row[name])} [{_text(low)}, {_text(high)}]" if row[name] is not None else None
    return out


def _words(name: object) -> str:
    return str(name).replace("_", " ")


def _text(value: object) -> str:
    match value:
        case None:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:,.4g}"
        case int():
            text = f"{value:,}"
        case Mapping():
            text = ", ".join(f"{k} {_text(v)}" for k, v in value.items())
        case list():
            texts = list(map(_text, value))
            sentences = any(len(t) > _SENTENCE for t in texts)
            text = "\n".join(f"- {t}" for t in texts) if sentences else ", ".join(texts) or "none"
        case _:
            text = escape(str(value))  # or rich would take [brackets] for its markup
    return text
