"""A small coverage study: intervals cover, the sequence covers at every look, the gate is rarely wrong."""

import numpy as np
import pytest

from benchmarks.coverage import Logger, coverage, gate, uniformly

pytestmark = pytest.mark.slow

LOGS = 60


@pytest.mark.parametrize("logger", ["independent", "adapting"])
def test_every_kind_of_interval_covers(logger: Logger) -> None:
    """Of 60 logs 95 % should cover: fewer than 51 has a chance below 1 in 1,000 for each of eight."""
    found = [coverage(seed, n=1_200, logger=logger, base=0.3) for seed in range(LOGS)]
    for method in ("student t", "bca", "poisson", "likelihood"):
        assert sum(f[f"{method} covers"] for f in found) >= 51, method


def test_the_sequence_covers_at_every_look() -> None:
    """Under a policy that adapts, with customers who come back: fewer than 51 of 60 has a chance below 1 in 1,000."""
    assert sum(uniformly(seed, n=1_500, logger="adapting")["covers"] for seed in range(LOGS)) >= 51


def test_a_gate_that_is_asked_fifty_times_is_rarely_wrong_and_sees_what_is_there() -> None:
    """Equal policies: more than 9 of 60 promotions at any look have a chance below 1 in 1,000 at 5 % each."""
    assert sum(gate(seed, n=3_000, logger="adapting", base=0.3, lift=0.0)["any"] for seed in range(LOGS)) <= 9
    assert np.mean([gate(s, n=6_000, logger="independent", base=0.3, lift=0.5)["last"] for s in range(5)]) == 1.0
