"""How does a person read a comparison? One page: who did best, with charts, and what it rests on.

Self-contained: no script, nothing from elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from simulations.comparison import Against, Compared, Comparison, Played, Segment, Spread
from simulations.fitting import Fitted
from simulations.moments import REPLAYS
from simulations.premortem import Premortem
from training.pages import Bar, template
from training.report import money

TITLES = {
    "hold": "No nudge",
    "fixed": "Best single nudge for all",
    "rules": "Today's rules",
    "uniform": "At random",
    "thompson": "Thompson sampling",
    "squarecb": "SquareCB",
    "greedy": "Greedy",
    "boosted": "Boosted trees",
    "vowpal": "Vowpal Wabbit",
    "clicks": "Greedy for clicks",
    "patient": "Patient: stage values and a price on burden",
    "best": "Simulator's best, one step ahead",
}

PROMISED = {"macro": 2.0, "retention": 1.2}
"""What writers on customer momentum promise: conversion two to four times as high, a fifth more who stay."""

YARDSTICKS = {"hold": "no nudge", "fixed": "the best single nudge for all"}


class Chart(NamedTuple):
    """Rows on one scale, with a line to compare them with."""

    title: str
    says: str
    bars: tuple[Bar, ...]
    line: float | None


class Promise(NamedTuple):
    """What was promised, what came of it, and whether it was kept."""

    text: str
    status: str


def html(found: Comparison, *, command: str) -> str:
    """Return the page of a comparison; `command` is what to type to have it again."""
    return template("comparison.html", of="simulations").render(
        c=found,
        title=lambda name: TITLES.get(name, name),
        sentence=sentence,
        charts=lambda played: _charts(found, played),
        promises=promises,
        stages=found.stages,
        replays=REPLAYS,
        segments=_segments,
        said=_said,
        percent=_percent,
        money=lambda x: money(x, found.currency),
        command=command,
    )


def premortem_html(found: Premortem, *, command: str) -> str:
    """Return the page of a pre-mortem."""
    return template("premortem.html", of="simulations").render(c=found, percent=_percent, command=command)


def fit_html(found: Fitted, *, command: str) -> str:
    """Return the page of a world that was fitted to a log."""
    return template("fit.html", of="simulations").render(c=found, command=command)


def sentence(played: Played) -> str:
    """Say in a sentence which policy earned most in a world, and whether that is beyond chance.

    The simulator's own best knows what no policy can, so it does not compete.
    """
    rivals = [p for p in played.policies if p.policy != "best"]
    top = max(rivals, key=lambda p: p.measured.reward.value)
    title = TITLES.get(top.policy, top.policy)
    if top.policy == "hold":
        return "Holding still earned most here: none of these policies earned more than no nudge at all."
    against = next((a for a in top.against if a.yardstick == "hold"), None)
    if against is None:
        return f"{title} earned most here."
    if against.reward.low is None:
        return f"{title} earned most here, in one replication: how much of it is chance, more replications would show."
    sure = "beyond chance" if against.reward.low > 0 else "which may still be chance"
    return f"{title} earned most here, {_said(against.reward, signed=True)} a customer over no nudge, {sure}."


def promises(played: Played) -> list[Promise]:
    """Hold each learner against what the texts on customer momentum promise."""
    told = []
    for one in played.policies:
        if one.policy in ("hold", "fixed", "rules", "uniform", "best"):
            continue
        title = TITLES.get(one.policy, one.policy)
        told += [
            _promise(title, f"macro-conversion against {YARDSTICKS[a.yardstick]}", a.macro_ratio, PROMISED["macro"])
            for a in one.against
            if a.yardstick in YARDSTICKS
        ]
        told += [
            _promise(title, f"retention at {day} against no nudge", kept, PROMISED["retention"])
            for a in one.against
            if a.yardstick == "hold"
            for day, kept in a.retention_ratio.items()
            if day == "day 90"
        ]
    if told and not any("day 90" in one.text for one in told):
        told.append(
            Promise("Retention at day 90 was not measured: ask for --days 90, and beside --policy hold.", "warn")
        )
    return told


def _promise(title: str, what: str, x: Spread, least: float) -> Promise:
    said = f"{title}: {x.value:.2f} times"
    if x.low is not None and x.high is not None:
        said += f" ({x.low:.2f} to {x.high:.2f})"
    if x.low is not None and x.low >= least:
        return Promise(f"{said} {what}: the promised {least:g} times is kept.", "pass")
    if x.value >= least:
        return Promise(f"{said} {what}: the promised {least:g} times is reached, but not beyond chance.", "warn")
    return Promise(f"{said} {what}: it falls short of the promised {least:g} times.", "fail")


def _charts(found: Comparison, played: Played) -> list[Chart]:
    def of(read: Callable[[Compared], Spread]) -> list[tuple[str, Spread]]:
        return [(p.policy, read(p)) for p in played.policies]

    goal = "the goal: share of the customers who reached it"
    return [
        _chart("Reward", "a customer, costs taken off", of(lambda p: p.measured.reward), _currency(found)),
        _chart("Macro-actions", "share of the customers who took one", of(lambda p: p.measured.macro), _percent),
        _chart(found.goal, goal, of(lambda p: p.measured.conversion), _percent),
        *(
            _chart(f"Still active at {d}", "a step or a goal in the week before",
                   of(lambda p, d=d: p.measured.retention[d]), _percent)  # type: ignore[misc]  # a default binds d
            for d in played.policies[0].measured.retention
        ),
        _chart("Messages", "a customer", of(lambda p: p.measured.messages), _number),
        _chart("Opted out", "share of the customers", of(lambda p: p.measured.opted_out), _percent),
        _chart("Cost of incentives", "a customer", of(lambda p: p.measured.cost), _currency(found), never_below=0.0),
        _chart("Momentum at the end", "0 to 1", of(lambda p: p.measured.momentum), _number),
        _chart("Regret", "a decision, against the best that was allowed, one step ahead",
               of(lambda p: p.measured.regret), _currency(found), never_below=0.0),
    ]  # fmt: skip


def _currency(found: Comparison) -> Callable[[float], str]:
    return lambda x: money(x, found.currency)


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def _number(x: float) -> str:
    return f"{x:.2f}"


def _chart(
    title: str,
    says: str,
    rows: Sequence[tuple[str, Spread]],
    write: Callable[[float], str],
    *,
    never_below: float | None = None,
) -> Chart:
    least = 0.0 if write in (_percent, _number) else never_below  # a share or a count is never below 0

    def above(x: float) -> float:
        return x if least is None else max(x, least)

    ends = [x for _, s in rows for x in (s.value, s.low if s.low is None else above(s.low), s.high) if x is not None]
    low, high = min(ends), max(ends)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin

    def place(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    def bar(name: str, s: Spread) -> Bar:
        a, b = (s.value if end is None else end for end in (s.low, s.high))
        a = above(a)
        note = f"{write(a)} to {write(b)}" if s.low is not None else "one replication: no interval"
        tone = {"hold": "baseline", "fixed": "baseline", "rules": "today", "uniform": "baseline", "best": "ideal"}
        return Bar(
            TITLES.get(name, name),
            write(s.value),
            note,
            place(s.value),
            place(a),
            place(b),
            tone.get(name, "candidate"),
        )

    held = next((place(s.value) for name, s in rows if name == "hold"), None)
    return Chart(title, says, tuple(bar(*row) for row in rows), held)


def _segments(played: Played) -> list[tuple[str, list[Segment]]]:
    """The segments of the learner that earned most."""
    learners = [p for p in played.policies if p.policy not in ("hold", "fixed", "rules", "uniform", "best")]
    if not learners:
        return []
    top = max(learners, key=lambda p: p.measured.reward.value)
    return [(TITLES.get(top.policy, top.policy), top.segments)]


def _said(x: Spread | None, *, signed: bool = False) -> str:
    if x is None:
        return "\N{EN DASH}"
    sign = "+" if signed else ""
    reach = f" ({x.low:{sign}.2f} to {x.high:{sign}.2f})" if x.low is not None and x.high is not None else ""
    return f"{x.value:{sign}.2f}{reach}".replace("-", "\N{MINUS SIGN}")


__all__ = ["Against", "html", "premortem_html", "promises", "sentence"]
