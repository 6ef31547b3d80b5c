"""How do loops become machine code? By numba, once a machine, the first time that they are needed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def compile_loops(loops: Callable[..., None]) -> Callable[..., None]:
    """Return a function compiled by numba, which releases the interpreter's lock while it runs.

    The machine code is kept beside its module, or in the user's cache where that folder is read-only; where neither can
    be written it is compiled once a process.
    """
    from numba import njit

    try:
        compiled: Any = njit(cache=True, nogil=True)(loops)
    except RuntimeError:  # numba found no place to keep it
        compiled = njit(nogil=True)(loops)
    return compiled  # type: ignore[no-any-return]  # numba ships no types


def plain(array: npt.NDArray[Any], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Return a copy that numba always sees as the same type: contiguous and writable, whatever was given.

    A read-only or strided argument is another type, and would be compiled for while a customer waits.
    """
    return np.array(array, dtype=kind, order="C")


def filled(array: npt.NDArray[Any], shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Return the same, stretched to a shape."""
    stretched = np.empty(shape, dtype=kind)
    stretched[...] = array
    return stretched
