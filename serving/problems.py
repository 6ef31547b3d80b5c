"""What went wrong, in a form that programs can read? ProblemError documents (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

MEDIA_TYPE = "application/problem+json"

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
            "type": f"urn:nudge:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
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
    match error:
        case ProblemError():
            problem = error
        case RequestValidationError():
            problem = of_validation(error)
        case HTTPException():
            problem = of_framework(error)
        case _:
            raise error
    return problem.response(instance=request.scope.get("request_id"))
