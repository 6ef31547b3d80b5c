"""What does money have to bring now, so that each budget lasts as long as its period? One process says, for all.

The leader holds a lease. Each minute of program time it looks at what is left, works out the shadow price
(`optimizer.pacing`), and writes it where every decision reads it. What it saw last is in the store, so the next leader
goes on from there.
"""

import math
from typing import NamedTuple

from optimizer.pacing import Purse, repriced
from optimizer.program import Program
from serving import records, reservations
from serving.leading import leads
from serving.store import Store

EVERY = 60.0
"""Seconds of program time between two looks."""

_BACK = 3_600.0
"""Seconds that a clock may be set back before the last look counts as not made."""


class Spending(NamedTuple):
    """A budget at a moment: minor units in all, spent and left; when its period ends; the shadow price in force."""

    amount: int
    spent: int
    ends_at: float
    price: float

    @property
    def left(self) -> int:
        """Minor units that may still be reserved."""
        return max(self.amount - self.spent, 0)


async def spending(store: Store, program: Program, *, at: float) -> Spending | None:
    """Return what became of the budget of the period that a moment falls in; None without a budget."""
    budget = program.guardrails.budget
    if budget is None:
        return None
    number = reservations.period(program, at)
    keys = [records.shared_key(shard, "budget", program.name, number) for shard in range(store.shards)]
    control = records.shared_key(0, "control", program.name)
    *used, price = await store.commands([*(("GET", key) for key in keys), ("HGET", control, "price")])
    spent = sum(int(u or 0) for u in used)
    return Spending(budget.minor_amount, spent, (number + 1) * float(budget.period), float(price or 0.0))


async def step(store: Store, program: Program, *, who: str, now: float) -> float | None:
    """Set the price anew if it is time to and `who` leads; return it, or None where nothing was to be done.

    Args:
        store: where spending, lease and price are.
        program: declares the budget.
        who: names this process among those that could lead.
        now: program time, seconds since the epoch.
    """
    seen, budget = await spending(store, program, at=now), program.guardrails.budget
    if seen is None or budget is None or not await leads(store, "pacer", program, who=who):
        return None
    at, used, price = await _last(store, program)
    start = now // budget.period * budget.period
    before = Purse(seen.amount - used, at)
    if math.isinf(at) or at - now > _BACK:
        before, price = Purse(float(seen.amount), start), seen.price
    elif now - at < EVERY:
        return None
    after = repriced(program, price, before=before, now=Purse(float(seen.amount - seen.spent), now))
    # The price first: a leader that ends in between leaves a last look that the next one repeats.
    if after != seen.price:
        await store.set_cost_price(program.name, after)
    await store.command("HSET", _key(program), "at", now, "used", seen.spent, "price", after)
    return after


async def _last(store: Store, program: Program) -> tuple[float, float, float]:
    """Return when the leader looked last, what was spent then, and the price from then on."""
    at, used, price = await store.command("HMGET", _key(program), "at", "used", "price")
    return (float(at), float(used), float(price)) if at is not None else (-math.inf, 0.0, 0.0)


def _key(program: Program) -> str:
    return records.global_key("pacing", program.name)
