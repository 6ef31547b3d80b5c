"""The truth about a policy is what its decisions would really have earned, found in another way."""

from dataclasses import replace

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.actions import HOLD, Bools, Floats, Ints
from optimizer.customer import deliveries
from optimizer.engine import CHAMPION, Optimizer
from optimizer.floor import apply_floor
from optimizer.policy import Policy
from optimizer.program import DAY, Experiment, Program
from optimizer.programs import read
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from simulations.journeys import Happenings
from simulations.log import History, rewards, worths
from simulations.population import Population, populate
from simulations.rollout import SALT, Asking, Run, ask, facing, live, replay, rollout, sole, standings, waiting
from simulations.truth import Rows, Scored, _Day, best, scores, true_rewards, truth
from simulations.worlds import WORLDS, World
from tests.small_program import small

START = 1_767_571_200.0
COURSES = 150
PROGRAM = replaced(Program.parse(read("fitness-coaching"), source="f.toml"), experiment=Experiment())
SPACE = PROGRAM.space
LOGGING = sole(Uniform(SPACE))


def _run(world: World, *, customers: int = 120, days: int = 7) -> Run:
    population = populate(PROGRAM, world, customers=customers, seed=9, start=START)
    return rollout(population, LOGGING, days=days)


def _turn(run: Run, day: int) -> Asking:
    """Return everybody as they were when they asked on a day of a run."""
    return next(turns[0] for found, turns in replay(run) if found == day)


def _of_day(run: Run, day: int) -> tuple[Rows, Ints]:
    rows = Rows.of(run.population, run.dataset)
    found = np.flatnonzero(rows.days == day)
    return Rows(rows.customers[found], rows.days[found]), found


def _deployed(run: Run, policy: Policy) -> Floats:
    rounds = run.rounds
    chosen = policy.probabilities(rounds.contexts, rounds.allowed, rounds.prices(SPACE))
    return apply_floor(chosen, SPACE, allowed=rounds.allowed, exploration=PROGRAM.exploration)


def _lived(run: Run, turn: Asking, first: Ints, *, course: int) -> Floats:
    """Shape (n,): what everybody's decision of a day really earns in one course of chance, then deciding as logged."""
    population, day, program = run.population, turn.day, run.population.program
    state, actions, happened = turn.state.copy(), [first], [waiting(population, turn.state, day=day)]
    chance = np.random.default_rng([course, day])
    for ahead in range(3):
        asking = turn._replace(state=state) if not ahead else ask(population, state, rows=turn.rows, day=day + ahead)
        if ahead:
            us = chance.random(len(first))
            logging = Optimizer(program, sole(Uniform(program.space)), SALT)
            found = logging.choose(asking.cohort, arms=[CHAMPION] * len(first), us=us, shared=run.left.standing)
            actions.append(found.actions)
        now = facing(asking, deliveries(program, asking.cohort)[0])
        happened.append(live(asking, now, actions[-1], fork=10_000 + course))
    every = Happenings.concatenate(happened)
    every = every.take(every.event < len(population.effects.events))
    shape = np.array(actions)
    history = History(population, day, shape, np.zeros_like(shape), every)
    return np.asarray(rewards(history)[0])


@pytest.mark.slow
@pytest.mark.parametrize("world", ["demo", "delayed"])
def test_the_truth_is_what_lived_courses_earn_on_average(world: str) -> None:
    """150 courses of 400 customers, counted outcome by outcome, agree within four standard errors."""
    declared = small()
    program = replaced(declared, incentives=tuple(replaced(i, stock=None) for i in declared.incentives))
    lively = replace(WORLDS[world], lost=0.1, leaving=0.05, goal=0.05, lift=1.0)
    population = populate(program, lively, customers=400, seed=9, start=START)
    logging, day = sole(Uniform(program.space)), 3
    run = rollout(population, logging, days=7)
    turn, (rows, found) = _turn(run, day), _of_day(run, day)
    target = Rules.of(program).probabilities(*_asked(run, found))
    said = truth(run, logging, rows=rows, target=target, forks=16)
    lived = np.zeros(COURSES)
    for course in range(COURSES):
        lived[course] = _lived(run, turn, target.argmax(axis=1), course=course).mean()
    error = float(np.hypot(lived.std() / np.sqrt(COURSES), said.error))
    assert error < 0.008, "or the comparison shows little"
    assert abs(lived.mean() - said.value) < 4 * error


def _asked(run: Run, found: Ints) -> tuple[Floats, Bools, Floats]:
    """Return what a policy is asked about some of the rounds."""
    rounds = run.rounds.take(found)
    return rounds.contexts, rounds.allowed, rounds.prices(run.population.program.space)


def test_what_was_set_off_before_counts_where_it_comes_within_the_windows() -> None:
    run, day = _run(WORLDS["delayed"]), 3
    known = _Day(run, LOGGING, day, [_turn(run, day)], standings(run)).known
    happened, population = run.history.happened, run.population
    asks = population.asks(day)[happened.customer]
    inside = (happened.at >= asks) & (happened.at < asks + population.windows[happened.event])
    earlier = happened.take(inside & (happened.serial < day) & (happened.event < len(PROGRAM.events)))
    expected = np.bincount(earlier.customer, weights=worths(PROGRAM, earlier), minlength=len(population))
    assert (expected > 0).sum() > 10
    np.testing.assert_allclose(known, expected)


