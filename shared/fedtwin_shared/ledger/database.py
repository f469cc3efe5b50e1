"""SQLite as the ledger uses it: write-ahead log, synced on every commit, one writer at a time where that is asked.

Guarantees, of SQLite (sqlite.org/pragma.html#pragma_synchronous) as long as the disk does not lie about fsync:
- a transaction that was committed survives a crash of the process, of the system and of the power
- a transaction that was not committed leaves nothing behind
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedtwin_shared.durable import sync_folder, take_lock
from fedtwin_shared.errors import FedtwinError

BUSY_SECONDS: Final = 5.0  # how long one transaction waits for another's fsync
WAL_PAGES: Final = 4096  # pages of 4 KiB before they move to the database: fewer syncs beside the commits' own


class LedgerError(FedtwinError):
    """A ledger's or a witness's file that is missing, damaged, held by another process or not writable."""


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database file for reading and writing. Transactions are explicit."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
    with explained(path):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing database file for reading beside its writer."""
    with explained(path):
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def check_version(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Raise `LedgerError` unless the file's tables are of this version (sqlite.org/pragma.html#pragma_user_version).

    - a file from before versions were written says 0, and is refused
    """
    with explained(path):
        (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != version:
        raise LedgerError(
            file=path,
            field="written by another version of fedtwin",
            expected=f"tables of version {version}",
            found=str(found),
        )


def create(path: Path, schema: str, *, version: int) -> None:
    """Make a database with these tables, of that version, readable by its owner only, durable on return.

    - a crash on the way leaves no file under that name
    - an existing file is never overwritten (`FileExistsError`)
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection, explained(path):
        connection.executescript(f"BEGIN;{schema}PRAGMA user_version = {version};COMMIT;")
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.link(draft, path)
    draft.unlink()
    sync_folder(path.parent)


def lock(path: Path) -> int:
    """Return a descriptor that holds the file `path` until it is closed or the process ends, however it ends.

    Raises `LedgerError` where another process, or another part of this one, holds it.
    """
    descriptor = take_lock(path)
    if descriptor is None:
        raise LedgerError(file=path, expected="a ledger that nobody writes", found="another writer")
    return descriptor


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Commit what is done inside, or nothing of it. Durable on return."""
    with explained(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the database's errors into our own, which name the file."""
    try:
        yield
    except sqlite3.Error as err:
        raise LedgerError(file=path, expected="a sound database", found=str(err)) from err
