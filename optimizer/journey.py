"""What does an event do to a customer? Stage, momentum, streaks, milestones; and what a stage is worth.

Outcomes that come late, or are corrected or taken back, are the matter of `optimizer.hearing`.
"""

from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from optimizer.actions import Floats
from optimizer.customer import WEEK_SLOTS, Customer, Sent, Streak, Trigger, local_day, utc_offset
from optimizer.program import DAY, PROMPT, Event, Milestone, Program

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
    days = max(customer.days, int((at - customer.enrolled_at) // DAY)) if program.anniversaries else customer.days
    broken = customer.streak and today > customer.streak_day + 1
    torn = any(s.days and today > s.day + 1 for s in customer.streaks.values())
    sent = tuple(s for s in customer.sent if remembers(program, s, at=at))
    stale = len(sent) < len(customer.sent)
    if not (lapsed or broken or torn or stale or stage.name != customer.stage or days > customer.days):
        return customer
    whole = {n: Streak(0, s.day, s.longest) if today > s.day + 1 else s for n, s in customer.streaks.items()}
    return replace(
        customer,
        stage=str(stage.lapses_to) if lapsed else stage.name,
        streak=0 if broken else customer.streak,
        longest_streak=max(customer.streak, customer.longest_streak),
        streaks=whole,
        sent=sent,
        days=days,
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
    customer = before = settle(program, customer, at=max(at, customer.last_step_at or at))
    customer = replace(
        customer,
        stage=declared.moves.get(customer.stage, customer.stage),
        counts={**customer.counts, event: customer.counts.get(event, 0) + 1},
        promotion_paused_until=max(customer.promotion_paused_until, _pause(declared, at=at, value=value)),
    )
    if declared.kind == "macro":
        customer = replace(customer, last_macro_at=max(at, customer.last_macro_at or at))
    if declared.kind != "signal":
        customer = _step(program, customer, event, at=at)
    trigger = _trigger(program, before, customer, event=declared, at=at)
    return customer if trigger is None else replace(customer, trigger=trigger)


def _trigger(program: Program, before: Customer, after: Customer, *, event: Event, at: float) -> Trigger | None:
    """Return what an event asks for: a milestone reached, a comeback after a quiet time, or a quick win."""
    if before.trigger is not None and before.trigger.at > at:
        return None
    new = [m for m in program.milestones if reached(m, after) and not reached(m, before)]
    if new and (event.requests_decision or any(m.requests_decision for m in new)):
        return Trigger(event.name, at, "milestone")
    if not event.requests_decision:
        return None
    if event.kind == "signal":
        return Trigger(event.name, at, "signal")
    away = before.last_step_at is not None and at - before.last_step_at >= program.away_after
    return Trigger(event.name, at, "comeback" if away else "quick_win")


def requested(program: Program, before: Customer, after: Customer, *, now: float) -> Trigger | None:
    """Return what an outcome asks for, if it is news, fresh, and about somebody who may be nudged.

    Args:
        program: declares who may be nudged, and what asks.
        before, after: the customer before and after the outcome.
        now: when it is heard of, seconds since the epoch.
    """
    trigger, welcome = after.trigger, after.consent
    if trigger is None or trigger == before.trigger or now - trigger.at > PROMPT:
        return None
    return trigger if (program.guardrails.consent == "opt-out" if welcome is None else welcome) else None


def missed(program: Program, customer: Customer) -> Trigger | None:
    """Return what asks for a decision by itself, and when, if no further step is taken; None for nothing.

    A comeback once an incentive that is one is open to the customer, or, without any such incentive, once the customer
    falls back; and an anniversary with `requests_decision`. Each asks once.

    >>> from optimizer.customer import new_customer
    >>> from optimizer.programs import read
    >>> loop = Program.parse(read("loyalty-loop"), source="")
    >>> ada = follow(loop, new_customer(loop, "ada", at=0.0), "joined_at_till", at=0.0)
    >>> missed(loop, ada)  # 21 days
    Trigger(event='', at=1814400.0, reason='comeback')
    """
    dues = [Trigger("", customer.enrolled_at + m.of * DAY, "milestone") for m in program.anniversaries
            if m.requests_decision]  # fmt: skip
    if customer.last_step_at is not None:
        dues += [Trigger("", at, "comeback") for at in _away(program, customer, since=customer.last_step_at)]
    return min((t for t in dues if t.at > customer.asked_at), key=lambda t: t.at, default=None)


def _away(program: Program, customer: Customer, *, since: float) -> list[float]:
    """Return when a customer who takes no step has been away long enough to be asked back: one time, or none."""
    if not program.has_comebacks:
        lapse = program.stages[program.stage_index.get(customer.stage, 0)].lapses_after
        return [] if lapse is None else [since + lapse]
    waits = sorted({float(x) for x in program.comebacks.tolist() if np.isfinite(x)})
    return [since + wait for wait in waits if _may_come_back(program, customer, at=since + wait, away=wait)][:1]


def _may_come_back(program: Program, customer: Customer, *, at: float, away: float) -> bool:
    """Whether a comeback is open to a customer where the customer will be by then."""
    stage = program.stage_index[settle(program, customer, at=at).stage]
    offered = np.array([not i.retired for i in program.incentives])
    ready = np.isfinite(program.comebacks) & (program.comebacks <= away)
    return bool((offered & ready & program.incentive_stages[stage]).any())


def _pause(event: Event, *, at: float, value: float | None) -> float:
    if event.pauses_promotion is None:
        return 0.0
    if event.pauses_below is not None and (value is None or value >= event.pauses_below):
        return 0.0
    return at + event.pauses_promotion


def _step(program: Program, customer: Customer, event: str, *, at: float) -> Customer:
    offset = utc_offset(customer.time_zone or program.guardrails.time_zone, at)
    day = local_day(at, offset)
    streak = Streak(customer.streak, customer.streak_day, customer.longest_streak).on(day)
    latest = customer.last_step_at is None or at >= customer.last_step_at
    named = {m.name: customer.streaks.get(m.name, Streak()).on(day) for m in program.streaks if event in m.streak_of}
    return replace(
        customer,
        steps=customer.steps.plus(1.0, at=at, half_life=program.momentum_half_life),
        last_step_at=at if latest else customer.last_step_at,
        last_step=event if latest else customer.last_step,
        streak=streak.days,
        streak_day=streak.day,
        longest_streak=streak.longest,
        streaks={**customer.streaks, **named},
        hours=customer.hours.plus((at + offset) % DAY / 3600.0, at=at),
    )


def receive(program: Program, customer: Customer, sent: Sent) -> Customer:
    """Return the customer once a nudge is reserved: it counts for caps, cooldown and dosage from now on.

    What asked for a decision at once has got its answer.
    """
    return replace(
        customer,
        trigger=None,
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
    """Return the nearest milestone that is not reached yet, by share done; None where all are reached.

    Time passes without a step: an anniversary is the nearest in its last tenth, or where nothing else is to come.
    """
    nearest, best, is_near = None, -1.0, False
    for milestone in program.milestones:
        if reached(milestone, customer):
            continue
        steps = done(milestone, customer)
        near, part = milestone.after is None or steps >= 0.9 * milestone.of, steps / milestone.of
        if (near, part) > (is_near, best):
            nearest, best, is_near = (milestone, steps), part, near
    if nearest is None:
        return None
    milestone, steps = nearest
    return Progress(milestone.title, steps, milestone.of, milestone.reward)


def earned(program: Program, customer: Customer) -> list[Milestone]:
    """Return the milestones that a customer has reached: a streak that ended since stays earned."""
    return [m for m in program.milestones if reached(m, customer)]


def done(milestone: Milestone, customer: Customer) -> int:
    """Return how many steps of a milestone a customer has done: of a streak, the days that it has now."""
    if milestone.after is not None:
        return min(customer.days, milestone.of)
    if milestone.event is not None:
        return customer.counts.get(milestone.event, 0)
    return customer.streaks.get(milestone.name, Streak()).days if milestone.streak_of else customer.streak


def reached(milestone: Milestone, customer: Customer) -> bool:
    """Return whether a customer has ever reached a milestone."""
    if milestone.after is not None:
        return customer.days >= milestone.of
    if milestone.event is not None:
        return customer.counts.get(milestone.event, 0) >= milestone.of
    if milestone.streak_of:
        return customer.streaks.get(milestone.name, Streak()).longest >= milestone.of
    return max(customer.streak, customer.longest_streak) >= milestone.of


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
