"""What went wrong, in a form that programs can read? ProblemError documents (RFC 9457)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"

BASE = "urn:nudge:problem:"
"""What the URI of every problem type starts with."""


class Kind(NamedTuple):
    """A type of problem: its usual status, what it is, what to do about it, and a detail as it may be said."""

    status: int
    title: str
    mend: str
    example: str


KINDS: Mapping[str, Kind] = {
    "invalid-request": Kind(
        422,
        "A field is wrong",
        "Mend what `errors` names; sending it again as it is will not help.",
        "context.plna: is not a declared attribute; use one of plan, tenure",
    ),
    "refused-outcome": Kind(
        422,
        "The outcome was not kept",
        "Look at `errors`: its code is invalid, unknown_program, unknown_event or erased_customer.",
        "program fitness-coaching has no event 'leap'; use one of workout_done, trial_started",
    ),
    "unauthorized": Kind(
        401,
        "No API key that is known",
        "Send the header `Authorization: Bearer nudge_...` with a key from `nudge keys create`.",
        "no API key: send the header `Authorization: Bearer nudge_...`",
    ),
    "forbidden": Kind(
        403,
        "The key may not do this",
        "Use a key with the scope, or for the program, that is asked for.",
        "key 'app' has the scopes decide; this needs 'admin': make another with `nudge keys create NAME --scope admin`",
    ),
    "unknown-program": Kind(
        404,
        "The program is not served",
        "Use a name that `detail` lists, or publish the program.",
        "program 'fitnes-coaching' is not served here; use one of fitness-coaching, small-wins",
    ),
    "unknown-customer": Kind(
        404,
        "The customer is not known",
        "Check the id; a customer is known from the first decision or the first change on.",
        "nobody has asked or put anything about this customer",
    ),
    "unknown-decision": Kind(
        404,
        "The decision is not known",
        "Check id, customer and program; answers are kept for seven days, and then are in the archive.",
        "no decision of that id, customer and program in the last seven days",
    ),
    "not-found": Kind(404, "There is no such path", "See /docs for what there is.", "there is no such path; see /docs"),
    "method-not-allowed": Kind(
        405, "The path has no such method", "See /docs for what there is.", "this path has no such method; see /docs"
    ),
    "too-large": Kind(
        413,
        "The body is too large",
        "Send it in several requests.",
        "the body is larger than 1048576 bytes; send it in several requests",
    ),
    "unsupported-media-type": Kind(
        415,
        "The body is not said to be JSON",
        "Send the header `Content-Type: application/json`.",
        "the content type is 'text/plain'; send JSON with the header `Content-Type: application/json`",
    ),
    "too-many-requests": Kind(
        429,
        "Too many requests",
        "Wait for the seconds of `Retry-After`, then send it again with the same ids.",
        "key 'app' sends more than 20000 rows a second",
    ),
    "request-refused": Kind(400, "The request was refused", "Look at `detail`.", "Bad Request"),
    "internal-error": Kind(
        500,
        "Something is wrong with the service",
        "Report `instance`: the service's log has it.",
        "something is wrong with the service; its log has this instance",
    ),
    "store-unavailable": Kind(
        503,
        "The store failed",
        "Wait for the seconds of `Retry-After`, then send it again with the same ids: it counts once.",
        "the store cannot be reached; nothing was kept, so send it again",
    ),
}
"""Every type of problem that is answered, by the end of its URI."""


def example(kind: str) -> dict[str, Any]:
    """Return a problem document of a type, as it may be answered."""
    known = KINDS[kind]
    more: dict[str, Any] = {}
    if kind == "invalid-request":
        field, _, detail = known.example.partition(": ")
        more = {"errors": [{"field": field, "detail": detail}]}
    elif kind == "refused-outcome":
        more = {"errors": [{"index": 0, "code": "unknown_event", "detail": known.example}]}
    return {
        **ProblemError(known.status, kind, known.example, **more).document(),
        "instance": "urn:nudge:request:9f86d081884c7d65",
    }


_encode = msgspec.json.Encoder().encode

_MENDS = {
    "missing": "add it",
    "extra_forbidden": "remove it or mend its spelling",
    "json_invalid": "send JSON",
    "string_type": "send a string",
    "bool_type": "send true or false",
    "finite_number": "send a finite number",
    "datetime_from_date_parsing": "send a time such as 2026-11-22T18:00:00+01:00",
    "datetime_parsing": "send a time such as 2026-11-22T18:00:00+01:00",
    "timezone_aware": "add the offset, such as 2026-11-22T18:00:00+01:00",
    "too_long": "send fewer, in several requests",
    "too_short": "send at least one",
}


class ProblemError(Exception):
    """An answer that is not a success. `extra` are further members of the document, such as `errors`."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def document(self) -> dict[str, Any]:
        """Return the members of the problem document."""
        return {
            "type": f"{BASE}{self.kind}",
            "title": KINDS[self.kind].title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }

    def response(self, *, instance: str | None = None) -> Response:
        """Return the answer; `instance` names this occurrence."""
        named = {"instance": f"urn:nudge:request:{instance}"} if instance else {}
        body = _encode({**self.document(), **named})
        return Response(body, status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE)


