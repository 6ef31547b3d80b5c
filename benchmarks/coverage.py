"""Do intervals hold what they promise, and does the gate? A thousand made-up logs a cell, whose truth is known.

    python -c "from benchmarks.coverage import main; main()"                    # all of it: the better part of an hour
    python -c "from benchmarks.coverage import main; main()" --replications 50  # a look

Two ways to log: independent rounds, a customer each, under one policy; and customers who come back, under a policy that
adapts to what it has seen, batch by batch. Blocks of replications are kept in `var/benchmarks`: a run that was broken
off goes on; `--fresh` forgets them.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from benchmarks.results import Row, write
from optimizer.actions import ActionSpace, Floats, Ints
from optimizer.policy import Rounds
from training import intervals, ope, sequence
from training.intervals import by_customer, clustered
from training.promotion import always_valid
from training.reward_model import cross_fit

SPACE = ActionSpace(("a", "b", "c"), ("x", "y"), ("u", "v"), features=("one", "s0", "s1", "s2"))
SEGMENTS = 3
BATCHES = 10
LOOKS = 50
POWER, EFFECTIVE = 0.8, 0.2
KEPT = Path("var") / "benchmarks"
BLOCK = 25

Logger = Literal["independent", "adapting"]
Record = dict[str, list[float]]


@dataclass(frozen=True)
class World:
    """Chances of a reward by segment and action (segments, k), and two policies: (segments, k) each.

    `target` is `lift` better than `champion`, relatively; 0 makes them equal.
    """

    chances: Floats
    champion: Floats
    target: Floats

    def value(self, policy: Floats) -> float:
        """What a policy is worth: segments are equally many."""
        return float((policy * self.chances).sum(axis=1).mean())


def world(*, base: float = 0.3, lift: float = 0.1, sure: float = 0.8) -> World:
    """Return a world in which the best action of each segment is better than the others by what `lift` takes."""
    k = SPACE.k
    best, other = np.array([1, 5, 9]), np.array([2, 6, 10])
    rows = np.arange(SEGMENTS)
    champion, target = (np.full((SEGMENTS, k), (1.0 - sure) / k) for _ in range(2))
    champion[rows, other] += sure
    target[rows, best] += sure
    chances = np.full((SEGMENTS, k), base) + 0.02 * np.cos(np.arange(k))[None, :]
    chances[rows, best] = chances[rows, other]  # equal, so far
    flat = World(chances, champion, target)
    gap = lift * flat.value(champion) / sure
    chances = chances.copy()
    chances[rows, best] += gap
    return World(chances, champion, target)


def log(given: World, rng: np.random.Generator, *, n: int, logger: Logger) -> Rounds:
    """Return a log of n rounds: in the order of time."""
    segments = rng.integers(0, SEGMENTS, size=n)
    if logger == "independent":
        customers = np.arange(n)
        taste = np.zeros(n)
    else:
        people = n // 4
        customers = rng.integers(0, people, size=n)
        taste = rng.uniform(-0.1, 0.1, size=people)[customers]
    vectors, actions, rewards = np.empty((n, SPACE.k)), np.empty(n, dtype=np.intp), np.empty(n)
    policy = 0.35 * given.champion + 0.25 * given.target + 0.4 / SPACE.k
    for rows in np.array_split(np.arange(n), BATCHES):
        vectors[rows] = policy[segments[rows]]
        actions[rows] = (np.cumsum(vectors[rows], axis=1) < rng.random((len(rows), 1))).sum(axis=1).clip(0, SPACE.k - 1)
        p = np.clip(given.chances[segments[rows], actions[rows]] + taste[rows], 0.0, 1.0)
        rewards[rows] = rng.random(len(rows)) < p
        if logger == "adapting":
            done = slice(0, int(rows[-1]) + 1)
            policy = _adapted(segments[done], actions[done], rewards[done])
    return Rounds(
        contexts=np.column_stack([np.ones(n), np.eye(SEGMENTS)[segments]]),
        allowed=np.ones((n, SPACE.k), dtype=np.bool_),
        probabilities=vectors.astype(np.float32),
        actions=actions,
        rewards=rewards,
        customers=customers,
        at=np.arange(n, dtype=np.float64),
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.arange(n) * BATCHES // n,
    )


def _adapted(segments: Ints, actions: Ints, rewards: Floats) -> Floats:
    """Return what has done best so far, mostly (segments, k): a logger that learns on the way."""
    cells = segments * SPACE.k + actions
    size = SEGMENTS * SPACE.k
    means = (np.bincount(cells, weights=rewards, minlength=size) + 3.0) / (np.bincount(cells, minlength=size) + 10.0)
    scores = np.exp(12.0 * (means - means.max())).reshape(SEGMENTS, SPACE.k)
    adapted: Floats = 0.4 / SPACE.k + 0.6 * scores / scores.sum(axis=1, keepdims=True)
    return adapted


def coverage(seed: int, *, n: int, logger: Logger, base: float) -> dict[str, float]:
    """Return for one log: the estimate, and for each kind of interval whether it covers, and its width."""
    rng, given = np.random.default_rng([seed, n, len(logger)]), world(base=base)
    rounds = log(given, rng, n=n, logger=logger)
    truth = given.value(given.target)
    evidence = ope.weigh(rounds, _of(given.target, rounds), cross_fit(rounds, SPACE).predict(rounds))
    terms, customers = ope.dr(evidence), rounds.customers
    few = intervals.condensed(terms, customers)
    t = clustered(terms, customers)
    found: dict[str, tuple[float, float]] = {
        "student t": (t.low, t.high),
        "bca": _ends(few.bca(rng=rng, resamples=1_000)),
        "poisson": _ends(few.poisson(rng=rng, resamples=1_000)),
        "likelihood": _ends(
            intervals.likelihood(evidence.weights, evidence.rewards, intervals.gathered(customers), low=0.0, high=1.0)
        ),
    }
    record = {f"{name} covers": float(low <= truth <= high) for name, (low, high) in found.items()}
    record |= {f"{name} width": high - low for name, (low, high) in found.items()}
    return record | {"value": t.value, "snips": float(ope.snips(evidence).mean()), "effective": _effective(evidence)}


def _ends(found: intervals.Interval) -> tuple[float, float]:
    return found.low, found.high


def _effective(evidence: ope.Evidence) -> float:
    w = evidence.weights
    return float(w.sum() ** 2 / (w @ w) / len(w))


def _of(policy: Floats, rounds: Rounds) -> Floats:
    """Shape (n, k): what a policy by segment would draw from on each round."""
    vectors: Floats = policy[rounds.contexts[:, 1:].argmax(axis=1)]
    return vectors


def uniformly(seed: int, *, n: int, logger: Logger) -> dict[str, float]:
    """Return for one log whether the sequence covers at all of its looks, and its last width."""
    rng, given = np.random.default_rng([seed, n, 7]), world()
    rounds = log(given, rng, n=n, logger=logger)
    q = np.tile(given.chances.mean(axis=0), (n, 1))  # frozen beforehand, and not right by segment
    found = sequence.terms(rounds, _of(given.target, rounds), q, low=0.0, high=1.0)
    order = np.argsort(_enrolled(rounds.customers), kind="stable")
    looks = sequence.looks(
        sequence.Terms(found.lower[order], found.upper[order]), rounds.customers[order], low=0.0, high=1.0
    )
    at = np.linspace(len(looks.low) / LOOKS, len(looks.low), LOOKS).astype(np.intp) - 1
    truth = given.value(given.target)
    covers = bool(((looks.low[at] <= truth) & (truth <= looks.high[at])).all())
    return {"covers": float(covers), "width": float(looks.high[-1] - looks.low[-1])}


def _enrolled(customers: Ints) -> Ints:
    """Shape (n,): when each row's customer first came."""
    _, first, codes = np.unique(customers, return_index=True, return_inverse=True)
    return np.asarray(first[codes], dtype=np.intp)


