"""What customers do follows the chances that the truth is worked out from, and the dynamics that the world declares."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import HOLD, Floats, Ints, Nudge
from optimizer.customer import deliveries
from optimizer.program import DAY, Program
from optimizer.programs import read
from policies.fixed import FixedNudge, Hold, Uniform
from simulations.effects import GOAL, STEP
from simulations.journeys import State
from simulations.population import Population, populate
from simulations.response import Moment, chances, expected, expected_of_all, lag, lag_by, respond
from simulations.rollout import Asking, Run, facing, replay, rollout, sole
from simulations.worlds import WORLDS, World

START = 1_767_571_200.0
PROGRAM = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
SPACE = PROGRAM.space


def _population(world: World, *, customers: int = 200) -> Population:
    return populate(PROGRAM, world, customers=customers, seed=4, start=START)


def _moment(world: World, *, day: int = 6, customers: int = 200) -> tuple[Moment, State, Run]:
    population = _population(world, customers=customers)
    run = rollout(population, sole(Uniform(SPACE)), days=day + 1, logged=False)
    turn = _turn(run, day)
    return facing(turn, deliveries(PROGRAM, turn.cohort)[0]), turn.state, run


def _turn(run: Run, day: int) -> Asking:
    """Return everybody as they were when they asked on a day of a run."""
    return next(turns[0] for found, turns in replay(run) if found == day)


def _any_nudge(n: int) -> Ints:
    return 1 + np.arange(n) * 7 % (SPACE.k - 1)


def test_what_happens_is_worth_on_average_what_is_expected() -> None:
    """Over 600 courses of chance, each customer's day is worth its exact expectation, within four standard errors."""
    world = replace(WORLDS["demo"], lost=0.2, goal=0.05)
    now, state, run = _moment(world, customers=60)
    population, rows, day = run.population, slice(0, 60), 6
    until = now.asks[:, None] + population.windows - 0.75 * DAY
    for actions in (_any_nudge(60), np.zeros(60, dtype=np.intp)):
        exact = expected(now, actions, until=until)
        totals = np.zeros((600, 60))
        for fork in range(600):
            happened = respond(now, state.copy(), rows=rows, day=day, actions=actions, fork=fork + 1)
            happened = happened.take(happened.event < len(PROGRAM.events))
            counts = happened.at < until[happened.customer, happened.event]
            np.add.at(totals[fork], happened.customer[counts], population.effects.worth[happened.event[counts]])
        z = (totals.mean(axis=0) - exact) / (totals.std(axis=0) / np.sqrt(600))
        assert abs(z.mean()) < 4 / np.sqrt(60)
        assert np.abs(z).max() < 5.5
        assert z.std() == pytest.approx(1.0, abs=0.4)


def test_the_expectation_of_all_actions_holds_that_of_each() -> None:
    now, _, run = _moment(WORLDS["threeway"])
    effects = run.population.effects
    until = now.asks[:, None] + run.population.windows
    everything = expected_of_all(now, until=until, worth=effects.worth)
    for actions in (_any_nudge(200), np.zeros(200, dtype=np.intp), np.full(200, SPACE.k - 1)):
        one = expected(now, actions, until=until)
        np.testing.assert_allclose(everything[np.arange(200), actions], one, atol=1e-12)


def test_lags_come_as_often_as_they_are_said_to() -> None:
    population = _population(WORLDS["delayed"], customers=1)
    u = (np.arange(100_000) + 0.5) / 100_000
    lags = lag(population, u)
    for seconds in (600.0, 3_600.0, DAY, 3 * DAY, 14 * DAY):
        assert (lags <= seconds).mean() == pytest.approx(float(lag_by(population, np.array([seconds]))[0]), abs=1e-3)


def test_a_holding_customer_does_what_comes_by_itself() -> None:
    now, _, _ = _moment(WORLDS["demo"])
    found = chances(now, np.zeros(200, dtype=np.intp))
    np.testing.assert_array_equal(found.organic, found.nudged)


def test_in_the_null_world_nudges_change_nothing_and_nobody_leaves() -> None:
    now, _, run = _moment(WORLDS["null"])
    found = chances(now, _any_nudge(200))
    np.testing.assert_allclose(found.organic, found.nudged, atol=1e-12)
    assert not (run.history.happened.event == run.population.effects.leave).any()


