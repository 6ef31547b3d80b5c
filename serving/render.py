"""What is answered? Decisions and customers as JSON; the contract is in `schemas`.

An answer is kept as two lines: what the app gets, and why it was so. JSON has no raw line ends, so the first one
parts them, and a repeated answer is the same bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from optimizer import journey
from optimizer.actions import FACTORS, Floats32
from optimizer.customer import Customer, share
from optimizer.engine import HOLDOUT
from optimizer.events import Decision, Scalar
from optimizer.guardrails import next_eligible
from optimizer.program import Message, Milestone, Program
from serving import because
from serving.hand_off import Checked

SHOWN = 10
"""How many of the most likely actions an explanation names."""

CHOSEN, DEGRADED = "chosen", "degraded"


class Action(msgspec.Struct, frozen=True):
    incentive: str
    tone: str
    timing: str


class Said(msgspec.Struct, frozen=True):
    subject: str
    body: str
    call_to_action: str


class Steps(msgspec.Struct, frozen=True):
    milestone: str
    done: int
    of: int
    reward: str


class PolicyName(msgspec.Struct, frozen=True):
    name: str
    version: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`schemas.Decision`, as it is rendered."""

    decision_id: str
    customer_id: str
    program: str
    action: Action | None = None
    deliver_at: str | None = None
    expires_at: str | None = None
    message: Said | None = None
    propensity: float | None = None
    policy: PolicyName | None = None
    stage: str | None = None
    progress: Steps | None = None
    hold_reason: str | None = None
    next_eligible_at: str | None = None
    because: str | None = None
    degraded: bool = False


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """What `schemas.Explanation` adds to a decision."""

    arm: str
    program_version: str
    at: float
    time_zone: str
    chances: dict[str, float]
    others: int
    blocked: dict[str, str]
    context: dict[str, Scalar]


class _Likely(NamedTuple):
    """The most likely actions, and how many others were possible."""

    chances: dict[str, float]
    others: int

    @property
    def possible(self) -> int:
        return len(self.chances) + self.others


class Rendered(NamedTuple):
    """An answer as it is kept, and the reason for which it holds, if it does."""

    kept: bytes
    hold_reason: str | None


_encode = msgspec.json.Encoder().encode


def decisions(program: Program, customers: Sequence[Customer], made: Sequence[Decision]) -> list[Rendered]:
    """Render decisions (n), each about the customer as found before it."""
    if not made:
        return []
    vectors = np.frombuffer(b"".join([d.probabilities for d in made]), dtype="<f4").reshape(len(made), -1)
    actions = np.array([d.action for d in made])
    propensities = vectors[np.arange(len(made)), actions] / vectors.sum(axis=1, dtype=np.float64)
    rows = zip(customers, made, propensities.tolist(), _chances(program, vectors), strict=True)
    return [_decision(program, c, d, propensity=p, likely=likely) for c, d, p, likely in rows]


def _chances(program: Program, vectors: Floats32) -> list[_Likely]:
    """Return the most likely actions of each row (n, k), most likely first; of equals the first in the space."""
    k, names = vectors.shape[1], program.space.names
    # The bits of a chance order as the chance does; the place below them parts equals.
    keys = vectors.view(np.uint32).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(k - 1, -1, -1, dtype=np.uint64)
    keys.partition(k - min(SHOWN, k), axis=1)
    top = np.sort(keys[:, -SHOWN:], axis=1)[:, ::-1]
    actions = (k - 1 - (top & np.uint64(0xFFFFFFFF)).astype(np.intp)).tolist()
    chances = (top >> np.uint64(32)).astype(np.uint32).view(np.float32).astype(np.float64).round(6).tolist()
    likely = []
    for row, chosen, possible in zip(actions, chances, np.count_nonzero(vectors, axis=1).tolist(), strict=True):
        shown = min(possible, SHOWN)
        named = dict(zip([names[a] for a in row[:shown]], chosen, strict=False))
        likely.append(_Likely(named, others=possible - shown))
    return likely


