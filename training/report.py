"""How does a marketer read an evaluation? One page: the verdict in a sentence, then what it rests on.

The page is self-contained (no script, no external resource), so that it shows in MLflow's sandboxed frame, on a
phone, in a mail and in print.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.diagnostics import Check
from training.evaluation import Evaluation, Score, StageScore
from training.intervals import Estimate
from training.pages import Bar, date, template
from training.promotion import Verdict, always_valid

PER = 1_000
"""Values are shown for so many decisions: a value per decision is too small to picture."""

_SIGNS = {"EUR": "€", "USD": "$", "GBP": "£"}
_CALM = {"today": "#64748b", "baseline": "#94a3b8", "champion": "#0f766e", "candidate": "#0f766e"}


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


class Method(NamedTuple):
    """A line of the statistician's table: how an interval was found, its value and its ends."""

    name: str
    value: str
    low: str
    high: str


class Course(NamedTuple):
    """A sequence as a picture: the outline of its band and the line of no difference, in percent of each axis."""

    band: str
    line: float
    first: str
    last: str
    says: str


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
    reference, best = evaluation.score(evaluation.reference), _best(evaluation, verdict)
    return template("report.html").render(
        e=evaluation,
        verdict=verdict,
        sentence=sentence(evaluation, verdict),
        reference=reference,
        best=best,
        since=date(evaluation.since),
        until=date(evaluation.until),
        worth=_worth(evaluation),
        gains=_gains(evaluation),
        sides=_sides(evaluation, [reference, *([best] if best else [])]),
        stages=_by_part(evaluation, best.stages) if best else None,
        segments=_by_part(evaluation, best.segments) if best and best.segments else None,
        guardrails=_guardrails(evaluation),
        course=_course(evaluation, best) if best else None,
        methods=_methods(evaluation, best or reference),
        about=best or reference,
        sensitivity=_sensitivity(evaluation, best),
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
    if verdict.reasons[0].code.startswith("fairness") and verdict.reasons[0].speaks == "against":
        unfair = verdict.reasons[0]
        return f"Keep {_lower(reference.title)}. {_capital(unfair.text)}. To mend it: {unfair.mend}."
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


AGAINST = {"today": "today's policy", "hold": "no nudges", "rules": "the rules", "uniform": "nudges at random"}


def _gains(evaluation: Evaluation) -> tuple[Row, ...]:
    """What each policy gains over the reference and each baseline: a line a comparison, so a phone has room."""
    columns = {name: s for name, s in AGAINST.items() if any(x.name == name for x in evaluation.scores)}
    if evaluation.reference not in columns:
        columns = {evaluation.reference: "the champion", **columns}
    shown = [s for s in evaluation.scores if s.role in ("candidate", "champion")] or list(evaluation.scores)
    return tuple(
        Row(f"{s.title}, over {says}", (_interval(s.against[name], evaluation.currency),))
        for s in shown
        for name, says in columns.items()
        if name in s.against
    )


def _guardrails(evaluation: Evaluation) -> tuple[Row, ...]:
    """What changing each guardrail would do, and how that is known."""
    return tuple(
        Row(
            _capital(p.change) if p.price else _capital(f"{p.rule.replace('_', ' ')}, {p.change}"),
            (
                _interval(p.price, evaluation.currency)
                if p.price
                else Cell("not identified", f"worst {_said(p.low, evaluation)}, best {_said(p.high, evaluation)}"),
                Cell(p.method, p.note),
            ),
        )
        for p in evaluation.guardrails
    )


def _said(amount: float, evaluation: Evaluation) -> str:
    return money(amount * PER, evaluation.currency, sign=True)


def _course(evaluation: Evaluation, best: Score) -> Course | None:
    """The anytime-valid sequence of the challenger's lift, from its first look to its last."""
    if best.sequence is None or len(best.sequence.looks) < 2:
        return None
    looks = best.sequence.looks
    most = max(abs(x) for look in looks[len(looks) // 10 :] for x in (look.lift_low, look.lift_high)) or 1.0
    end = float(looks[-1].customers)

    def place(x: float) -> float:
        return round(min(max(50.0 - 48.0 * x / most, 0.0), 100.0), 2)

    upper = [f"{100 * look.customers / end:.2f},{place(look.lift_high):.2f}" for look in looks]
    lower = [f"{100 * look.customers / end:.2f},{place(look.lift_low):.2f}" for look in reversed(looks)]
    last = best.sequence.last
    return Course(
        " ".join([*upper, *lower]),
        place(0.0),
        f"{looks[0].customers:,}",
        f"{looks[-1].customers:,} customers",
        f"{_said(last.lift_low, evaluation)} to {_said(last.lift_high, evaluation)}",
    )


METHODS = {
    "bca": "BCa bootstrap of DR, by customer",
    "poisson": "Poisson bootstrap of DR, by customer",
    "likelihood": "empirical likelihood, no model",
}


def _methods(evaluation: Evaluation, score: Score) -> tuple[Method, ...]:
    """The value of one policy by every kind of interval."""

    def line(name: str, value: float, low: float, high: float) -> Method:
        return Method(name, *(money(x * PER, evaluation.currency) for x in (value, low, high)))

    found = [line("Student t of DR, by customer", score.value.value, score.value.low, score.value.high)]
    found += [line(METHODS[name], x.value, x.low, x.high) for name, x in score.intervals.items()]
    if (balanced := score.estimates.get("balanced-dr")) is not None:
        found.append(line("DR over the mixture of all loggers", balanced.value, balanced.low, balanced.high))
    for name, said in (("slope", f"SLOPE picked {score.picked.upper()}"), ("ladder", "rungs mixed by their odds")):
        one = score.estimates[name]
        found.append(line(f"{said}; not for gates", one.value, one.low, one.high))
    if score.sequence is not None:
        last = score.sequence.last
        found.append(line("anytime-valid, customers' means", (last.low + last.high) / 2.0, last.low, last.high))
    return tuple(found)


def _sensitivity(evaluation: Evaluation, best: Score | None) -> tuple[Row, ...]:
    """What the lift could be, were estimated propensities off by more and more."""
    if best is None or best.sensitivity is None:
        return ()
    found = best.sensitivity
    return tuple(
        Row(f"odds off by up to {gamma:g}", (Cell(f"{_said(low, evaluation)} to {_said(high, evaluation)}"),))
        for gamma, (low, high) in zip(found.gammas, found.lift, strict=True)
    )


def _by_part(evaluation: Evaluation, parts: Sequence[StageScore]) -> Chart:
    """What the challenger gains over the reference in each stage or segment."""
    rows = [
        (s.title, s.lift, f"{s.share:.0%} of decisions; nudges {s.nudged:.0%} of them", "candidate")
        for s in parts
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
    customers = [
        Row("Messages a customer", tuple(Cell(f"{s.messages:,.1f}") for s in scores)),
        Row(
            "Opt-outs per 1,000 customers",
            tuple(_count(s.opt_outs) if s.opt_outs else Cell("not known") for s in scores),
        ),
        Row(f"Cost of one more: {evaluation.goal}", tuple(_each(s.cost_per_outcome, evaluation) for s in scores)),
        Row("Expected spend", tuple(_spend(s, evaluation) for s in scores)),
    ]
    return (*rows, *events, *customers)


def _each(cost: Estimate | None, evaluation: Evaluation) -> Cell:
    if cost is None:
        return Cell("not known", "more of them than without nudges were not shown")
    value, low, high = (money(x, evaluation.currency) for x in (cost.value, cost.low, cost.high))
    return Cell(value, f"{low} to {high}")


def _spend(score: Score, evaluation: Evaluation) -> Cell:
    """What a policy would spend, and whether there is so much."""
    spend = score.spend
    if spend is None:
        return Cell("not known", "the log has no rate of decisions")
    said = f"{money(spend.expected, evaluation.currency)} in {spend.period_days:g} days"
    if spend.budget is None:
        return Cell(said)
    of = f"of {money(spend.budget, evaluation.currency)}"
    return Cell(said, of if spend.feasible else f"{of}: infeasible at these prices")


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


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    """A title within a sentence."""
    return text[:1].lower() + text[1:]