def test_habit_and_fatigue_and_repetition_damp_what_a_nudge_does() -> None:
    now, state, run = _moment(WORLDS["fatigue"])
    population, rows = run.population, slice(0, 200)
    actions = np.full(200, 1 + int(population.effects.shift[STEP, 1:].argmax()))

    def appeal(**columns: float) -> Floats:
        changed = state.copy()
        for name, value in columns.items():
            getattr(changed, name)[:] = value
        found = facing(_turn(run, 6)._replace(state=changed, rows=rows), now.deliver_at)
        return found.appeal(actions, channel=STEP) + found.weariness  # what wears on the day's steps is told apart

    rested = appeal(fatigue=0.0, habit=0.0, incentive_day=-np.inf, tone_day=-np.inf)
    loved = rested > 0
    assert loved.any()
    for tired in (
        appeal(fatigue=4.0, habit=0.0, incentive_day=-np.inf, tone_day=-np.inf),
        appeal(fatigue=0.0, habit=0.8, incentive_day=-np.inf, tone_day=-np.inf),
        appeal(fatigue=0.0, habit=0.0, incentive_day=5.0, tone_day=-np.inf),
        appeal(fatigue=0.0, habit=0.0, incentive_day=-np.inf, tone_day=5.0),
    ):
        assert (tired[loved] < rested[loved]).all()
    rested_again = appeal(fatigue=0.0, habit=0.0, incentive_day=-60.0, tone_day=-60.0)
    np.testing.assert_allclose(rested_again, rested, rtol=1e-5)


def test_fatigue_makes_leaving_likelier() -> None:
    nudge = FixedNudge(SPACE, nudge=Nudge("coach-tip", "warm", "after-work"))
    left = {}
    for growth in (0.0, 1.0):
        world = replace(WORLDS["demo"], leaving=0.01, leaving_growth=growth)
        run = rollout(_population(world, customers=800), sole(nudge), days=20, logged=False)
        left[growth] = run.metrics.opted_out
    assert left[1.0] > 1.5 * left[0.0] > 0


def test_nobody_who_left_is_nudged_again() -> None:
    world = replace(WORLDS["demo"], leaving=0.2)
    run = rollout(_population(world), sole(Uniform(SPACE)), days=20, logged=False)
    happened = run.history.happened
    leaving = happened.take(happened.event == run.population.effects.leave)
    assert len(leaving) > 20
    for customer, at in zip(leaving.customer.tolist(), leaving.at.tolist(), strict=True):
        later = run.history.asks[:, customer] > at
        assert (run.history.actions[later, customer] == HOLD).all()


def test_a_goal_reached_lulls_and_the_lull_wears_off() -> None:
    now, state, run = _moment(WORLDS["demo"])
    turn = _turn(run, 6)
    goals = run.population.effects.of_channel(GOAL)

    def base(sated: float) -> Floats:
        changed = state.copy()
        changed.sated[:] = sated
        return facing(turn._replace(state=changed), now.deliver_at).base[:, goals]

    possible = base(0.0) > -np.inf
    np.testing.assert_allclose(base(0.0)[possible] - base(1.0)[possible], WORLDS["demo"].dip)
    population = run.population
    happened = respond(now, state, rows=slice(0, 200), day=6, actions=np.zeros(200, dtype=np.intp))
    reached = np.unique(happened.customer[goals[np.minimum(happened.event, len(goals) - 1)]])
    assert (state.sated[reached] == 1.0).all()
    assert population.world.dip_days > 0


def test_tones_do_the_opposite_once_the_world_drifts() -> None:
    world = replace(WORLDS["drift"], drift_day=6)
    before, _, _ = _moment(world, day=5)
    after, _, _ = _moment(world, day=6)
    np.testing.assert_allclose(after.tone, -before.tone)


def test_reports_get_lost_as_often_as_the_world_says_and_some_come_twice() -> None:
    kept = {}
    for lost in (0.0, 0.4):
        world = replace(WORLDS["demo"], lost=lost, twice=0.3)
        run = rollout(_population(world, customers=600), sole(Hold(SPACE)), days=3, logged=False)
        kept[lost] = run.history.happened
    assert len(kept[0.4]) / len(kept[0.0]) == pytest.approx(0.6, abs=0.06)
    twice = kept[0.0].twice
    assert twice.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / len(twice)))


def test_the_discontented_report_values_that_pause_promotions() -> None:
    world = replace(WORLDS["demo"], signal=0.3)
    run = rollout(_population(world), sole(Hold(SPACE)), days=4, logged=False)
    happened = run.history.happened
    scores = happened.value[happened.event == PROGRAM.event_index["survey_csat"]]
    assert set(scores.tolist()) == {2.0, 4.0}
    assert (run.end.paused_until > START).any()
