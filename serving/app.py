"""What can be asked over HTTP? The app: its routes, and the service that lives in its lifespan."""

import gc
import logging.config
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Path as InPath
from fastapi.security import HTTPBearer
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from serving import docs, embedded, logs, problems, render, schemas, settings, validation
from serving.auth import Key, Scope
from serving.edge import Edge, Json, LeanRoute
from serving.metrics import CONTENT_TYPE
from serving.problems import ProblemError
from serving.service import Service
from serving.settings import Settings
from serving.tracing import Spans, Traces
from serving.validation import InvalidError

_BEARER = [Depends(HTTPBearer(auto_error=False, description="An API key, made with `nudge keys create`."))]

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ProblemDocument, "description": text, "content": {problems.MEDIA_TYPE: {}}}
    for code, text in (
        (401, "no API key that is known"),
        (403, "a key without the scope, or for another program"),
        (404, "there is no such thing"),
        (413, "too large"),
        (415, "not JSON"),
        (422, "a field is wrong; `errors` names it and says what to do"),
        (429, "too many requests; see Retry-After"),
        (500, "something is wrong with the service; its log has the instance"),
        (503, "the store failed; see Retry-After"),
    )
}

lean = APIRouter(route_class=LeanRoute, dependencies=_BEARER, responses=_ERRORS)
plain = APIRouter(dependencies=_BEARER, responses=_ERRORS)
open_to_all = APIRouter(responses={413: _ERRORS[413]})


class App(FastAPI):
    """The framework's app around a service. What comes in meets the edge first, before the framework's own layers."""

    def __init__(self, service: Service, **options: Any) -> None:
        self.service = service
        super().__init__(**options)

    def build_middleware_stack(self) -> ASGIApp:
        """Return what answers a request."""
        direct = {route.path: route for route in lean.routes if isinstance(route, LeanRoute)}
        service, framework = self.service, super().build_middleware_stack()
        if isinstance(framework, ServerErrorMiddleware):  # the edge answers what nobody expected, with its id
            framework = framework.app
        edge = Edge(framework, direct=direct, body_bytes=service.settings.body_bytes, metrics=service.metrics)
        return Spans(edge, traces=service.tracer) if isinstance(service.tracer, Traces) else edge


