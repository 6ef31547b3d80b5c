"""How does a marketer read an evaluation? One page: the verdict in a sentence, then what it rests on.

The page is self-contained (no script, no external resource), so that it shows in MLflow's sandboxed frame, on a
phone, in a mail and in print.
"""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.diagnostics import Check
from training.evaluate import Evaluation, Score
from training.intervals import Estimate
from training.promotion import Verdict, always_valid

PER = 1_000
"""Values are shown for so many decisions: a value per decision is too small to picture."""

_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}
_CALM = {"today": "#64748b", "baseline": "#94a3b8", "champion": "#0f766e", "candidate": "#0f766e"}


class Bar(NamedTuple):
    """A row of a chart: where its dot and its interval lie, in percent of the width."""

    label: str
    said: str
    note: str
    at: float
    low: float
    high: float
    tone: str


class Chart(NamedTuple):
    """Rows on one scale, with a line to compare them with."""

    bars: tuple[Bar, ...]
    line: float
    line_says: str
    low_says: str
    high_says: str


class Change(NamedTuple):
    """A level's share of the nudges, before and after, in percent."""

    level: str
    before: float
    after: float


class Cell(NamedTuple):
    """A number and, where it is an estimate, its interval."""

    said: str
    range: str = ""


class Row(NamedTuple):
    """A line of a table."""

    label: str
    cells: tuple[Cell, ...]


