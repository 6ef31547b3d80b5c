"""The gate on fairness: it stops what is shown to leave out or to harm, and warns of what merely looks so."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from optimizer.actions import Floats
from optimizer.policy import Rounds
from optimizer.program import Program, ProgramError
from policies.fixed import Uniform
from tests.small_program import TOML
from tests.training.worlds import made_up
from training.dataset import Dataset
from training.fairness import Limits, declared, fairness_gate, verdict_on
from training.promotion import Reason, Verdict
from training.record import segments
from training.targets import Target, deployed

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


BETTER = Verdict(
    program="small",
    choice="promote",
    champion="champion",
    champion_version="1",
    challenger="sparing",
    challenger_version="2",
    level=0.95,
    reasons=(Reason(code="better", speaks="for", target="sparing", text="It is better."),),
)


def test_what_is_unfair_keeps_the_champion_and_says_why() -> None:
    dataset = log()
    gate = fairness_gate(dataset, target=sparing(dataset, share=0.5), limits=Limits(attributes=("plan",)))
    verdict = verdict_on(BETTER, gate)
    assert (verdict.choice, verdict.promotes) == ("keep", False)
    assert [(r.code, r.speaks) for r in verdict.reasons] == [("fairness: less exposed", "against"), ("better", "for")]
    assert "plan = gold: is nudged 0.50 times" in verdict.reasons[0].text
    assert verdict.reasons[0].mend


def test_a_warning_is_said_and_stops_nothing() -> None:
    dataset = log()
    verdict = verdict_on(BETTER, fairness_gate(dataset, target=sparing(dataset, share=0.5)))
    assert verdict.promotes
    assert [(r.code, r.speaks) for r in verdict.reasons[1:]] == [("fairness: less exposed", "beside")]


@pytest.mark.parametrize(("must", "choice"), [(False, "promote"), (True, "not enough evidence")])
def test_what_cannot_be_judged_is_said_and_stops_only_where_it_is_asked_to(must: bool, choice: str) -> None:  # noqa: FBT001
    verdict = verdict_on(BETTER, fairness_gate(log(n=200, customers=60)), must_be_known=must)
    assert verdict.choice == choice
    assert "fairness: nothing to judge" in {r.code for r in verdict.reasons}


def test_a_verdict_that_keeps_stays_one_and_fairness_is_said_with_it() -> None:
    verdict = verdict_on(replace_choice(BETTER), fairness_gate(log()))
    assert verdict.choice == "keep"
    assert verdict.reasons[-1].code == "fairness: fair"


def replace_choice(verdict: Verdict) -> Verdict:
    """Return a verdict that keeps the champion."""
    return msgspec.structs.replace(verdict, choice="keep")


def test_a_program_declares_what_is_fair_and_the_gate_goes_by_it() -> None:
    dataset = log()
    said = '[fairness]\nprotect = ["plan"]\nexposure_ratio = 0.6\ncustomers = 100\n\n[[rules]]'
    program = Program.parse(TOML.replace("[[rules]]", said, 1), source="small.toml")
    limits = declared(program, protect=["tenure"])
    assert (limits.attributes, limits.exposure_ratio, limits.customers) == (("plan", "tenure"), 0.6, 100)
    strict = replace(dataset, program=program)
    assert fairness_gate(strict, target=sparing(dataset, share=0.7)).status == "pass"
    assert fairness_gate(strict, target=sparing(dataset, share=0.4)).status == "fail"
    with pytest.raises(ProgramError, match=r"fairness.protect: 'gender' is not declared; use one of plan, tenure"):
        Program.parse(TOML.replace("[[rules]]", said.replace('"plan"', '"gender"'), 1), source="small.toml")
