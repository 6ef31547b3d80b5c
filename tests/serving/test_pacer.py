"""A budget lasts its period: one leader sets the price from what is left in the store, whoever leads."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession

from optimizer.actions import Bools, Floats
from optimizer.engine import Ask, Optimizer
from optimizer.guardrails import Request
from optimizer.pacing import Purse, repriced
from optimizer.program import DAY, Program
from serving import leading, pacer
from serving.embedded import Server
from serving.settings import Settings
from serving.store import Commitment, Store, Wanted
from tests.serving.running import Client, running, until, write_program
from tests.small_program import OPEN, TOML, Even, optimizer

ANYBODY = ('stages = ["active", "quiet"]', 'stages = ["new", "active", "quiet"]')
BUDGET = OPEN + 'budget = { amount = 1000, period = "1d" }\n'
PROGRAM = Program.parse(TOML.replace(*ANYBODY) + BUDGET, source="small.toml")
MIDNIGHT = 20_454 * DAY
COUPON = Request({"incentive": ["coupon"], "tone": ["warm"], "timing": ["now"]})


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
async def store(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store."""
    async with await Store.open(server.url) as old:
        await old.command("FLUSHALL")
    async with await Store.open(server.url, shards=request.param) as store:
        yield store


class Worth(Even):
    """A policy that nudges where a nudge brings more than its cost and its price: the `tenure` says what it brings."""

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        """Return certainty: the one nudge that is allowed, or hold."""
        brings = contexts[:, self.space.features.index("tenure")] * 5.0 + 10.0
        wanted = allowed & (brings[:, None] > prices + self.space.action_costs)
        wanted[:, 0] = ~wanted[:, 1:].any(axis=1)
        shares: Floats = wanted / wanted.sum(axis=1, keepdims=True)
        return shares


async def visit(store: Store, chooser: Optimizer, names: list[str], *, brings: list[float], at: float) -> None:
    """Let new customers ask at once, who are worth so much."""
    found = await store.read(PROGRAM, [Wanted(name, "d", at) for name in names])
    turns: dict[Any, list[int]] = {}
    for i, row in enumerate(found):
        turns.setdefault(row.turn, []).append(i)
    rows: list[Commitment] = []
    for here in turns.values():
        asks = [Ask(found[i].customer, "d", at, {"tenure": brings[i]}, COUPON) for i in here]
        made = chooser.decide(asks, found[here[0]].shared)
        rows += [Commitment(found[i], decision, b"{}") for i, decision in zip(here, made, strict=True)]
    await store.commit(PROGRAM, rows)


async def a_day(store: Store, *, visitors: float, changes: tuple[int, ...] = ()) -> list[float]:
    """Return the share of the budget that is spent, minute by minute of a day; leaders change at some minutes."""
    chance = np.random.Generator(np.random.Philox(key=7))
    chooser, who, spent = optimizer(PROGRAM, Worth(PROGRAM.space)), "first", [0.0]
    for minute in range(1_440):
        at = MIDNIGHT + minute * 60.0
        if minute in changes:
            await store.command("DEL", leading.key("pacer", PROGRAM))
            who = f"leader {minute}"
        n = int(chance.poisson(visitors / 1_440))
        names = [f"c{minute}-{i}" for i in range(n)]
        if names:
            await visit(store, chooser, names, brings=chance.exponential(6.0, n).tolist(), at=at)
        await pacer.step(store, PROGRAM, who=who, now=at + 60.0 - 1e-3 if minute == 1_439 else at + 60.0)
        seen = await pacer.spending(store, PROGRAM, at=at)
        assert seen is not None
        assert seen.spent <= seen.amount, "it was overspent"
        spent.append(seen.spent / seen.amount)
    return spent


