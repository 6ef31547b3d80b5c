"""What a service does with a store, in one step each, for tests of stores."""

from collections.abc import Sequence

from msgspec.structs import replace

from optimizer.engine import Ask
from optimizer.events import Decision, Outcome
from optimizer.program import Program
from serving import records
from serving.store import Commitment, Found, Store, Wanted
from serving.stream import fresh
from tests.small_program import NOON, OPEN, optimizer, small

BUDGET = OPEN + '\n[guardrails.budget]\namount = 30.0\nperiod = "7d"\n'
"""Ten coupons, or six gifts if there were so many."""

PROGRAM = small(OPEN)
BUDGETED = small(BUDGET)
REPORTING = small(OPEN + "reports_shown = true\n" + BUDGET.removeprefix(OPEN))


async def active(store: Store, *names: str, program: Program = PROGRAM, at: float = NOON) -> None:
    """Let customers take three steps: they are active, and have the momentum for a gift."""
    for name in names:
        await store.put(name)
    steps = [outcome(name, f"{name}-{i}", program=program, at=at) for name in names for i in range(3)]
    assert set(await store.report(program, steps)) == {"accepted"}


def outcome(
    name: str, outcome_id: str, event: str = "step", *, program: Program = PROGRAM, at: float = NOON, **more: object
) -> Outcome:
    """Return an outcome of a customer."""
    made = Outcome(
        outcome_id=outcome_id, customer_id=name, program=program.name, event=event, at=at, received_at=at + 1
    )
    return replace(made, **more)


async def propose(
    store: Store,
    *names: str,
    program: Program = PROGRAM,
    at: float = NOON,
    action: str | None = None,
    decision_id: str = "d",
) -> list[Commitment]:
    """Read and decide, as the service does, without committing; `action` says what was drawn, by name."""
    found = await store.read(program, [Wanted(name, decision_id, at) for name in names])
    made = [optimizer(program).decide([Ask(f.customer, decision_id, at)], f.shared)[0] for f in found]
    drawn = [d if action is None else drawing(program, d, action) for d in made]
    return [
        Commitment(f, d, f"{d.customer_id} {decision_id} {d.action_name}".encode())
        for f, d in zip(found, drawn, strict=True)
    ]


def drawing(program: Program, decision: Decision, action: str) -> Decision:
    """Return a decision as if this action had been drawn, which must have been possible."""
    index = program.space.names.index(action)
    assert decision.vector[index] > 0, f"{action} was not allowed: {decision.blocked}"
    cost = program.incentives[program.space.levels[index, 0]].minor_cost if index else 0
    return replace(decision, action=index, action_name=action, cost=cost, deliver_at=decision.at if index else None)


async def decide(
    store: Store,
    *names: str,
    program: Program = PROGRAM,
    at: float = NOON,
    action: str | None = None,
    decision_id: str = "d",
) -> list[str]:
    """Read, decide and commit; return what became of each."""
    rows = await propose(store, *names, program=program, at=at, action=action, decision_id=decision_id)
    return [became.status for became in await store.commit(program, rows)]


def together(store: Store, n: int) -> list[str]:
    """Return customers of one shard."""
    return [name for name in (f"t{i}" for i in range(1_000)) if store.shard(name) == 0][:n]


def apart(store: Store) -> list[str]:
    """Return a customer of each shard."""
    return list({store.shard(name): name for name in (f"a{i}" for i in range(1_000))}.values())


async def left(store: Store, program: Program, *, at: float = NOON, name: str = "nobody") -> Found:
    """Return what somebody would find who asked now."""
    (found,) = await store.read(program, [Wanted(name, "", at)])
    return found


async def log(store: Store) -> list[records.Event]:
    """Return everything in the log, shard by shard."""
    return [entry.event for shard in range(store.shards) for entry in await fresh(store, shard, most=1_000_000)]


async def decisions(store: Store) -> list[Decision]:
    """Return the decisions in the log."""
    return [event for event in await log(store) if isinstance(event, Decision)]


async def outcomes(store: Store) -> list[Outcome]:
    """Return the outcomes in the log."""
    return [event for event in await log(store) if isinstance(event, Outcome)]


def spent(made: Sequence[Decision]) -> int:
    """Return what decisions cost, in minor units."""
    return sum(d.cost for d in made)
