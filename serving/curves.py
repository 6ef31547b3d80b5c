"""Where on a page do stages stand, and how do the ways between them run?

To the right is later, higher up is worth more. Ways that lead on run above the cards, ways that lead back below them.
Stages that customers only lapse to stand in a lower row, under those that they lapse from.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from optimizer.actions import Floats
from optimizer.program import Program
from optimizer.soundness import ways

CARD, TALL = 148.0, 134.0
_PITCH, _LEAST, _WORDS = 226.0, 660.0, 110.0
_EDGE, _LEVEL, _CLIMB, _BACK = 30.0, 46.0, 76.0, 30.0


class Line(NamedTuple):
    """A way to draw, by index of its stages: by events, or by a lapse."""

    start: int
    end: int
    lapse: bool


class Spot(NamedTuple):
    """Where a stage stands: its column, which row, and the corner of its card."""

    column: float
    lower: bool
    x: float
    y: float

    @property
    def middle(self) -> float:
        """The middle of the card."""
        return self.x + CARD / 2.0


class Layout(NamedTuple):
    """Where the stages stand, and the size of the drawing."""

    spots: list[Spot]
    width: float
    height: float


class Curve(NamedTuple):
    """How a line runs: an SVG path, and where its label goes and is anchored."""

    line: Line
    path: str
    x: float
    y: float
    anchor: str


def lines(program: Program) -> list[Line]:
    """Return the ways of a program, one for all events of a pair of stages."""
    index = program.stage_index
    found = [Line(index[w.start], index[w.end], w.event is None) for w in ways(program)]
    return list(dict.fromkeys(found))


def ranks(values: Floats) -> list[float]:
    """Return where values (n,) lie between the least and the largest; in the middle where nothing is known.

    >>> ranks(np.array([3.0, 1.0, 2.0, np.nan]))
    [1.0, 0.0, 0.5, 0.5]
    """
    known = [v for v in values.tolist() if math.isfinite(v)]
    width = max(known) - min(known) if known else 0.0
    return [(v - min(known)) / width if width and math.isfinite(v) else 0.5 for v in values.tolist()]


def layout(program: Program, values: Floats) -> Layout:
    """Return where the stages (s,) of given values (s,) stand."""
    there = lines(program)
    lower = [i > 0 and all(line.lapse for line in there if line.end == i) for i in range(len(program.stages))]
    columns = _columns(there, lower)
    spans = [columns[b] - columns[a] for a, b, _ in there if not lower[a] and not lower[b]]
    top = 40.0 + _LEVEL * max([1.0, *spans])
    bottom = top + _CLIMB + TALL + 30.0 + _BACK * -min([0.0, *spans])
    beside = any(lower[a] and columns[b] == max(columns) and columns[b] - columns[a] < 1.0 for a, b, _ in there)
    width = 2.0 * _EDGE + CARD + _PITCH * max(columns) + (_WORDS if beside else 0.0)
    left = _EDGE + max(_LEAST - width, 0.0) / 2.0
    heights = [bottom + 30.0 if low else top + _CLIMB * (1.0 - r) for low, r in zip(lower, ranks(values), strict=True)]
    spots = [Spot(c, low, left + _PITCH * c, y) for c, low, y in zip(columns, lower, heights, strict=True)]
    return Layout(spots, max(width, _LEAST), bottom + (TALL + 46.0 if any(lower) else 0.0))


def _columns(there: Sequence[Line], lower: Sequence[bool]) -> list[float]:
    columns, placed = [0.0] * len(lower), 0.0
    for i, low in enumerate(lower):
        if not low:
            columns[i], placed = placed, placed + 1.0
    taken: list[float] = []
    for i in (i for i, low in enumerate(lower) if low):
        above = [columns[line.start] for line in there if line.end == i and not lower[line.start]]
        column = float(np.mean(above)) if above else 0.0
        while any(abs(column - other) < 1.0 for other in taken):
            column += 0.5
        columns[i] = column
        taken.append(column)
    return columns


def curves(there: Sequence[Line], spots: Sequence[Spot]) -> Iterator[Curve]:
    """Yield how each line runs; those that run on one side of a card leave it side by side, the longest innermost."""

    def side(line: Line) -> tuple[bool, bool, bool]:
        start, end = spots[line.start], spots[line.end]
        return start.lower != end.lower, end.lower, end.column > start.column

    for (across, _, onwards), group in groupby(sorted(there, key=side), key=side):
        members = sorted(group, key=lambda line: -abs(spots[line.end].column - spots[line.start].column))
        for line in members:
            leaving = [x for x in members if x.start == line.start].index(line)
            arriving = [x for x in members if x.end == line.end].index(line)
            if across:
                yield _across(line, spots, berth=leaving)
            else:
                yield _along(line, spots, onwards=onwards, berths=(leaving, arriving))


def _along(line: Line, spots: Sequence[Spot], *, onwards: bool, berths: tuple[int, int]) -> Curve:
    """Return a bow above the cards for a way onwards, below them for a way back."""
    start, end = spots[line.start], spots[line.end]
    x1, x2 = (s.middle + sign * (16.0 + 17.0 * b) for s, sign, b in zip((start, end), (1, -1), berths, strict=True))
    if not onwards:
        x1, x2 = 2.0 * start.middle - x1, 2.0 * end.middle - x2
    span = abs(end.column - start.column)
    if onwards:
        y1, y2 = start.y, end.y
        apex = min(s.y for s in spots if s.lower == start.lower) - 12.0 - _LEVEL * (span - 0.55)
    else:
        y1, y2 = start.y + TALL, end.y + TALL
        apex = max(y1, y2) + _BACK * span - 4.0
    bend = (8.0 * apex - y1 - y2) / 6.0  # the bow is highest half-way: (y1 + 6 bend + y2) / 8
    path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {bend:.0f} {x2:.0f} {bend:.0f} {x2:.0f} {y2:.0f}"
    return Curve(line, path, (x1 + x2) / 2.0, apex - 8.0 if onwards else apex + 16.0, "middle")


def _across(line: Line, spots: Sequence[Spot], *, berth: int) -> Curve:
    """Return a stroke from one row to the other: down to the top of a card, up from its top or from its side."""
    start, end = spots[line.start], spots[line.end]
    apart = end.column - start.column
    side = math.copysign(1.0, apart)
    if end.lower:
        x1, x2 = (start.middle + 22.0 * side, end.middle - 46.0 * side) if apart else (start.middle - 30.0,) * 2
        path, half = _swing(x1, start.y + TALL, x2, end.y), (start.y + TALL + end.y) / 2.0
        if not apart:
            return Curve(line, path, x1 - 10.0, half, "end")
        return Curve(line, path, x2 + 8.0 * side, end.y - 40.0 - 11.0 * side, "start" if apart > 0 else "end")
    if not apart:
        x = start.middle + 26.0
        return Curve(line, _swing(x, start.y, x, end.y + TALL), x + 10.0, (start.y + end.y + TALL) / 2.0, "start")
    x1, y1 = start.middle + side * CARD / 2.0, start.y + 40.0 + 26.0 * berth
    x2, y2 = end.middle - (14.0 if abs(apart) < 1.0 else 44.0) * side, end.y + TALL
    path = f"M{x1:.0f} {y1:.0f}C{x2:.0f} {y1:.0f} {x2:.0f} {y1:.0f} {x2:.0f} {y2:.0f}"
    if abs(apart) < 1.0:
        return Curve(line, path, x2 + 9.0 * side, (y1 + y2) / 2.0 + 10.0, "start" if apart > 0 else "end")
    return Curve(line, path, x1 + 12.0 * side, y1 + 18.0, "start" if apart > 0 else "end")


def _swing(x1: float, y1: float, x2: float, y2: float) -> str:
    half = (y1 + y2) / 2.0
    return f"M{x1:.0f} {y1:.0f}C{x1:.0f} {half:.0f} {x2:.0f} {half:.0f} {x2:.0f} {y2:.0f}"
