"""The battery: what every policy must do. `tests/test_policies.py` runs every policy of `CASES` through every check.

Adding a policy to the battery is one line in `CASES`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import policies
from optimizer.actions import ActionSpace, Bools, Floats, Nudge
from optimizer.floor import apply_floor
from optimizer.policy import Policy, Rounds
from optimizer.program import Exploration
from policies import saved
from policies.boosted import Boosted
from policies.fixed import Fits, FixedNudge, Hold, Rules, Uniform
from policies.greedy import Greedy
from policies.hierarchical import Hierarchical
from policies.logistic import Logistic
from policies.mixture import Mixture
from policies.recovering import Recovering
from policies.squarecb import SquareCB
from policies.thompson import Thompson
from policies.vowpal import Vowpal

FEATURES = ("bias", "stage=new", "stage=loyal", "momentum", "hour")
SPACE = ActionSpace(("badge", "coupon", "tip"), ("warm", "brisk"), ("now", "evening"), features=FEATURES)
BEST = Nudge("coupon", "warm", "evening")
"""What the made-up world rewards most, in every context."""


class Case(NamedTuple):
    """A policy under test: how it is made, whether it learns, and whether shards of what it learns from add up."""

    make: Callable[[ActionSpace], Policy]
    learns: bool = True
    merges: bool = False


_RULES = [
    Fits((("stage=new",),), BEST),
    Fits((("stage=new",),), Nudge("tip", "warm", "now")),
    Fits((("stage=loyal",),), Nudge("badge", "brisk", "now")),
]

CASES: dict[str, Case] = {
    "uniform": Case(Uniform, learns=False),
    "hold": Case(Hold, learns=False),
    "fixed": Case(lambda space: FixedNudge(space, nudge=BEST), learns=False),
    "rules": Case(lambda space: Rules(space, rules=_RULES), learns=False),
    "thompson": Case(Thompson, merges=True),
    "thompson-forgetting": Case(lambda space: Thompson(space, half_life=1e5), merges=True),
    "squarecb": Case(SquareCB, merges=True),
    "greedy": Case(Greedy, merges=True),
    "hierarchical": Case(Hierarchical, merges=True),
    "recovering": Case(Recovering, merges=True),
    "logistic": Case(lambda space: Logistic(space, lowest=-7.0, highest=9.0)),
    "boosted": Case(lambda space: Boosted(space, trees=30)),
    "vowpal": Case(Vowpal),
    "vowpal-epsilon": Case(lambda space: Vowpal(space, arguments="--epsilon 0.1")),
    "vowpal-bag": Case(lambda space: Vowpal(space, arguments="--bag 5 --epsilon 0.05")),
    "mixture": Case(lambda space: Mixture(space, parts=[Uniform(space), Greedy(space)], weights=[1, 3])),
}


# A made-up world


def contexts(n: int, *, seed: int, space: ActionSpace = SPACE) -> Floats:
    """Shape (n, d): a constant, a stage, and numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, space.d))
    x[:, 0] = 1.0
    x[:, 1] = rng.random(n) < 0.5
    x[:, 2] = 1.0 - x[:, 1]
    return x


def masks(n: int, *, seed: int, k: int = SPACE.k) -> Bools:
    """Shape (n, k): hold only, everything, each nudge alone, and then at random."""
    rng = np.random.default_rng(seed)
    allowed = rng.random((n, k)) < rng.random((n, 1))
    allowed[0], allowed[1] = False, True
    alone = np.eye(k, dtype=np.bool_)[1:]
    allowed[2 : 2 + len(alone)] = alone[: max(n - 2, 0)]
    allowed[:, 0] = True
    return allowed


