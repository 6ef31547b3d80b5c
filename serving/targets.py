"""Where do webhooks go? Targets come from settings only: the environment, and `webhooks.toml` in the home folder."""

import base64
import binascii
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

KINDS = ("decision.requested", "customer.progressed", "decision.made")
"""What can be subscribed to."""

LOOPBACK = "NUDGE_WEBHOOK_LOOPBACK"
"""The variable that lets webhooks go to this machine, over http as well: for tests and demos."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Target:
    """Who is told. Messages are signed with each of `secrets`, so that a secret can be changed without a gap.

    Args:
        name: what lists and logs call it.
        url: https; where `loopback`, http on this machine as well.
        secrets: as Standard Webhooks has them, the newest first. Never shown.
        kinds: what is sent: some of `KINDS`.
        programs: of which programs; of all where empty.
        loopback: whether it may be on this machine.
    """

    name: str
    url: str
    secrets: tuple[str, ...]
    kinds: tuple[str, ...] = KINDS[:1]
    programs: tuple[str, ...] = ()
    loopback: bool = False

    def __repr__(self) -> str:
        return f"Target({self.name!r})"

    def wants(self, kind: str, program: str) -> bool:
        """Return whether it is told of this."""
        return kind in self.kinds and (not self.programs or program in self.programs)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str
    secret: str | tuple[str, ...]
    events: tuple[str, ...] = KINDS[:1]
    programs: tuple[str, ...] = ()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    targets: tuple[_Row, ...] = ()


def load(given: Mapping[str, str], file: Path) -> tuple[Target, ...]:
    """Return the targets of the environment and of a file.

    Raises:
        ValueError: quotes the key, what was expected and what to type; never a secret.
    """
    loopback = given.get(LOOPBACK, "").lower() in ("1", "yes", "true")
    found = [*_from_environment(given, loopback=loopback), *_from_file(file, loopback=loopback)]
    names = [t.name for t in found]
    for name in sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"{file}: targets: {name!r} is there twice; rename or remove one of them")
    return tuple(found)


def _from_environment(given: Mapping[str, str], *, loopback: bool) -> Iterator[Target]:
    if url := given.get("NUDGE_WEBHOOK_URL"):
        kinds = _words(given.get("NUDGE_WEBHOOK_EVENTS", KINDS[0]))
        secrets = _words(given.get("NUDGE_WEBHOOK_SECRET", ""))
        yield _checked(Target("default", url, secrets, kinds, loopback=loopback), where="NUDGE_WEBHOOK_")


def _from_file(file: Path, *, loopback: bool) -> Iterator[Target]:
    if not file.is_file():
        return
    try:
        read = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}; mend it at that place") from None
    for row in read.targets:
        secrets = (row.secret,) if isinstance(row.secret, str) else row.secret
        target = Target(row.name, row.url, secrets, row.events, row.programs, loopback)
        yield _checked(target, where=f"{file}: targets[{row.name}].")


def _checked(target: Target, *, where: str) -> Target:
    upper = where.endswith("_")
    if not _NAME.fullmatch(target.name):
        raise ValueError(f'{where}name: {target.name!r} is not a name: use small letters, digits, "-" and "_"')
    _check_url(target, key=f"{where}{'URL' if upper else 'url'}")
    key = f"{where}{'SECRET' if upper else 'secret'}"
    if not target.secrets:
        raise ValueError(f"{key} is missing: make one with `nudge webhooks secret`, and give it to the receiver")
    for secret in target.secrets:
        _check_secret(secret, key=key)
    key = f"{where}{'EVENTS' if upper else 'events'}"
    unknown = [k for k in target.kinds if k not in KINDS]
    if unknown or not target.kinds:
        raise ValueError(f"{key}: {', '.join(unknown) or 'nothing'} cannot be sent: use some of {', '.join(KINDS)}")
    return target


def _check_url(target: Target, *, key: str) -> None:
    try:
        parts = urlsplit(target.url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{key} is not an address ({error}): write https://shop.example/hooks/nudge") from None
    if parts.username or parts.password:
        raise ValueError(f"{key} has a user or a password in it: leave them out, messages are signed")
    if parts.scheme == "http" and is_loopback(host):
        if not target.loopback:
            raise ValueError(f"{key} is on this machine: use https and a public address, or, to try, set {LOOPBACK}=1")
    elif parts.scheme != "https" or not host:
        raise ValueError(f"{key} starts with {parts.scheme!r}: expected https://, such as https://shop.example/hooks")


def _check_secret(secret: str, *, key: str) -> None:
    try:
        size = len(base64.b64decode(secret.removeprefix("whsec_") + "==", validate=False))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith("whsec_") or not 24 <= size <= 64:
        raise ValueError(f"{key}: expected whsec_ and 24 to 64 bytes in base64; make one with `nudge webhooks secret`")


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address stands for this machine.

    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("shop.example")
    (True, True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
