"""Does a customer agree to be nudged, once statements came late, were corrected or were taken back?

A statement (`opt_out`, `opt_in`) is taken as it comes, but an agreement that is older than a refusal changes nothing.
One that is taken back was never made: what was so before stands again, unless something else was said as well.
"""

from collections.abc import Iterable
from hashlib import blake2b

import msgspec
from msgspec.structs import replace

from optimizer.customer import UNSAID, Customer, Said, Statement
from optimizer.events import Outcome

STATEMENTS = ("opt_out", "opt_in")

_REMEMBERED = 8
"""How many statements of a customer can be taken back at most."""


def stated(customer: Customer, outcome: Outcome) -> Customer:
    """Return the customer after an outcome that is, or was in an earlier revision, a statement of consent.

    >>> ada = Customer(customer_id="ada", enrolled_at=0.0, stage="new", consent=True)
    >>> no = Outcome(outcome_id="1", customer_id="ada", program="p", event="opt_out", at=1.0, received_at=1.0)
    >>> stated(ada, no).consent, stated(stated(ada, no), replace(no, revision=1, revoked=True)).consent
    (False, True)
    """
    digest = msgspec.msgpack.encode((outcome.program, outcome.outcome_id))
    made = Statement(blake2b(digest, digest_size=8).digest(), outcome.at, outcome.event == "opt_in")
    said = customer.said.statements
    known, stands = any(s.id == made.id for s in said), outcome.event in STATEMENTS and not outcome.revoked
    if not known and not stands:
        return customer
    before = customer.said.before if said else customer.consent
    revised = [made if s.id == made.id else s for s in said if stands or s.id != made.id]
    statements = revised if known else [*revised, made]
    consent, gone = _consent(before, statements), statements[:-_REMEMBERED]
    left = Said(_consent(before, gone), tuple(statements[len(gone) :])) if statements else UNSAID
    return replace(customer, consent=consent, said=left)


def _consent(before: bool | None, statements: Iterable[Statement]) -> bool | None:  # noqa: FBT001  (three states)
    """Return what follows from statements in the order in which they came."""
    consent, refused_at = before, -float("inf")
    for s in statements:
        if not s.agrees:
            consent, refused_at = False, max(refused_at, s.at)
        elif s.at >= refused_at:
            consent = True
    return consent
