"""How is one decision made? `mask -> prices -> probabilities -> floor -> float32 -> draw`, here and nowhere else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from optimizer.actions import HOLD, Bools, Floats, Floats32, Ints
from optimizer.customer import Cohort, Columns, Customer, cohort, encode, features, snapshots
from optimizer.events import Decision, Salt, Scalar, draws, uniform
from optimizer.floor import apply_floor
from optimizer.guardrails import Guarded, Request, Shared, allowed
from optimizer.policy import Policy, prices
from optimizer.program import Program

CHAMPION, CHALLENGER, EVALUATION, HOLDOUT = "champion", "challenger", "evaluation", "holdout"


class Ask(NamedTuple):
    """One request for a decision: who, when, under which id; extra attributes of the moment; limits."""

    customer: Customer
    decision_id: str
    at: float
    context: Mapping[str, Scalar] = {}
    request: Request = Request()


class Chooser(NamedTuple):
    """A policy as it serves an arm."""

    policy: Policy
    name: str
    version: str


@dataclass(frozen=True)
class Choices:
    """What was chosen for `n` customers, and from what.

    Args:
        actions: (n,). probabilities: (n, k) float32, the vectors drawn from. contexts: (n, d).
        burdens: (n,), eta x dosage in force. guarded: the mask and its reasons. arms: (n,) names.
    """

    actions: Ints
    probabilities: Floats32
    contexts: Floats
    burdens: Floats
    guarded: Guarded
    arms: Sequence[str]

    @property
    def mask(self) -> Bools:
        """Shape (n, k): the mask in force."""
        return self.guarded.mask

    @property
    def deliver_at(self) -> Floats:
        """Shape (n,): when the chosen nudge is delivered; NaN for hold."""
        return self._timed(self.guarded.deliver_at)

    @property
    def day(self) -> Floats:
        """Shape (n,): its local day; NaN for hold."""
        return self._timed(self.guarded.day)

    def _timed(self, by_timing: Floats) -> Floats:
        timing = np.maximum(self.actions - 1, 0) % by_timing.shape[1]
        return np.where(self.actions == HOLD, np.nan, by_timing[np.arange(len(self.actions)), timing])


@dataclass(frozen=True)
class Optimizer:
    """Chooses for a batch of customers. Pure: the same asks under the same state give the same decisions.

    Args:
        program: what is declared.
        choosers: the policy of each arm; `champion` must be there and stands in for arms that have none.
        salt: keys the draw.
    """

    program: Program
    choosers: Mapping[str, Chooser]
    salt: Salt

    def chooser(self, arm: str) -> Chooser:
        """Return the policy that serves an arm."""
        return self.choosers.get(arm, self.choosers[CHAMPION])

    def arm(self, customer_id: str) -> str:
        """Return the arm of a customer: sticky, by hash."""
        shares = self.program.experiment
        u = uniform(self.salt, "arm", program=self.program.name, customer_id=customer_id)
        for arm, part in (
            (HOLDOUT, shares.holdout),
            (CHALLENGER, shares.challenger),
            (EVALUATION, shares.evaluation),
        ):
            if u < part:
                return arm
            u -= part
        return CHAMPION

    def decide(self, asks: Sequence[Ask], shared: Shared) -> list[Decision]:
        """Decide for a batch of distinct customers, in order.

        Rows take turns: each is decided under the mask that earlier rows leave of what is shared.

        Args:
            asks: n requests; a customer is there once.
            shared: what is left before the first.
        """
        people = [a.customer for a in asks]
        attributed = [_with(c, a.context) for c, a in zip(people, asks, strict=True)]
        rows = cohort(self.program, attributed, at=[a.at for a in asks])
        arms = [self.arm(c.customer_id) for c in people]
        us = [self._u(a) for a in asks]
        seen = features(self.program, rows)
        choices = self.choose(rows, arms=arms, us=us, shared=shared, requests=[a.request for a in asks], seen=seen)
        return self._decisions(asks, choices, contexts=snapshots(self.program, seen), cost_price=shared.cost_price)

    def choose(
        self,
        rows: Cohort,
        *,
        arms: Sequence[str],
        us: Sequence[float] | Floats,
        shared: Shared,
        requests: Sequence[Request] | None = None,
        seen: Columns | None = None,
    ) -> Choices:
        """Choose for a cohort (n,) given each row's arm and number in [0, 1).

        `seen` is what `features` gives for these rows, where it is at hand.
        """
        guarded = allowed(self.program, rows, shared=shared, requests=requests)
        if len(rows) > 1 and not self._ample(guarded, shared):
            return self._one_by_one(rows, arms=arms, us=us, shared=shared, requests=requests)
        contexts = encode(self.program, features(self.program, rows) if seen is None else seen)
        burdens = self.program.guardrails.burden_price * rows.dosage
        priced = prices(self.program.space, cost_prices=np.full(len(rows), shared.cost_price), burdens=burdens)
        vectors = self._vectors(contexts, guarded.mask, priced, arms=arms)
        actions = draws(vectors, np.asarray(us))
        return Choices(actions, vectors, contexts, burdens, guarded, arms)

    def _vectors(self, contexts: Floats, mask: Bools, priced: Floats, *, arms: Sequence[str]) -> Floats32:
        """Shape (n, k): each row's probabilities under its arm's policy, floored, as they are logged."""
        served = dict.fromkeys(arms)
        if len(served) == 1 and HOLDOUT not in served:
            return self._arm_vectors(contexts, mask, priced, arm=arms[0])
        vectors = np.zeros(mask.shape, dtype=np.float32)
        vectors[:, HOLD] = 1.0
        names = np.array(arms)
        for arm in served:
            if arm == HOLDOUT:
                continue
            rows = np.flatnonzero(names == arm)
            vectors[rows] = self._arm_vectors(contexts[rows], mask[rows], priced[rows], arm=arm)
        return vectors

    def _arm_vectors(self, contexts: Floats, mask: Bools, priced: Floats, *, arm: str) -> Floats32:
        chosen = self.chooser(arm).policy.probabilities(contexts, mask, priced)
        floored = apply_floor(chosen, self.program.space, allowed=mask, exploration=self.program.exploration)
        return floored.astype(np.float32)

    def _ample(self, guarded: Guarded, shared: Shared) -> bool:
        """Whether the worst case of these rows leaves the mask of each as it is."""
        costs = self.program.minor_costs
        n, most = len(guarded.nudge), int(costs.max())
        if (n + 1) * most <= shared.budget and n < shared.stock.min():
            return True  # whatever is blocked
        free = (guarded.incentive == 0) & (guarded.nudge == 0)[:, None]
        worst = float(np.where(free, costs, 0).max(axis=1, initial=0).sum())
        dearest = float(np.where(free, costs, 0).max(initial=0))
        return bool(worst + dearest <= shared.budget and (free.sum(axis=0) < shared.stock)[free.any(axis=0)].all())

    def _one_by_one(
        self,
        rows: Cohort,
        *,
        arms: Sequence[str],
        us: Sequence[float] | Floats,
        shared: Shared,
        requests: Sequence[Request] | None,
    ) -> Choices:
        parts = []
        for i in range(len(rows)):
            asked = requests[i : i + 1] if requests else None
            part = self.choose(
                rows.take(slice(i, i + 1)),
                arms=arms[i : i + 1],
                us=us[i : i + 1],
                shared=shared,
                requests=asked,
            )
            if action := int(part.actions[0]):
                incentive = int(self.program.space.levels[action, 0])
                shared = shared.after(int(self.program.minor_costs[incentive]), incentive)
            parts.append(part)
        return _joined(parts)

    def _u(self, ask: Ask) -> float:
        return uniform(
            self.salt,
            "draw",
            program=self.program.name,
            customer_id=ask.customer.customer_id,
            decision_id=ask.decision_id,
        )

    def _decisions(
        self, asks: Sequence[Ask], choices: Choices, *, contexts: Sequence[dict[str, Scalar]], cost_price: float
    ) -> list[Decision]:
        program, space, k = self.program, self.program.space, self.program.space.k
        logged = {arm: self._logged(arm) for arm in dict.fromkeys(choices.arms)}
        costs, each = program.minor_costs.tolist(), space.shape[1] * space.shape[2]
        vectors = choices.probabilities.astype("<f4").tobytes()
        rows = zip(
            asks, choices.arms, contexts, choices.guarded.blocks(space), choices.actions.tolist(),
            choices.deliver_at.tolist(), choices.burdens.tolist(), range(0, len(vectors), 4 * k), strict=True,
        )  # fmt: skip
        return [
            Decision(
                decision_id=ask.decision_id,
                customer_id=ask.customer.customer_id,
                program=program.name,
                program_version=program.version,
                policy=logged[arm][0],
                policy_version=logged[arm][1],
                arm=arm,
                at=ask.at,
                context=context,
                probabilities=vectors[start : start + 4 * k],
                action=action,
                action_name=space.names[action],
                deliver_at=deliver_at if action else None,
                cost=costs[(action - 1) // each] if action else 0,
                cost_price=cost_price,
                burden=burden,
                salt_id=self.salt.id,
                blocked=blocked,
            )
            for ask, arm, context, blocked, action, deliver_at, burden, start in rows
        ]

    def _logged(self, arm: str) -> tuple[str, str]:
        """Return name and version of what decides for an arm, as they are logged."""
        chooser = self.chooser(arm)
        return ("hold", "holdout") if arm == HOLDOUT else (chooser.name, chooser.version)


def _with(customer: Customer, context: Mapping[str, Scalar]) -> Customer:
    return replace(customer, attributes={**customer.attributes, **context}) if context else customer


def _joined(parts: Sequence[Choices]) -> Choices:
    guarded = Guarded(**{f.name: _stacked([p.guarded for p in parts], f.name) for f in fields(Guarded)})
    return Choices(
        actions=_stacked(parts, "actions"),
        probabilities=_stacked(parts, "probabilities"),
        contexts=_stacked(parts, "contexts"),
        burdens=_stacked(parts, "burdens"),
        guarded=guarded,
        arms=[arm for p in parts for arm in p.arms],
    )


def _stacked(parts: Sequence[object], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(p, name) for p in parts])
