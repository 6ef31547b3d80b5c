"""Rewards that come late: the newest decisions are completed, not called failures."""

from pathlib import Path

import numpy as np
import pytest

from optimizer.events import Decision, Outcome
from tests.small_program import DAY, NOON
from tests.training.test_dataset import PROGRAM, TEXT, decision, outcome
from training import dataset, delay
from training import events as log
from training.targets import today

DAYS = 12
NOW = NOON + DAYS * DAY


def made(*, seed: int = 0, n: int = 2_400) -> tuple[list[Decision], list[Outcome]]:
    """Return decisions over twelve days; two in three bring a step (0.5), half of them at once, half after two days."""
    rng = np.random.default_rng(seed)
    decisions, outcomes = [], []
    for i in range(n):
        at = NOON + i * DAYS * DAY / n
        badge = rng.random() < 0.25
        chosen = "badge/warm/now" if badge else "coupon/warm/now" if rng.random() < 1 / 3 else "hold"
        decisions.append(decision(f"d{i}", at=at, who=f"c{i}", action=chosen))
        when = at + (600.0 if rng.random() < 0.5 else 2.0 * DAY + 600.0)
        if rng.random() < 2 / 3 and when < NOW:
            outcomes.append(outcome(f"o{i}", at=when, who=f"c{i}"))
    return decisions, outcomes


@pytest.fixture(scope="module")
def delayed(tmp_path_factory: pytest.TempPathFactory) -> delay.Delayed:
    folder = tmp_path_factory.mktemp("delayed")
    decisions, outcomes = made()
    log.write(folder, PROGRAM, TEXT, decisions=decisions, outcomes=outcomes, name="test")
    return delay.load(folder, PROGRAM, now=NOW)


def test_parts_add_up_to_the_reward_of_what_has_matured(delayed: delay.Delayed, tmp_path: Path) -> None:
    decisions, outcomes = made()
    log.write(tmp_path, PROGRAM, TEXT, decisions=decisions, outcomes=outcomes, name="test")
    matured = dataset.load(tmp_path, PROGRAM, now=NOW)
    old = delayed.known[:, -1]
    assert old.sum() == len(matured) < len(delayed.dataset)
    assert delayed.parts[old].sum(axis=1) == pytest.approx(matured.rounds.rewards, abs=1e-12)
    assert delayed.edges.tolist() == [DAY, 2 * DAY, 3 * DAY]


def test_the_newest_week_is_completed_and_not_called_a_failure(delayed: delay.Delayed) -> None:
    """So far the newest decisions lack a part of their steps: about 0.17 each, which the models give back."""
    open_ = ~delayed.known[:, -1]
    newest = delayed.parts[open_].sum(axis=1).mean()
    oldest = delayed.parts[~open_].sum(axis=1).mean()
    completed = delay.completed(delayed)
    assert newest < oldest - 0.1
    assert completed[open_].mean() == pytest.approx(oldest, abs=0.07)
    assert completed[~open_] == pytest.approx(delayed.parts[~open_].sum(axis=1), abs=1e-12)
    last = delay.cohorts(delayed)[-1]
    assert last.so_far < last.completed
    assert last.matured_share < 1.0


def test_a_value_from_all_decisions_covers_the_truth_and_uses_more_of_them(delayed: delay.Delayed) -> None:
    """Today's policy is worth 0.5 x 2/3 less 3 for every coupon, which a quarter of decisions are."""
    found = delay.value(delayed, today().vectors)
    truth = 0.5 * 2 / 3 - 3.0 * 0.25
    assert found.at_level(0.999).low <= truth <= found.at_level(0.999).high
    assert found.rounds == len(delayed.dataset)


def test_the_check_says_what_is_still_to_come(delayed: delay.Delayed) -> None:
    found = delay.newest(delayed)
    assert found.status == "pass"
    assert "too new to judge and left out" in found.finding


def test_a_log_too_young_for_its_last_part_says_so(tmp_path: Path) -> None:
    decisions, outcomes = made(n=60)
    young = [d for d in decisions if d.at < NOON + 2 * DAY]
    log.write(tmp_path, PROGRAM, TEXT, decisions=young, outcomes=outcomes[:3], name="test")
    with pytest.raises(ValueError, match=r"only 6 decisions are older than 1 days, expected 30"):
        delay.completed(delay.load(tmp_path, PROGRAM, now=NOON + 2 * DAY))
