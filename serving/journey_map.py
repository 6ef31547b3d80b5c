"""How does a journey look? Stages by what they are worth, the ways between them, where customers stay and drop off.

The page is self-contained (inline SVG, no script, no external resource), so that it can be mailed, printed and kept.
"""

import math
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optimizer.program import DAY, Event, Program
from optimizer.soundness import goal_stages, ways
from optimizer.values import Estimate, Happened, JourneyValues, Statistics, collect, journey_values
from serving.curves import CARD, TALL, Curve, Spot, curves, layout, lines, ranks
from training import events as log
from training.pages import template

_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}
_LONG = 366.0
"""Days from which on a stay is only said to be long: a stage that is hardly ever left says little of when."""

_MOST_STEPS = 8


class Card(NamedTuple):
    """What is said of a stage, and how much of the chance bar is full."""

    spot: Spot
    title: str
    short: str
    about: str
    worth: str
    between: str
    chance: str
    full: float
    stays: str
    drops: str
    days: str
    shade: float
    goal: bool
    known: bool


class Stroke(NamedTuple):
    """What is said of a way, and how wide it is drawn."""

    curve: Curve
    width: float
    kind: str
    label: str
    gain: str
    all: str


class Row(NamedTuple):
    """A dot with its interval, in percent of the width."""

    label: str
    said: str
    note: str
    at: float
    low: float
    high: float
    zero: float


def lived(archive: Path, program: Program, *, most: int = 5_000) -> Statistics:
    """Return what an archive says of how customers move; where they are many, of a sample by a hash of their ids.

    Args:
        archive: the folder of the archive.
        program: whose events are read.
        most: customers to read at most, about.

    Raises:
        ValueError: naming the file, for an archive that cannot be read; or where it holds nothing of the program.
    """
    table = log.read(archive, program.name)
    until = max(pc.max(table["at"]).as_py(), pc.max(table["received_at"]).as_py() or 0.0)
    share = most / len(pc.unique(table["customer_id"]))
    return collect(program, _happened(table, share=share), until=until)


def _happened(table: pa.Table, *, share: float) -> Iterator[Happened]:
    """Yield what a share of the customers did: outcomes that stand, and decisions as sightings."""
    columns = [table[name].to_pylist() for name in ("customer_id", "at", "event", "value", "revoked")]
    kept: dict[str, bool] = {}
    for customer_id, at, event, value, revoked in zip(*columns, strict=True):
        if customer_id not in kept:
            digest = blake2b(customer_id.encode(), digest_size=8, person=b"map").digest()
            kept[customer_id] = int.from_bytes(digest, "big") < share * 2.0**64
        if kept[customer_id] and not revoked:
            yield Happened(customer_id, at, event, None if value is None or math.isnan(value) else value)


def journey_map(program: Program, statistics: Statistics | None = None, *, horizon: int = 30) -> str:
    """Draw a journey as a page of HTML.

    Args:
        program: as declared.
        statistics: how customers moved, as `lived` or `optimizer.values.collect` return them; where None, the page
            shows what the program expects, and says so.
        horizon: within how many days the chance of the goal is meant.
    """
    found = journey_values(program, statistics, horizon=horizon)
    spots, width, height = layout(program, found.values.value)
    goal = program.event(program.goal)
    return template("journey_map.html", of="serving").render(
        program=program,
        goal=_title(goal) if goal else program.goal,
        source=found.source,
        horizon=horizon,
        days=f"{found.days.sum():,.0f}",
        customers=f"{found.customers:,}",
        cards=[_card(program, found, i, spot) for i, spot in enumerate(spots)],
        strokes=[_stroke(program, found, curve) for curve in curves(lines(program), spots)],
        steps=_steps(program, found),
        stays=_by_stage(program, found, "stays"),
        drops=_by_stage(program, found, "drop_offs"),
        size={"width": width, "height": height, "card": CARD, "tall": TALL},
        colour=_colour,
    )


def _card(program: Program, found: JourneyValues, i: int, spot: Spot) -> Card:
    stage, worth = program.stages[i], found.values
    chance, lapse = float(found.chances.value[i]), float(found.drop_offs.value[i])
    known = math.isfinite(chance)
    goal = stage.name in goal_stages(program)
    return Card(
        spot=spot,
        title=stage.title,
        short=_cut(stage.title, room=11 if goal else 16),
        about=stage.description,
        worth=_money(worth.value[i], program.currency) if known else "unknown",
        between=_between(worth, i) if known else ("nobody seen here" if found.source == "log" else ""),
        chance=_percent(chance) if known else "",
        full=chance if known else 0.0,
        stays=_days(found.stays.value[i]) if known else "",
        drops=f"{_percent(lapse)} lapse" if known and stage.lapses_to and math.isfinite(lapse) else "",
        days=f"{found.days[i]:,.0f}",
        shade=ranks(worth.value)[i],
        goal=goal,
        known=known,
    )


