"""How does Vowpal Wabbit choose? It learns here, and its weights are read out: served as arrays, without VW.

Rounds are learned by `--cb_explore_adf`. Of its ways to learn, `--cb_type mtr` is told the drawn action alone, with the
probability `p x allowed actions` (at most 1): the weight that VW gives the round when it is shown all actions, without
parsing 300 of them. `ips` and `dr` learn from all allowed actions, which are parsed. SquareCB has `mtr` alone.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, NoReturn, Self
from urllib.parse import quote

import numpy as np

from optimizer.actions import ActionSpace, Bools, Floats, Ints
from optimizer.policy import Rounds
from policies import saved
from policies.factored import Statistics
from policies.inputs import check, check_rounds
from policies.layout import PAIRS, Layout, layout
from policies.saved import Array, Kept, Saved
from policies.vowpal_arithmetic import NIL, Sums, inverse_gap, raised, read, votes

CB_TYPES = ("mtr", "ips", "dr")

_FNV_PRIME = 16_777_619
"""VW's hash of a pair of features is `(prime x first) xor second`."""

_SPACES = {"incentive": "i", "tone": "t", "timing": "m", "hold": "h"}
_FIXED = "--quiet --noconstant --cb_explore_adf -q xh -q xi -q xt -q xm -q it -q im -q tm"

_REFUSED = {
    "--elim": "with --squarecb it gives negative probabilities; leave it out",
    "--regcb": "its bounds assume costs in [0, 1], which rewards in money are not; use --squarecb",
    "--regcbopt": "its answer is not a distribution: every tied action gets 1; use --squarecb",
    "--large_action_space": "it gives most actions probability 0, so no log of it can be evaluated; leave it out",
    "--merge_models": "merging resets SquareCB's exploration, so a converged model chooses evenly; train on all rounds",
    "--cover": "its members are weighted by state that cannot be read out; use --bag",
    "--softmax": "its probabilities follow the unit of reward; use --squarecb",
    "--greedify": "use --bag without it, so that members vote",
    "--l1": "weights are cut by state that VW keeps beside them and does not tell; leave it out",
    "--l2": "weights are shrunk by state that VW keeps beside them and does not tell; leave it out",
    "--first_only": "ties are shared evenly here, as VW does by default; leave it out",
}


class Arguments(NamedTuple):
    """What VW is told, as far as deciding depends on it.

    Args:
        explore: `squarecb`, `epsilon` or `bag`.
        epsilon: least probability, times the number of allowed actions.
        gamma_scale, gamma_exponent: of SquareCB: gaps count `scale x learned rounds ** exponent`.
        members: of a bag; 1 otherwise.
        bits: of the hash.
        cb_type: `mtr`, `ips` or `dr`: how costs are learned.
    """

    explore: str
    epsilon: float
    gamma_scale: float
    gamma_exponent: float
    members: int
    bits: int
    cb_type: str

    @property
    def least(self) -> float:
        """Least probability of an action, times their number, as it is used: VW takes more than 0.999 for 1."""
        return 1.0 if self.epsilon > 0.999 and self.explore != "epsilon" else self.epsilon


