"""What is measured while serving? Prometheus metrics; labels come from declared names only, never from customers.

With several workers the counters, histograms and the queue of each lie in files of `PROMETHEUS_MULTIPROC_DIR`, so any
worker's answer is the sum over all of them, those that have ended included. What is the same for all workers (what is
left of a budget, which policy serves) is said by the worker that is asked.
"""

import os
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

STAGES = ("queue", "read", "mask", "score", "draw", "render", "commit")
"""Stages of the decide path, in order. `score` is the policy; `draw` is the floor, the draw and the record of both."""

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_SAMPLED, _MOST_SAMPLED = 4, 512
"""Rows of a batch, and of all batches between two looks, whose entropy is taken: enough for its mean."""

_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "nudge_policy_loaded_at_seconds": ("When the policy in service was loaded", ("program", "arm", "version")),
    "nudge_program_loaded_at_seconds": ("When the program in service was loaded", ("program", "version")),
    "nudge_store_up": ("Whether the store answered last", ()),
    "nudge_ready": ("Whether a part of the service works", ("part",)),
    "nudge_budget_left": ("What is left of the budget of this period, in the program's currency", ("program",)),
    "nudge_budget_amount": ("The budget of a period, in the program's currency", ("program",)),
    "nudge_stock_left": ("How many of an incentive are left", ("program", "incentive")),
    "nudge_stream_backlog": ("Events that are not archived yet", ()),
    "nudge_stream_lag_seconds": ("Age of the oldest event that is not archived yet", ()),
    "nudge_webhooks_waiting": ("Webhooks that have not arrived yet", ("target",)),
    "nudge_webhooks_dead": ("Webhooks that were given up", ("target",)),
    "nudge_disk_free_ratio": ("Share of the disk under NUDGE_HOME that is free", ()),
}


