"""Training: on what was known at the cut, judged by what came after."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.worlds import made_up
from training.train import LEARNERS, NAMED, split, train

WORLD = made_up(n=3_000, seed=31)


def test_what_is_learned_had_matured_before_what_it_is_judged_by() -> None:
    halves = split(WORLD.dataset, share=0.6)
    matures = WORLD.dataset.program.matures_after
    assert halves.earlier.rounds.at.max() + matures <= halves.later.rounds.at.min()
    assert len(halves.later) == 1_200
    assert 0 < len(halves.earlier) < 1_800


def test_a_log_without_time_is_cut_by_customer() -> None:
    rounds = replace(WORLD.dataset.rounds, at=np.zeros(3_000))
    halves = split(replace(WORLD.dataset, rounds=rounds), share=0.6)
    assert not set(halves.earlier.rounds.customers) & set(halves.later.rounds.customers)
    assert len(halves.earlier) + len(halves.later) == 3_000
    assert 1_500 < len(halves.earlier) < 2_100


def test_a_log_that_is_too_short_is_refused_with_how_long_it_should_be() -> None:
    rounds = replace(WORLD.dataset.rounds, at=np.linspace(0, 86_400, 3_000))
    with pytest.raises(ValueError, match=r"3,000 matured rounds over 1.0 days, 0 of them matured before the cut"):
        split(replace(WORLD.dataset, rounds=rounds))


def test_a_share_in_percent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write 0.65"):
        split(WORLD.dataset, share=65)


def test_candidates_learn_from_shaped_rewards() -> None:
    """Shaping is made to punish every nudge: a policy that learned from it holds."""
    punished = np.where(WORLD.dataset.rounds.actions > 0, -5.0, 0.0)
    (candidate,) = train(replace(WORLD.dataset, training_rewards=punished), kinds=["thompson"])
    some = WORLD.dataset.rounds.take(slice(50))
    vectors = candidate.policy.probabilities(some.contexts, some.allowed, np.zeros(WORLD.dataset.program.space.k))
    assert vectors[:, 0].mean() > 0.95


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    candidates = train(WORLD.dataset, kinds=["thompson"], progress=lambda *x: told.append(x))
    assert [c.name for c in candidates] == ["thompson"]
    assert told == [("training thompson", 0, 1), ("training", 1, 1)]


def test_thompson_is_the_first_of_the_learners() -> None:
    assert LEARNERS[0] == "thompson"


@pytest.mark.parametrize("kind", NAMED)
def test_every_other_kind_may_be_asked_for_by_name(kind: str) -> None:
    """On a log where badges help newcomers, each chooses them more often than a nudge at random would."""
    (candidate,) = train(WORLD.dataset, kinds=[kind])
    rounds, space = WORLD.dataset.rounds, WORLD.dataset.program.space
    vectors = candidate.policy.probabilities(rounds.contexts, rounds.allowed, rounds.prices(space))
    chance = rounds.allowed / rounds.allowed.sum(axis=1, keepdims=True)
    assert WORLD.value(vectors) > WORLD.value(chance)


def test_what_does_not_learn_is_no_candidate() -> None:
    with pytest.raises(ValueError, match="no policy kind 'mixture' that learns"):
        train(WORLD.dataset, kinds=["mixture"])


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no policy kind 'magic' that learns: expected some of thompson"):
        train(WORLD.dataset, kinds=["magic"])


def test_which_rounds_count_is_said_in_a_sentence() -> None:
    """Half way a reward turns into its opposite: a candidate that looks for it leaves out what was before."""
    n, rounds = 3_000, WORLD.dataset.rounds
    order = np.argsort(rounds.at, kind="stable")
    half = rounds.at[order[n // 2]]
    loved = np.where(rounds.actions > 0, 3.0, 0.0) * np.where(rounds.at < half, 1.0, -1.0)
    rewards = loved + np.random.default_rng(1).normal(size=n)
    found = train(replace(WORLD.dataset, training_rewards=rewards), kinds=["thompson", "boosted"])
    thompson, boosted = (candidate.memory for candidate in found)
    counted = int(found[0].params["rounds_that_count"])
    assert n / 4 < counted < 0.6 * n
    assert thompson.startswith("What moves customers changed around ")
    assert thompson.endswith(f": the {counted:,} rounds since then count, the {n - counted:,} before are left out.")
    assert boosted == "All 3,000 rounds count: this kind looks for no change."
    (steady,) = train(WORLD.dataset, kinds=["thompson"])
    assert steady.memory == "All 3,000 rounds count: no change of what moves customers was found."
