"""Is there room left? New events are refused before the store's memory is full, for then it would refuse everything.

Below the mark the log is archived and trimmed as always; at the mark decisions are hold, marked degraded, and outcomes
are answered 503 with Retry-After, until archiving has made room. Nothing that was acknowledged is touched.
"""

import logging

from serving import problems
from serving.problems import ProblemError
from serving.schemas import Part
from serving.store import Store

FULL, AGAIN = 0.90, 0.80
"""Shares of the store's memory: at the first nothing new is taken, below the second it is again."""

EVERY = 0.5
"""Seconds between two looks: what can be written meanwhile is mostly far less than the last tenth."""

_LATER = 5
"""Seconds after which those who were refused should come back."""

log = logging.getLogger("nudge.pressure")


class Pressure:
    """Knows whether the store has room."""

    def __init__(self) -> None:
        self.full = False

    async def look(self, store: Store) -> None:
        """Ask the store how full it is."""
        share = await store.fullness()
        full = share >= (AGAIN if self.full else FULL)
        if full != self.full:
            log.warning("the store is nearly full" if full else "the store has room again", extra={"share": share})
        self.full = full

    def check(self) -> None:
        """Raise the 503 where there is no room."""
        if self.full:
            raise _later("the store's memory is nearly full, so nothing was kept: send it again later")

    def part(self) -> Part:
        """Return whether there is room: where there is not, nothing new is kept."""
        mend = "the store's memory is nearly full, so decisions are hold and outcomes refused; run nudge archive"
        return Part(ok=not self.full, detail=f"{mend}, or raise maxmemory" if self.full else "")

    def overran(self) -> ProblemError:
        """Note that the store itself refused, before anybody looked; return the 503 that says so."""
        if not self.full:
            log.warning("the store is full")
        self.full = True
        return _later("the store's memory is full: this may be kept or not, so send it again later; it counts once")


def _later(detail: str) -> ProblemError:
    room = "`nudge archive` makes room, and maxmemory says how much there is"
    return problems.unavailable(f"{detail}; {room}", seconds=_LATER)
