"""Who is to be forgotten? Tombstones in the archive, which every reader honours.

A tombstone is a keyed digest of a customer's id and the moment up to which everything is to be forgotten. They lie in
`archive/erased/<key id>/<name>.parquet`, with their key beside them in `key`: whoever can read the archive can tell
whether a customer was erased, and nobody else can.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

SCHEMA = pa.schema([("digest", pa.string()), ("at", pa.float64())])


def digest(key: bytes, customer_id: str) -> str:
    """Return the digest that a tombstone carries in place of the customer's id.

    >>> digest(b"a key", "ada")
    '80930534da29a227fa7391661ee4b58d'
    """
    return blake2b(customer_id.encode(), digest_size=16, key=key).hexdigest()


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


def honoured(archive: Path, events: pa.Table) -> pa.Table:
    """Return the events without those that are to be forgotten."""
    for folder in sorted((archive / "erased").glob("*/")):
        files = sorted(folder.glob("*.parquet"))
        if files:
            read = pa.concat_tables(pyarrow.parquet.read_table(f, partitioning=None) for f in files)
            events = _without(events, read, key=bytes.fromhex((folder / "key").read_text()))
    return events


def _without(events: pa.Table, tombstones: pa.Table, *, key: bytes) -> pa.Table:
    latest = tombstones.group_by("digest").aggregate([("at", "max")])
    until = dict(zip(latest["digest"].to_pylist(), latest["at_max"].to_pylist(), strict=True))
    customers = events["customer_id"].combine_chunks().dictionary_encode()
    ends = np.array([until.get(digest(key, name), -np.inf) for name in customers.dictionary.to_pylist()])
    if not len(ends):
        return events
    return events.filter(pc.greater(events["at"], pa.array(ends[customers.indices.to_numpy()])))
