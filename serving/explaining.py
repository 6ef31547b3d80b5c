"""What did the policy think of each level? Scores by factor: why this incentive, tone and timing, and why no other.

A score is in reward units: `nudge` is what the average possible nudge gains over hold, and each level's is what it
adds to that or takes from it. A level that a rule blocked has one too: what it would have been worth.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from optimizer.actions import FACTORS, HOLD, Bools, Floats
from optimizer.customer import columns_of, encode
from optimizer.events import Scalar
from optimizer.policy import Policy
from optimizer.program import Program

DIGITS = 6


def scores(
    program: Program, policy: Policy, *, context: Mapping[str, Scalar], blocked: Mapping[str, str]
) -> dict[str, float] | None:
    """Return the score of each level under what was seen of a customer; None if the policy scores nothing.

    Args:
        program: a version whose levels are asked about.
        policy: aligned with that version.
        context: as logged.
        blocked: the rule that blocked each level, as logged.
    """
    expected = gains(policy, encode(program, columns_of(program, [context])))
    return None if expected is None else by_factor(program, expected[0], blocked=blocked)


def gains(policy: Policy, contexts: Floats) -> Floats | None:
    """Return the expected gain of each action over hold (n, k), from a policy that has an idea of it; else None.

    A mixture's is the weighted mean of those of its parts that have one.
    """
    parts: Sequence[Policy] = getattr(policy, "parts", ())
    if parts:
        weighed = [(w, gains(p, contexts)) for p, w in zip(parts, getattr(policy, "weights", ()), strict=True)]
        known = [(w, g) for w, g in weighed if g is not None]
        total = sum(w for w, _ in known)
        mixed: Floats | None = sum(w / total * g for w, g in known) if known else None
        return mixed
    found = _scorer(policy)
    if found is None:
        return None
    scored = found(contexts)
    return scored - scored[:, [HOLD]]


def _scorer(policy: Policy) -> Callable[[Floats], Floats] | None:
    """Return what scores actions (n, k), more being better."""
    for name in ("effects", "rewards"):
        if (method := getattr(policy, name, None)) is not None:
            scorer: Callable[[Floats], Floats] = method
            return scorer
    return None


def by_factor(program: Program, gained: Floats, *, blocked: Mapping[str, str]) -> dict[str, float]:
    """Return what the average possible nudge gains, and what each level adds to it.

    Args:
        program: declares the levels.
        gained: (k,), expected gain of each action over hold.
        blocked: rules by level; a level is compared over the cells whose other two levels are not blocked.
    """
    space = program.space
    free = [
        np.array([f"{f}={x}" not in blocked for x in names]) for f, names in zip(FACTORS, space.factors, strict=True)
    ]
    open_levels = [mask if mask.any() else np.ones_like(mask) for mask in free]
    usable = [open_levels[f][space.levels[1:, f]] for f in range(len(FACTORS))]
    nudges, every = gained[1:], usable[0] & usable[1] & usable[2]
    mean = float(nudges[every].mean())
    found = {"nudge": round(mean, DIGITS)}
    for f, (factor, names) in enumerate(zip(FACTORS, space.factors, strict=True)):
        others: Bools = np.logical_and.reduce([u for g, u in enumerate(usable) if g != f])
        for level, name in enumerate(names):
            cells = others & (space.levels[1:, f] == level)
            found[f"{factor}={name}"] = round(float(nudges[cells].mean()) - mean, DIGITS)
    return found
