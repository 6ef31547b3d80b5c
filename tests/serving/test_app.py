"""Every call of the service over HTTP: what it answers, what it refuses, and what it never does."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving import embedded, schemas
from serving.auth import create
from serving.problems import MEDIA_TYPE
from serving.settings import Settings
from tests.serving.running import Client, Reply, Running, running, write_program
from tests.small_program import OPEN

CLOSED = """
[guardrails]
consent = "opt-in"
quiet_from = "00:00"
quiet_until = "00:00"
"""

TIGHT = (
    OPEN
    + """
[guardrails.budget]
amount = 9.0
period = "52w"
"""
)

HOLDOUT = (
    OPEN
    + """
[experiment]
holdout = 0.5
"""
)

EVERYWHERE = ('stages = ["active", "quiet"]', 'stages = ["new", "active", "quiet"]')

HOSTILE = [
    *("a b", "ü-ñ-漢字", "{0}", "}{", "{g}", "a:b", "*", "[x]", "'; DROP--", "<script>", "%2F", "%00", "\u202e", "😀"),
    *('"quoted"', "\\", "a&b=c", "a#b?", "$(id)", "...x", "null", "\u00a0", "c" * 128),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_program(home, extra=OPEN)
    write_program(home, "consenting", extra=CLOSED)
    write_program(home, "tight", extra=TIGHT, change=EVERYWHERE)
    write_program(home, "trial", extra=HOLDOUT)
    return home


@pytest.fixture(scope="module")
def store_url(home: Path) -> Iterator[str]:
    with embedded.serve(home / "store") as server:
        yield server.url


@pytest.fixture(scope="module")
def service(home: Path, store_url: str) -> Iterator[Running]:
    with running(Settings(home=home, redis_url=store_url)) as service:
        yield service


@pytest.fixture
async def client(service: Running) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(service.url) as session:
        yield Client(session)


def nudged(decision: dict[str, Any]) -> bool:
    return decision["action"] is not None


async def until_nudged(client: Client, customer_id: str, **fields: object) -> dict[str, Any]:
    """Ask until the draw is a nudge: holding a hundred times in a row has a chance below 1e-45."""
    for _ in range(100):
        decision: dict[str, Any] = await client.decide(customer_id, **fields)
        if nudged(decision):
            return decision
    raise AssertionError(f"{customer_id} is always held")


async def report(client: Client, customer_id: str, event: str, **fields: object) -> Reply:
    outcome_id = fields.pop("outcome_id", f"{customer_id}-{event}-{json.dumps(fields, default=str)}")
    body = {"outcome_id": outcome_id, "program": "small", "customer_id": customer_id, "event": event, **fields}
    return await client.ask("POST", "/v1/outcomes", body)


# Deciding.


async def test_a_decision_is_answered_as_the_contract_says(client: Client) -> None:
    decision = await until_nudged(client, "contract")
    schemas.Decision.model_validate(decision)
    assert set(decision) == set(schemas.Decision.model_fields)
    assert decision["customer_id"] == "contract"
    assert decision["action"]["incentive"] == "badge"
    assert decision["message"]["subject"] in {"Nicely done", "Badge ahead"}
    assert decision["policy"] == {"name": "uniform", "version": "0"}
    assert decision["progress"] == {"milestone": "Ten steps", "done": 0, "of": 10, "reward": "a badge"}
    assert 0 < decision["propensity"] < 1
    delivered, expires = (datetime.fromisoformat(decision[k]) for k in ("deliver_at", "expires_at"))
    assert expires - delivered == timedelta(hours=12)
    assert decision["degraded"] is False


async def test_a_shipped_program_is_served_without_any_set_up(client: Client) -> None:
    decision = await client.decide("newcomer", program="fitness-coaching")
    assert decision["program"] == "fitness-coaching"
    assert decision["stage"] == "aware"


async def test_the_same_decision_id_gives_the_same_bytes_again(client: Client) -> None:
    body = {"program": "small", "customer_id": "again", "decision_id": "mine"}
    first, second = [await client.ask("POST", "/v1/decide", body) for _ in range(2)]
    assert first.raw == second.raw
    assert first.json["decision_id"] == "mine"


async def test_many_asks_under_one_id_at_once_are_one_decision(client: Client) -> None:
    body = {"program": "small", "customer_id": "crowd", "decision_id": "one"}
    replies = await asyncio.gather(*(client.ask("POST", "/v1/decide", body) for _ in range(30)))
    assert len({r.raw for r in replies}) == 1
    history = await client.ask("GET", "/v1/customers/crowd/decisions?program=small")
    assert len(history.json["decisions"]) == 1


async def test_a_decision_id_belongs_to_a_customer_and_a_program(client: Client) -> None:
    asked = [("small", "left"), ("small", "right"), ("consenting", "left")]
    decisions = [await client.decide(who, program=program, decision_id="shared") for program, who in asked]
    assert [(d["program"], d["customer_id"]) for d in decisions] == asked
    assert decisions[2]["hold_reason"] == "consent"


async def test_ids_made_by_the_service_carry_the_shard_and_differ(client: Client) -> None:
    ids = [(await client.decide("made"))["decision_id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(i.startswith("0-") for i in ids)


async def test_a_batch_answers_each_request_in_order(client: Client) -> None:
    requests = [{"program": p, "customer_id": f"b{i}"} for i in range(500) for p in ("small", "consenting")]
    reply = await client.ask("POST", "/v1/decide/batch", {"requests": requests})
    assert reply.status == 200
    assert [(d["program"], d["customer_id"]) for d in reply.json["results"]] == [
        (r["program"], r["customer_id"]) for r in requests
    ]
    assert not any(d["degraded"] for d in reply.json["results"])
    assert {d["hold_reason"] for d in reply.json["results"][1::2]} == {"consent"}


async def test_a_customer_twice_in_a_batch_is_decided_one_after_the_other(client: Client) -> None:
    requests = [{"program": "small", "customer_id": "twice", "only": {"timing": ["evening"]}} for _ in range(40)]
    reply = await client.ask("POST", "/v1/decide/batch", {"requests": requests})
    decisions = reply.json["results"]
    first = next(i for i, d in enumerate(decisions) if nudged(d))
    assert {d["hold_reason"] for d in decisions[first + 1 :]} == {"pending"}


async def test_concurrent_requests_are_decided_together(client: Client, service: Running) -> None:
    def seen(what: str) -> float:
        name = f"nudge_decide_batch_rows_{what}"
        return service.service.metrics.registry.get_sample_value(name, {"program": "small"}) or 0.0

    batches, rows = seen("count"), seen("sum")
    await asyncio.gather(*(client.decide(f"together-{i}") for i in range(90)))
    assert seen("sum") - rows == 90
    assert seen("count") - batches < 90


async def test_only_and_without_limit_the_choice(client: Client) -> None:
    decision = await until_nudged(client, "limited", only={"tone": ["playful"]}, without={"timing": ["evening"]})
    assert decision["action"] == {"incentive": "badge", "tone": "playful", "timing": "now"}
    held = await client.decide("limited-2", only={"incentive": []})
    assert (held["action"], held["hold_reason"], held["propensity"]) == (None, "request", 1.0)


async def test_hold_says_whether_a_rule_or_the_policy_chose_it(client: Client) -> None:
    reasons = Counter([(await client.decide(f"why-{i}"))["hold_reason"] for i in range(60)])
    assert set(reasons) == {None, "chosen"}
    assert (await client.decide("nobody", program="consenting"))["hold_reason"] == "consent"


async def test_the_holdout_is_always_held_and_says_so(client: Client) -> None:
    asked = [await client.decide(f"h{i}", program="trial") for i in range(60)]
    held = [d for d in asked if d["hold_reason"] == "holdout"]
    assert 10 < len(held) < 50
    again = await client.decide(held[0]["customer_id"], program="trial")
    assert (again["hold_reason"], again["policy"]) == ("holdout", {"name": "hold", "version": "holdout"})


async def test_a_pending_nudge_says_when_the_next_one_is_possible(client: Client) -> None:
    nudge = await until_nudged(client, "soon", only={"timing": ["evening"]})
    held = await client.decide("soon")
    assert held["hold_reason"] == "pending"
    assert held["next_eligible_at"] == nudge["deliver_at"]


async def test_times_are_on_the_customers_clock(client: Client) -> None:
    await client.ask("PUT", "/v1/customers/tokyo", {"time_zone": "Asia/Tokyo"})
    nudge = await until_nudged(client, "tokyo", only={"timing": ["evening"]})
    assert nudge["deliver_at"].endswith("T18:00:00+09:00")


async def test_what_is_far_from_now_is_refused_on_a_store_of_real_customers(client: Client) -> None:
    later = (datetime.now(UTC) + timedelta(minutes=6)).isoformat()
    near = (datetime.now(UTC) + timedelta(minutes=4)).isoformat()
    refused = await client.ask("POST", "/v1/decide", {"program": "small", "customer_id": "early", "at": later})
    assert refused.status == 422
    assert refused.json["errors"][0]["field"] == "at"
    assert "five minutes" in refused.json["detail"]
    assert (await client.decide("early", at=near))["degraded"] is False
    ahead = await report(client, "early", "step", at=later)
    assert ahead.json["errors"][0]["field"] == "at"


@pytest.mark.parametrize(
    ("change", "status", "field", "says"),
    [
        ({"customer_id": None}, 422, "customer_id", "1 to 128 characters"),
        ({"customer_id": ""}, 422, "customer_id", "1 to 128 characters"),
        ({"customer_id": "a/b"}, 422, "customer_id", "without slash"),
        ({"customer_id": ".."}, 422, "customer_id", "not dots only"),
        ({"customer_id": "a\u0000b"}, 422, "customer_id", "control characters"),
        ({"customer_id": "x" * 129}, 422, "customer_id", "1 to 128 characters"),
        ({"customer_id": 42}, 422, "customer_id", "1 to 128 characters"),
        ({"program": "No Name"}, 422, "program", "send a name"),
        ({"decision_id": ""}, 422, "decision_id", "1 to 128 characters"),
        ({"contxt": {}}, 422, "contxt", "mend its spelling"),
        ({"context": []}, 422, "context", "object"),
        ({"context": {"plan": ["gold"]}}, 422, "context.plan", "null for unknown"),
        ({"context": {"plan": 3}}, 422, "context.plan", "is not a string"),
        ({"context": {"plan": "x" * 257}}, 422, "context.plan", "256 characters"),
        ({"context": {"tenure": "long"}}, 422, "context.tenure", "is not a number"),
        ({"context": {"tenure": True}}, 422, "context.tenure", "is not a number"),
        ({"context": {"plna": "gold"}}, 422, "context.plna", "use one of plan, tenure"),
        ({"context": {f"a{i}": 1 for i in range(65)}}, 422, "context", "64"),
        ({"only": {"incentive": ["nothing"]}}, 422, "only.incentive[0]", "use one of badge, coupon, gift"),
        ({"without": {"colour": ["red"]}}, 422, "without.colour", "mend its spelling"),
        ({"at": "yesterday"}, 422, "at", "send a time such as"),
        ({"at": "2026-01-01T00:00:00"}, 422, "at", "add the offset"),
        ({"at": "0001-01-01T00:00:00Z"}, 422, "at", "between the years 2000 and 2100"),
        ({"program": "unheard-of"}, 404, None, "use one of fitness-coaching"),
    ],
)
async def test_a_wrong_request_is_refused_with_its_field_and_what_to_do(
    client: Client, change: dict[str, Any], status: int, field: str | None, says: str
) -> None:
    reply = await client.ask("POST", "/v1/decide", {"program": "small", "customer_id": "wrong", **change})
    assert reply.status == status
    assert reply.headers["Content-Type"] == MEDIA_TYPE
    assert reply.json["status"] == status
    assert reply.json["instance"].endswith(reply.headers["x-request-id"])
    assert says in reply.json["detail"]
    if field is not None:
        assert reply.json["errors"][0]["field"] == field
        assert says in reply.json["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"[]", "object"),
        (b"\xff", "JSON"),
        (b'{"program": NaN}', "JSON"),
        (b"null", "object"),
    ],
)
async def test_what_is_not_a_request_is_refused(client: Client, body: bytes, says: str) -> None:
    reply = await client.ask("POST", "/v1/decide", data=body, headers={"Content-Type": "application/json"})
    assert reply.status == 422
    assert "errors" in reply.json


async def test_a_body_that_is_not_text_is_refused_everywhere(client: Client) -> None:
    for method, path in (("POST", "/v1/programs/small/pause"), ("PUT", "/v1/customers/ada"), ("POST", "/v1/outcomes")):
        reply = await client.ask(method, path, data=b"\xff\xfe", headers={"Content-Type": "application/json"})
        assert (reply.status, reply.headers["Content-Type"]) == (422, MEDIA_TYPE)


async def test_a_wrong_row_of_a_batch_is_named_and_nothing_is_decided(client: Client) -> None:
    good = {"program": "small", "customer_id": "spared"}
    for bad, field in (
        ({"program": "small"}, "requests[1].customer_id"),
        ({**good, "context": {"plna": 1}}, "requests[1].context.plna"),
    ):
        reply = await client.ask("POST", "/v1/decide/batch", {"requests": [good, bad]})
        assert (reply.status, reply.json["errors"][0]["field"]) == (422, field)
    assert (await client.ask("GET", "/v1/customers/spared?program=small")).status == 404


async def test_more_than_a_thousand_at_once_are_refused(client: Client) -> None:
    rows = [{"program": "small", "customer_id": f"m{i}"} for i in range(1001)]
    reply = await client.ask("POST", "/v1/decide/batch", {"requests": rows})
    assert (reply.status, reply.json["errors"][0]["field"]) == (422, "requests")
    assert "1000" in reply.json["detail"]
    outcomes = [{"outcome_id": f"o{i}"} for i in range(1001)]
    assert (await client.ask("POST", "/v1/outcomes", outcomes)).status == 422


async def test_a_body_that_is_too_large_is_refused(client: Client) -> None:
    body = b'{"program": "small", "customer_id": "' + b"x" * (1 << 20) + b'"}'
    sent = BytesIO(body)
    reply = await client.ask("POST", "/v1/decide", data=sent, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.json["type"]) == (413, "urn:nudge:problem:too-large")


async def test_a_body_of_unknown_length_that_is_too_large_is_refused(client: Client) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    reply = await client.ask("POST", "/v1/decide", data=endless(), headers={"Content-Type": "application/json"})
    assert reply.status == 413


async def test_a_body_that_does_not_say_that_it_is_json_is_refused(client: Client) -> None:
    reply = await client.ask("POST", "/v1/decide", data=b"{}", headers={"Content-Type": "text/plain"})
    assert reply.status == 415
    assert "Content-Type: application/json" in reply.json["detail"]


@pytest.mark.parametrize("customer_id", HOSTILE)
async def test_a_customer_may_be_called_anything(client: Client, customer_id: str) -> None:
    from urllib.parse import quote

    from yarl import URL

    def at(path: str) -> Any:
        return URL(path.format(quote(customer_id, safe="")), encoded=True)

    decision = await until_nudged(client, customer_id)
    assert decision["customer_id"] == customer_id
    assert (await report(client, customer_id, "step", outcome_id="o")).json["accepted"] == 1
    state = await client.ask("GET", at("/v1/customers/{}?program=small"))
    assert (state.json["customer_id"], state.json["stage"]) == (customer_id, "active")
    history = await client.ask("GET", at("/v1/customers/{}/decisions?program=small"))
    assert history.json["decisions"][0] == decision
    why = await client.ask("GET", at(f"/v1/decisions/{decision['decision_id']}?program=small&customer_id={{}}"))
    assert why.json["decision_id"] == decision["decision_id"]
    assert (await client.ask("DELETE", at("/v1/customers/{}"))).status == 204


# Races.


async def _spend(client: Client, number: int) -> Any:
    """Ask for a coupon or nothing, and again with the same id while a busy machine answers degraded holds."""
    for _ in range(20):
        ask = {"decision_id": f"spend-{number}", "program": "tight", "only": {"incentive": ["coupon"]}}
        decision = await client.decide(f"spender-{number}", **ask)
        if not decision["degraded"]:
            return decision
    raise AssertionError("the service went on answering degraded holds")


async def test_fifty_asks_at_once_through_two_processes_never_overspend(
    client: Client, home: Path, store_url: str
) -> None:
    """A budget of 9 pays for three coupons of 3, whoever asks where."""
    with running(Settings(home=home, redis_url=store_url)) as other:
        async with aiohttp.ClientSession(other.url) as session:
            both = (client, Client(session))
            decisions = await asyncio.gather(*(_spend(both[i % 2], i) for i in range(100)))
    coupons = [d for d in decisions if nudged(d)]
    assert len(coupons) == 3
    assert {d["hold_reason"] for d in decisions if not nudged(d)} <= {"chosen", "request"}
    late = await client.ask("POST", "/v1/decide/dry-run", {"program": "tight", "customer_id": "latecomer"})
    assert late.json["blocked"]["incentive=coupon"] == "budget"


# Why.


async def test_a_decision_is_explained(client: Client) -> None:
    decision = await until_nudged(client, "curious")
    reply = await client.ask("GET", f"/v1/decisions/{decision['decision_id']}?program=small&customer_id=curious")
    why = reply.json
    schemas.Explanation.model_validate(why)
    assert set(why) == set(schemas.Explanation.model_fields)
    assert {k: why[k] for k in decision} == decision
    assert why["blocked"] == {"incentive=coupon": "stage", "incentive=gift": "momentum"}
    assert sum(why["chances"].values()) == pytest.approx(1.0, abs=1e-5)
    assert why["chances"]["/".join(decision["action"].values())] == pytest.approx(decision["propensity"], abs=1e-6)
    assert list(why["chances"].values()) == sorted(why["chances"].values(), reverse=True)
    assert (why["others"], why["arm"], why["context"]["stage"]) == (0, "champion", "new")


async def _explained(client: Client, customer: str) -> dict[str, Any]:
    await client.ask("PUT", f"/v1/customers/{customer}", {"consent": True})
    body = {"program": "fitness-coaching", "customer_id": customer, "at": "2030-01-01T12:00:00Z"}
    why: dict[str, Any] = (await client.ask("POST", "/v1/decide/dry-run", body)).json
    return why


async def test_of_many_actions_the_explanation_names_the_most_likely(client: Client) -> None:
    seen = [await _explained(client, f"many-{i}") for i in range(10)]
    why = next(w for w in seen if w["arm"] != "holdout")  # who is held out, and only held, the store's salt says
    assert len(why["chances"]) == 10
    assert why["others"] > 0
    assert sum(why["chances"].values()) < 1


async def test_an_unknown_decision_is_404_and_missing_parameters_are_named(client: Client) -> None:
    reply = await client.ask("GET", "/v1/decisions/none?program=small&customer_id=curious")
    assert (reply.status, reply.json["type"]) == (404, "urn:nudge:problem:unknown-decision")
    reply = await client.ask("GET", "/v1/decisions/none?program=small")
    assert (reply.status, reply.json["errors"][0]["field"]) == (422, "customer_id")


async def test_a_dry_run_shows_any_moment_and_writes_nothing(client: Client) -> None:
    body = {"program": "small", "customer_id": "ghost", "at": "2031-05-01T12:00:00Z", "decision_id": "peek"}
    reply = await client.ask("POST", "/v1/decide/dry-run", body)
    assert reply.status == 200
    schemas.Explanation.model_validate(reply.json)
    assert reply.json["at"] == "2031-05-01T12:00:00+00:00"
    assert reply.json["chances"]["hold"] == pytest.approx(0.05 + 0.9 / 3, abs=1e-3)
    assert (await client.ask("GET", "/v1/customers/ghost?program=small")).status == 404
    assert reply.json["decision_id"] != "peek", "an id's draw must not be told before it is used"


# Outcomes.


async def test_an_outcome_moves_the_customer_on_and_counts_once(client: Client) -> None:
    await client.decide("mover")
    first = await report(client, "mover", "step", outcome_id="s1")
    assert (first.status, first.json) == (202, {"accepted": 1, "duplicates": 0, "errors": [], "decide_now": []})
    again = await report(client, "mover", "step", outcome_id="s1")
    assert again.json == {"accepted": 0, "duplicates": 1, "errors": [], "decide_now": []}
    state = (await client.ask("GET", "/v1/customers/mover?program=small")).json
    schemas.CustomerState.model_validate(state)
    assert (state["stage"], state["milestones"][0]["done"]) == ("active", 1)
    assert state["momentum"] == pytest.approx(0.5, abs=0.01)


async def test_of_many_outcomes_each_is_kept_or_refused_for_itself(client: Client) -> None:
    await client.decide("rower")
    row = {"program": "small", "customer_id": "rower", "event": "step"}
    rows = [
        {**row, "outcome_id": "r0"},
        {**row, "outcome_id": "r0"},
        {**row, "outcome_id": "r2", "event": "leap"},
        {**row, "outcome_id": "r3", "customer_id": "never-seen"},
        {**row, "outcome_id": "r4", "program": "unheard-of"},
        {**row, "outcome_id": "r5", "value": "much"},
        {**row},
        {**row, "outcome_id": "r7", "at": "2001-01-01T00:00:00Z"},
        [],
    ]
    reply = await client.ask("POST", "/v1/outcomes", rows)
    assert reply.status == 202
    schemas.Received.model_validate(reply.json)
    assert (reply.json["accepted"], reply.json["duplicates"]) == (3, 1)
    codes = [(e["index"], e["code"]) for e in reply.json["errors"]]
    assert codes == [
        (2, "unknown_event"),
        (4, "unknown_program"),
        (5, "invalid"),
        (6, "invalid"),
        (8, "invalid"),
    ]
    by_index = {e["index"]: e for e in reply.json["errors"]}
    assert "use one of step, upgraded" in by_index[2]["detail"]
    assert (by_index[5]["field"], by_index[6]["field"]) == ("value", "outcome_id")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"event": "leap"}, "unknown_event"),
        ({"customer_id": "gone"}, "erased_customer"),
        ({"program": "unheard-of"}, "unknown_program"),
    ],
)
async def test_one_outcome_that_is_refused_is_not_answered_as_success(
    client: Client, change: dict[str, str], code: str
) -> None:
    await client.decide("single")
    await client.decide("gone")
    await client.ask("DELETE", "/v1/customers/gone")
    when = {"at": "2026-01-01T00:00:00Z"}
    body = {"outcome_id": "x", "program": "small", "customer_id": "single", "event": "step", **when, **change}
    reply = await client.ask("POST", "/v1/outcomes", body)
    assert (reply.status, reply.json["errors"][0]["code"]) == (422, code)


async def test_outcomes_of_one_customer_apply_in_order(client: Client) -> None:
    """Coming back and opting out again must end opted out, in whatever request they come."""
    await client.decide("order")
    row = {"program": "small", "customer_id": "order"}
    events = ["opt_out", "step", "opt_in", "step", "opt_out"]
    reply = await client.ask(
        "POST", "/v1/outcomes", [{**row, "event": e, "outcome_id": f"e{i}"} for i, e in enumerate(events)]
    )
    assert reply.json["accepted"] == 5
    state = (await client.ask("GET", "/v1/customers/order?program=small")).json
    assert (state["consent"], state["milestones"][0]["done"]) == (False, 2)
    assert (await client.decide("order"))["hold_reason"] == "consent"


async def test_a_nudge_that_was_not_shown_frees_the_customer_again(client: Client) -> None:
    nudge = await until_nudged(client, "unseen", only={"timing": ["evening"]})
    assert (await client.decide("unseen"))["hold_reason"] == "pending"
    reply = await report(client, "unseen", "not_shown", decision_id=nudge["decision_id"])
    assert reply.json["accepted"] == 1
    assert (await client.decide("unseen"))["hold_reason"] in {None, "chosen"}


async def test_a_higher_revision_is_accepted_and_a_lower_one_is_a_duplicate(client: Client) -> None:
    await client.decide("reviser")
    tallies = [
        (await report(client, "reviser", "spent", outcome_id="bill", value=value, revision=revision)).json
        for revision, value in ((1, 20.0), (0, 10.0), (2, 25.0))
    ]
    assert [(t["accepted"], t["duplicates"]) for t in tallies] == [(1, 0), (0, 1), (1, 0)]


# Customers.


async def test_what_is_put_of_a_customer_is_kept_and_used(client: Client) -> None:
    put = await client.ask("PUT", "/v1/customers/known", {"consent": True, "attributes": {"plan": "gold"}})
    assert put.status == 200
    schemas.Profile.model_validate(put.json)
    again = await client.ask("PUT", "/v1/customers/known", {"time_zone": "Europe/Paris"})
    assert again.json == {
        "customer_id": "known",
        "consent": True,
        "time_zone": "Europe/Paris",
        "attributes": {"plan": "gold"},
    }
    assert (await client.decide("known", program="consenting"))["hold_reason"] in {None, "chosen"}
    why = (await client.ask("POST", "/v1/decide/dry-run", {"program": "small", "customer_id": "known"})).json
    assert (why["context"]["plan"], why["time_zone"]) == ("gold", "Europe/Paris")


async def test_consent_that_is_taken_back_holds_at_once(client: Client) -> None:
    await until_nudged(client, "fickle")
    await client.ask("PUT", "/v1/customers/fickle", {"consent": False})
    assert (await client.decide("fickle"))["hold_reason"] == "consent"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"time_zone": "Europe/Atlantis"}, "time_zone"),
        ({"consent": "yes"}, "consent"),
        ({"attributes": {"shoe_size": 43}}, "attributes.shoe_size"),
        ({"attributes": {"plan": [1]}}, "attributes.plan"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_wrong_change_of_a_customer_is_refused(client: Client, body: dict[str, Any], field: str) -> None:
    reply = await client.ask("PUT", "/v1/customers/changed", body)
    assert (reply.status, reply.json["errors"][0]["field"]) == (422, field)


async def test_an_erased_customer_is_gone_with_the_history(client: Client) -> None:
    await client.decide("forgotten", decision_id="d1")
    assert (await client.ask("DELETE", "/v1/customers/forgotten")).status == 204
    assert (await client.ask("GET", "/v1/customers/forgotten?program=small")).status == 404
    assert (await client.ask("GET", "/v1/decisions/d1?program=small&customer_id=forgotten")).status == 404
    history = await client.ask("GET", "/v1/customers/forgotten/decisions?program=small")
    assert history.json == {"decisions": []}
    assert (await client.ask("DELETE", "/v1/customers/forgotten")).status == 404


async def test_the_history_is_latest_first_and_limited(client: Client) -> None:
    for i in range(4):
        await client.decide("historian", decision_id=f"d{i}")
    reply = await client.ask("GET", "/v1/customers/historian/decisions?program=small&limit=3")
    schemas.History.model_validate(reply.json)
    assert [d["decision_id"] for d in reply.json["decisions"]] == ["d3", "d2", "d1"]
    reply = await client.ask("GET", "/v1/customers/historian/decisions?program=small&limit=0")
    assert (reply.status, reply.json["errors"][0]["field"]) == (422, "limit")


# Programs.


async def test_a_program_is_shown_as_it_is_served(client: Client) -> None:
    reply = await client.ask("GET", "/v1/programs/small")
    schemas.Served.model_validate(reply.json)
    assert reply.json["incentives"] == ["badge", "coupon", "gift"]
    assert reply.json["versions"] == [reply.json["version"]]
    assert reply.json["policies"] == {"champion": {"name": "uniform", "version": "0"}}
    assert (await client.ask("GET", "/v1/programs/unheard-of")).status == 404


async def test_a_paused_program_holds_until_it_is_resumed(client: Client) -> None:
    assert (await client.ask("POST", "/v1/programs/consenting/pause")).json["paused"] == ["program"]
    assert (await client.decide("waiting", program="consenting"))["hold_reason"] == "paused"
    assert (await client.ask("POST", "/v1/programs/consenting/resume")).json["paused"] == []
    assert (await client.decide("waiting", program="consenting"))["hold_reason"] == "consent"


async def test_a_paused_incentive_is_not_chosen(client: Client) -> None:
    await client.ask("POST", "/v1/programs/trial/pause", {"level": "incentive=badge"})
    held = [await client.decide(f"p{i}", program="trial") for i in range(10)]
    assert not any(map(nudged, held))
    assert {d["hold_reason"] for d in held} <= {"stage", "momentum", "paused", "holdout"}
    shown = (await client.ask("GET", "/v1/programs/trial")).json
    assert shown["paused"] == ["incentive=badge"]
    await client.ask("POST", "/v1/programs/trial/resume", {"level": "incentive=badge"})


async def test_only_what_a_program_has_can_be_paused(client: Client) -> None:
    for level in ("incentive=nothing", "colour=red", "badge", ""):
        reply = await client.ask("POST", "/v1/programs/small/pause", {"level": level})
        assert (reply.status, reply.json["errors"][0]["field"]) == (422, "level")


# How it is.


async def test_health_readiness_and_metrics_are_there(client: Client) -> None:
    assert (await client.ask("GET", "/healthz")).json == {"status": "ok"}
    ready = await client.ask("GET", "/readyz")
    assert (ready.status, ready.json["ready"]) == (200, True)
    assert {"store", "tasks", "programs", "policy:small"} <= set(ready.json["parts"])
    await client.decide("measured")
    text = (await client.ask("GET", "/metrics")).raw.decode()
    for metric in (
        'nudge_decide_stage_seconds_count{program="small",stage="commit"}',
        'nudge_decisions_total{arm="champion",kind="nudge",program="small"}',
        'nudge_holds_total{program="consenting",reason="consent"}',
        'nudge_blocks_total{program="small",rule="stage"}',
        'nudge_policy_loaded_at_seconds{arm="champion",program="small",version="0"}',
        'nudge_outcomes_total{became="accepted",program="small"}',
        "nudge_store_up 1.0",
    ):
        assert metric in text


async def test_metrics_name_no_customer_and_no_path_that_was_made_up(client: Client) -> None:
    await client.decide("secret-person")
    await client.ask("GET", "/secret-path")
    await client.ask("GET", "/v1/programs/secret-program")
    text = (await client.ask("GET", "/metrics")).raw.decode()
    assert "secret" not in text


async def test_the_documents_are_complete_and_need_no_other_server(client: Client) -> None:
    page = await client.ask("GET", "/docs")
    assert page.status == 200
    assert b"<script" not in page.raw
    assert b"https://" not in page.raw
    document = (await client.ask("GET", "/openapi.json")).json
    calls = {(m.upper(), p) for p, methods in document["paths"].items() for m in methods}
    assert {
        ("POST", "/v1/decide"),
        ("POST", "/v1/decide/batch"),
        ("POST", "/v1/decide/dry-run"),
        ("POST", "/v1/outcomes"),
        ("GET", "/v1/customers/{customer_id}"),
        ("PUT", "/v1/customers/{customer_id}"),
        ("DELETE", "/v1/customers/{customer_id}"),
        ("GET", "/v1/customers/{customer_id}/decisions"),
        ("GET", "/v1/decisions/{decision_id}"),
        ("GET", "/v1/programs/{name}"),
        ("POST", "/v1/programs/{name}/pause"),
        ("POST", "/v1/programs/{name}/resume"),
    } <= calls
    for path, _ in ((p, m) for m, p in calls):
        assert path.encode() in page.raw
    refused = document["paths"]["/v1/decide"]["post"]["responses"]["422"]["content"]
    assert list(refused) == [MEDIA_TYPE]


async def test_every_answer_has_an_id_and_security_headers(client: Client) -> None:
    named = await client.ask("GET", "/healthz", headers={"X-Request-Id": "trace-7"})
    assert named.headers["x-request-id"] == "trace-7"
    for path, given in (("/healthz", "bad id\t!"), ("/nowhere", ""), ("/v1/programs/none", "x" * 65)):
        reply = await client.ask("GET", path, headers={"X-Request-Id": given})
        assert reply.headers["x-request-id"] not in {"", given}
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/decide", 405), ("PATCH", "/v1/customers/a", 405)],
)
async def test_an_unknown_path_or_method_is_a_problem_document(
    client: Client, method: str, path: str, status: int
) -> None:
    reply = await client.ask(method, path)
    assert (reply.status, reply.headers["Content-Type"], reply.json["status"]) == (status, MEDIA_TYPE, status)


# Keys.


async def test_keys_have_scopes_and_programs(tmp_path: Path, store_url: str) -> None:
    write_program(tmp_path, extra=OPEN)
    settings = Settings(home=tmp_path, redis_url=store_url)
    decides = create(settings.keys_file, "app", scopes=["decide"], programs=["small"])
    reports = create(settings.keys_file, "crm", scopes=["report"])
    calls: list[tuple[str, str, str, Any, int]] = [
        ("", "POST", "/v1/decide", {"program": "small", "customer_id": "k"}, 401),
        ("nudge_nonsense", "POST", "/v1/decide", {"program": "small", "customer_id": "k"}, 401),
        (decides[:-1] + "z", "POST", "/v1/decide", {"program": "small", "customer_id": "k"}, 401),
        (reports, "POST", "/v1/decide", {"program": "small", "customer_id": "k"}, 403),
        (decides, "POST", "/v1/decide", {"program": "small", "customer_id": "k"}, 200),
        (decides, "POST", "/v1/decide", {"program": "fitness-coaching", "customer_id": "k"}, 403),
        (decides, "GET", "/v1/programs/fitness-coaching", None, 403),
        (decides, "POST", "/v1/outcomes", [], 403),
        (decides, "DELETE", "/v1/customers/k", None, 403),
        (decides, "PUT", "/v1/customers/k", {}, 403),
        (reports, "PUT", "/v1/customers/k", {}, 200),
        (decides, "POST", "/v1/programs/small/pause", None, 403),
        ("", "GET", "/v1/customers/k?program=small", None, 401),
        ("", "GET", "/healthz", None, 200),
        ("", "GET", "/metrics", None, 401),
        (reports, "GET", "/metrics", None, 200),
    ]
    with running(settings) as service:
        async with aiohttp.ClientSession(service.url) as session:
            for key in ("", "nudge_nonsense"):
                assert (await Client(session, key=key).ask("GET", "/readyz")).json == {"ready": True, "parts": {}}
            assert "store" in (await Client(session, key=decides).ask("GET", "/readyz")).json["parts"]
            for key, method, path, body, status in calls:
                reply = await Client(session, key=key).ask(method, path, body)
                assert reply.status == status, (method, path, reply.raw)
                if status == 401:
                    assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_more_rows_than_a_key_may_send_are_429_with_the_time_to_wait(tmp_path: Path, store_url: str) -> None:
    write_program(tmp_path, extra=OPEN)
    settings = Settings(home=tmp_path, redis_url=store_url, rate=0.5)
    key = create(settings.keys_file, "eager", scopes=["decide"])
    with running(settings) as service:
        async with aiohttp.ClientSession(service.url) as session:
            requests = {"requests": [{"program": "small", "customer_id": f"e{i}"} for i in range(20)]}
            client = Client(session, key=key)
            assert (await client.ask("POST", "/v1/decide/batch", requests)).status == 200
            refused = await client.ask("POST", "/v1/decide", requests["requests"][0])
            assert refused.status == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert (await client.ask("GET", "/v1/programs/small")).status == 429


async def test_a_simulated_store_lets_requests_name_their_time(tmp_path: Path) -> None:
    from serving.store import Store

    write_program(tmp_path, extra=OPEN)
    with embedded.serve(tmp_path / "store") as server:
        await (await Store.open(server.url, simulated=True)).close()
        settings = Settings(home=tmp_path, redis_url=server.url)
        key = create(settings.keys_file, "real", scopes=["decide"])
        simulating = create(settings.keys_file, "sim", scopes=["decide", "report", "simulate"])
        with running(settings) as service:
            async with aiohttp.ClientSession(service.url) as session:
                body = {
                    "program": "small",
                    "customer_id": "s",
                    "at": "2030-01-01T12:00:00Z",
                    "only": {"timing": ["evening"]},
                }
                assert (await Client(session, key=key).ask("POST", "/v1/decide", body)).status == 422
                client = Client(session, key=simulating)
                nudge = await until_nudged(client, "s", at=body["at"], only=body["only"])
                assert nudge["deliver_at"] == "2030-01-01T18:00:00+00:00"
                ahead = await report(client, "s", "step", at="2030-01-01T19:00:00Z")
                assert ahead.json["accepted"] == 1
