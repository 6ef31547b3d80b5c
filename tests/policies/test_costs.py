"""Is what an incentive costs known before any round tells it? And is it counted once, and no more than once?"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import policies
from optimizer.actions import ActionSpace
from optimizer.policy import Rounds
from policies.greedy import Greedy
from policies.hierarchical import Hierarchical
from policies.saved import read
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from tests.checks import FEATURES, contexts, logged, masks

PRICED = ActionSpace(("badge", "voucher"), ("warm", "brisk"), ("now", "evening"), FEATURES, (0.0, 0.75))
FREE = replace(PRICED, costs=())
COSTS = PRICED.action_costs
KINDS = [Greedy, SquareCB, Thompson, Hierarchical]

Kind = type[Greedy | SquareCB | Thompson | Hierarchical]


def gross() -> Rounds:
    """Four hundred rounds whose rewards no cost is taken from, in steps that a cost can be taken from exactly."""
    rounds = logged(400, seed=1, space=FREE)
    return replace(rounds, rewards=np.round(rounds.rewards * 256) / 256)


def net(rounds: Rounds) -> Rounds:
    """The same as a service logs them: the reward is what a customer brought less what the nudge cost."""
    return replace(rounds, rewards=rounds.rewards - COSTS[rounds.actions])


@pytest.mark.parametrize("kind", KINDS)
def test_net_rewards_teach_what_gross_ones_teach_and_costs_are_taken_once(kind: Kind) -> None:
    """The same policy, told the costs and net rewards, and told gross rewards and the costs as prices."""
    told, untold = kind(PRICED), kind(FREE)
    told.learn(net(gross()))
    untold.learn(gross())
    x, allowed = contexts(200, seed=2), masks(200, seed=2, k=PRICED.k)
    assert told.effects(x) == pytest.approx(untold.effects(x) - COSTS, abs=1e-9)
    ours = told.probabilities(x, allowed, np.zeros(PRICED.k))
    assert ours == pytest.approx(untold.probabilities(x, allowed, COSTS), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_costs_is_not_thought_worth_it_before_rounds_say_so(kind: Kind) -> None:
    """Rounds that never sent a voucher say nothing of it: it is expected to lose most of its cost."""
    rounds = gross()
    policy = kind(PRICED)
    policy.learn(net(rounds.take(np.flatnonzero(PRICED.levels[rounds.actions, 0] == 0))))
    x = contexts(200, seed=3)
    badge, voucher = (policy.effects(x)[:, 1:].reshape(-1, 2, 4)[:, i] for i in (0, 1))
    assert (voucher - badge).mean() == pytest.approx(-0.75, abs=0.3)
    assert policy.probabilities(x, np.ones((200, PRICED.k), bool), np.zeros(PRICED.k))[:, 5:].max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_cost_that_changes_counts_at_once(kind: Kind, tmp_path: Path) -> None:
    """What was learned of the effect stands; what is taken from it is what the newer version declares."""
    policy = kind(PRICED)
    policy.learn(net(gross()))
    policy.save(tmp_path)
    dearer = replace(PRICED, costs=(0.1, 1.5))
    newer = policies.load(tmp_path, dearer)
    assert isinstance(newer, kind)
    x = contexts(50, seed=4)
    assert newer.effects(x) == pytest.approx(policy.effects(x) + COSTS - dearer.action_costs, abs=1e-9)


def test_a_policy_saved_with_costs_inside_its_sums_decides_as_it_did_and_learns_no_more() -> None:
    """As versions before wrote it: nothing is taken from its gains twice, and no other rounds are mixed into it."""
    old = Greedy(FREE)
    old.learn(net(gross()))
    packed = old.packed()
    settings = json.loads(json.dumps(dict(packed.settings)))
    del settings["model"]["gross"]
    loaded = Greedy.unpacked(replace(packed, settings=settings), PRICED)
    x = contexts(50, seed=5)
    assert loaded.effects(x) == pytest.approx(old.effects(x), abs=1e-12)
    with pytest.raises(ValueError, match="saved by an earlier version, with costs inside its sums"):
        loaded.learn(net(gross()))
    again = Greedy.unpacked(loaded.packed(), PRICED)
    assert again.effects(x) == pytest.approx(old.effects(x), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_tells_costs_and_ladders_to_whoever_has_no_program(kind: Kind, tmp_path: Path) -> None:
    """As MLflow serves it: with nothing but the folder."""
    space = replace(PRICED, costs=(0.1, 0.75), ladders=(("badge", "voucher"),))
    policy = kind(space)
    policy.learn(replace(gross(), rewards=gross().rewards - space.action_costs[gross().actions]))
    policy.save(tmp_path)
    told = read(tmp_path).space
    assert told == space
    x = contexts(50, seed=6)
    assert (policies.load(tmp_path, told).effects(x) == policy.effects(x)).all()  # type: ignore[attr-defined]
