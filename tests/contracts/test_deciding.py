"""What a store promises to who decides, on every server."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from optimizer.program import DAY
from serving.store import Store, StoreError, Wanted
from tests.contracts.steps import (
    BUDGETED,
    PROGRAM,
    active,
    apart,
    decide,
    decisions,
    drawing,
    left,
    log,
    outcome,
    propose,
    spent,
    together,
)
from tests.small_program import NOON


async def test_a_customer_never_seen_is_new_and_known_once_decided(store: Store) -> None:
    (before,) = await store.read(PROGRAM, [Wanted("ada", "d1", NOON)])
    assert (before.rev, before.answer, before.customer.stage) == (0, None, "new")
    assert before.customer.enrolled_at == NOON
    assert await decide(store, "ada", action="badge/warm/now", decision_id="d1") == ["committed"]
    (after,) = await store.read(PROGRAM, [Wanted("ada", "d2", NOON + 60)])
    assert after.rev > 0
    assert after.customer.enrolled_at == NOON
    assert [s.decision_id for s in after.customer.sent] == ["d1"]


async def test_a_customer_is_found_as_of_the_moment_asked_for(store: Store) -> None:
    await active(store, "ada")
    assert (await left(store, PROGRAM, name="ada", at=NOON + 6 * DAY)).customer.stage == "active"
    assert (await left(store, PROGRAM, name="ada", at=NOON + 8 * DAY)).customer.stage == "quiet"


async def test_what_is_committed_is_in_the_log_as_it_was_decided(store: Store) -> None:
    rows = await propose(store, "ada", "bob", "eve")
    await store.commit(PROGRAM, rows)
    logged = {d.customer_id: d for d in await decisions(store)}
    assert logged == {row.decision.customer_id: row.decision for row in rows}


async def test_the_same_decision_again_gives_the_first_answer(store: Store) -> None:
    first = await propose(store, "ada", action="hold")
    second = await propose(store, "ada", action="badge/warm/now")
    assert [c.status for c in await store.commit(PROGRAM, first)] == ["committed"]
    (repeated,) = await store.commit(PROGRAM, second)
    assert repeated == ("repeated", first[0].answer)
    assert (await store.read(PROGRAM, [Wanted("ada", "d", NOON)]))[0].answer == first[0].answer
    assert len(await log(store)) == 1


async def test_an_id_belongs_to_its_customer_and_program(store: Store) -> None:
    assert await decide(store, "ada", decision_id="b:1") == ["committed"]
    assert await decide(store, "bob", decision_id="b:1") == ["committed"]
    assert await decide(store, "ada:b", decision_id="1") == ["committed"]
    assert len(await decisions(store)) == 3


async def test_a_customer_who_changed_meanwhile_makes_a_row_stale_and_nothing_is_written(store: Store) -> None:
    await active(store, "ada")
    (row,) = await propose(store, "ada", action="badge/warm/now")
    before = await log(store)
    for change in ("outcome", "consent", "decision"):
        match change:
            case "outcome":
                await store.report(PROGRAM, [outcome("ada", "later")])
            case "consent":
                await store.put("ada", consent=True)
            case _:
                await decide(store, "ada", action="hold", decision_id="other")
        assert (await store.commit(PROGRAM, [row]))[0].status == "stale"
    assert len(await log(store)) == len(before) + 2
    assert (await left(store, PROGRAM, name="ada")).customer.sent == ()


async def test_a_customer_who_is_twice_in_a_batch_is_decided_once(store: Store) -> None:
    rows = [*await propose(store, "ada", decision_id="d1"), *await propose(store, "ada", decision_id="d2")]
    assert [c.status for c in await store.commit(PROGRAM, rows)] == ["committed", "stale"]


async def test_a_stale_row_does_not_hold_up_the_others(store: Store) -> None:
    rows = await propose(store, *(f"c{i}" for i in range(200)))
    await store.put("c7", consent=True)
    became = await store.commit(PROGRAM, rows)
    assert Counter(c.status for c in became) == {"committed": 199, "stale": 1}
    assert became[7].status == "stale"
    assert all(c.answer == row.answer for c, row in zip(became, rows, strict=True) if c.status == "committed")


async def test_hold_is_stale_too_once_the_budget_no_longer_pays_for_what_was_allowed(store: Store) -> None:
    """The mask in force is the whole mask: rejecting only what cannot be paid would bias every estimate."""
    *others, last = together(store, 12)
    await active(store, *others, last, program=BUDGETED)
    (waiting,) = await propose(store, last, program=BUDGETED, action="hold")
    payable = int((await left(store, BUDGETED, name=last)).shared.budget // 300)
    assert payable >= 2
    for name in others[: payable - 1]:
        assert await decide(store, name, program=BUDGETED, action="coupon/warm/now") == ["committed"]
    await decide(store, others[payable - 1], program=BUDGETED, action="coupon/warm/now")
    assert (await store.commit(BUDGETED, [waiting]))[0].status == "stale"


async def test_rows_of_one_batch_do_not_take_the_same_last_piece(store: Store) -> None:
    names = together(store, 4)
    await active(store, *names)
    rows = await propose(store, *names, action="gift/warm/now")  # each as if it were alone
    pieces = int(rows[0].found.shared.stock[2])
    became = [c.status for c in await store.commit(PROGRAM, rows)]
    assert became == ["committed"] * pieces + ["stale"] * (4 - pieces)


async def test_hold_is_kept_while_all_that_was_allowed_can_still_be_paid(store: Store) -> None:
    one, other = together(store, 2)
    await active(store, one, other, program=BUDGETED)
    (waiting,) = await propose(store, one, program=BUDGETED, action="hold")
    await decide(store, other, program=BUDGETED, action="badge/warm/now")
    assert (await store.commit(BUDGETED, [waiting]))[0].status == "committed"


async def test_hold_is_stale_too_once_a_release_pays_for_what_was_blocked(store: Store) -> None:
    *others, last = together(store, 12)
    await active(store, *others, last, program=BUDGETED)
    for name in others[: int((await left(store, BUDGETED, name=last)).shared.budget // 300)]:
        await decide(store, name, program=BUDGETED, action="coupon/warm/now")
    (waiting,) = await propose(store, last, program=BUDGETED, action="hold")
    assert waiting.decision.blocked["incentive=coupon"] == "budget"
    await store.report(BUDGETED, [outcome(others[0], "o", "not_shown", program=BUDGETED, decision_id="d")])
    assert (await store.commit(BUDGETED, [waiting]))[0].status == "stale"


@pytest.mark.slow
@pytest.mark.parametrize("callers", [2, 40])
async def test_many_who_race_for_one_budget_never_overspend_it(store: Store, url: str, callers: int) -> None:
    """Callers on connections of their own, each with customers of its own, decide until nobody can be nudged."""
    program = BUDGETED
    stores = [await Store.open(url) for _ in range(2)]
    names = [f"c{i}" for i in range(120)]
    await active(store, *names, program=program)

    async def decided(caller: int) -> None:
        mine = stores[caller % 2]
        for name in names[caller::callers]:
            for _ in range(200):
                (row,) = await propose(mine, name, program=program)
                dear = [
                    a for a in ("coupon/warm/now", "gift/warm/now") if row.decision.vector[program.space.names.index(a)]
                ]
                drawn = drawing(program, row.decision, dear[-1] if dear else "hold")
                (became,) = await mine.commit(program, [row._replace(decision=drawn)])
                if became.status == "committed":
                    break
            else:
                pytest.fail(f"{name} was stale 200 times")

    await asyncio.gather(*(decided(caller) for caller in range(callers)))
    made = await decisions(store)
    gifts = sum(d.action_name.startswith("gift") for d in made)
    whole = sum([(await left(store, program, name=n)).shared.budget for n in apart(store)])
    assert len(made) == 120
    assert spent(made) + whole == 3_000
    assert gifts <= 2
    if store.shards == 1:
        assert (gifts, spent(made)) == (2, 2_800)  # two gifts, six coupons, and two euros that pay for neither
    for other in stores:
        await other.close()


async def test_the_parts_of_all_shards_are_the_whole(store: Store) -> None:
    found = [await left(store, BUDGETED, name=name) for name in apart(store)]
    assert sum(f.shared.budget for f in found) == 3_000
    assert sum(f.shared.stock[2] for f in found) == 2
    assert all(np.isinf(f.shared.stock[:2]).all() for f in found)


async def test_each_period_has_its_own_budget_and_its_own_turn(store: Store) -> None:
    names = together(store, 3)
    await active(store, *names, program=BUDGETED)
    found = await store.read(BUDGETED, [Wanted(n, "d", NOON + 7 * DAY * (i // 2)) for i, n in enumerate(names)])
    assert found[0].turn == found[1].turn != found[2].turn
    assert found[0].shared is found[1].shared
    whole = found[0].shared.budget
    await decide(store, names[0], program=BUDGETED, action="coupon/warm/now")
    assert (await left(store, BUDGETED, name=names[0])).shared.budget == whole - 300
    assert (await left(store, BUDGETED, name=names[0], at=NOON + 7 * DAY)).shared.budget == whole


async def test_a_pause_stops_what_was_decided_before_it(store: Store) -> None:
    rows = await propose(store, "ada", "bob", action="badge/warm/now")
    await store.pause("small", "incentive=badge")
    assert {c.status for c in await store.commit(PROGRAM, rows)} == {"stale"}
    (again,) = await propose(store, "ada")
    assert again.decision.blocked["incentive=badge"] == "paused"
    assert (await store.commit(PROGRAM, [again]))[0].status == "committed"
    await store.resume("small", "incentive=badge")
    assert await store.paused("small") == frozenset()
    assert await decide(store, "bob", action="badge/warm/now") == ["committed"]


async def test_only_levels_that_could_exist_are_paused(store: Store) -> None:
    await store.pause("small")
    assert await store.paused("small") == {"program"}
    with pytest.raises(ValueError, match='expected "program", or a level'):
        await store.pause("small", "coupon")


async def test_a_price_is_in_force_from_the_next_reading_on(store: Store) -> None:
    (before,) = await propose(store, "ada")
    await store.set_cost_price("small", 0.25)
    assert (await store.commit(PROGRAM, [before]))[0].status == "stale"
    assert (await propose(store, "ada"))[0].decision.cost_price == 0.25


async def test_scripts_are_loaded_again_when_the_server_forgot_them(store: Store) -> None:
    assert await decide(store, "ada") == ["committed"]
    await store.command("SCRIPT", "FLUSH")
    assert await decide(store, *(f"c{i}" for i in range(100))) == ["committed"] * 100


async def test_a_full_memory_is_said_and_leaves_nothing_half_written(store: Store) -> None:
    await decide(store, "ada")
    before = await log(store)
    rows = await propose(store, "bob", action="badge/warm/now")
    await store.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreError, match="maxmemory"):
            await store.commit(PROGRAM, rows)
    finally:
        await store.command("CONFIG", "SET", "maxmemory", "0")
    assert await log(store) == before
    assert (await left(store, PROGRAM, name="bob")).rev == 0
    assert (await store.commit(PROGRAM, rows))[0].status == "committed"
