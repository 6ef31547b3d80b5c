"""How does an app ask? A small async client: typed answers, retries that never count twice, a budget of time.

    async with Client("http://127.0.0.1:8000", key="nudge_...") as nudge:
        decision = await nudge.decide("fitness-coaching", "c-42")
        if decision.action is not None:
            send(decision.message)
        await nudge.report("fitness-coaching", "c-42", "workout_done")

Whatever is sent carries an id before it is first sent, so it can be sent again: the service answers a repeated
decision with the same decision and counts a repeated outcome once. What is tried again are connections that fail or
hang and the answers 429, 502, 503 and 504: after what `Retry-After` asks for, or else after a random part of a pause
that doubles. Nothing here imports the service itself.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import msgspec

Scalar = str | float | bool | None
Some = TypeVar("Some")

_AGAIN = frozenset({429, 502, 503, 504})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class Action(msgspec.Struct, frozen=True):
    """A nudge: what is offered, how it is said, when."""

    incentive: str
    tone: str
    timing: str


class Message(msgspec.Struct, frozen=True):
    """What the customer reads."""

    subject: str
    body: str
    call_to_action: str


class Progress(msgspec.Struct, frozen=True):
    """How far the customer is to the nearest milestone, and what it earns."""

    milestone: str
    done: int
    of: int
    reward: str


class PolicyName(msgspec.Struct, frozen=True):
    """The policy that chose."""

    name: str
    version: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided: a nudge, or hold (`action` is None) and why. Times are ISO 8601 on the customer's clock.

    `degraded` is a safe hold and no decision: nothing was kept, and the same id may be asked again.
    """

    decision_id: str
    customer_id: str
    program: str
    action: Action | None = None
    deliver_at: str | None = None
    expires_at: str | None = None
    message: Message | None = None
    propensity: float | None = None
    policy: PolicyName | None = None
    stage: str | None = None
    progress: Progress | None = None
    hold_reason: str | None = None
    next_eligible_at: str | None = None
    because: str | None = None
    degraded: bool = False


class Explanation(Decision, frozen=True, kw_only=True):
    """A decision, and why, and why not something else."""

    arm: str
    program_version: str
    at: str
    time_zone: str
    chances: dict[str, float]
    others: int
    blocked: dict[str, str]
    context: dict[str, Any]
    scores: dict[str, float] | None = None


class HandedOff(msgspec.Struct, frozen=True):
    """Whether a nudge may be delivered now, and why not."""

    decision_id: str
    deliver: bool
    reason: str | None = None
    deliver_at: str | None = None
    expires_at: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a customer did. Its id is made where it is empty; give your own to correct or revoke it later."""

    program: str
    customer_id: str
    event: str
    outcome_id: str = ""
    at: str | None = None
    value: float | None = None
    decision_id: str | None = None
    revision: int = 0
    revoked: bool = False


class RowError(msgspec.Struct, frozen=True):
    """Why an outcome was refused."""

    index: int
    code: str
    detail: str
    field: str | None = None


class DecideNow(msgspec.Struct, frozen=True):
    """An outcome after which a decision is due at once: ask for it now."""

    index: int
    program: str
    customer_id: str
    event: str
    reason: str


class Received(msgspec.Struct, frozen=True):
    """What became of outcomes: accepted ones are kept."""

    accepted: int
    duplicates: int
    errors: list[RowError] = []
    decide_now: list[DecideNow] = []


class Profile(msgspec.Struct, frozen=True):
    """What all programs know of a customer."""

    customer_id: str
    consent: bool | None
    time_zone: str
    attributes: dict[str, Scalar]


class Milestone(msgspec.Struct, frozen=True):
    """A milestone, reached or to come."""

    name: str
    title: str
    done: int
    of: int
    reward: str
    reached: bool


class Reward(msgspec.Struct, frozen=True):
    """What a milestone earns."""

    milestone: str
    reward: str


class Rewards(msgspec.Struct, frozen=True):
    """What the customer has earned, and what is to come."""

    earned: list[Reward]
    to_come: list[Reward]


class Latest(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as the customer may hear of it: `because` says why, in plain words."""

    decision_id: str
    at: str
    action: Action | None
    deliver_at: str | None
    message: Message | None
    because: str | None


