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
from tests.training.worlds import rounds_of
from training.intervals import clustered
from training.ope import ESTIMATORS, weigh
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


@pytest.mark.slow
def test_a_confounded_log_gives_back_the_truth_and_the_naive_mean_does_not(hillstrom: Hillstrom) -> None:
    """Of 40 draws the mean bias stays within 3.3 standard errors; the naive mean is off by ten times as much."""
    rng = np.random.default_rng(0)
    rounds, chances = hillstrom.rounds, keep(hillstrom.recency)
    space = ActionSpace(("mens", "womens"), ("plain",), ("now",), features=("recency", "w", "m", "late"))
    found: dict[str, list[list[float]]] = {"ips": [], "snips": [], "dr": [], "naive": [], "truth": []}
    n = len(rounds)
    for _ in range(40):
        kept = rng.random(n) < chances[np.arange(n), rounds.actions]
        part = rounds.take(kept)
        logged = chances[kept] / chances[kept].sum(axis=1, keepdims=True)
        part = Rounds(**{**vars(part), "probabilities": logged.astype(np.float32)})
        q = cross_fit(part, space).predict(part)
        for name in ("ips", "snips", "dr"):
            found[name].append([value(name, part, always(len(part), a), q) for a in range(3)])
        found["naive"].append([float(part.rewards[part.actions == a].mean()) for a in range(3)])
        found["truth"].append(_truth(hillstrom))
    truth = np.array(found["truth"])
    for name in ("ips", "snips", "dr"):
        bias, spread = (np.array(found[name]) - truth).mean(axis=0), np.std(found[name], axis=0)
        assert (np.abs(bias) <= 3.3 * spread / np.sqrt(40)).all(), name
    naive = np.abs((np.array(found["naive"]) - truth).mean(axis=0))
    weighted = np.abs((np.array(found["snips"]) - truth).mean(axis=0))
    assert (naive[:2] > 10 * weighted[:2]).all()


def _truth(hillstrom: Hillstrom) -> list[float]:
    """Return each arm's mean in the mix of recencies that is kept: the whole experiment, reweighted by it."""
    rounds = hillstrom.rounds
    kept = keep(hillstrom.recency).mean(axis=1)
    return [float(np.average(rounds.rewards[rounds.actions == a], weights=kept[rounds.actions == a])) for a in range(3)]
