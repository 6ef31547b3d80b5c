"""Who may ask for what? API keys with scopes and programs, of which only hashes are kept, in a local file."""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from serving.problems import ProblemError, overloaded, unauthorized
from serving.rates import Buckets

Scope = Literal["decide", "report", "admin", "simulate"]
SCOPES: tuple[Scope, ...] = ("decide", "report", "admin", "simulate")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TOKEN = re.compile(r"nudge_([0-9a-f]{12})_[0-9a-f]{64}")
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_LONGEST_OVERLAP = 366 * 86_400.0
_LOOK_AGAIN = 0.25
"""Seconds after which the file is looked at again: a revoked key is useless by then."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an API key: never the key itself, only its SHA-256. No programs means all of them.

    `until` is when a key that was rotated ends, in seconds since the epoch.
    """

    name: str
    id: str
    sha256: str
    scopes: tuple[Scope, ...]
    programs: tuple[str, ...] = ()
    created_at: str = ""
    until: float | None = None

    def may_see(self, program: str) -> bool:
        """Whether the key is for this program."""
        return not self.programs or program in self.programs


class _File(msgspec.Struct, frozen=True):
    keys: tuple[Key, ...] = ()


ANYBODY = Key(name="loopback", id="", sha256="", scopes=SCOPES)
"""Who asks while no key was ever made: anybody on this machine, for anything."""


# What the command line does with the file.


def create(file: Path, name: str, *, scopes: Sequence[str], programs: Sequence[str] = ()) -> str:
    """Make a key and return it: the only time that it can be read. ValueError if the name is taken.

    Args:
        file: where the hashes are kept; made if need be, for its owner only.
        name: what the key is called in listings and metrics.
        scopes: some of `SCOPES`.
        programs: what it is limited to; all programs where empty.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"key name {name!r}: expected 1 to 64 of a-z, 0-9, _ and -, such as 'crm-prod'")
    if unknown := [s for s in scopes if s not in SCOPES] or ([] if scopes else ["none"]):
        raise ValueError(f"scopes {unknown!r}: expected one or more of {', '.join(SCOPES)}")
    with _changing(file) as keys:
        if name in (k.name for k in keys.values()):
            raise ValueError(f"a key named {name!r} exists: choose another name, or `nudge keys rotate {name}`")
        made, token = _made(name, scopes=tuple(scopes), programs=tuple(programs))  # type: ignore[arg-type]
        keys[made.id] = made
    return token


def rotate(file: Path, name: str, *, overlap: float = 0.0, now: float | None = None) -> str:
    """Replace a key by a new one of the same name, scopes and programs, and return it.

    Args:
        file: where the hashes are kept.
        name: of the key.
        overlap: seconds for which the old one goes on, while clients change over; 0 ends it at once.
        now: seconds since the epoch; by the clock where omitted.
    """
    if overlap > _LONGEST_OVERLAP:
        raise ValueError("an overlap is at most 366 days: a key that goes on for ever is better left alone")
    until = (time.time() if now is None else now) + overlap
    with _changing(file) as keys:
        old = _named(keys, name, file=file)
        for key in [k for k in keys.values() if k.name == name]:
            if overlap <= 0:
                del keys[key.id]
            else:
                keys[key.id] = replace(key, until=until if key.until is None else min(key.until, until))
        made, token = _made(name, scopes=old.scopes, programs=old.programs)
        keys[made.id] = made
    return token


def revoke(file: Path, name: str) -> None:
    """Forget a key, and those that it replaced. ValueError if there is none of that name."""
    with _changing(file) as keys:
        _named(keys, name, file=file)
        for key in [k for k in keys.values() if k.name == name]:
            del keys[key.id]


def listed(file: Path) -> list[dict[str, Any]]:
    """Return name, scopes, programs and age of each key: nothing that would let anybody in."""
    shown = ("name", "scopes", "programs", "created_at")
    ends = {
        k.id: datetime.fromtimestamp(k.until, UTC).isoformat(timespec="seconds") for k in read(file) or () if k.until
    }
    return [
        {k: getattr(key, k) for k in shown} | ({"ends_at": ends[key.id]} if key.id in ends else {})
        for key in read(file) or ()
    ]


def read(file: Path) -> tuple[Key, ...] | None:
    """Return the keys of a file, or None where there is no file. ValueError if it is not as it was written."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_File).keys
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(
            f"{file}: not a file of API keys ({error}); restore it, or remove it and make keys anew"
        ) from None


def refuse_public(host: str, keys_file: Path) -> None:
    """Raise ValueError where a service without keys would listen on an address that others can reach."""
    if read(keys_file) or is_loopback(host):
        return
    raise ValueError(
        f"--host {host}: refuses to listen where others can reach it while there are no API keys in {keys_file};"
        " make one first with `nudge keys create NAME`, or listen on 127.0.0.1"
    )


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("example.org")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _made(name: str, *, scopes: tuple[Scope, ...], programs: tuple[str, ...]) -> tuple[Key, str]:
    made = secrets.token_hex(6)
    token = f"nudge_{made}_{secrets.token_hex(32)}"
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Key(name=name, id=made, sha256=_digest(token), scopes=scopes, programs=programs, created_at=at), token


