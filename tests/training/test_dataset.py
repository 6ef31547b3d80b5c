"""From events to rounds, by hand: windows, maturity, late and revoked outcomes, costs, and older programs."""

import re
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from optimizer.engine import EVALUATION, HOLDOUT
from optimizer.events import Decision, Outcome
from optimizer.program import Program
from tests.small_program import DAY, GUARDRAILS, NOON, TOML, small
from training import dataset
from training import events as log
from training.dataset import Dataset
from training.train import split

PROGRAM = small()  # events count for 1 day (the longest delay) + 2 days; the horizon is 3 days
TEXT = TOML + GUARDRAILS
LATER = NOON + 30 * DAY


def decision(
    decision_id: str = "d",
    *,
    at: float = NOON,
    who: str = "ada",
    action: str = "hold",
    arm: str = "champion",
    stage: str = "new",
    program: Program = PROGRAM,
) -> Decision:
    space = program.space
    vector = np.zeros(space.k, dtype="<f4")
    vector[[0, space.names.index("badge/warm/now"), space.names.index("coupon/warm/now")]] = [0.5, 0.25, 0.25]
    return Decision(
        decision_id=decision_id,
        customer_id=who,
        program="small",
        program_version=program.version,
        policy="uniform",
        policy_version="0",
        arm=arm,
        at=at,
        context={"stage": stage, "momentum": 0.25, "hour": 12.0, "plan": "gold"},
        probabilities=vector.tobytes(),
        action=space.names.index(action),
        action_name=action,
        deliver_at=None,
        cost=0,
        cost_price=0.5,
        burden=0.125,
        salt_id="s",
        blocked={},
    )


def outcome(
    outcome_id: str = "o",
    *,
    event: str = "step",
    at: float = NOON + 60,
    who: str = "ada",
    value: float | None = None,
    decision_id: str | None = None,
    revision: int = 0,
    revoked: bool = False,
) -> Outcome:
    return Outcome(
        outcome_id=outcome_id,
        customer_id=who,
        program="small",
        event=event,
        at=at,
        received_at=at,
        value=value,
        decision_id=decision_id,
        revision=revision,
        revoked=revoked,
    )


def loaded(folder: Path, decisions: list[Decision], outcomes: list[Outcome], *, now: float | None = LATER) -> Dataset:
    log.write(folder, PROGRAM, TEXT, decisions=decisions, outcomes=outcomes, name="test")
    return dataset.load(folder, PROGRAM, now=now)


def rewards(folder: Path, decisions: list[Decision], outcomes: list[Outcome]) -> list[float]:
    return list(loaded(folder, decisions, outcomes).rounds.rewards)


def test_an_outcome_counts_for_every_decision_whose_window_contains_it(tmp_path: Path) -> None:
    # A step is worth 0.5 within [at, at + 3 days): for the hold of day 0 and the nudge of day 1, not for that of day 3.
    days = [decision(f"d{i}", at=NOON + i * DAY) for i in (0, 1, 3)]
    assert rewards(tmp_path, days, [outcome(at=NOON + 2 * DAY)]) == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(("after", "worth"), [(-1.0, 0.0), (0.0, 0.5), (3 * DAY - 1, 0.5), (3 * DAY, 0.0)])
def test_a_window_starts_at_the_decision_and_ends_before_its_end(tmp_path: Path, after: float, worth: float) -> None:
    assert rewards(tmp_path, [decision()], [outcome(at=NOON + after)]) == [worth]


def test_another_customers_outcome_does_not_count(tmp_path: Path) -> None:
    people = [decision("d1", who="ada"), decision("d2", who="bob")]
    assert rewards(tmp_path, people, [outcome(who="bob")]) == [0.0, 0.5]


def test_values_that_are_reported_are_scaled(tmp_path: Path) -> None:
    assert rewards(tmp_path, [decision()], [outcome(event="spent", value=70.0)]) == [7.0]


def test_a_nudge_costs_unless_it_was_not_shown(tmp_path: Path) -> None:
    nudges = [decision("d1", action="coupon/warm/now"), decision("d2", action="coupon/warm/now", who="bob")]
    assert rewards(tmp_path, nudges, [outcome(event="not_shown", decision_id="d2", who="bob")]) == [-3.0, 0.0]


def test_a_correction_replaces_and_a_revocation_takes_back(tmp_path: Path) -> None:
    first = outcome(event="spent", value=10.0)
    corrected = outcome(event="spent", value=30.0, revision=1)
    revoked = outcome(event="spent", value=30.0, revision=2, revoked=True)
    assert rewards(tmp_path / "a", [decision()], [corrected, first]) == [3.0]
    assert rewards(tmp_path / "b", [decision()], [first, revoked, corrected]) == [0.0]


def test_the_same_event_in_two_files_counts_once(tmp_path: Path) -> None:
    path = log.file_of(tmp_path, "small", at=NOON, name="again")
    log.write_file(path, log.table([decision()], [outcome()]))
    assert rewards(tmp_path, [decision()], [outcome()]) == [0.5]


