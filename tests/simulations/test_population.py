"""Simulated customers follow from the seed alone, and only attributes show who they are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from optimizer.actions import Floats
from optimizer.program import Program
from optimizer.programs import SHIPPED, read
from simulations.effects import Draws, effects
from simulations.population import Population, populate
from simulations.worlds import WORLDS, World, changed, read_settings, world_of
from tests.small_program import small

START = 1_767_571_200.0


def _fitness() -> Program:
    return Program.parse(read("fitness-coaching"), source="fitness-coaching.toml")


def _population(*, customers: int = 2_000, seed: int = 1, world: str = "demo") -> Population:
    return populate(_fitness(), WORLDS[world], customers=customers, seed=seed, start=START)


def test_chance_is_the_same_in_whatever_slices_it_is_asked_for() -> None:
    population = _population(customers=100)
    whole = population.chance("respond", 3, rows=slice(0, 100), columns=7)
    parts = [population.chance("respond", 3, rows=slice(a, b), columns=7) for a, b in ((0, 1), (1, 64), (64, 100))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("purpose", "day", "fork", "seed"),
    [("draw", 3, 0, 1), ("respond", 4, 0, 1), ("respond", 3, 1, 1), ("respond", 3, 0, 2)],
)
def test_chance_of_another_purpose_day_fork_or_seed_is_another(purpose: str, day: int, fork: int, seed: int) -> None:
    def numbers(*, purpose: str = "respond", day: int = 3, fork: int = 0, seed: int = 1) -> Floats:
        population = _population(customers=500, seed=seed)
        return population.chance(purpose, day, rows=slice(0, 500), columns=2, fork=fork).ravel()

    correlation = np.corrcoef(numbers(), numbers(purpose=purpose, day=day, fork=fork, seed=seed))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(1_000)  # four standard errors: one false alarm in 16,000


def test_an_attribute_shows_the_type_as_faithfully_as_the_world_says() -> None:
    people = _population(customers=4_000).people
    channel = people.attributes["channel"].astype(int)
    known = channel >= 0
    own = (channel[known] == people.type[known] % 3).mean()
    expected = WORLDS["demo"].fidelity + (1 - WORLDS["demo"].fidelity) / 3
    assert own == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / known.sum()))
    assert (~known).mean() == pytest.approx(WORLDS["demo"].missing, abs=0.012)


def test_an_attribute_named_after_timings_shows_the_hour_at_which_nudges_do_most() -> None:
    people = _population().people
    hours = people.attributes["trains_in"]
    peaks = [people.peak[hours == i].mean() for i in range(3)]
    assert peaks == sorted(peaks)
    assert peaks[2] - peaks[0] > 5.0


def test_part_of_activity_is_shown_by_no_attribute() -> None:
    population = _population(customers=4_000)
    people = population.people
    columns = [np.nan_to_num(c.astype(np.float64)) for c in people.attributes.values()]
    design = np.column_stack([np.ones(len(people)), *columns, *[c == i for c in columns for i in range(-1, 4)]])
    fitted = design @ np.linalg.lstsq(design, people.activity, rcond=None)[0]
    explained = 1.0 - (people.activity - fitted).var() / people.activity.var()
    assert 0.15 < explained < 1.0 - WORLDS["demo"].hidden + 0.05


def test_a_level_does_the_same_whatever_other_levels_there_are() -> None:
    program, world = small(), WORLDS["pairwise"]
    whole = effects(program, world, seed=7)
    rest = replaced(program, tones=program.tones[1:], incentives=program.incentives[::-1])
    part = effects(rest, world, seed=7)
    for index, name in enumerate(rest.space.names[1:], start=1):
        same = program.space.names.index(name)
        np.testing.assert_allclose(part.shift[:, index], whole.shift[:, same])
    np.testing.assert_allclose(part.tones[:, 0], whole.tones[:, 1])
    np.testing.assert_allclose(part.priced[:, ::-1], whole.priced)


def test_effects_of_another_seed_are_others() -> None:
    program = _fitness()
    one, two = (effects(program, WORLDS["demo"], seed=seed).tones for seed in (1, 2))
    assert np.abs(one - two).max() > 0.1


def test_levels_do_nothing_or_harm_as_often_as_the_world_says() -> None:
    world = replace(WORLDS["demo"], null=0.55, harm=0.2)
    does = np.array([Draws(3, world).level(2.0, "tone", f"level {i}") for i in range(4_000)])
    assert (does == 0).mean() == pytest.approx(0.55, abs=4 * np.sqrt(0.55 * 0.45 / 4_000))
    some = does[does != 0]
    assert (some < 0).mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / len(some)))
    assert 1.0 <= np.abs(some).min() < 1.05
    assert 2.95 < np.abs(some).max() <= 3.0


def test_each_level_of_each_factor_has_an_effect_of_its_own() -> None:
    program = _fitness()
    world = replace(WORLDS["demo"], null=0.0, timing=1.0, tone=1.0, incentive=1.0, affinity=0.5)
    found = effects(program, world, seed=1)
    grid = found.shift[0, 1:].reshape(program.space.shape)
    assert len(np.unique(grid[0, 0])) == len(program.timings)
    assert len(np.unique(grid[:, 0, 0] + found.priced[0])) == len(program.incentives)
    assert len(np.unique(found.tones)) == found.tones.size


def test_names_are_found_again_and_others_refused() -> None:
    population = _population(customers=30, seed=5)
    assert [population.index(population.name(i)) for i in (0, 29)] == [0, 29]
    for name in ("sim-5-30", "sim-4-1", "ada"):
        with pytest.raises(ValueError, match=r"is none of 30 customers of seed 5: expected 'sim-5-0'"):
            population.index(name)


def test_what_is_unknown_of_a_customer_is_left_out() -> None:
    population = _population(customers=400)
    shown = [population.attributes_of(i) for i in range(400)]
    declared = {a.name for a in population.program.attributes}
    assert all(set(s) <= declared for s in shown)
    assert any(set(s) < declared for s in shown)
    assert {type(s["has_friends"]) for s in shown if "has_friends" in s} == {bool}
    assert {s["channel"] for s in shown if "channel" in s} == {"in-app", "push", "email"}


def test_an_empty_population_or_a_crooked_start_is_refused() -> None:
    with pytest.raises(ValueError, match="customers = 0: simulate at least 1"):
        _population(customers=0)
    with pytest.raises(ValueError, match=r"start = 1767571201.0 is not on a quarter of an hour: use 1767571200.0"):
        populate(_fitness(), WORLDS["demo"], customers=1, seed=1, start=START + 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_any_shipped_program_can_be_populated(name: str) -> None:
    program = Program.parse(read(name), source=name)
    population = populate(program, WORLDS["demo"], customers=50, seed=1, start=START)
    base = population.effects.base
    assert not np.isnan(base).any()
    assert (base[:, program.event_index[program.goal]] > -np.inf).any(), "the goal can be reached"


def test_impossible_settings_are_refused_with_the_key_and_the_mend() -> None:
    for settings, words in (
        ({"null": 1.5}, r"world 'odd': null = 1.5 is no share: use 0 to 1"),
        ({"decay": 1.0}, r"world 'odd': decay = 1.0 is impossible: what is left of fatigue is 0 or more and below 1"),
        ({"everyday": 0.95}, r"everyday = 0.95 is impossible: a chance within a day is above 0 and below 0.9"),
        ({"zones": (("UTC", 0.5),)}, r"the shares of zones add up to 0.5: make it 1"),
        ({"incentive": -1.0}, r"incentive = -1.0 is impossible: use a number of 0 or more"),
        ({"lift": float("nan")}, r"lift = nan is impossible: use a finite number"),
        ({"lift": "much"}, r"lift = 'much' is impossible: use a finite number"),
        ({"budget": -1.0}, r"budget = -1.0 is impossible: use a number of 0 or more"),
        ({"zones": (("Mars/Base", 1.0),)}, r"zones has 'Mars/Base', which is no time zone: use an IANA name"),
    ):
        with pytest.raises(ValueError, match=words):
            World("odd", "nothing", **settings)


def test_settings_that_are_typed_change_a_world_or_are_refused() -> None:
    demo = WORLDS["demo"]
    found = changed(demo, read_settings(["leaving=0.01", "outage = [20, 7]", "delays=[[1.0, 0.4], [24.0, 0.6]]"]))
    assert (found.leaving, found.outage, found.delays) == (0.01, (20, 7), ((1.0, 0.4), (24.0, 0.6)))
    assert found.lift == demo.lift
    for typed, words in (
        (["leavin=0.01"], "world 'demo' has no setting 'leavin': did you mean leaving"),
        (["leaving"], "setting 'leaving' has no value: write it as key=value"),
        (["leaving=much"], "setting leaving = 'much' is no value"),
        (["leaving=7"], "world 'demo': leaving = 7 is impossible: a chance is 0 or more"),
        (["outage=3"], "outage = 3: .*; give it the form that it has in the world"),
    ):
        with pytest.raises(ValueError, match=words):
            changed(demo, read_settings(typed))


def test_a_fitted_world_is_read_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"started_from": "demo", "settings": {"lift": 0.7}, "moments": []}), encoding="utf-8")
    world = world_of(str(file))
    assert (world.name, world.lift, world.tone) == ("mine", 0.7, WORLDS["demo"].tone)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.json is no fitted world"):
        world_of(str(file))
