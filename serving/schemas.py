"""What goes over HTTP? The contract, as pydantic models: the one place where requests are validated.

Answers of the hot calls are rendered elsewhere (`render`); their models are here for the OpenAPI document, and the
tests hold one against the other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, Self

import msgspec
from msgspec import Meta
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    PrivateAttr,
    RootModel,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

BATCH = 1_000
"""Most decisions or outcomes in one request."""

ATTRIBUTES = 64
"""Most attributes of a customer or of a request."""


class _Says:
    """Replaces whatever a type says of a wrong value by words that tell what to send."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="value_expected", custom_error_message=self._words
        )


# An id is put into paths, so it has no slash and is not made of dots only; it is printed, so no control characters.
_ID = r"^[^\x00-\x1f\x7f/]*[^\x00-\x1f\x7f/.][^\x00-\x1f\x7f/]*$"
_ID_WORDS = "1 to 128 characters, without slash and control characters, and not dots only"

Id = Annotated[
    StrictStr, Field(min_length=1, max_length=128, pattern=_ID, description=_ID_WORDS), _Says(f"send {_ID_WORDS}")
]
Name = Annotated[
    StrictStr,
    Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$"),
    _Says("send a name: 1 to 64 of a-z, 0-9, _ and -"),
]
Level = Annotated[StrictStr, Field(min_length=1, max_length=64), _Says("send the name of a level")]
Whole = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
Number = Annotated[StrictFloat, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Short = Annotated[StrictStr, Field(max_length=256)]
Value = Annotated[
    StrictBool | Whole | Number | Short | None,
    _Says("send a finite number, at most 256 characters, true, false, or null for unknown"),
]
Attributes = Annotated[
    dict[Annotated[StrictStr, Field(min_length=1, max_length=64)], Value],
    Field(max_length=ATTRIBUTES),
]
Levels = Annotated[list[Level], Field(max_length=100)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=256, frozen=True)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return what a request's body says."""
        return cls.model_validate_json(raw)


class Limits(_Model):
    """Levels by factor. An empty list allows (`only`) or bars (`without`) nothing of that factor."""

    incentive: Levels | None = None
    tone: Levels | None = None
    timing: Levels | None = None

    def by_factor(self) -> dict[str, list[str]]:
        """Return what was given."""
        given = (("incentive", self.incentive), ("tone", self.tone), ("timing", self.timing))
        return {factor: levels for factor, levels in given if levels is not None}


class _QuickLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`Limits`, as the hot path reads it."""

    incentive: "_QuickLevels | None" = None
    tone: "_QuickLevels | None" = None
    timing: "_QuickLevels | None" = None

    def by_factor(self) -> dict[str, list[str]]:
        given = (("incentive", self.incentive), ("tone", self.tone), ("timing", self.timing))
        return {factor: levels for factor, levels in given if levels is not None}


_QuickLevels = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=100)]
_QuickId = Annotated[str, Meta(min_length=1, max_length=128, pattern=_ID.replace("$", r"\Z"))]
_QuickValue = (
    bool
    | Annotated[int, Meta(ge=-(2**53), le=2**53)]
    | Annotated[float, Meta(ge=-1e15, le=1e15)]
    | Annotated[str, Meta(max_length=256)]
    | None
)


class _QuickRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`DecideRequest`, as the hot path reads it: in a tenth of the time. What it refuses, the contract judges."""

    program: Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*\Z")]
    customer_id: _QuickId
    decision_id: _QuickId | None = None
    context: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=64)], _QuickValue], Meta(max_length=ATTRIBUTES)
    ] = {}
    only: _QuickLimits | None = None
    without: _QuickLimits | None = None
    at: Annotated[datetime, Meta(tz=True)] | None = None