class Learned(NamedTuple):
    """The weights of VW, as costs, by the names of a layout; `b` members of a bag.

    Args:
        layout: the names.
        parameters: (p, b): what a level's column and a pair cost. `nudge` is what hold would have cost, negated.
        constants: (l, b): what a level costs whatever the context.
        hold: (d, b): what a column costs under hold.
    """

    layout: Layout
    parameters: Floats
    constants: Floats
    hold: Floats

    @classmethod
    def nothing(cls, named: Layout, *, members: int) -> Self:
        """Return the weights before any round."""
        sizes = len(named.parameters), len(named.levels), len(named.columns)
        return cls(named, *(np.zeros((size, members)) for size in sizes))

    def under(self, other: Layout) -> Self:
        """Return the weights by the names of another layout; what is new there costs nothing."""
        return type(self)(
            other,
            _taken(self.parameters, other.positions(self.layout)),
            _taken(self.constants, _places(other.levels, self.layout.levels)),
            _taken(self.hold, _places(other.columns, self.layout.columns)),
        )

    def sums(self, at: int) -> Sums:
        """Return what one member of the bag adds up: an action's levels, the columns, the pairs, the slopes."""
        named, levels, columns = self.layout, self.layout.space.levels, range(len(self.layout.columns))
        parameters, constants = self.parameters[:, at], self.constants[:, at]
        slopes, pairs = parameters[: named.mains].reshape(len(named.levels), -1), parameters[named.mains :]
        offsets = 1 + np.cumsum((0, *named.space.shape[:2]))
        starts = np.cumsum([0, *(named.space.shape[a] * named.space.shape[b] for a, b in PAIRS)])

        def by_action(of_levels: Floats, factor: int) -> Floats:
            each: Floats = np.moveaxis(of_levels[offsets[factor] + levels[:, factor]], 0, -1)
            each[..., 0] = 0.0 if factor else -of_levels[0]  # hold stands where incentives do
            return each

        def together(a: int, b: int) -> Floats:
            each: Floats = pairs[starts[PAIRS.index((a, b))] + levels[:, a] * named.space.shape[b] + levels[:, b]]
            each[0] = 0.0
            return each

        alone = np.repeat((self.hold[:, at] + slopes[0])[:, None], len(levels), axis=1)  # `hold` has its slopes in it
        return Sums.of(
            *((by_action(constants, factor), [-1]) for factor in (0, 1, 2)),
            (alone, columns),
            *((together(a, b), [-1]) for a, b in ((0, 2), (0, 1), (1, 2))),  # VW sorts pairs of namespaces: im it tm
            *((by_action(slopes, factor), columns) for factor in (0, 2, 1)),  # xh or xi, xm, xt
        )


def _places(names: tuple[str, ...], among: tuple[str, ...]) -> Ints:
    index = {name: i for i, name in enumerate(among)}
    return np.array([index.get(name, -1) for name in names], dtype=np.intp)


def _taken(array: Floats, at: Ints) -> Floats:
    return np.where(at[:, None] >= 0, array[at], 0.0)


class Vowpal(Kept):
    """Vowpal Wabbit's contextual bandit over the factors of an action, compiled to arrays.

    It gives the probabilities of VW's own `predict` on the same model and the text of the same numbers, to 1e-5: its
    costs are VW's to the last bit (`vowpal_arithmetic`). Not centred: on confounded logs prefer `thompson`. VW
    minimises, so rewards are negated in here and nowhere else.

    Args:
        space: the actions and features.
        arguments: VW's own: one of `--squarecb`, `--epsilon e` and `--bag n`, with `--gamma_scale`, `--gamma_exponent`,
            `--cb_type`, `-l`, `--power_t`, `-b`, `--random_seed`; `--epsilon` beside another is the least probability.
            Those with known faults are refused.

    >>> space = ActionSpace(("badge",), ("warm",), ("now",), features=("bias",))
    >>> policy = Vowpal(space, arguments="--epsilon 0.1")
    >>> policy.probabilities(np.ones((1, 1)), np.array([[True, True]]), np.array([0.0, 0.2])).tolist()
    [[0.95, 0.05]]
    """

    name: ClassVar[str] = "vowpal"

    def __init__(self, space: ActionSpace, *, arguments: str = "--squarecb --gamma_scale 1000 -l 0.1") -> None:
        self.space = space
        self.arguments = arguments
        self._told = parse(arguments)
        self._become(Learned.nothing(layout(space), members=self._told.members), model=b"", n=0)

    def _become(self, learned: Learned, *, model: bytes, n: int) -> None:
        self._learned, self._model, self._n = learned, model, n
        self._named = layout(self.space)
        used = learned.under(self._named)
        self._members = [used.sums(at) for at in range(self._told.members)]

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        check(self.space, contexts, allowed=allowed, prices=prices)
        told, values = self._told, read(self._named.design(contexts))
        costs = [member.costs(values) for member in self._members]
        if told.explore == "squarecb":
            p = inverse_gap(costs[0], allowed, prices=prices, gamma=_gamma(told, self._n))
        else:
            p = votes(costs, allowed, prices=prices)
        return raised(p, allowed, epsilon=told.least) if told.epsilon else p

    def learn(self, rounds: Rounds) -> None:
        if not len(rounds):
            return
        check_rounds(self.space, rounds)
        with TemporaryDirectory() as folder:
            workspace = self._workspace(Path(folder))
            named = layout(self.space)
            for lines in examples(named, rounds, alone=self._told.cb_type == "mtr"):
                workspace.learn(lines)
            learned = _read_out(workspace, named, self._told)
            workspace.save(str(Path(folder) / "learned"))
            workspace.finish()
            model = (Path(folder) / "learned").read_bytes()
        self._become(learned, model=model, n=self._n + len(rounds))

    def absorb(self, statistics: Statistics) -> NoReturn:
        """Refuse: VW learns round by round."""
        raise ValueError(f"vowpal does not add shards up: {_REFUSED['--merge_models']}")

    def _workspace(self, folder: Path) -> Any:
        """Return VW with what it has learned so far; a new one where that is nothing."""
        from vowpalwabbit import Workspace

        if not self._model:
            return Workspace(f"{_FIXED} {self.arguments}")
        (folder / "model").write_bytes(self._model)
        return Workspace(f"--quiet -i {folder / 'model'}")

    def packed(self) -> Saved:
        settings = {"arguments": self.arguments, "trained": saved.names(self._learned.layout.space), "n": self._n}
        arrays: dict[str, Array] = {
            "parameters": self._learned.parameters,
            "constants": self._learned.constants,
            "hold": self._learned.hold,
            "model": np.frombuffer(self._model, dtype=np.uint8),
        }
        return Saved(self.name, self.space, settings, arrays)

    @classmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        policy = cls(space, arguments=packed.setting("arguments", str))
        named = Layout(saved.space_of(packed.setting("trained", dict)))
        members = policy._told.members
        learned = Learned(
            named,
            packed.array("parameters", (len(named.parameters), members)),
            packed.array("constants", (len(named.levels), members)),
            packed.array("hold", (len(named.columns), members)),
        )
        policy._become(learned, model=packed.array("model", (-1,)).tobytes(), n=packed.setting("n", int))
        return policy


