"""Lift of the whole program: honest at every look, from customers by assigned arm, and silent where it cannot tell."""

from pathlib import Path

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.engine import CHAMPION, HOLDOUT
from optimizer.program import DAY, Program
from tests.training.lived import SURVEYS, Life, lived, text
from training import dataset, lift, record
from training.lift import PROGRAM, REACHED, Range, compare, cost_per_goal, lifts, looks

NO_HOLDOUT = SURVEYS.replace("holdout = 0.2", "holdout = 0.0")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    lived(folder, customers=250, days=24, seed=3)
    return folder


def program_of(toml: str) -> Program:
    return Program.parse(toml, source="lived.toml")


def misses(*, served: float, held: float, logs: int, customers: int, seed: int) -> int:
    """Return in how many logs any look's interval leaves out the true lift of a rare outcome."""
    rng, missed = np.random.default_rng(seed), 0
    for _ in range(logs):
        arm = rng.random(customers) < 0.3
        y = (rng.random(customers) < np.where(arm, held, served)).astype(np.float64)
        found = looks(y, arm, bounds=Range(0.0, 1.0), level=0.9)
        missed += bool((found.low > served - held).any() or (found.high < served - held).any())
    return missed


@pytest.mark.parametrize(("served", "held"), [(0.1, 0.1), (0.5, 0.2)])
def test_every_look_covers_the_true_lift_at_once(served: float, held: float) -> None:
    """150 logs, all looks at once at 90 %: more than 28 misses has a chance below 1 in 1,000."""
    assert misses(served=served, held=held, logs=150, customers=400, seed=5) <= 28


def test_a_large_lift_is_found_at_some_look_and_stays_found() -> None:
    rng = np.random.default_rng(1)
    held = rng.random(3_000) < 0.3
    y = (rng.random(3_000) < np.where(held, 0.1, 0.4)).astype(np.float64)
    found = looks(y, held, bounds=Range(0.0, 1.0))
    assert found.low[-1] > 0.0
    assert (np.diff(found.low) >= -1e-12).all()
    assert (np.diff(found.high) <= 1e-12).all()


def test_one_look_is_narrower_than_all_looks() -> None:
    rng = np.random.default_rng(2)
    arms = np.where(rng.random(2_000) < 0.2, HOLDOUT, CHAMPION).astype(object)
    y = (rng.random(2_000) < 0.3).astype(np.float64)
    found = compare(y, arms, arm=PROGRAM, outcome=REACHED, bounds=Range(0.0, 1.0))
    assert found.fixed.low is not None
    assert found.always.low is not None
    assert found.always.low < found.fixed.low < found.fixed.high < found.always.high  # type: ignore[operator]


def test_cost_for_each_goal_has_an_interval_that_covers_and_is_refused_where_the_effect_may_be_none() -> None:
    rng = np.random.default_rng(3)

    def log(effect: float, n: int = 2_000) -> tuple[Floats, Floats, np.ndarray]:
        held = rng.random(n) < 0.3
        cost = np.where(held, 0.0, rng.exponential(2.0, size=n))
        return cost, (rng.random(n) < 0.1 + effect * ~held).astype(np.float64), held

    covered = 0
    for _ in range(60):
        cost, goals, held = log(0.2)
        found = cost_per_goal(cost, goals, held, of="cost")
        assert found.low is not None
        assert found.high is not None
        covered += found.low < 10.0 < found.high  # 2 for each customer, 0.2 goals more for each
    assert covered >= 50  # of 60 at 95 %: fewer has a chance below 1 in 1,000
    said = cost_per_goal(*log(0.0), of="cost")
    assert said.value is None
    assert "cannot say" in said.missing


def test_customers_are_compared_by_the_arm_of_their_first_decide_over_a_fixed_span(archive: Path) -> None:
    program = program_of(text())
    log = record.load(archive, program)
    span = lift.span(log, days=5.0)
    who = log.customers.index("c7")
    first = log.enrolled[who]
    mine = log.happened.take(log.happened.customer == who)
    goals = (mine.event == program.event_index["upgraded"]) & (mine.at >= first) & (mine.at < first + 5 * DAY)
    assert span.goals[who] == goals.sum()
    assert span.reached[who] == float(goals.any())
    found = lifts(log, days=5.0)
    assert sum(found.enrolled.values()) == len(log.customers)
    assert set(found.enrolled) == {"champion", "evaluation", "holdout"}
    assert [x.arm for x in found.arms] == ["champion", "evaluation"]
    served, held = log.arms != HOLDOUT, log.arms == HOLDOUT
    gap = span.reached[served & span.mature].mean() - span.reached[held & span.mature].mean()
    assert found.program[0].fixed.value == pytest.approx(gap)


def test_who_has_not_been_here_long_enough_is_left_out(archive: Path) -> None:
    log = record.load(archive, program_of(text()))
    found = lifts(log, days=18.0)
    mature = (log.enrolled + 18 * DAY <= log.log_end).mean()
    assert found.matured_share == pytest.approx(mature)
    assert 0.2 < mature < 0.9
    assert found.program[0].fixed.n == round(mature * len(log.customers))


def test_arms_are_sticky(archive: Path) -> None:
    log = record.load(archive, program_of(text()))
    arms = {(c, a) for c, a in zip(log.decided.customer.tolist(), log.decided.arm.tolist(), strict=True)}
    assert len(arms) == len(log.customers)


def test_without_a_holdout_it_says_what_to_declare(tmp_path: Path) -> None:
    program = lived(tmp_path, toml=text(extra=NO_HOLDOUT), customers=30, days=6)
    found = lifts(record.load(tmp_path, program))
    assert found.program == ()
    assert "declare experiment.holdout = 0.1" in found.missing


def test_evaluation_traffic_never_trains_and_is_judged_on(archive: Path) -> None:
    """The arm is drawn, logged and sticky; what policies learn from has none of its rounds, evaluation has them all."""
    program = program_of(text())
    log = record.load(archive, program)
    theirs = {log.customers[i] for i in np.flatnonzero(log.arms == "evaluation").tolist()}
    assert len(theirs) > 10
    learned, judged = dataset.load(archive, program), dataset.load(archive, program, arms="judging")
    assert not theirs & {learned.customers[i] for i in learned.rounds.customers.tolist()}
    assert theirs <= {judged.customers[i] for i in judged.rounds.customers.tolist()}
    held = {log.customers[i] for i in np.flatnonzero(log.arms == HOLDOUT).tolist()}
    assert not held & {judged.customers[i] for i in judged.rounds.customers.tolist()}


def test_a_program_that_does_nothing_but_cost_is_not_said_to_help(tmp_path: Path) -> None:
    program = lived(tmp_path, customers=150, days=20, life=Life(lift=0.0, goal_lift=0.0, goal=0.03), seed=8)
    found = lifts(record.load(tmp_path, program))
    assert not found.program[0].always.above
    assert found.cost_per_goal.value is None
