"""What in a text is not of the kind or in the range that was declared? All of it at once, and the rest as read."""

import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

Finding = tuple[str, str, str]
Decode = Callable[[type, object], object]
T = TypeVar("T", bound=msgspec.Struct)

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
"""What the names of levels, stages and events look like."""

UNNAMED = "unnamed-"
"""How the names begin that stand in for missing ones."""

_MOST = 500
"""How many faults of kind are named at most: a text with more is no program."""

_EXAMPLES: dict[type, str] = {
    bool: ": true or false",
    int: ", such as 3",
    float: ", such as 0.5",
    str: ', such as "words in quotes"',
    tuple: ', such as ["one", "two"]',
    dict: ', such as { one = "two" }',
}
_LIMITS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}

_SLIP = 0.8
"""How alike two words are, from 0 to 1, where one is taken for a slip of the other."""

_HARMLESS: dict[type, object] = {bool: False, int: 1, float: 1.0, str: "unnamed", tuple: [], dict: {}}


class Salvaged(NamedTuple, Generic[T]):
    """What could be read, what could not, and what further complaints would only follow from that.

    Args:
        read: the text as declared, with something harmless where it could not be read; None where that is hopeless.
        findings: (key, problem, mend) of each fault of kind or range.
        keys: where something stands in.
        words: what stands in, and the names of the rows that it stands in. names: those of them that are names of rows.
    """

    read: T | None
    findings: list[Finding]
    keys: frozenset[str]
    words: frozenset[str]
    names: frozenset[str]


class _Place(NamedTuple):
    """Where in a raw text: the way to it, what is declared for it, and for what it lies in; None: nothing is."""

    way: tuple[str | int, ...]
    hint: Any
    owner: Any


def salvage(raw: dict[str, Any], kind: type[T], *, decode: Decode) -> Salvaged[T]:
    """Convert a raw text; where that fails, note the fault, put something harmless in its place, and go on.

    Args:
        raw: as the TOML reader returns it; left as it is.
        kind: the declared struct.
        decode: msgspec's hook for kinds of the program's own.
    """
    text, findings, keys, words, names = deepcopy(raw), list[Finding](), set[str](), set[str](), set[str]()
    for _ in range(_MOST):
        try:
            read = msgspec.convert(text, kind, dec_hook=decode)
        except msgspec.ValidationError as error:
            place, finding = _misread(str(error), text, kind=kind, decode=decode)
            findings.append(finding)
            keys.add(finding[0])
            put = set(_stand_in(text, place))
            words |= put
            names |= put if place.way[-1] == "name" else set()
        else:
            return Salvaged(read, findings, frozenset(keys), frozenset(words), frozenset(names))
    return Salvaged(None, findings, frozenset(keys), frozenset(words), frozenset(names))


def _misread(said: str, text: dict[str, Any], *, kind: type, decode: Decode) -> tuple[_Place, Finding]:
    """Return the place that msgspec complains about, and the complaint in the words of this house."""
    problem, _, path = said.partition(" - at `$")
    place = _place(path.rstrip("`"), text, kind=kind, decode=decode)
    if match := re.match(r"Object (contains unknown|missing required) field `(.*)`", problem):
        owner = _bare(place.hint)
        known = get_type_hints(owner, include_extras=True)
        place = _Place((*place.way, match[2]), known.get(match[2]), owner)
        close = "".join(f": {name}?" for name in get_close_matches(match[2], [*known], n=1))
        what = ("is missing", "add it")
        if place.hint is None:
            what = ("is not a key that programs know", f"remove it or mend its spelling{close}")
        return place, (_key(place.way, text), *what)
    problem = problem[0].lower() + problem[1:].replace(" | null`", "`")
    if " got " not in problem and "enum" not in problem:
        problem += f", got {_at(text, place.way)!r}"
    return place, (_key(place.way, text), problem, _mend(place.hint, problem))