# What VW is told


def parse(arguments: str) -> Arguments:
    """Return what deciding depends on; ValueError, with the reason, for what is not supported.

    >>> parse("--bag 4 --epsilon 0.05").members
    4
    >>> parse("--squarecb --elim")
    Traceback (most recent call last):
    ValueError: --elim is refused: with --squarecb it gives negative probabilities; leave it out
    """
    words = dict(_flags(arguments))
    cb_type = str(words.pop("cb_type", "mtr"))
    given = {name: float(value) for name, value in words.items()}
    explore: list[str] = [name for name in ("squarecb", "bag") if name in given]
    explore = explore or ["epsilon"]
    if len(explore) > 1 or (explore == ["epsilon"] and "epsilon" not in given):
        raise ValueError(f"arguments = {arguments!r}: expected one of --squarecb, --bag n and --epsilon e")
    told = Arguments(
        explore=explore[0],
        epsilon=given.get("epsilon", 0.0),
        gamma_scale=given.get("gamma_scale", 10.0),
        gamma_exponent=given.get("gamma_exponent", 0.5),
        members=int(given.get("bag", 1)),
        bits=int(given.get("bit_precision", 18)),
        cb_type=cb_type,
    )
    kinds = ("mtr",) if told.explore == "squarecb" else CB_TYPES
    if cb_type not in kinds:
        raise ValueError(f"--cb_type {cb_type}: expected {' or '.join(kinds)} with --{told.explore}")
    for name, value, least, most in (
        ("epsilon", told.epsilon, 0.0, 1.0),
        ("gamma_scale", told.gamma_scale, 1e-9, 1e9),
        ("gamma_exponent", told.gamma_exponent, 0.0, 2.0),
        ("bag", told.members, 1, 64),
        ("bit_precision", told.bits, 8, 28),
    ):
        if not least <= value <= most:
            raise ValueError(f"--{name} {value:g}: expected {least:g} to {most:g}")
    return told


_SUPPORTED = (
    "squarecb", "epsilon", "bag", "cb_type", "gamma_scale", "gamma_exponent", "learning_rate", "power_t",
    "bit_precision", "random_seed",
)  # fmt: skip


