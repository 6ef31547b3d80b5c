"""The audit: a log that is what it says passes, and each way of not being so is found."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from optimizer.customer import new_customer
from optimizer.engine import HOLDOUT, Ask, Chooser, Optimizer
from optimizer.events import Decision, Outcome, Salt
from optimizer.guardrails import Shared
from optimizer.program import Program
from policies.fixed import Uniform
from tests.small_program import GUARDRAILS, NOON, TOML
from training import audit, dataset
from training import events as log
from training.dataset import Dataset

TEXT = TOML + GUARDRAILS + "\n[experiment]\nholdout = 0.2\n"
PROGRAM = Program.parse(TEXT, source="small.toml")
SALT = Salt("s1", b"k" * 32)


def decisions(n: int = 1_500) -> list[Decision]:
    """Return decisions as the engine makes them: one each for n customers."""
    engine = Optimizer(PROGRAM, {"champion": Chooser(Uniform(PROGRAM.space), "uniform", "0")}, SALT)
    people = [replace(new_customer(PROGRAM, f"c{i}", at=NOON), consent=True) for i in range(n)]
    asks = [Ask(person, f"d{i}", NOON + i) for i, person in enumerate(people)]
    return engine.decide(asks, Shared.unlimited(PROGRAM))


MADE = decisions()


def outcome(i: int, *, decision_id: str | None = None, who: str = "c1") -> Outcome:
    return Outcome(
        customer_id=who,
        program="small",
        outcome_id=f"o{i}",
        event="step",
        at=NOON + 5_000.0,
        received_at=NOON + 5_000.0,
        decision_id=decision_id,
    )


def table(made: list[Decision], outcomes: list[Outcome]) -> pa.Table:
    return log.table(made, outcomes)


def whole(folder: Path, made: list[Decision]) -> Dataset:
    log.write(folder, PROGRAM, TEXT, decisions=made, outcomes=[], name="log")
    return dataset.load(folder, PROGRAM, now=np.inf)


def test_a_sound_log_passes_every_check(tmp_path: Path) -> None:
    rows = table(MADE, [outcome(1, decision_id="d1")])
    checks = [
        audit.joins(rows),
        audit.arms(rows, PROGRAM),
        audit.replay(rows, SALT, program="small"),
        audit.rescoring(whole(tmp_path, MADE), {"uniform@0": Uniform(PROGRAM.space)}),
    ]
    assert [c.status for c in checks] == ["pass"] * 4, [c.finding for c in checks]
    assert "1,500 of 1,500 draws come out as logged" in checks[2].finding


def test_an_action_that_was_changed_after_the_draw_is_found() -> None:
    other = replace(MADE[7], action=0 if MADE[7].action else 1)
    found = audit.replay(table([*MADE[:7], other, *MADE[8:]], []), SALT, program="small")
    assert (found.status, found.value) == ("fail", 1.0)
    assert "the first is decision d7" in found.finding


def test_a_vector_that_was_changed_is_found() -> None:
    uniform = np.full(PROGRAM.space.k, 1 / PROGRAM.space.k, dtype="<f4").tobytes()
    changed = [replace(d, probabilities=uniform) for d in MADE]
    assert audit.replay(table(changed, []), SALT, program="small").status == "fail"


def test_draws_under_another_salt_are_not_said_to_be_right() -> None:
    found = audit.replay(table(MADE, []), Salt("s2", b"x" * 32), program="small")
    assert np.isnan(found.value)
    assert "not in this store" in found.finding


def test_held_out_customers_that_went_missing_are_found() -> None:
    """Of the holdout half is lost: 150 of 300, which no chance explains."""
    lost = [d for i, d in enumerate(MADE) if d.arm != HOLDOUT or i % 2]
    found = audit.arms(table(lost, []), PROGRAM)
    assert found.status == "fail"
    assert "holdout" in found.finding


def test_a_customer_who_changes_arms_is_found() -> None:
    moved = replace(
        MADE[0], decision_id="again", at=NOON + 9_000.0, arm="champion" if MADE[0].arm == HOLDOUT else HOLDOUT
    )
    found = audit.arms(table([*MADE, moved], []), PROGRAM)
    assert found.status == "fail"
    assert "1 customers changed arms" in found.finding


@pytest.mark.parametrize(("lost", "status"), [(0, "pass"), (3, "warn"), (30, "fail")])
def test_outcomes_that_find_no_decision_are_counted(lost: int, status: str) -> None:
    named = [outcome(i, decision_id=f"d{i}", who=f"c{i}") for i in range(100 - lost)]
    astray = [outcome(i + 200, decision_id=f"x{i}") for i in range(lost)]
    found = audit.joins(table(MADE, [*named, *astray]))
    assert found.status == status
    assert found.value == pytest.approx((100 - lost) / 100)


def test_a_saved_policy_that_is_not_what_served_is_found(tmp_path: Path) -> None:
    from policies.fixed import Hold

    found = audit.rescoring(whole(tmp_path, MADE), {"uniform@0": Hold(PROGRAM.space)})
    assert found.status == "fail"
    unknown = audit.rescoring(whole(tmp_path, MADE), {})
    assert np.isnan(unknown.value)
