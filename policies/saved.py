"""How is a policy kept? As plain data, `policy.json` and `arrays.npz`, which is checked before it is believed."""

import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from optimizer.actions import ActionSpace

FORMAT = 1
LARGEST_FILE = 256 * 2**20
"""Bytes; a larger file is refused unread."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Saved:
    """What a policy is, as plain data.

    Args:
        kind: the policy's name in `policies.KINDS`.
        space: the actions and features that it was made for.
        settings: what JSON can hold.
        arrays: finite numbers, by name.
    """

    kind: str
    space: ActionSpace
    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def setting(self, name: str, kind: type) -> Any:
        """Return a setting; ValueError if it is missing or of another kind."""
        value = self.settings.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"saved {self.kind} policy: {name} = {value!r}, expected {kind.__name__}; train it again")
        return value

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return an array; ValueError if it is missing or has another shape. -1 stands for any length."""
        array = self.arrays.get(name)
        if array is None or not _fits(array.shape, shape):
            got = "missing" if array is None else f"of shape {array.shape}"
            raise ValueError(f"saved {self.kind} policy: array {name!r} is {got}, expected {shape}; train it again")
        return array

    def part(self, name: str) -> "Saved":
        """Return a policy that is kept inside this one, as `within` put it there."""
        inside = self.setting(name, dict)
        arrays = {k.removeprefix(f"{name}/"): v for k, v in self.arrays.items() if k.startswith(f"{name}/")}
        return Saved(str(inside.get("kind")), self.space, _mapping(inside.get("settings"), name, self.kind), arrays)


class Kept(ABC):
    """What can be kept: a policy says what it is as plain data, and how it is made of it again."""

    name: ClassVar[str]

    @abstractmethod
    def packed(self) -> Saved:
        """Return what `save` writes."""

    @classmethod
    @abstractmethod
    def unpacked(cls, packed: Saved, space: ActionSpace) -> Self:
        """Return what `load` reads."""

    def save(self, folder: Path) -> None:
        """Write plain data into an existing, empty folder."""
        write(folder, self.packed())

    @classmethod
    def load(cls, folder: Path, space: ActionSpace) -> Self:
        """Read it back, aligned by name to the actions and features of `space`."""
        return cls.unpacked(read(folder, kind=cls.name), space)


def within(parts: Mapping[str, Saved]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the settings and the arrays that keep several policies of one space inside another."""
    settings = {name: {"kind": p.kind, "settings": dict(p.settings)} for name, p in parts.items()}
    arrays = {f"{name}/{key}": array for name, p in parts.items() for key, array in p.arrays.items()}
    return settings, arrays


def names(space: ActionSpace) -> dict[str, list[str]]:
    """Return the names of a space, as JSON keeps them."""
    return {key: list(getattr(space, key)) for key in ("incentives", "tones", "timings", "features")}


def whole(space: ActionSpace) -> dict[str, Any]:
    """Return all that a space declares, as JSON keeps it: whoever has no program decides by that."""
    return {**names(space), "costs": list(space.costs), "ladders": [list(rungs) for rungs in space.ladders]}


def space_of(named: Mapping[str, Sequence[Any]]) -> ActionSpace:
    """Return the space that has these names; without costs and ladders where they are not told."""
    return ActionSpace(
        incentives=tuple(named["incentives"]),
        tones=tuple(named["tones"]),
        timings=tuple(named["timings"]),
        features=tuple(named["features"]),
        costs=tuple(map(float, named.get("costs", ()))),
        ladders=tuple(map(tuple, named.get("ladders", ()))),
    )


def write(folder: Path, saved: Saved) -> None:
    """Write a policy into an existing folder. The same policy gives the same bytes."""
    for name, array in saved.arrays.items():
        if not _finite(array):
            raise ValueError(f"{saved.kind} policy: array {name!r} is not finite, so it is not saved")
    packed = io.BytesIO()
    np.savez(packed, **dict(saved.arrays))  # type: ignore[arg-type]  # numpy types its flag among the arrays
    described = {
        "format": FORMAT,
        "kind": saved.kind,
        "space": whole(saved.space),
        "settings": dict(saved.settings),
        "arrays": hashlib.sha256(packed.getvalue()).hexdigest(),
    }
    described["digest"] = _digest(described)
    (folder / "arrays.npz").write_bytes(packed.getvalue())
    (folder / "policy.json").write_text(json.dumps(described, indent=1, allow_nan=False) + "\n")


def read(folder: Path, *, kind: str | None = None) -> Saved:
    """Read a policy.

    Args:
        folder: where `write` put it.
        kind: the kind that it must be; any where omitted.

    Raises:
        ValueError: naming the file, if anything in it is not as it was written.
    """
    described = _described(folder / "policy.json")
    found = str(described.get("kind"))
    if kind is not None and found != kind:
        raise ValueError(f"{folder}: holds a {found!r} policy, expected {kind!r}; use policies.load")
    arrays = _arrays(folder / "arrays.npz", digest=described.get("arrays"))
    try:
        space = space_of(described["space"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'policy.json'}: space is malformed ({error}); train it again") from None
    return Saved(found, space, _mapping(described.get("settings"), "settings", found), arrays)


def _described(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or not JSON ({error}); restore it or train again") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        version = described.get("format") if isinstance(described, dict) else None
        raise ValueError(f"{path}: format {version!r}, expected {FORMAT}; train it again with this version")
    if described.pop("digest", None) != _digest(described):
        raise ValueError(f"{path}: was changed after it was written; restore it or train again")
    return described


def _arrays(path: Path, *, digest: object) -> dict[str, Array]:
    raw = _bytes(path)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{path}: truncated or changed after it was written; restore it or train again")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as members:
            if any(m.compress_type != zipfile.ZIP_STORED for m in members.infolist()):
                raise ValueError(f"{path}: is compressed, so its size is not known; save it again")
        with np.load(io.BytesIO(raw), allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: {error}; restore it or train again") from None
    for name, array in arrays.items():
        if not _finite(array):
            raise ValueError(f"{path}: array {name!r} holds numbers that are not finite; train it again")
    return arrays


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, so {path.parent} holds no saved policy")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: {size} bytes, more than the {LARGEST_FILE} that a policy may take")
    return path.read_bytes()


def _digest(described: Mapping[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _mapping(value: object, name: str, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        message = f"saved {kind} policy: {name} = {value!r}, expected a table; train it again"
        raise ValueError(message)  # noqa: TRY004  (what is wrong is the file)
    return value


def _finite(array: Array) -> bool:
    return array.dtype.kind in "biuSU" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def _fits(got: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(got) == len(expected) and all(e in (-1, g) for g, e in zip(got, expected, strict=True))
