"""What is logged? Decisions and outcomes, and `draw`, the one use of chance."""

from hashlib import blake2b
from typing import NamedTuple

import msgspec
import numpy as np

from optimizer.actions import Floats, Floats32, Ints

Scalar = str | float | bool | None


class Salt(NamedTuple):
    """The secret that keys the draw; its id is logged, the key never is."""

    id: str
    key: bytes


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen, from which probabilities, under which mask and prices. Raw, append-only.

    `at` and `deliver_at` are seconds since the epoch, `probabilities` is the float32 vector (k,) drawn from, as
    little-endian bytes, over `program_version`'s action names in order. `blocked` gives the rule by axis level
    (`"nudge"`, `"incentive=coupon"`, `"timing=evening"`); `cost` is what the nudge reserves, in minor units.
    """

    decision_id: str
    customer_id: str
    program: str
    program_version: str
    policy: str
    policy_version: str
    arm: str
    at: float
    context: dict[str, Scalar]
    probabilities: bytes
    action: int
    action_name: str
    deliver_at: float | None
    cost: int
    cost_price: float
    burden: float
    salt_id: str
    blocked: dict[str, str]

    @property
    def vector(self) -> Floats32:
        """Shape (k,): the probabilities drawn from."""
        return np.frombuffer(self.probabilities, dtype="<f4")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. A higher `revision` of the same `outcome_id` replaces it; `revoked` takes it back.

    `decision_id` serves reporting and delivery (`shown`, `not_shown`) only: reward is joined by customer and time.
    """

    outcome_id: str
    customer_id: str
    program: str
    event: str
    at: float
    received_at: float
    revision: int = 0
    decision_id: str | None = None
    value: float | None = None
    revoked: bool = False


def uniform(salt: Salt, purpose: str, *, program: str, customer_id: str, decision_id: str = "") -> float:
    """Return a number in [0, 1) that is a pure function of its arguments: a keyed BLAKE2b of them.

    Retries repeat, audits replay bit for bit, and a client that picks its ids cannot pick its action.

    >>> salt = Salt("s1", b"secret")
    >>> uniform(salt, "draw", program="p", customer_id="c", decision_id="d")
    0.7454...
    >>> uniform(salt, "holdout", program="p", customer_id="c") < 1
    True
    """
    lengths = f"{len(purpose)},{len(program)},{len(customer_id)}:"  # so that no two sets of words read the same
    text = f"{lengths}{purpose}{program}{customer_id}{decision_id}".encode()
    digest = blake2b(text, digest_size=8, key=salt.key).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(probabilities: Floats32, u: float) -> int:
    """Return the action that `u` in [0, 1) picks from the logged vector (k,).

    The cumulative sum is float64 of the float32 vector, so a replay from the log is bit-identical, and the chance of
    action a is exactly `probabilities[a] / probabilities.sum()`.

    >>> draw(np.array([0.25, 0.0, 0.75], dtype=np.float32), 0.25)
    2
    """
    cumulative = np.cumsum(probabilities, dtype=np.float64)
    total = cumulative[-1]
    return int(cumulative.searchsorted(min(u * total, np.nextafter(total, 0.0)), side="right"))


def draws(probabilities: Floats32, us: Floats) -> Ints:
    """Draw for each row of (n, k), given (n,) numbers in [0, 1): the same actions as `draw`, row by row."""
    if len(us) == 1:  # a third of the time
        return np.array([draw(probabilities[0], float(us[0]))], dtype=np.intp)
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    totals = cumulative[:, -1]
    points = np.minimum(us * totals, np.nextafter(totals, 0.0))
    actions: Ints = (cumulative <= points[:, None]).sum(axis=1, dtype=np.intp)
    return actions
