"""Logs that did not say their chances: what is estimated, what it is marked as, and how far it may be off."""

from pathlib import Path

import numpy as np
import pytest

from optimizer.actions import Floats, Ints, Nudge
from optimizer.program import Program
from policies.fixed import FixedNudge
from training import dataset, importing, propensities
from training import events as log
from training.evaluate import evaluate
from training.ope import Evidence
from training.promotion import judge
from training.propensities import GAMMAS, Pair, bounds, sensitivity
from training.registry import digest
from training.targets import always, baselines, deployed

MAP = """
name = "mine"
at = "2026-01-31"
[columns]
action = "action"
reward = "reward"
{more}
[actions]
none = "hold"
coupon = "coupon/warm/now"
[context]
age = "number"
"""


def confounded(path: Path, *, n: int = 6_000, seed: int = 3) -> Floats:
    """Write a log in which the old get coupons and buy anyway; return the true chance of a coupon (n,)."""
    rng = np.random.default_rng(seed)
    age = rng.normal(size=n)
    chance = 1 / (1 + np.exp(-1.2 * age))
    coupon = rng.random(n) < chance
    buys = rng.random(n) < np.clip(0.3 + 0.12 * age + 0.08 * coupon, 0, 1)
    rows = [f"{a:.6f},{'coupon' if c else 'none'},{int(b)}" for a, c, b in zip(age, coupon, buys, strict=True)]
    path.write_text("\n".join(["age,action,reward", *rows]) + "\n")
    return chance


def imported(folder: Path, *, more: str = "", n: int = 6_000) -> tuple[dataset.Dataset, Floats]:
    """Return what the import of such a log becomes, and the true chances of a coupon."""
    mapping = folder / "map.toml"
    mapping.write_text(MAP.format(more=more))
    chance = confounded(folder / "log.csv", n=n)
    found = importing.read(folder / "log.csv", mapping, archive=folder / "archive")
    assert found.propensities == ("logged" if "propensity" in more else "estimated")
    (text,) = (folder / "archive" / "program=mine" / "versions").glob("*.toml")
    return dataset.load(folder / "archive", Program.parse(text.read_text(), source="mine.toml")), chance


@pytest.fixture(scope="module")
def guessed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dataset.Dataset, Floats]:
    return imported(tmp_path_factory.mktemp("guessed"))


def test_estimated_chances_are_near_the_true_ones(guessed: tuple[dataset.Dataset, Floats]) -> None:
    found, chance = guessed
    order = np.array([int(name.split("-")[1]) - 1 for name in found.customers])[found.rounds.customers]
    assert np.abs(found.rounds.probabilities[:, 1] - chance[order]).mean() < 0.02


def test_a_model_has_not_seen_the_customer_it_is_asked_about() -> None:
    """With a context that names the customer, in-sample chances would be sure of everything."""
    customers = np.repeat(np.arange(40), 50)
    rng = np.random.default_rng(0)
    habit = rng.integers(0, 2, size=40)[customers]
    found = propensities.estimate(np.eye(40)[customers], habit, customers, k=2)
    assert found[np.arange(2_000), habit].mean() < 0.6


def test_every_row_and_everything_made_of_it_is_marked(guessed: tuple[dataset.Dataset, Floats], tmp_path: Path) -> None:
    found, _ = guessed
    assert found.estimated_propensities
    assert found.loggers == ("imported-estimated@log.csv",)
    result = evaluate(found, baselines(found.program))
    assert result.propensities == "estimated"
    assert next(c for c in result.checks if c.name == "propensities").status == "fail"


def test_logged_chances_are_not_marked(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, more="propensity = 0.5", n=400)
    assert not found.estimated_propensities
    assert evaluate(found, baselines(found.program)).propensities == "logged"


def test_weighting_by_estimated_chances_undoes_what_they_explain(guessed: tuple[dataset.Dataset, Floats]) -> None:
    """Buyers with a coupon are older: the plain difference is about 0.24, the truth is 0.08."""
    found, _ = guessed
    program = found.program
    result = evaluate(found, [*baselines(program), always(program.space, "coupon/warm/now")])
    got = result.score("always coupon/warm/now").over_hold
    assert got is not None
    rounds = found.rounds
    naive = rounds.rewards[rounds.actions == 1].mean() - rounds.rewards[rounds.actions == 0].mean()
    assert naive > 0.18
    assert got.at_level(0.999).low < 0.08 < got.at_level(0.999).high


