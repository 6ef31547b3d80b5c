"""The closed loop decides as the service would, and its log is what training would see."""

from collections.abc import Mapping

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.actions import HOLD
from optimizer.customer import Cohort
from optimizer.engine import CHAMPION, HOLDOUT, Chooser, Optimizer
from optimizer.program import DAY, Budget, Experiment, Program
from optimizer.programs import SHIPPED, read
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from simulations.population import Population, populate
from simulations.purse import Purse
from simulations.rollout import SALT, Run, replay, rollout, sole
from simulations.worlds import WORLDS
from tests.small_program import GUARDRAILS, small

START = 1_767_571_200.0
"""Monday 5 January 2026, midnight UTC: a budget's week ends three days later."""


def _fitness() -> Program:
    return Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")


def _population(program: Program, *, customers: int = 60, world: str = "demo", seed: int = 2) -> Population:
    return populate(program, WORLDS[world], customers=customers, seed=seed, start=START)


def _uniform(program: Program) -> Mapping[str, Chooser]:
    return sole(Uniform(program.space))


def _same(one: Run, other: Run) -> None:
    np.testing.assert_array_equal(one.history.actions, other.history.actions)
    np.testing.assert_array_equal(one.rounds.rewards, other.rounds.rewards)
    np.testing.assert_array_equal(one.rounds.contexts, other.rounds.contexts)
    np.testing.assert_allclose(one.rounds.probabilities, other.rounds.probabilities, atol=1e-7)
    assert one.metrics == other.metrics


def test_a_run_is_the_same_in_slots_of_any_size() -> None:
    program = _tight(_fitness())
    runs = [rollout(_population(program), _uniform(program), days=10, slot=slot) for slot in (7, 4_096)]
    _same(*runs)


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    program = _tight(_fitness())
    population = _population(program)
    whole = rollout(population, _uniform(program), days=12)
    first = rollout(population, _uniform(program), days=5, slot=16)
    second = rollout(population, _uniform(program), days=7, since=first)
    parts = np.concatenate([first.history.actions, second.history.actions])
    np.testing.assert_array_equal(parts, whole.history.actions)
    joined = len(first.history.happened) + len(second.history.happened)
    assert joined == len(whole.history.happened)
    assert second.left.left.budget == whole.left.left.budget


def test_runs_of_several_policies_share_their_chance() -> None:
    program = _fitness()
    population = _population(program, customers=300)
    hold, rules = (
        rollout(population, sole(policy), days=3, logged=False).history
        for policy in (Hold(program.space), Rules.of(program))
    )
    alike = (hold.actions[0] == HOLD) & (rules.actions[0] == HOLD)

    def firsts(history: object) -> set[tuple[int, int, float]]:
        happened = history.happened  # type: ignore[attr-defined]
        rows = (happened.serial == 0) & alike[happened.customer]
        return set(
            zip(
                happened.customer[rows].tolist(), happened.event[rows].tolist(), happened.at[rows].tolist(), strict=True
            )
        )

    assert len(firsts(hold)) > 20
    assert firsts(hold) == firsts(rules)


def _tight(program: Program) -> Program:
    """Return a program whose budget lasts for a few nudges a week."""
    rules = replaced(program.guardrails, budget=Budget(amount=12.0))
    return replaced(program, guardrails=rules, experiment=Experiment())