class _QuickBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`DecideBatch`, as the hot path reads it."""

    requests: Annotated[list[_QuickRequest], Meta(min_length=1, max_length=BATCH)]


_quick_request = msgspec.json.Decoder(_QuickRequest).decode
_quick_batch = msgspec.json.Decoder(_QuickBatch).decode


class AskedLimits(Protocol):
    """Levels by factor, however they were read."""

    def by_factor(self) -> dict[str, list[str]]: ...


class Asked(Protocol):
    """A valid request for a decision, however it was read: see `DecideRequest`."""

    @property
    def program(self) -> str: ...
    @property
    def customer_id(self) -> str: ...
    @property
    def decision_id(self) -> str | None: ...
    @property
    def context(self) -> Mapping[str, str | float | bool | None]: ...
    @property
    def only(self) -> AskedLimits | None: ...
    @property
    def without(self) -> AskedLimits | None: ...
    @property
    def at(self) -> datetime | None: ...


class AskedMany(Protocol):
    """Valid requests for decisions, however they were read."""

    @property
    def requests(self) -> Sequence[Asked]: ...


class DecideRequest(_Model):
    """Ask for the next best nudge for one customer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"program": "fitness-coaching", "customer_id": "c-42", "context": {"goal": "strength"}},
            ]
        }
    )

    program: Name = Field(description="the program to decide in")
    customer_id: Id
    decision_id: Id | None = Field(
        default=None, description="your own id: asking again with it gives the same answer; one is made where omitted"
    )
    context: Attributes = Field(default={}, description="attributes of this moment; they override the customer's")
    only: Limits | None = Field(default=None, description="choose among these levels only")
    without: Limits | None = Field(default=None, description="do not choose these levels")
    at: AwareDatetime | None = Field(
        default=None, description="when it is asked: now where omitted, and within five minutes of now"
    )

    @classmethod
    def read(cls, raw: bytes) -> Asked:  # type: ignore[override]
        """Return what a request's body says."""
        try:
            return _quick_request(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls.model_validate_json(raw)


class DecideBatch(_Model):
    """Ask for many decisions at once."""

    requests: Annotated[list[DecideRequest], Field(min_length=1, max_length=BATCH)]

    @classmethod
    def read(cls, raw: bytes) -> AskedMany:  # type: ignore[override]
        """Return what a request's body says."""
        try:
            return _quick_batch(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls.model_validate_json(raw)


class OutcomeReport(_Model):
    """Something that a customer did, or that became of a nudge (`shown`, `not_shown`)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "outcome_id": "order-7",
                    "program": "fitness-coaching",
                    "customer_id": "c-42",
                    "event": "workout_done",
                    "at": "2026-11-22T18:40:00+01:00",
                },
            ]
        }
    )

    outcome_id: Id = Field(description="your own id: reported twice, it counts once")
    program: Name
    customer_id: Id
    event: Annotated[str, Field(min_length=1, max_length=64)]
    at: AwareDatetime | None = Field(default=None, description="when it happened; now where omitted")
    value: Annotated[FiniteFloat, Field(ge=-1e9, le=1e9, strict=True)] | None = Field(
        default=None, description="what came with it: an amount, a score"
    )
    decision_id: Id | None = Field(default=None, description="the nudge that was shown or not shown")
    revision: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="a higher one of the same outcome_id corrects what was reported"
    )
    revoked: StrictBool = Field(default=False, description="take the outcome back")


class OutcomeReports(RootModel[OutcomeReport | Annotated[list[OutcomeReport], Field(max_length=BATCH)]]):
    """One outcome, or many; of many, each is accepted or refused for itself."""

    _rows: dict[int, OutcomeReport] = PrivateAttr(default={})
    _faults: dict[int, ValidationError] = PrivateAttr(default={})

    @property
    def rows(self) -> dict[int, OutcomeReport]:
        """The valid outcomes by their index."""
        return self._rows

    @property
    def faults(self) -> dict[int, ValidationError]:
        """What is wrong with the others."""
        return self._faults

    @property
    def single(self) -> bool:
        """Whether it was one outcome, not a list."""
        return not isinstance(self.root, list)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """Return what a request's body says; ValidationError only where the body as a whole is wrong."""
        if not raw.lstrip(b" \t\r\n").startswith(b"["):
            one = OutcomeReport.model_validate_json(raw)
            return cls(one).having({0: one}, {})
        rows, faults = {}, {}
        for i, row in enumerate(_ANYTHING.validate_json(raw)):
            try:
                rows[i] = OutcomeReport.model_validate(row)
            except ValidationError as fault:
                faults[i] = fault
        return cls(list(rows.values())).having(rows, faults)

    def having(self, rows: dict[int, OutcomeReport], faults: dict[int, ValidationError]) -> Self:
        """Return itself, with what its rows say."""
        self._rows, self._faults = rows, faults
        return self


_ANYTHING: TypeAdapter[list[Any]] = TypeAdapter(Annotated[list[Any], Field(min_length=1, max_length=BATCH)])


class CustomerChange(_Model):
    """What is to be known of a customer, in all programs. What is omitted stays as it is."""

    consent: StrictBool | None = Field(default=None, description="whether nudges are welcome")
    time_zone: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="an IANA name such as Europe/Paris"
    )
    attributes: Attributes | None = Field(default=None, description="replaces all attributes")


class Pause(_Model):
    """What to stop or to go on with: the whole program, a level such as `incentive=coupon`, or `policy=champion`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"level": "incentive=streak-discount"}]})

    level: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default="program",
        description="`program`, a level of it, or the policy of an arm: its customers are then decided for by the"
        " champion, or by the first logger where the champion itself is paused",
    )


class HandOff(_Model):
    """Whose nudge it is that is about to be delivered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"program": "fitness-coaching", "customer_id": "c-42"}]})

    program: Name
    customer_id: Id
    at: AwareDatetime | None = Field(default=None, description="when it is asked: now where omitted")