def _cut(text: str, *, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def _between(estimate: Estimate, i: int) -> str:
    low, high = estimate.low[i], estimate.high[i]
    return f"{low:,.2f} to {high:,.2f}" if math.isfinite(low) else "expected"


def _stroke(program: Program, found: JourneyValues, curve: Curve) -> Stroke:
    a, b, lapse = curve.line
    flow, widest = float(found.flows[a, b]), float((found.flows - np.diag(np.diag(found.flows))).max())
    width = 1.5 + 4.5 * math.sqrt(flow / widest) if widest and found.source != "unknown" else 2.0
    kind = "lapse" if lapse else "move"
    if found.source == "log" and not flow:
        width, kind = 1.2, f"{kind} never"
    stages = program.stages
    events = [w.event for w in ways(program) if w.event and (w.start, w.end) == (stages[a].name, stages[b].name)]
    if lapse:
        quiet = float(stages[a].lapses_after or 0.0) / DAY
        label = everything = f"{quiet:g} quiet days"
    else:
        everything = ", ".join(_title(e) for e in events)
        label = _short([e.name.replace("_", " ") for e in events], room=22 if curve.anchor == "middle" else 30)
    said = f"{stages[a].title} to {stages[b].title}: {everything}; {_percent(flow)} of the days"
    return Stroke(curve, round(width, 1), kind, label, "" if lapse else _gain(program, found, a, events), said)


def _short(names: list[str], *, room: int) -> str:
    """Return as many names as there is room for, one at least, and how many more there are."""
    text = ""
    for shown in range(len(names), 0, -1):
        rest = len(names) - shown
        text = ", ".join(names[:shown]) + (f" & {rest} more" if rest else "")
        if len(text) <= room:
            break
    return text


def _gain(program: Program, found: JourneyValues, a: int, events: list[Event]) -> str:
    """Say what the events of a way add to the chance of the goal: all the same, but for the goal itself."""
    adds = [found.adds[a, program.event_index[e.name]] for e in events if e.name != program.goal]
    if not adds:
        return "the goal"
    return _points(100.0 * adds[0]) if math.isfinite(adds[0]) else ""


def _points(points: float) -> str:
    return f"{points:+.1f}" if abs(points) >= 0.05 else "±0.0"


def _steps(program: Program, found: JourneyValues) -> list[Row]:
    """Return the micro-actions by what they add to the chance of the goal, the most first."""
    worths, indices = found.worths, [i for i, e in enumerate(program.events) if e.kind == "micro"]
    known = [i for i in indices if math.isfinite(worths.value[i])]
    first = sorted(known, key=lambda i: -worths.value[i])[:_MOST_STEPS]
    picked = Estimate(*(100.0 * part[first] for part in worths))
    return _rows([_title(program.events[i]) for i in first], picked, unit=" points", say=_points)


def _by_stage(program: Program, found: JourneyValues, what: str) -> list[Row]:
    estimate: Estimate = getattr(found, what)
    lapsing = [what != "drop_offs" or bool(s.lapses_to) for s in program.stages]
    known = np.flatnonzero(np.isfinite(estimate.value) & lapsing).tolist()
    if what == "stays":
        picked = Estimate(*(np.minimum(part[known], _LONG) for part in estimate))
        return _rows([program.stages[i].title for i in known], picked, unit="", say=_days)
    picked = Estimate(*(part[known] for part in estimate))
    return _rows([program.stages[i].title for i in known], picked, unit="", say=_percent)


def _rows(labels: list[str], estimate: Estimate, *, unit: str, say: Callable[[float], str]) -> list[Row]:
    numbers = np.concatenate([np.zeros(1), *estimate])
    start, end = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    width = end - start or 1.0

    def at(value: float) -> float:
        return round(100.0 * (value - start) / width, 2)

    rows = []
    for label, value, low, high in zip(labels, *(part.tolist() for part in estimate), strict=True):
        sure = math.isfinite(low)
        note = f"{say(low)} to {say(high)}" if sure else ""
        where = (value, low, high, 0.0) if sure else (value, value, value, 0.0)
        rows.append(Row(label, f"{say(value)}{unit}", note, *map(at, where)))
    return rows


def _title(event: Event) -> str:
    return event.title or event.name.replace("_", " ").capitalize()


def _money(value: float, currency: str) -> str:
    sign = _SIGNS.get(currency, f"{currency} ")
    return f"{'-' if value < 0 else ''}{sign}{abs(value):,.2f}"


def _percent(share: float) -> str:
    if 0.0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.0%}" if share >= 0.0995 or share == 0.0 else f"{share:.1%}"


def _days(days: float) -> str:
    if not math.isfinite(days):
        return "all stay"
    if days >= _LONG:
        return ">1 year"
    return f"{days:.0f} days" if days >= 9.5 else f"{days:.1f} days"


def _colour(shade: float) -> str:
    """Return a colour from slate (worth least) to teal (worth most)."""
    parts = np.array([148, 163, 184]) * (1.0 - shade) + np.array([15, 118, 110]) * shade
    return "#{:02x}{:02x}{:02x}".format(*parts.round().astype(int).tolist())
