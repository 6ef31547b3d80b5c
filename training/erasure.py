"""Who is to be forgotten? Tombstones in the archive, which every reader honours.

A tombstone is a keyed digest of a customer's id and the moment up to which everything is to be forgotten. They lie in
`archive/erased/<key id>/<name>.parquet`, with their key beside them in `key`: whoever can read the archive can tell
whether a customer was erased, and nobody else can.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from optimizer.erasure import digest

__all__ = ["SCHEMA", "Tombstones", "digest", "file_of", "forgotten", "honoured", "key_file", "table", "tombstones"]

SCHEMA = pa.schema([("digest", pa.string()), ("at", pa.float64())])


def table(tombstones: Sequence[tuple[str, float]]) -> pa.Table:
    """Return (digest, at) pairs as a table of `SCHEMA`."""
    return pa.table([list(column) for column in zip(*tombstones, strict=True)], schema=SCHEMA)


def file_of(archive: Path, key: bytes, *, name: str) -> Path:
    """Return where tombstones under a key are written."""
    return _folder(archive, key) / f"{name}.parquet"


def key_file(archive: Path, key: bytes) -> Path:
    """Return where the key of tombstones is written, in hexadecimal, before the first of them."""
    return _folder(archive, key) / "key"


def _folder(archive: Path, key: bytes) -> Path:
    return archive / "erased" / blake2b(key, digest_size=8).hexdigest()


class Tombstones(NamedTuple):
    """Whom to forget, under one key: until when, by digest."""

    key: bytes
    until: Mapping[str, float]


def tombstones(archive: Path) -> list[Tombstones]:
    """Return all tombstones of an archive."""
    found = []
    for folder in sorted((archive / "erased").glob("*/")):
        files = sorted(folder.glob("*.parquet"))
        if files:
            read = pa.concat_tables(pyarrow.parquet.read_table(f, partitioning=None) for f in files)
            latest = read.group_by("digest").aggregate([("at", "max")])
            until = dict(zip(latest["digest"].to_pylist(), latest["at_max"].to_pylist(), strict=True))
            found.append(Tombstones(bytes.fromhex((folder / "key").read_text()), until))
    return found


def honoured(archive: Path, events: pa.Table) -> pa.Table:
    """Return the events without those that are to be forgotten."""
    gone = forgotten(tombstones(archive), events)
    return events.filter(pa.array(~gone)) if gone.any() else events


def forgotten(known: Sequence[Tombstones], events: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which events (n,) are to be forgotten; `customer_id` and `at` are looked at."""
    gone = np.zeros(len(events), dtype=np.bool_)
    if not known or not len(events):
        return gone
    customers = events["customer_id"].combine_chunks().dictionary_encode()
    names, codes, at = customers.dictionary.to_pylist(), customers.indices.to_numpy(), events["at"].to_numpy()
    for key, until in known:
        ends = np.array([until.get(digest(key, name), -np.inf) for name in names])
        gone |= at <= ends[codes]
    return gone
