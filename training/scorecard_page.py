"""How does a marketer read a scorecard? One page: what the program brings, then the journey, the people, the rewards.

Self-contained (inline SVG, no script, no external resource): it shows in MLflow's frame, on a phone, in print.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from training.fairness import Fairness
from training.figures import Figure
from training.kpis import StageRow
from training.lift import Lift
from training.pages import Bar, date, template
from training.report import PER, Chart, money
from training.scorecard import Scorecard, Threshold

_HEADLINES = (
    ("participation", "Took a step"),
    ("redeemers", "Redeemed a nudge"),
    ("reached_goal", "Reached the goal"),
    ("csat", "Satisfaction (CSAT)"),
    ("nps", "Would recommend us (NPS)"),
)
_LEAVING = (
    ("unsubscribed", "Asked for no more nudges"),
    ("complained", "Complained"),
    ("inactive", "Have gone quiet"),
    ("falling_momentum", "Momentum is falling"),
    ("momentum_change", "Change of momentum, 0 to 1"),
)


class Tile(NamedTuple):
    """A headline: what, how much, between what, of whom."""

    label: str
    said: str
    range: str
    note: str
    known: bool


class Leg(NamedTuple):
    """A stage as it is drawn: parts of the bar in percent, and what is said."""

    title: str
    customers: str
    moved: float
    stayed: float
    fell: float
    low: float
    high: float
    tiles: tuple[Tile, ...]
    known: bool


class Course(NamedTuple):
    """The looks as a picture: points of the band in a box of 100 by 100, and where 0 is."""

    band: str
    zero: float
    top: str
    bottom: str
    last: str


def html(card: Scorecard, *, command: str) -> str:
    """Return the page.

    Args:
        card: what was found.
        command: what to type to have it again.
    """
    effects = _teller(card.currency, scale=PER)
    plain = _teller(card.currency)
    return template("scorecard.html").render(
        c=card,
        about=_about(card),
        sentence=sentence(card),
        mood=_mood(card),
        tiles=[_tile(card.overview[key], label, plain) for key, label in _HEADLINES],
        responses=_responses(card),
        leaving=[_tile(card.churn[key], label, plain) for key, label in _LEAVING],
        legs=[_leg(row, plain) for row in card.funnel],
        lifts=_lift_charts(card, plain),
        course=_course(card.lift.program[0], plain) if card.lift.program else None,
        cost=_tile(card.lift.cost_per_goal, "Cost of each further goal", plain),
        incentives=_incentives(card, plain),
        tiers=_tiers(card, effects),
        thresholds=[f"{t.ladder or 'Incentives on no ladder'}: {_pays(t, effects)}" for t in card.thresholds],
        relevance=_relevance(card, plain),
        segments=_segments(card, plain, effects),
        fairness=card.fairness,
        gate=gate_sentence(card.fairness) if card.fairness else "",
        wear=_wear(card, effects),
        estimands=_estimands(card),
        per=f"{PER:,}",
        percent=lambda x: f"{x:.0%}",
        command=command,
    )


def sentence(card: Scorecard) -> str:
    """Return what the program brings, in plain words, by the interval that may be read at any time.

    A report on an arm speaks of that arm; one on a policy says that what it has is about the whole program.
    """
    found = card.lift
    if found.missing or not found.program:
        return f"What the whole program brings is not known: {found.missing}."
    mine = next((x for x in found.arms if x.arm == card.arm), None)
    if mine is not None and not card.policy:
        return f"Arm {card.arm}: {_sentence(mine, card)}"
    said = _sentence(found.program[0], card)
    if card.policy or card.arm:
        about = f"policy {card.policy}" if card.policy else f"arm {card.arm}"
        return (
            f"This is about the whole program, not about {about} alone, whose customers were not drawn for it. {said}"
        )
    return said


def _sentence(lift: Lift, card: Scorecard) -> str:
    found, tell = card.lift, _teller(card.currency)
    more = "more" if (lift.fixed.value or 0.0) >= 0 else "fewer"
    said = (
        f"Of 100 customers whom it serves, {abs(lift.fixed.value or 0.0) * 100:.1f} {more} reach the goal than "
        f"of 100 whom it leaves alone ({found.horizon})"
    )
    if lift.always.above or lift.always.below:
        return f"{said}: shown, however often one looks."
    if lift.fixed.above or lift.fixed.below:
        return (
            f"{said}. The interval for a single look, {_range(lift.fixed, tell)}, leaves out 0; the one that holds at "
            "every look does not yet: look once, at an end that was fixed beforehand, or go on."
        )
    return f"{said}. That may be chance: the truth could be anywhere from {_range(lift.fixed, tell)}."


def in_short(card: Scorecard) -> dict[str, object]:
    """Return the scorecard as a terminal shows it: headlines, then a table for each part."""
    tell, effects = _teller(card.currency), _teller(card.currency, scale=PER)

    def said(figure: Figure, how: Teller = tell) -> str:
        if figure.value is None:
            return figure.missing
        return (
            f"{how(figure.value, figure.unit)} ({_range(figure, how)})"
            if figure.low is not None
            else how(figure.value, figure.unit)
        )

    headlines = {label.lower(): said(card.overview[key]) for key, label in _HEADLINES}
    leaving = {label.lower(): said(card.churn[key]) for key, label in _LEAVING}
    return {
        "about": _about(card),
        **headlines,
        "answers": _responses(card),
        **leaving,
        "cost of each further goal": said(card.lift.cost_per_goal),
        "fairness": gate_sentence(card.fairness) if card.fairness else "not enough evidence",
        "notes": list(card.notes),
        "stages": [
            {
                "stage": r.title,
                "customers": r.customers,
                "move on": said(r.advanced),
                "fall back": said(r.dropped),
                "half left after": said(r.time),
                "CSAT": said(r.csat),
                "NPS": said(r.nps),
            }
            for r in card.funnel
        ],
        "rewards": [
            {"incentive": r.title, "shown": r.shown, "redeemed": said(r.rate), "half of these within": said(r.time)}
            for r in card.incentives
        ],
        f"sizes, per {PER:,} decisions": [
            {
                "ladder": t.ladder or "others",
                "tier": t.tier,
                "adds": said(t.adds, effects),
                "over the smaller": said(t.over_smaller, effects),
            }
            for t in card.tiers
        ],
        "from which size on": [{"ladder": t.ladder or "others", "says": _pays(t, effects)} for t in card.thresholds],
        "relevance": [
            {"stage": s.stage, "decided by context": said(s.moved)}
            for s in (card.relevance.stages if card.relevance else ())
        ],
        "wear": [
            {"incentive": w.title, "each earlier time": said(w.by_exposure, effects), "advice": w.advice}
            for w in card.wear
        ],
    }


def gate_sentence(gate: Fairness) -> str:
    """Return the verdict on fairness in plain words."""
    return {
        "pass": "No group is shown to be left out or harmed.",
        "warn": "Nothing is shown to be unfair; look at what is listed.",
        "fail": "Unfair to at least one group: nothing should be promoted before that is mended.",
    }[gate.status]


def _mood(card: Scorecard) -> str:
    found = card.lift
    if not found.program or card.policy:
        return "unknown"
    lift = next((x for x in found.arms if x.arm == card.arm), found.program[0])
    if lift.always.above or lift.fixed.above:
        return "promote"
    return "stop" if lift.fixed.below else "unknown"


def _about(card: Scorecard) -> str:
    who = f" in arm {card.arm}" if card.arm else ""
    who += f" under policy {card.policy}" if card.policy else ""
    held = f"; {card.held_out:,} customers are held out to measure lift" if card.held_out and not card.arm else ""
    return (
        f"{card.customers:,} customers{who}, {card.decisions:,} decisions, {card.nudges:,} nudges, {date(card.since)} "
        f"to {date(card.until)}{held}. Goal: {card.goal}. {card.matured_share:.0%} of the decisions have matured."
    )


# How a number is said.

Teller = Callable[[float, str], str]


def _teller(currency: str, *, scale: float = 1.0) -> Teller:
    """Return how to say a number of a unit; money and its changes may be scaled to so many decisions."""

    def tell(x: float, unit: str) -> str:
        if unit == "share":
            return f"{100 * x:.0f} %" if abs(x) >= 0.0995 or x == 0 else f"{100 * x:.1f} %"
        if unit == "points":
            return f"{_signed(100 * x, digits=1)} points"
        if unit == "days":
            return f"{x:.1f} days" if x >= 1 else f"{24 * x:.0f} hours"
        if unit in ("money", "change"):
            return money(x * scale, currency, sign=scale != 1.0 or unit == "change")
        if unit == "count":
            return f"{x:,.0f}"
        return _signed(x, digits=2 if abs(x) < 10 else 0).lstrip("+")

    return tell


def _signed(x: float, *, digits: int) -> str:
    text = f"{abs(x):,.{digits}f}"
    zero = float(text.replace(",", "")) == 0
    mark = "" if zero else "+" if x > 0 else "\N{MINUS SIGN}"
    return f"{mark}{text}"


def _range(figure: Figure, tell: Teller) -> str:
    if figure.low is None:
        return ""
    high = "not known yet" if figure.high is None else tell(figure.high, figure.unit)
    return f"{tell(figure.low, figure.unit)} to {high}"


def _tile(figure: Figure, label: str, tell: Teller) -> Tile:
    if figure.value is None:
        return Tile(label, "\N{EN DASH}", figure.missing, figure.of, known=False)
    return Tile(label, tell(figure.value, figure.unit), _range(figure, tell), figure.of, known=True)


def _responses(card: Scorecard) -> str:
    parts = []
    for key, name in (("csat", "CSAT"), ("nps", "NPS")):
        rate = card.overview[f"{key}_response_rate"]
        count = card.overview[f"{key}_responses"].value or 0
        said = (
            f"{count:,.0f} answers, from {rate.value:.0%} of the customers" if rate.value is not None else "not asked"
        )
        parts.append(f"{name}: {said}")
    return ". ".join(parts) + ". Who did not answer is unknown, not content."


def _leg(row: StageRow, tell: Teller) -> Leg:
    tiles = (
        _tile(row.advanced, "move on", tell),
        _tile(row.dropped, "fall back", tell),
        _tile(row.time, "half have left after", tell),
        _tile(row.csat, "CSAT", tell),
        _tile(row.nps, "NPS", tell),
    )
    known = row.advanced.value is not None and row.dropped.value is not None
    moved, fell = 100 * (row.advanced.value or 0.0), 100 * (row.dropped.value or 0.0)
    return Leg(
        title=row.title,
        customers=f"{row.customers:,} customers, {row.visits:,} visits, {row.followed:,} followed to the end",
        moved=round(moved, 2),
        stayed=round(max(100 - moved - fell, 0.0), 2),
        fell=round(fell, 2),
        low=round(100 * (row.advanced.low or 0.0), 2),
        high=round(100 * (row.advanced.high or 0.0), 2),
        tiles=tiles,
        known=known,
    )


# Charts.


class _Dot(NamedTuple):
    label: str
    figure: Figure
    note: str
    tone: str = "candidate"


_SEEN = 0.05
"""The least span of a scale of shares: what is smaller is no difference to look at."""


def _chart(dots: Iterable[_Dot], tell: Teller, *, line: float | None, says: str = "") -> Chart | None:
    """Lay out figures on one scale that shows the line too; what is not known is left to the text."""
    known = [d for d in dots if d.figure.value is not None]
    if not known:
        return None
    ends = [x for d in known for x in (d.figure.value, d.figure.low, d.figure.high) if x is not None]
    ends += [] if line is None else [line]
    if known[0].figure.unit == "share" and max(ends) - min(ends) < _SEEN:
        ends.append(min(ends) + _SEEN)
    low, high = min(ends), max(ends)
    margin = 0.04 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def place(x: float | None, *, otherwise: float) -> float:
        return round(100 * ((otherwise if x is None else x) - low) / (high - low), 2)

    bars = tuple(
        Bar(
            d.label,
            tell(d.figure.value or 0.0, d.figure.unit),
            " · ".join(x for x in (_range(d.figure, tell), d.note) if x),
            place(d.figure.value, otherwise=low),
            place(d.figure.low, otherwise=d.figure.value or low),
            place(d.figure.high, otherwise=high),
            d.tone,
        )
        for d in known
    )
    unit = known[0].figure.unit
    return Chart(bars, place(line, otherwise=low), says, tell(low, unit), tell(high, unit))


def _lift_charts(card: Scorecard, tell: Teller) -> list[tuple[str, Chart]]:
    """A chart an outcome: the program and its arms, at one look and at all of them."""
    shown = []
    for outcome in dict.fromkeys(x.outcome for x in (*card.lift.program, *card.lift.arms)):
        rows = [x for x in (*card.lift.program, *card.lift.arms) if x.outcome == outcome]
        dots = [dot for x in rows for dot in _lift_dots(x)]
        chart = _chart(dots, tell, line=0.0, says="no difference")
        if chart is not None:
            name = {"reached the goal": "Customers who reach the goal", "worth": "Worth of a customer, costs taken off"}
            shown.append((name.get(outcome, outcome), chart))
    return shown


def _lift_dots(x: Lift) -> list[_Dot]:
    name = x.arm[:1].upper() + x.arm[1:]
    cut = f"; {x.cut:.0%} of the customers were worth more or less than the declared range" if x.cut else ""
    once = _Dot(f"{name}, one look at the end", x.fixed, f"{x.fixed.n:,} customers", "champion")
    return [once, _Dot(f"{name}, at any time", x.always, f"holds at every look{cut}", "today")]


def _course(lift: Lift, tell: Teller) -> Course | None:
    """Draw the interval after each customer; it only ever closes in."""
    looks = lift.looks
    if len(looks) < 2:
        return None
    top, bottom = max(x.high for x in looks), min(x.low for x in looks)
    most = looks[-1].customers
    span = (top - bottom) or 1.0

    def point(customers: int, y: float) -> str:
        return f"{100 * customers / most:.2f},{100 * (top - y) / span:.2f}"

    edge = [point(x.customers, x.high) for x in looks] + [point(x.customers, x.low) for x in reversed(looks)]
    zero = round(100 * (top - 0.0) / span, 2)
    return Course(" ".join(edge), zero, tell(top, lift.always.unit), tell(bottom, lift.always.unit), f"{most:,}")


def _incentives(card: Scorecard, tell: Teller) -> list[tuple[str, Chart | None, list[str]]]:
    """Redemption and time to redeem: a chart each, and what cannot be said."""
    rows = sorted(card.incentives, key=lambda r: -(r.rate.value or 0.0))
    notes = [f"{r.shown:,} shown, {r.redeemed:,} redeemed, {money(r.cost, card.currency)} spent" for r in rows]
    rates = [_Dot(r.title, r.rate, note) for r, note in zip(rows, notes, strict=True)]
    times = [_Dot(r.title, r.time, "") for r in rows]
    return [
        (title, _chart(dots, tell, line=None), _unknown((d.label, d.figure) for d in dots))
        for title, dots in (
            (f"Redeemed within {card.days:g} days of delivery", rates),
            ("Half of these redeemed within", times),
        )
    ]


def _unknown(figures: Iterable[tuple[str, Figure]]) -> list[str]:
    """Say what is missing, once for all to which the same applies."""
    reasons: dict[str, list[str]] = {}
    for name, figure in figures:
        if figure.value is None:
            reasons.setdefault(figure.missing, []).append(name)
    return [f"{', '.join(names)}: {why}." for why, names in reasons.items()]


def _tiers(card: Scorecard, tell: Teller) -> list[tuple[str, Chart | None, list[str]]]:
    """A chart a ladder: what each size adds over holding, and over the smaller one."""
    found = []
    for ladder in dict.fromkeys(t.ladder for t in card.tiers):
        rows = [t for t in card.tiers if t.ladder == ladder]
        dots = []
        for t in rows:
            label = f"Tier {t.tier}: {', '.join(t.incentives)}"
            dots.append(_Dot(label, t.adds, f"over holding · costs {money(t.cost, card.currency)} each"))
            if t is not rows[0]:
                dots.append(
                    _Dot(f"Tier {t.tier} less the smaller", t.over_smaller, "where both were possible", "today")
                )
        title = f"Ladder {ladder}" if ladder else "Incentives on no ladder, by tier"
        unknown = _unknown((d.label, d.figure) for d in dots)
        found.append((title, _chart(dots, tell, line=0.0, says="nothing added"), unknown))
    return found


def _pays(found: Threshold, tell: Teller) -> str:
    """Say from which size on a ladder pays, and what that adds."""
    if found.tier is None:
        return f"{found.says}."
    adds = f"{tell(found.adds.value or 0.0, found.adds.unit)} ({_range(found.adds, tell)})"
    return f"{found.says}, which adds {adds} per {PER:,} decisions."


def _relevance(card: Scorecard, tell: Teller) -> tuple[Chart | None, list[str], list[tuple[str, list[Tile]]]]:
    """How much of the choice the context decides, a bar a stage; then the touch points that it moves most."""
    found = card.relevance
    if found is None:
        return None, [], []
    titles = {row.stage: row.title for row in card.funnel} | {i.incentive: i.title for i in card.incentives}
    dots = [_Dot(titles.get(s.stage, s.stage), s.moved, "") for s in found.stages]
    known = [p for p in found.touch_points if p.moved.value is not None]
    most = sorted(known, key=lambda p: -(p.moved.value or 0.0))[:_SHOWN]
    rows = [
        (
            f"{titles.get(p.stage, p.stage)}: {titles.get(p.incentive, p.incentive)}, {p.tone}",
            [_tile(p.chance, "offered", tell), _tile(p.moved, "moved by context", tell)],
        )
        for p in most
    ]
    return _chart(dots, tell, line=0.0, says="alike for all"), _unknown((d.label, d.figure) for d in dots), rows


_SHOWN = 8
"""Touch points on the page; all are in the JSON and in MLflow's table."""


