"""Late, corrected and revoked outcomes: in any order of delivery, the customer that the final ones in order make."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from optimizer.customer import Customer, Sent
from optimizer.events import Outcome
from optimizer.hearing import ENTRIES, Ledger, hear
from optimizer.journey import follow, receive
from optimizer.program import DAY, Program
from tests.small_program import NOON, TOML, customer, small

PROGRAM = small()
STREAKY = Program.parse(TOML.replace("streak = 7", 'streak = 2\nstreak_of = ["step"]'), source="x.toml")
EVENTS = ("step", "upgraded", "spent", "complaint", "survey", "opt_out")
MOVED = tuple(f for f in Customer.__struct_fields__ if f not in ("consent", "said", "trigger"))


def outcome(name: str, event: str, *, at: float, revision: int = 0, revoked: bool = False, value: float | None = None,
            ) -> Outcome:  # fmt: skip
    return Outcome(
        outcome_id=name, customer_id="ada", program="small", event=event, at=at, received_at=at, revision=revision,
        revoked=revoked, value=value,
    )  # fmt: skip


def delivered(program: Program, ada: Customer, outcomes: Sequence[Outcome]) -> tuple[Customer, Ledger]:
    """Deliver outcomes one by one, as the store does: a revision that is known or lower is dropped."""
    known: dict[str, int] = {}
    ledger = Ledger()
    for o in outcomes:
        if o.revision > known.get(o.outcome_id, -1):
            first = o.outcome_id not in known
            known[o.outcome_id] = o.revision
            ada, ledger = hear(program, ada, ledger, outcome=o, first=first)
    return ada, ledger


def moved(ada: Customer) -> dict[str, object]:
    """Return what outcomes move."""
    return {name: getattr(ada, name) for name in MOVED}


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Outcome], list[Outcome]]:
    """Draw what happened within eight days, in revisions, in any order and any number of times."""
    found = []
    for i in range(draw(st.integers(1, 7))):
        events = ("shown",) if draw(st.integers(0, 9)) == 0 else EVENTS
        for revision in range(draw(st.integers(1, 3))):
            at = NOON + draw(st.integers(0, 7 * 24 * 4)) * 900.0
            event, value = draw(st.sampled_from(events)), draw(st.sampled_from((None, 1.0, 4.0)))
            found.append(outcome(f"o{i}", event, at=at, revision=revision, revoked=draw(st.booleans()), value=value))
    again = draw(st.lists(st.sampled_from(found), max_size=4))
    return found, draw(st.permutations([*found, *again]))


@settings(max_examples=250, deadline=None)
@given(deliveries(), st.sampled_from((PROGRAM, STREAKY)))
def test_in_any_order_of_delivery_the_customer_is_as_if_only_the_final_ones_had_come(
    drawn: tuple[list[Outcome], list[Outcome]], program: Program
) -> None:
    made, order = drawn
    final = {o.outcome_id: o for o in made}  # the last of each has the highest revision
    ada, _ = delivered(program, customer(program), order)
    plain = customer(program)
    for o in sorted(final.values(), key=lambda o: (o.at, o.event, -1.0 if o.value is None else o.value)):
        if not o.revoked:
            plain = follow(program, plain, o.event, at=o.at, value=o.value)
    assert moved(ada) == moved(plain)


def test_a_step_that_is_taken_back_leaves_no_trace() -> None:
    ada = customer(PROGRAM)
    first = outcome("a", "step", at=NOON)
    assert delivered(PROGRAM, ada, [first])[0].stage == "active"
    back, _ = delivered(PROGRAM, ada, [first, replace(first, revision=1, revoked=True)])
    assert (back.stage, back.counts, back.streak, back.last_step_at) == ("new", {}, 0, None)
    assert moved(back) == moved(ada)


def test_a_corrected_score_pauses_promotion_or_lets_it_go() -> None:
    low = outcome("s", "survey", at=NOON, value=1.0)
    ada, _ = delivered(PROGRAM, customer(PROGRAM), [low])
    assert ada.promotion_paused_until > NOON
    ada, _ = delivered(PROGRAM, customer(PROGRAM), [low, replace(low, revision=1, value=5.0)])
    assert ada.promotion_paused_until == 0.0


def test_a_late_step_mends_the_streak() -> None:
    days = [outcome(f"d{i}", "step", at=NOON + i * DAY) for i in (0, 2, 1)]
    ada, _ = delivered(PROGRAM, customer(PROGRAM), days)
    assert (ada.streak, ada.longest_streak) == (3, 3)


def test_nudges_consent_and_what_was_asked_stay_as_they_are() -> None:
    asking = Program.parse(
        TOML.replace('name = "step"\nkind = "micro"', 'name = "step"\nkind = "micro"\nrequests_decision = true'),
        source="x.toml",
    )
    step = outcome("a", "step", at=NOON)
    ada, ledger = hear(asking, customer(asking, consent=True), Ledger(), outcome=step, first=True)
    assert ada.trigger is not None
    gone, _ = hear(asking, ada, ledger, outcome=replace(step, revision=1, revoked=True), first=False)
    assert gone.trigger is None, "nobody asks about what did not happen"
    sent = Sent(decision_id="d", incentive="badge", deliver_at=NOON, day=20_454, cost=0, period=0, expires_at=NOON)
    nudged = receive(asking, ada, sent)
    gone, _ = hear(asking, nudged, ledger, outcome=replace(step, revision=1, revoked=True), first=False)
    assert (gone.sent, gone.nudges, gone.consent) == (nudged.sent, nudged.nudges, True)
    assert gone.counts == {}


@pytest.mark.parametrize(("agreed", "consent"), [(NOON - 60, False), (NOON + 60, True)])
def test_an_old_agreement_does_not_undo_a_newer_refusal(agreed: float, consent: bool) -> None:  # noqa: FBT001
    said = [outcome("no", "opt_out", at=NOON), outcome("yes", "opt_in", at=agreed)]
    assert delivered(PROGRAM, customer(PROGRAM), said)[0].consent is consent


def test_what_is_older_than_eight_days_has_become_part_of_the_customer() -> None:
    step = outcome("a", "step", at=NOON)
    ada, ledger = delivered(PROGRAM, customer(PROGRAM), [step, outcome("b", "spent", at=NOON + 9 * DAY)])
    assert len(ledger.entries) == 1
    late, _ = hear(PROGRAM, ada, ledger, outcome=replace(step, revision=1, revoked=True), first=False)
    assert late == ada
    many = [outcome(f"m{i}", "spent", at=NOON + i) for i in range(ENTRIES + 5)]
    ada, ledger = delivered(PROGRAM, customer(PROGRAM), many)
    assert (len(ledger.entries), ada.counts) == (ENTRIES, {"spent": ENTRIES + 5})
    undone = replace(many[-1], revision=1, revoked=True)
    assert hear(PROGRAM, ada, ledger, outcome=undone, first=False).customer.counts == {"spent": ENTRIES + 4}


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown event 'stepp'"):
        hear(PROGRAM, customer(PROGRAM), Ledger(), outcome=outcome("a", "stepp", at=NOON), first=True)
