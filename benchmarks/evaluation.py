"""Do our estimators agree with sb-obp, and how much sooner are they done? And what do a million rounds take?

sb-obp lives in an environment of its own under `var/benchmarks`, made the first time it is needed. Both are given the
same arrays: what was drawn, with which chance, what came of it, the target's vectors and the model's predictions. We
then make every estimate with Student-t, BCa, Poisson bootstrap and likelihood intervals; sb-obp its seven estimates,
each with 1,000 bootstrap samples.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.results import Row, write
from optimizer.actions import ActionSpace, Floats, Ints
from optimizer.policy import Rounds
from training import intervals, ope
from training.ope import ESTIMATORS, Evidence
from training.pseudo_inverse import lever
from training.reading import rungs_of
from training.reward_model import fit, moments

PEER = "sb-obp==0.5.10"
CACHE = Path("var") / "benchmarks" / "sb-obp"
SPACE = ActionSpace(tuple("abcdefghij"), tuple("uvwxy"), tuple("123456"), features=tuple(f"x{i}" for i in range(12)))
TAU, LAMBDA, RESAMPLES = 5.0, 5.0, 1_000
BLOCK = 8_192

WORKER = """
import json, sys, time
import numpy as np
from obp.ope import (DirectMethod, DoublyRobust, DoublyRobustWithShrinkage, InverseProbabilityWeighting,
    SelfNormalizedDoublyRobust, SelfNormalizedInverseProbabilityWeighting, SwitchDoublyRobust)
a = np.load(sys.argv[1])
tau, shrinkage, resamples = float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
given = dict(reward=a["reward"], action=a["action"], pscore=a["pscore"], action_dist=a["target"][:, :, None],
    estimated_rewards_by_reg_model=a["q"][:, :, None])
estimators = dict(ips=InverseProbabilityWeighting(), snips=SelfNormalizedInverseProbabilityWeighting(),
    dm=DirectMethod(), dr=DoublyRobust(), sndr=SelfNormalizedDoublyRobust(), switch=SwitchDoublyRobust(lambda_=tau),
    dros=DoublyRobustWithShrinkage(lambda_=shrinkage))
values = {n: float(e.estimate_policy_value(**given)) for n, e in estimators.items()}
began = time.process_time()
for e in estimators.values():
    e.estimate_interval(**given, n_bootstrap_samples=resamples, random_state=1)
print(json.dumps({"values": values, "seconds": time.process_time() - began}))
"""


def peer() -> Path:
    """Return the interpreter of sb-obp's own environment, made if it is not there."""
    python = CACHE / "bin" / "python"
    ready = CACHE / "ready"
    if not ready.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(CACHE)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER], check=True)
        ready.touch()
    return python


def block(seed: int, *, n: int) -> tuple[Rounds, Floats]:
    """Return n made-up rounds of 301 actions and a target (n, k)."""
    rng = np.random.default_rng(seed)
    contexts = np.column_stack([np.ones(n), rng.normal(size=(n, SPACE.d - 1))])
    allowed = rng.random((n, SPACE.k)) < 0.8
    allowed[:, 0] = True
    odds = np.where(allowed, rng.exponential(size=allowed.shape), 0.0)
    logged = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    target = np.where(allowed, odds * (1.0 + contexts[:, [1]] ** 2 * (SPACE.levels[:, 0] == 2)), 0.0)
    target /= target.sum(axis=1, keepdims=True)
    actions = (np.cumsum(logged, axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, SPACE.k - 1)
    actions = np.where(logged[np.arange(n), actions] > 0, actions, 0)
    rewards = (rng.random(n) < 0.1 + 0.1 * (SPACE.levels[actions, 0] == 2)).astype(np.float64)
    rounds = Rounds(
        contexts=contexts,
        allowed=allowed,
        probabilities=logged,
        actions=actions,
        rewards=rewards,
        customers=seed * n + np.arange(n) // 3,
        at=np.arange(n, dtype=np.float64),
        cost_prices=np.zeros(n),
        burdens=np.zeros(n),
        loggers=np.zeros(n, dtype=np.intp),
    )
    return rounds, target


def everything(rows: Mapping[str, Floats], evidence: Evidence, customers: Ints, *, seed: int = 1) -> int:
    """Make every interval of each row of terms, by Student, BCa, Poisson and likelihood, and return how many."""
    for terms in rows.values():
        intervals.clustered(terms, customers)
    rng = np.random.default_rng(seed)
    found = intervals.bootstraps([*rows.values()], customers, rng=rng, resamples=RESAMPLES)
    intervals.likelihood(evidence.weights, evidence.rewards, intervals.gathered(customers), low=0.0, high=1.0)
    return 3 * len(found) + 1


def compared(*, n: int) -> Iterator[Row]:
    """Yield how far our values are from sb-obp's, and how the times compare."""
    rounds, target = block(0, n=n)
    q = fit(moments(rounds, rounds.rewards[:, None], k=SPACE.k), SPACE)[0].predict(rounds)
    one_row = rounds.take(slice(0, 1))
    lever(one_row, SPACE, order=1)  # compiled once a machine
    began = time.process_time()
    evidence = ope.weigh(rounds, target, q)
    terms = {name: one.terms(evidence) for name, one in ESTIMATORS.items()}
    everything(terms, evidence, rounds.customers)
    ours = time.process_time() - began
    rungs = rungs_of(evidence, {"pi-levels": lever(rounds, SPACE, order=1).weights(target)})
    intervals.clustered(ope.slope([*rungs.values()]), rounds.customers)
    everything(rungs, evidence, rounds.customers)
    ladder = time.process_time() - began
    values = {name: float(ESTIMATORS[name].terms(evidence).mean()) for name in ("ips", "snips", "dm", "dr", "sndr")}
    values["switch"] = float(ope.switched(evidence, threshold=TAU).mean())
    values["dros"] = float(ope.shrunk(evidence, shrinkage=LAMBDA).mean())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, reward=rounds.rewards, action=rounds.actions, pscore=rounds.propensities, target=target, q=q)
        words = [str(peer().absolute()), "-W", "ignore", "-c", WORKER, str(path), str(TAU), str(LAMBDA), str(RESAMPLES)]
        answer = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    furthest = max(abs(values[name] - answer["values"][name]) for name in values)
    yield _row(
        "furthest of 7 estimators from sb-obp's", furthest, None, unit="value", target="<= 1e-8", met=furthest <= 1e-8
    )
    for name, spent in (("all estimates and intervals", ours), ("the same and the ladder of factored weights", ladder)):
        said = f"{name}, {n:,} rounds of {SPACE.k} actions"
        met = spent / answer["seconds"] <= 0.1
        yield _row(said, spent, answer["seconds"], unit="s", target="ratio <= 0.1", met=met)


