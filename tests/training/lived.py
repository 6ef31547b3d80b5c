"""A small archive that was lived through: the real engine decides, made-up customers answer, and the truth is known."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimizer.customer import Customer, Sent, local_day, new_customer
from optimizer.engine import CHAMPION, HOLDOUT, Ask, Chooser, Optimizer
from optimizer.events import Decision, Outcome
from optimizer.guardrails import Shared
from optimizer.journey import follow, receive, settle
from optimizer.program import DAY, Program
from policies.fixed import Uniform
from tests.small_program import NOON, SALT, TOML
from training import events

SURVEYS = """
[[events]]
name = "redeemed"
kind = "signal"

[[events]]
name = "survey_csat"
kind = "signal"
scaled = true

[[events]]
name = "survey_nps"
kind = "signal"
scaled = true

[guardrails]
consent = "opt-out"
quiet_from = "00:00"
quiet_until = "00:00"
cap_per_day = 24
cap_per_week = 32
cooldown = "0m"
scarce_per_week = 30

[guardrails.ladder]
waits = "1h"

[experiment]
holdout = 0.2
evaluation = 0.1
"""


@dataclass(frozen=True)
class Life:
    """How customers are: chances a day, and what nudges do to them.

    `wear` is the share of a coupon's effect that each earlier coupon takes; `harm` what nudges take from gold
    customers' steps; `redeems` the chance that a nudge is redeemed, `redeem_days` after on average.
    """

    step: float = 0.2
    lift: float = 0.25
    goal: float = 0.01
    goal_lift: float = 0.03
    wear: float = 0.0
    harm: float = 0.0
    redeems: float = 0.4
    redeem_days: float = 2.0
    leaves: float = 0.01


def text(*, extra: str = SURVEYS, changes: Mapping[str, str] | None = None) -> str:
    """Return the small program with surveys, a ladder of coupon and gift, a holdout and evaluation traffic."""
    toml = TOML.replace("stock = 2\nmin_momentum = 0.5\n", 'tier = 2\nladder = "reward"\n')
    toml = toml.replace("cost = 3.0\n", 'cost = 0.3\ntier = 1\nladder = "reward"\n').replace("cost = 5.0", "cost = 0.5")
    for old, new in (changes or {}).items():
        toml = toml.replace(old, new)
    return toml + extra


def lived(
    archive: Path,
    *,
    toml: str | None = None,
    customers: int = 300,
    days: int = 28,
    seed: int = 0,
    life: Life | None = None,
    every: float = DAY,
) -> Program:
    """Write the archive of a program that customers lived through, and return the program.

    Customers enrol over the first half of the days; each is decided for once every so often. The log ends with its last
    day: what would have happened later is not in it.
    """
    toml = toml or text()
    program = Program.parse(toml, source="lived.toml")
    rng, life = np.random.default_rng(seed), life or Life()
    end = NOON + days * DAY
    decided, happened = _run(program, rng, life, customers=customers, end=end, every=every)
    events.write(
        archive,
        program,
        toml,
        decisions=decided,
        outcomes=[o for o in happened if o.at < end],
        name="lived",
    )
    return program


def _run(
    program: Program, rng: np.random.Generator, life: Life, *, customers: int, end: float, every: float
) -> tuple[list[Decision], list[Outcome]]:
    choosers = {CHAMPION: Chooser(Uniform(program.space), "uniform", "1")}
    engine = Optimizer(program, choosers, SALT)
    shared = Shared(budget=np.inf, stock=np.full(len(program.incentives), np.inf))
    enrols = NOON + np.floor(rng.random(customers) * (end - NOON) / 2 / every) * every
    people = [_new(program, rng, i, at=enrols[i]) for i in range(customers)]
    coupons: dict[str, int] = {}
    decided: list[Decision] = []
    happened: list[Outcome] = []
    for round_, at in enumerate(np.arange(NOON, end, every).tolist()):
        here = [i for i in range(customers) if enrols[i] <= at]
        asks = [Ask(settle(program, people[i], at=at), f"d{i}-{round_}", at) for i in here]
        for i, decision in zip(here, engine.decide(asks, shared), strict=True):
            done = [o for o in _react(rng, life, decision, people[i], coupons, every=every) if program.knows(o.event)]
            person = settle(program, people[i], at=at)
            if decision.action:
                person = receive(program, person, _sent(decision))
            for outcome in sorted(done, key=lambda o: o.at):
                if outcome.at < at + every:
                    person = follow(program, person, outcome.event, at=outcome.at, value=outcome.value)
            people[i] = person
            happened += done
            decided.append(decision)
    return decided, happened


def _new(program: Program, rng: np.random.Generator, i: int, *, at: float) -> Customer:
    from msgspec.structs import replace

    plan = "gold" if rng.random() < 0.4 else "free"
    return replace(
        new_customer(program, f"c{i}", at=at), attributes={"plan": plan, "tenure": float(rng.integers(0, 21))}
    )


def _sent(decision: Decision) -> Sent:
    deliver_at = float(decision.deliver_at or decision.at)
    return Sent(
        decision_id=decision.decision_id,
        incentive=decision.action_name.partition("/")[0],
        deliver_at=deliver_at,
        day=local_day(deliver_at, 0.0),
        cost=decision.cost,
        period=0,
        expires_at=deliver_at + DAY,
    )


def _react(
    rng: np.random.Generator,
    life: Life,
    decision: Decision,
    customer: Customer,
    coupons: dict[str, int],
    *,
    every: float,
) -> Iterator[Outcome]:
    """Yield what a customer does after a decision."""
    who, incentive = decision.customer_id, decision.action_name.partition("/")[0]
    nudged = decision.arm != HOLDOUT and decision.action > 0 and customer.consent is not False
    had = coupons.get(who, 0)
    strength = float(nudged)
    if incentive == "coupon":
        coupons[who] = had + 1
        strength = max(1.0 - life.wear * had, -1.0)
    gold = customer.attributes.get("plan") == "gold"
    step = life.step + (life.lift * strength if not (gold and life.harm and nudged) else -life.harm)
    chances = {"step": step, "upgraded": life.goal + life.goal_lift * strength, "complaint": 0.005}
    chances |= {"survey_csat": 0.03, "survey_nps": 0.03, "opt_out": life.leaves * nudged}
    for event, chance in chances.items():
        if rng.random() < chance:
            values = {"survey_csat": 1.0 + rng.integers(0, 5), "survey_nps": float(rng.integers(0, 11))}
            yield _outcome(decision, event, delay=rng.random() * 0.9 * every, value=values.get(event))
    if nudged and rng.random() < life.redeems:
        later = (decision.deliver_at or decision.at) - decision.at + rng.exponential(life.redeem_days) * DAY
        yield _outcome(decision, "redeemed", delay=later, decision_id=decision.decision_id)


def _outcome(
    decision: Decision, event: str, *, delay: float, value: float | None = None, decision_id: str | None = None
) -> Outcome:
    at = decision.at + 60.0 + delay
    return Outcome(
        outcome_id=f"{decision.decision_id}-{event}",
        customer_id=decision.customer_id,
        program=decision.program,
        event=event,
        at=at,
        received_at=at,
        value=value,
        decision_id=decision_id,
    )