def truth(x: Floats, *, space: ActionSpace = SPACE) -> Floats:
    """Shape (n, k): expected reward. Engagement (momentum) raises all alike; `BEST` gains most in every context."""
    gain = np.zeros(space.k)
    for action in range(1, space.k):
        nudge = space.nudge(action)
        assert nudge is not None
        gain[action] = 0.3 * sum(a == b for a, b in zip(nudge, BEST, strict=True)) - 0.2
    return 1.0 + x[:, 3:4] + gain


def logged(n: int, *, seed: int, space: ActionSpace = SPACE) -> Rounds:
    """Return rounds of a uniform logger in the made-up world, some actions blocked."""
    rng = np.random.default_rng(seed)
    x, allowed = contexts(n, seed=seed, space=space), rng.random((n, space.k)) < 0.8
    allowed[:, 0] = True
    chosen = Uniform(space).probabilities(x, allowed, np.zeros(space.k))
    p = apply_floor(chosen, space, allowed=allowed, exploration=Exploration()).astype(np.float32)
    actions = np.array([rng.choice(space.k, p=row / row.sum()) for row in p.astype(float)], dtype=np.intp)
    rewards = truth(x, space=space)[np.arange(n), actions] + 0.5 * rng.normal(size=n)
    at = np.sort(rng.random(n)) * 1e6
    customers = rng.integers(0, max(n // 5, 1), n)
    nothing = np.zeros(n)
    return Rounds(x, allowed, p, actions, rewards, customers, at, nothing, nothing, np.zeros(n, dtype=np.intp))


@cache
def trained(name: str) -> Policy:
    """Return the policy of a case after 1,500 rounds."""
    policy = CASES[name].make(SPACE)
    policy.learn(logged(1_500, seed=1))
    return policy


def _asked(n: int, *, seed: int) -> tuple[Floats, Bools, Floats]:
    prices = np.random.default_rng(seed).random((n, SPACE.k)) * 0.1
    return contexts(n, seed=seed), masks(n, seed=seed), prices


def _probabilities(policy: Policy, *, seed: int = 9, n: int = 60) -> Floats:
    return policy.probabilities(*_asked(n, seed=seed))


# What every policy must do: each takes the name of a case and a folder of its own


def gives_a_distribution_over_every_mask(name: str, folder: Path) -> None:
    """Rows sum to 1 over what is allowed and are exactly 0 elsewhere, before and after learning."""
    for policy in (CASES[name].make(SPACE), trained(name)):
        x, allowed, prices = _asked(300, seed=2)
        p = policy.probabilities(x, allowed, prices)
        assert p.shape == allowed.shape
        assert np.isfinite(p).all()
        assert (p >= 0).all()
        assert (p[~allowed] == 0).all()
        assert np.abs(p.sum(axis=1) - 1).max() < 1e-9


def decides_a_row_whatever_its_batch(name: str, folder: Path) -> None:
    """Alone, in a batch, and in the reverse order: the same row."""
    x, allowed, prices = _asked(40, seed=3)
    policy = trained(name)
    together = policy.probabilities(x, allowed, prices)
    alone = [policy.probabilities(x[[i]], allowed[[i]], prices[[i]]) for i in range(len(x))]
    backwards = policy.probabilities(x[::-1], allowed[::-1], prices[::-1])[::-1]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-9
    assert np.abs(together - backwards).max() < 1e-9


def is_pure(name: str, folder: Path) -> None:
    """The same question twice gets the same answer, and what was asked is left as it was."""
    asked = _asked(30, seed=4)
    for array in asked:
        array.setflags(write=False)
    policy = trained(name)
    first = policy.probabilities(*asked)
    _probabilities(policy, seed=5)
    assert np.array_equal(first, policy.probabilities(*asked))


def takes_one_price_list_for_all_rows(name: str, folder: Path) -> None:
    """Prices (k,) mean the same as (n, k) of equal rows."""
    x, allowed, prices = _asked(30, seed=6)
    policy = trained(name)
    repeated = np.tile(prices[0], (30, 1))
    assert np.array_equal(policy.probabilities(x, allowed, prices[0]), policy.probabilities(x, allowed, repeated))


def is_unchanged_by_an_empty_batch(name: str, folder: Path) -> None:
    """No rows in, no rows out; learning from nothing changes nothing."""
    policy = CASES[name].make(SPACE)
    before = _probabilities(policy)
    policy.learn(logged(10, seed=1).take(slice(0, 0)))
    assert np.array_equal(before, _probabilities(policy))
    empty = policy.probabilities(np.empty((0, SPACE.d)), np.empty((0, SPACE.k), dtype=np.bool_), np.zeros(SPACE.k))
    assert empty.shape == (0, SPACE.k)


def learns_the_same_from_the_same_rounds(name: str, folder: Path) -> None:
    """Learning can be repeated, and leaves the rounds as they were."""
    rounds = logged(400, seed=7)
    for array in (rounds.contexts, rounds.allowed, rounds.probabilities, rounds.rewards):
        array.setflags(write=False)
    once, again = CASES[name].make(SPACE), CASES[name].make(SPACE)
    once.learn(rounds)
    again.learn(rounds)
    assert np.array_equal(_probabilities(once), _probabilities(again))


def is_saved_and_loaded_exactly(name: str, folder: Path) -> None:
    """The same probabilities before and after, and the same bytes from the same policy; nothing is pickled."""
    for policy, at in ((CASES[name].make(SPACE), folder / "new"), (trained(name), folder / "trained")):
        for copy in ("a", "b"):
            (at / copy).mkdir(parents=True)
        policy.save(at / "a")
        loaded = policies.load(at / "a", SPACE)
        assert type(loaded) is type(policy)
        assert np.array_equal(_probabilities(policy), _probabilities(loaded))
        loaded.save(at / "b")
        assert sorted(p.name for p in (at / "a").iterdir()) == ["arrays.npz", "policy.json"]
        for file in ("arrays.npz", "policy.json"):
            assert (at / "a" / file).read_bytes() == (at / "b" / file).read_bytes()


def goes_on_learning_after_it_was_loaded(name: str, folder: Path) -> None:
    """Half, save, load, half: as if it had never been saved."""
    rounds = logged(600, seed=8)
    halves = rounds.take(slice(0, 300)), rounds.take(slice(300, 600))
    kept, moved = CASES[name].make(SPACE), CASES[name].make(SPACE)
    kept.learn(halves[0])
    moved.learn(halves[0])
    moved.save(folder)
    moved = policies.load(folder, SPACE)
    kept.learn(halves[1])
    moved.learn(halves[1])
    assert np.array_equal(_probabilities(kept), _probabilities(moved))


def decides_under_a_newer_program(name: str, folder: Path) -> None:
    """Levels and features come, go and change places; what stayed keeps its place by name."""
    trained(name).save(folder)
    newer = ActionSpace(
        ("raffle", "coupon", "badge"),
        ("warm", "brisk", "dry"),
        ("evening", "now"),
        features=("age", "hour", "bias", "stage=loyal", "stage=new"),
    )
    policy = policies.load(folder, newer)
    rng = np.random.default_rng(3)
    x, allowed = rng.normal(size=(80, newer.d)), masks(80, seed=3, k=newer.k)
    p = policy.probabilities(x, allowed, np.zeros(newer.k))
    assert np.isfinite(p).all()
    assert (p[~allowed] == 0).all()
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-9
    if CASES[name].learns:
        policy.learn(logged(200, seed=4, space=replace(newer, features=newer.features)))
        assert np.isfinite(policy.probabilities(x, allowed, np.zeros(newer.k))).all()


def keeps_its_answers_when_names_change_places(name: str, folder: Path) -> None:
    """The same levels and features in another order: the same probability for the same name."""
    trained(name).save(folder)
    shuffled = ActionSpace(
        SPACE.incentives[::-1], SPACE.tones[::-1], SPACE.timings[::-1], features=SPACE.features[::-1]
    )
    places = [SPACE.index(shuffled.nudge(a)) for a in range(shuffled.k)]
    x, allowed, prices = _asked(60, seed=5)
    moved = policies.load(folder, shuffled).probabilities(x[:, ::-1], allowed[:, places], prices[:, places])
    assert np.abs(moved - _probabilities(trained(name), seed=5)[:, places]).max() < 0.05


def favours_the_better_action(name: str, folder: Path) -> None:
    """After 1,500 rounds the best nudge is likelier than the worst, and its expected reward is above the uniform's."""
    if not CASES[name].learns:
        return
    x = contexts(200, seed=11)
    allowed, worth = np.ones((200, SPACE.k), dtype=np.bool_), truth(x)
    p = trained(name).probabilities(x, allowed, np.zeros(SPACE.k))
    uniform = Uniform(SPACE).probabilities(x, allowed, np.zeros(SPACE.k))
    assert (p * worth).sum() > (uniform * worth).sum() + 0.2 * len(x)
    worst = SPACE.index(Nudge("tip", "brisk", "now"))
    assert p[:, SPACE.index(BEST)].mean() > 3 * p[:, worst].mean()


def heeds_prices(name: str, folder: Path) -> None:
    """A nudge that costs more than it can bring is chosen less, and hold more."""
    if not CASES[name].learns:
        return
    x, allowed = contexts(100, seed=12), np.ones((100, SPACE.k), dtype=np.bool_)
    dear = np.full(SPACE.k, 50.0)
    dear[0] = 0.0
    free = trained(name).probabilities(x, allowed, np.zeros(SPACE.k))
    priced = trained(name).probabilities(x, allowed, dear)
    assert priced[:, 0].mean() > max(0.4, free[:, 0].mean())


def adds_shards_up(name: str, folder: Path) -> None:
    """Learning shard by shard, in any order, is learning at once."""
    if not CASES[name].merges:
        return
    rounds = logged(900, seed=13)
    shards = [rounds.take(slice(a, a + 300)) for a in (600, 0, 300)]
    whole, sharded = CASES[name].make(SPACE), CASES[name].make(SPACE)
    whole.learn(rounds)
    for shard in shards:
        sharded.learn(shard)
    assert np.abs(_probabilities(whole) - _probabilities(sharded)).max() < 1e-6


def refuses_what_it_cannot_answer(name: str, folder: Path) -> None:
    """Non-finite features and prices, wrong shapes and a blocked hold: a clear error that names the place."""
    x, allowed, prices = _asked(5, seed=14)
    policy = trained(name)
    for bad in (np.nan, np.inf, 1e12):
        broken = x.copy()
        broken[3, 4] = bad
        with pytest.raises(ValueError, match=r"contexts: row 3, column 'hour'"):
            policy.probabilities(broken, allowed, prices)
    with pytest.raises(ValueError, match=r"prices: row 1, column 'hold' is .*nan"):
        policy.probabilities(x, allowed, np.where(np.arange(5)[:, None] == 1, np.nan, prices))
    with pytest.raises(ValueError, match="row 2 blocks hold"):
        policy.probabilities(x, np.where(np.arange(5)[:, None] == 2, False, allowed), prices)
    with pytest.raises(ValueError, match=r"contexts has shape \(5, 4\), expected \(5, 5\)"):
        policy.probabilities(x[:, 1:], allowed, prices)
    with pytest.raises(ValueError, match=r"allowed has shape \(5, 12\), expected \(5, 13\)"):
        policy.probabilities(x, allowed[:, 1:], prices)


def refuses_rounds_it_cannot_learn_from(name: str, folder: Path) -> None:
    """A reward that is not finite, a vector that is none, an action that does not exist: named by row."""
    if not CASES[name].learns:
        return
    rounds, policy = logged(20, seed=15), CASES[name].make(SPACE)
    before = _probabilities(policy)
    rewards, p, x = rounds.rewards.copy(), rounds.probabilities.copy(), rounds.contexts.copy()
    rewards[7], p[8], x[9, 3] = np.nan, 0.0, np.inf
    negative, allowed = rounds.probabilities.copy(), rounds.allowed.copy()
    other = 1 if rounds.actions[4] != 1 else 2
    negative[4, [other, rounds.actions[4]]] += np.array([-1.0, 1.0], dtype=np.float32)
    allowed[5, rounds.actions[5]] = False
    for broken, message in (
        (replace(rounds, rewards=rewards), "row 7"),
        (replace(rounds, probabilities=p), "row 8 sums to 0"),
        (replace(rounds, probabilities=negative), "row 4 holds -"),
        (replace(rounds, allowed=allowed), "row 5 drew action .* which its mask blocks"),
        (replace(rounds, contexts=x), "row 9, column 'momentum'"),
        (replace(rounds, actions=np.full(20, SPACE.k)), f"row 0 is {SPACE.k}, expected 0 to {SPACE.k - 1}"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.learn(broken)
    assert np.array_equal(before, _probabilities(policy))


def refuses_a_damaged_folder(name: str, folder: Path) -> None:
    """Truncated, tampered with, of another version, of another kind, not finite, or not there: a clear error."""
    trained(name).save(folder)
    for damage, message in _damages(folder):
        with pytest.raises(ValueError, match=message):
            policies.load(folder, SPACE)
        damage.restore()
    assert np.array_equal(_probabilities(policies.load(folder, SPACE)), _probabilities(trained(name)))


class _Damage(NamedTuple):
    path: Path
    before: bytes

    def restore(self) -> None:
        self.path.write_bytes(self.before)


def _damages(folder: Path) -> Iterator[tuple[_Damage, str]]:
    described, arrays = folder / "policy.json", folder / "arrays.npz"
    text, packed = described.read_bytes(), arrays.read_bytes()
    changed = json.loads(text)
    changed["format"] = 99
    for path, content, message in (
        (described, text[: len(text) // 2], "truncated or not JSON"),
        (described, json.dumps(changed).encode(), "format 99, expected 1"),
        (described, text.replace(b'"badge"', b'"budge"'), "was changed after it was written"),
        (arrays, packed[:-7], "truncated or changed"),
        (arrays, packed + b"\0", "truncated or changed"),
    ):
        damage = _Damage(path, path.read_bytes())
        path.write_bytes(content)
        yield damage, message
    for path in (described, arrays):
        damage = _Damage(path, path.read_bytes())
        path.unlink()
        yield damage, "there is no such file"


def is_in_the_registry(name: str, folder: Path) -> None:
    """By its name, with a docstring that shows it at work."""
    policy = CASES[name].make(SPACE)
    kind = getattr(policy, "name", "")
    assert policies.KINDS[kind] is type(policy)
    assert ">>>" in (type(policy).__doc__ or "")
    trained(name).save(folder)
    assert saved.read(folder).kind == kind
    other = Hold if kind != "hold" else Uniform
    with pytest.raises(ValueError, match=f"holds a '{kind}' policy, expected '{other.name}'"):
        other.load(folder, SPACE)


CHECKS: Sequence[Callable[[str, Path], None]] = (
    gives_a_distribution_over_every_mask,
    decides_a_row_whatever_its_batch,
    is_pure,
    takes_one_price_list_for_all_rows,
    is_unchanged_by_an_empty_batch,
    learns_the_same_from_the_same_rounds,
    is_saved_and_loaded_exactly,
    goes_on_learning_after_it_was_loaded,
    decides_under_a_newer_program,
    keeps_its_answers_when_names_change_places,
    favours_the_better_action,
    heeds_prices,
    adds_shards_up,
    refuses_what_it_cannot_answer,
    refuses_rounds_it_cannot_learn_from,
    refuses_a_damaged_folder,
    is_in_the_registry,
)
