"""Consent once statements came late, were corrected or were taken back."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from optimizer.consent import stated
from optimizer.customer import UNSAID, Customer
from optimizer.events import Outcome
from tests.small_program import NOON, customer, small

PROGRAM = small()


def said(name: str, event: str, *, at: float = NOON, revision: int = 0, revoked: bool = False) -> Outcome:
    return Outcome(
        outcome_id=name, customer_id="ada", program="small", event=event, at=at, received_at=at, revision=revision,
        revoked=revoked,
    )  # fmt: skip


def taken_back(name: str, event: str = "opt_out") -> Outcome:
    return said(name, event, revision=1, revoked=True)


def after(statements: Sequence[Outcome], *, consent: bool | None = True) -> Customer:
    ada = customer(PROGRAM, consent=consent)
    for outcome in statements:
        ada = stated(ada, outcome)
    return ada


NO, YES, GONE = said("no", "opt_out"), said("yes", "opt_in", at=NOON + 9), taken_back("no")
CHANGED = replace(NO, revision=1, event="step")
LATER = replace(NO, revision=2)


@pytest.mark.parametrize("consent", [None, True, False])
@pytest.mark.parametrize("undone", [GONE, CHANGED], ids=["revoked", "corrected"])
def test_a_refusal_that_is_taken_back_leaves_consent_as_it_was(consent: bool | None, undone: Outcome) -> None:  # noqa: FBT001
    ada = after([NO], consent=consent)
    assert ada.consent is False
    ada = stated(ada, undone)
    assert ada.consent is consent
    assert ada.said is UNSAID


@pytest.mark.parametrize(
    ("statements", "consent"),
    [
        ([NO, said("again", "opt_out"), GONE], False),
        ([NO, said("again", "opt_out"), GONE, taken_back("again")], True),
        ([said("again", "opt_out"), NO, GONE], False),
        ([GONE], True),
        ([NO, GONE, LATER], False),
        ([CHANGED, LATER], False),
        ([NO, YES], True),
        ([NO, YES, GONE], True),
        ([NO, YES, taken_back("yes", "opt_in")], False),
        ([NO, said("early", "opt_in", at=NOON - 9)], False),
        ([NO, said("early", "opt_in", at=NOON - 9), GONE], True),
        ([YES, NO], False),  # a refusal holds as it comes, however late
        ([YES, NO, GONE], True),
        ([NO, said("other", "step", revision=1, revoked=True)], False),
    ],
)
def test_consent_is_what_the_statements_that_stand_say(statements: list[Outcome], consent: bool) -> None:  # noqa: FBT001
    assert after(statements).consent is consent


def test_an_agreement_that_is_taken_back_was_never_given() -> None:
    assert after([YES, taken_back("yes", "opt_in")], consent=None).consent is None


def test_of_many_statements_the_last_can_be_taken_back_and_the_first_hold() -> None:
    ada = after([said("first", "opt_out"), *(said(f"{i}", "opt_out") for i in range(20))])
    assert len(ada.said.statements) == 8
    for name in ("first", *map(str, range(20))):
        ada = stated(ada, taken_back(name))
    assert ada.consent is False