class CustomerState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a customer is in a program."""

    customer_id: str
    program: str
    stage: str
    consent: bool | None
    time_zone: str
    attributes: dict[str, Any]
    momentum: float
    dosage: float
    streak: int
    progress: Progress | None
    milestones: list[Milestone]
    next_eligible_at: str | None
    longest_streak: int = 0
    rewards: Rewards | None = None
    latest: Latest | None = None


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the budget of this period, in the program's currency, and its shadow price."""

    currency: str
    amount: float
    spent: float
    left: float
    ends_at: str
    price: float


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A program as it is served."""

    name: str
    title: str
    version: str
    versions: list[str]
    stages: list[str]
    events: list[str]
    incentives: list[str]
    tones: list[str]
    timings: list[str]
    policies: dict[str, PolicyName]
    paused: list[str]
    budget: BudgetState | None = None


class ProblemError(Exception):
    """The service refused (RFC 9457). `type` names the kind of problem; `errors` says what is wrong where."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("detail") or f"status {status}"))
        self.status = status
        self.type = str(document.get("type", "about:blank"))
        self.detail = str(document.get("detail", ""))
        self.instance = str(document.get("instance", ""))
        errors = document.get("errors")
        self.errors: list[dict[str, Any]] = errors if isinstance(errors, list) else []


class UnreachableError(Exception):
    """The service could not be reached, or not in time, or something else answered in its place.

    Whether it kept what was sent is not known: send it again.
    """


