"""The store's tables in one SQLite file, in WAL mode, synced to the disk at every commit.

Design note: `secure_delete` writes zeros over what is deleted, and `shrink` ends the write-ahead log and gives the
pages back, so that no file of the database keeps a deleted row. SQLite's own log has checksums: what a crash tore was
never acknowledged and is dropped. It cannot tell that from a log damaged afterwards; `shrink` and a clean close leave
no log behind.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Final

from fedtwin_client.store.database import MIXED, BlockRow, EntryRow, NameRow, PatientRow, ProgressRow
from fedtwin_client.store.salvage import salvage
from fedtwin_client.store.store import StoreError
from fedtwin_shared.durable import sync_folder, take_lock

DATABASE: Final = "observations.db"
LOCK: Final = "lock"

_CHECKPOINT_PAGES: Final = 4000  # of 4 KiB; a longer log makes larger, fewer writes to the file itself
_BATCH: Final = 512  # blocks held in memory by a scan

_BLOCK: Final = "version, patient, signal, span, rows, sealed"
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS patient (number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, sealed BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS name (kind INTEGER, number INTEGER, sealed BLOB NOT NULL, PRIMARY KEY (kind, number));
    CREATE TABLE IF NOT EXISTS block (
        version INTEGER PRIMARY KEY, patient INTEGER NOT NULL, signal INTEGER NOT NULL, span INTEGER NOT NULL,
        rows INTEGER NOT NULL, sealed BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS block_place ON block (patient, signal, span, rows);
    CREATE TABLE IF NOT EXISTS damaged (
        version INTEGER PRIMARY KEY, patient INTEGER NOT NULL, signal INTEGER NOT NULL, span INTEGER NOT NULL,
        rows INTEGER NOT NULL, sealed BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS entry (
        number INTEGER PRIMARY KEY, patient INTEGER NOT NULL, kind INTEGER NOT NULL, time INTEGER NOT NULL,
        sealed BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS entry_patient ON entry (patient, kind);
    CREATE TABLE IF NOT EXISTS progress (device INTEGER PRIMARY KEY, sealed BLOB NOT NULL);
"""