def test_more_forks_leave_less_to_chance_and_the_error_says_so() -> None:
    run = _run(WORLDS["demo"], customers=80)
    rows, found = _of_day(run, 3)
    target = _deployed(run, Uniform(SPACE))[found]
    few, many = (truth(run, LOGGING, rows=rows, target=target, forks=forks) for forks in (2, 16))
    assert many.error < 0.6 * few.error
    assert abs(few.value - many.value) < 4 * np.hypot(few.error, many.error)
    assert few.rounds == len(found)


def test_the_same_forks_pair_targets() -> None:
    run = _run(WORLDS["demo"], customers=80)
    rows, found = _of_day(run, 3)
    hold, rules = (
        true_rewards(run, LOGGING, rows=rows, target=_deployed(run, p)[found], forks=4)
        for p in (Hold(SPACE), Rules.of(PROGRAM))
    )
    paired = (hold - rules).std()
    assert paired < np.sqrt(hold.var() + rules.var())


def test_where_nudges_do_nothing_every_free_target_is_worth_the_same() -> None:
    run = _run(WORLDS["null"], customers=60)
    rows, found = _of_day(run, 3)
    free = [SPACE.nudge(1), SPACE.nudge(40)]
    targets: list[Policy] = [Hold(SPACE), *(FixedNudge(SPACE, nudge=nudge) for nudge in free if nudge)]
    rounds = run.rounds.take(found)
    vectors = [p.probabilities(rounds.contexts, rounds.allowed, rounds.prices(SPACE)) for p in targets]
    values = [truth(run, LOGGING, rows=rows, target=v).value for v in vectors]
    assert vectors[1][:, HOLD].mean() < 0.9
    assert values == pytest.approx([values[0]] * 3, abs=1e-9)


def test_targets_of_several_days_are_the_mean_of_their_days() -> None:
    run = _run(WORLDS["demo"], customers=40)
    rows = Rows.of(run.population, run.dataset)
    target = _deployed(run, Uniform(SPACE))
    whole = true_rewards(run, LOGGING, rows=rows, target=target)
    for day in (0, 3):
        some, found = _of_day(run, day)
        alone = true_rewards(run, LOGGING, rows=some, target=target[found])
        np.testing.assert_allclose(alone, whole[:, found])


def test_rounds_of_a_second_period_have_their_truth_too() -> None:
    population = populate(PROGRAM, WORLDS["demo"], customers=40, seed=9, start=START)
    first = rollout(population, LOGGING, days=4, logged=False)
    second = rollout(population, LOGGING, days=5, since=first)
    whole = rollout(population, LOGGING, days=9)
    rows, found = _of_day(second, 4)
    target = _deployed(second, Rules.of(PROGRAM))[found]
    one, other = (truth(run, LOGGING, rows=rows, target=target) for run in (second, whole))
    assert one.value == pytest.approx(other.value, abs=1e-9)


def _best_of(turn: Asking) -> Policy:
    return Scored(SPACE, scores(turn))


def test_the_best_is_truly_better_than_chance_rules_and_hold() -> None:
    run = _run(WORLDS["demo"], customers=150)
    turn = _turn(run, 3)
    rows, found = _of_day(run, 3)
    rounds = run.rounds.take(found)
    assert len(found) == len(turn.cohort)
    vectors = _best_of(turn).probabilities(rounds.contexts, rounds.allowed, rounds.prices(SPACE))
    top = truth(run, LOGGING, rows=rows, target=vectors, forks=8)
    for policy in (Uniform(SPACE), Rules.of(PROGRAM), Hold(SPACE)):
        other = truth(run, LOGGING, rows=rows, target=_deployed(run, policy)[found], forks=8)
        assert top.value - other.value > 4 * np.hypot(top.error, other.error)


def test_a_run_of_the_best_earns_more_than_one_of_chance() -> None:
    population = populate(PROGRAM, WORLDS["demo"], customers=300, seed=9, start=START)
    top, chance = best(population, days=8), rollout(population, LOGGING, days=8)
    assert top.rounds.rewards.mean() > chance.rounds.rewards.mean()
    assert (top.rounds.probabilities > 0).sum() == top.rounds.allowed.sum(), "the best explores by the floor too"


def test_what_cannot_be_answered_is_refused() -> None:
    run = _run(WORLDS["demo"], customers=10, days=6)
    rows, found = _of_day(run, 2)
    target = _deployed(run, Uniform(SPACE))[found]
    with pytest.raises(ValueError, match="forks = 1: at least 2 show"):
        truth(run, LOGGING, rows=rows, target=target, forks=1)
    with pytest.raises(ValueError, match=r"target has shape \(10, 2\) for 10 rounds: give \(rounds, actions\)"):
        truth(run, LOGGING, rows=rows, target=target[:, :2])
    late = Rows(rows.customers, np.full(len(rows.days), 5))
    with pytest.raises(ValueError, match="rounds of days 5 to 5: only 0 to 3 mature"):
        truth(run, LOGGING, rows=late, target=target)


def test_scores_are_saved_and_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]  # a folder
    policy = Scored(SPACE, np.arange(2.0 * SPACE.k).reshape(2, -1))
    policy.save(tmp_path)
    assert (Scored.load(tmp_path, SPACE).scores == policy.scores).all()


def _days_of(population: Population, at: Floats) -> Floats:
    return np.floor((at - population.start) / DAY)


def test_rows_are_found_by_name_and_time() -> None:
    run = _run(WORLDS["demo"], customers=20)
    rows = Rows.of(run.population, run.dataset)
    np.testing.assert_array_equal(rows.days, _days_of(run.population, run.rounds.at))
    np.testing.assert_allclose(run.population.people.first_ask[rows.customers] + rows.days * DAY, run.rounds.at)
