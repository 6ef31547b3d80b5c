"""Ways to choose. Each satisfies `optimizer.policy.Policy`; `KINDS` names them, `load` reads any of them back.

| kind | chooses by | learns |
|---|---|---|
| `uniform`, `hold`, `fixed`, `rules` | no model | nothing |
| `thompson` | votes of posterior draws of the factored model: the default | sums that add up over shards |
| `squarecb`, `greedy` | the same model: inverse gaps in closed form; the best | the same sums |
| `hierarchical` | `thompson`, with effects of its own for each segment | the same sums |
| `recovering` | softmax of differences, less what was sent lately | sums that add up over shards |
| `logistic` | inverse gaps on the factored model of yes or no | all rounds at once |
| `boosted` | inverse gaps on boosted trees | all rounds at once |
| `vowpal` | Vowpal Wabbit, compiled | round by round |
| `mixture` | several policies, weighted | each of them |

Importing this package loads neither scikit-learn nor vowpalwabbit nor numba.
"""

from pathlib import Path
from typing import ClassVar, Protocol, Self

from optimizer.actions import ActionSpace
from optimizer.policy import Policy
from policies import saved
from policies.boosted import Boosted
from policies.fixed import FixedNudge, Hold, Rules, Uniform
from policies.greedy import Greedy
from policies.hierarchical import Hierarchical
from policies.logistic import Logistic
from policies.mixture import Mixture, Packable
from policies.recovering import Recovering
from policies.saved import Saved
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from policies.vowpal import Vowpal

__all__ = ["KINDS", "load", "unpacked"]


class Kind(Packable, Protocol):
    """A policy of the registry."""

    name: ClassVar[str]

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        """Return what `load` reads."""
        ...


KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        *(Uniform, Hold, FixedNudge, Rules),
        *(Thompson, SquareCB, Greedy, Hierarchical, Recovering, Logistic),
        *(Boosted, Vowpal, Mixture),
    )
}


def load(folder: Path, space: ActionSpace) -> Policy:
    """Read a saved policy of any kind, aligned by name to a space; ValueError if the folder is not as it was saved.

    >>> from tempfile import TemporaryDirectory
    >>> space = ActionSpace(("badge",), ("warm",), ("now",))
    >>> with TemporaryDirectory() as folder:
    ...     Hold(space).save(Path(folder))
    ...     load(Path(folder), space).name
    'hold'
    """
    return unpacked(saved.read(folder), space)


def unpacked(packed: Saved, space: ActionSpace) -> Kind:
    """Return the policy that was packed, aligned by name to a space."""
    if packed.kind not in KINDS:
        raise ValueError(f"there is no policy kind {packed.kind!r}: expected one of {', '.join(sorted(KINDS))}")
    return KINDS[packed.kind].unpacked(packed, space)
