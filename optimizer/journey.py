"""What does an event do to a customer? Stage, momentum, streaks, milestones; and what a stage is worth."""

from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from optimizer.actions import Floats
from optimizer.customer import WEEK_SLOTS, Customer, Sent, local_day, utc_offset
from optimizer.program import DAY, Event, Milestone, Program

MEMORY = 8 * DAY
"""Nudges delivered longer ago than this matter to no cap."""


class Progress(NamedTuple):
    """How far a customer is to a milestone: `done` steps `of` so many, and what they earn."""

    milestone: str
    done: int
    of: int
    reward: str


def remembers(program: Program, sent: Sent, *, at: float) -> bool:
    """Whether a nudge still matters to a cap, the cooldown, the cadence or, on a ladder, to the next rung."""
    if sent.deliver_at >= at - MEMORY:
        return True
    rules = program.guardrails
    beat = 0.0 if rules.cadence is None else rules.cadence.every + rules.cadence.within
    rung = rules.ladder.memory if sent.incentive in program.laddered else 0.0
    return sent.deliver_at >= at - max(rules.cooldown, beat, rung)


def settle(program: Program, customer: Customer, *, at: float) -> Customer:
    """Return the customer as of a moment: an idle one lapses, a broken streak ends, old nudges are forgotten."""
    stage = program.stages[program.stage_index.get(customer.stage, 0)]
    idle_since = customer.enrolled_at if customer.last_step_at is None else customer.last_step_at
    lapsed = stage.lapses_after is not None and stage.lapses_to and at - idle_since > stage.lapses_after
    today = local_day(at, utc_offset(customer.time_zone or program.guardrails.time_zone, at))
    broken = customer.streak and today > customer.streak_day + 1
    sent = tuple(s for s in customer.sent if remembers(program, s, at=at))
    stale = len(sent) < len(customer.sent)
    if not (lapsed or broken or stale or stage.name != customer.stage):
        return customer
    return replace(
        customer,
        stage=str(stage.lapses_to) if lapsed else stage.name,
        streak=0 if broken else customer.streak,
        sent=sent,
    )


def follow(program: Program, customer: Customer, event: str, *, at: float, value: float | None = None) -> Customer:
    """Return the customer after something happened: an event of the program, `opt_out`, `opt_in`.

    Momentum adds up in any order of arrival; the stage follows arrival. ValueError if the program does not know it.

    Args:
        program: declares what the event does.
        customer: before the event.
        event: its name.
        at: when it happened, seconds since the epoch.
        value: what was reported with it (a score, an amount), if anything.
    """
    if event in ("opt_out", "opt_in"):
        customer = replace(customer, consent=event == "opt_in")
    declared = program.event(event)
    if declared is None:
        if not program.knows(event):
            raise ValueError(f"unknown event {event!r}: program {program.name} knows {', '.join(program.event_index)}")
        return customer
    customer = settle(program, customer, at=max(at, customer.last_step_at or at))
    customer = replace(
        customer,
        stage=declared.moves.get(customer.stage, customer.stage),
        counts={**customer.counts, event: customer.counts.get(event, 0) + 1},
        promotion_paused_until=max(customer.promotion_paused_until, _pause(declared, at=at, value=value)),
    )
    if declared.kind == "macro":
        customer = replace(customer, last_macro_at=max(at, customer.last_macro_at or at))
    return customer if declared.kind == "signal" else _step(program, customer, at=at)


def _pause(event: Event, *, at: float, value: float | None) -> float:
    if event.pauses_promotion is None:
        return 0.0
    if event.pauses_below is not None and (value is None or value >= event.pauses_below):
        return 0.0
    return at + event.pauses_promotion


def _step(program: Program, customer: Customer, *, at: float) -> Customer:
    day = local_day(at, utc_offset(customer.time_zone or program.guardrails.time_zone, at))
    streak = customer.streak
    if day > customer.streak_day:
        streak = streak + 1 if day == customer.streak_day + 1 else 1
    return replace(
        customer,
        steps=customer.steps.plus(1.0, at=at, half_life=program.momentum_half_life),
        last_step_at=max(at, customer.last_step_at or at),
        streak=streak,
        streak_day=max(day, customer.streak_day),
    )


def receive(program: Program, customer: Customer, sent: Sent) -> Customer:
    """Return the customer once a nudge is reserved: it counts for caps, cooldown and dosage from now on."""
    return replace(
        customer,
        sent=(*customer.sent, sent)[-WEEK_SLOTS:],
        nudges=customer.nudges.plus(1.0, at=sent.deliver_at, half_life=program.dosage_half_life),
    )


def release(program: Program, customer: Customer, decision_id: str) -> Customer:
    """Return the customer as if a nudge that was not shown had never been reserved."""
    gone = [s for s in customer.sent if s.decision_id == decision_id]
    if not gone:
        return customer
    nudges = customer.nudges.plus(-1.0, at=gone[0].deliver_at, half_life=program.dosage_half_life)
    return replace(customer, sent=tuple(s for s in customer.sent if s.decision_id != decision_id), nudges=nudges)


def progress(program: Program, customer: Customer) -> Progress | None:
    """Return the nearest milestone that is not reached yet, by share done; None where all are reached."""
    steps = [(_done(m, customer), m) for m in program.milestones]
    ahead = [(done / m.of, done, m) for done, m in steps if done < m.of]
    if not ahead:
        return None
    _, done, milestone = max(ahead, key=lambda x: x[0])
    return Progress(milestone.title, done, milestone.of, milestone.reward)


def earned(program: Program, customer: Customer) -> list[Milestone]:
    """Return the milestones that a customer has reached."""
    return [m for m in program.milestones if _done(m, customer) >= m.of]


def _done(milestone: Milestone, customer: Customer) -> int:
    if milestone.event is not None:
        return customer.counts.get(milestone.event, 0)
    return customer.streak


def stage_values(program: Program, *, transitions: Floats, rewards: Floats, prior: float = 1.0) -> Floats:
    """Work back from the goal: what a day in each stage leads to, discounted ("reverse chronology").

    The value of an absorbing or recurrent chain of days, `V = (I - gamma P)^-1 r` (Bellman), with P the row-normalised
    counts, shrunk towards staying where a stage was hardly seen.

    Args:
        program: declares the discount gamma per day.
        transitions: (stages, stages), counts of customer-days from stage to next day's stage.
        rewards: (stages,), total reward earned on those customer-days, in reward units.
        prior: pseudo-days in each stage that stay where they are and earn nothing.

    Returns:
        (stages,), in reward units.
    """
    counts = transitions + prior * np.eye(len(transitions))
    days = counts.sum(axis=1)
    chain = counts / days[:, None]
    gamma = min(program.discount, 0.999)
    values: Floats = np.linalg.solve(np.eye(len(counts)) - gamma * chain, rewards / days)
    return values