# Answers.


class Action(BaseModel):
    """A nudge."""

    incentive: str
    tone: str
    timing: str


class Message(BaseModel):
    """What the customer reads."""

    subject: str
    body: str
    call_to_action: str


class Progress(BaseModel):
    """How far the customer is to the nearest milestone, and what it earns."""

    milestone: str
    done: int
    of: int
    reward: str


class PolicyName(BaseModel):
    """The policy that chose."""

    name: str
    version: str


class Decision(BaseModel):
    """The decision: a nudge, or hold (`action` is null) and why."""

    decision_id: str
    customer_id: str
    program: str
    action: Action | None
    deliver_at: datetime | None = Field(description="when to deliver, in the customer's time zone")
    expires_at: datetime | None = Field(description="do not deliver after this")
    message: Message | None
    propensity: float | None = Field(description="the chance that this action had; null where degraded")
    policy: PolicyName | None
    stage: str | None
    progress: Progress | None
    hold_reason: str | None = Field(
        description="why hold: the rule that left nothing else, `holdout`, `chosen` by the policy, or `degraded`"
    )
    next_eligible_at: datetime | None = Field(description="when caps and cooldown end, if nothing else changes")
    because: str | None = Field(default=None, description="why, in words for the customer")
    degraded: bool = Field(
        default=False,
        description="not a decision but a safe answer: the store did not answer in time, ask again with the same id",
    )


class Decisions(BaseModel):
    """One decision a request, in the order of the requests."""

    results: list[Decision]


class Explanation(Decision):
    """A decision, and why, and why not something else."""

    arm: str
    program_version: str
    at: datetime
    time_zone: str
    chances: dict[str, float] = Field(description="the most likely actions and their chances")
    others: int = Field(description="how many more actions were possible")
    blocked: dict[str, str] = Field(description="the rule that blocked each level, or every nudge")
    context: dict[str, Any] = Field(description="what was seen of the customer")
    scores: dict[str, float] | None = Field(
        description="what the policy expects, in reward units: `nudge` is the average possible nudge's gain over hold,"
        " each level's what it adds to that; null where the policy scores nothing or no longer serves"
    )


