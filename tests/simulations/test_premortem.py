"""What breaks a program is measured, and so is the guardrail that would have caught it."""

import pytest
from msgspec.structs import replace as replaced

from optimizer.program import Program
from simulations import page, premortem
from simulations.premortem import Broken, Premortem
from tests.small_program import small

OPEN = """
[guardrails]
consent = "opt-out"
cap_per_day = 1
cap_per_week = 7
cooldown = "1h"
"""


def _program() -> Program:
    program = small(OPEN)
    return replaced(program, incentives=tuple(replaced(i, stock=None) for i in program.incentives))


@pytest.fixture(scope="module")
def found() -> Premortem:
    """Nudges at random, four weeks, three hundred customers."""
    return premortem.run(_program(), policy="uniform", customers=300, days=28, seed=2)


def _of(found: Premortem, hazard: str) -> Broken:
    return next(h for h in found.hazards if h.hazard == hazard)


def test_tired_customers_leave_and_fewer_messages_would_have_kept_them(found: Premortem) -> None:
    tired = _of(found, "fatigue")
    assert tired.broken
    assert tired.figure == "opted out"
    saved = {r.guardrail: r for r in tired.remedies}
    assert saved["cap_per_week"].caught
    assert saved["cap_per_week"].saved > saved["cap_per_week_by_kind"].saved
    assert "cap_per_week = 3" in saved["cap_per_week"].setting


def test_what_breaks_first_comes_first_and_what_holds_comes_last(found: Premortem) -> None:
    broken = [h.broken for h in found.hazards]
    assert broken == sorted(broken, reverse=True)
    days = [h.day for h in found.hazards if h.day is not None]
    assert days == sorted(days)
    assert any(not b for b in broken)


def test_lost_events_break_the_reward_and_no_guardrail_brings_them_back(found: Premortem) -> None:
    lost = _of(found, "lost events")
    assert lost.broken
    assert not any(r.caught for r in lost.remedies)


def test_gamers_cost_more_than_honest_customers_bring(found: Premortem) -> None:
    lines = {line.name: line for line in _of(found, "gaming").figures}
    assert lines["macro-actions"].trouble < lines["macro-actions"].calm


def test_an_outage_saves_the_cost_of_a_week(found: Premortem) -> None:
    lines = {line.name: line for line in _of(found, "outage").figures}
    assert lines["cost"].trouble == pytest.approx(0.75 * lines["cost"].calm, rel=0.15)


def test_an_incentive_that_goes_is_offered_no_more(found: Premortem) -> None:
    assert {h.hazard for h in found.hazards} == {h.name for h in premortem.hazards(day=17)}
    assert all(h.figures for h in found.hazards)


def test_the_page_and_the_table_name_every_trouble(found: Premortem) -> None:
    html = page.premortem_html(found, command="nudge simulate --premortem small")
    assert all(h.title in html for h in found.hazards)
    assert "<script" not in html
    rows = premortem.table(found)
    assert len(rows) == len(found.hazards)
    assert "cap_per_week = 3" in str(next(r for r in rows if r["trouble"] == "Customers tire")["caught_by"])


def test_too_little_to_show_anything_is_refused() -> None:
    for key, words in (("customers", "customers = 50 shows nothing"), ("days", "days = 7 shows nothing")):
        sizes = {"customers": 200, "days": 20} | {key: 50 if key == "customers" else 7}
        with pytest.raises(ValueError, match=words):
            premortem.run(_program(), seed=1, **sizes)  # type: ignore[arg-type]
