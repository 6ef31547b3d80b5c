"""What is left to spend? Budget and stocks as the service keeps them, while simulated customers take turns."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from optimizer.actions import Bools, Ints
from optimizer.guardrails import Shared
from optimizer.program import Program


class Gone(NamedTuple):
    """A level (`incentive=badge`) that cannot be offered from one moment until another; or `program`, for an outage."""

    level: str
    since: float
    until: float


@dataclass(frozen=True)
class Purse:
    """What is left of the budget of a period and of the stocks, as the service keeps it: by the moment of deciding.

    `gone` is what a world takes off the shelf for a time; `cuts` are moments from which budgets are a share of what
    the program says.
    """

    program: Program
    period: int
    left: Shared
    gone: tuple[Gone, ...] = ()
    cuts: tuple[tuple[float, float], ...] = ()

    @classmethod
    def full(
        cls, program: Program, *, at: float, gone: tuple[Gone, ...] = (), cuts: tuple[tuple[float, float], ...] = ()
    ) -> "Purse":
        """Return all that there is to spend in the period of a moment."""
        return cls(program, _period(program, at), Shared.unlimited(program), gone, cuts).at(at)

    def at(self, time: float) -> "Purse":
        """Return the purse at a moment: in a new period with a new budget, without what is gone by then."""
        left = self.left
        if self.gone:
            left = replace(left, paused=frozenset(g.level for g in self.gone if g.since <= time < g.until))
        if (period := _period(self.program, time)) != self.period:
            left = replace(left, budget=Shared.unlimited(self.program).budget * self._share(time))
        return replace(self, period=period, left=left) if left is not self.left else self

    def _share(self, time: float) -> float:
        return next((share for since, share in reversed(self.cuts) if time >= since), 1.0)

    def after(self, actions: Ints) -> "Purse":
        """Return what is left once actions are reserved."""
        taken = self._taken(actions)
        stock = self.left.stock - taken.sum(axis=0)
        budget = self.left.budget - float((taken @ self.program.minor_costs).sum())
        return replace(self, left=replace(self.left, budget=budget, stock=stock))

    def _taken(self, actions: Ints) -> Ints:
        """Shape (n, incentives): 1 where an action takes one."""
        incentive = self.program.space.levels[actions, 0]
        taken: Ints = (incentive[:, None] == np.arange(len(self.program.incentives))).astype(np.intp)
        return taken

    @property
    def standing(self) -> Shared:
        """What is left as a mask that others' reservations do not change: unlimited, or paused where it is short."""
        names, stock = self.program.space.incentives, np.full(len(self.left.stock), np.inf)
        short = frozenset(f"incentive={names[i]}" for i in np.flatnonzero(self._short()).tolist())
        return Shared(np.inf, stock, self.left.paused | short, self.left.cost_price)

    def lasts(self, actions: Ints) -> int:
        """Return for how many rows the first row's mask lasts while actions (n,) are reserved in turn; at least 1."""
        taken = self._taken(actions)
        short = self._short(before=np.cumsum(taken, axis=0) - taken)
        changed = (short != short[0]).any(axis=1)
        return int(changed.argmax()) if changed.any() else len(actions)

    def _short(self, before: Ints | int = 0) -> Bools:
        """Shape (..., incentives): what is too dear or out of stock once `before` (..., incentives) is taken."""
        costs = self.program.minor_costs
        spent = np.sum(before * costs, axis=-1, keepdims=True)
        short: Bools = (costs > self.left.budget - spent) | (self.left.stock - before < 1)
        return short


def _period(program: Program, at: float) -> int:
    budget = program.guardrails.budget
    return int(at // budget.period) if budget and budget.period else 0
