"""The peers' side of the pipe: runs in the peers' own environment, imports nothing of ours.

Arrays come in on standard input and go out on standard output: a line of type and shape, then the numbers. Each peer scores a batch of rows
the way its users would: from the context, the names of an action's levels, and which actions are allowed.
"""

import importlib
import json
import sys

import numpy as np

CHUNK = 50


class Gittins:
    """Candidates with the names of their levels; its own epsilon-greedy, its probabilities taken as it computes them."""

    def __init__(self, levels, d, *, bits=18, epsilon=0.05, seed=0):
        gittins = importlib.import_module("gittins")
        self.gittins, self.seed, self.at = gittins, seed, 0
        self.state = gittins.create(bits=bits, horizon=1e12, epsilon=epsilon)
        self.epsilon = epsilon
        self.candidates = [
            (str(a), {} if level[0] < 0 else {"i": f"i{level[0]}", "t": f"t{level[1]}", "m": f"m{level[2]}"})
            for a, level in enumerate(levels.tolist())
        ]

    def context(self, x):
        return {f"x{j}": v for j, v in enumerate(x.tolist()) if v != 0.0}

    def probabilities(self, x, allowed):
        p = np.zeros(allowed.shape)
        for row in range(len(x)):
            at = np.flatnonzero(allowed[row])
            seen = []

            def explore(estimates, epsilon, seen=seen):
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

    def learn(self, x, allowed, p, actions, rewards):
        for row, (action, reward) in enumerate(zip(actions.tolist(), rewards.tolist())):
            self.at += 1
            record = self.gittins.decide(
                self.state, self.context(x[row]), [self.candidates[action]], float(self.at), "l"
            )
            self.gittins.learn(self.state, record.decision_id, reward, float(self.at))


class Mabwiser:
    """A ridge regression an arm: it has no features of actions. Its expectation, the best of those allowed."""

    def __init__(self, levels, d, *, policy, seed=0, **settings):
        mab = importlib.import_module("mabwiser.mab")
        self.k = len(levels)
        self.mab = mab.MAB(list(range(self.k)), getattr(mab.LearningPolicy, policy)(**settings), seed=seed)
        self.fitted = False

    def probabilities(self, x, allowed):
        if not self.fitted:
            return allowed / allowed.sum(axis=1, keepdims=True)
        found = self.mab.predict_expectations(x)
        scores = np.array([[row[a] for a in range(self.k)] for row in found])
        return best(scores, allowed)

    def learn(self, x, allowed, p, actions, rewards):
        (self.mab.partial_fit if self.fitted else self.mab.fit)(actions, rewards, x)
        self.fitted = True


class Bayesianbandits:
    """Its shared learner (`LipschitzContextualAgent`'s) on the levels, their products with the context, and pairs."""

    def __init__(self, levels, d, *, learner="NormalRegressor", bold=1.0, seed=0, pairs=True, **settings):
        library = importlib.import_module("bayesianbandits")
        self.learner = getattr(library, learner)(**settings, random_state=seed)
        self.bold, self.fitted = bold, False
        sizes = levels.max(axis=0) + 1
        parts = [np.eye(n)[np.maximum(levels[:, f], 0)] for f, n in enumerate(sizes)]
        self.levels = np.concatenate([np.ones((len(levels), 1)), *parts], axis=1)
        products = [(parts[a][:, :, None] * parts[b][:, None, :]).reshape(len(levels), -1) for a, b in ((0, 1), (0, 2), (1, 2))]
        self.pairs = np.concatenate(products, axis=1) if pairs else np.zeros((len(levels), 0))
        self.levels[0], self.pairs[0] = 0.0, 0.0

    def design(self, x, levels, pairs):
        mains = (levels[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        return np.concatenate([x, mains, pairs], axis=1)

    def probabilities(self, x, allowed):
        """Thompson sampling: one draw of the shared weights a chunk of rows, as a batch of `pull` is drawn."""
        if not self.fitted:
            return allowed / allowed.sum(axis=1, keepdims=True)
        d, width = x.shape[1], x.shape[1] * (1 + self.levels.shape[1])
        each = np.eye(width + self.pairs.shape[1])  # a row for each weight: what is sampled there is the weight itself
        starts = range(0, len(x), CHUNK)
        drawn = self.learner.sample(each, size=len(starts))
        mean = self.learner.predict(each)
        scores = np.empty(allowed.shape)
        for start, weights in zip(starts, mean + self.bold * (drawn - mean)):
            rows = x[start : start + CHUNK]
            by_level = rows @ weights[d:width].reshape(-1, d).T
            scores[start : start + CHUNK] = by_level @ self.levels.T + self.pairs @ weights[width:]
        return best(scores, allowed)

    def learn(self, x, allowed, p, actions, rewards):
        self.learner.partial_fit(self.design(x, self.levels[actions], self.pairs[actions]), rewards)
        self.fitted = True


def best(scores, allowed):
    chosen = np.zeros(allowed.shape)
    chosen[np.arange(len(chosen)), np.where(allowed, scores, -np.inf).argmax(axis=1)] = 1.0
    return chosen


KINDS = {"gittins": Gittins, "mabwiser": Mabwiser, "bayesianbandits": Bayesianbandits}


def read(stream):
    kind, *shape = stream.readline().decode().split()
    shape = [int(n) for n in shape]
    return np.frombuffer(stream.read(int(np.prod(shape)) * np.dtype(kind).itemsize), dtype=kind).reshape(shape)


def write(stream, array):
    stream.write(" ".join([array.dtype.str, *map(str, array.shape)]).encode() + b"\n" + array.tobytes())
    stream.flush()


def serve():
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