class SqliteDatabase:
    """A `Database` in the folder given, which no other process may have open.

    - a second process that opens the same folder gets a `StoreError`
    - after a failed sync `broken` is true and everything raises, until the folder is opened again
    """

    def __init__(self, folder: Path) -> None:
        self.broken = False
        self._path = folder / DATABASE
        self._repairs: tuple[str, ...] = ()
        with contextlib.ExitStack() as stack:
            with self._report_failure():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock(folder / LOCK, stack)
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
                sync_folder(folder)
            try:
                self._connection = connect(self._path)
            except sqlite3.DatabaseError as err:
                if not _is_damage(err):
                    raise self._failed(err) from err
                self._repairs = (salvage(self._path, connect),)
                self._connection = connect(self._path)
            stack.callback(lambda: self._connection.close())
            self._open = stack.pop_all()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Database.transaction`."""
        with self._report_failure():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def names(self) -> Sequence[NameRow]:
        """See `Database.names`."""
        rows = self._connection.execute("SELECT kind, number, sealed FROM name ORDER BY kind, number")
        return [NameRow(kind=kind, number=number, sealed=sealed) for kind, number, sealed in rows]

    def add_names(self, rows: Iterable[NameRow]) -> None:
        """See `Database.add_names`."""
        self._connection.executemany("INSERT INTO name VALUES (?, ?, ?)", map(astuple, rows))

    def patients(self) -> Sequence[PatientRow]:
        """See `Database.patients`."""
        rows = self._connection.execute("SELECT number, digest, sealed FROM patient ORDER BY number")
        return [PatientRow(number=number, digest=digest, sealed=sealed) for number, digest, sealed in rows]

    def add_patients(self, rows: Iterable[PatientRow]) -> None:
        """See `Database.add_patients`."""
        self._connection.executemany("INSERT INTO patient VALUES (?, ?, ?)", map(astuple, rows))

    def reseal_patient(self, row: PatientRow) -> None:
        """See `Database.reseal_patient`."""
        self._connection.execute("UPDATE patient SET sealed = ? WHERE number = ?", (row.sealed, row.number))

    def remove_patient(self, number: int) -> None:
        """See `Database.remove_patient`."""
        self._connection.execute("DELETE FROM block WHERE patient = ?", (number,))
        self._connection.execute("DELETE FROM damaged WHERE patient = ?", (number,))
        self._connection.execute("DELETE FROM entry WHERE patient = ?", (number,))
        self._connection.execute("DELETE FROM patient WHERE number = ?", (number,))

    def last_version(self) -> int:
        """See `Database.last_version`."""
        query = "SELECT max((SELECT ifnull(max(version), 0) FROM block), (SELECT ifnull(max(version), 0) FROM damaged))"
        return int(self._connection.execute(query).fetchone()[0])

    def pending(self) -> dict[int, int]:
        """See `Database.pending`."""
        return dict(
            self._connection.execute("SELECT patient, sum(rows) FROM block WHERE signal = ? GROUP BY patient", (MIXED,))
        )

    def add_blocks(self, rows: Iterable[BlockRow]) -> None:
        """See `Database.add_blocks`."""
        self._connection.executemany(
            f"INSERT INTO block ({_BLOCK}) VALUES (?, ?, ?, ?, ?, ?)",
            ((row.version, row.patient, row.signal, row.span, row.rows, row.sealed) for row in rows),
        )

    def blocks(self, patient: int, *, first: int, last: int) -> Sequence[BlockRow]:
        """See `Database.blocks`."""
        query = f"""SELECT {_BLOCK} FROM block WHERE patient = ? AND (signal = {MIXED} OR span BETWEEN ? AND ?)
            ORDER BY signal, span, version"""
        return _blocks(self._connection.execute(query, (patient, first, last)))

    def all_blocks(self) -> Iterator[BlockRow]:
        """See `Database.all_blocks`."""
        after = -1
        while batch := _blocks(
            self._connection.execute(
                f"SELECT {_BLOCK} FROM block WHERE version > ? ORDER BY version LIMIT {_BATCH}", (after,)
            )
        ):
            yield from batch
            after = batch[-1].version

    def parts(self, patient: int) -> Sequence[tuple[int, int, int, int]]:
        """See `Database.parts`."""
        query = f"SELECT version, signal, span, rows FROM block WHERE patient = ? AND signal != {MIXED}"
        return self._connection.execute(query, (patient,)).fetchall()

    def find(self, versions: Iterable[int]) -> Sequence[BlockRow]:
        """See `Database.find`."""
        query = f"SELECT {_BLOCK} FROM block WHERE version = ?"
        return [row for version in versions for row in _blocks(self._connection.execute(query, (version,)))]

    def remove_blocks(self, versions: Iterable[int]) -> None:
        """See `Database.remove_blocks`."""
        self._connection.executemany("DELETE FROM block WHERE version = ?", ((version,) for version in versions))

    def set_aside(self, versions: Iterable[int]) -> None:
        """See `Database.set_aside`."""
        for version in versions:
            self._connection.execute("INSERT OR IGNORE INTO damaged SELECT * FROM block WHERE version = ?", (version,))
            self._connection.execute("DELETE FROM block WHERE version = ?", (version,))

    def damaged(self) -> Sequence[BlockRow]:
        """See `Database.damaged`."""
        query = "SELECT version, patient, signal, span, rows, x'' FROM damaged ORDER BY version"
        return _blocks(self._connection.execute(query))

    def drop_before(self, span: int) -> int:
        """See `Database.drop_before`."""
        old = f"FROM block WHERE signal != {MIXED} AND span < ?"
        rows = self._connection.execute(f"SELECT ifnull(sum(rows), 0) {old}", (span,)).fetchone()[0]
        self._connection.execute(f"DELETE {old}", (span,))
        self._connection.execute(f"DELETE FROM damaged WHERE signal != {MIXED} AND span < ?", (span,))
        return int(rows)

    def last_entry(self) -> int:
        """See `Database.last_entry`."""
        return int(self._connection.execute("SELECT ifnull(max(number), 0) FROM entry").fetchone()[0])

    def add_entries(self, rows: Iterable[EntryRow]) -> None:
        """See `Database.add_entries`."""
        self._connection.executemany(
            "INSERT INTO entry (number, patient, kind, time, sealed) VALUES (?, ?, ?, ?, ?)", map(astuple, rows)
        )

    def entries(self, kind: int, patient: int | None) -> Iterator[EntryRow]:
        """See `Database.entries`."""
        after = 0
        whose = "" if patient is None else f"AND patient = {patient:d}"
        query = f"""SELECT number, patient, kind, time, sealed FROM entry
            WHERE number > ? AND kind = ? {whose} ORDER BY number LIMIT {_BATCH}"""
        while batch := self._connection.execute(query, (after, kind)).fetchall():
            yield from (
                EntryRow(number=number, patient=owner, kind=of, time=time, sealed=sealed)
                for number, owner, of, time, sealed in batch
            )
            after = batch[-1][0]

    def drop_entries(self, kind: int, time: int) -> int:
        """See `Database.drop_entries`."""
        return self._connection.execute("DELETE FROM entry WHERE kind = ? AND time < ?", (kind, time)).rowcount

    def progress(self) -> Sequence[ProgressRow]:
        """See `Database.progress`."""
        rows = self._connection.execute("SELECT device, sealed FROM progress ORDER BY device")
        return [ProgressRow(device=device, sealed=sealed) for device, sealed in rows]

    def put_progress(self, rows: Iterable[ProgressRow]) -> None:
        """See `Database.put_progress`."""
        self._connection.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?)", map(astuple, rows))

    def shrink(self) -> None:
        """See `Database.shrink`."""
        with self._report_failure():
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(file=self._path, expected="a log that can be ended", found="somebody who reads it")

    def repair(self) -> tuple[str, ...]:
        """See `Database.repair`."""
        done, self._repairs = self._repairs, ()
        if done:
            return done
        try:
            found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as err:
            if not _is_damage(err):
                raise self._failed(err) from err
            found = "damage"
        if found == "ok":
            return ()
        self._connection.close()
        done = (salvage(self._path, connect),)
        self._connection = connect(self._path)
        return done

    def close(self) -> None:
        """See `Database.close`."""
        self._open.close()

    def _lock(self, path: Path, stack: contextlib.ExitStack) -> None:
        descriptor = take_lock(path)
        if descriptor is None:
            raise StoreError(file=path.parent, expected="no other process with this store", found="one that runs")
        stack.callback(os.close, descriptor)

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        if self.broken:
            raise StoreError(file=self._path, expected="to be opened again", found="an earlier failed write")
        try:
            yield
        except (sqlite3.Error, OSError) as err:
            raise self._failed(err) from err

    def _failed(self, err: sqlite3.Error | OSError) -> StoreError:
        # A full disk is over once there is room. After any other failure nobody knows what the disk holds.
        if isinstance(err, sqlite3.Error):
            self.broken = getattr(err, "sqlite_errorname", "") not in {"SQLITE_FULL", "SQLITE_CANTOPEN"}
            found = getattr(err, "sqlite_errorname", type(err).__name__)
        else:
            found = err.strerror or type(err).__name__
        return StoreError(file=self._path, expected="a disk with room, that reads and writes", found=found)


def connect(path: Path) -> sqlite3.Connection:
    """Open, or make, the file with its tables and settings."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON").fetchall()
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}").fetchall()
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _blocks(rows: Iterable[tuple[int, int, int, int, int, bytes]]) -> list[BlockRow]:
    return [
        BlockRow(version=version, patient=patient, signal=signal, span=span, rows=count, sealed=sealed)
        for version, patient, signal, span, count, sealed in rows
    ]


def _is_damage(err: sqlite3.Error) -> bool:
    return getattr(err, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))
