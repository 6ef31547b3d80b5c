"""The gate on fairness: it stops what is shown to leave out or to harm, and warns of what merely looks so."""

from dataclasses import replace

import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from policies.fixed import Uniform
from tests.training.worlds import made_up
from training.dataset import Dataset
from training.evaluate import Target, deployed
from training.fairness import Limits, fairness_gate
from training.record import segments

GOLD, FREE = "plan=gold", "plan=free"


def log(*, seed: int = 0, harm: float = 0.0, n: int = 4_000, customers: int = 800) -> Dataset:
    """Return a log in which a customer is gold or free for good; nudges cost the gold some reward."""
    world = made_up(n=n, customers=customers, seed=seed)
    found, program = world.dataset, world.dataset.program
    gold = (found.rounds.customers % 2 == 0).astype(np.float64)
    contexts = found.rounds.contexts.copy()
    column = {name: i for i, name in enumerate(program.features)}
    contexts[:, [column[GOLD], column[FREE], column["plan=?"]]] = np.column_stack([gold, 1 - gold, 0 * gold])
    contexts[:, column["tenure=?"]] = 1.0
    rewards = found.rounds.rewards - harm * gold * (found.rounds.actions > 0)
    rounds = replace(found.rounds, contexts=contexts, rewards=rewards)
    return replace(found, rounds=rounds, training_rewards=rewards)


def sparing(dataset: Dataset, *, share: float) -> Target:
    """Return a target that nudges the gold less often than today by a factor."""
    column = dataset.program.features.index(GOLD)

    def vectors(rounds: Rounds) -> Floats:
        p: Floats = rounds.probabilities.astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        p[:, 1:] *= np.where(rounds.contexts[:, [column]] > 0, share, 1.0)
        p[:, 0] = 1.0 - p[:, 1:].sum(axis=1)
        return p

    return Target("sparing", "A sparing policy", "candidate", vectors)


def test_what_treats_all_alike_passes() -> None:
    gate = fairness_gate(log())
    assert gate.status == "pass"
    assert gate.passes
    assert gate.reasons[0].code == "fair"
    assert gate.comparisons == 4  # two groups, exposure and value; tenure is known of nobody
    assert gate.spread["plan"] == pytest.approx(1.0, abs=0.05)


def test_leaving_a_protected_group_out_fails_and_names_it() -> None:
    dataset = log()
    gate = fairness_gate(dataset, target=sparing(dataset, share=0.5), limits=Limits(attributes=("plan",)))
    assert gate.status == "fail"
    assert not gate.passes
    cause = gate.reasons[0]
    assert (cause.code, cause.attribute, cause.segment) == ("less exposed", "plan", "gold")
    assert "0.50 times as often as the rest" in cause.text
    assert cause.mend


def test_of_an_attribute_that_nobody_protects_it_is_a_warning() -> None:
    dataset = log()
    gate = fairness_gate(dataset, target=sparing(dataset, share=0.5))
    assert (gate.status, gate.reasons[0].code, gate.passes) == ("warn", "less exposed", True)


def test_the_four_fifths_rule_is_a_limit_that_can_be_moved() -> None:
    dataset = log()
    target = sparing(dataset, share=0.7)
    assert fairness_gate(dataset, target=target, limits=Limits(attributes=("plan",))).status == "fail"
    kinder = Limits(attributes=("plan",), exposure_ratio=0.6)
    assert fairness_gate(dataset, target=target, limits=kinder).status == "pass"


def test_harm_to_a_group_fails_even_where_the_whole_gains() -> None:
    gate = fairness_gate(log(harm=1.0, seed=1))
    harmed = [c for c in gate.reasons if c.code == "harmed"]
    assert [(c.attribute, c.segment, c.status) for c in harmed] == [("plan", "gold", "fail")]
    free = next(g for g in gate.groups if g.segment == "free")
    assert free.status == "pass"
    assert (free.value_gap.value or 0.0) > 0


def test_harm_is_not_seen_where_there_is_none() -> None:
    """Twenty logs at 95 % for all comparisons together: more than 5 failures has a chance below 1 in 1,000."""
    failed = sum(not fairness_gate(log(seed=s, n=600, customers=200)).passes for s in range(20))
    assert failed <= 5


def test_a_group_of_few_is_not_judged() -> None:
    gate = fairness_gate(log(n=200, customers=60))
    assert gate.status == "warn"
    assert {c.code for c in gate.reasons} == {"too few", "nothing to judge"}
    assert all(g.status == "not enough evidence" for g in gate.groups)


def test_what_is_unknown_is_a_group_that_is_shown_and_not_judged() -> None:
    gate = fairness_gate(log())
    (unknown,) = [g for g in gate.groups if g.attribute == "tenure"]
    assert (unknown.segment, unknown.status) == ("unknown", "not enough evidence")


def test_a_deployed_policy_can_be_judged_before_it_serves() -> None:
    dataset = log()
    program = dataset.program
    gate = fairness_gate(dataset, target=deployed("chance", Uniform(program.space), program, title="Chance"))
    assert gate.policy == "Chance"
    assert gate.status == "pass"


def test_an_attribute_that_is_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="declares no attribute 'gender'"):
        fairness_gate(log(), limits=Limits(attributes=("gender",)))


def test_segments_are_those_that_were_declared() -> None:
    dataset = log(n=50)
    names, codes = segments(dataset.program, dataset.rounds.contexts)["plan"]
    assert names == ("free", "gold", "unknown")
    assert (codes == (dataset.rounds.customers % 2 == 0)).all()
