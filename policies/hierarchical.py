"""What if segments differ in what moves them? Effects by segment on a few slopes, pooled as far as the data say."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from policies.factored import Statistics
from policies.inputs import check, check_rounds
from policies.layout import BIAS, BY
from policies.saved import Kept, Saved, within
from policies.thompson import Thompson

SLOPES = ("momentum", "dosage", "nudge_recency", "streak")
"""What a segment may respond to in its own way, where a space has it and nothing else is named."""

UNKNOWN = "=?"
"""How the feature ends that says that something is unknown: no segment."""


class Hierarchical(Kept):
    """Thompson sampling with effects of its own for each segment, on a few slopes.

    Mixed effects (Tomkins et al. 2021, IntelligentPooling): to the effects that all share, `thompson`'s, each segment
    adds its own response of nudge, incentive, tone and timing to each slope. How far segments differ is a scale for
    each factor, found from the data (empirical Bayes): where they are alike they are pooled. Sums add up over shards.
    Segments are features that are 1 for those in it; intercepts by segment are among what `thompson` already has.

    Args:
        space: the actions and features.
        segments: features that mark one; every `attribute=category` of the space where None.
        slopes: features to whose value a segment may respond in its own way; `SLOPES` of the space where None.
        members, boldness, half_life: as in `thompson`.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",), features=("bias", "stage=new", "momentum"))
    >>> Hierarchical(space).products
    ('stage=new x momentum',)
    >>> policy = Hierarchical(space, segments=("stage=old",))
    Traceback (most recent call last):
    ValueError: segments: there is no feature 'stage=old'; expected some of bias, stage=new, momentum
    """

    name: ClassVar[str] = "hierarchical"

    def __init__(
        self,
        space: ActionSpace,
        *,
        segments: Sequence[str] | None = None,
        slopes: Sequence[str] | None = None,
        members: int = 128,
        boldness: float = 0.1,
        half_life: float | None = None,
    ) -> None:
        for what, given in (("segments", segments), ("slopes", slopes)):
            for unknown in [f for f in given or () if f not in space.features]:
                raise ValueError(
                    f"{what}: there is no feature {unknown!r}; expected some of {', '.join(space.features) or 'none'}"
                )
        self._set(space, segments=segments, slopes=slopes)
        self.inner = Thompson(self._wide, members=members, boldness=boldness, half_life=half_life)

    def _set(self, space: ActionSpace, *, segments: Sequence[str] | None, slopes: Sequence[str] | None) -> None:
        marks = [f for f in space.features if "=" in f and not f.endswith(UNKNOWN)]
        self.space = space
        self.segments = tuple(marks if segments is None else segments)
        self.slopes = tuple([f for f in SLOPES if f in space.features] if slopes is None else slopes)
        here = {name: i for i, name in enumerate(space.features)}
        pairs = [(a, b) for a in self.segments for b in self.slopes if a in here and b in here]
        self.products = tuple(f"{a}{BY}{b}" for a, b in pairs)
        self._first: Ints = np.array([here[a] for a, _ in pairs], dtype=np.intp)
        self._second: Ints = np.array([here[b] for _, b in pairs], dtype=np.intp)
        first = () if BIAS in space.features else (BIAS,)
        self._wide = replace(space, features=(*first, *space.features, *self.products))

    def _widened(self, contexts: Floats) -> Floats:
        """Return contexts (n, d) beside the products of segments and slopes."""
        ones = np.ones((len(contexts), 0 if BIAS in self.space.features else 1))
        return np.concatenate([ones, contexts, contexts[:, self._first] * contexts[:, self._second]], axis=1)

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return self.inner.probabilities(self._widened(contexts), allowed, prices)

    def effects(self, contexts: Floats) -> Floats:
        """Return the expected gain (n, k) of each action over hold, in reward units."""
        return self.inner.effects(self._widened(contexts))

    @property
    def changed(self) -> float | None:
        """Since when rounds count, where effects were found to have changed."""
        return self.inner.changed

    def learn(self, rounds: Rounds) -> None:
        check_rounds(self.space, rounds)
        self.inner.learn(replace(rounds, contexts=self._widened(rounds.contexts)))

    def absorb(self, statistics: Statistics) -> None:
        """Learn from rounds that were summed up elsewhere, over this policy's own products too."""
        self.inner.absorb(statistics)

    def packed(self) -> Saved:
        settings, arrays = within({"inner": self.inner.packed()})
        own = {"segments": list(self.segments), "slopes": list(self.slopes)}
        return Saved(self.name, self.space, {**own, **settings}, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        policy = cls.__new__(cls)
        policy._set(space, segments=_names(packed, "segments"), slopes=_names(packed, "slopes"))  # noqa: SLF001
        policy.inner = Thompson.unpacked(packed.part("inner"), policy._wide)  # noqa: SLF001  (its own)
        return policy


def _names(packed: Saved, setting: str) -> list[str]:
    return [str(name) for name in packed.setting(setting, list)]