def _decision(program: Program, customer: Customer, made: Decision, *, propensity: float, likely: _Likely) -> Rendered:
    zone = customer.time_zone or program.guardrails.time_zone
    reason = None if made.action else hold_reason(program, made, possible=likely.possible)
    steps = journey.progress(program, customer)
    eligible = next_eligible(program, customer, at=made.at) if reason else None
    progress = Steps(*steps) if steps else None
    answer = Answer(
        decision_id=made.decision_id,
        customer_id=made.customer_id,
        program=made.program,
        **_nudge(program, customer, made, steps=progress, zone=zone),
        propensity=propensity,
        policy=PolicyName(made.policy, made.policy_version),
        stage=customer.stage,
        progress=progress,
        hold_reason=reason,
        next_eligible_at=local_time(eligible, zone) if eligible is not None else None,
        because=because.nudge(program, customer, made, steps=steps) if reason is None else because.hold(reason),
    )
    why = Why(
        arm=made.arm,
        program_version=made.program_version,
        at=made.at,
        time_zone=zone,
        chances=likely.chances,
        others=likely.others,
        blocked=made.blocked,
        context=made.context,
    )
    return Rendered(_encode(answer) + b"\n" + _encode(why), reason)


def _nudge(program: Program, customer: Customer, made: Decision, *, steps: Steps | None, zone: str) -> dict[str, Any]:
    if not made.action or made.deliver_at is None:
        return {}
    action = Action(*made.action_name.split("/"))  # names have no slash
    reached, message = steps or _last_reached(program, customer), program.messages[action.incentive][action.tone]
    if reached is None:
        message = because.without_progress(message, program.incentives[program.space.levels[made.action, 0]])
    return {
        "action": action,
        "deliver_at": local_time(made.deliver_at, zone),
        "expires_at": local_time(made.deliver_at + program.guardrails.expires_after, zone),
        "message": filled(message, reached),
    }


def answer_of(kept: bytes) -> bytes:
    r"""Return what the app got.

    >>> answer_of(b'{"degraded":false}\n{"arm":"champion"}')
    b'{"degraded":false}'
    """
    return kept.partition(b"\n")[0]


def why_of(kept: bytes) -> Why:
    """Return why a kept answer was so."""
    return msgspec.json.decode(kept.partition(b"\n")[2], type=Why)


def explained(kept: bytes, *, scores: Mapping[str, float] | None = None) -> bytes:
    """Return the answer with why it was so, and what the policy thought of each level."""
    answer, _, why = kept.partition(b"\n")
    reasons = msgspec.json.decode(why)
    reasons["at"] = local_time(reasons["at"], reasons["time_zone"])
    reasons["scores"] = scores
    return answer[:-1] + b"," + _encode(reasons)[1:]


def policy_of(kept: bytes) -> PolicyName | None:
    """Return the policy that made a kept answer."""
    return msgspec.json.decode(kept.partition(b"\n")[0], type=Answer).policy


def handed_off(checked: Checked, *, decision_id: str, zone: str) -> bytes:
    """Render whether a nudge may be delivered."""
    times = {"deliver_at": checked.deliver_at, "expires_at": checked.expires_at}
    return _encode(
        {
            "decision_id": decision_id,
            "deliver": checked.deliver,
            "reason": checked.reason,
            **{name: None if at is None else local_time(at, zone) for name, at in times.items()},
        }
    )


def degraded(program: str, customer_id: str, decision_id: str) -> bytes:
    """Return the safe answer where a decision cannot be kept: hold, and not a decision."""
    return _encode(
        Answer(
            decision_id=decision_id,
            customer_id=customer_id,
            program=program,
            hold_reason=DEGRADED,
            because=because.hold(DEGRADED),
            degraded=True,
        )
    )


def hold_reason(program: Program, made: Decision, *, possible: int) -> str:
    """Return why hold: the holdout, the rule that left nothing else, or the policy's choice among the possible."""
    if made.arm == HOLDOUT:
        return HOLDOUT
    if possible > 1:
        return CHOSEN
    if rule := made.blocked.get("nudge"):
        return rule
    by_factor = dict(zip(FACTORS, program.space.factors, strict=True))
    for factor in ("timing", "incentive", "tone"):
        rules = [rule for level, rule in made.blocked.items() if level.startswith(f"{factor}=")]
        if len(rules) == len(by_factor[factor]):
            return Counter(rules).most_common(1)[0][0]
    return CHOSEN