def test_a_gate_never_promotes_on_them_unless_a_person_says_so(guessed: tuple[dataset.Dataset, Floats]) -> None:
    found, _ = guessed
    program = found.program
    coupon = FixedNudge(program.space, nudge=Nudge("coupon", "warm", "now"))
    candidate = deployed("coupons", coupon, program, version="1")
    result = evaluate(found, [*baselines(program), candidate])
    verdict = judge(result)
    assert verdict.choice == "not enough evidence"
    assert "estimated" in verdict.reasons[0].text
    accepted = judge(result, accept_estimated=True)
    assert accepted.promotes
    assert any("An unseen cause" in note for note in accepted.notes)
    assert result.score("coupons").sensitivity is not None


def extremes(e: Evidence, mu: Floats, *, gamma: float) -> tuple[float, float]:
    """Return the least and the most over every corner of the box of weights, by trying them all."""
    target = e.weights * mu
    odds = 1 / mu - 1
    ends = np.stack([target * (1 + odds / gamma), target * (1 + odds * gamma)])
    n = len(mu)
    corners = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    weights = ends[corners, np.arange(n)]
    values = e.expected.mean() + (weights @ e.residuals) / weights.sum(axis=1)
    return float(values.min()), float(values.max())


def test_bounds_are_the_extremes_over_all_weights_that_gamma_allows() -> None:
    rng = np.random.default_rng(5)
    mu = rng.uniform(0.1, 0.9, size=9)
    e = Evidence(rng.uniform(0, 1, size=9) / mu, rng.normal(size=9), rng.normal(size=9), rng.normal(size=9))
    for gamma in (1.0, 1.5, 3.0):
        assert bounds(e, mu, gamma=gamma) == pytest.approx(extremes(e, mu, gamma=gamma), abs=1e-12)


def pair(*, lift: float, reach: float = 0.02) -> Pair:
    """Return a target that is worth `lift` more than a reference of 0.5, from alternating rewards."""
    n: Ints = np.arange(4_000)
    mu = np.full(4_000, 0.5)
    rewards = np.where(n % 4 < 2, 0.5 + lift, 0.5 - lift) + np.where(n % 2, 0.1, -0.1)
    zero = np.zeros(4_000)
    target = Evidence(np.where(n % 4 < 2, 2.0, 0.0), rewards, zero, zero)
    return Pair(target, Evidence(np.ones(4_000), rewards, zero, zero), mu, reach, True)


def test_ranges_widen_with_gamma_and_the_verdict_flips_where_the_range_meets_zero() -> None:
    found = sensitivity(pair(lift=0.05), target="t")
    widths = [high - low for low, high in found.lift]
    assert widths[0] == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(widths) > 0).all()
    assert found.gammas == GAMMAS
    assert found.flips_at is not None
    low = bounds(pair(lift=0.05).target, np.full(4_000, 0.5), gamma=found.flips_at).low
    assert low - 0.5 - 0.02 == pytest.approx(0.0, abs=1e-3)


def test_what_was_never_shown_flips_at_once_and_what_is_large_never() -> None:
    assert sensitivity(pair(lift=0.01), target="t").flips_at == 1.0
    assert sensitivity(pair(lift=5.0), target="t").flips_at is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,action,reward\n1,none,0\n2,none,1\n", "column action: everybody got the same"),
        ("age,action,reward\n", "has no rows"),
    ],
)
def test_a_log_that_cannot_tell_is_refused_and_nothing_is_written(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(MAP.format(more=""))
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        importing.read(tmp_path / "log.csv", tmp_path / "map.toml", archive=tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_the_mark_is_in_the_archive_itself(tmp_path: Path) -> None:
    found, _ = imported(tmp_path, n=300)
    table = log.read(tmp_path / "archive", "mine")
    assert set(table["policy"].to_pylist()) == {"imported-estimated", None}
    assert len(digest(found)) == 16
