"""Estimators on real data: Hillstrom's e-mail experiment, whose truth is known because it was randomised."""

import csv
import gzip
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from optimizer.program import Program
from tests.training.worlds import rounds_of
from training import dataset, importing
from training.effects import Trial, centred, trial
from training.intervals import clustered
from training.ope import ESTIMATORS, Evidence, weigh
from training.reward_model import cross_fit

ARMS = ("No E-Mail", "Mens E-Mail", "Womens E-Mail")
SHA256 = "0e5893329d8b93cefecc571777672028290ab69865718020c78c7284f291aece"


class Hillstrom(NamedTuple):
    """The experiment: rounds under propensity 1/3, and two columns of the customers."""

    rounds: Rounds
    recency: Ints
    womens: Bools


@pytest.fixture(scope="module")
def hillstrom(shared_data: Path) -> Hillstrom:
    """Read the experiment as rounds: three actions, reward = visit."""
    path = shared_data / "hillstrom.csv.gz"
    if not path.is_file():
        pytest.skip("no hillstrom.csv.gz among the real data")
    raw = gzip.decompress(path.read_bytes())
    assert hashlib.sha256(raw).hexdigest() == SHA256
    rows = list(csv.DictReader(raw.decode().splitlines()))
    actions = np.array([ARMS.index(r["segment"]) for r in rows])
    visits = np.array([float(r["visit"]) for r in rows])
    recency = np.array([int(r["recency"]) for r in rows])
    womens = np.array([r["womens"] == "1" for r in rows])
    mens = np.array([r["mens"] == "1" for r in rows])
    rounds = rounds_of(np.full((len(rows), 3), 1 / 3), actions=actions, rewards=visits)
    contexts = np.column_stack([recency / 12, womens, mens, recency > 4]).astype(np.float64)
    return Hillstrom(Rounds(**{**vars(rounds), "contexts": contexts}), recency, womens)


def value(name: str, rounds: Rounds, target: Floats, q: Floats) -> float:
    """Return an estimate of a target (n, k)."""
    return float(ESTIMATORS[name].terms(weigh(rounds, target, q)).mean())


def always(n: int, arm: int) -> Floats:
    """Return the target that always does the same (n, 3)."""
    return np.tile(np.eye(3)[arm], (n, 1))


def test_published_policy_values_come_out_to_six_digits(hillstrom: Hillstrom) -> None:
    n = len(hillstrom.rounds)
    none = np.zeros((n, 3))
    womens_only = hillstrom.womens & (hillstrom.rounds.contexts[:, 2] == 0)
    personal = np.where(womens_only[:, None], np.eye(3)[2], np.eye(3)[1])
    assert value("ips", hillstrom.rounds, always(n, 1), none) == pytest.approx(0.182531, abs=5e-7)
    assert value("snips", hillstrom.rounds, always(n, 1), none) == pytest.approx(0.182757, abs=5e-7)
    assert value("ips", hillstrom.rounds, personal, none) == pytest.approx(0.184688, abs=5e-7)
    assert value("snips", hillstrom.rounds, personal, none) == pytest.approx(0.184233, abs=5e-7)
    terms = ESTIMATORS["ips"].terms(weigh(hillstrom.rounds, always(n, 1), none))
    assert clustered(terms, hillstrom.rounds.customers).error == pytest.approx(0.0028, abs=5e-5)


def keep(recency: Ints) -> Floats:
    """Return the chance (n, 3) to keep a row, by its action: who is contacted depends on how recently they bought."""
    return np.where(recency[:, None] > 4, [0.9, 0.2, 0.3], [0.2, 0.9, 0.5])


DRAWS = 300


@pytest.mark.slow
def test_a_confounded_log_gives_back_the_truth_and_the_naive_mean_does_not(hillstrom: Hillstrom) -> None:
    """Of 300 draws the mean bias stays within 3.3 standard errors; the naive mean is off by ten times as much."""
    rng = np.random.default_rng(0)
    rounds, chances = hillstrom.rounds, keep(hillstrom.recency)
    space = ActionSpace(("mens", "womens"), ("plain",), ("now",), features=("recency", "w", "m", "late"))
    n = len(rounds)
    kept_chance = chances[np.arange(n), rounds.actions]
    logged = (chances / chances.sum(axis=1, keepdims=True)).astype(np.float32)
    everything = Rounds(**{**vars(rounds), "probabilities": logged})
    estimates: dict[str, list[list[float]]] = {"ips": [], "snips": [], "dr": [], "naive": []}
    for _ in range(DRAWS):
        part = everything.take(np.flatnonzero(rng.random(n) < kept_chance))
        model = cross_fit(part, space, folds=2)
        q, mu = model.predict(part), part.propensities
        for name in ("ips", "snips", "dr"):
            estimates[name].append([_mean(name, part, q, mu, arm) for arm in range(3)])
        means = np.bincount(part.actions, weights=part.rewards) / np.bincount(part.actions)
        estimates["naive"].append(means.tolist())
    bias = {name: (np.array(x) - _truth(hillstrom)).mean(axis=0) for name, x in estimates.items()}
    for name in ("ips", "snips", "dr"):
        spread = np.std(estimates[name], axis=0)
        assert (np.abs(bias[name]) <= 3.3 * spread / np.sqrt(DRAWS)).all(), name
        assert (np.abs(bias["naive"][:2]) >= 10 * np.abs(bias[name][:2])).all(), name


