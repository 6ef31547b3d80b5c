"""A check that cannot fail checks nothing: logs that are wrong are found to be."""

from collections.abc import Sequence

from msgspec.structs import replace

from optimizer.engine import Ask
from optimizer.events import Decision
from optimizer.guardrails import Shared
from optimizer.program import Program
from serving import reservations
from tests.faults.driver import TEXT
from tests.faults.replay import replayed
from tests.small_program import NOON, customer, optimizer

PROGRAM = Program.parse(TEXT, source="small.toml")


def decided(times: Sequence[float], *, shared: Shared | None = None, remembers: bool = True) -> list[Decision]:
    """Return decisions about one customer, each as if committed; without memory, as if the one before had not been."""
    person, made = customer(PROGRAM, stage="active"), []
    for i, at in enumerate(times):
        ask = Ask(person, f"d{i}", at)
        made += optimizer(PROGRAM).decide([ask], shared or Shared.unlimited(PROGRAM))
        if remembers:
            person = reservations.reserve(PROGRAM, person, made[-1])
    return made


def from_start(made: Sequence[Decision]) -> list[Decision]:
    """Return decisions about customers whom nothing has happened to before."""
    person = customer(PROGRAM, "new")
    return [*optimizer(PROGRAM).decide([Ask(person, "d", NOON)], Shared.unlimited(PROGRAM)), *made]


def test_a_log_that_is_right_is_found_right() -> None:
    verdict = replayed(PROGRAM, from_start([]))
    assert (verdict.checked, verdict.doubled, verdict.other_mask, verdict.over_cap, verdict.overspent) == (
        1,
        0,
        0,
        0,
        0,
    )


def test_a_decision_that_is_there_twice_is_found() -> None:
    assert replayed(PROGRAM, from_start([]) * 2).doubled == 1


def test_a_vector_of_another_mask_is_found() -> None:
    """The stage `active` allows coupons, which `new`, where the log begins, does not."""
    assert replayed(PROGRAM, decided([NOON])).other_mask == 1


def test_a_cap_that_is_broken_is_found() -> None:
    first = from_start([])[0]
    nudge = replace(first, action=1, action_name="badge/warm/now", deliver_at=NOON, cost=0)
    log = [replace(nudge, decision_id=f"d{i}", at=NOON + i, deliver_at=NOON + i) for i in range(4)]
    verdict = replayed(PROGRAM, log)
    assert verdict.over_cap == 1
    assert verdict.other_mask == 1  # the fourth was blocked, and its vector says that it was not


def test_a_budget_that_is_overspent_is_found() -> None:
    first = from_start([])[0]
    dear = replace(first, action=5, action_name="coupon/warm/now", deliver_at=NOON, cost=5_000)
    log = [replace(dear, decision_id=f"d{i}", customer_id=f"c{i}") for i in range(2)]
    assert replayed(PROGRAM, log).overspent == 1
