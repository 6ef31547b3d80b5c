"""The OpenAPI document is kept: whatever a client sends, no answer is a 5xx or other than documented."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from schemathesis import checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks as openapi_checks

from benchmarks import results
from serving import embedded
from serving.settings import Settings
from tests.e2e.running import call
from tests.serving.running import running, write_program

KEPT = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Serve a program in which somebody is known."""
    write_program(home)
    with embedded.serve(home / "store") as server, running(Settings(home=home, redis_url=server.url)) as service:
        known = {"program": "small", "customer_id": "0", "decision_id": "0"}
        assert call("POST", f"{service.url}/v1/decide", known)[0] == 200
        yield service.url


@dataclass
class Tried:
    """How many cases were sent of each call, and which answers were a 5xx or not as documented."""

    sent: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def try_out(url: str, *, cases: int) -> Tried:
    """Send about so many cases, evenly over all calls."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    tried = Tried()
    with requests.Session() as session:
        for left, operation in zip(range(len(operations), 0, -1), reversed(operations), strict=True):
            # Calls without parameters come last in the document and have one case: the others share what they leave.
            _try(operation, session, tried, cases=-(-(cases - tried.sent.total()) // left))
    return tried


def _try(operation: APIOperation[Any, Any, Any, Any], session: requests.Session, tried: Tried, *, cases: int) -> None:

    @hypothesis.settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def holds(case: schemathesis.Case[Any]) -> None:
        tried.sent[operation.label] += 1
        try:
            case.call_and_validate(session=session, checks=KEPT)
        except FailureGroup as wrong:
            tried.broken.append(f"{operation.label}: {wrong}")

    holds()


def check(tried: Tried, *, least: int) -> None:
    print(dict(tried.sent))
    assert not tried.broken, "\n\n".join(tried.broken[:3])
    assert tried.sent.total() >= least


@pytest.mark.slow
def test_a_thousand_cases_over_all_calls_are_answered_as_documented(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        tried = try_out(url, cases=1_000)
    check(tried, least=900)
    assert {"POST /v1/decide", "POST /v1/outcomes", "PUT /v1/customers/{customer_id}", "GET /readyz"} <= set(tried.sent)


@pytest.mark.soak
def test_ten_thousand_cases_over_all_calls_are_answered_as_documented(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        tried = try_out(url, cases=10_000)
    row = results.Row(
        name=f"answers 5xx or not as documented, of {tried.sent.total():,} cases over {len(tried.sent)} calls",
        ours=len(tried.broken),
        peer=None,
        peer_name=None,
        unit="",
        ratio=None,
        target="none",
        met=not tried.broken,
    )
    results.write("contract", [row])
    check(tried, least=9_000)
