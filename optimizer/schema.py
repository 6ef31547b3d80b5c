"""What may be written in a program, and what does it mean? A JSON schema for editors, the reference, and a start."""

import re
from functools import cache
from importlib.resources import files
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, UNSET, Meta, UnsetType

from optimizer.misreadings import NAME
from optimizer.program import (
    DAY,
    Attribute,
    Budget,
    Cadence,
    Clock,
    Duration,
    Event,
    Experiment,
    Exploration,
    Fairness,
    Guardrails,
    Incentive,
    Ladder,
    Message,
    Milestone,
    Program,
    Rule,
    Span,
    Stage,
    Timing,
    Tone,
)

DURATION = r"^\d+(\.\d+)?[mhdw]$"
SPAN = r"^(?![0.]+[mhdw])\d+(\.\d+)?[mhdw]$"
CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"

KEYS: dict[type[msgspec.Struct], dict[str, str]] = {
    Program: {
        "name": "What the program is called in commands, in HTTP calls and in MLflow.",
        "title": "What people call it.",
        "description": "One sentence for people.",
        "goal": "The macro-action that everything is valued back from.",
        "currency": "Three capitals: the unit of all values and costs.",
        "language": 'Of the messages. Wording is audited in full where it is "en".',
        "evaluation_horizon": "After how long a decision is judged: at least the longest timing delay and window.",
        "discount": "What a unit of value is worth a day later.",
        "momentum_half_life": "How fast momentum fades: half of it in this time.",
        "dosage_half_life": "How fast nudges that were received are forgotten: half in this time.",
        "stages": "Where a customer can be, the first stage first.",
        "events": "What your app reports.",
        "incentives": "What can be offered: the first factor of a nudge.",
        "tones": "How it can be said: the second factor.",
        "timings": "When it can arrive: the third factor.",
        "messages": "What a customer reads: one message for each incentive in each tone.",
        "attributes": "What is known of a customer, or of the moment.",
        "milestones": "What a customer works towards.",
        "guardrails": "What may never happen, whatever the policy thinks.",
        "exploration": "How much is always tried, so that the program keeps learning.",
        "experiment": "Who is held out, and who meets the challenger; sticky by customer.",
        "fairness": "What counts as fair: asked of every policy before it serves, and of what has served.",
        "rules": "What a marketer would do today: the first rule that fits and is allowed applies.",
    },
    Stage: {
        "name": "What events, incentives, tones and rules call it.",
        "title": "What people call it.",
        "description": "Who is in it, in one sentence.",
        "lapses_after": "A customer who takes no step for so long falls back.",
        "lapses_to": "The stage that such a customer falls back to.",
        "expects": "Until there is a log: which share of the customers here do an event on a day, or `lapse`.",
        "because": 'How a customer says to be in it, such as "you are in your free trial": why a nudge came.',
    },
    Event: {
        "name": "What your app reports it as.",
        "kind": "A micro-action (a small step), a macro-action (a goal) or a signal (how people feel).",
        "title": "What people call it.",
        "value": "What it is worth, in the program's currency; below 0 for what hurts.",
        "scaled": "It is worth `value` times the number that is reported with it.",
        "window": "For how long after the longest timing delay it still counts for a nudge.",
        "moves": "Which stage it leads to, from which.",
        "pauses_promotion": "For so long after it, nothing promotional is allowed.",
        "pauses_below": "Only a reported number below this pauses promotion.",
        "requests_decision": "It asks for the next decision at once: a quick win, or a comeback.",
        "because": 'How a customer says to have done it, such as "you finished a workout": why a nudge came.',
    },
    Incentive: {
        "name": "What messages and rules call it.",
        "title": "What people call it.",
        "kind": "What sort of reward it is; caps can be set by kind.",
        "earns": "In plain words: how an action becomes the reward, and when it comes.",
        "cost": "What showing it once costs on average, in the program's currency.",
        "stock": "How many there are; without it, any number.",
        "tier": "How large it is; on a ladder, its rung.",
        "ladder": "The ladder it is on: allowed only where the rung below has been tried and has not sufficed.",
        "stages": "The stages it is for; without it, all.",
        "min_momentum": "The momentum that a customer needs for it, 0 to 1: one step just now makes 0.5.",
        "promotional": "A complaint pauses it.",
        "scarce": "It presses for time or numbers, so it has a cap of its own.",
        "comeback_after": "Only for customers who have been here and have taken no step for so long.",
        "off_beat": "It may come outside the cadence, at once after an event that requests a decision.",
        "barred_segments": "Categories of customers who never get it, by attribute.",
        "retired": "It is no longer offered; its past stays readable.",
    },
    Tone: {
        "name": "What messages and rules call it.",
        "title": "What people call it.",
        "stages": "The stages it is for; without it, all.",
        "barred_segments": "Categories of customers who are never spoken to like this, by attribute.",
        "retired": "It is no longer used; its past stays readable.",
    },
    Timing: {
        "name": "What rules call it.",
        "title": "What people call it.",
        "delay": "So long after the decision; either this or `clock`.",
        "clock": "At the next such time on the customer's own clock.",
        "retired": "It is no longer used; its past stays readable.",
    },
    Message: {
        "subject": "The first line; {done}, {of}, {milestone} and {reward} are filled from progress.",
        "body": "What there is, how it is earned, and when it comes.",
        "call_to_action": "One next step, starting with what to do.",
    },
    Attribute: {
        "name": "What your app reports it as.",
        "kind": "A number, a category or a flag.",
        "categories": "The names that a category may have.",
        "mean": "What is usual for a number.",
        "scale": "How far from usual is still common, for a number.",
    },
    Milestone: {
        "name": "What reports call it.",
        "title": "What it is called in messages: {milestone}.",
        "reward": "What it earns, as in messages: {reward}.",
        "event": "The event that is counted.",
        "count": "How many of it make the milestone.",
        "streak": "How many days in a row with a step make it, instead of event and count.",
        "after": "How long after the customer's start it is reached, instead of event and count: an anniversary.",
        "streak_of": "The events that keep this streak; without it, any micro- or macro-action does.",
        "requests_decision": "Reaching it asks for the next decision at once.",
    },
    Guardrails: {
        "consent": "Whether customers must have said yes (opt-in), or not have said no (opt-out).",
        "time_zone": "For customers whose own time zone is unknown.",
        "quiet_from": "No nudge arrives from then on, by the customer's own clock.",
        "quiet_until": "Nudges arrive again from then on.",
        "cap_per_day": "Nudges a customer gets on a day at most.",
        "cap_per_week": "Nudges a customer gets in any seven days at most.",
        "cap_per_week_by_kind": "The same, of one kind of incentive.",
        "scarce_per_week": "The same, of scarce incentives.",
        "cooldown": "The least time between two nudges.",
        "cadence": "A steady rhythm that nudges keep, if any.",
        "ladder": "When a larger reward on a ladder is in order.",
        "budget": "What may be spent in a period.",
        "burden_price": "What a nudge has to bring at least after many others lately, in the program's currency.",
        "reports_shown": "Your app reports what was shown; what was not gives its budget and its place back.",
        "expires_after": "How long after delivery a nudge may still be shown.",
        "refused_phrases": "Words that no message of yours may use, besides those that no program may use.",
    },
    Budget: {
        "amount": "In the program's currency.",
        "period": "After this a new budget begins.",
    },
    Ladder: {
        "waits": "How long the smaller reward gets to work before a larger one.",
        "memory": "For how long it counts as tried.",
    },
    Cadence: {
        "every": "A nudge comes a whole number of times this after the last one.",
        "within": "Give or take this: within it, the hour is learned.",
        "hour_within": "At most so far from the customer's own hour, once that is learned from when steps are taken.",
    },
    Exploration: {
        "floor": "Share of decisions spread evenly over all levels that are allowed.",
        "hold": "Share of decisions kept for no nudge at all.",
    },
    Experiment: {
        "holdout": "Share of customers who are never nudged: the honest measure of what the program adds.",
        "challenger": "Share of customers whose decisions the challenger makes.",
        "evaluation": "Share of customers whose decisions are kept from training.",
    },
    Fairness: {
        "protect": "Attributes that must not decide who is nudged: leaving a group of theirs out stops a policy.",
        "exposure_ratio": "How often a group is nudged, over the rest, at the least.",
        "value_loss": "What a decision may cost a group before it counts as harm, in the program's currency.",
        "customers": "How many customers a group needs to be judged.",
        "must_be_known": "Whether too little evidence stops a policy, too; otherwise it is said.",
    },
    Rule: {
        "stages": "In these stages,",
        "incentive": "offer this,",
        "tone": "said like this,",
        "timing": "arriving then,",
        "where": "to customers of these categories, by attribute; without it, to all.",
    },
}
"""What every key of a program means."""

