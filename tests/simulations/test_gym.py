"""The population is a Gymnasium environment: it keeps the rules, and an agent from elsewhere learns in it."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from river import bandit

from optimizer.actions import HOLD
from simulations.gym import environment
from simulations.worlds import DEMO, World
from tests.small_program import GUARDRAILS, small

LIVELY = replace(DEMO, lift=1.5, incentive=2.5, null=0.3, harm=0.6, everyday=0.2, turn=0.2, leaving=0.0, burden=0.0)


def _world() -> World:
    return LIVELY


def test_the_environment_keeps_the_rules_of_gymnasium() -> None:
    check_env(environment(small(), _world(), customers=8, days=2), skip_render_check=True)


def test_the_same_seed_is_the_same_episode_and_each_reset_has_other_customers() -> None:
    env = environment(small(), _world(), customers=10, days=2)

    def rewards(seed: int | None) -> list[float]:
        env.reset(seed=seed)
        return [float(env.step(np.int64(1))[1]) for _ in range(20)]

    assert rewards(3) == rewards(3)
    assert rewards(None) != rewards(None)


def test_an_episode_ends_with_its_last_day() -> None:
    env = environment(small(), _world(), customers=5, days=3)
    env.reset(seed=1)
    cut = [env.step(np.int64(HOLD))[3] for _ in range(15)]
    assert cut == [False] * 14 + [True]


def test_a_blocked_action_is_a_hold() -> None:
    env = environment(small(), _world(), customers=40, days=1)
    _, info = env.reset(seed=2)
    earned = {}
    for chosen in ("blocked", "hold"):
        _, info = env.reset(seed=2)
        blocked = int(np.flatnonzero(info["mask"] == 0)[0])
        _, earned[chosen], *_ = env.step(np.int64(blocked if chosen == "blocked" else HOLD))
    assert earned["blocked"] == earned["hold"]


def test_an_action_that_there_is_not_is_refused_and_so_is_a_step_before_a_reset() -> None:
    env = environment(small(), _world(), customers=5, days=1)
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.int64(0))
    env.reset(seed=1)
    with pytest.raises(ValueError, match=r"is none of this program's: expected 0 to 12"):
        env.step(np.int64(99))
    with pytest.raises(ValueError, match="days = 0: use 1 or more customers"):
        environment(small(), _world(), days=0)


def test_an_agent_from_elsewhere_learns_to_do_better_than_chance() -> None:
    """Batches of 30 paired steps in the second half of five episodes: z > 3, one false alarm in 700."""
    env = environment(small(GUARDRAILS), _world(), customers=60, days=12)
    episodes = 5
    agents = [bandit.EpsilonGreedy(epsilon=0.15, burn_in=8, seed=3), bandit.RandomPolicy(seed=3)]
    trace = list(bandit.evaluate(policies=agents, env=env, n_episodes=episodes, seed=5))
    steps = 60 * 12
    table = np.array([row["reward"] for row in trace]).reshape(episodes, steps, 2)
    gaps = (table[:, steps // 2 :, 0] - table[:, steps // 2 :, 1]).reshape(-1, 30).mean(axis=1)
    assert gaps.mean() > 3.0 * gaps.std(ddof=1) / np.sqrt(len(gaps))
