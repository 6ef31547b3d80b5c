"""What if effects are not linear? Gradient boosting over context and factor levels, compiled to arrays for serving."""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from policies import saved
from policies.compiled import compile_loops
from policies.factored import FOLDS
from policies.inputs import check, check_rounds
from policies.layout import Layout, layout
from policies.saved import Array, Kept, Saved
from policies.squarecb import inverse_gap
from policies.threads import one_thread

_BOTH, _LEAF = -1, -2
"""In place of a column: a split on the action, of which both sides are wanted; a leaf."""


class Forest(NamedTuple):
    """Trees over context and levels, as arrays: `s` nodes, of which `v` are leaves.

    Args:
        layout: the names of columns and levels.
        roots: (trees,), where each tree starts.
        columns: (s,), the column split on; -1 for a level; -2 for a leaf.
        thresholds: (s,), the largest value that goes left.
        lefts, rights: (s,), the nodes below; for a leaf, `lefts` is its number.
        values: (v,), what a leaf adds to the reward.
        needs: (v, l), 1 where an action must have the level to reach the leaf, 0 where it must not, -1 elsewhere.
    """

    layout: Layout
    roots: Ints
    columns: Ints
    thresholds: Floats
    lefts: Ints
    rights: Ints
    values: Floats
    needs: npt.NDArray[np.int8]

    @classmethod
    def empty(cls, named: Layout) -> Self:
        """Return no trees."""
        none = np.zeros(0, dtype=np.intp)
        needs = np.zeros((0, len(named.levels)), dtype=np.int8)
        return cls(named, none, none, np.zeros(0), none, none, np.zeros(0), needs)


class Boosted(Kept):
    """Chooses by inverse gaps on a boosted reward model, for effects that no straight line follows.

    Two boostings (Friedman 2001): of the reward on the context, cross-fitted over customers, and of what that leaves on
    context and levels. Probabilities are those of `squarecb`, with the number of leaves as the model's freedom. It
    learns from the rounds of one call: learning again starts anew. Trees are weak at adding up many small effects:
    where those are linear, `thompson` needs far fewer rounds.

    Args:
        space: the actions and features.
        trees: how many are added up. leaves: of each, at most. rate: how much of a tree is added.
        scale: as in `squarecb`.

    >>> policy = Boosted(ActionSpace(("badge",), ("warm",), ("now",), features=("bias",)))
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.zeros(2)).tolist()
    [[0.5, 0.5]]
    """

    name: ClassVar[str] = "boosted"

    def __init__(
        self, space: ActionSpace, *, trees: int = 100, leaves: int = 15, rate: float = 0.1, scale: float = 10.0
    ) -> None:
        if not (1 <= trees <= 10_000 and 2 <= leaves <= 255 and 0 < rate <= 1 and 0 < scale < np.inf):
            raise ValueError(
                f"trees = {trees!r}, leaves = {leaves!r}, rate = {rate!r}, scale = {scale!r}: expected "
                "1 to 10,000 trees of 2 to 255 leaves, a rate in (0, 1] and a positive scale"
            )
        self.space = space
        self.trees, self.leaves, self.rate, self.scale = trees, leaves, rate, scale
        self._become(Forest.empty(layout(space)), gamma=0.0)

    def _become(self, forest: Forest, *, gamma: float) -> None:
        self.forest, self.gamma = forest, gamma
        self._layout = layout(self.space)
        self._cells = cells(forest, self._layout)
        here = {name: i for i, name in enumerate(self._layout.columns)}
        self._sources = np.array([here.get(name, -1) for name in forest.layout.columns])

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        return inverse_gap(self.rewards(contexts) - prices, allowed, gamma=self.gamma)

    def rewards(self, contexts: Floats) -> Floats:
        """Return the expected reward (n, k) of each action, over what the context alone predicts."""
        x = self._layout.design(contexts)
        known = np.where(self._sources >= 0, x[:, self._sources], 0.0)
        scored = np.zeros((len(x), self.space.k))
        f = self.forest
        _kernel()(f.roots, f.columns, f.thresholds, f.lefts, f.rights, self._cells, known, scored)
        return scored

    def learn(self, rounds: Rounds) -> None:
        if not len(rounds):
            return
        check_rounds(self.space, rounds)
        with one_thread():
            self._fit(rounds)

    def _fit(self, rounds: Rounds) -> None:
        named = layout(self.space)
        x = named.design(rounds.contexts)
        left = rounds.rewards - self._baseline(x, rounds)
        features = np.concatenate([x, named.level_features[rounds.actions]], axis=1)
        model = self._boosting(features, left)
        noise = float(np.std(left - model.predict(features))) or 1.0
        forest = compiled(model, named)
        freedom = max(len(forest.values), 1)
        self._become(forest, gamma=self.scale * float(np.sqrt(len(rounds) / freedom)) / noise)

    def _baseline(self, x: Floats, rounds: Rounds) -> Floats:
        """Shape (n,): the reward that the context predicts, for each customer from the other folds' customers."""
        folds = rounds.customers % FOLDS
        predicted = np.full(len(x), rounds.rewards.mean())
        for fold in np.unique(folds):
            mine = folds == fold
            if not mine.all():
                predicted[mine] = self._boosting(x[~mine], rounds.rewards[~mine]).predict(x[mine])
        return predicted

    def _boosting(self, features: Floats, rewards: Floats) -> Any:
        """Return scikit-learn's model, the same for the same rounds."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(
            max_iter=self.trees,
            max_leaf_nodes=self.leaves,
            learning_rate=self.rate,
            early_stopping=False,
            random_state=0,
        )
        return model.fit(features, rewards)

    def packed(self) -> Saved:
        settings = {
            "trees": self.trees,
            "leaves": self.leaves,
            "rate": self.rate,
            "scale": self.scale,
            "gamma": self.gamma,
            "trained": saved.names(self.forest.layout.space),
        }
        arrays: dict[str, Array] = {name: getattr(self.forest, name) for name in self.forest._fields[1:]}
        return Saved(self.name, self.space, settings, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        policy = cls(
            space,
            trees=packed.setting("trees", int),
            leaves=packed.setting("leaves", int),
            rate=packed.setting("rate", float),
            scale=packed.setting("scale", float),
        )
        named = Layout(saved.space_of(packed.setting("trained", dict)))
        nodes = len(packed.array("columns", (-1,)))
        leaves = len(packed.array("values", (-1,)))
        forest = Forest(
            named,
            packed.array("roots", (-1,)),
            packed.array("columns", (nodes,)),
            packed.array("thresholds", (nodes,)),
            packed.array("lefts", (nodes,)),
            packed.array("rights", (nodes,)),
            packed.array("values", (leaves,)),
            packed.array("needs", (leaves, len(named.levels))),
        )
        _check(forest)
        policy._become(forest, gamma=packed.setting("gamma", float))
        return policy


def compiled(model: Any, named: Layout) -> Forest:
    """Return the trees of a fitted `HistGradientBoostingRegressor` on columns and levels, less its constant."""
    d = len(named.columns)
    nodes = _Nodes([], [], [], [])
    roots: list[int] = []
    values: list[float] = []
    needs: list[npt.NDArray[np.int8]] = []
    for (tree,) in model._predictors:  # noqa: SLF001  (verified against `predict` by a test)
        rows = tree.nodes
        roots.append(len(nodes.columns))
        needed = np.full((len(rows), len(named.levels)), -1, dtype=np.int8)
        for at, row in enumerate(rows):
            if row["is_leaf"]:
                nodes.add(_LEAF, 0.0, len(values), 0)
                values.append(float(row["value"]))
                needs.append(needed[at])
                continue
            below, column = (int(row["left"]), int(row["right"])), int(row["feature_idx"])
            for side, child in enumerate(below):
                needed[child] = needed[at]
                if column >= d:
                    needed[child, column - d] = side
            first = roots[-1]
            nodes.add(column if column < d else _BOTH, float(row["num_threshold"]), first + below[0], first + below[1])
    return Forest(
        named,
        np.array(roots, dtype=np.intp),
        np.array(nodes.columns, dtype=np.intp),
        np.array(nodes.thresholds),
        np.array(nodes.lefts, dtype=np.intp),
        np.array(nodes.rights, dtype=np.intp),
        np.array(values),
        np.array(needs, dtype=np.int8).reshape(-1, len(named.levels)),
    )


class _Nodes(NamedTuple):
    """Nodes in the making: sklearn numbers a node before those below it."""

    columns: list[int]
    thresholds: list[float]
    lefts: list[int]
    rights: list[int]

    def add(self, column: int, threshold: float, left: int, right: int) -> None:
        self.columns.append(column)
        self.thresholds.append(threshold)
        self.lefts.append(left)
        self.rights.append(right)


def cells(forest: Forest, to: Layout) -> Floats:
    """Return what each leaf adds to each action of a layout, (v, k); a level that is new there is no tree's."""
    here = {name: i for i, name in enumerate(to.levels)}
    features = np.zeros((to.space.k, len(forest.layout.levels)))
    for i, name in enumerate(forest.layout.levels):
        if name in here:
            features[:, i] = to.level_features[:, here[name]]
    must, must_not = (forest.needs == 1).astype(float), (forest.needs == 0).astype(float)
    reached = (must @ features.T == must.sum(axis=1, keepdims=True)) & (must_not @ features.T == 0)
    return np.where(reached, forest.values[:, None], 0.0)


