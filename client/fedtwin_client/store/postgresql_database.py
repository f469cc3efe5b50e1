"""The store's tables in PostgreSQL, for a hospital that one machine is not enough for. Keys stay in the node's folder.

Design note: the server sees what the SQLite file shows, ciphertext and numbers. Every commit waits for the server's
disk (`synchronous_commit`), and a session lock makes this process the one writer. What PostgreSQL deletes stays in
its pages, its log and its backups until it overwrites them; erasure does not depend on that: the patient's key is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Final

import psycopg

from fedtwin_client.store.block_store import KEYS_FOLDER, BlockStore
from fedtwin_client.store.database import MIXED, BlockRow, EntryRow, NameRow, PatientRow, ProgressRow
from fedtwin_client.store.keys import KeyRing
from fedtwin_client.store.store import StoreError

_BATCH: Final = 512  # blocks held in memory by a scan
_LOCK: Final = 0x66656474  # the session lock's number in this database: "fedt"

_BLOCK: Final = "version, patient, signal, span, rows, sealed"
_COLUMNS: Final = """
    version BIGINT PRIMARY KEY, patient BIGINT NOT NULL, signal BIGINT NOT NULL, span BIGINT NOT NULL,
    rows BIGINT NOT NULL, sealed BYTEA NOT NULL"""
_SCHEMA: Final = f"""
    CREATE TABLE IF NOT EXISTS patient (number BIGINT PRIMARY KEY, digest BYTEA NOT NULL UNIQUE, sealed BYTEA NOT NULL);
    CREATE TABLE IF NOT EXISTS name (kind BIGINT, number BIGINT, sealed BYTEA NOT NULL, PRIMARY KEY (kind, number));
    CREATE TABLE IF NOT EXISTS block ({_COLUMNS});
    CREATE INDEX IF NOT EXISTS block_place ON block (patient, signal, span, rows);
    CREATE TABLE IF NOT EXISTS damaged ({_COLUMNS});
    ALTER TABLE block ALTER COLUMN sealed SET STORAGE EXTERNAL;
    CREATE TABLE IF NOT EXISTS entry (
        number BIGINT PRIMARY KEY, patient BIGINT NOT NULL, kind BIGINT NOT NULL, time BIGINT NOT NULL,
        sealed BYTEA NOT NULL);
    CREATE INDEX IF NOT EXISTS entry_patient ON entry (patient, kind);
    CREATE TABLE IF NOT EXISTS progress (device BIGINT PRIMARY KEY, sealed BYTEA NOT NULL);