def test_a_round_with_an_open_window_is_left_out_and_the_share_is_said(tmp_path: Path) -> None:
    days = [decision(f"d{i}", at=NOON + i * DAY) for i in range(4)]
    found = loaded(tmp_path, days, [], now=NOON + 4 * DAY)
    assert found.rounds.at.tolist() == [NOON, NOON + DAY]
    assert (found.total, found.matured, found.matured_share) == (4, 2, 0.5)


def test_a_log_is_complete_up_to_its_last_entry_where_nobody_says(tmp_path: Path) -> None:
    days = [decision(f"d{i}", at=NOON + i * DAY) for i in range(5)]
    assert loaded(tmp_path, days, [], now=None).rounds.at.tolist() == [NOON, NOON + DAY]


def test_holdout_and_evaluation_traffic_train_nothing(tmp_path: Path) -> None:
    arms = [decision("d1"), decision("d2", arm=HOLDOUT), decision("d3", arm=EVALUATION)]
    found = loaded(tmp_path, arms, [])
    assert len(found) == found.total == 1


def test_the_context_mask_vector_and_prices_are_those_of_the_decision(tmp_path: Path) -> None:
    found = loaded(tmp_path, [decision(action="badge/warm/now", stage="active")], [])
    rounds, space = found.rounds, PROGRAM.space
    assert [space.names[i] for i in np.flatnonzero(rounds.allowed[0])] == ["hold", "badge/warm/now", "coupon/warm/now"]
    assert rounds.propensities.tolist() == [0.25]
    assert rounds.contexts[
        0, [space.features.index(f) for f in ("stage=active", "plan=gold", "momentum")]
    ].tolist() == [
        1,
        1,
        0.25,
    ]
    assert (rounds.cost_prices.tolist(), rounds.burdens.tolist(), found.stages.tolist()) == ([0.5], [0.125], [1])


def test_decisions_of_an_older_program_are_read_by_action_name(tmp_path: Path) -> None:
    # The new program has lost the coupon: what drew it is left out, and the rest is conditioned on not drawing it.
    text = TEXT.replace("coupon", "voucher")
    newer = Program.parse(text, source="small.toml")
    log.write(
        tmp_path,
        PROGRAM,
        TEXT,
        decisions=[decision("d1", action="badge/warm/now"), decision("d2", action="coupon/warm/now")],
        outcomes=[],
        name="old",
    )
    log.write_program(tmp_path, newer, text)
    found = dataset.load(tmp_path, newer, now=LATER)
    assert [newer.space.names[a] for a in found.rounds.actions] == ["badge/warm/now"]
    assert found.rounds.propensities.tolist() == pytest.approx([1 / 3])
    assert found.rounds.probabilities.sum() == pytest.approx(1.0)


def test_counts_of_events_say_who_converted(tmp_path: Path) -> None:
    found = loaded(tmp_path, [decision()], [outcome("o1", event="upgraded"), outcome("o2"), outcome("o3", at=NOON + 9)])
    assert found.events["upgraded"].tolist() == [1]
    assert found.events["step"].tolist() == [2]
    assert found.events["complaint"].tolist() == [0]


def test_becoming_active_is_worth_what_active_customers_go_on_to_earn(tmp_path: Path) -> None:
    # Ada becomes active on day 0 and earns 10 a day from then on; Bob stays new and earns nothing.
    ada = [decision(f"a{i}", at=NOON + i * DAY, stage="new" if i == 0 else "active") for i in range(6)]
    bob = [decision(f"b{i}", at=NOON + i * DAY, who="bob") for i in range(6)]
    earned = [outcome(f"u{i}", event="upgraded", at=NOON + i * DAY + 60) for i in range(1, 6)]
    found = loaded(tmp_path, [*ada, *bob], [outcome("s"), *earned])
    assert found.after is not None
    hers = found.rounds.customers == found.customers.index("ada")
    assert found.after.day_stages[hers].tolist() == found.after.horizon_stages[hers].tolist() == [1] * 6
    assert found.after.day_rewards[hers].tolist() == [0.5, 10, 10, 10, 10, 10]
    assert found.after.horizon_stages[~hers].tolist() == [0] * 6
    shaped = found.with_stage_values()
    added = shaped.training_rewards - found.rounds.rewards
    first = found.rounds.at == NOON
    # By hand, with a pseudo-day that stays: V(active) = (50/6)/0.02, V(new) = (0.5 + 0.98 V(active))/(8 - 0.98 x 7).
    active = 50 / 6 / 0.02
    new = (0.5 + 0.98 * active) / (8 - 0.98 * 7)
    assert added[first & hers].tolist() == pytest.approx([0.98**3 * active - new])
    assert added[first & ~hers].tolist() == pytest.approx([0.98**3 * new - new])
    assert shaped.rounds.rewards.tolist() == found.rounds.rewards.tolist()


