"""Can any reinforcement learner be tried against the population? The simulated customers as a `gymnasium.Env`.

One step is one decision: the next customer asks, the agent answers with an action, and what the day leads to within the
program's windows, less the cost, is the reward. Guardrails hold: an action that is blocked is a hold, and
`info["mask"]` says beforehand which are allowed. A day's customers are asked in turn; a night passes after the last.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.actions import HOLD, Bools, Floats
from optimizer.customer import deliveries, encode, features
from optimizer.guardrails import allowed
from optimizer.program import Program
from simulations.journeys import beginning
from simulations.population import Population, populate
from simulations.response import Moment, expected
from simulations.rollout import Asking, ask, facing, live
from simulations.worlds import World

if TYPE_CHECKING:
    import gymnasium

START = 1_767_571_200.0
LONGEST = 730


def environment(
    program: Program, world: World, *, customers: int = 100, days: int = 28, seed: int = 1
) -> "gymnasium.Env[Any, Any]":
    """Return the population as a Gymnasium environment: `Discrete(k)` actions, contexts (d,) as observations.

    Args:
        program: whose actions, features and guardrails they are.
        world: the settings.
        customers: who ask each day. days: after which an episode is cut off.
        seed: of the first episode, unless `reset(seed=...)` names another; each episode after it has other customers.

    Raises:
        ModuleNotFoundError: saying what to install, where gymnasium is not.
        ValueError: for a number of days or customers that cannot be.
    """
    if customers < 1 or not 1 <= days <= LONGEST:
        raise ValueError(
            f"customers = {customers!r}, days = {days!r}: use 1 or more customers, and 1 to {LONGEST} days"
        )
    try:
        import gymnasium  # noqa: PLC0415  (a tool of developers: not installed with the product)
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the population as an environment needs gymnasium: pip install gymnasium") from None

    space = program.space
    high = np.full(space.d, 50.0, dtype=np.float32)

    class Customers(gymnasium.Env[Any, Any]):
        """Simulated customers, one decision a step."""

        metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's own form)

        def __init__(self) -> None:
            self.action_space = gymnasium.spaces.Discrete(space.k)
            self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
            self._days: _Days | None = None
            self._next = seed

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            chosen = self._next if seed is None else seed
            self._next = chosen + 1
            population = populate(program, world, customers=customers, seed=chosen, start=START)
            self._days = _Days(population, days=days)
            return self._days.observation, self._days.info

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self._days is None:
                raise ValueError("nobody has asked yet: call reset() before step()")
            if not self.action_space.contains(action):
                raise ValueError(f"action {action!r} is none of this program's: expected 0 to {space.k - 1}")
            reward = self._days.answer(int(action))
            return self._days.observation, reward, False, self._days.over, self._days.info

    return Customers()


class _Days:
    """Some days of a population whose customers are answered one at a time."""

    def __init__(self, population: Population, *, days: int) -> None:
        self.population, self.days = population, days
        self.state, self.purse = beginning(population), population.purse()
        self.day, self.row = 0, 0
        self.everyone = slice(0, len(population))
        self._wake()

    def _wake(self) -> None:
        """Bring everybody to their ask of the day; what each sees does not depend on the others' answers."""
        program = self.population.program
        self.asking: Asking = ask(self.population, self.state, rows=self.everyone, day=self.day)
        self.now: Moment = facing(self.asking, deliveries(program, self.asking.cohort)[0])
        self.contexts: Floats = encode(program, features(program, self.asking.cohort))
        self.actions = np.zeros(len(self.population), dtype=np.intp)
        self.masks: dict[frozenset[str], Bools] = {}
        self.purse = self.purse.at(float(self.asking.cohort.at[0]))

    @property
    def over(self) -> bool:
        """Whether the last day is done."""
        return self.day >= self.days

    @property
    def mask(self) -> Bools:
        """Shape (k,): what is allowed for the customer who asks, given what earlier ones took."""
        shared = self.purse.at(float(self.asking.cohort.at[self.row])).standing
        if shared.paused not in self.masks:  # a mask a day, until something runs short
            self.masks[shared.paused] = allowed(self.population.program, self.asking.cohort, shared=shared).mask
        found: Bools = self.masks[shared.paused][self.row]
        return found

    @property
    def observation(self) -> Any:
        """Shape (d,): the context of the customer who asks."""
        return np.clip(self.contexts[self.row], -50.0, 50.0).astype(np.float32)

    @property
    def info(self) -> dict[str, Any]:
        """What is allowed, and who asks when."""
        return {"mask": self.mask.astype(np.int8), "customer": self.row, "day": self.day}

    def answer(self, action: int) -> float:
        """Let the customer who asks have an action, hold where it is blocked; return its expected reward."""
        action = action if self.mask[action] else HOLD
        self.purse = self.purse.at(float(self.asking.cohort.at[self.row])).after(np.array([action]))
        self.actions[self.row] = action
        one = np.array([self.row])
        now = self.now.take(one)
        until = now.asks[:, None] + self.population.windows
        worth = float(expected(now, np.array([action]), until=until)[0])
        reward = worth - float(self.population.program.space.action_costs[action])
        self.row += 1
        if self.row == len(self.population):
            live(self.asking, self.now, self.actions)
            self.day, self.row = self.day + 1, 0
            self._wake()
        return reward
