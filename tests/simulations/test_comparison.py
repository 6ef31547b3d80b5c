"""Policies meet the same customers; what is said of them has intervals, and the page says where promises fall short."""

import re
from dataclasses import replace

import numpy as np
import pytest

from optimizer.program import Program
from policies.fixed import Hold
from simulations import comparison, page
from simulations.comparison import Compared, Comparison, Spread, ratio, spread
from simulations.contenders import contender
from simulations.worlds import WORLDS
from tests.small_program import small

NAMES = ("hold", "fixed", "uniform", "clicks", "patient", "best")


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Six policies on a hundred customers of the small program, twice."""
    world = replace(WORLDS["demo"], budget=None)
    return comparison.run(_program(), [world], policies=NAMES, customers=60, days=30, seed=3, replications=2)


def _program() -> Program:
    return small()


def _of(found: Comparison, name: str) -> Compared:
    return next(p for p in found.worlds[0].policies if p.policy == name)


def test_the_same_seed_gives_the_same_figures() -> None:
    runs = [
        comparison.run(_program(), ["demo"], policies=["hold", "uniform"], customers=30, days=3, seed=5)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_no_nudge_means_hardly_any_message_and_no_cost(found: Comparison) -> None:
    held, chance = _of(found, "hold").measured, _of(found, "uniform").measured
    assert held.messages.value < 0.1 < chance.messages.value
    assert held.cost.value < 0.1 < chance.cost.value


def test_the_simulators_best_has_no_regret_and_chance_has_some(found: Comparison) -> None:
    assert _of(found, "best").measured.regret.value == 0.0
    assert _of(found, "uniform").measured.regret.value > 0.02


def test_patience_sends_fewer_messages_than_greed_for_clicks(found: Comparison) -> None:
    against = next(a for a in _of(found, "patient").against if a.yardstick == "clicks")
    assert against.messages.value < 0


def test_differences_from_a_yardstick_are_those_of_the_means(found: Comparison) -> None:
    for one in found.worlds[0].policies:
        for against in one.against:
            other = _of(found, against.yardstick).measured
            assert against.reward.value == pytest.approx(one.measured.reward.value - other.reward.value)
            assert against.messages.value == pytest.approx(one.measured.messages.value - other.messages.value)
            assert against.messages_ratio.value == pytest.approx(one.measured.messages.value / other.messages.value)


def test_each_figure_has_an_interval_around_it_and_one_replication_has_none(found: Comparison) -> None:
    for key in ("reward", "messages", "momentum", "regret", "opted_out"):
        x = getattr(_of(found, "uniform").measured, key)
        assert x.low <= x.value <= x.high
    alone = comparison.run(_program(), ["demo"], policies=["hold"], customers=20, days=3, seed=5)
    assert _of(alone, "hold").measured.reward.low is None


def test_retention_is_measured_from_the_day_the_policy_starts(found: Comparison) -> None:
    assert set(_of(found, "hold").measured.retention) == {"day 30"}
    assert 0.0 < _of(found, "hold").measured.retention["day 30"].value <= 1.0


def test_segments_cover_everybody_whose_segment_is_known(found: Comparison) -> None:
    segments = _of(found, "patient").segments
    assert {s.segment for s in segments} == {"free", "gold"}
    assert 0.85 < sum(s.customers for s in segments) <= 1.0
    total = sum(s.customers * s.messages.value for s in segments) / sum(s.customers for s in segments)
    assert total == pytest.approx(_of(found, "patient").measured.messages.value, rel=0.25)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """2,000 samples of five: 95 % less four standard errors of the share."""
    chance = np.random.default_rng(1)
    inside = [(s := spread(x)).low <= 0.0 <= s.high for x in chance.normal(size=(2_000, 5))]  # type: ignore[operator]
    assert np.mean(inside) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 2_000))


def test_a_ratio_has_its_interval_and_a_ratio_to_nothing_is_infinite() -> None:
    chance = np.random.default_rng(2)
    base = chance.uniform(0.5, 1.5, size=(400, 8))
    inside = [
        (r := ratio(2.0 * b + chance.normal(0, 0.1, size=8), b)).low <= 2.0 <= r.high  # type: ignore[operator]
        for b in base
    ]
    assert np.mean(inside) > 0.9
    assert ratio([1.0], [0.0]).value == float("inf")
    assert ratio([0.0], [0.0]).value == 1.0


def test_the_page_says_where_a_promise_falls_short(found: Comparison) -> None:
    told = page.promises(found.worlds[0])
    texts = " ".join(p.text for p in told)
    assert "Patient" in texts
    assert "Greedy for clicks" in texts
    assert told[-1].text.startswith("Retention at day 90 was not measured")  # in thirty days
    for promise in told[:-1]:
        times = float(re.findall(r": ([\d.]+|inf) times", promise.text)[0])
        assert ("falls short" in promise.text) == (times < 2.0) == (promise.status == "fail")


def test_the_page_is_whole_in_itself_and_names_every_policy_and_figure(found: Comparison) -> None:
    html = page.html(found, command="nudge simulate demo")
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    for words in (
        "Best single nudge for all",
        "Opted out",
        "Regret",
        "Still active at day 30",
        "plan: gold",
        "nudge simulate demo",
    ):
        assert words in html
    assert html.count("<svg") >= 6 * 9


def test_metrics_by_name_hold_each_policy(found: Comparison) -> None:
    flat = comparison.figures(found)
    assert flat["demo/hold/reward"] == _of(found, "hold").measured.reward.value
    assert len(comparison.table(found)) == len(NAMES)


def test_a_saved_policy_takes_part_by_its_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]  # a folder
    folder = tmp_path / "mine"
    folder.mkdir()
    Hold(_program().space).save(folder)
    rows = comparison.run(_program(), ["demo"], policies=["hold", str(folder)], customers=20, days=3, seed=5)
    one, other = rows.worlds[0].policies
    assert one.measured == other.measured


def test_what_there_is_not_is_refused_with_what_there_is() -> None:
    asked = {"customers": 20, "days": 3, "seed": 1}
    with pytest.raises(ValueError, match=r"there is no world 'mars': expected one of demo, calibrated"):
        comparison.run(_program(), ["mars"], **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"there is no policy 'oracle': expected some of hold, fixed"):
        contender("oracle")
    with pytest.raises(ValueError, match="customers = 3: simulate at least 10"):
        comparison.run(_program(), ["demo"], customers=3, days=3, seed=1)
    with pytest.raises(ValueError, match="days = 0: simulate at least 1"):
        comparison.run(_program(), ["demo"], customers=30, days=0, seed=1)


def test_the_sentence_does_not_call_chance_a_win() -> None:
    sure, unsure = Spread(value=1.0, low=0.5, high=1.5), Spread(value=1.0, low=-0.5, high=2.5)
    played = comparison.run(_program(), ["null"], policies=["hold", "uniform"], customers=60, days=5, seed=5).worlds[0]
    assert "Holding still" in page.sentence(played)
    assert page._said(sure, signed=True) == "+1.00 (+0.50 to +1.50)"
    assert page._said(unsure, signed=True) == "+1.00 (\N{MINUS SIGN}0.50 to +2.50)"
