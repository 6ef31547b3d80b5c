"""Which lines of a text are no TOML? All of them at once, and the rest as it was meant."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

_MOST = 50
"""How many lines are mended at most: a text with more is no TOML."""

_MEND = "mend the syntax at that place"

_REPLACED = "\ufffd"
"""What stands for bytes that are no UTF-8, where a file was read all the same."""

_PAIR = re.compile(r"(\s*[\w.-]+)\s*[=:]+\s*(.*?)\s*,?\s*(?:#.*)?")
_HEADER = re.compile(r"\s*(\[{1,2})\s*([\w.\s-]*\w)\s*\]*\s*(?:#.*)?")
_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb`"


class Parsed(NamedTuple):
    """The tables of a text, as far as they could be read, and (problem, mend) of each line that is no TOML."""

    tables: dict[str, Any] | None
    faults: tuple[tuple[str, str], ...]


def parse(text: str) -> Parsed:
    r"""Read TOML; a line that is none is named, taken for what it was meant to be, or left out, and the rest is read.

    >>> found = parse("a = 1\nb = warm\n[c\nd = true")
    >>> found.tables
    {'a': 1, 'b': 'warm', 'c': {'d': True}}
    >>> [mend for _, mend in found.faults]
    ['mend the syntax at that place: write b = "warm"', 'mend the syntax at that place: write [c]']
    """
    if "\0" in text:
        return Parsed(None, (("is no text", "save it as UTF-8"),))
    lines = text.split("\n")
    faults = [
        (f"is not UTF-8 (at line {i})", "save it as UTF-8") for i, line in enumerate(lines, 1) if _REPLACED in line
    ]
    touched: set[int] = set()
    for _ in range(_MOST):
        try:
            return Parsed(tomllib.loads("\n".join(lines)), tuple(faults))
        except tomllib.TOMLDecodeError as error:
            problem = str(error)
        at = _line(problem, lines)
        if at in touched and not lines[at].strip():
            break
        meant = None if at in touched else next(_meant(lines[at], problem), None)
        touched.add(at)
        if meant is None:
            faults.append((problem, f"{_MEND}, or remove that line"))
            _leave_out(lines, at)
        else:
            faults.append((problem, f"{_MEND}: write {meant.strip()}"))
            lines[at] = meant
    return Parsed(None, tuple(faults) or (("is no TOML", _MEND),))


def _line(problem: str, lines: list[str]) -> int:
    """Return the line to mend, counted from 0: what was opened and not closed is noticed only on a later line."""
    match = re.search(r"at line (\d+), column (\d+)", problem)
    at = int(match[1]) - 1 if match else len(lines) - 1
    if "Unclosed array" in problem and not (match and int(match[2]) > 1):
        at -= 1 if match else 0
        while at > 0 and not lines[at].strip():
            at -= 1
    elif not match:  # a string that goes on to the end begins where the last one does
        at = max((i for i, line in enumerate(lines) if re.search(r"\"\"\"|'''|'", line)), default=at)
    return at


def _meant(line: str, problem: str) -> Iterator[str]:
    """Yield what a line was meant to be, if it is read as such."""
    if "twice" in problem or "overwrite" in problem:
        return
    for guess in _guesses(line, problem):
        try:
            tomllib.loads(guess)
        except tomllib.TOMLDecodeError:
            continue
        if guess != line:
            yield guess
    if "Unclosed array" in problem and "=" not in line:
        yield line + "]"


def _guesses(line: str, problem: str) -> Iterator[str]:
    if "Unclosed array" in problem:
        yield line + "]"
    if header := _HEADER.fullmatch(line):
        yield header[1] + header[2] + "]" * len(header[1])
    pair = _PAIR.fullmatch(line)
    if pair is None or not pair[2]:
        return
    key, value = pair[1], pair[2]
    yield f"{key} = {value}"
    yield f"{key} = {value.lower()}"
    if value[0] in "[{":
        words = ", ".join(_quoted(word) for word in re.findall(r"[\w-]+", value))
        yield f"{key} = [{words}]"
        yield f"{key} = {value}}}"
    elif not re.fullmatch(r"[\d.,_ +-]+", value):
        yield f"{key} = {_quoted(value)}"


def _quoted(text: str) -> str:
    bare = text.strip(_QUOTES).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{bare}"'


def _leave_out(lines: list[str], at: int) -> None:
    """Blank a line; where it heads a table, all of that."""
    heads = lines[at].lstrip().startswith("[")
    lines[at] = ""
    for i in range(at + 1, len(lines) if heads else 0):
        if lines[i].lstrip().startswith("["):
            break
        lines[i] = ""
