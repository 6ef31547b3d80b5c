"""What simulated customers look like to the policy is what the service would have kept of each of them."""

from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.actions import HOLD, Floats
from optimizer.customer import (
    Cohort,
    Customer,
    Sent,
    cohort,
    deliveries,
    encode,
    features,
    local_day,
    new_customer,
    utc_offset,
)
from optimizer.guardrails import Shared, allowed, is_off_beat
from optimizer.journey import follow, progress, reached, receive, settle
from optimizer.program import DAY, PROMPT, Cadence, Duration, Program, Span
from optimizer.programs import read
from policies.fixed import Uniform
from simulations import journeys
from simulations.journeys import Happenings, arrive, beginning, nearness
from simulations.population import Population, populate
from simulations.rollout import Asking, Run, ask, facing, live, rollout, slots, sole
from simulations.worlds import WORLDS
from tests.small_program import small

START = 1_774_569_600.0
"""Midnight UTC before the clocks go forward in Europe, on 29 March 2026, with some days to go."""

LADDER = """
[guardrails]
consent = "opt-out"
cap_per_day = 1
cap_per_week = 4
cooldown = "12h"
budget = { amount = 40, period = "1w" }
"""


def _shipped(name: str) -> Program:
    return Program.parse(read(name), source=f"{name}.toml")


def _to_the_beat() -> Program:
    """A shipped program that keeps a rhythm at the member's own hour, but for a quick win."""
    program = _shipped("fitness-coaching")
    cadence = Cadence(every=Span(DAY), within=Duration(6 * 3_600.0), hour_within=Span(3 * 3_600.0))
    off_beat = [replaced(i, off_beat=i.name == "achievement-badge") for i in program.incentives]
    return replaced(
        program,
        name="to-the-beat",
        incentives=tuple(off_beat),
        guardrails=replaced(program.guardrails, cadence=cadence),
    )


def _programs() -> list[Program]:
    """Caps and a budget; a ladder; a streak of some events, an anniversary and comebacks; a rhythm."""
    return [small(LADDER), *map(_shipped, ("fitness-coaching", "loyalty-loop")), _to_the_beat()]


class _Service:
    """Keeps customers one at a time, with the domain's own functions."""

    def __init__(self, population: Population) -> None:
        self.population = population
        self.program = population.program
        self.customers = [self._introduced(i) for i in range(len(population))]

    def _introduced(self, i: int) -> Customer:
        new = new_customer(self.program, self.population.name(i), at=self.population.start)
        zone = self.population.zones[self.population.people.zone[i]]
        return Customer(
            customer_id=new.customer_id,
            enrolled_at=new.enrolled_at,
            stage=new.stage,
            time_zone=zone,
            attributes=self.population.attributes_of(i),
        )

    def report(self, batches: list[Happenings]) -> None:
        if not batches:
            return
        names = (*self.population.effects.events, "shown")
        happened = Happenings.concatenate(batches)
        ordered = happened.take(np.lexsort((happened.event, happened.at, happened.customer)))
        for who, event, at, value in zip(
            ordered.customer.tolist(), ordered.event.tolist(), ordered.at.tolist(), ordered.value.tolist(), strict=True
        ):
            settled = settle(self.program, self.customers[who], at=at)
            reported = None if np.isnan(value) else value
            self.customers[who] = follow(self.program, settled, names[event], at=at, value=reported)

    def ask(self, asking: Asking) -> None:
        people = range(asking.rows.start, asking.rows.stop)
        for i, at in zip(people, asking.cohort.at.tolist(), strict=True):
            self.customers[i] = settle(self.program, self.customers[i], at=at)

    def receive(self, asking: Asking, run: Run, *, deliver_at: Floats) -> None:
        actions = run.history.actions[asking.day - run.first, asking.rows]
        space = self.program.space
        for row in np.flatnonzero(actions != HOLD).tolist():
            who, nudge = row + asking.rows.start, space.nudge(int(actions[row]))
            assert nudge is not None
            at = float(deliver_at[row, space.timings.index(nudge.timing)])
            sent = Sent(
                decision_id="d",
                incentive=nudge.incentive,
                deliver_at=at,
                day=local_day(at, utc_offset(self.customers[who].time_zone, at)),
                cost=0,
                period=0,
                expires_at=at,
                off_beat=is_off_beat(self.program, self.customers[who], at=float(asking.cohort.at[row]), deliver_at=at),
            )
            self.customers[who] = receive(self.program, self.customers[who], sent)