class Measured(dict[str, float]):
    """Seconds and mebibytes."""


def stream(n: int) -> Measured:
    """Evaluate n rounds, a block at a time, with the factored model: nothing of (n, k) is ever kept."""
    began = time.process_time()
    blocks = range(max(1, n // BLOCK))
    sums = None
    for seed in blocks:
        rounds, _ = block(seed, n=BLOCK)
        part = moments(rounds, rounds.rewards[:, None], k=SPACE.k)
        sums = part if sums is None else sums + part
    made = time.process_time() - began
    assert sums is not None
    model = fit(sums, SPACE)[0]
    evidence, customers, levels, spent = [], [], [], 0.0
    for seed in blocks:
        rounds, target = block(seed, n=BLOCK)
        start = time.process_time()
        evidence.append(ope.weigh(rounds, target, model.predict(rounds)))
        levels.append(lever(rounds, SPACE, order=1).weights(target))
        customers.append(rounds.customers)
        spent += time.process_time() - start
    start = time.process_time()
    whole = Evidence.concatenate(evidence)
    who = np.concatenate(customers)
    rungs = rungs_of(whole, {"pi-levels": np.concatenate(levels)})
    terms = {name: one.terms(whole) for name, one in ESTIMATORS.items()} | rungs
    intervals.clustered(ope.slope([*rungs.values()]), who)
    everything(terms, whole, who)
    spent += time.process_time() - start
    return Measured(
        seconds=spent,
        making=made,
        mebibytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        rounds=len(whole),
    )


def rows(*, n: int, million: int) -> Iterator[Row]:
    """Yield each measurement."""
    yield from compared(n=n)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = process.submit(stream, million).result()
    said = f"{found['rounds']:,.0f} rounds of {SPACE.k} actions"
    gib = found["mebibytes"] / 1024
    yield _row(f"memory of {said}", gib, None, unit="GiB", target="<= 2", met=gib <= 2)
    yield _row(
        f"model, every estimate and interval of {said}", found["seconds"], None, unit="s", target="reported", met=True
    )


def _row(name: str, ours: float, theirs: float | None, *, unit: str, target: str, met: bool) -> Row:
    print(f"{name}: {ours:.4g} {unit}" + (f", sb-obp {theirs:.4g}" if theirs else ""), flush=True)
    return Row(
        name=name,
        ours=ours,
        peer=theirs,
        peer_name=PEER if theirs else None,
        unit=unit,
        ratio=ours / theirs if theirs else None,
        target=target,
        met=met,
    )


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--million", type=int, default=1_000_000)
    asked = parser.parse_args()
    found = list(rows(n=asked.rounds, million=asked.million))
    if asked.million >= 1_000_000:
        write("evaluation", found)


if __name__ == "__main__":
    main()
