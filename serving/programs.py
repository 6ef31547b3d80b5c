"""Which programs are served, and from which files?"""

from pathlib import Path
from typing import NamedTuple

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


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProgramError([Fault(str(file), "TOML", f"is not UTF-8 ({error})", "save it as UTF-8")]) from None


def _shipped() -> list[tuple[str, str]]:
    return [(name, read(name)) for name in SHIPPED]