def create_app(settings: Settings) -> App:
    """Return the service as an ASGI app; its store, policies and background tasks live in its lifespan.

    Raises:
        ValueError: a program, the keys or the secret cannot be used; says what to mend.
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.open()
            yield
        finally:
            await service.close()

    app = App(
        service,
        title="nudge optimizer",
        description="What is the next best nudge for this customer, now?",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # we have our own; asking whether takes as long
    )
    app.openapi = partial(docs.openapi, app)  # type: ignore[method-assign]
    for error in (ProblemError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, problems.answer)
    for router in (lean, plain, open_to_all):
        app.include_router(router)
    return app


def from_environment() -> App:
    """Return the app as environment variables say: what `uvicorn --factory serving.app:from_environment` starts."""
    given = settings.load()
    logging.config.dictConfig(logs.configuration(given.log_level))
    app = create_app(given)
    if (supervisor := multiprocessing.parent_process()) is not None:
        embedded.end_with(supervisor.pid)
    # Requests leave next to no cycles: looking for them after each few hundred objects takes longer than a decision.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    return app


def _service(request: Request) -> Service:
    app: App = request.app
    return app.service


def _may(scope: Scope | None, *, rows: int) -> Callable[[Request], Key]:
    """Let in whoever has a scope, or any key for None, and charge so many rows, whatever comes of the request."""

    def admitted(request: Request) -> Key:
        gate = _service(request).gate
        key = gate.admit(request.scope, scope)
        if rows:
            gate.charge(key, rows)
        return key

    return admitted


Decides = Annotated[Key, Depends(_may("decide", rows=1))]
Reports = Annotated[Key, Depends(_may("report", rows=1))]
Looks = Annotated[Key, Depends(_may("decide", rows=1))]
Changes = Annotated[Key, Depends(_may("report", rows=1))]
Measures = Annotated[Key, Depends(_may(None, rows=0))]
Administers = Annotated[Key, Depends(_may("admin", rows=1))]
Live = Annotated[Service, Depends(_service)]
CustomerId = Annotated[schemas.Id, InPath(description="the customer's id")]
OfProgram = Annotated[schemas.Name, Query(description="the program")]


def _json(body: bytes, *, status: int = 200) -> Response:
    return Json(body, status=status)


# Deciding.


@lean.post("/v1/decide", responses={200: {"model": schemas.Decision}})
async def decide(request: Request, key: Decides, body: schemas.DecideRequest) -> Response:
    """Choose the next best nudge for one customer, now. The same decision_id again gives the same answer."""
    return _json(await _service(request).decide_one(key, body))


@lean.post("/v1/decide/batch", responses={200: {"model": schemas.Decisions}})
async def decide_batch(request: Request, key: Decides, body: schemas.DecideBatch) -> Response:
    """Choose for up to 1,000 customers: one result each, in order."""
    answers = await _service(request).decide(key, body.requests)
    return _json(b'{"results":[' + b",".join(answers) + b"]}")


@lean.post("/v1/decide/dry-run", responses={200: {"model": schemas.Explanation}})
async def dry_run(request: Request, key: Decides, body: schemas.DecideRequest) -> Response:
    """Show what would be decided at any time, and why. Nothing is written."""
    return _json(await _service(request).preview(key, body))


@plain.get("/v1/decisions/{decision_id}", responses={200: {"model": schemas.Explanation}})
async def explain(
    decision_id: Annotated[schemas.Id, InPath()],
    program: OfProgram,
    customer_id: Annotated[schemas.Id, Query(description="whose decision it is")],
    key: Looks,
    service: Live,
) -> Response:
    """Say why a decision of the last seven days was made, and why not another: chances, and rules that blocked."""
    decider = service.decider(key, program)
    return _json(service.explained(decider, await service.answered(program, customer_id, decision_id)))


@plain.post("/v1/decisions/{decision_id}/hand-off", responses={200: {"model": schemas.HandedOff}})
async def hand_off(
    decision_id: Annotated[schemas.Id, InPath()], body: schemas.HandOff, key: Looks, service: Live
) -> Response:
    """Ask, right before delivering, whether a nudge may still go out: consent and guardrails are checked again.

    Where it may not, it is cancelled: what it had reserved is free again, and it stays cancelled.
    """
    return _json(await service.hand_off(key, decision_id, body))


# Outcomes.


@lean.post(
    "/v1/outcomes",
    status_code=202,
    responses={202: {"model": schemas.Received}},
)
async def report(request: Request, key: Reports, body: schemas.OutcomeReports) -> Response:
    """Report what customers did, and which nudges were shown or not: one event, or a list of up to 1,000.

    Of a list each row is accepted or refused for itself; one event by itself that is refused answers 422.
    """
    tally = await _service(request).report(key, body.rows, refused=len(body.faults))
    faults = [
        schemas.RowError(index=i, code="invalid", **problems.described(fault.errors(include_url=False)[0]))
        for i, fault in body.faults.items()
    ]
    errors = sorted((*tally.errors, *faults), key=lambda e: e.index)
    if errors and body.single:
        plain = [e.model_dump(exclude_none=True) for e in errors]
        raise ProblemError(422, "refused-outcome", errors[0].detail, errors=plain)
    received = schemas.Received(
        accepted=tally.accepted, duplicates=tally.duplicates, errors=errors, decide_now=tally.decide_now
    )
    return _json(received.model_dump_json(exclude_none=True).encode(), status=202)


# Customers.


@plain.get("/v1/customers/{customer_id}", responses={200: {"model": schemas.CustomerState}})
async def customer(customer_id: CustomerId, program: OfProgram, key: Looks, service: Live) -> Response:
    """Show where a customer is: stage, progress, rewards earned and to come, and why the latest nudge came."""
    declared, now = service.decider(key, program).program, service.clock()
    found = await service.kept(service.store.get(declared, customer_id, at=now))
    if found is None:
        raise ProblemError(404, "unknown-customer", "nobody has asked or put anything about this customer")
    recent = await service.kept(service.store.history(program, customer_id, limit=1))
    person, own = found.customer, service.own(key)
    if own is not None:
        person = replace(person, attributes={n: v for n, v in person.attributes.items() if n in own})
    return _json(render.customer_state(declared, person, at=now, latest=recent[0] if recent else None))


@plain.put("/v1/customers/{customer_id}", responses={200: {"model": schemas.Profile}})
async def change(customer_id: CustomerId, body: schemas.CustomerChange, key: Changes, service: Live) -> Response:
    """Set a customer's consent, time zone or attributes, for all programs. What is omitted stays as it is.

    A key for some programs sees and replaces the attributes that these declare; the others stay.
    """
    try:
        validation.customer(body, service.attributes(key))
    except InvalidError as error:
        raise problems.field(error.field, str(error)) from None
    given = {name: getattr(body, name) for name in ("consent", "time_zone", "attributes")}
    own = service.own(key)
    profile = await service.kept(service.store.put(customer_id, **given, among=own))
    known = schemas.Profile(customer_id=customer_id, **{n: getattr(profile, n) for n in given})
    if own is not None:
        known.attributes = {name: value for name, value in known.attributes.items() if name in own}
    return _json(known.model_dump_json().encode())


@plain.delete("/v1/customers/{customer_id}", status_code=204, response_class=Response)
async def erase(customer_id: CustomerId, key: Administers, service: Live) -> Response:
    """Forget a customer: here at once and for readers of the archive; on disk within an hour of being archived.

    `nudge archive --watch` sees to that hour; `nudge erase` does all of it at once. It takes a key for all programs.
    """
    if key.programs:
        detail = f"key {key.name!r} is for {', '.join(key.programs)}; a customer is forgotten in every program"
        raise ProblemError(403, "forbidden", f"{detail}: use a key that is for all")
    if not await service.kept(service.erase(customer_id)):
        detail = "nobody of that id is known here; what the archive may have of it is forgotten all the same"
        raise ProblemError(404, "unknown-customer", detail)
    return Response(status_code=204)


@plain.get("/v1/customers/{customer_id}/decisions", responses={200: {"model": schemas.History}})
async def history(
    customer_id: CustomerId,
    program: OfProgram,
    key: Looks,
    service: Live,
    limit: Annotated[int, Query(ge=1, le=100, description="how many, latest first")] = 50,
) -> Response:
    """List a customer's decisions of the last seven days, latest first."""
    service.decider(key, program)
    kept = await service.kept(service.store.history(program, customer_id, limit=limit))
    return _json(b'{"decisions":[' + b",".join(map(render.answer_of, kept)) + b"]}")


