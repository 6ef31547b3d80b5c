"""What does each of many customers get, where no log is kept? The engine's decisions, without what only a log needs.

The same steps in the same order as `Optimizer.choose` (mask, prices, probabilities, floor, float32, draw), from the
same public pieces, and the same actions: a test holds the two together. What is saved: rows that may only be held ask
no policy, and policies that read no context are asked once for each mask that occurs, rather than once a customer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np

from optimizer.actions import HOLD, Bools, Floats, Floats32, Ints
from optimizer.customer import Cohort, encode, features
from optimizer.engine import CHAMPION, HOLDOUT, Chooser
from optimizer.events import draws
from optimizer.floor import apply_floor
from optimizer.guardrails import Guarded, Shared, allowed
from optimizer.policy import Policy, prices
from optimizer.program import Program
from policies.fixed import FixedNudge, Hold, Uniform

BLIND = (Hold, Uniform, FixedNudge)
"""Policies that look at the mask alone: neither at the context nor at prices."""

CHUNK = 2_048
"""Rows for which (n, k) arrays are made at once."""


class Chosen(NamedTuple):
    """What was chosen for `n` customers, (n,), and what the guardrails said."""

    actions: Ints
    guarded: Guarded

    def take(self, rows: slice) -> "Chosen":
        """Return some of the customers."""
        kept = {f.name: getattr(self.guarded, f.name)[rows] for f in fields(Guarded)}
        return Chosen(self.actions[rows], Guarded(**kept))


def choose(
    program: Program,
    rows: Cohort,
    choosers: Mapping[str, Chooser],
    *,
    arms: Sequence[str],
    us: Floats,
    shared: Shared,
) -> Chosen:
    """Choose for a cohort (n,) given each row's arm and number in [0, 1).

    Args:
        program: what is declared.
        rows: n customers.
        choosers: the policy of each arm.
        arms: (n,).
        us: (n,), numbers to draw by.
        shared: what is left, as a mask that these rows do not change (`Purse.standing`).
    """
    guarded = allowed(program, rows, shared=shared)
    actions = np.full(len(rows), HOLD, dtype=np.intp)
    open_ = _open(guarded)
    served = dict.fromkeys(arms)
    names = np.array(arms) if len(served) > 1 else None
    for arm in served:
        if arm == HOLDOUT:
            continue
        policy = choosers.get(arm, choosers[CHAMPION]).policy
        who = np.flatnonzero(open_ if names is None else open_ & (names == arm))
        if isinstance(policy, BLIND):
            actions[who] = _blindly(program, policy, _levels(guarded, who), us=us[who])
        else:
            for start in range(0, len(who), CHUNK):
                some = who[start : start + CHUNK]
                actions[some] = _seeing(program, policy, rows.take(some), guarded, some, us=us[some], shared=shared)
    return Chosen(actions, guarded)


def _open(guarded: Guarded) -> Bools:
    """Shape (n,): whether any nudge is allowed."""
    free: Bools = guarded.nudge == 0
    for codes in (guarded.incentive, guarded.tone, guarded.timing):
        free = free & (codes == 0).any(axis=1)
    return free


def _levels(guarded: Guarded, who: Ints) -> Bools:
    """Shape (m, levels): which levels of each axis are allowed to customers (m,)."""
    axes = (guarded.incentive, guarded.tone, guarded.timing)
    return np.concatenate([codes[who] == 0 for codes in axes], axis=1)


def _blindly(program: Program, policy: Policy, levels: Bools, *, us: Floats) -> Ints:
    """Shape (m,): what is drawn where the allowed levels (m, levels) decide the probabilities."""
    if not len(levels):
        return np.empty(0, dtype=np.intp)
    packed = np.ascontiguousarray(np.packbits(levels, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    actions = np.empty(len(levels), dtype=np.intp)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which))
    for start in range(0, len(first), CHUNK):
        distinct = levels[first[start : start + CHUNK]]
        cumulative = np.cumsum(_vectors_of(program, policy, distinct), axis=1, dtype=np.float64)
        for i, row in enumerate(cumulative, start=start):
            mine = order[ends[i - 1] if i else 0 : ends[i]]
            points = np.minimum(us[mine] * row[-1], np.nextafter(row[-1], 0.0))
            actions[mine] = row.searchsorted(points, side="right")
    return actions


def _vectors_of(program: Program, policy: Policy, levels: Bools) -> Floats32:
    """Shape (u, k): what is drawn from under each set of allowed levels (u, levels)."""
    space, n = program.space, len(levels)
    axes = np.split(levels, space.starts[1:], axis=1)
    cells = axes[0][:, :, None, None] & axes[1][:, None, :, None] & axes[2][:, None, None, :]
    mask = np.ones((n, space.k), dtype=np.bool_)
    mask[:, 1:] = cells.reshape(n, -1)
    contexts = np.zeros((n, len(program.features)))
    chosen = policy.probabilities(contexts, mask, np.zeros((n, space.k)))
    return apply_floor(chosen, space, allowed=mask, exploration=program.exploration).astype(np.float32)


def _seeing(
    program: Program, policy: Policy, rows: Cohort, guarded: Guarded, who: Ints, *, us: Floats, shared: Shared
) -> Ints:
    """Shape (m,): what is drawn for customers (m,) by a policy that looks at them."""
    kept = {f.name: getattr(guarded, f.name)[who] for f in fields(Guarded)}
    mask = Guarded(**kept).mask
    burdens = program.guardrails.burden_price * rows.dosage
    priced = prices(program.space, cost_prices=np.full(len(who), shared.cost_price), burdens=burdens)
    chosen = policy.probabilities(encode(program, features(program, rows)), mask, priced)
    vectors = apply_floor(chosen, program.space, allowed=mask, exploration=program.exploration).astype(np.float32)
    return draws(vectors, us)
