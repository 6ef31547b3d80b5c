"""Was every decision in the log made under the mask that was in force when it was committed? Told from the log alone.

The log of a shard is in the order of its commits, so whoever follows it from the start knows each customer, the
budget and the stock at each entry. This is not how the service checks: it reads, decides and compares what it read.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from optimizer.customer import cohort, local_day, new_customer, utc_offset
from optimizer.engine import HOLDOUT
from optimizer.events import Decision, Outcome
from optimizer.guardrails import Shared, allowed
from optimizer.journey import settle
from optimizer.program import Program
from serving import records, reservations
from serving.reservations import New, Place, Resource


@dataclass
class Verdict:
    """What is wrong with a log: entries that should not be as they are, by kind."""

    doubled: int = 0
    overspent: int = 0
    over_cap: int = 0
    other_mask: int = 0
    checked: int = 0
    first: str = ""


@dataclass
class _Replay:
    program: Program
    places: dict[str, Place] = field(default_factory=dict)
    used: Counter[Resource] = field(default_factory=Counter)
    seen: Counter[tuple[str, ...]] = field(default_factory=Counter)
    revisions: dict[tuple[str, str], int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)

    def place(self, name: str, *, at: float) -> Place:
        return self.places.get(name) or Place(new_customer(self.program, name, at=at))

    def shared(self, decision: Decision) -> Shared:
        """Return what was left before a decision."""
        budget, stocked = self.program.guardrails.budget, reservations.stocked(self.program)
        spent = self.used[reservations.budget_resource(reservations.period(self.program, decision.at))]
        return Shared(
            budget=max(budget.minor_amount - spent, 0) if budget else np.inf,
            stock=np.array([
                stocked[i.name] - self.used[reservations.stock_resource(i.name)] if i.name in stocked else np.inf
                for i in self.program.incentives
            ]),
            cost_price=decision.cost_price,
        )  # fmt: skip

    def decided(self, decision: Decision) -> None:
        """Check a decision against what was so before it, then let it happen."""
        place = self.place(decision.customer_id, at=decision.at)
        customer = settle(self.program, place.customer, at=decision.at)
        rows = cohort(self.program, [customer], at=[decision.at])
        mask = allowed(self.program, rows, shared=self.shared(decision)).mask[0]
        possible = decision.vector > 0
        expected = np.arange(len(mask)) == 0 if decision.arm == HOLDOUT else mask
        self.verdict.checked += 1
        if not np.array_equal(possible, expected):
            self._wrong("other_mask", decision)
        for claim in reservations.claims(self.program, decision):
            self.used[claim.resource] += claim.take
            if claim.take and self.used[claim.resource] > claim.limit:
                self._wrong("overspent", decision)
        after = reservations.reserve(self.program, customer, decision)
        self.places[decision.customer_id] = Place(after, place.released)
        if decision.deliver_at is not None:
            zone = self.program.guardrails.time_zone
            day = local_day(decision.deliver_at, utc_offset(zone, decision.deliver_at))
            if sum(s.day == day for s in after.sent) > self.program.guardrails.cap_per_day:
                self._wrong("over_cap", decision)

    def happened(self, outcome: Outcome) -> None:
        """Let an outcome happen."""
        key = (outcome.customer_id, outcome.outcome_id)
        new = New(outcome, first=key not in self.revisions)
        self.revisions[key] = outcome.revision
        place = self.place(outcome.customer_id, at=outcome.at)
        effect = reservations.after(self.program, place, new)
        self.places[outcome.customer_id] = effect.place
        for move in effect.moves:
            self.used[move.resource] = max(self.used[move.resource] + move.amount, 0)

    def _wrong(self, kind: str, decision: Decision) -> None:
        setattr(self.verdict, kind, getattr(self.verdict, kind) + 1)
        self.verdict.first = self.verdict.first or f"{kind}: {decision}"


def replayed(program: Program, events: Sequence[records.Event]) -> Verdict:
    """Return what is wrong with a log: nothing, if commits were exact."""
    replay = _Replay(program)
    counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for event in events:
        if isinstance(event, Decision):
            counts["decision", event.customer_id, event.decision_id] += 1
            replay.decided(event)
        elif isinstance(event, Outcome):
            counts["outcome", event.customer_id, event.outcome_id, str(event.revision)] += 1
            replay.happened(event)
    replay.verdict.doubled = sum(n - 1 for n in counts.values())
    return replay.verdict