@pytest.mark.parametrize("program", _programs(), ids=lambda p: p.name)
def test_columns_are_what_the_service_keeps_of_each_customer(program: Program) -> None:
    population = populate(program, WORLDS["fatigue"], customers=40, seed=3, start=START)
    run = rollout(population, sole(Uniform(program.space)), days=30, logged=False)
    service, stages, hours, wins = _Service(population), set(), 0, 0
    for turn in _days(run, service):
        service.ask(turn)
        kept = [service.customers[i] for i in range(turn.rows.start, turn.rows.stop)]
        theirs = cohort(program, kept, at=turn.cohort.at.tolist())
        ours, expected = (encode(program, features(program, c)) for c in (turn.cohort, theirs))
        np.testing.assert_allclose(ours, expected, atol=1e-9, err_msg=f"day {turn.day}")
        for name in ("consented", "paused_until", "last_step", "last_macro", "streak", "stage"):
            np.testing.assert_array_equal(getattr(turn.cohort, name), getattr(theirs, name), err_msg=name)
        assert _nudges(turn.cohort) == _nudges(theirs)
        _same_rhythm(program, turn.cohort, theirs)
        _same_milestones(turn, kept)
        stages |= set(turn.cohort.stage.tolist())
        hours += int(np.isfinite(turn.cohort.own_hour).sum())
        wins += int((turn.cohort.at - turn.cohort.triggered <= PROMPT).sum())
        service.receive(turn, run, deliver_at=deliveries(program, turn.cohort)[0])
    slow = {"loyalty-loop": 1}.get(program.name, 0)  # one drifts after 45 days without a step
    assert len(stages) == len(program.stages) - slow, "the run should have visited every stage"
    if program.guardrails.cadence is not None:
        assert hours, "somebody's own hour should be known"
        assert wins, "somebody should ask just after a quick win"


def _same_rhythm(program: Program, ours: Cohort, theirs: Cohort) -> None:
    """The same hours and requests, and the same mask: the last beat is told by what it blocks."""
    np.testing.assert_array_equal(ours.triggered, theirs.triggered)
    if program.guardrails.cadence is not None and program.guardrails.cadence.hour_within is not None:
        np.testing.assert_allclose(ours.own_hour, theirs.own_hour, atol=1e-6)
    shared = Shared.unlimited(program)
    ours_said, theirs_said = (allowed(program, rows, shared=shared) for rows in (ours, theirs))
    np.testing.assert_array_equal(ours_said.timing, theirs_said.timing)
    np.testing.assert_array_equal(ours_said.incentive, theirs_said.incentive)


def _same_milestones(turn: Asking, kept: list[Customer]) -> None:
    """The same have been reached, and the nearest of the others is as near."""
    program, rows, at = turn.population.program, turn.rows, turn.cohort.at
    expected = [[reached(m, c) for m in program.milestones] for c in kept]
    ours = journeys.reached(turn.population, turn.state, who=rows, at=at)
    np.testing.assert_array_equal(ours, np.array(expected, dtype=np.bool_).reshape(ours.shape))
    for customer, share in zip(kept, nearness(turn.population, turn.state, rows=rows, at=at).tolist(), strict=True):
        nearest = progress(program, customer)
        time_alone = nearest is not None and nearest.milestone in {m.title for m in program.anniversaries}
        if nearest is None or (time_alone and nearest.done < 0.9 * nearest.of):
            assert share == 0.0
        else:
            assert share == pytest.approx(nearest.done / nearest.of)