"""  # EXTERNAL: ciphertext does not compress


def open_postgresql_store(conninfo: str, folder: Path, *, check: bool = True) -> BlockStore:
    """Open, or make, the store in the PostgreSQL database of `conninfo`, with the keys in `folder` as SQLite has them.

    Raises `StoreError`, also when another process has it open.
    """
    database = PostgresqlDatabase(conninfo)
    try:
        return BlockStore(database, KeyRing(folder / KEYS_FOLDER), check=check)
    except BaseException:
        database.close()
        raise


class PostgresqlDatabase:
    """A `Database` in the PostgreSQL database that `conninfo` names (libpq's own form; a password has no place in it).

    - a second process that opens the same database gets a `StoreError`
    - after a failed commit `broken` is true and everything raises, until it is opened again
    """

    def __init__(self, conninfo: str) -> None:
        self.broken = False
        with contextlib.ExitStack() as stack:
            with self._report_failure():
                self._connection = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
                self._connection.execute("SET synchronous_commit = on")
                taken = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone()
                if taken != (True,):
                    raise StoreError(expected="no other process with this store", found="one that runs")
                self._connection.execute("SET client_min_messages = warning")
                self._connection.execute(_SCHEMA)
            self._open = stack.pop_all()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """See `Database.transaction`."""
        with self._report_failure(), self._connection.transaction():
            yield

    def names(self) -> Sequence[NameRow]:
        """See `Database.names`."""
        rows = self._connection.execute("SELECT kind, number, sealed FROM name ORDER BY kind, number")
        return [NameRow(kind=kind, number=number, sealed=sealed) for kind, number, sealed in rows]

    def add_names(self, rows: Iterable[NameRow]) -> None:
        """See `Database.add_names`."""
        self._insert("name (kind, number, sealed)", map(astuple, rows))

    def patients(self) -> Sequence[PatientRow]:
        """See `Database.patients`."""
        rows = self._connection.execute("SELECT number, digest, sealed FROM patient ORDER BY number")
        return [PatientRow(number=number, digest=digest, sealed=sealed) for number, digest, sealed in rows]

    def add_patients(self, rows: Iterable[PatientRow]) -> None:
        """See `Database.add_patients`."""
        self._insert("patient (number, digest, sealed)", map(astuple, rows))

    def reseal_patient(self, row: PatientRow) -> None:
        """See `Database.reseal_patient`."""
        self._connection.execute("UPDATE patient SET sealed = %s WHERE number = %s", (row.sealed, row.number))

    def remove_patient(self, number: int) -> None:
        """See `Database.remove_patient`."""
        self._connection.execute("DELETE FROM block WHERE patient = %s", (number,))
        self._connection.execute("DELETE FROM damaged WHERE patient = %s", (number,))
        self._connection.execute("DELETE FROM entry WHERE patient = %s", (number,))
        self._connection.execute("DELETE FROM patient WHERE number = %s", (number,))

    def last_version(self) -> int:
        """See `Database.last_version`."""
        query = "SELECT coalesce(max(version), 0) FROM (SELECT version FROM block UNION SELECT version FROM damaged) v"
        return self._number(query)

    def pending(self) -> dict[int, int]:
        """See `Database.pending`."""
        query = "SELECT patient, sum(rows)::BIGINT FROM block WHERE signal = %s GROUP BY patient"
        return dict(self._connection.execute(query, (MIXED,)))

    def add_blocks(self, rows: Iterable[BlockRow]) -> None:
        """See `Database.add_blocks`."""
        tuples = ((row.version, row.patient, row.signal, row.span, row.rows, row.sealed) for row in rows)
        self._insert(f"block ({_BLOCK})", tuples)

    def blocks(self, patient: int, *, first: int, last: int) -> Sequence[BlockRow]:
        """See `Database.blocks`."""
        query = f"""SELECT {_BLOCK} FROM block WHERE patient = %s AND (signal = %s OR span BETWEEN %s AND %s)
            ORDER BY signal, span, version"""
        return self._blocks(query, (patient, MIXED, first, last))

    def all_blocks(self) -> Iterator[BlockRow]:
        """See `Database.all_blocks`."""
        after = -1
        query = f"SELECT {_BLOCK} FROM block WHERE version > %s ORDER BY version LIMIT %s"
        while batch := self._blocks(query, (after, _BATCH)):
            yield from batch
            after = batch[-1].version

    def parts(self, patient: int) -> Sequence[tuple[int, int, int, int]]:
        """See `Database.parts`."""
        query = "SELECT version, signal, span, rows FROM block WHERE patient = %s AND signal != %s"
        found = self._connection.execute(query, (patient, MIXED))
        return [(version, signal, span, rows) for version, signal, span, rows in found]

    def find(self, versions: Iterable[int]) -> Sequence[BlockRow]:
        """See `Database.find`."""
        return self._blocks(f"SELECT {_BLOCK} FROM block WHERE version = ANY(%s) ORDER BY version", (list(versions),))

    def remove_blocks(self, versions: Iterable[int]) -> None:
        """See `Database.remove_blocks`."""
        self._connection.execute("DELETE FROM block WHERE version = ANY(%s)", (list(versions),))

    def set_aside(self, versions: Iterable[int]) -> None:
        """See `Database.set_aside`."""
        query = f"""WITH moved AS (DELETE FROM block WHERE version = ANY(%s) RETURNING {_BLOCK})
            INSERT INTO damaged ({_BLOCK}) SELECT {_BLOCK} FROM moved ON CONFLICT DO NOTHING"""
        self._connection.execute(query, (list(versions),))

    def damaged(self) -> Sequence[BlockRow]:
        """See `Database.damaged`."""
        return self._blocks("SELECT version, patient, signal, span, rows, ''::BYTEA FROM damaged ORDER BY version", ())

    def drop_before(self, span: int) -> int:
        """See `Database.drop_before`."""
        self._connection.execute("DELETE FROM damaged WHERE signal != %s AND span < %s", (MIXED, span))
        query = """WITH dropped AS (DELETE FROM block WHERE signal != %s AND span < %s RETURNING rows)
            SELECT coalesce(sum(rows), 0)::BIGINT FROM dropped"""
        return self._number(query, (MIXED, span))

    def last_entry(self) -> int:
        """See `Database.last_entry`."""
        return self._number("SELECT coalesce(max(number), 0) FROM entry")

    def add_entries(self, rows: Iterable[EntryRow]) -> None:
        """See `Database.add_entries`."""
        self._insert("entry (number, patient, kind, time, sealed)", map(astuple, rows))

    def entries(self, kind: int, patient: int | None) -> Iterator[EntryRow]:
        """See `Database.entries`."""
        after = 0
        query = """SELECT number, patient, kind, time, sealed FROM entry
            WHERE number > %s AND kind = %s AND (%s::BIGINT IS NULL OR patient = %s) ORDER BY number LIMIT %s"""
        cursor = self._connection.cursor(binary=True)
        while batch := cursor.execute(query, (after, kind, patient, patient, _BATCH)).fetchall():
            yield from (
                EntryRow(number=number, patient=owner, kind=of, time=time, sealed=sealed)
                for number, owner, of, time, sealed in batch
            )
            after = batch[-1][0]

    def drop_entries(self, kind: int, time: int) -> int:
        """See `Database.drop_entries`."""
        return self._connection.execute("DELETE FROM entry WHERE kind = %s AND time < %s", (kind, time)).rowcount

    def progress(self) -> Sequence[ProgressRow]:
        """See `Database.progress`."""
        cursor = self._connection.cursor(binary=True)
        rows = cursor.execute("SELECT device, sealed FROM progress ORDER BY device")
        return [ProgressRow(device=device, sealed=sealed) for device, sealed in rows]

    def put_progress(self, rows: Iterable[ProgressRow]) -> None:
        """See `Database.put_progress`."""
        query = "INSERT INTO progress VALUES (%s, %s) ON CONFLICT (device) DO UPDATE SET sealed = EXCLUDED.sealed"
        with self._connection.cursor() as cursor:
            cursor.executemany(query, [astuple(row) for row in rows])

    def shrink(self) -> None:
        """See `Database.shrink`; here it only makes the room free for the server."""
        with self._report_failure():
            for table in ("block", "damaged", "entry", "progress", "patient"):
                self._connection.execute(f"VACUUM {table}")

    def repair(self) -> tuple[str, ...]:
        """See `Database.repair`: a server that starts has repaired itself, or its administrator has."""
        return ()

    def close(self) -> None:
        """See `Database.close`."""
        self._open.close()

    def _number(self, query: str, values: tuple[int, ...] = ()) -> int:
        found = self._connection.execute(query.encode(), values).fetchone()
        return int(found[0]) if found else 0

    def _blocks(self, query: str, values: tuple[object, ...]) -> list[BlockRow]:
        cursor = self._connection.cursor(binary=True)
        return [
            BlockRow(version=version, patient=patient, signal=signal, span=span, rows=rows, sealed=sealed)
            for version, patient, signal, span, rows, sealed in cursor.execute(query.encode(), values)
        ]

    def _insert(self, target: str, rows: Iterable[tuple[object, ...]]) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)".encode()) as copy,
        ):
            copy.set_types(
                [
                    "bytea" if name.strip(" )") in {"digest", "sealed"} else "int8"
                    for name in target.split("(")[1].split(",")
                ]
            )
            for row in rows:
                copy.write_row(row)

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        if self.broken:
            raise StoreError(expected="the database to be opened again", found="an earlier failure")
        try:
            yield
        except psycopg.Error as err:
            # SQLSTATE class 53 is a lack of room or memory, over once there is some.
            self.broken = not (err.sqlstate or "").startswith("53")
            found = err.sqlstate or type(err).__name__
            raise StoreError(expected="a PostgreSQL server with room, that reads and writes", found=found) from err