# Programs.


@plain.get("/v1/programs/{name}", responses={200: {"model": schemas.Served}})
async def program(name: Annotated[schemas.Name, InPath()], key: Looks, service: Live) -> Response:
    """Show a program as it is served: its parts, its versions, the policy of each arm, what is paused."""
    decider, store = service.decider(key, name), service.store
    declared = decider.program
    versions = await service.kept(store.programs(name))
    paused = await service.kept(store.paused(name))
    served = schemas.Served(
        name=name,
        title=declared.title,
        version=declared.version,
        versions=sorted(versions),
        stages=[s.name for s in declared.stages],
        events=[e.name for e in declared.events],
        incentives=list(declared.space.incentives),
        tones=list(declared.space.tones),
        timings=list(declared.space.timings),
        policies={a: schemas.PolicyName(name=c.name, version=c.version) for a, c in decider.choosers.items()},
        paused=sorted(paused),
        budget=await service.budget(decider),
    )
    return _json(served.model_dump_json().encode())


@plain.post("/v1/programs/{name}/pause", responses={200: {"model": schemas.Paused}})
async def pause(
    name: Annotated[schemas.Name, InPath()], key: Administers, service: Live, body: schemas.Pause | None = None
) -> Response:
    """Stop a program at once, or one level of it such as `incentive=coupon`: from then on only hold, or others."""
    level = _level(service, key, name=name, body=body)
    await service.kept(service.store.pause(name, level))
    return await _paused(service, name)


@plain.post("/v1/programs/{name}/resume", responses={200: {"model": schemas.Paused}})
async def resume(
    name: Annotated[schemas.Name, InPath()], key: Administers, service: Live, body: schemas.Pause | None = None
) -> Response:
    """Go on with what was paused."""
    service.decider(key, name)
    gone = body is not None and body.level in await service.kept(service.store.paused(name))  # perhaps by an edit
    level = body.level if body is not None and gone else _level(service, key, name=name, body=body)
    await service.kept(service.store.resume(name, level))
    return await _paused(service, name)


def _level(service: Service, key: Key, *, name: str, body: schemas.Pause | None) -> str:
    declared = service.decider(key, name).program
    try:
        return validation.level((body or schemas.Pause()).level, declared)
    except InvalidError as error:
        raise problems.field(error.field, str(error)) from None


async def _paused(service: Service, name: str) -> Response:
    paused = await service.kept(service.store.paused(name))
    return _json(schemas.Paused(program=name, paused=sorted(paused)).model_dump_json().encode())


# How it is.


@open_to_all.get("/healthz", responses={200: {"model": schemas.Health}})
async def health() -> Response:
    """Say that the process answers."""
    return _json(schemas.Health().model_dump_json().encode())


@open_to_all.get("/readyz", responses={200: {"model": schemas.Readiness}, 503: {"model": schemas.Readiness}})
async def ready(request: Request, service: Live) -> Response:
    """Say whether every part works; 503 if one does not. The parts, with what to do, are named to whoever has a key."""
    parts = await service.readiness()
    every = all(part.ok for part in parts.values())
    named = parts if service.gate.knows(request.scope) else {}
    body = schemas.Readiness(ready=every, parts=named).model_dump_json().encode()
    return _json(body, status=200 if every else 503)


@open_to_all.get("/docs", response_class=HTMLResponse)
async def documentation(request: Request) -> Response:
    """Show this page."""
    return HTMLResponse(docs.page(request.app.openapi()))


@plain.get("/metrics", response_class=Response)
async def metrics(_: Measures, service: Live) -> Response:
    """Give the metrics, as Prometheus reads them: to any key, whatever its scopes."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
