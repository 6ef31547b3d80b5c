"""What has a policy learned of the factored model? The sums, what they say, and how both are kept by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from optimizer.actions import ActionSpace, Floats
from optimizer.policy import Rounds
from policies import saved
from policies.changes import Learned
from policies.factored import Statistics, shapes, summarise
from policies.ladders import Ladders
from policies.layout import BIAS, GROUPS, Layout, layout
from policies.posterior import EXPECTED, Prior, Weights, effects, mean_for, weights
from policies.saved import Array, Saved

NEVER = "never"
"""How a half-life without end is kept."""

_SQUARE = ("zz", "uu")
"""Sums that are symmetric, so that half of them is kept."""


@dataclass(frozen=True)
class Model:
    """The factored model of one space, as learned: possibly from rounds of another version of it.

    Args:
        space: the actions and features asked about.
        statistics: the sums, by their own names.
        prior: the scales found from them.
        mean: (p,), posterior mean, by the prior's names.
        noise: standard deviation of the reward around the model.
        freedom: how many parameters the data have determined.
        changed: since when rounds count, where effects were found to have changed; None where they never were.
        gross: whether rewards are summed up before costs; they were not in what was saved before that was told.
    """

    space: ActionSpace
    statistics: Statistics
    prior: Prior
    mean: Floats
    noise: float
    freedom: float
    changed: float | None = None
    gross: bool = True

    @classmethod
    def new(cls, space: ActionSpace, *, half_life: float | None = None) -> Self:
        """Return the model before any round."""
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life must be positive seconds, infinite or None, got {half_life!r}")
        named = layout(space)
        prior = Prior(named, EXPECTED.copy(), np.ones(len(named.columns)))
        empty = Statistics.empty(named, half_life=half_life)
        return cls(space, empty, prior, np.zeros(len(named.parameters)), noise=1.0, freedom=0.0)

    def refitted(self, learned: Learned) -> "Model":
        """Return the model that the rounds which count say."""
        if not self.gross:
            raise ValueError(
                "this policy was saved by an earlier version, with costs inside its sums: it can be served, and learns "
                "no more; train one anew from its rounds"
            )
        p = learned.posterior
        changed = learned.statistics.since if learned.changed else self.changed
        return Model(self.space, learned.statistics, p.prior, p.mean, noise=p.noise, freedom=p.freedom, changed=changed)

    @cached_property
    def layout(self) -> Layout:
        """The parameters of the space asked about."""
        return layout(self.space)

    @cached_property
    def weights(self) -> Weights:
        """The mean as it is used to score."""
        return weights(self.layout, mean_for(self.layout, self.mean, of=self.prior.layout), costs=self.costs)

    @property
    def costs(self) -> Floats | None:
        """Shape (k,): what is taken from gains as the sums tell them, in reward units; None where they are net."""
        return self.space.action_costs if self.gross else None

    @cached_property
    def ladders(self) -> Ladders:
        """The ladders of the space asked about, along which predictions rise."""
        return Ladders.of(self.space)

    @cached_property
    def n(self) -> float:
        """The weight of the rounds behind it."""
        return float(self.statistics.n.sum())

    def effects(self, contexts: Floats) -> Floats:
        """Return the expected gain (n, k) of each action over hold, in reward units."""
        return effects(self.layout, self.weights, contexts, ladders=self.ladders)

    def summed(self, rounds: Rounds) -> Statistics:
        """Sum rounds up, to be added to those so far."""
        s = self.statistics
        return summarise(self.space, rounds, half_life=s.half_life, since=s.since)

    def packed(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the settings and arrays that keep it."""
        s = self.statistics
        settings = {
            "names": saved.names(s.layout.space),
            "trained": saved.names(self.prior.layout.space),
            "half_life": NEVER if s.half_life == np.inf else s.half_life,
            "since": s.since if np.isfinite(s.since) else None,
            "as_of": s.as_of if np.isfinite(s.as_of) else None,
            "changed": self.changed,
            "fingerprint": str(s.fingerprint),
            "noise": self.noise,
            "freedom": self.freedom,
            "gross": self.gross,
        }
        arrays = {f"sum-{name}": a[np.tril_indices(len(a))] if name in _SQUARE else a for name, a in s.sums.items()}
        learned = {"scales": self.prior.scales, "column_scales": self.prior.column_scales, "mean": self.mean}
        return {"model": settings}, arrays | learned

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        """Read a model back, to be asked about another version of its space."""
        kept = packed.setting("model", dict)
        try:
            trained, statistics = _layout(kept["trained"]), _statistics(packed, kept)
            noise, freedom, changed = float(kept["noise"]), float(kept["freedom"]), _number(kept.get("changed"))
            gross = bool(kept.get("gross", False))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"saved {packed.kind} policy: model is malformed ({error}); train it again") from None
        prior = Prior(
            trained,
            packed.array("scales", (GROUPS,)),
            packed.array("column_scales", (len(trained.columns),)),
        )
        mean = packed.array("mean", (len(trained.parameters),))
        return cls(space, statistics, prior, mean, noise=noise, freedom=freedom, changed=changed, gross=gross)


def _layout(names: Mapping[str, list[str]]) -> Layout:
    return Layout(saved.space_of(names))


def _statistics(packed: Saved, kept: Mapping[str, Any]) -> Statistics:
    named = _layout(kept["names"])
    sums = {
        name: _symmetric(packed, name, shape[0]) if name in _SQUARE else packed.array(f"sum-{name}", shape)
        for name, shape in shapes(named).items()
        if name != "r34"
    }
    told = "sum-r34" in packed.arrays  # what was saved before does not tell
    sums["r34"] = packed.array("sum-r34", (2,)) if told else _as_of_gaussian(sums, named)
    half_life = np.inf if kept["half_life"] == NEVER else _number(kept["half_life"])
    as_of = _number(kept["as_of"])
    since = _number(kept.get("since", as_of))
    return Statistics(
        named,
        half_life,
        np.inf if since is None else since,
        -np.inf if as_of is None else as_of,
        int(kept["fingerprint"]),
        (),
        **sums,
    )


def _as_of_gaussian(sums: Mapping[str, Floats], named: Layout) -> Floats:
    """Shape (2,): sums of the reward's third and fourth powers, if it is Gaussian."""
    n = max(float(sums["n"].sum()), 1.0)
    mean = float(sums["yr"][:, named.columns.index(BIAS)].sum()) / n
    variance = float(sums["rr"].sum()) / n - mean**2
    return n * np.array([mean**3 + 3 * mean * variance, mean**4 + 6 * mean**2 * variance + 3 * variance**2])


def _number(kept: object) -> float | None:
    """Return a number or null as it was kept."""
    if kept is not None and not isinstance(kept, float | int):
        raise TypeError(f"{kept!r} is no number")
    return None if kept is None else float(kept)


def _symmetric(packed: Saved, name: str, p: int) -> Floats:
    whole = np.zeros((p, p))
    whole[np.tril_indices(p)] = packed.array(f"sum-{name}", (p * (p + 1) // 2,))
    both: Floats = whole + np.tril(whole, -1).T
    return both
