"""How is an edited program taken up without a restart? Old and new side by side: what the old one began, it ends.

The new version gets deciders of its own; those of the old one finish what waits for them and then leave. A faulty
edit, or one under which a policy that serves cannot decide, is refused: the old version goes on, and the log and
`/readyz` say what to mend.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from optimizer.engine import Chooser
from optimizer.program import Fault, Program, ProgramError
from serving.decider import Decider
from serving.metrics import Metrics
from serving.programs import Source, Watch
from serving.publishing import Follower
from serving.store import Store, StoreError

_DRAINING = 0.02
"""Seconds between two looks at whether an old version has finished."""

log = logging.getLogger("nudge.programs")


class Home(Protocol):
    """What reloading needs of the service."""

    watch: Watch
    follower: Follower
    metrics: Metrics
    deciders: dict[str, Decider]
    replaced: dict[str, list[Program]]

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None: ...

    async def stop(self, name: str) -> None: ...

    def new_decider(self, program: Program, choosers: Mapping[str, Chooser]) -> Decider: ...


async def reload(home: Home, store: Store) -> None:
    """Take up what was edited since the last look, and say what cannot be."""
    before = home.watch.faults
    for source in await asyncio.to_thread(home.watch.look):
        serving = home.deciders.get(source.program.name)
        if serving is None or serving.program.version != source.program.version:
            await _change(home, source, store)
    _complain(home, [f for f in home.watch.faults if f not in before])


async def _change(home: Home, source: Source, store: Store) -> None:
    program = source.program
    try:
        await store.put_program(program.name, program.version, source.text)
        choosers = await home.follower.prepare(program, store)
    except StoreError:
        home.watch.again(source)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the old one goes on)
        home.watch.refuse(source, str(error) or type(error).__name__)
    else:
        await _swap(home, program, choosers)


async def _swap(home: Home, program: Program, choosers: Mapping[str, Chooser]) -> None:
    name, old = program.name, home.deciders.get(program.name)
    new = home.new_decider(program, choosers)
    home.follower.adopt(program)
    home.start(task_of(program), new.run)
    home.deciders[name] = new
    log.info("program in service", extra={"program": name, "version": program.version})
    if old is not None:
        home.replaced.setdefault(name, []).append(old.program)
        while not old.idle:  # noqa: ASYNC110  (a few batches; an event would cost every one of them)
            await asyncio.sleep(_DRAINING)
        await home.stop(task_of(old.program))


def task_of(program: Program) -> str:
    """Return what the background work of a version of a program is called."""
    return f"decide {program.name} {program.version}"


def _complain(home: Home, faults: list[Fault]) -> None:
    if faults:
        home.metrics.program_refused.inc()
        log.error("an edited program is refused, the old one stays", extra={"reason": str(ProgramError(faults))})


class Versions:
    """Earlier versions of programs, read when something refers to what only they declare."""

    def __init__(self) -> None:
        self._read: dict[str, Program] = {}

    async def of(self, store: Store, program: Program) -> dict[str, Program]:
        """Return the versions of a program that were ever served, without the one given; unreadable ones left out."""
        texts = {v: t for v, t in (await store.programs(program.name)).items() if v != program.version}
        for version, text in texts.items():
            if version not in self._read:
                try:
                    self._read[version] = await asyncio.to_thread(Program.parse, text, source=f"{program.name}.toml")
                except ProgramError:
                    log.warning(
                        "an earlier version cannot be read", extra={"program": program.name, "version": version}
                    )
        return {v: self._read[v] for v in texts if v in self._read}