class Now(Collector):
    """What is so at the moment, as last said: gauges that are the same whichever worker is asked."""

    def __init__(self) -> None:
        self._said: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in _GAUGES}

    def say(self, name: str, value: float, **labels: str) -> None:
        """Replace a gauge's value."""
        _, names = _GAUGES[name]
        self._said[name][tuple(labels[n] for n in names)] = value

    def forget(self, name: str, **labels: str) -> None:
        """Say nothing more of gauges with these labels."""
        at = {_GAUGES[name][1].index(n): v for n, v in labels.items()}
        kept = {k: v for k, v in self._said[name].items() if any(k[i] != v for i, v in at.items())}
        self._said[name] = kept

    def value(self, name: str, **labels: str) -> float | None:
        """Return what was said last."""
        return self._said[name].get(tuple(labels[n] for n in _GAUGES[name][1]))

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges: what the registry asks for."""
        for name, (text, labels) in _GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in self._said[name].items():
                family.add_metric(values, value)
            yield family


class Metrics:
    """Every metric of one service, in a registry of its own.

    Args:
        shared: the folder named by `PROMETHEUS_MULTIPROC_DIR`, where several workers add up; None for one process.
    """

    def __init__(self, shared: Path | None = None) -> None:
        self._shared = shared
        self.registry = CollectorRegistry()
        self.now = Now()
        self.registry.register(self.now)
        self._sampled: deque[tuple[str, str, bytes]] = deque(maxlen=_MOST_SAMPLED)
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("nudge_requests", "Requests answered", ("call", "status"), **of)
        self.stage_seconds = Histogram(
            "nudge_decide_stage_seconds", "Time of a batch in each stage of the decide path", ("program", "stage"),
            buckets=_SECONDS, **of,
        )  # fmt: skip
        self.batch_rows = Histogram(
            "nudge_decide_batch_rows", "Rows decided at once", ("program",), buckets=_ROWS, **of
        )
        self.waiting = Gauge(
            "nudge_decide_waiting", "Requests that wait for a batch", ("program",), multiprocess_mode="livesum", **of
        )
        self.decisions = Counter("nudge_decisions", "Decisions made", ("program", "arm", "kind"), **of)
        self.holds = Counter("nudge_holds", "Decisions to hold by reason", ("program", "reason"), **of)
        self.blocks = Counter("nudge_blocks", "Levels blocked by rule", ("program", "rule"), **of)
        self.degraded = Counter("nudge_degraded", "Answers without a decision", ("program", "reason"), **of)
        self.stale = Counter("nudge_stale_rows", "Rows decided again with fresh state", ("program",), **of)
        self.outcomes = Counter("nudge_outcomes", "Outcomes by what became", ("program", "became"), **of)
        self.joins = Counter(
            "nudge_outcome_joins", "Sampled outcomes by whether a decision's window holds them", ("program", "joined"),
            **of,
        )  # fmt: skip
        self.entropy = Counter(
            "nudge_entropy", "Sum over sampled decisions of their entropy's share of the largest possible",
            ("program", "arm"), **of,
        )  # fmt: skip
        self.entropy_rows = Counter("nudge_entropy_rows", "Sampled decisions with a choice", ("program", "arm"), **of)
        self.hand_offs = Counter(
            "nudge_hand_offs", "Nudges asked to be delivered, by answer", ("program", "answer"), **of
        )
        self.webhooks = Counter("nudge_webhooks", "Webhooks sent, by what came of it", ("target", "became"), **of)
        self.asked_by_time = Counter(
            "nudge_asked_by_time", "Decisions asked for after a missed step or on an anniversary", ("program",), **of
        )
        self.policy_refused = Counter("nudge_policies_refused", "Policies that failed", ("program", "arm"), **of)
        self.program_refused = Counter("nudge_programs_refused", "Edited programs that were refused", (), **of)

    def count(self, counter: Counter, labels: Mapping[str, str], values: Iterable[str], *, by: str) -> None:
        """Count many values at once: one addition for each distinct one."""
        for value, times in Tally(values).items():
            counter.labels(**labels, **{by: value}).inc(times)

    def sample(self, program: str, decided: Iterable[tuple[str, bytes]]) -> None:
        """Remember the arm and chances of some decisions of a batch, to take their entropy later."""
        self._sampled.extend((program, arm, chances) for arm, chances in islice(decided, _SAMPLED))

    def take_entropy(self) -> None:
        """Count how even the chances of sampled decisions are: 0 is always the same, 1 is all alike."""
        groups: dict[tuple[str, str, int], list[bytes]] = {}
        while self._sampled:
            program, arm, chances = self._sampled.popleft()
            groups.setdefault((program, arm, len(chances)), []).append(chances)
        for (program, arm, _), rows in groups.items():
            shares = entropies(np.frombuffer(b"".join(rows), dtype="<f4").reshape(len(rows), -1))
            known = shares[~np.isnan(shares)]
            if len(known):
                self.entropy.labels(program, arm).inc(float(known.sum()))
                self.entropy_rows.labels(program, arm).inc(len(known))

    def text(self) -> bytes:
        """Return everything as Prometheus reads it: summed over all workers, where there are several."""
        self.take_entropy()
        if self._shared is None:
            return generate_latest(self.registry)
        bury(self._shared)
        summed = CollectorRegistry()
        MultiProcessCollector(summed, path=str(self._shared))  # type: ignore[no-untyped-call]
        summed.register(self.now)
        return generate_latest(summed)


def entropies(vectors: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return each row's entropy over the log of how many actions are possible; NaN where only one is.

    >>> entropies(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=np.float32)).tolist()
    [1.0, nan]
    """
    p = vectors / vectors.sum(axis=1, keepdims=True, dtype=np.float64)
    possible = (vectors > 0).sum(axis=1)
    bits = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
    most = np.log(np.maximum(possible, 2))
    shares: np.ndarray[Any, np.dtype[np.float64]] = np.where(possible > 1, bits / most, np.nan)
    return shares


def bury(folder: Path) -> None:
    """Leave out what workers that have ended said of their queues; what they counted stays in the sums."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not alive(pid):
            mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Laps:
    """Adds up the time between marks, by stage; the clock is given, so that what is timed needs none.

    >>> ticks = iter([0.0, 1.0, 3.0, 4.0])
    >>> laps = Laps(clock=lambda: next(ticks))
    >>> for stage in ("read", "score", "read"):
    ...     laps.mark(stage)
    >>> laps.seconds
    {'read': 2.0, 'score': 2.0}
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self.seconds: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        """Say that a stage has just ended."""
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
