"""What happens when the same population meets a running service? The closed loop over HTTP, counted.

The service decides and keeps what it knows of each customer; the population keeps its own copy, from what it was
answered and what it reports. Ids and times are the population's, so a run can be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import aiohttp
import msgspec
import numpy as np

from optimizer.actions import HOLD, ActionSpace, Ints, Nudge
from optimizer.customer import deliveries
from optimizer.engine import CHAMPION, HOLDOUT
from simulations.journeys import Happenings, State, beginning
from simulations.log import History
from simulations.population import Population
from simulations.rollout import Progress, Run, ask, facing, live, reported_within, slots, waiting

DECISIONS, OUTCOMES = 500, 1_000
"""Most decisions and outcomes in one request."""

ATTEMPTS = 6
"""How often decisions that the service could not keep are asked for again, waiting twice as long each time."""

TOGETHER = 8
"""Requests under way at once, where they concern different customers."""


class ServiceError(ConnectionError):
    """The service did not do what it was asked; the message has its answer."""


class Acknowledged(NamedTuple):
    """What the service said that it keeps: decisions answered, and outcomes accepted, each once."""

    decisions: int
    outcomes: int

    @property
    def total(self) -> int:
        """Both."""
        return self.decisions + self.outcomes


class Driven(NamedTuple):
    """A run over HTTP, and what was acknowledged in it."""

    run: Run
    acknowledged: Acknowledged


async def drive(
    population: Population,
    url: str,
    *,
    days: int,
    since: Run | None = None,
    key: str = "",
    progress: Progress | None = None,
) -> Driven:
    """Let customers ask a running service once a day, each at its own hour, and live with what it decides.

    What happened to a customer is reported before the customer asks again. The service's store must be marked
    simulated, since requests name their own time.

    Args:
        population: the customers.
        url: of the service, such as `http://127.0.0.1:8000`.
        days: how many.
        since: the run that this one goes on from; from the start, introducing the customers, where None.
        key: an API key with the scopes decide, report, admin and simulate, where the service asks for one.
        progress: told after each day.

    Raises:
        ServiceError: quoting what the service answered.
    """
    first = since.first + since.days if since else 0
    begin = since.end if since else beginning(population)
    opening = purse = since.left if since else population.purse()
    if purse.gone or purse.cuts:
        raise ValueError(
            f"world {population.world.name!r} changes what can be offered, of which a running service knows nothing: "
            "simulate it in process (nudge simulate)"
        )
    state = begin.copy()
    actions, stages = (np.zeros((days, len(population)), dtype=np.intp) for _ in range(2))
    held = np.ones(len(population), dtype=np.bool_)
    happened = [waiting(population, begin, day=first)]
    decisions = outcomes = 0
    async with _calls(url, key=key) as calls:
        if since is None:
            await _introduce(calls, population)
        for day in range(first, first + days):
            for rows in slots(population, day=day, size=DECISIONS):
                outcomes += await _report(calls, population, _arriving(state, rows=rows, day=day))
                asking = ask(population, state, rows=rows, day=day)
                answers = await _decide(calls, population, rows=rows, day=day, at=asking.cohort.at.tolist())
                chosen = _actions(population.program.space, answers)
                held[rows] &= [a["hold_reason"] == HOLDOUT for a in answers]
                decisions += len(answers)
                stages[day - first, rows], actions[day - first, rows] = state.stage[rows], chosen
                purse = purse.at(asking.cohort.at[0]).after(chosen)
                now = facing(asking, deliveries(population.program, asking.cohort)[0])
                happened.append(live(asking, now, chosen))
            if progress:
                progress("simulating over HTTP", day - first + 1, days)
    reported = reported_within(population, happened, first=first, days=days)
    arms = since.arms if since else tuple(np.where(held, HOLDOUT, CHAMPION).tolist())
    history = History(population, first, actions, stages, reported)
    return Driven(Run(history, arms, begin, state, opening, purse, None), Acknowledged(decisions, outcomes))


def _arriving(state: State, *, rows: slice, day: int) -> Happenings:
    """Return what a slot's customers are about to report; it stays pending for the population's own copy."""
    found = Happenings.concatenate([_NOTHING, *state.due(rows=rows, day=day - 1)])
    state.keep(found, rows=rows, day=day - 1)
    return found


_NOTHING = Happenings(
    customer=np.zeros(0, dtype=np.intp),
    event=np.zeros(0, dtype=np.intp),
    at=np.zeros(0),
    value=np.zeros(0),
    twice=np.zeros(0, dtype=np.bool_),
    serial=np.zeros(0, dtype=np.intp),
)


def _actions(space: ActionSpace, answers: Sequence[dict[str, Any]]) -> Ints:
    chosen = [a["action"] and Nudge(**a["action"]) for a in answers]
    return np.array([space.index(nudge) if nudge else HOLD for nudge in chosen], dtype=np.intp)


# The calls.


class _Calls(NamedTuple):
    session: aiohttp.ClientSession
    url: str
    turns: asyncio.Semaphore

    async def call(self, method: str, path: str, body: object) -> Any:
        """Return what the service answers, asking again where a connection breaks: every call may be repeated.

        Raises:
            ServiceError: it refuses, or cannot be reached.
        """
        data, attempt = msgspec.json.encode(body), 1
        while True:
            try:
                return await self._once(method, path, data)
            except aiohttp.ClientConnectionError as error:
                if attempt == ATTEMPTS:
                    raise ServiceError(f"{method} {path}: {error}; is the service at {self.url} still there?") from None
            await asyncio.sleep(0.1 * 2**attempt)
            attempt += 1

    async def _once(self, method: str, path: str, data: bytes) -> Any:
        async with self.turns, self.session.request(method, f"{self.url}{path}", data=data) as answer:
            text = await answer.read()
            if answer.status >= 300:
                raise ServiceError(f"{method} {path} was answered {answer.status}: {text[:500].decode()}")
            return msgspec.json.decode(text) if text else None


@asynccontextmanager
async def _calls(url: str, *, key: str) -> AsyncIterator[_Calls]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    timeout = aiohttp.ClientTimeout(total=60.0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        yield _Calls(session, url.rstrip("/"), asyncio.Semaphore(TOGETHER))


async def _introduce(calls: _Calls, population: Population) -> None:
    """Put every customer's attributes and time zone, and the history that led to where they are."""
    zones = [population.zones[code] for code in population.people.zone.tolist()]
    bodies = [{"time_zone": zone, "attributes": population.attributes_of(i)} for i, zone in enumerate(zones)]
    puts = (calls.call("PUT", f"/v1/customers/{population.name(i)}", body) for i, body in enumerate(bodies))
    await asyncio.gather(*puts)


