"""What if a store of runs was moved? MLflow keeps whole paths of artifacts in its database: these follow the move."""

import contextlib
import sqlite3
from pathlib import Path

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow keeps them."""


def follow(database: Path, artifacts: Path) -> int:
    """Let a database's paths lead to the artifacts beside it, where they led to another place; return how many did.

    A program's experiment keeps its artifacts in a folder of its name. Where that folder is beside the database and
    the experiment says it is elsewhere on this machine, the store was moved or copied: whatever began with the old
    place begins with the new one. Artifacts that were put elsewhere on purpose are not beside the database, and stay.

    >>> import tempfile
    >>> follow(Path(tempfile.gettempdir()) / "no such database", Path("artifacts"))
    0
    """
    if not database.is_file() or not artifacts.is_dir():
        return 0
    with contextlib.closing(sqlite3.connect(database, timeout=30.0)) as store, store:
        there = _columns(store)
        if _COLUMNS[0] not in there:
            return 0
        found = store.execute("SELECT name, artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'")
        old = {
            location.removesuffix(name)
            for name, location in ((n.removeprefix("nudge/"), where.rstrip("/")) for n, where in found)
            if location.endswith(f"/{name}") and (artifacts / name).is_dir()
        }
        here = f"{artifacts.resolve().as_uri()}/"
        return sum(_rewritten(store, *column, old=x, new=here) for x in old - {here} for column in there)


def _columns(store: sqlite3.Connection) -> list[tuple[str, str]]:
    """Those that this version of MLflow has."""
    return [
        (table, column)
        for table, column in _COLUMNS
        if column in {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
    ]


def _rewritten(store: sqlite3.Connection, table: str, column: str, *, old: str, new: str) -> int:
    """Replace what paths begin with, and return in how many rows."""
    words = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
    return store.execute(words, (new, len(old) + 1, len(old), old)).rowcount