def gate(seed: int, *, n: int, logger: Logger, base: float, lift: float) -> dict[str, float]:
    """Return for one log that is looked at 50 times whether the gate promotes at any look, and at the last.

    And what lift, relative to the champion's value, it would have promoted at the last look four times out of five.
    """
    rng, given = np.random.default_rng([seed, n, int(1000 * lift), 11]), world(base=base, lift=lift)
    rounds = log(given, rng, n=n, logger=logger)
    q = cross_fit(rounds, SPACE).predict(rounds)
    evidence = ope.weigh(rounds, _of(given.target, rounds), q)
    gap = ope.dr(evidence) - ope.dr(ope.weigh(rounds, _of(given.champion, rounds), q))
    last, sums, sizes, promoted = clustered(gap, rounds.customers), np.zeros(n), np.zeros(n), []
    effective = np.cumsum(evidence.weights) ** 2 / np.cumsum(evidence.weights**2).clip(1e-9)
    for new in np.array_split(np.arange(n), LOOKS):
        who = rounds.customers[new]
        sums += np.bincount(who, weights=gap[new], minlength=n)
        sizes += np.bincount(who, minlength=n)
        there = sizes > 0
        seen = always_valid(by_customer(sums[there], sizes[there]), level=0.95)
        promoted.append(bool(effective[new[-1]] >= 200.0 and seen.low > 0))
    reach = always_valid(last, level=0.95).high - last.value
    detectable = (reach + float(ndtri(0.8)) * last.error) / given.value(given.champion)
    return {
        "any": float(any(promoted)),
        "last": float(promoted[-1]),
        "effective": _effective(evidence),
        "detectable": detectable,
    }


