"""Is a change of taste found, and nothing else taken for one?"""

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

import policies
from optimizer.actions import Floats
from optimizer.policy import Rounds
from policies.changes import learned
from policies.factored import Statistics, summarise
from policies.greedy import Greedy
from policies.spans import cells
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from tests.checks import BEST, SPACE, logged, truth

N, SPAN = 3_000, 1e6


def world(seed: int, *, taste: Floats, season: Floats | None = None) -> Rounds:
    """Return even rounds in time, `taste` (n,) times the gains of the made-up world, rewards moved by a season (n,)."""
    rounds, rng = logged(len(taste), seed=seed), np.random.default_rng([seed, 1])
    x, rows = rounds.contexts, np.arange(len(taste))
    gains = truth(x)[rows, rounds.actions] - 1.0 - x[:, 3]
    moved = np.zeros(len(taste)) if season is None else season
    rewards = x[:, 3] + moved + taste * gains + 0.5 * rng.normal(size=len(taste))
    return replace(rounds, rewards=rewards, at=np.linspace(0.0, SPAN, len(taste), endpoint=False))


def turned(share: float) -> Floats:
    """Shape (n,): tastes that turn round after a share of the rounds."""
    return np.where(np.arange(N) < share * N, 1.0, -1.0)


def batches(rounds: Rounds, *, size: int) -> list[Rounds]:
    return [rounds.take(slice(start, start + size)) for start in range(0, len(rounds), size)]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.85])
@pytest.mark.parametrize("seed", range(2))
def test_a_change_is_found_in_a_whole_log_to_within_a_tenth_of_it(share: float, seed: int) -> None:
    """Hardly a round from before it is left in, and more than half of those since are."""
    policy = Greedy(SPACE)
    policy.learn(world(seed, taste=turned(share)))
    changed = policy.model.changed
    assert changed is not None
    assert (share - 0.1) * SPAN < changed < (share + 1.0) / 2.0 * SPAN
    assert policy.model.statistics.since == changed


def test_a_change_is_found_within_two_batches() -> None:
    """And what was best is what is chosen least from then on."""
    policy = SquareCB(SPACE)
    seen = []
    for batch in batches(world(4, taste=turned(0.5)), size=250):
        policy.learn(batch)
        seen.append(policy.model.changed)
    assert seen[:6] == [None] * 6
    found = [at for at in seen[6:8] if at is not None]
    assert found
    assert found[0] == pytest.approx(0.5 * SPAN, abs=0.05 * SPAN)


@pytest.mark.parametrize("seed", range(5))
def test_what_stays_as_it_is_is_not_taken_for_a_change(seed: int) -> None:
    """Looked for after each of twelve batches: odds of 1 in 1,000 that any is found, in each of five worlds."""
    policy = Greedy(SPACE)
    for batch in batches(world(seed, taste=np.ones(N)), size=250):
        policy.learn(batch)
    assert policy.model.changed is None
    assert policy.model.n == N


@pytest.mark.parametrize("seed", range(2))
def test_a_season_that_moves_all_rewards_alike_is_no_change(seed: int) -> None:
    """Up and down by three times the noise, and a step of ten times: nothing that moves customers has changed."""
    waves = 1.5 * np.sin(np.linspace(0.0, 7.0 * np.pi, N))
    for season in (waves, np.where(np.arange(N) < N / 2, 0.0, 5.0)):
        policy = Greedy(SPACE)
        for batch in batches(world(seed, taste=np.ones(N), season=season), size=500):
            policy.learn(batch)
        assert policy.model.changed is None


@pytest.mark.parametrize("kind", ["rare", "heavy", "outliers"])
def test_rewards_that_are_rare_and_large_are_no_change(kind: str) -> None:
    """One in 500 converts; Student's t with two degrees of freedom; one in 1,000 is worth a hundred times the noise."""
    for seed in range(2):
        rng, rounds = np.random.default_rng([seed, 3]), world(seed, taste=np.ones(N))
        rewards = {
            "rare": 500.0 * (rng.random(N) < 0.002 * (1.0 + 0.5 * (rounds.rewards - rounds.contexts[:, 3]))),
            "heavy": rounds.rewards + 0.5 * rng.standard_t(2, size=N),
            "outliers": rounds.rewards + 50.0 * (rng.random(N) < 0.001),
        }
        policy = Greedy(SPACE)
        for batch in batches(replace(rounds, rewards=rewards[kind]), size=250):
            policy.learn(batch)
        assert policy.model.changed is None


@pytest.mark.parametrize("seed", range(2))
def test_a_season_is_no_change_where_the_logger_changes_with_it(seed: int) -> None:
    """From half way on one incentive is sent mostly in high season: it did not become better."""
    wave = 1.5 * np.sin(np.linspace(0.0, 7.0 * np.pi, N))
    rounds, rng = world(seed, taste=np.ones(N)), np.random.default_rng([seed, 4])
    sent = np.where(SPACE.levels[:, 0] == 1, np.where((wave > 0) & (np.arange(N) > N / 2), 30.0, 1.0)[:, None], 1.0)
    p = sent * rounds.allowed / (sent * rounds.allowed).sum(axis=1, keepdims=True)
    actions = (np.cumsum(p, axis=1) < rng.random((N, 1))).sum(axis=1)
    rewards = truth(rounds.contexts)[np.arange(N), actions] + wave + 0.5 * rng.normal(size=N)
    policy = Greedy(SPACE)
    biased = replace(rounds, probabilities=p.astype(np.float32), actions=actions, rewards=rewards)
    for batch in batches(biased, size=250):
        policy.learn(batch)
    assert policy.model.changed is None