def test_stage_values_of_a_slice_know_nothing_of_the_rest(tmp_path: Path) -> None:
    asked = [decision(f"a{i}", at=NOON + i * DAY) for i in range(6)]
    found = loaded(tmp_path, asked, [outcome("u", event="upgraded", at=NOON + 5 * DAY + 60)])
    early = found.take(slice(0, 2)).with_stage_values()  # its rewards lie before day 5
    assert early.training_rewards.tolist() == [0.0, 0.0]
    assert found.with_stage_values().training_rewards[0] != 0.0


def test_an_archive_without_the_program_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no events of program 'small' \(it is empty\): run nudge archive"):
        dataset.load(tmp_path, PROGRAM)


def broken(folder: Path, **changed: object) -> None:
    """Write two sound decisions and one that is changed, and read them."""
    fine = [decision("d1"), decision("d2", who="bob")]
    loaded(folder, [*fine, replace(decision("d3", who="eve"), **changed)], [])


def vector(*chances: float) -> bytes:
    """Return probabilities of the first actions as they are logged."""
    return np.array([*chances, *[0.0] * (PROGRAM.space.k - len(chances))], dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"probabilities": vector(0.5, 0.4)}, "column probabilities: they sum to 0.9"),
        ({"probabilities": vector(1.5, -0.5)}, "column probabilities: the probability of action 0 is 1.5"),
        ({"probabilities": vector(float("nan"), 1.0)}, "column probabilities: the probability of action 0 is nan"),
        ({"probabilities": vector(0.0, 1.0)}, "column probabilities: the action drawn, 0, has probability 0"),
        ({"probabilities": b"1234"}, "column probabilities: 1 probabilities, expected 13"),
        ({"program_version": "another"}, "column program_version: 'another' is no version of this program"),
    ],
)
def test_a_decision_that_could_not_have_been_made_is_refused_with_its_place(
    changed: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        broken(tmp_path, **changed)
    assert re.search(r"test\.parquet: row 3 \(decision d3\), column", str(refused.value))


def test_one_id_with_two_decisions_is_refused_and_a_repeated_file_is_not(tmp_path: Path) -> None:
    log.write_file(log.file_of(tmp_path, "small", at=NOON, name="again"), log.table([decision()], []))
    assert len(loaded(tmp_path, [decision()], [])) == 1
    log.write_file(
        log.file_of(tmp_path, "small", at=NOON, name="other"), log.table([decision(action="badge/warm/now")], [])
    )
    with pytest.raises(ValueError, match="decision d is in the archive twice"):
        dataset.load(tmp_path, PROGRAM)


def test_what_came_later_is_left_out_of_an_evaluation_of_then(tmp_path: Path) -> None:
    """A refund received on day 20 revokes what an evaluation of day 10 saw, and that one can be had again."""
    bought = outcome(event="spent", value=30.0)
    refund = replace(outcome(event="spent", value=30.0, revision=1, revoked=True), received_at=NOON + 20 * DAY)
    late = replace(outcome("late", event="step"), received_at=NOON + 15 * DAY)
    assert loaded(tmp_path, [decision()], [bought, refund, late], now=NOON + 10 * DAY).rounds.rewards.tolist() == [3.0]
    assert dataset.load(tmp_path, PROGRAM, now=NOON + 30 * DAY).rounds.rewards.tolist() == [0.5]


def test_the_evaluation_arm_judges_but_is_never_learned_from(tmp_path: Path) -> None:
    days = [
        decision(f"d{i}", at=NOON + i * DAY, who=f"c{i}", arm=EVALUATION if i % 2 else "champion") for i in range(20)
    ]
    log.write(tmp_path, PROGRAM, TEXT, decisions=days, outcomes=[], name="test")
    both = dataset.load(tmp_path, PROGRAM, now=LATER, arms="judging")
    assert len(both) == 20
    halves = split(both)
    names = {both.customers[c] for c in halves.earlier.rounds.customers}
    assert names
    assert all(int(name[1:]) % 2 == 0 for name in names)
    assert {int(both.customers[c][1:]) % 2 for c in halves.later.rounds.customers} == {0, 1}
    assert len(both.learnable()) == len(dataset.load(tmp_path, PROGRAM, now=LATER)) == 10


def test_which_guardrail_blocked_is_known_by_round(tmp_path: Path) -> None:
    free, capped = decision("d1"), replace(decision("d2", who="bob"), blocked={"nudge": "cap_per_week"})
    assert {k: v.tolist() for k, v in loaded(tmp_path, [free, capped], []).blocked.items()} == {
        "cap_per_week": [False, True]
    }


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    loaded(tmp_path, [decision()], [])
    (file,) = tmp_path.glob("program=small/date=*/*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"test.parquet: cannot be read .*; restore it from a backup"):
        dataset.load(tmp_path, PROGRAM)