_STRINGS: dict[Any, Any] = {
    Duration: Annotated[str, Meta(pattern=DURATION, examples=["30m", "12h", "3d", "2w"])],
    Span: Annotated[str, Meta(pattern=SPAN, examples=["30m", "12h", "3d", "2w"])],
    Clock: Annotated[str, Meta(pattern=CLOCK, examples=["08:30", "18:00"])],
}

_SECTIONS = {Program: "", Budget: "guardrails.budget", Ladder: "guardrails.ladder", Cadence: "guardrails.cadence"}
_VAST = 1e5
"""A limit that is there to catch slips only."""

_ROWS = {Stage, Event, Incentive, Tone, Timing, Attribute, Milestone, Rule}


def schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a program: what an editor completes, explains and underlines.

    >>> schema()["$defs"]["Timing"]["properties"]["clock"]["examples"]
    ['08:30', '18:00']
    """
    found = msgspec.json.schema(_plain(Program))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A program of the nudge optimizer",
        **found,
    }


@cache
def _plain(kind: Any) -> Any:
    """Return a kind of value as it is written in TOML: durations and clock times are strings, and nothing is null."""
    if kind in _STRINGS:
        return _STRINGS[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _plain_struct(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[(_plain(args[0]), *args[1:])]
    if origin in (Union, UnionType):
        return _plain(next(a for a in args if a is not NoneType))
    if origin in (tuple, dict):
        return origin[tuple(a if a is Ellipsis else _plain(a) for a in args)]
    return kind


def _plain_struct(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    hints = get_type_hints(kind, include_extras=True)
    rows: list[Any] = []
    for field in msgspec.structs.fields(kind):
        if (kind, field.name) == (Program, "version"):
            continue  # the hash of the text, never written in it
        described = Meta(description=KEYS[kind][field.name])
        hint: Any = Annotated[(_plain(hints[field.name]), described)]
        if not field.required and _default(field) is UNSET:
            hint = hint | UnsetType
        rows.append((field.name, hint) if field.required else (field.name, hint, _default(field)))
    made = msgspec.defstruct(kind.__name__, rows, kw_only=True, forbid_unknown_fields=True)
    made.__doc__ = (kind.__doc__ or "").partition("\n")[0]
    return made


def _default(field: Any) -> Any:
    value = _given(field)
    return UNSET if value is None or isinstance(value, msgspec.Struct | dict | tuple) else _written(value)


def _given(field: Any) -> Any:
    """Return what a field is where it is left out."""
    return field.default if field.default is not NODEFAULT else field.default_factory()


def _written(value: object) -> object:
    """Write a default as TOML would have it.

    >>> _written(Duration(5400.0)), _written(Clock(1110)), _written(0.5)
    ('90m', '18:30', 0.5)
    """
    if isinstance(value, Duration):
        units = (("w", 7 * DAY), ("d", DAY), ("h", 3600.0), ("m", 60.0))
        unit, seconds = next((u, s) for u, s in units if value % s == 0 and (u != "w" or value > 7 * DAY))
        return f"{value / seconds:g}{unit}"
    if isinstance(value, Clock):
        return f"{value // 60:02}:{value % 60:02}"
    return value


def reference() -> str:
    """Return every key of a program as Markdown: what it is for, what may stand there, and what it is otherwise."""
    parts = []
    for kind, keys in KEYS.items():
        section = _section(kind)
        parts += [f"### `{section}`" if section else "### At the top", ""]
        parts += ["| key | may be | otherwise | means |", "|---|---|---|---|"]
        hints = get_type_hints(kind, include_extras=True)
        fields = {f.name: f for f in msgspec.structs.fields(kind)}
        for name, meaning in keys.items():
            may_be = _may_be(hints[name]).replace("|", "\\|")
            parts.append(f"| `{name}` | {may_be} | {_otherwise(fields[name])} | {meaning} |")
        parts.append("")
    return "\n".join(parts)


def _section(kind: type[msgspec.Struct]) -> str:
    if kind in _ROWS:
        return f"[[{kind.__name__.lower()}s]]"
    if kind is Message:
        return "[messages.<incentive>.<tone>]"
    return _SECTIONS.get(kind, f"[{kind.__name__.lower()}]")


def _may_be(hint: Any) -> str:
    """Say in words what may stand there."""
    metas: list[Meta] = []
    while get_origin(hint) in (Annotated, Union, UnionType):
        metas += [m for m in get_args(hint) if isinstance(m, Meta)]
        hint = next(a for a in get_args(hint) if a is not NoneType)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f'`"{a}"`' for a in args)
    if origin is tuple:
        return "rows" if _is_struct(args[0]) else f"a list of {_may_be(args[0])}"
    if origin is dict:
        return "tables" if get_origin(args[1]) is dict else f"a table of {_may_be(args[1])}"
    if _is_struct(hint):
        return "a table"
    words = {Duration: "a duration", Span: "a duration", Clock: "a time of day", str: "text", bool: "true or false"}
    if any(m.pattern == NAME for m in metas):
        return "a name"
    return words[hint] if hint in words else f"a number{_range(metas)}"


def _range(metas: list[Meta]) -> str:
    limits = {word: getattr(m, word) for m in metas for word in ("ge", "gt", "le") if getattr(m, word) is not None}
    least = f"{limits['ge']:g}" if "ge" in limits else f"more than {limits['gt']:g}" if "gt" in limits else ""
    if abs(limits.get("ge", 0)) > _VAST or not least:
        return ""
    return f", {least} to {limits['le']:g}" if limits.get("le", _VAST) < _VAST else f", {least} or more"


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _otherwise(field: Any) -> str:
    """Say what a key is where it is left out."""
    if field.required:
        return "**must be given**"
    value = _given(field)
    if value is None or isinstance(value, dict | tuple) or value == "":
        return ""
    if isinstance(value, msgspec.Struct):
        return "as below"
    return f"`{msgspec.json.encode(_written(value)).decode()}`"


def new(name: str) -> str:
    """Return the text of a program to start from: small, commented, and nothing that the audit would find.

    Raises:
        ValueError: the name is none.
    """
    if not re.fullmatch(NAME, name):
        raise ValueError(f'{name!r} is not a name: use small letters, digits, "-" and "_", such as "my-program"')
    text = files("optimizer.programs").joinpath("starter.toml").read_text(encoding="utf-8")
    title = name.replace("-", " ").replace("_", " ").capitalize()
    return text.replace('name = "starter"', f'name = "{name}"', 1).replace('title = "Starter"', f'title = "{title}"', 1)
