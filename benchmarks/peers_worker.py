"""The peers' side of the pipe: runs in the peers' own environment, imports nothing of ours.

Arrays come in on standard input and go out on standard output: a line of type and shape, then the numbers. Each peer
scores a batch of rows the way its users would: from the context, the names of an action's levels, and which actions are
allowed.
"""

import importlib
import json
import sys
from typing import IO, Any

import numpy as np
import numpy.typing as npt

CHUNK = 50

Array = npt.NDArray[Any]


class Gittins:
    """Candidates with the names of their levels; its own epsilon-greedy, worked out from its own estimates."""

    def __init__(self, levels: Array, *, bits: int = 18, epsilon: float = 0.05, seed: int = 0) -> None:
        gittins = importlib.import_module("gittins")
        self.gittins, self.seed, self.at = gittins, seed, 0
        self.state = gittins.create(bits=bits, horizon=1e12, epsilon=epsilon)
        self.epsilon = epsilon
        self.candidates = [
            (str(a), {} if level[0] < 0 else {"i": f"i{level[0]}", "t": f"t{level[1]}", "m": f"m{level[2]}"})
            for a, level in enumerate(levels.tolist())
        ]

    def context(self, x: Array) -> dict[str, float]:
        return {f"x{j}": v for j, v in enumerate(x.tolist()) if v != 0.0}

    def probabilities(self, x: Array, allowed: Array) -> Array:
        p = np.zeros(allowed.shape)
        for row in range(len(x)):
            at = np.flatnonzero(allowed[row])
            seen: list[float] = []

            def explore(estimates: list[float], _: float, seen: list[float] = seen) -> list[float]:
                seen.extend(estimates)
                return [1.0 / len(estimates)] * len(estimates)

            self.at += 1
            record = self.gittins.decide(
                self.state, self.context(x[row]), [self.candidates[a] for a in at], float(self.at), "s", explore=explore
            )
            self.gittins.learn(self.state, record.decision_id, 0.0, float(self.at), train=lambda *_: None)
            p[row, at] = self.epsilon / len(at)
            p[row, at[int(np.argmax(seen))]] += 1.0 - self.epsilon
        return p

    def learn(self, x: Array, allowed: Array, p: Array, actions: Array, rewards: Array) -> None:
        for row, (action, reward) in enumerate(zip(actions.tolist(), rewards.tolist(), strict=True)):
            self.at += 1
            record = self.gittins.decide(
                self.state, self.context(x[row]), [self.candidates[action]], float(self.at), "l"
            )
            self.gittins.learn(self.state, record.decision_id, reward, float(self.at))


class Mabwiser:
    """A ridge regression an arm: it has no features of actions. Its expectation, the best of those allowed."""

    def __init__(self, levels: Array, *, policy: str, seed: int = 0, **settings: Any) -> None:
        mab = importlib.import_module("mabwiser.mab")
        self.k = len(levels)
        self.mab = mab.MAB(list(range(self.k)), getattr(mab.LearningPolicy, policy)(**settings), seed=seed)
        self.fitted = False

    def probabilities(self, x: Array, allowed: Array) -> Array:
        if not self.fitted:
            return evenly(allowed)
        found = self.mab.predict_expectations(x)
        scores = np.array([[row[a] for a in range(self.k)] for row in found])
        return best(scores, allowed)

    def learn(self, x: Array, allowed: Array, p: Array, actions: Array, rewards: Array) -> None:
        (self.mab.partial_fit if self.fitted else self.mab.fit)(actions, rewards, x)
        self.fitted = True


class Bayesianbandits:
    """Its shared learner (`LipschitzContextualAgent`'s) on the levels, their products with the context, and pairs."""

    def __init__(
        self, levels: Array, *, learner: str = "NormalRegressor", seed: int = 0, pairs: bool = True, **settings: Any
    ) -> None:
        library = importlib.import_module("bayesianbandits")
        self.learner = getattr(library, learner)(**settings, random_state=seed)
        self.fitted = False
        sizes = levels.max(axis=0) + 1
        parts = [np.eye(n)[np.maximum(levels[:, f], 0)] for f, n in enumerate(sizes)]
        self.levels = np.concatenate([np.ones((len(levels), 1)), *parts], axis=1)
        products = [
            (parts[a][:, :, None] * parts[b][:, None, :]).reshape(len(levels), -1) for a, b in ((0, 1), (0, 2), (1, 2))
        ]
        self.pairs = np.concatenate(products, axis=1) if pairs else np.zeros((len(levels), 0))
        self.levels[0], self.pairs[0] = 0.0, 0.0

    def design(self, x: Array, levels: Array, pairs: Array) -> Array:
        mains = (levels[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        return np.concatenate([x, mains, pairs], axis=1)

    def probabilities(self, x: Array, allowed: Array) -> Array:
        """Thompson sampling: one draw of the shared weights a chunk of rows, as a batch of `pull` is drawn."""
        if not self.fitted:
            return evenly(allowed)
        d, width = x.shape[1], x.shape[1] * (1 + self.levels.shape[1])
        each = np.eye(width + self.pairs.shape[1])  # a row for each weight: what is sampled there is the weight itself
        starts = range(0, len(x), CHUNK)
        drawn = self.learner.sample(each, size=len(starts))
        scores = np.empty(allowed.shape)
        for start, weights in zip(starts, drawn, strict=True):
            rows = x[start : start + CHUNK]
            by_level = rows @ weights[d:width].reshape(-1, d).T
            scores[start : start + CHUNK] = by_level @ self.levels.T + self.pairs @ weights[width:]
        return best(scores, allowed)

    def learn(self, x: Array, allowed: Array, p: Array, actions: Array, rewards: Array) -> None:
        self.learner.partial_fit(self.design(x, self.levels[actions], self.pairs[actions]), rewards)
        self.fitted = True


def evenly(allowed: Array) -> Array:
    p: Array = allowed / allowed.sum(axis=1, keepdims=True)
    return p


def best(scores: Array, allowed: Array) -> Array:
    chosen = np.zeros(allowed.shape)
    chosen[np.arange(len(chosen)), np.where(allowed, scores, -np.inf).argmax(axis=1)] = 1.0
    return chosen


KINDS: dict[str, Any] = {"gittins": Gittins, "mabwiser": Mabwiser, "bayesianbandits": Bayesianbandits}


def read(stream: IO[bytes]) -> Array:
    kind, *sizes = stream.readline().decode().split()
    shape = [int(n) for n in sizes]
    numbers: Array = np.frombuffer(stream.read(int(np.prod(shape)) * np.dtype(kind).itemsize), dtype=kind)
    return numbers.reshape(shape)


def write(stream: IO[bytes], array: Array) -> None:
    stream.write(" ".join([array.dtype.str, *map(str, array.shape)]).encode() + b"\n" + array.tobytes())
    stream.flush()


def serve() -> None:
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    settings = json.loads(asked.readline())
    levels = read(asked)
    peer = KINDS[settings.pop("kind")](levels, **settings)
    while word := asked.readline().strip():
        if word == b"choose":
            write(answers, peer.probabilities(read(asked), read(asked)))
        else:
            peer.learn(*(read(asked) for _ in range(5)))
            write(answers, np.zeros(0))


if __name__ == "__main__":
    serve()