def _place(path: str, text: dict[str, Any], *, kind: type, decode: Decode) -> _Place:
    """Follow a path such as `.messages[...][...].subject`; where msgspec leaves out a key, find it."""
    way: list[str | int] = []
    at: Any = text
    hint: Any = kind
    owner: Any = None
    for name, index in re.findall(r"\.([\w-]+)|\[(\d+|\.\.\.)\]", path):
        owner = _bare(hint)
        step: str | int = name
        if name:
            hint = get_type_hints(owner, include_extras=True)[name]
        elif index == "...":
            hint = get_args(owner)[1]
            step = next(key for key, value in at.items() if not _fits(value, hint, decode=decode))
        else:
            step, hint = int(index), get_args(owner)[0]
        way.append(step)
        at = at[step]
    return _Place(tuple(way), hint, owner)


def _fits(value: object, hint: Any, *, decode: Decode) -> bool:
    try:
        msgspec.convert(value, hint, dec_hook=decode)
    except msgspec.ValidationError:
        return False
    return True


def _bare(hint: Any) -> Any:
    """Return a hint without limits and without `| None`."""
    while get_origin(hint) in (Annotated, Union, UnionType):
        hint = next(a for a in get_args(hint) if a is not NoneType)
    return hint


def _at(text: Any, way: Sequence[str | int]) -> Any:
    for step in way:
        text = text[step]
    return text


def _key(way: Sequence[str | int], text: dict[str, Any]) -> str:
    """Write `incentives[coupon].cost` for ("incentives", 3, "cost"): people think in names."""
    parts = []
    for i, step in enumerate(way):
        row = _at(text, way[: i + 1]) if isinstance(step, int) else None
        name = row.get("name", step) if isinstance(row, dict) else step
        parts.append(f"[{name}]" if isinstance(step, int) else f".{step}")
    return "".join(parts).lstrip(".")


def _mend(hint: Any, problem: str) -> str:
    """Say what to type where a value has the wrong kind or leaves its range."""
    bare = _bare(hint)
    if get_origin(bare) is Literal:
        return f"use one of {', '.join(get_args(bare))}"
    if NAME in problem:
        return 'use small letters, digits, "-" and "_"'
    if "regex" in problem:
        return 'use three capitals, such as "EUR"'
    if "length" in problem:
        return "write it out" if ">=" in problem else "say it shorter"
    if limit := re.search(r"(>=|<=|>|<) (-?[\d.e+]+)", problem):
        return f"give a value of that kind, {_LIMITS[limit[1]]} {limit[2]}"
    example = _EXAMPLES.get(get_origin(bare) or bare, "")
    return f"give a value of that kind{example}"


def _stand_in(text: dict[str, Any], place: _Place) -> Iterator[str]:
    """Leave out what is at a place, or put something harmless there; yield what further complaints may be about."""
    *way, last = place.way
    holder = _at(text, way)
    if (meant := _meant(place, holder)) is not None:
        holder[meant] = holder.pop(last)  # what a misspelt key holds is looked at, too
        return
    if _may_go(place):
        del holder[last]
        return
    given, row = holder.get(last), holder.get("name")
    holder[last] = _harmless(place, given)
    yield from (word for word in (given, row, holder[last]) if isinstance(word, str) and word)


def _meant(place: _Place, holder: dict[str, Any]) -> str | None:
    """Return the key that an unknown one is a slip of the pen for, if that is not there; None where there is none."""
    if place.hint is not None or not isinstance(place.owner, type):
        return None
    missing = get_type_hints(place.owner).keys() - holder.keys()
    return next(iter(get_close_matches(str(place.way[-1]), sorted(missing), n=1, cutoff=_SLIP)), None)


def _may_go(place: _Place) -> bool:
    """Whether what is at a place can be left out: an unknown key, an entry, or a field that has a default."""
    if place.hint is None or get_origin(place.owner) is not None:
        return True
    return not next(f.required for f in msgspec.structs.fields(place.owner) if f.name == place.way[-1])


def _harmless(place: _Place, given: object) -> object:
    bare = _bare(place.hint)
    if get_origin(bare) is Literal:
        return next(iter(get_close_matches(str(given), get_args(bare), n=1, cutoff=_SLIP)), get_args(bare)[0])
    if place.way[-1] == "name":
        slug = re.sub(r"[^a-z0-9_-]+", "-", str(given or "").lower()).strip("-_")[:60]
        return slug or f"{UNNAMED}{'-'.join(map(str, place.way[:-1]))}"
    return deepcopy(_HARMLESS.get(get_origin(bare) or bare, "1d"))