def _check(forest: Forest) -> None:
    """Raise ValueError unless every walk through the trees ends in a leaf: the compiled walk checks nothing."""
    f = forest
    nodes = np.arange(len(f.columns))
    leaf = f.columns == _LEAF
    below = (f.lefts > nodes) & (f.rights > nodes) & (f.lefts < len(nodes)) & (f.rights < len(nodes))
    numbered = (f.lefts >= 0) & (f.lefts < len(f.values))
    sound = np.where(leaf, numbered, below) & (f.columns >= _LEAF) & (f.columns < len(f.layout.columns))
    if not sound.all() or ((f.roots < 0) | (f.roots >= len(nodes))).any():
        raise ValueError("saved boosted policy: its trees lead nowhere; train it again")


def walk(  # noqa: PLR0917  (numba takes arguments by position)
    roots: Ints,
    columns: Ints,
    thresholds: Floats,
    lefts: Ints,
    rights: Ints,
    cells: Floats,
    x: Floats,
    scored: Floats,
) -> None:
    """Add to `scored` (n, k) the leaves that each row of x (n, d) reaches, by any action: plain Python, or compiled."""
    waiting = np.empty(len(columns) + 1, dtype=np.intp)
    for row in range(len(x)):
        for root in roots:
            waiting[0] = root
            left = 1
            while left > 0:
                left -= 1
                node = waiting[left]
                column = columns[node]
                if column == _LEAF:
                    for action in range(scored.shape[1]):
                        scored[row, action] += cells[lefts[node], action]
                elif column == _BOTH:
                    waiting[left], waiting[left + 1] = rights[node], lefts[node]
                    left += 2
                else:
                    waiting[left] = lefts[node] if x[row, column] <= thresholds[node] else rights[node]
                    left += 1


@cache
def _kernel() -> Callable[..., None]:
    return compile_loops(walk)