def test_turns_are_those_of_the_engine_under_a_budget_that_runs_out() -> None:
    """The engine, given everybody in one batch with all that is left, draws the same actions from the same masks."""
    program = _tight(_fitness())
    population = _population(program)
    run = rollout(population, _uniform(program), days=8)
    optimizer, purse, ran_out = Optimizer(program, _uniform(program), SALT), run.opening, 0
    for day, turns in replay(run):
        for turn in turns:
            purse = purse.at(float(turn.cohort.at[0]))
            us = population.chance("draw", day, rows=turn.rows, columns=1)[:, 0]
            arms = (CHAMPION,) * len(turn.cohort)
            found = optimizer.choose(turn.cohort, arms=arms, us=us, shared=purse.left)
            np.testing.assert_array_equal(found.actions, run.history.actions[day, turn.rows])
            before, purse = purse, purse.after(found.actions)
            ran_out += before.left.budget >= 250 > purse.left.budget
            logged = run.rounds.take(run.rounds.at // DAY == (START + day * DAY) // DAY)
            if len(logged) == len(found.mask):
                np.testing.assert_array_equal(found.mask, logged.allowed)
    assert ran_out >= 2, "the budget should have run out in both weeks"


def test_a_stock_that_runs_out_is_never_overdrawn() -> None:
    program = small(GUARDRAILS)
    run = rollout(_population(program, customers=200), _uniform(program), days=20)
    levels = program.space.levels[run.history.actions.ravel(), 0]
    gifts = int((levels == program.space.incentives.index("gift")).sum())
    assert gifts == 2
    assert run.left.left.stock[program.space.incentives.index("gift")] == 0


def test_a_new_period_has_a_new_budget() -> None:
    program = _tight(_fitness())
    purse = Purse.full(program, at=START)
    coupon = program.space.levels[:, 0] == program.space.incentives.index("streak-discount")
    spent = purse.after(np.array([int(np.flatnonzero(coupon)[0])]))
    assert spent.left.budget == 1_200 - 400
    assert spent.at(START + 2 * DAY).left.budget == 800
    assert spent.at(START + 3 * DAY).left.budget == 1_200


def test_rewards_are_what_events_in_the_windows_are_worth_less_the_cost() -> None:
    program = _fitness()
    run = rollout(_population(program, customers=30, world="delayed"), _uniform(program), days=9)
    rounds, happened = run.rounds, run.history.happened
    seen = set()
    for row in range(len(rounds)):
        mine = happened.take(happened.customer == rounds.customers[row])
        total = -float(program.space.action_costs[rounds.actions[row]])
        for event, at in zip(mine.event.tolist(), mine.at.tolist(), strict=True):
            name = run.population.effects.events[event]
            declared = program.events[program.event_index[name]]
            if rounds.at[row] <= at < rounds.at[row] + program.longest_delay + declared.window:
                total += declared.value
                seen.add(name)
        assert rounds.rewards[row] == pytest.approx(total, abs=1e-9)
    assert len(seen) > 8
    counted = sum(c.sum() for c in run.dataset.events.values())
    assert counted > len(happened), "an outcome counts for every decision whose window has it"


def test_rounds_whose_windows_are_open_are_left_out() -> None:
    program = _fitness()
    run = rollout(_population(program), _uniform(program), days=8)
    end = START + 8 * DAY
    assert run.rounds.at.max() + program.evaluation_horizon <= end
    assert run.rounds.at.max() > START + 4 * DAY
    dataset = run.dataset
    assert dataset.matured == len(dataset) < dataset.total
    assert dataset.total == 8 * sum(arm != HOLDOUT for arm in run.arms)


def test_held_out_customers_are_never_nudged_and_never_learned_from() -> None:
    program = replaced(_fitness(), experiment=Experiment(holdout=0.3))
    run = rollout(_population(program, customers=200), _uniform(program), days=5)
    held = np.array([arm == HOLDOUT for arm in run.arms])
    assert 30 < held.sum() < 90
    assert (run.history.actions[:, held] == HOLD).all()
    assert not np.isin(run.rounds.customers, np.flatnonzero(held)).any()


def test_rounds_carry_the_vectors_that_were_drawn_from() -> None:
    program = _fitness()
    run = rollout(_population(program, customers=150), _uniform(program), days=10)
    rounds = run.rounds
    assert (rounds.propensities > 0).all()
    assert ((rounds.probabilities > 0) == rounds.allowed).all()
    held = rounds.actions == HOLD
    z = (held - rounds.probabilities[:, HOLD]).sum() / np.sqrt(
        (rounds.probabilities[:, HOLD] * (1 - rounds.probabilities[:, HOLD])).sum()
    )
    assert abs(z) < 4


def test_stages_after_are_those_of_the_next_decisions() -> None:
    program = _fitness()
    run = rollout(_population(program), _uniform(program), days=9)
    after, days = run.dataset.after, ((run.rounds.at - START) // DAY).astype(int)
    assert after is not None
    stages = run.history.stages
    np.testing.assert_array_equal(run.dataset.stages, stages[days, run.rounds.customers])
    np.testing.assert_array_equal(after.day_stages, stages[days + 1, run.rounds.customers])
    np.testing.assert_array_equal(after.horizon_stages, stages[days + 3, run.rounds.customers])


def test_metrics_count_what_happened_whatever_decision_it_counts_for() -> None:
    program = replaced(_fitness(), experiment=Experiment())
    fixed = FixedNudge(program.space, nudge=_first_nudge(program))
    run = rollout(_population(program, customers=100), sole(fixed), days=40, logged=False)
    found, happened, cost = run.metrics, run.history.happened, 0.0
    cost = float(program.space.action_costs[run.history.actions].sum())
    worth = sum(program.events[e].value for e in happened.event.tolist() if e < len(program.events))
    assert found.reward == pytest.approx((worth - cost) / 100)
    assert found.cost == pytest.approx(cost / 100)
    assert found.nudges == pytest.approx((run.history.actions != HOLD).mean() * 40)
    assert set(found.retained) == {30}
    active = happened.customer[(happened.at >= START + 23 * DAY) & (happened.at < START + 30 * DAY)]
    assert 0 < found.retained[30] <= len(np.unique(active)) / 100


def _first_nudge(program: Program):  # type: ignore[no-untyped-def]  # a nudge
    return program.space.nudge(1)


@pytest.mark.parametrize("world", WORLDS)
def test_any_program_runs_in_any_world(world: str) -> None:
    for name in SHIPPED:
        program = Program.parse(read(name), source=name)
        funded = WORLDS[world].program(program, customers=25)
        population = populate(funded, WORLDS[world], customers=25, seed=1, start=START)
        run = rollout(population, sole(Uniform(funded.space)), days=11)
        assert np.isfinite(run.rounds.rewards).all()
        assert (run.history.actions != HOLD).any()


def test_a_tight_budget_is_spent_and_never_overspent() -> None:
    program = WORLDS["tight-budget"].program(_fitness(), customers=300)
    assert program.guardrails.budget == Budget(amount=45.0)
    run = rollout(_population(program, customers=300, world="tight-budget"), _uniform(program), days=14)
    week = (run.history.asks // (7 * DAY)).astype(int)
    costs = program.space.action_costs[run.history.actions]
    spent = [costs[week == w].sum() for w in np.unique(week)]
    assert max(spent) <= 45.0
    assert spent[1] > 40.0


def test_what_a_run_did_not_keep_is_told_and_impossible_lengths_are_refused() -> None:
    program = small()
    population = _population(program, customers=2)
    with pytest.raises(ValueError, match="kept no rounds: pass logged=True"):
        _ = rollout(population, _uniform(program), days=1, logged=False).rounds
    with pytest.raises(ValueError, match=r"days = 0: from day 0 on, use 1 to 1055"):
        rollout(population, _uniform(program), days=0)


def test_progress_is_told_after_each_day() -> None:
    program, told = small(), list[tuple[int, int]]()
    rollout(
        _population(program, customers=2),
        _uniform(program),
        days=3,
        progress=lambda _, done, of: told.append((done, of)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_cohort_is_a_copy_or_a_view_but_never_the_hidden_truth() -> None:
    program = small()
    run = rollout(_population(program, customers=5), _uniform(program), days=2, logged=False)
    for _, turns in replay(run):
        for turn in turns:
            assert isinstance(turn.cohort, Cohort)
            assert not {"habit", "fatigue", "sated", "type"} & set(vars(turn.cohort))
