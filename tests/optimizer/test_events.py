import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from optimizer.events import Salt, draw, uniform

SALT = Salt("s", b"k")
VECTORS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40).filter(lambda p: sum(p) > 0)


@given(VECTORS, st.floats(0, 1, exclude_max=True))
def test_an_action_without_probability_is_never_drawn(vector: list[float], u: float) -> None:
    assert vector[draw(np.array(vector, dtype=np.float32), u)] > 0


def test_the_largest_uniform_still_draws_an_action() -> None:
    vector = np.array([0.1, 0.2, 0.7, 0.0], dtype=np.float32)
    assert draw(vector, 1.0 - 2.0**-53) == 2


def test_draws_follow_the_logged_vector() -> None:
    # False-alarm rate 1e-4: the ids are fixed, so the outcome is too.
    vector = np.array([0.5, 0.05, 0.0, 0.15, 0.3], dtype=np.float32)
    us = [uniform(SALT, "draw", program="p", customer_id=f"c{i}", decision_id="d") for i in range(20_000)]
    counts = np.bincount([draw(vector, u) for u in us], minlength=5)
    seen = vector > 0
    assert counts[2] == 0
    assert chisquare(counts[seen], vector[seen] / vector.sum(dtype=np.float64) * len(us)).pvalue > 1e-4


def test_a_uniform_depends_on_each_of_its_words_and_on_where_they_end() -> None:
    def u(salt: Salt = SALT, purpose: str = "draw", program: str = "p", who: str = "c", which: str = "d") -> float:
        return uniform(salt, purpose, program=program, customer_id=who, decision_id=which)

    others = [u(salt=Salt("s", b"other")), u(purpose="arm"), u(program="q"), u(who="e"), u(which="f")]
    assert len({u(), *others, u(who="cd", which="")}) == 7
    assert u() == u()
