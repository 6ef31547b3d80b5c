"""Where do the vectors of a long log lie? In a file of their own: a block at a time is in memory.

A million rounds of 301 actions have 1.5 GB of probabilities and masks. All that reads them goes through them by
`blocks`, and what was read is given back.
"""

import contextlib
import ctypes
import mmap
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.actions import Floats
from optimizer.policy import Rounds

SIZE = 4_096
"""Rounds worked on at a time: an (n, k) array of them is ten megabytes."""

_MMAP_THRESHOLD = -3
LARGE = 1 << 28
"""Bytes from which an array has a file of its own."""


def room(shape: tuple[int, ...], dtype: npt.DTypeLike, *, large: int = LARGE) -> npt.NDArray[Any]:
    """Return an array of zeros (n, k), in a file without a name where it is large.

    >>> type(room((2, 3), np.float32)).__name__, type(room((2, 3), np.float32, large=1)).__name__
    ('ndarray', 'memmap')
    """
    if np.dtype(dtype).itemsize * shape[0] * shape[1] < large:
        return np.zeros(shape, dtype=dtype)
    _return_memory()
    with tempfile.TemporaryFile(prefix="nudge-vectors-") as file:  # it goes with the last that reads it
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _return_memory() -> None:
    """Give freed blocks back to the system at once: glibc keeps them otherwise, as large as they come by and by."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def own_pages(n: int) -> Floats:
    """Return an array (n,) of zeros, on pages of its own.

    Between blocks that come and go it would keep the heap from shrinking: a gigabyte, for a million rounds.

    >>> own_pages(2).tolist(), own_pages(0).shape
    ([0.0, 0.0], (0,))
    """
    return np.frombuffer(mmap.mmap(-1, max(8 * n, 1)), dtype=np.float64, count=n)


def blocks(rounds: Rounds, *, size: int = SIZE) -> Iterator[tuple[slice, Rounds]]:
    """Yield rounds a block at a time, with where they are."""
    for start in range(0, len(rounds), size):
        rows = slice(start, start + size)
        yield rows, rounds.take(rows)
        give_back(rounds)


def give_back(rounds: Rounds) -> None:
    """Let go of what was read of vectors in a file: it is there again when it is asked for."""
    for array in (rounds.probabilities, rounds.allowed):
        mapped = getattr(array, "_mmap", None)
        if isinstance(mapped, mmap.mmap):
            mapped.madvise(mmap.MADV_DONTNEED)


def chances(rounds: Rounds, action: int) -> Floats:
    """Shape (n,): the probability of one action, as the draw normalised it."""
    found = np.empty(len(rounds))
    for rows, part in blocks(rounds):
        found[rows] = part.probabilities[:, action] / part.probabilities.sum(axis=1, dtype=np.float64)
    return found
