"""A program small enough to follow by hand: 3 incentives x 2 tones x 2 timings and hold, so 13 actions."""

from typing import Self

from optimizer.actions import ActionSpace, Bools, Floats
from optimizer.customer import Customer, new_customer
from optimizer.engine import CHAMPION, Chooser, Optimizer
from optimizer.events import Salt
from optimizer.policy import Policy, Rounds
from optimizer.program import DAY, Program

NOON = 1_767_225_600.0 + 12 * 3600
"""Noon UTC on Thursday 1 January 2026."""

SALT = Salt("test", b"a secret for tests")

TOML = """
name = "small"
title = "A small program"
goal = "upgraded"
evaluation_horizon = "3d"

[[stages]]
name = "new"
title = "New"

[[stages]]
name = "active"
title = "Active"
lapses_after = "7d"
lapses_to = "quiet"

[[stages]]
name = "quiet"
title = "Quiet"

[[events]]
name = "step"
kind = "micro"
value = 0.5
moves = { new = "active", quiet = "active" }

[[events]]
name = "upgraded"
kind = "macro"
value = 10.0

[[events]]
name = "spent"
kind = "macro"
value = 0.1
scaled = true

[[events]]
name = "complaint"
kind = "signal"
pauses_promotion = "14d"

[[events]]
name = "survey"
kind = "signal"
pauses_promotion = "7d"
pauses_below = 3.0

[[incentives]]
name = "badge"
title = "Badge"
kind = "recognition"
earns = "A badge as soon as you finish."

[[incentives]]
name = "coupon"
title = "Coupon"
kind = "monetary"
cost = 3.0
promotional = true
scarce = true
stages = ["active", "quiet"]
earns = "Three euros off your next order."

[[incentives]]
name = "gift"
title = "Gift"
kind = "monetary"
cost = 5.0
stock = 2
min_momentum = 0.5
earns = "A gift with your next order."
barred_segments = { plan = ["gold"] }

[[tones]]
name = "warm"
title = "Warm"

[[tones]]
name = "playful"
title = "Playful"
stages = ["new", "active"]

[[timings]]
name = "now"
title = "Now"
delay = "0m"

[[timings]]
name = "evening"
title = "This evening"
clock = "18:00"

[[attributes]]
name = "plan"
kind = "category"
categories = ["free", "gold"]

[[attributes]]
name = "tenure"
kind = "number"
mean = 10.0
scale = 5.0

[[milestones]]
name = "ten-steps"
title = "Ten steps"
event = "step"
count = 10
reward = "a badge"

[[milestones]]
name = "week"
title = "A week in a row"
streak = 7
reward = "a gift"

[[rules]]
stages = ["active"]
incentive = "coupon"
tone = "warm"
timing = "evening"

[messages.badge.warm]
subject = "Nicely done"
body = "One more step earns your badge."
call_to_action = "Take a step"

[messages.badge.playful]
subject = "Badge ahead"
body = "One more step and it is yours."
call_to_action = "Take a step"

[messages.coupon.warm]
subject = "Three euros for you"
body = "Three euros off your next order."
call_to_action = "Use it"

[messages.coupon.playful]
subject = "Three little euros"
body = "They would love to come along with your next order."
call_to_action = "Take them along"

[messages.gift.warm]
subject = "A gift for you"
body = "It comes with your next order."
call_to_action = "Choose yours"

[messages.gift.playful]
subject = "Surprise"
body = "A gift wants to travel with your next order."
call_to_action = "Choose yours"
"""

GUARDRAILS = """
[guardrails]
consent = "opt-out"
cap_per_day = 1
cap_per_week = 3
cooldown = "12h"
"""

OPEN = """
[guardrails]
consent = "opt-out"
quiet_from = "00:00"
quiet_until = "00:00"
cap_per_day = 24
cap_per_week = 32
cooldown = "0m"
"""
"""Nothing but what is shared can block: appended to a program that declares no guardrails."""


def small(extra: str = GUARDRAILS) -> Program:
    """Return the small program, with these tables added to its TOML."""
    return Program.parse(TOML + extra, source="small.toml")


def customer(program: Program, name: str = "ada", **fields: object) -> Customer:
    """Return a customer who enrolled at noon, with some fields set."""
    from msgspec.structs import replace

    return replace(new_customer(program, name, at=NOON), **fields)


class Even:
    """A policy that gives every allowed action the same chance."""

    def __init__(self, space: ActionSpace) -> None:
        self.space = space

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        """Return the uniform distribution over the allowed actions."""
        shares: Floats = allowed / allowed.sum(axis=1, keepdims=True)
        return shares

    def learn(self, rounds: Rounds) -> None:
        """Learn nothing."""

    def save(self, folder: object) -> None:
        """Have nothing to save."""

    @classmethod
    def load(cls, _folder: object, space: ActionSpace) -> Self:
        """Return the same again."""
        return cls(space)


def optimizer(program: Program, policy: Policy | None = None) -> Optimizer:
    """Return an optimizer that serves one policy to every arm."""
    chooser = Chooser(policy or Even(program.space), "even", "1")
    return Optimizer(program, {CHAMPION: chooser}, SALT)


__all__ = ["DAY", "NOON", "OPEN", "SALT", "TOML", "customer", "optimizer", "small"]