def invalid(errors: Sequence[Mapping[str, Any]]) -> ProblemError:
    """Return the answer to a request that breaks the contract: each error names its field and what to do."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = f"{first['field']}: " if first.get("field") else ""
    return ProblemError(422, "invalid-request", f"{where}{first['detail']}{more}", errors=list(errors))


def field(name: str, detail: str) -> ProblemError:
    """Return the answer to a request with one bad field."""
    return invalid([{"field": name, "detail": detail}])


def invalid_body(error: ValidationError, *, prefix: str = "") -> ProblemError:
    """Return the answer to a body that the contract's model refuses."""
    return invalid([described(e, prefix=prefix) for e in error.errors(include_url=False)[:20]])


def described(error: ErrorDetails | Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """Say of one validation error which field, what is wrong and what to do.

    >>> described({"type": "missing", "loc": ("requests", 3, "customer_id"), "msg": "Field required"})
    {'field': 'requests[3].customer_id', 'detail': 'field required; add it'}
    """
    kind, message = str(error["type"]), str(error["msg"])
    message = message.removeprefix("Value error, ")
    mend = _MENDS.get(kind)
    sentence = message[:1].lower() + message[1:]
    return {
        "field": prefix + path(error["loc"]),
        "detail": f"{sentence}; {mend}" if mend else sentence,
    }


def path(loc: Sequence[int | str]) -> str:
    """Write a place in a document as people do.

    >>> path(("outcomes", 0, "at"))
    'outcomes[0].at'
    """
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def unauthorized(detail: str) -> ProblemError:
    """Return the answer to a request without a key that is known."""
    return ProblemError(401, "unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})


def overloaded(detail: str, *, seconds: int = 1) -> ProblemError:
    """Return the answer to a request that came while too many waited."""
    return ProblemError(429, "too-many-requests", detail, headers={"Retry-After": str(seconds)})


def unavailable(detail: str, *, seconds: int = 1) -> ProblemError:
    """Return the answer to a request that the store could not serve: nothing is known to be kept, so try again."""
    return ProblemError(503, "store-unavailable", detail, headers={"Retry-After": str(seconds)})


def of_framework(error: HTTPException) -> ProblemError:
    """Return the problem document of an error that the framework raised: no such path, no such method, no text."""
    if error.status_code == 400:
        return field("", "the body cannot be read; send JSON in UTF-8")
    kinds = {404: "not-found", 405: "method-not-allowed"}
    detail = {404: "there is no such path; see /docs", 405: "this path has no such method; see /docs"}
    return ProblemError(
        error.status_code,
        kinds.get(error.status_code, "request-refused"),
        detail.get(error.status_code, str(error.detail)),
        headers=error.headers,
    )


def of_validation(error: RequestValidationError) -> ProblemError:
    """Return the problem document of parameters that the framework validated."""
    errors = [{**e, "loc": e["loc"][1:]} for e in error.errors()[:20]]
    return invalid([described(e) for e in errors])


async def answer(request: Request, error: Exception) -> Response:
    """Turn whatever a handler raised into its problem document."""
    refused = request.scope.get("refused")  # by the edge, in the middle of a body
    match error:
        case _ if isinstance(refused, ProblemError):
            problem = refused
        case ProblemError():
            problem = error
        case RequestValidationError():
            problem = of_validation(error)
        case HTTPException():
            problem = of_framework(error)
        case _:
            raise error
    return problem.response(instance=request.scope.get("request_id"))
