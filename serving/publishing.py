"""How does a policy reach the running service? Packed and signed by whoever promotes it, checked before it serves.

What is published is a saved folder, its two files under fixed names, with an HMAC over them and over what they are
for. The API process looks at the version each second, loads and tries the new policy in a thread, and swaps it in
between two batches; a policy that fails keeps the old one serving. The last good copy stays on disk, still signed.
"""

import asyncio
import hashlib
import hmac
import io
import logging
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace as replace_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple, Protocol, cast

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.lib import format as npy

import policies
from optimizer.actions import HOLD, Bools, Floats
from optimizer.customer import cohort, encode, features, new_customer
from optimizer.engine import CHALLENGER, CHAMPION, EVALUATION, Chooser
from optimizer.guardrails import Shared
from optimizer.policy import Policy
from optimizer.program import Program
from policies.fixed import Uniform
from serving.metrics import Laps
from serving.store import Published, StoreError

LARGEST = 64 << 20
"""Bytes that a published policy may take."""

_FILES = ("policy.json", "arrays.npz")
_MAGIC = b"nudge policy 1\n"
_KINDS = "biufSU"
"""Kinds of arrays that are plain numbers or text: no objects, so nothing to run."""
_MOST_AXES = 4
_TRY_AGAIN = 30.0
"""Seconds after which a policy that was refused is looked at again."""
_LEAST_SECRET = 32

PAUSES = "policy="
"""How a pause names the arm whose policy is stopped."""

log = logging.getLogger("nudge.publishing")


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """A policy as it travels: what it is for, and the files of its saved folder."""

    program: str
    arm: str
    version: str
    files: dict[str, bytes]


class Slot(NamedTuple):
    """Where a policy serves."""

    program: str
    arm: str


class Shelf(Protocol):
    """What publishing needs of the store."""

    async def publish_policy(self, program_name: str, arm: str, policy: Published) -> None: ...

    async def policy_version(self, program_name: str, arm: str) -> str | None: ...

    async def policy(self, program_name: str, arm: str) -> Published | None: ...


Swap = Callable[[Slot, Chooser], None]
"""Takes a policy that passed its checks into service."""


def secret(file: Path, *, given: str = "") -> bytes:
    """Return what signs policies: the given one, or that of a file, which is made for its owner only if need be."""
    if given:
        return given.encode()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_hex(32))
        try:
            os.link(fresh, file)  # whoever links first has made it, and nobody sees half of it
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    text = file.read_text().strip()
    if len(text) < _LEAST_SECRET:
        raise ValueError(
            f"{file}: holds {len(text)} characters, expected {_LEAST_SECRET} or more;"
            " remove it to have one made, and publish the champion again"
        )
    return text.encode()


def pack(folder: Path, slot: Slot, *, version: str, secret: bytes) -> bytes:
    """Return a saved policy as signed bytes; ValueError if it is too large or not a saved policy."""
    files = {name: _file(folder / name) for name in _FILES}
    body = msgspec.msgpack.encode(Packed(slot.program, slot.arm, version, files))
    if len(body) > LARGEST:
        raise ValueError(f"{folder}: the policy takes {len(body)} bytes, more than the {LARGEST} that are published")
    return _MAGIC + _signature(body, secret) + body


def unpack(payload: bytes, slot: Slot, *, version: str, secret: bytes) -> dict[str, bytes]:
    """Return the files of a published policy by name; ValueError unless it was signed for this slot and version."""
    if len(payload) > LARGEST + 64 or not payload.startswith(_MAGIC):
        raise ValueError(f"{len(payload)} bytes that are not a published policy; publish it again")
    signature, body = payload[len(_MAGIC) : len(_MAGIC) + 32], payload[len(_MAGIC) + 32 :]
    if not hmac.compare_digest(signature, _signature(body, secret)):
        raise ValueError(
            "the signature is wrong: it was changed on its way, or signed with another secret;"
            " publish it again with the secret (NUDGE_SECRET, or the file `secret` of NUDGE_HOME) of this service"
        )
    packed = msgspec.msgpack.decode(body, type=Packed)
    if (packed.program, packed.arm, packed.version) != (*slot, version):
        raise ValueError(
            f"it was signed for {packed.program}, {packed.arm}, version {packed.version!r},"
            f" and found under {slot.program}, {slot.arm}, version {version!r}; publish it again"
        )
    if set(packed.files) != set(_FILES):
        raise ValueError(f"it has the files {sorted(packed.files)}, expected {sorted(_FILES)}; save it again")
    check_arrays(packed.files["arrays.npz"])
    return packed.files


async def publish(store: Shelf, folder: Path, slot: Slot, *, version: str, secret: bytes) -> None:
    """Put a saved policy where every API process finds it within a second."""
    payload = pack(folder, slot, version=version, secret=secret)
    await store.publish_policy(slot.program, slot.arm, Published(version, payload))


