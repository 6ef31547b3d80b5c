"""May this nudge go out now? Consent and guardrails, checked again when it is handed to whoever delivers it.

Between the decision and its delivery a customer may opt out, complain, reach the goal or be nudged by a program that
was paused meanwhile. What is checked is what would be checked now, leaving out what the nudge itself has reserved.
"""

from typing import NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from optimizer.actions import Nudge
from optimizer.customer import Customer, Sent, cohort
from optimizer.events import Outcome
from optimizer.guardrails import Shared, allowed
from optimizer.program import Duration, Program, Timing
from serving.publishing import PAUSES

HOLD, SHOWN, CANCELLED, EXPIRED, PAUSED = "hold", "shown", "cancelled", "expired", "paused"
"""Reasons against delivery that are not rules: nothing to deliver; delivered before; released before; too late."""


class Checked(NamedTuple):
    """Whether a nudge may go out, from when until when, and why not; `releases` gives its reservation back."""

    deliver: bool
    reason: str | None = None
    deliver_at: float | None = None
    expires_at: float | None = None
    releases: bool = False


class _Action(msgspec.Struct, frozen=True):
    incentive: str
    tone: str
    timing: str


class Kept(msgspec.Struct, frozen=True):
    """What is read of a kept answer."""

    action: _Action | None = None

    @classmethod
    def read(cls, kept: bytes) -> "Kept":
        """Read the first line of a kept answer."""
        return msgspec.json.decode(kept.partition(b"\n")[0], type=cls)


class _Why(msgspec.Struct, frozen=True):
    arm: str


def check(
    program: Program, customer: Customer, *, kept: bytes, decision_id: str, paused: frozenset[str], at: float
) -> Checked:
    """Return whether a decided nudge may be delivered.

    Args:
        program: as it is now.
        customer: settled at `at`.
        kept: the answer as kept, both lines.
        decision_id: of the nudge.
        paused: what is paused.
        at: when it is asked; before its time, the nudge is checked for its time.
    """
    action = Kept.read(kept).action
    if action is None:
        return Checked(deliver=False, reason=HOLD)
    sent = next((s for s in customer.sent if s.decision_id == decision_id), None)
    if sent is None or sent.settled:
        return Checked(deliver=False, reason=CANCELLED if sent is None else SHOWN)
    times = {"deliver_at": sent.deliver_at, "expires_at": sent.expires_at}
    if at > sent.expires_at:
        releases = program.guardrails.reports_shown  # otherwise what expires counts as shown
        return Checked(deliver=False, reason=EXPIRED, **times, releases=releases)
    arm = msgspec.json.decode(kept.partition(b"\n")[2], type=_Why).arm
    stopped = {f"{PAUSES}{arm}", f"timing={action.timing}"} & paused
    nudge = Nudge(action.incentive, action.tone, action.timing)
    rule = PAUSED if stopped else _blocked(program, customer, sent, nudge=nudge, paused=paused, at=at)
    return Checked(deliver=rule is None, reason=rule, **times, releases=rule is not None)


def cancellation(program: Program, customer_id: str, *, decision_id: str, at: float) -> Outcome:
    """Return the outcome that gives a nudge's reservation back: always under the same id, so it counts once."""
    return Outcome(
        outcome_id=f"hand-off:{decision_id}",
        customer_id=customer_id,
        program=program.name,
        event="not_shown",
        at=at,
        received_at=at,
        decision_id=decision_id,
    )


def _blocked(
    program: Program, customer: Customer, sent: Sent, *, nudge: Nudge, paused: frozenset[str], at: float
) -> str | None:
    """Return the rule that blocks a nudge at the moment of its delivery, if any."""
    if nudge.incentive not in program.space.incentives or nudge.tone not in program.space.tones:
        return "retired"
    others = replace(customer, sent=tuple(s for s in customer.sent if s is not sent))
    at_once = replace(program, timings=(Timing(name=_NOW, title="", delay=Duration(0)),))
    levels = frozenset(p for p in paused if not p.startswith((PAUSES, "timing=")))
    rest = Shared(budget=np.inf, stock=np.full(len(program.incentives), np.inf), paused=levels)
    rows = cohort(at_once, [others], at=[max(at, sent.deliver_at)])
    (found,) = allowed(at_once, rows, shared=rest).blocks(at_once.space)
    asked = ("nudge", f"incentive={nudge.incentive}", f"tone={nudge.tone}", f"timing={_NOW}")
    return next((found[level] for level in asked if level in found), None)


_NOW = "now"
