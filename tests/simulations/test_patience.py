"""A patient policy believes of its predictions what held-out customers confirm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.policy import Rounds
from policies.fixed import Uniform
from policies.thompson import Thompson
from simulations.patience import Confirmed, Patient, confirmed
from simulations.population import populate
from simulations.rollout import rollout, sole
from simulations.worlds import WORLDS
from tests.small_program import small

PROGRAM = small()


def _rounds(world: str) -> Rounds:
    people = populate(PROGRAM, WORLDS[world], customers=300, seed=7, start=1_767_571_200.0)
    return rollout(people, sole(Uniform(PROGRAM.space)), days=25).rounds


@pytest.fixture(scope="module")
def harmed() -> tuple[Rounds, Patient, Thompson]:
    rounds = _rounds("harmful")
    patient, plain = Patient(PROGRAM.space), Thompson(PROGRAM.space)
    patient.learn(rounds)
    plain.learn(rounds)
    return rounds, patient, plain


def test_promises_that_are_luck_are_hardly_believed(harmed: tuple[Rounds, Patient, Thompson]) -> None:
    """Dealt out anew, rewards owe nothing to nudges: whatever one half finds in them, the other half does not."""
    rounds, patient, _ = harmed
    lucky = Patient(PROGRAM.space)
    lucky.learn(replace(rounds, rewards=np.random.Generator(np.random.Philox(1)).permutation(rounds.rewards)))
    assert lucky.confirmed.share < 0.5 < patient.confirmed.share


def test_what_nudges_do_by_now_is_what_counts(harmed: tuple[Rounds, Patient, Thompson]) -> None:
    """Nudges that cost two units from the second half of the log on: nearer to two than to the one on average."""
    rounds = harmed[0]
    late = rounds.at > np.median(rounds.at)
    cost = 2.0 * (late & (rounds.actions > 0))
    halves = (Thompson(PROGRAM.space), Thompson(PROGRAM.space))  # which promise nothing yet
    before, after = (confirmed(halves, replace(rounds, rewards=rounds.rewards - lost)) for lost in (0.0, cost))
    assert -2.0 < after.constant - before.constant < -1.1


def test_what_is_not_confirmed_raises_what_a_nudge_has_to_bring(harmed: tuple[Rounds, Patient, Thompson]) -> None:
    """A quarter believed, less one for any nudge: a nudge has to promise 4 x (price + 1)."""
    rounds, _, plain = harmed
    some, price = rounds.take(slice(0, 100)), np.full(PROGRAM.space.k, 0.1)
    wary = Patient(PROGRAM.space)
    wary.policy, wary.confirmed = plain, Confirmed(constant=-1.0, share=0.25)
    asked = np.full(PROGRAM.space.k, 4.4)
    asked[0] = 0.0
    np.testing.assert_array_equal(
        wary.probabilities(some.contexts, some.allowed, price), plain.probabilities(some.contexts, some.allowed, asked)
    )


def test_it_is_kept_and_read_back(harmed: tuple[Rounds, Patient, Thompson], tmp_path: Path) -> None:
    rounds, patient, _ = harmed
    patient.save(tmp_path)
    back = Patient.load(tmp_path, PROGRAM.space)
    some, prices = rounds.take(slice(0, 50)), np.zeros(PROGRAM.space.k)
    np.testing.assert_array_equal(
        back.probabilities(some.contexts, some.allowed, prices),
        patient.probabilities(some.contexts, some.allowed, prices),
    )


def test_learning_nothing_changes_nothing(harmed: tuple[Rounds, Patient, Thompson]) -> None:
    rounds, patient, _ = harmed
    before = patient.confirmed
    patient.learn(rounds.take(slice(0, 0)))
    assert patient.confirmed == before