def _flags(arguments: str) -> Iterator[tuple[str, float | str]]:
    words = [word for part in shlex.split(arguments) for word in part.split("=", 1)]
    while words:
        flag = {"-l": "--learning_rate", "-b": "--bit_precision"}.get(words[0], words[0])
        words.pop(0)
        if flag in _REFUSED:
            raise ValueError(f"{flag} is refused: {_REFUSED[flag]}")
        name = flag.removeprefix("--")
        if name not in _SUPPORTED or flag == name:
            raise ValueError(f"{flag} is not supported; use {', '.join('--' + s for s in _SUPPORTED)}")
        if name == "cb_type":
            yield name, words.pop(0) if words else ""
            continue
        try:
            yield name, 1.0 if name == "squarecb" else float(words.pop(0))
        except (IndexError, ValueError):
            raise ValueError(f"{flag} needs a number, as in `{flag} 0.5`") from None


def examples(named: Layout, rounds: Rounds, *, alone: bool) -> Iterator[list[str]]:
    """Yield each round as VW's text: the shared context, and the drawn action with cost and probability.

    Either the drawn action `alone`, at the weight that it has among all allowed, or among them.
    """
    columns, parts = features(named), actions(named)
    x = named.design(rounds.contexts)
    shares = np.minimum(rounds.propensities * (rounds.allowed.sum(axis=1) if alone else 1), 1.0)
    rows = zip(x, rounds.actions.tolist(), rounds.rewards.tolist(), shares.tolist(), rounds.allowed, strict=True)
    for context, action, reward, share, allowed in rows:
        told = f"0:{-reward!r}:{share!r} {parts[action]}"
        shown = [action] if alone else np.flatnonzero(allowed).tolist()
        yield [shared(columns, context), *(told if a == action else parts[a] for a in shown)]


def features(named: Layout) -> list[str]:
    """Return the name of each column as VW reads it."""
    return [quote(c, safe="=-_.") for c in named.columns]


def shared(columns: list[str], context: Floats) -> str:
    """Return the line of a context (d,). What is next to 0 is left out: VW reads 1e-256 as 1."""
    at = np.flatnonzero(np.abs(context) > NIL).tolist()
    return "shared |x " + " ".join(f"{columns[j]}:{float(context[j])!r}" for j in at)


def actions(named: Layout) -> list[str]:
    """Return the line of each action."""
    space = named.space
    parts = (space.nudge(a) for a in range(space.k))
    return ["|h hold" if n is None else "|i {} |t {} |m {}".format(*(quote(p, safe="") for p in n)) for n in parts]


# What VW has learned


def _read_out(workspace: Any, named: Layout, told: Arguments) -> Learned:
    each = 2 if told.cb_type == "dr" else 1  # dr keeps what it corrects the costs by beside them
    stride = 1 << (each * told.members - 1).bit_length()  # members of a bag lie side by side, to a power of two
    mask = (1 << told.bits) - 1

    def place(space: str, feature: str) -> int:
        return int(workspace.hash_feature(feature, workspace.hash_space(space))) * stride

    def cost(at: int) -> list[float]:
        return [workspace.get_weight((at & mask) + each * member) for member in range(told.members)]

    columns = [place("x", c) for c in features(named)]
    levels = {"nudge": place("h", "hold")}
    for name in named.levels[1:]:
        factor, level = name.split("=", 1)
        levels[name] = place(_SPACES[factor], quote(level, safe=""))
    signs = np.where(np.array(named.levels) == "nudge", -1.0, 1.0)[:, None]
    constants = signs * np.array([cost(levels[name]) for name in named.levels])
    slopes = np.array([[cost((_FNV_PRIME * c) ^ levels[name]) for c in columns] for name in named.levels])
    pairs = [cost((_FNV_PRIME * levels[a]) ^ levels[b]) for a, b in named.parameters[named.mains :]]
    mains = (signs[:, None] * slopes).reshape(named.mains, told.members)
    return Learned(
        named,
        np.concatenate([mains, np.array(pairs)]),
        constants,
        np.array([cost(c) for c in columns]) + slopes[0],
    )


def _gamma(told: Arguments, rounds: int) -> float:
    """Return what a unit of gap counts after so many rounds, rounded as VW rounds it."""
    grown = np.float32(rounds ** float(np.float32(told.gamma_exponent)))
    return float(np.float32(told.gamma_scale) * grown)
