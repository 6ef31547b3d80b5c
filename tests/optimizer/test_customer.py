from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optimizer.customer import Decayed, cohort, columns_of, deliveries, encode, features, snapshots
from tests.small_program import NOON, customer, small

PROGRAM = small()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_decayed_count_does_not_depend_on_the_order_of_arrival(times: list[float], chance: object) -> None:
    shuffled = list(times)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]

    def count(order: list[float]) -> float:
        decayed = Decayed()
        for t in order:
            decayed = decayed.plus(1.0, at=t, half_life=3600.0)
        return decayed.at(1e6, half_life=3600.0)

    assert np.isclose(count(times), count(shuffled), rtol=1e-9)


def test_the_context_has_a_column_for_each_declared_feature() -> None:
    ada = customer(PROGRAM, attributes={"plan": "gold", "tenure": 20.0}, stage="active", streak=30)
    row = dict(zip(PROGRAM.features, _encode([ada])[0].tolist(), strict=True))
    assert row["bias"] == row["stage=active"] == row["plan=gold"] == 1
    assert row["tenure"] == 2.0  # (20 - 10) / 5
    assert row["streak"] == 1.0  # log(31) / log(31)
    assert row["stage=new"] == row["plan=free"] == row["plan=?"] == row["tenure=?"] == row["weekend"] == 0


def test_unknown_and_unusable_attributes_are_told_from_zero() -> None:
    people = [customer(PROGRAM, attributes=a) for a in ({}, {"plan": "bronze", "tenure": float("nan")}, {"plan": 3})]
    for row in _encode(people):
        named = dict(zip(PROGRAM.features, row.tolist(), strict=True))
        assert named["plan=?"] == named["tenure=?"] == 1
        assert named["plan=free"] == named["plan=gold"] == named["tenure"] == 0


def test_a_logged_context_encodes_as_it_was_seen() -> None:
    people = [
        customer(PROGRAM, attributes={"plan": "free", "tenure": 3}, stage="active", steps=Decayed(1.0, NOON)),
        customer(PROGRAM, streak=4, nudges=Decayed(2.0, NOON - 1e5)),
    ]
    seen = features(PROGRAM, cohort(PROGRAM, people, at=[NOON, NOON + 7e4]))
    assert np.array_equal(encode(PROGRAM, columns_of(PROGRAM, snapshots(PROGRAM, seen))), encode(PROGRAM, seen))


def test_a_clock_time_is_the_customers_own_also_when_the_clocks_change() -> None:
    # Paris goes to summer time on 29 March 2026 at 02:00 and back on 25 October 2026 at 03:00.
    for day, hours_to_evening in ((28, 23.0), (29, 24.0)):
        asked = datetime(2026, 3, day, 18, 0, 0, tzinfo=UTC).timestamp() - 3600.0 * (1 if day == 28 else 2)
        paris = customer(PROGRAM, time_zone="Europe/Paris")
        utc, locally = deliveries(PROGRAM, cohort(PROGRAM, [paris], at=[asked]))
        assert (utc[0, 1] - asked) / 3600.0 == hours_to_evening
        assert locally[0, 1] % 86_400 == 18 * 3600


def test_a_clock_time_is_strictly_later() -> None:
    six = NOON + 6 * 3600
    utc, _ = deliveries(PROGRAM, cohort(PROGRAM, [customer(PROGRAM)] * 2, at=[six - 1, six]))
    assert utc[:, 1].tolist() == [six, six + 86_400]


def _encode(people: list) -> np.ndarray:  # type: ignore[type-arg]
    return encode(PROGRAM, features(PROGRAM, cohort(PROGRAM, people, at=[NOON] * len(people))))
