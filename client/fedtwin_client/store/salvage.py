"""What can still be read of a damaged SQLite file, moved to a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fedtwin_shared.durable import sync_folder

_TABLES: Final = {"patient": 3, "name": 3, "block": 6, "damaged": 6, "entry": 5, "progress": 2}  # columns
_BATCH: Final = 512  # rows held in memory
_SMALLEST_ROW: Final = 32  # bytes of a row in the file, at least


def salvage(path: Path, connect: Callable[[Path], sqlite3.Connection]) -> str:
    """Move every row that can still be read to a new file; keep the damaged one beside it; say so in words."""
    kept = path.with_name(f"{path.name}.damaged")
    number = 0
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    found = dict.fromkeys(_TABLES, 0)
    old, new = sqlite3.connect(path, isolation_level=None), connect(fresh)
    try:
        new.execute("BEGIN")
        for table, columns in _TABLES.items():
            places = ", ".join("?" * columns)
            for row in _readable(old, table, path):
                found[table] += new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", row).rowcount
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        new.close()
        old.close()
    path.rename(kept)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.rename(path)
    sync_folder(path.parent)
    counts = ", ".join(f"{count} of {table}" for table, count in found.items())
    return f"the database file was damaged and is kept as {kept.name}; rows that could be read: {counts}"


def _readable(old: sqlite3.Connection, table: str, path: Path) -> Iterator[tuple[object, ...]]:
    """Yield the rows by row id; a range that raises is halved until only what is damaged is left out."""
    try:
        end = old.execute(f"SELECT max(rowid) FROM {table} NOT INDEXED").fetchone()[0] or 0
    except sqlite3.DatabaseError as err:
        if getattr(err, "sqlite_errorname", "").startswith("SQLITE_NOTADB"):
            return
        end = path.stat().st_size // _SMALLEST_ROW
    query = f"SELECT rowid, * FROM {table} NOT INDEXED WHERE rowid BETWEEN ? AND ? ORDER BY rowid LIMIT {_BATCH}"
    ranges = [(0, int(end))]
    while ranges:
        low, high = ranges.pop()
        try:
            rows = old.execute(query, (low, high)).fetchall()
        except sqlite3.DatabaseError:
            if high > low:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]
            continue
        yield from (row[1:] for row in rows)
        if len(rows) == _BATCH and rows[-1][0] < high:
            ranges.append((rows[-1][0] + 1, high))