def _segments(card: Scorecard, plain: Teller, effects: Teller) -> list[tuple[str, list[tuple[str, list[Tile]]]]]:
    """A table an attribute: one row a group."""
    return [
        (
            attribute.replace("_", " "),
            [
                (
                    f"{s.segment} ({s.customers:,})",
                    [
                        _tile(s.participation, "took a step", plain),
                        _tile(s.reached, "reached the goal", plain),
                        _tile(s.exposure, "nudged", plain),
                        _tile(s.value, f"nudging adds, per {PER:,}", effects),
                    ],
                )
                for s in card.segments
                if s.attribute == attribute
            ],
        )
        for attribute in dict.fromkeys(s.attribute for s in card.segments)
    ]


def _wear(card: Scorecard, tell: Teller) -> tuple[Chart | None, list[str]]:
    """The slopes on one scale, and what follows from each."""
    dots = [
        _Dot(w.title, w.by_exposure, f"{w.shown:,} shown; {w.advice}", "worn" if w.worn else "candidate")
        for w in card.wear
    ]
    unknown = _unknown((w.title, w.by_exposure) for w in card.wear)
    return _chart(dots, tell, line=0.0, says="no wear"), unknown


def _estimands(card: Scorecard) -> list[str]:
    """What the figures are estimates of, each once."""
    figures: Sequence[Figure] = (
        *card.overview.values(),
        *card.churn.values(),
        *(f for row in card.funnel[:1] for f in (row.advanced, row.dropped, row.time)),
        *(f for row in card.incentives[:1] for f in (row.rate, row.time)),
        card.lift.cost_per_goal,
        *(f for row in card.tiers[-1:] for f in (row.adds, row.over_smaller)),
        *(f for row in card.segments[:1] for f in (row.exposure, row.value)),
        *(f for row in card.wear[:1] for f in (row.effect, row.by_exposure, row.by_week)),
    )
    return [*dict.fromkeys(f.of for f in figures)]