async def _decide(
    calls: _Calls, population: Population, *, rows: slice, day: int, at: Sequence[float]
) -> list[dict[str, Any]]:
    """Ask for a slot of customers at once, and again for those that could not be decided for.

    Raises:
        ServiceError: some could not be decided for, however often they asked.
    """
    requests = [
        {
            "program": population.program.name,
            "customer_id": population.name(customer),
            "decision_id": population.decision_id(customer, day=day),
            "at": _time(moment),
        }
        for customer, moment in zip(range(rows.start, rows.stop), at, strict=True)
    ]
    answers: dict[str, dict[str, Any]] = {}
    for attempt in range(ATTEMPTS):
        missing = [r for r in requests if r["decision_id"] not in answers]
        answered = await calls.call("POST", "/v1/decide/batch", {"requests": missing})
        # A degraded hold is no decision: the same id may be tried again.
        answers |= {a["decision_id"]: a for a in answered["results"] if not a["degraded"]}
        if len(answers) == len(requests):
            return [answers[r["decision_id"]] for r in requests]
        await asyncio.sleep(0.1 * 2**attempt)
    raise ServiceError(
        "the service went on answering degraded holds: it cannot keep decisions; see its log and /readyz"
    )


async def _report(calls: _Calls, population: Population, happened: Happenings) -> int:
    """Report what happened, in order for each customer; return how many outcomes the service said that it keeps.

    An outcome is kept whether it was accepted or known already: what is reported twice, or again after a connection
    broke, is one.

    Raises:
        ServiceError: an outcome was refused.
    """
    ordered = happened.take(np.lexsort((happened.event, happened.at, happened.customer)))
    rows = (row for outcome in _outcomes(population, ordered) for row in outcome)
    batches = iter(lambda: list(islice(rows, OUTCOMES)), [])
    for batch in batches:
        answer = await calls.call("POST", "/v1/outcomes", batch)
        if answer["errors"]:
            raise ServiceError(f"POST /v1/outcomes refused an outcome: {answer['errors'][0]}")
    return len(happened)


def _outcomes(population: Population, happened: Happenings) -> Iterator[list[dict[str, Any]]]:
    """Yield each outcome as it is reported: once, or twice."""
    names = (*population.effects.events, "shown")
    columns = (happened.customer, happened.event, happened.at, happened.value, happened.twice, happened.serial)
    for customer, event, at, value, twice, serial in zip(*(c.tolist() for c in columns), strict=True):
        who = population.name(customer)
        row = {
            "outcome_id": f"{who}-{names[event]}-{serial}",
            "program": population.program.name,
            "customer_id": who,
            "event": names[event],
            "at": _time(at),
            "value": None if np.isnan(value) else value,
            "decision_id": population.decision_id(customer, day=serial) if names[event] == "shown" else None,
        }
        yield [row, row] if twice else [row]


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
