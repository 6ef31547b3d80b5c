"""What rules cost: exact where a log identifies it, bounded where it does not, refused where weights fail."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from optimizer.actions import HOLD, Floats
from optimizer.policy import Rounds
from tests.training.worlds import best_for, made_up
from training import guardrail_prices
from training.guardrail_prices import capped, randomised, relaxed, stricter, stricter_rules
from training.reading import REWARD, models_of
from training.targets import deployed, today

WORLD = made_up(n=6_000, seed=61)
PROGRAM = WORLD.dataset.program
MODEL = models_of(WORLD.dataset, None)[REWARD]


def priced(change: str) -> guardrail_prices.GuardrailPrice:
    """Return the price of a stricter rule for a policy that gives badges to the new."""
    good = deployed("good", best_for(PROGRAM, {"new": "badge/playful/now"}), PROGRAM)
    rules = stricter_rules(WORLD.dataset)
    found = {p.change: p for p in stricter(WORLD.dataset, good.vectors, rules, model=MODEL)}
    return found[change]


def test_the_price_of_a_stricter_rule_covers_the_truth() -> None:
    """Without badges the policy falls back on hold: what it then loses is known; so is silence for the new."""
    good = best_for(PROGRAM, {"new": "badge/playful/now"})
    target = deployed("good", good, PROGRAM)
    part = WORLD.dataset.take(slice(None, None, max(1, len(WORLD.dataset) // guardrail_prices.MOST)))
    truth = WORLD.truth[:: max(1, len(WORLD.dataset) // guardrail_prices.MOST)]
    badge = PROGRAM.space.levels[:, 0] == PROGRAM.space.incentives.index("badge")
    without = part.rounds.allowed & ~badge
    silent = part.rounds.allowed.copy()
    silent[part.stages == 0, 1:] = False
    now = (target.vectors(part.rounds) * truth).sum(axis=1).mean()
    for change, mask in (("no nudge with Badge", without), ("no nudges in New", silent)):
        then = (target.vectors(replace(part.rounds, allowed=mask)) * truth).sum(axis=1).mean()
        price = priced(change).price
        assert price is not None
        assert price.at_level(0.999).low <= then - now <= price.at_level(0.999).high, change
        assert price.high < 0, change
        assert priced(change).method == "doubly robust"


def test_the_logging_policy_is_renormalised_over_what_is_left() -> None:
    rules = [r for r in stricter_rules(WORLD.dataset) if r.change == "no nudge with Coupon"]
    (found,) = stricter(WORLD.dataset, today().vectors, rules, model=MODEL, asks=False)
    rounds = WORLD.dataset.rounds
    coupon = PROGRAM.space.levels[:, 0] == PROGRAM.space.incentives.index("coupon")
    logged = rounds.probabilities.astype(np.float64)
    left = np.where(coupon, 0.0, logged)
    left /= left.sum(axis=1, keepdims=True)
    truth = ((left - logged / logged.sum(axis=1, keepdims=True)) * WORLD.truth).sum(axis=1).mean()
    assert found.price is not None
    assert found.price.at_level(0.999).low <= truth <= found.price.at_level(0.999).high
    assert truth > 0.02  # coupons cost more than they bring


def sequences(hold: float, *, steps: int) -> tuple[Floats, Floats, Floats]:
    """Return every path of nudging or not (paths, steps), its chance, and rewards that depend on all nudges so far."""
    paths = np.array(list(product([False, True], repeat=steps)))
    chances = np.where(paths, 1 - hold, hold).prod(axis=1)
    sent = np.cumsum(paths, axis=1)
    return paths, chances, 1.0 + 0.5 * paths - 0.3 * (sent > 1)


@pytest.mark.parametrize("most", [1, 2])
def test_a_cap_with_memory_is_priced_without_bias_on_every_path(most: int) -> None:
    """Over all paths of three decisions with their chances, the weighted gain is the cap's true gain, to 1e-12."""
    hold, steps = 0.4, 3
    paths, chances, rewards = sequences(hold, steps=steps)
    vectors = np.tile([hold, 1 - hold], (steps, 1))
    expected = 0.0
    for path, chance, reward in zip(paths, chances, rewards, strict=True):
        ratio = guardrail_prices._ratios(_bare(vectors, path), np.arange(steps), path, np.arange(steps), most=most)
        weights = guardrail_prices._products(ratio, np.arange(steps))
        expected += chance * float(((weights - 1.0) * reward).sum())
    truth = 0.0
    for path, reward in zip(paths, rewards, strict=True):
        before = np.cumsum(path) - path
        under = np.where(before >= most, np.where(path, 0.0, 1.0), np.where(path, 1 - hold, hold)).prod()
        truth += under * float(reward.sum())
    truth -= float(chances @ rewards.sum(axis=1))
    assert expected == pytest.approx(truth, abs=1e-12)
    assert abs(truth) > 0.01


def _bare(vectors: Floats, path: Floats) -> Rounds:
    from tests.training.worlds import rounds_of

    return rounds_of(vectors, actions=path.astype(np.intp), rewards=np.zeros(len(path)), exact=True)


def test_a_cap_that_nobody_reaches_costs_nothing() -> None:
    quiet = replace(WORLD.dataset.rounds, actions=np.full(6_000, HOLD))
    found = capped(replace(WORLD.dataset, rounds=quiet), most=1)
    assert (found.low, found.high) == (0.0, 0.0)
    assert found.method == "sequential weights"


def test_more_decisions_than_weights_can_carry_are_refused() -> None:
    with pytest.raises(ValueError, match=r"over 1 to 6 decisions of a customer, got 7: .* nudge simulate"):
        capped(WORLD.dataset, most=1, longest=7)


def test_a_relaxed_rule_has_only_a_worst_and_a_best_case() -> None:
    rows = np.arange(6_000) % 4 == 0
    (found,) = relaxed(replace(WORLD.dataset, blocked={"cooldown": rows}), low=-1.0, high=2.0)
    mean = WORLD.dataset.rounds.rewards[rows].mean()
    assert (found.price, found.method) == (None, "bounds")
    assert (found.low, found.high) == pytest.approx((0.25 * (-1.0 - mean), 0.25 * (2.0 - mean)))


def test_a_rule_relaxed_at_random_by_customer_has_a_price() -> None:
    """Half of the customers get 0.2 more a decision."""
    dataset = WORLD.dataset
    chosen = np.arange(len(dataset.customers)) % 2 == 0
    rewards = dataset.rounds.rewards + 0.2 * chosen[dataset.rounds.customers]
    relaxed_for = {name: bool(x) for name, x in zip(dataset.customers, chosen, strict=True)}
    found = randomised(replace(dataset, rounds=replace(dataset.rounds, rewards=rewards)), relaxed_for, rule="cooldown")
    assert found.price is not None
    assert found.price.at_level(0.999).low <= 0.2 <= found.price.at_level(0.999).high
    assert found.price.customers == len(np.unique(dataset.rounds.customers))
    with pytest.raises(ValueError, match="was relaxed for fewer than two customers"):
        randomised(dataset, dict.fromkeys(dataset.customers, False), rule="cooldown")
