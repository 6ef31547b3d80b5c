"""What a store promises about outcomes, reservations and customers, on every server."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from optimizer import erasure
from optimizer.program import DAY, Program
from optimizer.programs import read
from serving import stream
from serving.records import Erased
from serving.store import FullError, Overrun, Profile, Published, Store, StoreError, Wanted, Word
from tests.contracts.steps import (
    BUDGETED,
    PROGRAM,
    REPORTING,
    active,
    decide,
    left,
    log,
    outcome,
    outcomes,
    propose,
    together,
)
from tests.small_program import NOON, OPEN, TOML


async def test_an_outcome_moves_its_customer_and_is_in_the_log_once(store: Store) -> None:
    await store.put("ada")
    step = outcome("ada", "o1")
    assert await store.report(PROGRAM, [step]) == ["accepted"]
    assert await store.report(PROGRAM, [step, step]) == ["duplicate", "duplicate"]
    customer = (await left(store, PROGRAM, name="ada")).customer
    assert (customer.stage, customer.counts) == ("active", {"step": 1})
    assert await outcomes(store) == [step]


async def test_outcomes_of_a_customer_in_one_call_are_kept_in_their_order(store: Store) -> None:
    await store.put("ada")
    mixed = [
        outcome("ada", "o1"),
        outcome("ada", "o2", "opt_out"),
        outcome("ada", "o1"),
        outcome("ada", "o3", "opt_in"),
    ]
    assert await store.report(PROGRAM, mixed) == ["accepted", "accepted", "duplicate", "accepted"]
    assert [o.outcome_id for o in await outcomes(store)] == ["o1", "o2", "o3"]
    assert (await left(store, PROGRAM, name="ada")).customer.consent is True


async def test_a_correction_is_logged_and_counts_once_and_what_is_taken_back_does_not(store: Store) -> None:
    await store.put("ada")
    first = outcome("ada", "o", "spent", value=10.0)
    second = outcome("ada", "o", "spent", value=8.0, revision=2)
    lower = outcome("ada", "o", "spent", value=9.0, revision=1)
    assert await store.report(PROGRAM, [first, second, lower]) == ["accepted", "accepted", "duplicate"]
    assert (await left(store, PROGRAM, name="ada")).customer.counts == {"spent": 1}
    assert await store.report(PROGRAM, [lower, outcome("ada", "o", "spent", revision=3, revoked=True)]) == [
        "duplicate",
        "accepted",
    ]
    assert (await left(store, PROGRAM, name="ada")).customer.counts == {}
    assert [o.revision for o in await outcomes(store)] == [0, 2, 3]


async def test_an_outcome_that_is_first_heard_of_as_a_correction_counts(store: Store) -> None:
    await store.put("ada")
    late = [outcome("ada", "o", revision=1), outcome("ada", "o")]
    assert await store.report(PROGRAM, late) == ["accepted", "duplicate"]
    assert (await left(store, PROGRAM, name="ada")).customer.counts == {"step": 1}


async def test_an_outcome_revoked_before_it_was_heard_of_is_logged_and_moves_nobody(store: Store) -> None:
    await store.put("ada")
    assert await store.report(PROGRAM, [outcome("ada", "o", revision=1, revoked=True), outcome("ada", "o")]) == [
        "accepted",
        "duplicate",
    ]
    customer = (await left(store, PROGRAM, name="ada")).customer
    assert (customer.stage, customer.counts) == ("new", {})
    assert [o.revoked for o in await outcomes(store)] == [True]


async def test_an_outcome_may_come_before_its_decision(store: Store) -> None:
    await store.put("ada")
    assert await store.report(PROGRAM, [outcome("ada", "o", "shown", decision_id="d")]) == ["accepted"]
    assert await decide(store, "ada", decision_id="d") == ["committed"]


async def test_an_outcome_may_come_before_anything_else_is_known_of_its_customer(store: Store) -> None:
    assert await store.report(PROGRAM, [outcome("new", "o", "shown", decision_id="d")]) == ["accepted"]
    assert await decide(store, "new", decision_id="d") == ["committed"]
    assert await store.report(PROGRAM, [outcome("newer", "o1"), outcome("newer", "o2")]) == ["accepted", "accepted"]
    customer = (await left(store, PROGRAM, name="newer")).customer
    assert (customer.enrolled_at, customer.stage, customer.counts) == (NOON, "active", {"step": 2})
    assert await store.report(PROGRAM, [outcome("newer", "o2")]) == ["duplicate"]


async def test_whoever_is_heard_of_by_saying_no_is_known_for_it(store: Store) -> None:
    assert await store.report(PROGRAM, [outcome("stranger", "o", "opt_out")]) == ["accepted"]
    assert (await left(store, PROGRAM, name="stranger")).customer.consent is False


async def test_an_unknown_event_is_not_kept_and_makes_nobody_known(store: Store) -> None:
    await store.put("ada")
    rows = [outcome("ada", "o2", "flew"), outcome("ada", "o3"), outcome("nobody", "o4", "flew")]
    assert await store.report(PROGRAM, rows) == ["unknown_event", "accepted", "unknown_event"]
    assert [o.outcome_id for o in await outcomes(store)] == ["o3"]
    assert await store.get(PROGRAM, "nobody", at=NOON) is None


async def test_what_an_erased_customer_did_before_brings_nobody_back(store: Store) -> None:
    await decide(store, "ada")
    assert await store.erase("ada", at=NOON + 5)
    late = [outcome("ada", "o1", at=NOON + 5), outcome("ada", "o2", at=NOON + 6)]
    assert await store.report(PROGRAM, late[:1]) == ["erased_customer"]
    assert await store.get(PROGRAM, "ada", at=NOON) is None
    assert await store.report(PROGRAM, late) == ["erased_customer", "accepted"], "who comes back is new"
    assert (await left(store, PROGRAM, name="ada")).customer.counts == {"step": 1}
    assert [o.outcome_id for o in await outcomes(store)] == ["o2"]


async def test_many_who_report_one_customer_at_once_lose_nothing(store: Store) -> None:
    await store.put("ada")
    reports = [store.report(PROGRAM, [outcome("ada", f"o{i}"), outcome("ada", "same")]) for i in range(12)]
    became = await asyncio.gather(*reports)
    assert [b[0] for b in became] == ["accepted"] * 12
    assert sorted(b[1] for b in became) == ["accepted"] + ["duplicate"] * 11
    assert (await left(store, PROGRAM, name="ada")).customer.counts == {"step": 13}
    assert len(await outcomes(store)) == 13


async def test_consent_taken_back_in_one_program_holds_in_all(store: Store) -> None:
    other = REPORTING
    await store.report(PROGRAM, [])
    await store.put("ada", consent=True, time_zone="Europe/Paris", attributes={"plan": "gold"})
    await store.report(PROGRAM, [outcome("ada", "o", "opt_out")])
    customer = (await left(store, other, name="ada")).customer
    assert (customer.consent, customer.time_zone, customer.attributes) == (False, "Europe/Paris", {"plan": "gold"})


@pytest.mark.parametrize(("put", "consent"), [(None, True), (False, False)])
async def test_a_refusal_that_is_taken_back_restores_consent_unless_the_profile_refuses_too(
    store: Store, put: bool | None, consent: bool  # noqa: FBT001
) -> None:  # fmt: skip
    await store.put("ada", consent=True)
    await store.report(PROGRAM, [outcome("ada", "o", "opt_out")])
    assert (await left(store, REPORTING, name="ada")).customer.consent is False
    await store.put("ada", consent=put, time_zone="Europe/Paris")
    await store.report(PROGRAM, [outcome("ada", "o", "opt_out", revision=1, revoked=True)])
    assert (await left(store, REPORTING, name="ada")).customer.consent is consent


async def test_a_nudge_not_shown_gives_back_budget_and_stock_and_cap(store: Store) -> None:
    (ada,) = together(store, 1)
    await active(store, ada, program=BUDGETED)
    before = await left(store, BUDGETED, name=ada)
    await decide(store, ada, program=BUDGETED, action="gift/warm/now")
    during = await left(store, BUDGETED, name=ada)
    assert during.shared.budget == before.shared.budget - 500
    assert during.shared.stock[2] == before.shared.stock[2] - 1
    await store.report(BUDGETED, [outcome(ada, "o", "not_shown", program=BUDGETED, decision_id="d")])
    await store.report(BUDGETED, [outcome(ada, "p", "not_shown", program=BUDGETED, decision_id="d")])  # and only once
    after = await left(store, BUDGETED, name=ada)
    assert after.shared.budget == before.shared.budget
    assert after.shared.stock.tolist() == before.shared.stock.tolist()
    assert after.customer.sent == ()
    assert after.customer.nudges.level == pytest.approx(0.0)


async def test_a_nudge_that_was_shown_is_not_given_back(store: Store) -> None:
    (ada,) = together(store, 1)
    for event in ("shown", "step"):  # any outcome that names the decision shows that it was delivered
        await store.command("FLUSHALL")
        await active(store, ada, program=BUDGETED)
        await decide(store, ada, program=BUDGETED, action="gift/warm/now")
        spent = (await left(store, BUDGETED, name=ada)).shared.budget
        await store.report(BUDGETED, [outcome(ada, "o", event, program=BUDGETED, decision_id="d")])
        await store.report(BUDGETED, [outcome(ada, "p", "not_shown", program=BUDGETED, decision_id="d")])
        after = await left(store, BUDGETED, name=ada)
        assert after.shared.budget == spent
        assert [s.settled for s in after.customer.sent] == [True]


async def test_a_correction_of_whether_a_nudge_was_shown_moves_what_is_reserved(store: Store) -> None:
    (ada,) = together(store, 1)
    said = (
        [("not_shown", False), ("shown", False)],  # and what is reserved in the end
        [("shown", False), ("not_shown", False)],
        [("not_shown", False), ("not_shown", True), ("not_shown", False)],
        [("not_shown", False), ("not_shown", True)],
    )
    for revisions, kept in zip(said, (1, 0, 0, 1), strict=True):
        await store.command("FLUSHALL")
        await active(store, ada, program=REPORTING)
        before = (await left(store, REPORTING, name=ada)).shared
        await decide(store, ada, program=REPORTING, action="gift/warm/now")
        for revision, (event, revoked) in enumerate(revisions):
            told = outcome(ada, "o", event, program=REPORTING, decision_id="d", revision=revision, revoked=revoked)
            assert await store.report(REPORTING, [told]) == ["accepted"]
        after = await left(store, REPORTING, name=ada)
        assert (before.budget - after.shared.budget, len(after.customer.sent)) == (500 * kept, kept), revisions
        assert before.stock[2] - after.shared.stock[2] == kept


async def test_what_expires_stays_reserved_unless_the_program_reports_what_is_shown(store: Store) -> None:
    one, other = together(store, 2)
    for program, name, released in ((BUDGETED, one, 0), (REPORTING, other, 1)):
        await store.command("FLUSHALL")
        await active(store, name, program=program)
        before = (await left(store, program, name=name)).shared.budget
        await decide(store, name, program=program, action="gift/warm/now")
        assert await store.sweep(program, now=NOON + 0.4 * DAY) == 0
        assert await store.sweep(program, now=NOON + 0.6 * DAY) == released
        assert await store.sweep(program, now=NOON + 0.6 * DAY) == 0
        after = await left(store, program, name=name)
        assert after.shared.budget == before - (0 if released else 500)
        assert len(after.customer.sent) == 1 - released


async def test_the_sweeper_releases_only_what_nobody_saw(store: Store) -> None:
    names = [f"c{i}" for i in range(150)]
    await store.put("c0")
    await decide(store, *names, program=REPORTING, action="badge/warm/now")
    shown = [outcome(n, "s", "shown", program=REPORTING, decision_id="d") for n in names[:40]]
    await store.report(REPORTING, shown)
    await store.erase(names[149], at=NOON)
    assert await store.sweep(REPORTING, now=NOON + DAY) == 109
    found = await store.read(REPORTING, [Wanted(n, "", NOON) for n in names])
    assert [len(f.customer.sent) for f in found] == [1] * 40 + [0] * 110
    assert found[149].rev == 0


async def test_two_sweepers_release_a_nudge_once(store: Store, url: str) -> None:
    names = together(store, 3)
    await active(store, *names, program=REPORTING)
    before = (await left(store, REPORTING, name=names[0])).shared.budget
    await decide(store, *names[:1], program=REPORTING, action="gift/warm/now")
    async with await Store.open(url) as other:
        swept = await asyncio.gather(*(s.sweep(REPORTING, now=NOON + DAY) for s in (store, other, store, other)))
    assert sum(swept) == 1
    assert (await left(store, REPORTING, name=names[0])).shared.budget == before


async def test_a_nudge_shown_after_its_release_is_debited_again_and_counted_as_overrun(store: Store) -> None:
    (ada,) = together(store, 1)
    await active(store, ada, program=REPORTING)
    before = await left(store, REPORTING, name=ada)
    await decide(store, ada, program=REPORTING, action="gift/warm/now")
    await store.sweep(REPORTING, now=NOON + DAY)
    assert await store.overrun(REPORTING) == Overrun(0, 0)
    for outcome_id, later in (("o", DAY), ("p", DAY), ("q", 12 * DAY)):
        late = outcome(ada, outcome_id, "shown", program=REPORTING, decision_id="d", at=NOON + later)
        await store.report(REPORTING, [late])
        assert await store.overrun(REPORTING) == Overrun(1, 500)
    after = await left(store, REPORTING, name=ada)
    assert after.shared.budget == before.shared.budget - 500
    assert after.shared.stock[2] == before.shared.stock[2] - 1


async def test_a_nudge_shown_late_counts_for_caps(store: Store) -> None:
    await decide(store, "ada", program=REPORTING, action="badge/warm/now")
    await store.sweep(REPORTING, now=NOON + DAY)
    await store.report(REPORTING, [outcome("ada", "o", "shown", program=REPORTING, decision_id="d", at=NOON + DAY)])
    after = await left(store, REPORTING, name="ada")
    assert [(s.decision_id, s.settled) for s in after.customer.sent] == [("d", True)]


async def test_what_expires_after_a_program_stopped_reporting_stays_reserved(store: Store) -> None:
    await decide(store, "ada", program=REPORTING, action="badge/warm/now")
    assert await store.sweep(BUDGETED, now=NOON + DAY) == 0
    assert len((await left(store, BUDGETED, name="ada")).customer.sent) == 1


async def test_a_budget_that_was_overrun_still_lets_free_nudges_pass(store: Store) -> None:
    *names, last = together(store, 21)
    await active(store, *names, last, program=REPORTING)
    payable = int((await left(store, REPORTING, name=last)).shared.budget // 300)
    for name in names[:payable]:
        await decide(store, name, program=REPORTING, action="coupon/warm/now")
    assert await store.sweep(REPORTING, now=NOON + DAY) == payable
    for name in names[payable : 2 * payable]:
        await decide(store, name, program=REPORTING, action="coupon/warm/now")
    late = [outcome(name, "late", "shown", program=REPORTING, decision_id="d") for name in names[:payable]]
    await store.report(REPORTING, late)
    assert await store.overrun(REPORTING) == Overrun(payable, payable * 300)
    (row,) = await propose(store, last, program=REPORTING, action="badge/warm/now")
    assert row.decision.blocked["incentive=coupon"] == "budget"
    assert (await store.commit(REPORTING, [row]))[0].status == "committed"


async def test_a_release_never_leaves_more_than_there_is(store: Store) -> None:
    """A gift that was given before gifts ran out at all does not make a third of two."""
    (ada,) = together(store, 1)
    endless = Program.parse(TOML.replace("stock = 2\n", "") + OPEN, source="small.toml")
    await active(store, ada, program=endless)
    assert await decide(store, ada, program=endless, action="gift/warm/now") == ["committed"]
    before = (await left(store, PROGRAM, name=ada)).shared.stock[2]
    await store.report(PROGRAM, [outcome(ada, "o", "not_shown", decision_id="d")])
    assert (await left(store, PROGRAM, name=ada)).shared.stock[2] == before


async def test_what_is_put_of_a_profile_replaces_and_the_rest_stays(store: Store) -> None:
    await store.put("ada", consent=True, attributes={"plan": "gold", "tenure": 3.0})
    assert await store.put("ada", time_zone="Asia/Tokyo") == Profile(
        consent=True, time_zone="Asia/Tokyo", attributes={"plan": "gold", "tenure": 3.0}
    )
    assert (await store.put("ada", consent=False, attributes={})).attributes == {}
    found = await store.get(PROGRAM, "ada", at=NOON)
    assert found is not None
    assert (found.customer.consent, found.customer.time_zone) == (False, "Asia/Tokyo")


async def test_an_erased_customer_is_as_if_never_seen_and_a_tombstone_is_logged(store: Store) -> None:
    for i in range(3):
        await decide(store, "ada", "bob", decision_id=f"d{i}")
    assert len(await store.history("small", "ada")) == 3
    assert await store.erase("ada", at=NOON + 5) is True
    assert await store.erase("ada", at=NOON + 5) is False
    assert await store.get(PROGRAM, "ada", at=NOON) is None
    assert await store.history("small", "ada") == []
    assert await store.answer("small", "ada", "d1") is None
    assert await store.answer("small", "bob", "d1") is not None
    tombstones = [e for e in await log(store) if isinstance(e, Erased)]
    assert tombstones == [Erased(digest=erasure.digest(store.erasure_key, "ada"), at=NOON + 5)] * 2
    words = [key for key in await store.command("KEYS", "*") if b"ada" in key]
    assert words == []


async def test_whoever_is_erased_and_comes_back_is_nobody_that_was_read_before(store: Store) -> None:
    await store.put("ada", consent=True)
    rows = await propose(store, "ada", action="badge/warm/now", decision_id="d1")
    await store.erase("ada", at=NOON)
    await store.put("ada", consent=False)
    assert [c.status for c in await store.commit(PROGRAM, rows)] == ["stale"]


async def test_an_outcome_that_is_said_again_asks_again_until_it_has_its_answer(store: Store) -> None:
    fitness = Program.parse(read("fitness-coaching"), source="")
    await store.put("ada", consent=True)
    done = outcome("ada", "o", "workout_done", program=fitness)
    (first,) = await store.hear(fitness, [done])
    assert first.asks is not None
    (again,) = await store.hear(fitness, [done])
    assert (again.became, again.asks) == ("duplicate", first.asks)
    late = msgspec.structs.replace(done, received_at=done.at + DAY)
    assert [h.asks for h in await store.hear(fitness, [late])] == [None], "too late for that"
    for number in range(50):
        rows = await propose(store, "ada", program=fitness, decision_id=f"d{number}", at=NOON + number * 7 * DAY)
        await store.commit(fitness, rows)
        if rows[0].decision.action:
            break
    assert [h.asks for h in await store.hear(fitness, [done])] == [None]


async def test_many_outcomes_of_one_customer_at_once_are_all_kept(store: Store) -> None:
    told = [store.report(PROGRAM, [outcome("ada", f"o{i}"), outcome(f"c{i % 7}", f"o{i}")]) for i in range(60)]
    assert await asyncio.gather(*told) == [["accepted", "accepted"]] * 60


async def test_a_store_that_is_full_can_be_archived_and_forget(store: Store) -> None:
    await decide(store, "ada", action="hold", decision_id="d1")
    (_, most) = await store.command("CONFIG", "GET", "maxmemory")
    await store.command("CONFIG", "SET", "maxmemory", 1_000_000)
    try:
        with pytest.raises(FullError):
            await store.report(PROGRAM, [outcome("ada", "o")])
        shard = store.shard("ada")
        lease = await stream.take(store, shard, seconds=60.0)
        assert lease is not None
        (entry,) = await stream.fresh(store, shard, most=10)
        plan = stream.Plan(entry.id, entry.id, 1)
        await stream.commit(store, lease, plan)
        await stream.advance(store, lease, plan)
        await stream.leave(store, lease)
        assert await stream.fresh(store, shard, most=10) == []
        assert await store.erase("ada", at=NOON)
    finally:
        await store.command("CONFIG", "SET", "maxmemory", int(most))


async def test_a_decision_made_while_its_customer_is_being_erased_is_erased_too(store: Store, url: str) -> None:
    class Interrupted(Store):
        """A store in which somebody else decides between what erasing reads and what it deletes."""

        async def run(self, script: str, keys: Sequence[str], args: Sequence[Word]) -> object:
            if script == "erase" and await store.answer("small", "ada", "d2") is None:
                await decide(store, "ada", decision_id="d2", action="hold")
            return await super().run(script, keys, args)

    await decide(store, "ada", decision_id="d1", action="hold")
    async with await Interrupted.open(url) as other:
        assert await other.erase("ada", at=NOON)
    assert await store.answer("small", "ada", "d1") is None
    assert await store.answer("small", "ada", "d2") is None
    assert await store.get(PROGRAM, "ada", at=NOON) is None


@pytest.mark.slow
async def test_a_history_is_the_recent_answers_latest_first(store: Store) -> None:
    for i in range(230):
        (row,) = await propose(store, "ada", action="hold", decision_id=f"d{i}")
        await store.commit(PROGRAM, [row])
    assert await store.history("small", "ada", limit=2) == [b"ada d229 hold", b"ada d228 hold"]
    assert 100 <= len(await store.history("small", "ada", limit=1_000)) < 200


@pytest.mark.parametrize("name", ["a:1", "{0}", "}{", "zoë ☃", "a\nb", "\x00", "x" * 200, "{g}:layout", "*"])
async def test_no_name_of_a_customer_reaches_another_ones_keys(store: Store, name: str) -> None:
    (row,) = await propose(store, name, action="hold", decision_id=f"{name}:d")
    assert (await store.commit(PROGRAM, [row]))[0].status == "committed"
    assert await store.report(PROGRAM, [outcome(name, name)]) == ["accepted"]
    assert await store.history("small", name) == [row.answer]
    assert await store.get(PROGRAM, name.replace("a", "b") + "!", at=NOON) is None
    assert await store.erase(name, at=NOON)
    assert await store.get(PROGRAM, name, at=NOON) is None


async def test_programs_and_policies_are_kept_whole(store: Store) -> None:
    await store.put_program("small", "v1", "one")
    await store.put_program("small", "v2", "two")
    await store.put_program("small", "v1", "another")
    assert await store.programs("small") == {"v1": "one", "v2": "two"}
    assert await store.programs("large") == {}
    assert await store.policy_version("small", "champion") is None
    assert await store.policy("small", "champion") is None
    for version in ("7", "8"):
        await store.publish_policy("small", "champion", Published(version, bytes([0, 255, int(version)])))
    assert await store.policy_version("small", "champion") == "8"
    assert await store.policy("small", "champion") == Published("8", b"\x00\xff\x08")
    assert await store.policy("small", "challenger") is None


async def test_what_the_server_refuses_is_said(store: Store) -> None:
    with pytest.raises(StoreError, match="unknown command"):
        await store.command("NONSENSE")
    await store.ping()