def html(evaluation: Evaluation, verdict: Verdict, *, command: str) -> str:
    """Return the page.

    Args:
        evaluation: what was found.
        verdict: what follows from it.
        command: what to type to have it again.
    """
    environment = Environment(
        loader=PackageLoader("training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    reference, best = evaluation.score(evaluation.reference), _best(evaluation, verdict)
    return environment.get_template("report.html").render(
        e=evaluation,
        verdict=verdict,
        sentence=sentence(evaluation, verdict),
        reference=reference,
        best=best,
        since=_date(evaluation.since),
        until=_date(evaluation.until),
        worth=_worth(evaluation),
        gains=_gains(evaluation),
        sides=_sides(evaluation, [reference, *([best] if best else [])]),
        stages=_by_stage(evaluation, best) if best else None,
        mix=_mix(evaluation, reference, best) if best else {},
        effects=_effects(evaluation),
        checks=_checks(evaluation, best),
        per=f"{PER:,}",
        money=lambda x: money(x * PER, evaluation.currency),
        percent=lambda share: f"{share:.0%}",
        command=command,
    )


def sentence(evaluation: Evaluation, verdict: Verdict) -> str:
    """Return the verdict in plain words."""
    reference, best = evaluation.score(evaluation.reference), _best(evaluation, verdict)
    if verdict.choice == "not enough evidence" or best is None:
        reason = verdict.reasons[0]
        return f"Not enough evidence to decide. {_capital(reason.text)}. To mend it: {reason.mend}."
    lift = always_valid(best.lift, level=verdict.level)
    gain, low, high = (_more(x, evaluation.currency) for x in (lift.value, lift.low, lift.high))
    than = _lower(reference.title)
    if verdict.promotes:
        return (
            f"Switch to {best.title}. Over {PER:,} decisions it brings {gain} than {than}"
            f"{_relative(lift, reference)}, very likely at least {low}."
        )
    return (
        f"Keep {than}. No challenger was shown to be better: the best of them, {best.title}, brings {gain} over "
        f"{PER:,} decisions, and the truth could be anywhere from {low} to {high}."
    )


def _more(amount: float, currency: str) -> str:
    return f"{money(abs(amount) * PER, currency)} {'more' if amount >= 0 else 'less'}"


def money(amount: float, currency: str, *, sign: bool = False) -> str:
    """Write an amount in few digits.

    >>> money(1234.5, "EUR"), money(-7.25, "CHF", sign=True), money(0.0, "USD", sign=True)
    ('€1,234', '−CHF 7.25', '$0.00')
    """
    size = abs(amount)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    text = f"{size:,.{digits}f}"
    name = _SIGNS.get(currency, f"{currency} ")
    zero = float(text.replace(",", "")) == 0
    mark = "" if zero else "\N{MINUS SIGN}" if amount < 0 else "+" if sign else ""
    return f"{mark}{name}{text}"


def png(evaluation: Evaluation, verdict: Verdict) -> bytes:
    """Return the chart of values with intervals as a picture."""
    figure = Figure(figsize=(8, 1.4 + 0.5 * len(evaluation.scores)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    scores = evaluation.scores[::-1]
    for y, score in enumerate(scores):
        value = score.value
        colour = _CALM[score.role]
        axes.plot([value.low * PER, value.high * PER], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([value.value * PER], [y], "o", color=colour, markersize=8)
    axes.axvline(evaluation.score(evaluation.reference).value.value * PER, color="#64748b", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(scores)), [s.title for s in scores])
    axes.set_xlabel(f"value of {PER:,} decisions, {evaluation.currency}, with {evaluation.level:.0%} intervals")
    axes.set_title(f"{evaluation.program_title}: {verdict.choice}", loc="left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _best(evaluation: Evaluation, verdict: Verdict) -> Score | None:
    """The challenger that the page is about."""
    return evaluation.score(verdict.challenger) if verdict.challenger else None


def _relative(lift: Estimate, reference: Score) -> str:
    """Say the lift in percent, where the reference is worth enough for that to mean something."""
    base = reference.value
    return f" ({lift.value / base.value:+.0%})" if base.low > 0 else ""


def _worth(evaluation: Evaluation) -> Chart:
    """What each policy is worth, on one scale."""
    rows = [(s.title, s.value, _nudges(s), s.role) for s in evaluation.scores]
    line = evaluation.score(evaluation.reference)
    return _chart(rows, evaluation, line=line.value.value, says=_lower(line.title))


def _gains(evaluation: Evaluation) -> tuple[Row, ...]:
    """What each policy gains over the reference and over no nudges."""
    none = Cell("\N{EN DASH}")
    return tuple(
        Row(
            s.title,
            (
                none if s.name == evaluation.reference else _interval(s.lift, evaluation.currency),
                none if s.name == "hold" or s.over_hold is None else _interval(s.over_hold, evaluation.currency),
            ),
        )
        for s in evaluation.scores
    )


def _by_stage(evaluation: Evaluation, best: Score) -> Chart:
    """What the challenger gains over the reference in each stage."""
    rows = [
        (s.title, s.lift, f"{s.share:.0%} of decisions; nudges {s.nudged:.0%} of them", "candidate")
        for s in best.stages
        if s.lift is not None
    ]
    return _chart(rows, evaluation, line=0.0, says="no difference", sign=True)


def _effects(evaluation: Evaluation) -> dict[str, Chart]:
    """What each level adds over hold, a chart a factor."""
    factors = dict.fromkeys(e.factor for e in evaluation.effects)
    return {
        f: _chart(
            [
                (evaluation.titles[f"{f}={e.level}"], e.lift, f"drawn {e.drawn:,} times", "candidate")
                for e in sorted(evaluation.effects, key=lambda e: -e.lift.value)
                if e.factor == f
            ],
            evaluation,
            line=0.0,
            says="no nudge",
            sign=True,
        )
        for f in factors
    }


def _chart(
    rows: Sequence[tuple[str, Estimate, str, str]],
    evaluation: Evaluation,
    *,
    line: float,
    says: str,
    sign: bool = False,
) -> Chart:
    """Lay out estimates (label, estimate, note, tone) on one scale that shows the line too."""
    ends = [line, *(x for _, e, _, _ in rows for x in (e.low, e.high))]
    low, high = min(ends), max(ends)
    margin = 0.04 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def place(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    def said(x: float) -> str:
        return money(x * PER, evaluation.currency, sign=sign)

    bars = tuple(
        Bar(
            label,
            said(e.value),
            f"{said(e.low)} to {said(e.high)} · {note}",
            place(e.value),
            place(e.low),
            place(e.high),
            tone,
        )
        for label, e, note, tone in rows
    )
    return Chart(bars, place(line), says, said(low), said(high))


def _mix(evaluation: Evaluation, reference: Score, best: Score) -> dict[str, tuple[Change, ...]]:
    """How the mix of nudges changes, by factor, the largest shares first."""
    return {
        factor: tuple(
            sorted(
                (
                    Change(evaluation.titles[f"{factor}={level}"], 100 * before, 100 * best.mix[factor][level])
                    for level, before in levels.items()
                ),
                key=lambda c: -c.after,
            )
        )
        for factor, levels in reference.mix.items()
    }


def _sides(evaluation: Evaluation, scores: Sequence[Score]) -> tuple[Row, ...]:
    """What else changes, per so many decisions."""
    rows = [
        Row("Nudges sent", tuple(Cell(f"{s.nudged * PER:,.0f}") for s in scores)),
        Row("Expected cost", tuple(Cell(money(s.cost * PER, evaluation.currency)) for s in scores)),
    ]
    events = [
        Row(evaluation.titles[event], tuple(_count(s.events[event]) for s in scores)) for event in scores[0].events
    ]
    return (*rows, *events)


def _checks(evaluation: Evaluation, best: Score | None) -> tuple[Check, ...]:
    """The checks of the log and of the challenger, the worst first."""
    order = {"fail": 0, "warn": 1, "pass": 2}
    about = [c for c in evaluation.checks if c.target in ("", best.name if best else "")]
    return tuple(sorted(about, key=lambda c: order[c.status]))


def _nudges(score: Score) -> str:
    return f"nudges {score.nudged:.0%} of decisions"


def _interval(e: Estimate, currency: str) -> Cell:
    value, low, high = (money(x * PER, currency, sign=True) for x in (e.value, e.low, e.high))
    return Cell(value, f"{low} to {high}")


def _count(e: Estimate) -> Cell:
    value, low, high = (max(x, 0.0) * PER for x in (e.value, e.low, e.high))
    return Cell(f"{value:,.1f}", f"{low:,.1f} to {high:,.1f}")


def _unbroken(text: str) -> str:
    """Keep a sign on the line of its number: browsers break after it otherwise."""
    return re.sub(r"([+\N{MINUS SIGN}])(?=\S)", "\\1\N{WORD JOINER}", text)


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%-d %B %Y}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """A title within a sentence."""
    return text[:1].lower() + text[1:]
