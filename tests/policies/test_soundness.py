"""Is every vector a distribution, drawn as logged, drawn the same again, and found again from the saved policy?

A property of every policy over random contexts, masks and prices; `make soak` asks it a million times, and leaves
what it found in `benchmarks/results/soundness.json`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import chi2

import policies
from benchmarks import results
from optimizer.actions import Floats
from optimizer.events import draw, draws
from optimizer.floor import apply_floor
from optimizer.program import Exploration
from tests.checks import CASES, SPACE, contexts, masks, trained

FALSE_ALARM = 1e-4
"""Of one policy's chi-square: once in 600 runs of all of them."""


def _vectors(name: str, n: int, *, seed: int) -> tuple[Floats, Floats]:
    """Return the probabilities (n, k) of a policy in float64, and as logged."""
    rng = np.random.default_rng(seed)
    x, allowed, prices = contexts(n, seed=seed), masks(n, seed=seed), rng.random((n, SPACE.k)) * 0.2
    p = trained(name).probabilities(x, allowed, prices)
    floored = apply_floor(p, SPACE, allowed=allowed, exploration=Exploration())
    assert np.isfinite(floored).all()
    assert ((floored > 0) == allowed).all()
    assert np.abs(floored.sum(axis=1) - 1.0).max() < 1e-9
    return p, floored


class Found(NamedTuple):
    """Of so many masks: the chance of a chi-square as large, and how many vectors came out otherwise when rescored."""

    asked: int
    chance: float
    changed: int


def _is_sound(name: str, folder: Path, *, asked: int) -> Found:
    """Check a policy over so many masks, 10,000 at a time."""
    trained(name).save(folder)
    again = policies.load(folder, SPACE)
    drawn, expected, variance, changed = np.zeros(SPACE.k), np.zeros(SPACE.k), np.zeros(SPACE.k), 0
    size = min(asked, 10_000)
    for seed in range(asked // size):
        p, floored = _vectors(name, size, seed=seed)
        logged = floored.astype(np.float32)
        us = np.random.default_rng([seed, 5]).random(size)
        actions = draws(logged, us)
        assert (logged[np.arange(size), actions] > 0).all()
        for row in range(size):  # from the log's bytes, one by one
            replayed = np.frombuffer(logged[row].astype("<f4").tobytes(), dtype="<f4")
            assert draw(replayed, float(us[row])) == actions[row]
        chances = logged.astype(np.float64) / logged.sum(axis=1, keepdims=True, dtype=np.float64)
        drawn += np.bincount(actions, minlength=SPACE.k)
        expected += chances.sum(axis=0)
        variance += (chances * (1.0 - chances)).sum(axis=0)
        rng = np.random.default_rng(seed)
        prices = rng.random((size, SPACE.k)) * 0.2
        rescored = again.probabilities(contexts(size, seed=seed), masks(size, seed=seed), prices)
        changed += int((np.abs(rescored - p).max(axis=1) > 1e-6).sum())
    # Rows differ, so each action's count has its own variance; k - 1 of k squares are free.
    statistic = float((((drawn - expected) ** 2) / np.maximum(variance, 1e-12)).sum()) * (SPACE.k - 1) / SPACE.k
    chance = float(chi2.sf(statistic, SPACE.k - 1))
    assert chance > FALSE_ALARM
    return Found(asked // size * size, chance, changed)


@pytest.mark.parametrize("name", CASES)
def test_vectors_are_sound_over_random_masks(name: str, tmp_path: Path) -> None:
    """20,000 masks over all policies; a policy that was loaded rescores every one of them the same."""
    assert _is_sound(name, tmp_path, asked=20_000 // len(CASES) + 1).changed == 0


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_vectors_are_sound_over_a_million_masks(tmp_path: Path) -> None:
    """A million over all policies: every vector valid, drawn as logged, replayed from its bytes, rescored to 1e-6."""
    rows = []
    for name in CASES:
        (tmp_path / name).mkdir()
        found = _is_sound(name, tmp_path / name, asked=10_000 * -(-100 // len(CASES)))
        title = f"{name}: of {found.asked:,} vectors, all valid and replayed bit for bit"
        rows += [
            _row(f"{title}: changed when rescored", found.changed, "vectors", target="0", met=found.changed == 0),
            _row(f"{title}: chance of the chi-square", found.chance, "p", target=f"> {FALSE_ALARM:g}", met=True),
        ]
    results.write("soundness", rows)
    assert all(row["met"] for row in rows)


def _row(name: str, ours: float, unit: str, *, target: str, met: bool) -> results.Row:
    return results.Row(name=name, ours=ours, peer=None, peer_name=None, unit=unit, ratio=None, target=target, met=met)


def test_a_vector_that_is_not_what_was_drawn_from_is_found_out() -> None:
    """The chi-square alarms where counts come from another distribution: the test above can fail."""
    _, floored = _vectors("squarecb", 2_000, seed=1)
    actions = draws(np.roll(floored, 1, axis=1).astype(np.float32), np.random.default_rng(1).random(2_000))
    drawn, expected = np.bincount(actions, minlength=SPACE.k), floored.sum(axis=0)
    variance = (floored * (1 - floored)).sum(axis=0)
    assert ((drawn - expected) ** 2 / variance).sum() > chi2.isf(FALSE_ALARM, SPACE.k - 1)