@pytest.mark.slow
async def test_from_no_price_a_budget_is_spent_evenly_and_to_two_per_cent_and_never_overspent(server: Server) -> None:
    async with await Store.open(server.url) as old:
        await old.command("FLUSHALL")
    async with await Store.open(server.url, shards=1) as store:
        spent = np.array(await a_day(store, visitors=1_700, changes=(333, 720)))
    assert spent[-1] >= 0.98
    assert np.argmax(spent >= 0.995) >= 0.97 * 1_440 or spent[-1] < 0.995, "it ran out long before the day did"
    even = np.linspace(0.0, 1.0, len(spent))
    # At price 0 it would all be gone after nine hours of the 24, which is 0.6 from even; this is the noise of visits.
    assert np.abs(spent - even).max() <= 0.1


async def test_the_price_is_the_one_that_the_purse_asks_for(store: Store) -> None:
    before, after = Purse(100_000.0, MIDNIGHT), Purse(99_700.0, MIDNIGHT + 600)
    await visit(store, optimizer(PROGRAM, Worth(PROGRAM.space)), ["ada"], brings=[100.0], at=MIDNIGHT + 1)
    price = await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 600)
    assert price == pytest.approx(repriced(PROGRAM, 0.0, before=before, now=after))
    seen = await pacer.spending(store, PROGRAM, at=MIDNIGHT + 601)
    assert seen is not None
    assert seen[:3] == (100_000, 300, MIDNIGHT + DAY)
    assert seen.price == pytest.approx(price)


async def test_every_decision_is_made_under_the_price(store: Store) -> None:
    await store.set_cost_price(PROGRAM.name, 1.25)
    found = await store.read(PROGRAM, [Wanted(f"c{i}", "d", MIDNIGHT) for i in range(6)])
    assert {f.shared.cost_price for f in found} == {1.25}


async def test_one_leads_and_the_next_goes_on_where_it_ended(store: Store) -> None:
    await store.set_cost_price(PROGRAM.name, 2.0)
    first = await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 60)
    assert first is not None
    assert await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 90) is None, "a minute has not passed"
    assert await pacer.step(store, PROGRAM, who="b", now=MIDNIGHT + 120) is None, "another one leads"
    await store.command("DEL", leading.key("pacer", PROGRAM))
    left = float(100_000)
    expected = repriced(PROGRAM, first, before=Purse(left, MIDNIGHT + 60), now=Purse(left, MIDNIGHT + 120))
    assert await pacer.step(store, PROGRAM, who="b", now=MIDNIGHT + 120) == pytest.approx(expected)


async def test_a_program_without_a_budget_has_no_price(store: Store) -> None:
    program = Program.parse(TOML + OPEN, source="small.toml")
    assert await pacer.step(store, program, who="a", now=MIDNIGHT) is None
    assert await pacer.spending(store, program, at=MIDNIGHT) is None


async def test_a_clock_that_was_set_far_back_does_not_stop_the_pacing(store: Store) -> None:
    assert await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 9 * DAY) is not None
    assert await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 9 * DAY - 600) is None
    assert await pacer.step(store, PROGRAM, who="a", now=MIDNIGHT + 600) is not None


def test_the_service_paces_and_shows_what_is_left(server: Server, tmp_path: Path) -> None:
    write_program(tmp_path, extra=BUDGET, change=ANYBODY)

    async def shown(url: str) -> Any:
        async with ClientSession(url) as session:
            return (await Client(session).ask("GET", "/v1/programs/small")).json["budget"]

    async def empty() -> None:
        async with await Store.open(server.url) as store:
            await store.command("FLUSHALL")

    async def spend(url: str) -> None:
        async with ClientSession(url) as session:
            for i in range(20):
                await Client(session).decide(f"c{i}")

    asyncio.run(empty())
    with running(Settings(home=tmp_path, redis_url=server.url)) as service:
        asyncio.run(spend(service.url))
        until(lambda: "small" in service.service.paced)
        budget = asyncio.run(shown(service.url))
    assert budget["currency"] == "EUR"
    assert budget["amount"] == 1000.0
    assert budget["spent"] > 0
    assert budget["left"] == pytest.approx(1000.0 - budget["spent"])
    assert budget["price"] >= 0
    assert budget["ends_at"].endswith("00:00:00Z")
