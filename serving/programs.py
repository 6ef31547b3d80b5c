"""Which programs are served, and from which files? And which were edited since?"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from optimizer.program import Fault, Program, ProgramError
from optimizer.programs import SHIPPED, read


class Source(NamedTuple):
    """A program with the text that its version is the hash of."""

    program: Program
    text: str


def find(name: str, *, folder: Path) -> Program:
    """Return a program by file, by its name in a folder, or by its shipped name, in this order.

    Raises:
        ProgramError: what was found is not a program; each fault with file, key and mend.
        ValueError: nothing was found.
    """
    text, source = text_of(name, folder=folder)
    return Program.parse(text, source=source)


def text_of(name: str, *, folder: Path) -> tuple[str, str]:
    """Return a program's text and where it was found, as `find` looks for it; ValueError where it is nowhere."""
    for file in (Path(name), folder / f"{name}.toml"):
        if file.suffix == ".toml" and file.is_file():
            return _text(file), str(file)
    if name in SHIPPED:
        return read(name), f"{name}.toml"
    own = sorted(f.stem for f in folder.glob("*.toml"))
    raise ValueError(
        f"no program {name!r}: expected a TOML file, one of {folder} ({', '.join(own) or 'empty'}),"
        f" or a shipped one ({', '.join(SHIPPED)})"
    )


def known(folder: Path) -> set[str]:
    """Return the names that `find` knows without a file's name: shipped ones, and those of a folder."""
    return {*SHIPPED, *(f.stem for f in folder.glob("*.toml"))}


def load(folder: Path) -> dict[str, Source]:
    """Return every program by name: those that ship, and those of a folder, which win over shipped ones.

    Raises:
        ProgramError: every fault of every file.
    """
    sources = [Source(Program.parse(text, source=f"{name}.toml"), text) for name, text in _shipped()]
    faults: list[Fault] = []
    owners: dict[str, Path] = {}
    for file in sorted(folder.glob("*.toml")):
        try:
            source = parse(file)
        except ProgramError as error:
            faults += error.faults
            continue
        name = source.program.name
        if name in owners:
            faults.append(Fault(str(file), "name", f"{name!r} is taken by {owners[name]}", "choose another name"))
        owners[name] = file
        sources.append(source)
    if faults:
        raise ProgramError(faults)
    return {s.program.name: s for s in sources}


def parse(file: Path) -> Source:
    """Read a program from a file."""
    text = _text(file)
    return Source(Program.parse(text, source=str(file)), text)


_UNREAD = (0, 0, 0)
"""The stamp of no file: what could not be read is tried again at each look."""


class Watch:
    """Notices programs of a folder that were edited. A faulty edit changes nothing and is told until it is mended.

    Args:
        folder: where programs of one's own are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Path, tuple[int, int, int]] = {}
        self._faults: dict[Path, list[Fault]] = {}
        self._owners: dict[Path, str] = {}

    @property
    def faults(self) -> list[Fault]:
        """What is wrong with the files as they are."""
        return [fault for faults in self._faults.values() for fault in faults]

    def look(self) -> list[Source]:
        """Return the programs of files that changed since the last look; all of them at the first."""
        changed = []
        files = {f: _stamp(f) for f in sorted(self._folder.glob("*.toml"))}
        for gone in self._stamps.keys() - files.keys():
            self._faults.pop(gone, None)
            if name := self._owners.pop(gone, None):  # otherwise nothing of it was ever served
                mend = f"restore it; {name!r} is served as it was until the service is started again"
                self._faults[gone] = [Fault(str(gone), "file", "was removed", mend)]
            del self._stamps[gone]
        for file, stamp in files.items():
            if stamp is not None and stamp != self._stamps.get(file):
                self._stamps[file] = stamp
                changed += self._read(file)
        return changed

    def refuse(self, source: Source, problem: str) -> None:
        """Tell of a program that was read and cannot be served."""
        for file, name in self._owners.items():
            if name == source.program.name:
                self._faults[file] = [Fault(str(file), "program", problem, "mend it; the one before goes on")]

    def again(self, source: Source) -> None:
        """Return a program at the next look too: it could not be taken up yet."""
        for file, name in self._owners.items():
            if name == source.program.name:
                self._stamps.pop(file, None)

    def _read(self, file: Path) -> list[Source]:
        try:
            source = parse(file)
            others = {name: f for f, name in self._owners.items() if f != file}
            if (owner := others.get(source.program.name)) is not None:
                fault = Fault(str(file), "name", f"{source.program.name!r} is taken by {owner}", "choose another name")
                raise ProgramError([fault])
        except ProgramError as error:
            self._faults[file] = list(error.faults)
            return []
        except FileNotFoundError:
            return []
        except OSError as error:
            self._stamps[file] = _UNREAD
            self._faults[file] = [
                Fault(str(file), "file", f"cannot be read: {error.strerror}", "make it a readable file")
            ]
            return []
        self._faults.pop(file, None)
        self._owners[file] = source.program.name
        return [source]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def publish(file: Path, *, folder: Path) -> tuple[Source, Path]:
    """Put a program where running services find it, whole or not at all; return it and its new place.

    It replaces the file that has declared this program so far.

    Raises:
        ProgramError: it is not a program; each fault with file, key and mend.
    """
    source = parse(file)
    name = source.program.name
    folder.mkdir(parents=True, exist_ok=True)
    target = next((f for f in sorted(folder.glob("*.toml")) if _declares(f, name)), folder / f"{name}.toml")
    number, fresh = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    with os.fdopen(number, "wb") as out:
        out.write(source.text.encode())
        out.flush()
        os.fsync(out.fileno())
    Path(fresh).chmod(0o644)
    Path(fresh).replace(target)
    return source, target


def _declares(file: Path, name: str) -> bool:
    try:
        return parse(file).program.name == name
    except ProgramError:
        return file.stem == name


def knowing(program: Program, event: str, *, earlier: Mapping[str, Program]) -> Program | None:
    """Return a program that also knows an event which only an earlier version of it declared; None if none did.

    So what became of a decision under the old version still counts. The event moves nobody to a stage that is gone.
    """
    for old in earlier.values():
        for declared in (e for e in old.events if e.name == event):
            stages = {s.name for s in program.stages}
            moves = {a: b for a, b in declared.moves.items() if a in stages and b in stages}
            return replace(program, events=(*program.events, replace(declared, moves=moves)))
    return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig", errors="replace")  # what could not be read is named as a fault


def _shipped() -> list[tuple[str, str]]:
    return [(name, read(name)) for name in SHIPPED]
