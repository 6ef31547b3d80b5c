"""Who does what one process does for all? Whoever holds its lease, which lapses once its holder says nothing."""

from optimizer.program import Program
from serving import records
from serving.store import Store

HOLD = 10.0
"""Seconds after which a leader that says nothing is replaced."""


async def leads(store: Store, what: str, program: Program, *, who: str) -> bool:
    """Take the lease on something that is done for a program, or keep it; False where another process holds it.

    Args:
        store: where the lease is.
        what: is done, in a word.
        program: for which.
        who: names this process among those that could lead.
    """
    return bool(await store.run("lead", [key(what, program)], [who, int(1000 * HOLD)]))


def key(what: str, program: Program) -> str:
    """Return where the lease is."""
    return records.global_key(what, program.name)