def check_arrays(packed: bytes) -> None:
    """Raise ValueError unless an npz holds plain arrays, each as long as its header says. Reads headers only."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as members:
            for member in members.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(packed):
                    raise ValueError(
                        f"array {member.filename!r} is compressed, so its size is not known; save it again"
                    )
                with members.open(member) as stream:
                    _check_header(stream, name=member.filename, size=member.file_size)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"its arrays cannot be read ({error}); save it again") from None


def _check_header(stream: IO[bytes], *, name: str, size: int) -> None:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind not in _KINDS or len(shape) > _MOST_AXES:
        raise ValueError(f"array {name!r} is {len(shape)}-dimensional of {dtype}; expected plain numbers or text")
    length = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if stream.tell() + length != size:
        raise ValueError(f"array {name!r} of shape {shape} should take {length} bytes, and does not; save it again")


def load(files: Mapping[str, bytes], program: Program, *, version: str) -> Chooser:
    """Return a policy that has passed its trial; ValueError or whatever the policy raises if it has not."""
    name = msgspec.json.decode(files["policy.json"], type=_Described).kind
    with TemporaryDirectory(prefix="nudge-policy-") as folder:
        for file in _FILES:
            (Path(folder) / file).write_bytes(files[file])
        policy = policies.load(Path(folder), program.space)
    chooser = Chooser(policy, name, version)
    try_out(chooser, program)
    return chooser


class _Described(msgspec.Struct, frozen=True):
    kind: str


def uniform(program: Program) -> Chooser:
    """Return what serves while nothing was ever published: the first logger."""
    return Chooser(Uniform(program.space), "uniform", "0")


def in_force(
    program: Program, choosers: Mapping[str, Chooser], shared: Shared, *, laps: Laps
) -> tuple[dict[str, Chooser], Shared]:
    """Return the policies that decide now, timed, and what guardrails read: pauses of levels, not of policies.

    While a policy is paused (`policy=champion`), its arm is decided by the champion, or by the first logger.
    """
    stopped = {level.removeprefix(PAUSES) for level in shared.paused if level.startswith(PAUSES)}
    if stopped:
        shared = replace_dataclass(shared, paused=frozenset(p for p in shared.paused if not p.startswith(PAUSES)))
        choosers = {arm: chooser for arm, chooser in choosers.items() if arm not in stopped}
        choosers.setdefault(CHAMPION, uniform(program))
    return {arm: c._replace(policy=cast("Policy", _Timed(c.policy, laps))) for arm, c in choosers.items()}, shared


class _Timed:
    """A policy whose time is told apart from that of what is before and after it."""

    def __init__(self, policy: Policy, laps: Laps) -> None:
        self._policy, self._laps = policy, laps

    def probabilities(self, contexts: Floats, allowed: Bools, prices: Floats) -> Floats:
        self._laps.mark("mask")
        answer = self._policy.probabilities(contexts, allowed, prices)
        self._laps.mark("score")
        return answer


def try_out(chooser: Chooser, program: Program) -> None:
    """Raise ValueError unless a policy gives distributions over every kind of mask; warms it as well."""
    people = [replace(new_customer(program, s.name, at=0.0), stage=s.name) for s in program.stages]
    rows = cohort(program, people, at=[0.0] * len(people))
    seen = encode(program, features(program, rows))
    for mask in _masks(program):
        allowed = np.repeat(mask[None, :], len(seen), axis=0)
        got = np.asarray(chooser.policy.probabilities(seen, allowed, np.zeros(program.space.k)))
        _check_distribution(got, allowed, who=f"{chooser.name} version {chooser.version}")


def _masks(program: Program) -> Iterator[Bools]:
    k = program.space.k
    every = np.ones(k, dtype=np.bool_)
    yield every
    yield np.arange(k) == HOLD
    yield np.arange(k) % 2 == 0
    yield (np.arange(k) == HOLD) | (np.arange(k) == k - 1)
    for factor in range(3):
        yield (program.space.levels[:, factor] == 0) | (np.arange(k) == HOLD)


def _check_distribution(got: Floats, allowed: Bools, *, who: str) -> None:
    if got.shape != allowed.shape:
        raise ValueError(f"{who} answers with shape {got.shape}, expected {allowed.shape}; train it for this program")
    if not np.isfinite(got).all() or (got < 0).any() or got[~allowed].any():
        raise ValueError(f"{who} gives negative or infinite chances, or chances to blocked actions; train it again")
    if not np.allclose(got.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError(f"{who} gives chances that do not add up to 1; train it again")


class Follower:
    """Keeps the policies in service those that are published.

    Args:
        programs: the programs served, by name.
        folder: where the last good copy of each is kept.
        secret: what policies are signed with.
        swap: takes a policy into service.
        refused: is told of a slot whose new policy failed.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        *,
        folder: Path,
        secret: bytes,
        swap: Swap,
        refused: Callable[[Slot], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._programs = dict(programs)
        self._folder = folder
        self._secret = secret
        self._swap = swap
        self._refused = refused
        self._clock = clock
        self._serving: dict[Slot, str] = {}
        self._bad: dict[Slot, tuple[str, float]] = {}

    @property
    def slots(self) -> Sequence[Slot]:
        """Every arm that some customer of some program is in and that a policy serves."""
        found = []
        for name, program in self._programs.items():
            shares = program.experiment
            arms = ((CHAMPION, 1.0), (CHALLENGER, shares.challenger), (EVALUATION, shares.evaluation))
            found += [Slot(name, arm) for arm, share in arms if share > 0]
        return found

    def restore(self) -> None:
        """Take the last good copies on disk into service: what decides until the store says otherwise."""
        for slot in self.slots:
            file = self._file(slot)
            if not file.is_file():
                continue
            try:
                kept = msgspec.msgpack.decode(file.read_bytes(), type=tuple[str, bytes])
                self._take(slot, kept[0], self._load(slot, Published(*kept)))
            except Exception as error:  # noqa: BLE001  (a bad copy must not keep the service from starting)
                self._complain(slot, "the copy on disk", error)

    async def run(self, store: Shelf, *, every: float) -> None:
        """Look for new policies until cancelled."""
        while True:
            await self.look(store)
            await asyncio.sleep(every)

    async def look(self, store: Shelf) -> None:
        """Take into service what is published and not served yet; where the store or a policy fails, keep the old."""
        for slot in self.slots:
            try:
                version = await store.policy_version(*slot)
                if version is None or version == self._serving.get(slot) or self._is_bad(slot, version):
                    continue
                published = await store.policy(*slot)
            except StoreError:
                return
            if published is not None:
                await self._change(slot, published)

    async def prepare(self, program: Program, store: Shelf) -> dict[str, Chooser]:
        """Return the policies of a new version of a program by arm: what serves the old one, aligned by name.

        Raises:
            ValueError: a policy that serves cannot decide under the new version.
        """
        found = {CHAMPION: uniform(program)}
        for slot in (s for s in self.slots if s.program == program.name and s in self._serving):
            kept = [p for p in (await store.policy(*slot), await asyncio.to_thread(self._kept, slot)) if p is not None]
            serving = [p for p in kept if p.version == self._serving[slot]]
            if not serving:
                raise ValueError(
                    f"the policy of {slot.arm}, version {self._serving[slot]}, is not at hand; promote again"
                )
            found[slot.arm] = await asyncio.to_thread(self._load, slot, serving[0], program)
        return found

    def adopt(self, program: Program) -> None:
        """Load what is published from now on for this version of a program."""
        self._programs[program.name] = program
        self._bad = {slot: bad for slot, bad in self._bad.items() if slot.program != program.name}

    @property
    def refusals(self) -> dict[Slot, str]:
        """The version of each slot that was published and refused, while it is not replaced."""
        return {slot: version for slot, (version, _) in self._bad.items() if self._serving.get(slot) != version}

    async def _change(self, slot: Slot, published: Published) -> None:
        try:
            chooser = await asyncio.to_thread(self._load, slot, published)
            self._take(slot, published.version, chooser)
            self._bad.pop(slot, None)
            await asyncio.to_thread(self._keep, slot, published)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the old one goes on)
            self._bad[slot] = (published.version, self._clock())
            self._complain(slot, published.version, error)

    def _load(self, slot: Slot, published: Published, program: Program | None = None) -> Chooser:
        files = unpack(published.payload, slot, version=published.version, secret=self._secret)
        return load(files, program or self._programs[slot.program], version=published.version)

    def _kept(self, slot: Slot) -> Published | None:
        try:
            return Published(*msgspec.msgpack.decode(self._file(slot).read_bytes(), type=tuple[str, bytes]))
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _take(self, slot: Slot, version: str, chooser: Chooser) -> None:
        self._swap(slot, chooser)
        self._serving[slot] = version
        log.info("policy in service", extra={"program": slot.program, "arm": slot.arm, "version": version})

    def _keep(self, slot: Slot, published: Published) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._file(slot).with_suffix(f".{secrets.token_hex(4)}")
        with fresh.open("wb") as out:
            out.write(msgspec.msgpack.encode(tuple(published)))
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._file(slot))

    def _is_bad(self, slot: Slot, version: str) -> bool:
        known, since = self._bad.get(slot, ("", 0.0))
        return known == version and self._clock() - since < _TRY_AGAIN

    def _complain(self, slot: Slot, version: str, error: Exception) -> None:
        self._refused(slot)
        log.error(
            "policy refused, the old one stays",
            extra={"program": slot.program, "arm": slot.arm, "version": version, "reason": str(error)},
        )

    def _file(self, slot: Slot) -> Path:
        return self._folder / f"{slot.program}.{slot.arm}.policy"


def _file(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, so {path.parent} holds no saved policy")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: {size} bytes, more than the {LARGEST} that are published")
    return path.read_bytes()


def _signature(body: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, _MAGIC + body, hashlib.sha256).digest()