class Client:
    """Asks a service. Use it as an async context manager, and one for many requests: it keeps connections open.

    Args:
        url: of the service.
        key: API key; empty where the service is open to this machine.
        seconds: that a call may take in all, retries included.
        tries: how often it is sent at most.
        hold_on_failure: answer a hold marked degraded, instead of raising, where a decision could not be had in time
            because the service is away, overloaded or broken. What it refuses is raised all the same.
        connections: kept open at most.
        clock, pause, chance: seconds never going back; what waits; a number in [0, 1). For tests.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        seconds: float = 2.0,
        tries: int = 4,
        hold_on_failure: bool = False,
        connections: int = 64,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Any] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._seconds, self._tries, self._holds = seconds, tries, hold_on_failure
        self._connections = connections
        self._clock, self._pause, self._chance = clock, pause, chance
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=self._connections)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # Deciding.

    async def decide(
        self,
        program: str,
        customer_id: str,
        *,
        decision_id: str = "",
        context: Mapping[str, Scalar] | None = None,
        only: Mapping[str, Sequence[str]] | None = None,
        without: Mapping[str, Sequence[str]] | None = None,
        at: str | None = None,
    ) -> Decision:
        """Return the next best nudge for a customer, now; an id is made where none is given."""
        asked = {"program": program, "customer_id": customer_id, "decision_id": decision_id or _new_id()}
        more = {"context": context, "only": only, "without": without, "at": at}
        body = asked | {name: value for name, value in more.items() if value is not None}
        try:
            return await self._ask("POST", "/v1/decide", body, answer=Decision)
        except (UnreachableError, ProblemError) as error:
            if not self._may_hold(error):
                raise
            return _hold(asked)

    async def decide_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[Decision]:
        """Return a decision for each of up to 1,000 requests, in order; each is what the body of `decide` would be."""
        rows = [{**r, "decision_id": r.get("decision_id") or _new_id()} for r in requests]
        try:
            return (await self._ask("POST", "/v1/decide/batch", {"requests": rows}, answer=_Decisions)).results
        except (UnreachableError, ProblemError) as error:
            if not self._may_hold(error):
                raise
            ids = ("program", "customer_id", "decision_id")
            return [_hold({n: r[n] for n in ids}) for r in rows]

    async def dry_run(self, program: str, customer_id: str, **fields: Any) -> Explanation:
        """Return what would be decided, at any time, and why; nothing is written."""
        body = {"program": program, "customer_id": customer_id, **fields}
        return await self._ask("POST", "/v1/decide/dry-run", body, answer=Explanation)

    async def explain(self, program: str, customer_id: str, decision_id: str) -> Explanation:
        """Return why a decision of the last seven days was made, and why not another."""
        path = f"/v1/decisions/{_quoted(decision_id)}?program={_quoted(program)}&customer_id={_quoted(customer_id)}"
        return await self._ask("GET", path, answer=Explanation)

    async def hand_off(self, program: str, customer_id: str, decision_id: str) -> HandedOff:
        """Ask, right before delivering, whether a nudge may still go out. What raises is no permission."""
        path, body = f"/v1/decisions/{_quoted(decision_id)}/hand-off", {"program": program, "customer_id": customer_id}
        return await self._ask("POST", path, body, answer=HandedOff)

    # Outcomes.

    async def report(self, program: str, customer_id: str, event: str, **fields: Any) -> Received:
        """Report one outcome; `fields` are those of `Outcome`. What is refused is raised."""
        outcome = Outcome(program=program, customer_id=customer_id, event=event, **fields)
        return await self._ask("POST", "/v1/outcomes", _identified(outcome), answer=Received)

    async def report_many(self, outcomes: Sequence[Outcome]) -> Received:
        """Report up to 1,000 outcomes; each is accepted or refused for itself, by its index."""
        return await self._ask("POST", "/v1/outcomes", [_identified(o) for o in outcomes], answer=Received)

    # Customers and programs.

    async def customer(self, program: str, customer_id: str) -> CustomerState:
        """Return where a customer is in a program."""
        path = f"/v1/customers/{_quoted(customer_id)}?program={_quoted(program)}"
        return await self._ask("GET", path, answer=CustomerState)

    async def change_customer(
        self,
        customer_id: str,
        *,
        consent: bool | None = None,
        time_zone: str | None = None,
        attributes: Mapping[str, Scalar] | None = None,
    ) -> Profile:
        """Set consent, time zone or attributes; what is None stays as it is."""
        given = {"consent": consent, "time_zone": time_zone, "attributes": attributes}
        body = {name: value for name, value in given.items() if value is not None}
        return await self._ask("PUT", f"/v1/customers/{_quoted(customer_id)}", body, answer=Profile)

    async def history(self, program: str, customer_id: str, *, limit: int = 50) -> list[Decision]:
        """Return a customer's recent decisions, latest first."""
        path = f"/v1/customers/{_quoted(customer_id)}/decisions?program={_quoted(program)}&limit={limit}"
        return (await self._ask("GET", path, answer=_History)).decisions

    async def erase(self, customer_id: str) -> bool:
        """Forget a customer; False if there was nothing to forget, which a repeated call says too."""
        try:
            await self._ask("DELETE", f"/v1/customers/{_quoted(customer_id)}", answer=None)
        except ProblemError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def program(self, name: str) -> Served:
        """Return a program as it is served: its parts, the policy of each arm, what is paused, its budget."""
        return await self._ask("GET", f"/v1/programs/{_quoted(name)}", answer=Served)

    async def pause(self, program: str, level: str = "program") -> list[str]:
        """Stop a program, `incentive=coupon` or `policy=champion`, for example; return all that is paused."""
        path = f"/v1/programs/{_quoted(program)}/pause"
        return (await self._ask("POST", path, {"level": level}, answer=_Paused)).paused

    async def resume(self, program: str, level: str = "program") -> list[str]:
        """Go on with what was paused; return what still is."""
        path = f"/v1/programs/{_quoted(program)}/resume"
        return (await self._ask("POST", path, {"level": level}, answer=_Paused)).paused

    # How it is sent.

    async def _ask(self, method: str, path: str, body: object = None, *, answer: type[Some] | None) -> Some:
        """Send until it is answered, refused, or the tries or the time are used up."""
        data = None if body is None else _json(body)
        deadline, wait, said = self._clock() + self._seconds, _FIRST_PAUSE, "no time was given"
        for number in range(1, self._tries + 1):
            asked_for = None
            try:
                left = deadline - self._clock()  # a call that hangs leaves half of it for another
                seconds = left if number == self._tries else left / 2.0
                status, headers, raw = await self._send(method, path, data, seconds=seconds)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: Exception = UnreachableError(f"{self._url} could not be asked: {type(error).__name__}")
            else:
                if status < 300:
                    try:
                        return msgspec.json.decode(raw, type=answer) if answer is not None else None  # type: ignore[return-value]
                    except msgspec.DecodeError:  # a proxy's page, say
                        failure = UnreachableError(f"{self._url} answered {status} with what this service never says")
                elif status < 400:
                    where = headers.get("Location", "nowhere")
                    raise UnreachableError(f"{self._url} sends us to {where}: nothing is sent there; give its address")
                else:
                    failure, asked_for = ProblemError(status, _document(raw)), _seconds(headers.get("Retry-After"))
                    if status not in _AGAIN:
                        raise failure
            said = str(failure)
            pause = self._chance() * wait if asked_for is None else asked_for + self._chance() * _FIRST_PAUSE
            wait = min(2.0 * wait, _LONGEST_PAUSE)
            if number == self._tries or self._clock() + pause >= deadline:
                raise failure
            await self._pause(pause)
        raise UnreachableError(f"{self._url} was not asked: {said}")

    async def _send(
        self, method: str, path: str, data: bytes | None, *, seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self._session is None:
            raise RuntimeError("the client is not open: use it as `async with Client(...) as client`")
        if seconds <= 0:
            raise TimeoutError
        headers = {"Content-Type": "application/json"} if data is not None else {}
        timeout = aiohttp.ClientTimeout(total=seconds)
        url = _encoded(f"{self._url}{path}")
        asked = self._session.request(method, url, data=data, headers=headers, timeout=timeout, allow_redirects=False)
        async with asked as response:
            return response.status, response.headers, await response.read()

    def _may_hold(self, error: Exception) -> bool:
        refused = isinstance(error, ProblemError) and error.status < 500 and error.status != 429
        return self._holds and not refused


class _Decisions(msgspec.Struct, frozen=True):
    results: list[Decision]


class _History(msgspec.Struct, frozen=True):
    decisions: list[Decision]


class _Paused(msgspec.Struct, frozen=True):
    paused: list[str]


def _hold(asked: Mapping[str, str]) -> Decision:
    return msgspec.convert({**asked, "hold_reason": "degraded", "degraded": True}, Decision)


def _new_id() -> str:
    return uuid4().hex


def _identified(outcome: Outcome) -> Outcome:
    return outcome if outcome.outcome_id else msgspec.structs.replace(outcome, outcome_id=_new_id())


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _encoded(url: str) -> Any:
    from yarl import URL  # noqa: PLC0415  (aiohttp's own)

    return URL(url, encoded=True)  # an id may hold anything, and is quoted already


def _json(body: object) -> bytes:
    """Return a body as JSON; ValueError for a number that JSON does not have: as null it would be another outcome."""
    try:
        return json.dumps(msgspec.to_builtins(body), allow_nan=False).encode()
    except ValueError:
        raise ValueError("a number is NaN or infinite: send a finite number, or leave it out") from None


def _document(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _seconds(text: str | None) -> float | None:
    """Return what a Retry-After in seconds asks for; a date is left to our own pause."""
    return float(text) if text is not None and text.isdecimal() else None
