"""What is measured while serving? Prometheus metrics; labels come from declared names only, never from customers."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

STAGES = ("queue", "read", "score", "commit")
"""Stages of the decide path, in order."""

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Every metric of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        in_registry: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("nudge_requests", "Requests answered", ("call", "status"), **in_registry)
        self.stage_seconds = Histogram(
            "nudge_decide_stage_seconds",
            "Time of a batch in each stage of the decide path",
            ("program", "stage"),
            buckets=_SECONDS,
            **in_registry,
        )
        self.batch_rows = Histogram(
            "nudge_decide_batch_rows", "Rows decided at once", ("program",), buckets=_ROWS, **in_registry
        )
        self.waiting = Gauge("nudge_decide_waiting", "Requests that wait for a batch", ("program",), **in_registry)
        self.decisions = Counter("nudge_decisions", "Decisions made", ("program", "arm", "kind"), **in_registry)
        self.holds = Counter("nudge_holds", "Decisions to hold by reason", ("program", "reason"), **in_registry)
        self.blocks = Counter("nudge_blocks", "Levels blocked by rule", ("program", "rule"), **in_registry)
        self.degraded = Counter("nudge_degraded", "Answers without a decision", ("program", "reason"), **in_registry)
        self.stale = Counter("nudge_stale_rows", "Rows decided again with fresh state", ("program",), **in_registry)
        self.outcomes = Counter("nudge_outcomes", "Outcomes by what became", ("program", "became"), **in_registry)
        self.policy = Gauge(
            "nudge_policy_loaded_at_seconds", "When the policy in service was loaded", ("program", "arm", "version"),
            **in_registry,
        )  # fmt: skip
        self.policy_refused = Counter(
            "nudge_policies_refused", "Policies that failed", ("program", "arm"), **in_registry
        )
        self.store_up = Gauge("nudge_store_up", "Whether the store answered last", **in_registry)

    def count(self, counter: Counter, labels: Mapping[str, str], values: Iterable[str], *, by: str) -> None:
        """Count many values at once: one addition for each distinct one."""
        for value, times in Tally(values).items():
            counter.labels(**labels, **{by: value}).inc(times)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self.registry)


CONTENT_TYPE = CONTENT_TYPE_LATEST
