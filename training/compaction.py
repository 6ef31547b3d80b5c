"""How is an archive rewritten without those who were erased? File by file, each whole or not at all.

Readers leave out whoever has a tombstone at once. Compaction takes the rows out of the files, under the same names, so
it can be killed anywhere and run again, while others read and while new files are being written.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet

from training import erasure, events
from training.erasure import Tombstones

Progress = Callable[[str, int, int], None]


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken out: rows, from how many of the files that were looked at."""

    rows: int = 0
    rewritten: int = 0
    files: int = 0


def compact(archive: Path, *, progress: Progress | None = None) -> Compacted:
    """Rewrite each file of an archive that has rows of an erased customer; a file that is left empty is removed.

    Of each file only customers and times are read, unless it has to be rewritten.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    known = erasure.tombstones(archive)
    files = sorted(archive.glob("program=*/date=*/*.parquet")) if known else []
    taken = rewritten = 0
    for i, file in enumerate(files):
        rows = _rewrite(file, known)
        taken, rewritten = taken + rows, rewritten + bool(rows)
        if progress is not None:
            progress("compacting", i + 1, len(files))
    return Compacted(rows=taken, rewritten=rewritten, files=len(files))


def _rewrite(file: Path, known: list[Tombstones]) -> int:
    try:
        gone = erasure.forgotten(
            known, pyarrow.parquet.read_table(file, columns=["customer_id", "at"], partitioning=None)
        )
        if not gone.any():
            return 0
        kept = pyarrow.parquet.read_table(file, partitioning=None).filter(pa.array(~gone))
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise ValueError(
            f"{file}: cannot be read ({error}); restore it from a backup, or move it out of the archive"
        ) from None
    if len(kept):
        events.write_file(file, kept)
    else:
        file.unlink()
    return int(gone.sum())