def _digest(token: str) -> str:
    # The key has 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess.
    return hashlib.sha256(token.encode()).hexdigest()


def _named(keys: MutableMapping[str, Key], name: str, *, file: Path) -> Key:
    """Return the newest key of a name."""
    named = [k for k in keys.values() if k.name == name]
    if not named:
        known = dict.fromkeys(k.name for k in keys.values())
        raise ValueError(f"{file}: no key named {name!r}; there are: {', '.join(known) or 'none'}")
    return named[-1]


@contextmanager
def _changing(file: Path) -> Iterator[dict[str, Key]]:
    """Yield the keys by id, and write them back: all or nothing, one process at a time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = {k.id: k for k in read(file) or ()}
        yield keys
        text = msgspec.json.format(msgspec.json.encode(_File(tuple(keys.values()))), indent=1)
        replacement = file.with_suffix(".new")
        replacement.unlink(missing_ok=True)
        with os.fdopen(os.open(replacement, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        replacement.replace(file)


# What the service does with it.


class Gate:
    """Lets requests in by key, scope and rate.

    Without a file of keys it is open to this machine only. Once there was one it never opens again by itself: a file
    that vanishes or breaks lets nobody in.

    Args:
        file: where the hashes are.
        rate: rows a second for one key; twice as many at once.
        shared: where several workers keep count together; None for one process.
        clock: seconds, never going back.
        today: seconds since the epoch.
    """

    def __init__(
        self,
        file: Path,
        *,
        rate: float,
        shared: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._rate = rate
        self._clock, self._today = clock, today
        self._looked_at = -float("inf")
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] | None = None
        self._buckets = Buckets(shared, rate=rate, most=2.0 * rate)
        self._look(first=True)

    @property
    def is_open(self) -> bool:
        """Whether no keys were ever made, so that this machine may do anything."""
        return self._keys is None

    def knows(self, connection: MutableMapping[str, Any]) -> bool:
        """Whether a request has a key, whatever its scopes, or needs none."""
        try:
            self.admit(connection, None)
        except ProblemError:
            return False
        return True

    def admit(self, connection: MutableMapping[str, Any], needed: Scope | None) -> Key:
        """Return the key of a request (its ASGI scope) if it may do what is needed; raise the problem if not.

        Where no scope is needed any key will do.
        """
        self._look()
        if self._keys is None:
            return self._anybody(connection)
        token = _bearer(connection["headers"])
        if token is None:
            raise unauthorized("no API key: send the header `Authorization: Bearer nudge_...`")
        match = _TOKEN.fullmatch(token)
        key = self._keys.get(match[1]) if match else None
        if not hmac.compare_digest(_digest(token), key.sha256 if key else "0" * 64) or key is None:
            raise unauthorized("this API key is not known here: it may have been revoked or rotated")
        if key.until is not None and self._today() >= key.until:
            raise unauthorized(f"key {key.name!r} was rotated, and its overlap has ended: use the new one")
        if needed is not None and needed not in key.scopes:
            raise ProblemError(
                403,
                "forbidden",
                f"key {key.name!r} has the scopes {', '.join(key.scopes)}; this needs {needed!r}:"
                f" make another with `nudge keys create NAME --scope {needed}`",
            )
        return key

    def charge(self, key: Key, rows: int) -> None:
        """Take rows from what a key may send; raise 429 where nothing is left."""
        if not key.id or not rows:
            return
        # By name: a key and the one that replaces it are one client.
        left = self._buckets.take(key.name, rows, now=self._clock())
        if left <= 0:
            seconds = int(-left / self._rate) + 1
            raise overloaded(f"key {key.name!r} sends more than {self._rate:g} rows a second", seconds=seconds)

    def _anybody(self, connection: MutableMapping[str, Any]) -> Key:
        client = connection.get("client")
        host = next((v.decode("latin-1") for k, v in connection["headers"] if k == b"host"), "")
        name = _host(host)
        # The name is checked too: a web page elsewhere can point its own name at this machine; and where a page that
        # sends something comes from, which its browser says.
        origins = [v.decode("latin-1").partition("://")[2] for k, v in connection["headers"] if k == b"origin"]
        names = [name, *(_host(origin) for origin in origins)]
        if client is None or not is_loopback(client[0]) or not _LOOPBACK_HOSTS.issuperset(names):
            raise unauthorized(
                "there are no API keys yet, so only this machine may ask, as http://127.0.0.1;"
                " make a key with `nudge keys create NAME`"
            )
        return ANYBODY

    def _look(self, *, first: bool = False) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_AGAIN:
            return
        self._looked_at = now
        stamp = _stamp(self._file)
        if stamp == self._stamp and not first:
            return
        self._stamp = stamp
        try:
            found = read(self._file)
        except ValueError:
            if first:
                raise
            found = ()
        if found is not None:
            self._keys = {k.id: k for k in found}
        elif self._keys is not None:
            self._keys = {}


def _host(place: str) -> str:
    """Return the name of a host, without its port."""
    return place if place.endswith("]") else place.rsplit(":", 1)[0]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _bearer(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if kind.lower() == "bearer" else None
    return None