def _days(run: Run, service: _Service) -> Iterator[Asking]:
    """Live a run again, and tell the service what reaches the population's own copy before each ask."""
    population, state = run.population, run.begin.copy()
    for day in range(run.first, run.first + run.days):
        for rows in slots(population, day=day, size=16):
            due = state.due(rows=rows, day=day - 1)
            for batch in due:
                state.keep(batch, rows=rows, day=day - 1)
            service.report(due)
            asking = ask(population, state, rows=rows, day=day)
            yield asking
            now = facing(asking, deliveries(population.program, asking.cohort)[0])
            live(asking, now, run.history.actions[day - run.first, rows])


def _nudges(rows: Cohort) -> list[list[tuple[float, int, int]]]:
    """Return the nudges that each customer is known to have been sent, in order: when, which day, which incentive."""
    columns = (rows.sent_at.tolist(), rows.sent_day.tolist(), rows.sent_incentive.tolist())
    return [sorted(n for n in zip(*row, strict=True) if n[0] > -np.inf) for row in zip(*columns, strict=True)]


def test_two_happenings_of_a_customer_arrive_in_order_of_time() -> None:
    program = small()
    population = populate(program, WORLDS["demo"], customers=1, seed=1, start=START)
    run = rollout(population, sole(Uniform(program.space)), days=1, logged=False)
    state, ask = run.begin.copy(), float(population.asks(1)[0])
    index = program.event_index
    later, sooner = (ask - 3_600.0, index["upgraded"]), (ask - 7_200.0, index["step"])
    batch = Happenings(
        customer=np.zeros(2, dtype=np.intp),
        event=np.array([later[1], sooner[1]]),
        at=np.array([later[0], sooner[0]]),
        value=np.full(2, np.nan),
        twice=np.zeros(2, dtype=np.bool_),
        serial=np.zeros(2, dtype=np.intp),
    )
    state.pending.clear()
    state.keep(batch, rows=slice(0, 1), day=0)
    arrive(population, state, rows=slice(0, 1), day=1)
    assert state.last_step[0] == later[0]
    assert state.steps_since[0] == later[0]
    assert state.counts[0, [index["step"], index["upgraded"]]].tolist() == [1, 1]
    assert state.last_macro[0] == later[0]


def test_a_nudge_that_is_shown_lets_a_lapse_be_noticed_as_in_the_service() -> None:
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    population = populate(program, WORLDS["demo"], customers=1, seed=1, start=START)
    state, ask, shown = beginning(population), float(population.asks(40)[0]), len(population.effects.events)
    state.pending.clear()
    state.stage[0], state.last_step[0] = program.stage_index["advocate"], ask - 30 * DAY
    batch = Happenings(
        customer=np.zeros(1, dtype=np.intp),
        event=np.array([shown]),
        at=np.array([ask - 3_600.0]),
        value=np.full(1, np.nan),
        twice=np.zeros(1, dtype=np.bool_),
        serial=np.full(1, 39),
    )
    state.keep(batch, rows=slice(0, 1), day=39)
    arrive(population, state, rows=slice(0, 1), day=40)
    kept = Customer(customer_id="c", enrolled_at=START, stage="advocate", last_step_at=ask - 30 * DAY)
    kept = follow(program, settle(program, kept, at=ask - 3_600.0), "shown", at=ask - 3_600.0)
    kept = settle(program, kept, at=ask)
    assert kept.stage == "at-risk"
    assert program.stages[state.stage[0]].name == kept.stage


def test_history_leads_to_every_stage_that_events_lead_to() -> None:
    program = Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")
    population = populate(program, WORLDS["demo"], customers=400, seed=2, start=START)
    run = rollout(population, sole(Uniform(program.space)), days=1, logged=False)
    reached = {program.stages[i].name for i in run.history.stages[0].tolist()}
    assert reached == {s.name for s in program.stages}
    assert run.history.happened.at.min() >= population.start, "history is no outcome of the run"


def test_a_day_is_local_across_the_change_of_clocks() -> None:
    population = populate(small(), WORLDS["demo"], customers=50, seed=1, start=START)
    moments = START + np.arange(0.0, 4 * DAY, 900.0)
    for customer in range(50):
        zone = population.zones[population.people.zone[customer]]
        expected = [t + utc_offset(zone, t) for t in moments.tolist()]
        np.testing.assert_array_equal(population.local(np.full(len(moments), customer), moments), expected)