def _mean(name: str, part: Rounds, q: Floats, mu: Floats, arm: int) -> float:
    """Return an estimate of always doing the same, without the (n, k) target."""
    rows = np.arange(len(part))
    weights = (part.actions == arm) / mu
    return float(ESTIMATORS[name].terms(Evidence(weights, part.rewards, q[rows, part.actions], q[:, arm])).mean())


def _truth(hillstrom: Hillstrom) -> list[float]:
    """Return each arm's mean in the mix of recencies that is kept: the whole experiment, reweighted by it."""
    rounds = hillstrom.rounds
    kept = keep(hillstrom.recency).mean(axis=1)
    return [float(np.average(rounds.rewards[rounds.actions == a], weights=kept[rounds.actions == a])) for a in range(3)]


class Steps(NamedTuple):
    """HeartSteps V1: decision points at which somebody could be nudged (Klasnja et al., 2019)."""

    user: Ints
    day: Floats
    sent: Bools
    before: Floats
    after: Floats


@pytest.fixture(scope="module")
def steps(shared_data: Path) -> Steps:
    path = shared_data / "heartsteps.csv.gz"
    if not path.is_file():
        pytest.skip("no heartsteps.csv.gz among the real data")
    rows = [r for r in csv.DictReader(gzip.decompress(path.read_bytes()).decode().splitlines()) if r["avail"] == "TRUE"]
    assert len(rows) == 6_061
    return Steps(
        user=np.array([int(r["user"]) for r in rows]),
        day=np.array([float(r["study.day.nogap"]) for r in rows]),
        sent=np.array([r["send"] == "TRUE" for r in rows]),
        before=np.array([float(r["jbsteps30pre.log"]) for r in rows]),
        after=np.array([float(r["jbsteps30.log"]) for r in rows]),
    )


def drawn(steps: Steps) -> Trial:
    """Return the trial: a suggestion with chance 0.6."""
    return Trial(steps.after, steps.sent, np.full(len(steps.user), 0.6), steps.before[:, None], steps.user)


def test_the_published_effect_of_a_suggestion_comes_out_clustered_by_user(steps: Steps) -> None:
    (effect,) = centred(drawn(steps))
    assert (round(effect.value, 4), round(effect.error, 4)) == (0.1312, 0.0652)
    by_moment = centred(drawn(steps)._replace(customers=np.arange(len(steps.user))))[0].error
    assert round(by_moment, 4) == 0.0718  # as if each moment were somebody else's


def test_novelty_wears_off_as_published(steps: Steps) -> None:
    now, by_day = centred(drawn(steps), {"day": steps.day})
    assert (round(by_day.value, 4), round(by_day.error, 4)) == (-0.0185, 0.0059)
    assert round(float(np.exp(now.value)), 2) == 1.66


def test_the_trial_can_be_imported_and_gives_the_same_effect(steps: Steps, tmp_path: Path) -> None:
    """Several rows a customer, minutes of a day apart: each keeps its own reward and its own chance."""
    lines = ["user,at,sent,chance,before,after"]
    for i in range(len(steps.user)):
        chance = 0.6 if steps.sent[i] else 0.4
        at = 1_437_500_000 + 86_400 * int(steps.day[i])
        lines.append(f"u{steps.user[i]},{at},{int(steps.sent[i])},{chance},{steps.before[i]},{steps.after[i]}")
    (tmp_path / "steps.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "map.toml").write_text(
        'name = "steps"\nat = "at"\n[columns]\naction = "sent"\nreward = "after"\npropensity = "chance"\n'
        'customer = "user"\n[actions]\n0 = "hold"\n1 = "suggestion/plain/now"\n[context]\nbefore = "number"\n'
    )
    read = importing.read(tmp_path / "steps.csv", tmp_path / "map.toml", archive=tmp_path / "archive")
    assert (read.rounds, read.customers) == (6_061, 37)
    (text,) = (tmp_path / "archive" / "program=steps" / "versions").glob("*.toml")
    program = Program.parse(text.read_text(), source="steps.toml")
    rounds = dataset.load(tmp_path / "archive", program).rounds
    assert rounds.rewards.sum() == pytest.approx(steps.after.sum())
    before = rounds.contexts[:, [program.features.index("before")]]
    (effect,) = centred(trial(rounds, before=before))
    assert (round(effect.value, 4), round(effect.error, 4)) == (0.1312, 0.0652)