class RowError(BaseModel):
    """Why one outcome was refused."""

    index: int
    code: Literal["invalid", "unknown_program", "unknown_event", "erased_customer"]
    detail: str
    field: str | None = None


class DecideNow(BaseModel):
    """An outcome after which a decision is due at once, and why: ask for it while it is fresh.

    `quick_win`: a step worth a word. `comeback`: the first step after a quiet time. `milestone`: one is reached.
    `signal`: what the customer feels asks for an answer.
    """

    index: int
    program: str
    customer_id: str
    event: str
    reason: Literal["quick_win", "comeback", "milestone", "signal"]


class Received(BaseModel):
    """What became of the outcomes: accepted ones are kept. `decide_now` names those that ask for a decision at once."""

    accepted: int
    duplicates: int
    errors: list[RowError]
    decide_now: list[DecideNow] = []


class MilestoneState(BaseModel):
    """A milestone, reached or to come."""

    name: str
    title: str
    done: int
    of: int
    reward: str
    reached: bool


class Reward(BaseModel):
    """What a milestone earns."""

    milestone: str
    reward: str


class Rewards(BaseModel):
    """What the customer has earned, and what is to come."""

    earned: list[Reward]
    to_come: list[Reward]


class Latest(BaseModel):
    """A decision as the customer may hear of it: `because` says why, in plain words."""

    decision_id: str
    at: datetime
    action: Action | None
    deliver_at: datetime | None
    message: Message | None
    because: str | None


class CustomerState(BaseModel):
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
    longest_streak: int
    progress: Progress | None
    milestones: list[MilestoneState]
    rewards: Rewards
    next_eligible_at: datetime | None
    latest: Latest | None = Field(description="the latest decision of the last seven days, and why it was made")


class Profile(BaseModel):
    """What all programs know of a customer."""

    customer_id: str
    consent: bool | None
    time_zone: str
    attributes: dict[str, Any]


class HandedOff(BaseModel):
    """Whether a nudge may be delivered now."""

    decision_id: str
    deliver: bool
    reason: str | None = Field(
        description="why not: the rule that blocks it now, `hold`, `shown`, `cancelled` or `expired`"
    )
    deliver_at: datetime | None = Field(description="not before this")
    expires_at: datetime | None = Field(description="nor after this")


class History(BaseModel):
    """Recent decisions, latest first."""

    decisions: list[Decision]


class BudgetState(BaseModel):
    """What became of the budget of this period, in the program's currency, and what its shadow price is."""

    currency: str
    amount: float
    spent: float
    left: float
    ends_at: datetime
    price: float = Field(description="what a unit of cost has to bring on top of itself, so that the budget lasts")


class Served(BaseModel):
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


class Paused(BaseModel):
    """What is paused."""

    program: str
    paused: list[str]


class Part(BaseModel):
    """Whether a part of the service works."""

    ok: bool
    warning: bool = Field(default=False, description="it works, and somebody should look")
    detail: str = ""


class Readiness(BaseModel):
    """Whether the service can decide and keep, part by part."""

    ready: bool
    parts: dict[str, Part]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ProblemError(BaseModel):
    """One thing that is wrong with a request: in which field, or of outcomes in which row, and what to do."""

    model_config = ConfigDict(extra="allow")

    detail: str
    field: str | None = None
    index: int | None = None
    code: str | None = None


class ProblemDocument(BaseModel):
    """What is answered instead of a success (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="which kind of problem it is; see Problems in /docs")
    title: str = Field(description="the kind in words")
    status: int
    detail: str = Field(description="what is wrong this time, and what to do")
    instance: str | None = Field(default=None, description="this occurrence: its end is the request id of the logs")
    errors: list[ProblemError] | None = Field(
        default=None, description="each thing that is wrong, where there are many"
    )