@lru_cache(maxsize=8192)
def filled(message: Message, steps: Steps | None) -> Said:
    """Return the words with the customer's progress in them.

    >>> filled(Message(subject="{done} of {of}", body="{reward}", call_to_action="Go"), Steps("m", 2, 3, "a badge"))
    Said(subject='2 of 3', body='a badge', call_to_action='Go')
    """
    words = (message.subject, message.body, message.call_to_action)
    if steps is None or not any("{" in w for w in words):
        return Said(*words)
    values = {"done": steps.done, "of": steps.of, "milestone": steps.milestone, "reward": steps.reward}
    for name, value in values.items():
        words = tuple(w.replace(f"{{{name}}}", str(value)) for w in words)  # type: ignore[assignment]
    return Said(*words)


def _last_reached(program: Program, customer: Customer) -> Steps | None:
    """Return the last milestone as complete: what a message speaks of when nothing is left to reach."""
    reached = journey.earned(program, customer)
    return Steps(reached[-1].title, reached[-1].of, reached[-1].of, reached[-1].reward) if reached else None


def customer_state(program: Program, customer: Customer, *, at: float, latest: bytes | None = None) -> bytes:
    """Render where a customer is in a program at a moment, and the latest decision as it was kept."""
    zone = customer.time_zone or program.guardrails.time_zone
    eligible = next_eligible(program, customer, at=at)
    momentum, dosage = share(
        np.array(
            [
                customer.steps.at(at, half_life=program.momentum_half_life),
                customer.nudges.at(at, half_life=program.dosage_half_life),
            ]
        )
    ).tolist()
    steps = journey.progress(program, customer)
    return _encode(
        {
            "customer_id": customer.customer_id,
            "program": program.name,
            "stage": customer.stage,
            "consent": customer.consent,
            "time_zone": zone,
            "attributes": customer.attributes,
            "momentum": round(momentum, 6),
            "dosage": round(dosage, 6),
            "streak": customer.streak,
            "longest_streak": max(customer.streak, customer.longest_streak),
            "progress": Steps(*steps) if steps else None,
            "milestones": [_milestone(m, customer) for m in program.milestones],
            "rewards": _rewards(program, customer),
            "next_eligible_at": local_time(eligible, zone) if eligible is not None else None,
            "latest": None if latest is None else _latest(latest),
        }
    )


def _rewards(program: Program, customer: Customer) -> dict[str, list[dict[str, str]]]:
    """Return what a customer has earned, and what is to come and for what."""
    rewards: dict[str, list[dict[str, str]]] = {"earned": [], "to_come": []}
    for m in program.milestones:
        to = rewards["earned" if journey.reached(m, customer) else "to_come"]
        to.append({"milestone": m.title, "reward": m.reward})
    return rewards


def _latest(kept: bytes) -> dict[str, object]:
    """Return of a kept answer what a customer may want to know."""
    answer, why = msgspec.json.decode(answer_of(kept), type=Answer), why_of(kept)
    return {
        "decision_id": answer.decision_id,
        "at": local_time(why.at, why.time_zone),
        "action": answer.action,
        "deliver_at": answer.deliver_at,
        "message": answer.message,
        "because": answer.because,
    }


def _milestone(milestone: Milestone, customer: Customer) -> dict[str, object]:
    reached = journey.reached(milestone, customer)
    return {
        "name": milestone.name,
        "title": milestone.title,
        "done": milestone.of if reached else journey.done(milestone, customer),
        "of": milestone.of,
        "reward": milestone.reward,
        "reached": reached,
    }


def local_time(at: float, zone: str) -> str:
    """Return a moment on a customer's clock, to the second.

    >>> local_time(1_767_225_600.0, "Europe/Paris")
    '2026-01-01T01:00:00+01:00'
    """
    return _local_second(int(at), zone)


@lru_cache(maxsize=8192)
def _local_second(at: int, zone: str) -> str:
    return datetime.fromtimestamp(at, ZoneInfo(zone)).isoformat()