def test_tastes_that_turn_again_and_again_are_followed() -> None:
    """Each turn is found before the next, online; at once, only what was since the last one is kept."""
    taste = np.where(np.arange(N) // 750 % 2, -1.0, 1.0)
    rounds = world(5, taste=taste)
    online, whole = Greedy(SPACE), Greedy(SPACE)
    found = set()
    for batch in batches(rounds, size=125):
        online.learn(batch)
        found.add(online.model.changed)
    whole.learn(rounds)
    for turn in (0.25, 0.5, 0.75):
        assert any(at is not None and abs(at / SPAN - turn) < 0.06 for at in found), turn
    for policy in (online, whole):
        assert policy.model.statistics.since > 0.7 * SPAN


def test_tastes_that_drift_are_followed() -> None:
    """From one to its opposite, little by little: by the end what was best is known to be worst, at once or online."""
    rounds = world(12, taste=np.linspace(1.0, -1.0, N))
    best, x = SPACE.index(BEST), rounds.contexts[:50]
    online, whole, never = Greedy(SPACE), Greedy(SPACE), Greedy(SPACE, half_life=np.inf)
    for batch in batches(rounds, size=250):
        online.learn(batch)
    for policy in (whole, never):
        policy.learn(rounds)
    assert abs(never.effects(x)[:, best].mean()) < 0.1
    for policy in (online, whole):
        assert policy.effects(x)[:, best].mean() < -0.3


@pytest.mark.parametrize("half_life", [1e5, np.inf])
def test_a_half_life_that_is_given_is_kept_to(half_life: float) -> None:
    """Nothing is looked for: all rounds count, as it says."""
    rounds = world(6, taste=turned(0.5))
    policy = Greedy(SPACE, half_life=half_life)
    policy.learn(rounds)
    weights = 2.0 ** ((rounds.at - rounds.at.max()) / half_life)
    assert policy.model.changed is None
    assert policy.model.n == pytest.approx(weights.sum())
    assert policy.model.statistics.apart == (policy.model.statistics,)


def test_shards_of_customers_find_the_change_that_the_whole_log_finds() -> None:
    """However they were cut: by customer, each over all the time, or by time, in any order."""
    rounds = world(7, taste=turned(0.6))
    whole = learned(summarise(SPACE, rounds))
    by_customer = [rounds.take(rounds.customers % 3 == i) for i in range(3)]
    by_time = [rounds.take(slice(a, a + 1_000)) for a in (2_000, 0, 1_000)]
    assert whole.changed
    for shards in (by_customer, by_time):
        joined = reduce(Statistics.__add__, [summarise(SPACE, shard) for shard in shards])
        assert [(s.since, s.as_of) for s in joined.apart] == [
            (s.since, s.as_of) for s in summarise(SPACE, rounds).apart
        ]
        found = learned(joined)
        assert found.statistics.since == whole.statistics.since
        assert found.posterior.mean == pytest.approx(whole.posterior.mean, abs=1e-8)
        assert found.posterior.fingerprint == whole.posterior.fingerprint


@pytest.mark.parametrize("seed", range(20))
def test_cells_of_less_time_lie_within_cells_of_more(seed: int) -> None:
    """What two shards kept apart may be put together, and never has to be cut: at most 20 cells, the last ones fine."""
    rng = np.random.default_rng(seed)
    at = np.sort(1.7e9 + 10.0 ** rng.integers(0, 9) * rng.random(400))
    all_of_it = cells(at, since=at[0], as_of=at[-1])
    some = slice(*np.sort(rng.choice(400, 2, replace=False)).tolist())
    part = at[some]
    fine = cells(part, since=part[0], as_of=part[-1])
    coarse = dict(zip(fine.tolist(), all_of_it[some].tolist(), strict=True))
    assert [coarse[cell] for cell in fine.tolist()] == all_of_it[some].tolist()
    assert len(np.unique(all_of_it)) <= 20
    assert at[-1] - all_of_it[-1] <= (at[-1] - at[0]) / 64


def test_what_was_found_is_saved_and_learning_goes_on(tmp_path: Path) -> None:
    """Since when rounds count; half-lives, given or not; and what was saved before any was looked for."""
    rounds = world(8, taste=turned(0.5))
    for half_life in (None, np.inf, 1e5):
        policy = Thompson(SPACE, half_life=half_life)
        policy.learn(rounds)
        folder = tmp_path / str(half_life)
        folder.mkdir()
        policy.save(folder)
        loaded = policies.load(folder, SPACE)
        assert isinstance(loaded, Thompson)
        assert loaded.model.changed == policy.model.changed
        assert loaded.model.statistics.half_life == half_life
        assert loaded.model.statistics.since == policy.model.statistics.since
        again = world(9, taste=np.ones(N))
        loaded.learn(replace(again, at=again.at + SPAN))
        assert (loaded.model.changed is not None) == (half_life is None)
        if half_life is None:
            assert loaded.model.statistics.since >= SPAN


def test_a_policy_that_was_saved_without_what_tells_of_changes_loads() -> None:
    """As versions before wrote it: its rounds count as one span."""
    policy = Greedy(SPACE)
    policy.learn(world(10, taste=np.ones(N)))
    settings, arrays = policy.model.packed()
    for name in ("since", "changed"):
        del settings["model"][name]
    del arrays["sum-r34"]
    loaded = Greedy.unpacked(replace(policy.packed(), settings=json.loads(json.dumps(settings)), arrays=arrays), SPACE)
    assert loaded.model.statistics.since == loaded.model.statistics.as_of == policy.model.statistics.as_of
    later = world(11, taste=-np.ones(N))
    loaded.learn(replace(later, at=later.at + SPAN))
    assert loaded.model.changed == pytest.approx(SPAN, abs=0.1 * SPAN)
