"""Each mechanism of the population shows in what customers do, and stops showing where its setting is taken away."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import HOLD, Floats
from optimizer.program import DAY, Program
from optimizer.programs import read
from policies.fixed import Hold, Uniform
from simulations.effects import GOAL, STEP
from simulations.journeys import beginning
from simulations.metrics import active
from simulations.population import Population, populate
from simulations.response import DORMANT, GAMERS, moment
from simulations.rollout import rollout, sole
from simulations.trials import coupons
from simulations.worlds import CALIBRATED, DEMO, WORLDS, World
from tests.small_program import small

START = 1_767_571_200.0
PROGRAM = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")


def _population(world: World, *, customers: int = 200, program: Program = PROGRAM) -> Population:
    return populate(program, world, customers=customers, seed=4, start=START)


def _base(world: World, *, day: int = 0, **columns: float) -> Floats:
    """Shape (n, e): the logits of a day without a nudge, with some hidden or counted columns set."""
    population = _population(world)
    state = beginning(population)
    for name, value in columns.items():
        if name in state.__dict__:
            getattr(state, name)[:] = value
        else:
            state.counts[:, population.program.event_index[name]] = int(value)
    rows = slice(0, len(population))
    asks = population.asks(day)
    deliver_at = np.repeat(asks[:, None], len(population.program.timings), axis=1)
    return moment(population, state, rows=rows, day=day, deliver_at=deliver_at).base


def _strength(world: World, *, idle: float) -> Floats:
    population = _population(world)
    state = beginning(population)
    asks = population.asks(0)
    state.last_step[:] = asks - idle * DAY
    deliver_at = np.repeat(asks[:, None], len(population.program.timings), axis=1)
    return moment(population, state, rows=slice(0, 200), day=0, deliver_at=deliver_at).strength


def test_nearness_of_a_milestone_pulls_and_the_pull_is_gone_once_it_is_reached() -> None:
    """Goal gradient and reward reset: nine of ten workouts pull, ten of ten do not."""
    counted = next(m for m in PROGRAM.milestones if m.event and m.count and m.count > 1)
    steps = _population(DEMO).effects.of_channel(STEP)

    def pull(world: World, done: int) -> float:
        bare, near = (_base(world, **{str(counted.event): n})[:, steps] for n in (0, done))
        finite = np.isfinite(bare)
        return float((near[finite] - bare[finite]).mean())

    almost = counted.of - 1
    assert pull(DEMO, almost) > 0.05
    assert pull(replace(DEMO, gradient=0.0), almost) == 0.0
    assert pull(replace(DEMO, gradient_shape=1.0), almost) > pull(DEMO, almost)


def test_after_a_missed_day_a_nudge_does_more_and_after_a_week_no_more() -> None:
    missed, fresh, long = (_strength(DEMO, idle=d) for d in (2.0, 0.5, 8.0))
    np.testing.assert_allclose(missed, (1.0 + DEMO.comeback) * fresh)
    np.testing.assert_allclose(long, fresh)
    np.testing.assert_allclose(_strength(replace(DEMO, comeback=0.0), idle=2.0), fresh)


def test_everyday_steps_swing_with_the_week() -> None:
    steps = _population(DEMO).effects.of_channel(STEP)
    monday, thursday = (_base(replace(DEMO, season=0.4), day=d)[:, steps] for d in (0, 3))
    finite = np.isfinite(monday)
    assert (monday[finite] > thursday[finite]).all()
    still = [_base(replace(DEMO, season=0.0), day=d)[:, steps] for d in (0, 3)]
    np.testing.assert_array_equal(still[0], still[1])


def test_habit_grows_with_steps_and_wears_off_without() -> None:
    grows = rollout(_population(replace(DEMO, everyday=0.6)), sole(Hold(PROGRAM.space)), days=25, logged=False)
    fades = rollout(
        _population(replace(DEMO, everyday=0.001, turn=0.001)), sole(Hold(PROGRAM.space)), days=25, logged=False
    )
    assert grows.end.habit.mean() > 0.3
    assert fades.end.habit.mean() < 0.1


def test_a_purchase_is_followed_by_a_dip_in_what_customers_buy() -> None:
    """Forward buying: who has just reached a goal is less likely to reach the next, for as long as `dip_days` say."""
    goals = _population(DEMO).effects.of_channel(GOAL)
    rested, sated = (_base(DEMO, sated=s)[:, goals] for s in (0.0, 1.0))
    finite = np.isfinite(rested)
    np.testing.assert_allclose(rested[finite] - sated[finite], DEMO.dip)
    none = [_base(replace(DEMO, dip=0.0), sated=s)[:, goals] for s in (0.0, 1.0)]
    np.testing.assert_array_equal(none[0], none[1])


def test_what_a_dear_incentive_does_saturates_and_does_least_for_those_who_would_buy_anyway() -> None:
    low, high = (coupons(CALIBRATED, seed=2, customers=80_000).__getattribute__(k) for k in ("low", "high"))
    assert low[1] / low[0] > 1.3 * high[1] / high[0]
    alike = coupons(replace(CALIBRATED, bargain=0.0), seed=2, customers=80_000)
    assert alike.low[1] / alike.low[0] < low[1] / low[0]


def test_an_outage_lets_nobody_be_nudged_and_ends() -> None:
    run = rollout(_population(replace(DEMO, outage=(3, 2))), sole(Uniform(PROGRAM.space)), days=7, logged=False)
    sent = (run.history.actions != HOLD).sum(axis=1)
    assert (sent[3:5] == 0).all()
    assert (sent[[2, 5]] > 0).all()


def test_a_new_incentive_is_offered_from_its_day_on_and_a_retired_one_until_its() -> None:
    world = replace(WORLDS["shelf"], arrival_day=3, retirement_day=4)
    program = small('\n[guardrails]\nconsent = "opt-out"\ncap_per_day = 2\ncap_per_week = 20\ncooldown = "1h"\n')
    last = len(program.incentives) - 1
    run = rollout(
        _population(world, customers=400, program=program), sole(Uniform(program.space)), days=8, logged=False
    )
    offered = program.space.levels[run.history.actions, 0]
    assert not (offered[:3] == last).any()
    assert (offered[:4] == 0).any()
    assert not (offered[4:] == 0).any()


def test_a_budget_is_cut_from_the_next_period_on() -> None:
    rules = '\n[guardrails]\nconsent = "opt-out"\ncap_per_week = 7\nbudget = { amount = 60, period = "1d" }\n'
    program = small(rules)
    costs = program.space.action_costs
    spent = {}
    for name, shock in (("calm", None), ("cut", (3, 0.1))):
        world = replace(DEMO, budget_shock=shock)
        run = rollout(
            _population(world, customers=300, program=program), sole(Uniform(program.space)), days=6, logged=False
        )
        spent[name] = costs[run.history.actions].sum(axis=1)
    np.testing.assert_array_equal(spent["cut"][:2], spent["calm"][:2])
    assert spent["calm"][4:].min() > 6.0
    assert spent["cut"][4:].max() <= 6.0 + 6.0  # a local day may touch two periods


def test_gamers_take_what_is_offered_and_never_reach_a_goal() -> None:
    population = _population(replace(DEMO, gaming=0.3), customers=600)
    assert population.people.gaming.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 600))
    goals = population.effects.of_channel(GOAL)
    run = rollout(population, sole(Uniform(PROGRAM.space)), days=20, logged=False)
    reached = run.history.happened.customer[goals[run.history.happened.event]]
    assert population.people.gaming[reached].mean() < 0.05
    assert GAMERS > 3.0


def test_slots_of_any_size_give_the_same_run_in_worlds_that_change() -> None:
    world = replace(WORLDS["shelf"], arrival_day=2, retirement_day=3, outage=(4, 1), budget_shock=(3, 0.5), gaming=0.1)
    runs = [
        rollout(_population(world, customers=60), sole(Uniform(PROGRAM.space)), days=7, logged=False, slot=slot)
        for slot in (7, 4_096)
    ]
    np.testing.assert_array_equal(runs[0].history.actions, runs[1].history.actions)
    assert runs[0].metrics == runs[1].metrics


def test_impossible_events_of_a_world_are_refused_with_the_key_and_the_mend() -> None:
    for settings, words in (
        ({"outage": (3, 0)}, r"world 'odd': outage = \(3, 0\) never happens: use \(first day, days >= 1\)"),
        (
            {"budget_shock": (3, 1.5)},
            r"world 'odd': budget_shock = \(3, 1.5\) is no cut: use \(first day, share 0 to 1\)",
        ),
        ({"drift_day": -1}, r"world 'odd': drift_day = -1 is no day: use a whole number of 0 or more"),
        ({"gaming": 2.0}, r"world 'odd': gaming = 2.0 is no share: use 0 to 1"),
        ({"delays": ((0.0, 1.0),)}, r"delays = \(\(0.0, 1.0\),\): use \(hours above 0, share of 0 or more\)"),
        ({"deal_half": 0.0}, r"deal_half = 0.0 is impossible: use a number above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            World("odd", "nothing", **settings)


def _active(world: World, *, days: tuple[int, ...]) -> list[float]:
    run = rollout(_population(world, customers=600), sole(Hold(PROGRAM.space)), days=max(days), logged=False)
    return [float(active(run.history, day).mean()) for day in days]


def test_without_nudges_fewer_are_active_after_60_and_90_days_than_after_30() -> None:
    """Customers lapse; without lapsing, habit lets ever more of them be active. The seed is fixed."""
    early, later, late = _active(CALIBRATED, days=(30, 60, 90))
    assert early > later > late
    stays = _active(replace(CALIBRATED, lapsing=0.0), days=(7, 45))
    assert stays[1] > stays[0]


def test_who_has_drifted_away_hardly_acts_until_a_step_brings_them_back() -> None:
    steps = _population(CALIBRATED).effects.of_channel(STEP)
    here, away = (_base(CALIBRATED, lapsed=x)[:, steps] for x in (False, True))
    finite = np.isfinite(here)
    np.testing.assert_allclose(here[finite] - away[finite], DORMANT)
    everyone = rollout(
        _population(replace(CALIBRATED, lapsing=0.9), customers=200), sole(Hold(PROGRAM.space)), days=10, logged=False
    )
    acted = active(everyone.history, 10)
    assert 0.5 < everyone.end.lapsed.mean() < 1.0
    assert not everyone.end.lapsed[acted].all()
