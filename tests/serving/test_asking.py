"""What the hot path takes for valid is valid by the contract, and reads the same."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving import schemas

FIELDS = ("program", "customer_id", "decision_id", "context", "at")

names = st.one_of(
    st.sampled_from(["small", "a-b_c", "", "A", "x" * 64, "x" * 65, "a\n", "-a", "p"]),
    st.text(max_size=5),
)
ids = st.one_of(
    st.sampled_from(["c-42", "", ".", "..", "a/b", "a\n", "é", "x" * 128, "x" * 129, "\x7f", "a.", "☃" * 128]),
    st.text(min_size=1, max_size=6),
    st.integers(),
)
values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**54), 2**54),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.just("x" * 257),
    st.just([1]),
)
limits = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["incentive", "tone", "timing", "other"]),
        st.one_of(st.none(), st.lists(st.text(max_size=3), max_size=3)),
        max_size=2,
    ),
)
moments = st.sampled_from(
    [
        None,
        "2026-01-05T12:00:00Z",
        "2026-01-05T12:00:00.123456+01:00",
        "2026-01-05 12:00:00Z",
        "2026-01-05T12:00:00",
        "2026-01-05",
        "2026-13-05T12:00:00Z",
        "2026-01-05T24:00:00Z",
        "2026-01-05T12:00:00.1234567Z",
        "2026-01-05t12:00:00z",
        1_767_571_200,
        "1767571200",
        "soon",
    ]
)
requests = st.fixed_dictionaries(
    {"program": names, "customer_id": ids},
    optional={
        "decision_id": ids,
        "context": st.dictionaries(st.one_of(st.just(""), st.text(max_size=3)), values, max_size=3),
        "only": limits,
        "without": limits,
        "at": moments,
        "more": st.none(),
    },
)


def said(request: schemas.Asked) -> dict[str, Any]:
    """Return what a request says, however it was read."""
    limited = {name: getattr(request, name) for name in ("only", "without")}
    by_factor = {name: given and given.by_factor() for name, given in limited.items()}
    return {**{name: getattr(request, name) for name in FIELDS}, **by_factor}


@given(requests)
def test_the_hot_path_reads_what_the_contract_reads_and_refuses_what_it_refuses(body: dict[str, Any]) -> None:
    raw = msgspec.json.encode(body)
    try:
        expected = said(schemas.DecideRequest.model_validate_json(raw))
    except ValidationError:
        with pytest.raises(ValidationError):
            schemas.DecideRequest.read(raw)
        return
    assert said(schemas.DecideRequest.read(raw)) == expected


@given(st.lists(requests, max_size=3))
def test_a_batch_is_read_as_its_requests_are(bodies: list[dict[str, Any]]) -> None:
    raw = msgspec.json.encode({"requests": bodies})
    try:
        expected = [said(r) for r in schemas.DecideBatch.model_validate_json(raw).requests]
    except ValidationError:
        with pytest.raises(ValidationError):
            schemas.DecideBatch.read(raw)
        return
    assert [said(r) for r in schemas.DecideBatch.read(raw).requests] == expected


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'{"program":"p"}', b"\xff", b'{"program":"p","customer_id":"\\ud800"}',
     b'{"program":"p","customer_id":"c","context":{"a":NaN}}', b'{"requests":[]}',
     b'{"program":"p","customer_id":"c","context":{"a":1e999}}'],
)  # fmt: skip
def test_what_is_no_request_is_refused_by_the_contract(raw: bytes) -> None:
    for shape in (schemas.DecideRequest, schemas.DecideBatch):
        with pytest.raises(ValidationError):
            shape.read(raw)


def test_an_everyday_request_takes_the_hot_path() -> None:
    raw = b'{"program":"p","customer_id":"c","context":{"plan":"gold","n":1.5},"at":"2026-01-05T12:00:00+01:00"}'
    assert not isinstance(schemas.DecideRequest.read(raw), schemas.DecideRequest)
    assert not isinstance(schemas.DecideBatch.read(b'{"requests":[' + raw + b"]}"), schemas.DecideBatch)
