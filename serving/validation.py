"""Does this program understand the request? What the contract's types cannot say: names, kinds and moments."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optimizer.contradictions import zone_exists
from optimizer.engine import CHALLENGER, CHAMPION, EVALUATION
from optimizer.events import Outcome, Scalar
from optimizer.guardrails import Request
from optimizer.program import SYSTEM_EVENTS, Attribute, Program
from serving import schemas

NEAR = 5 * 60.0
"""Seconds from now within which a request may say when it is asked."""

ARMS = (CHAMPION, CHALLENGER, EVALUATION)
"""Arms whose policy can be paused."""

_EARLIEST, _LATEST = 946_684_800.0, 4_102_444_800.0
"""2000 and 2100: a moment outside was not meant."""

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "number": ((int, float), "a number"),
    "category": ((str,), "a string"),
    "flag": ((bool,), "true or false"),
}


class InvalidError(ValueError):
    """A field that a program does not understand, and what to do about it."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class Clock(NamedTuple):
    """What time it is, and whether a request may name any other (scope simulate, store marked simulated)."""

    now: float
    free: bool = False

    def asked_at(self, request: schemas.Asked) -> float:
        """Return when a decision is asked for."""
        if request.at is None:
            return self.now
        at = moment(request.at.timestamp(), "at")
        if not self.free and abs(at - self.now) > NEAR:
            raise InvalidError(
                "at",
                "is more than five minutes from now; leave it out, or use a key with scope simulate"
                " on a store that was created with --simulated",
            )
        return at

    def happened_at(self, report: schemas.OutcomeReport) -> float:
        """Return when an outcome happened: any time in the past."""
        if report.at is None:
            return self.now
        at = moment(report.at.timestamp(), "at")
        if not self.free and at > self.now + NEAR:
            raise InvalidError(
                "at", "is more than five minutes ahead of now; report what has happened, and check the clock"
            )
        return at


def moment(at: float, field: str) -> float:
    """Return a moment that can have been meant."""
    if not _EARLIEST <= at <= _LATEST:
        raise InvalidError(field, "is not between the years 2000 and 2100; mend the date")
    return at


def attributes(given: Mapping[str, Scalar], declared: Sequence[Attribute], *, field: str) -> None:
    """Raise `InvalidError` for an undeclared attribute or another kind. An unknown category reads as unknown."""
    known = {a.name: a.kind for a in declared}
    for name, value in given.items():
        if name not in known:
            raise InvalidError(
                f"{field}.{name}", f"is not a declared attribute; use one of {', '.join(known) or 'none'}"
            )
        kinds, expected = _KINDS[known[name]]
        # A boolean is an int to Python, and not a number to anybody else.
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds)):
            raise InvalidError(f"{field}.{name}", f"is not {expected}; send {expected}, or null for unknown")


def limits(request: schemas.Asked, program: Program) -> Request:
    """Return what a request limits itself to; `InvalidError` for a level that the program does not have."""
    if request.only is None and request.without is None:
        return Request()
    return Request(_levels(request.only, program, field="only"), _levels(request.without, program, field="without"))


def _levels(given: schemas.AskedLimits | None, program: Program, *, field: str) -> dict[str, list[str]]:
    by_factor = given.by_factor() if given else {}
    names = {"incentive": program.space.incentives, "tone": program.space.tones, "timing": program.space.timings}
    for factor, levels in by_factor.items():
        for i, level in enumerate(levels):
            if level not in names[factor]:
                raise InvalidError(
                    f"{field}.{factor}[{i}]", f"is not a declared {factor}; use one of {', '.join(names[factor])}"
                )
    return by_factor


def outcome(report: schemas.OutcomeReport, program: Program, *, clock: Clock) -> Outcome:
    """Return a reported outcome as it is logged. Where requests name their time, it is received when it happens."""
    at = clock.happened_at(report)
    return Outcome(
        outcome_id=report.outcome_id,
        customer_id=report.customer_id,
        program=program.name,
        event=report.event,
        at=at,
        received_at=at if clock.free else clock.now,
        revision=report.revision,
        decision_id=report.decision_id,
        value=report.value,
        revoked=report.revoked,
    )


def refusal(program: Program, event: str, *, state: str) -> str:
    """Say why the store refused an outcome."""
    if state == "unknown_event":
        known = ", ".join(dict.fromkeys((*program.event_index, *SYSTEM_EVENTS)))
        return f"program {program.name} has no event {event[:64]!r}; use one of {known}"
    return "this customer was erased, and this happened before: it is not kept; there is nothing to mend"


def customer(change: schemas.CustomerChange, declared: Sequence[Attribute]) -> None:
    """Raise `InvalidError` for a time zone that does not exist, or attributes that no program declares."""
    if change.time_zone is not None and not zone_exists(change.time_zone):
        raise InvalidError("time_zone", "is not a time zone; use an IANA name such as Europe/Paris")
    if change.attributes is not None:
        attributes(change.attributes, declared, field="attributes")


def level(name: str, program: Program) -> str:
    """Return what is to be paused or resumed: `program`, a level that the program has, or the policy of an arm."""
    factor, _, wanted = name.partition("=")
    names = {"incentive": program.space.incentives, "tone": program.space.tones, "timing": program.space.timings}
    names["policy"] = ARMS
    if name != "program" and wanted not in names.get(factor, ()):
        example = f"incentive={program.space.incentives[0]}"
        raise InvalidError(
            "level",
            f"{name!r} is not a level of {program.name}; use program, a level such as {example}, or policy=champion",
        )
    return name