def gathered(name: str, one: Callable[[int], dict[str, float]], *, replications: int, fresh: bool) -> Record:
    """Run replications, a block at a time, keeping what is done: a run that was broken off goes on."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"coverage-{name.replace(' ', '-').replace(',', '').replace('%', '')}.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    while len(done) < replications:
        block = [one(seed) for seed in range(len(done), min(len(done) + BLOCK, replications))]
        with path.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(r) + "\n" for r in block)
        done += block
        print(f"{name}: {len(done)} of {replications}", flush=True)
    return {key: [r[key] for r in done[:replications]] for key in done[0]}


def rows(*, replications: int, fresh: bool, sizes: Sequence[int] = (2_000, 8_000)) -> Iterator[Row]:
    """Yield what was measured: coverage and width by cell, the sequence, wrong promotions, power."""
    shares: list[float] = []
    loggers: tuple[Logger, ...] = ("independent", "adapting")
    for logger in loggers:
        for n in sizes:
            name = f"{logger}, {n}"
            found = gathered(
                name, _bound(coverage, n=n, logger=logger, base=0.3), replications=replications, fresh=fresh
            )
            for method in ("student t", "bca", "poisson", "likelihood"):
                share = float(np.mean(found[f"{method} covers"]))
                shares.append(share)
                yield _least(f"coverage of {method}, {name} rounds", share, 0.916)
                spread = np.std(found["snips" if method == "likelihood" else "value"])
                ratio = float(np.mean(found[f"{method} width"]) / (2 * 1.96 * spread))
                yield _most(f"width of {method} over the oracle's, {name} rounds", ratio, 1.15)
    yield _least("coverage on average", float(np.mean(shares)), 0.94)
    for logger in loggers:
        found = gathered(
            f"sequence {logger}", _bound(uniformly, n=5_000, logger=logger), replications=replications, fresh=fresh
        )
        yield _least(f"sequence covers at all of {LOOKS} looks, {logger}", float(np.mean(found["covers"])), 0.95)
        null = _bound(gate, n=20_000, logger=logger, base=0.3, lift=0.0)
        found = gathered(f"null {logger}", null, replications=replications, fresh=fresh)
        yield _most(f"wrong promotions at any of {LOOKS} looks, {logger}", float(np.mean(found["any"])), 0.05)
        true = _bound(gate, n=20_000, logger=logger, base=0.3, lift=0.1)
        found = gathered(f"power {logger}", true, replications=replications, fresh=fresh)
        yield from _power(logger, found)


def _power(logger: Logger, found: Record) -> Iterator[Row]:
    """The gate's power, promised where the effective share is at least 0.2; and what it would detect anywhere."""
    share, power = float(np.mean(found["effective"])), float(np.mean(found["last"]))
    name = f"power for +10 % at 20,000 decisions, {logger} (effective share {share:.2f})"
    yield _least(name, power, POWER) if share >= EFFECTIVE else _told(name, power)
    said = f"lift that 20,000 decisions detect with power {POWER:g}, {logger} (effective share {share:.2f})"
    yield _told(said, float(np.mean(found["detectable"])))


def _bound(one: Callable[..., dict[str, float]], **given: Any) -> Callable[[int], dict[str, float]]:
    return lambda seed: one(seed, **given)


def _least(name: str, ours: float, bound: float) -> Row:
    return _row(name, ours, f">= {bound:g}", met=ours >= bound)


def _most(name: str, ours: float, bound: float) -> Row:
    return _row(name, ours, f"<= {bound:g}", met=ours <= bound)


def _told(name: str, ours: float) -> Row:
    return _row(name, ours, "reported", met=True)


def _row(name: str, ours: float, target: str, *, met: bool) -> Row:
    print(f"{name}: {ours:.4g} ({target})", flush=True)
    return Row(name=name, ours=ours, peer=None, peer_name=None, unit="share", ratio=None, target=target, met=met)


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replications", type=int, default=1_000)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run kept")
    asked = parser.parse_args()
    found = list(rows(replications=asked.replications, fresh=asked.fresh))
    if asked.replications >= 1_000:
        write("coverage", found)


if __name__ == "__main__":
    main()
