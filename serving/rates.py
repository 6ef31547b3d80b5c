"""How much has a key sent? A bucket for each key, shared by the workers of one service through a file in memory."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

_SLOT = struct.Struct("8sdd")
"""Who, what is left, and since when."""

SLOTS = 4_096
"""Keys that can be told apart; more would share a bucket with another."""


class Buckets:
    """What each key may still send at once; it fills up with time.

    Args:
        file: shared with other processes of this machine; None for this process alone.
        rate: rows a second.
        most: rows at once.
    """

    def __init__(self, file: Path | None, *, rate: float, most: float) -> None:
        self._rate, self._most = rate, most
        self._file = -1
        if file is not None:
            self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, SLOTS * _SLOT.size)
        self._memory = mmap.mmap(self._file, SLOTS * _SLOT.size)

    def take(self, name: str, rows: int, *, now: float) -> float:
        """Take rows from a key's bucket unless it is empty; return what was left before, not above 0 where refused.

        One request may overdraw, so that a large one gets its turn; the next ones wait until it is paid off.
        """
        who = blake2b(name.encode(), digest_size=8).digest()
        with self._locked():
            at = self._find(who)
            known, left, since = _SLOT.unpack_from(self._memory, at)
            left = min(left + max(now - since, 0.0) * self._rate, self._most) if known == who else self._most
            _SLOT.pack_into(self._memory, at, who, left - rows if left > 0 else left, now)
        return left

    def _find(self, who: bytes) -> int:
        """Return where a key's bucket is, or is to be: its own place, or the next that nobody has."""
        start = int.from_bytes(who, "big") % SLOTS
        for step in range(SLOTS):
            at = (start + step) % SLOTS * _SLOT.size
            if self._memory[at : at + 8] in (who, bytes(8)):
                return at
        return start * _SLOT.size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file < 0:
            yield
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
