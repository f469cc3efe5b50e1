"""A log on disk: entries, the hashes of complete subtrees, checkpoints. Append-only, one writer, durable before return.

Design note: each append writes its entries with the subtrees that they close in one transaction, so proofs and roots
are read, never recomputed, and a crash leaves the old log or the new one. To the store an entry is bytes under a
(key, kind), which it takes once: the same bytes again are the same entry, other bytes are an error.

The tables are for this version of fedtwin alone; what is promised to last is the entries and the bundle made of them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from fedtwin_shared.ledger.database import (
    LedgerError,
    check_version,
    connect,
    connect_reader,
    create,
    explained,
    lock,
)
from fedtwin_shared.ledger.merkle import (
    HASH_BYTES,
    complete_subtrees,
    hash_leaf,
    prove_consistency,
    prove_inclusion,
    stored_root,
)
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note

MAX_ENTRY_BYTES: Final = 1024 * 1024  # an entry that names 1,024 blocks is under 700 KB; prevents DoS of a verifier

# An entry's row holds the hashes of all subtrees that it closes, from its own leaf up; keys are the rows of their table
# themselves (WITHOUT ROWID): so a commit writes few pages, and an entry and its hash cannot come from two backups.
_VERSION: Final = 2  # of these tables; a file of any other is refused
_SCHEMA: Final = """
CREATE TABLE entry (position INTEGER PRIMARY KEY, hashes BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE name (key TEXT NOT NULL, kind TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (key, kind))
    WITHOUT ROWID;
CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, note BLOB NOT NULL);
CREATE TABLE witnessed (witness TEXT PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE attachment (name TEXT PRIMARY KEY, data BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """Bytes to append, and the name under which they are appended once."""

    key: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptNote:
    """A checkpoint to keep, and the size that each witness cosigned last: a hint, which a witness corrects if wrong."""

    note: bytes
    witnessed: Mapping[str, int] = field(default_factory=dict)


class LogReader:
    """What can be asked of a log. Beside a writer it sees what was committed. For one thread."""

    def __init__(self, path: Path, *, connect: Callable[[Path], sqlite3.Connection] = connect_reader) -> None:
        """Open a log. Raises `LedgerError`: none, of another version, or one that contradicts its own checkpoint."""
        if not path.is_file():
            raise LedgerError(file=path, expected="a ledger", found="none")
        self._path = path
        self._connection = connect(path)
        check_version(self._connection, path, _VERSION)
        self._check()

    @property
    def size(self) -> int:
        """How many entries there are."""
        return self._count("SELECT max(position) FROM entry")

    def root(self, size: int | None = None) -> bytes:
        """Return the root over the first `size` entries; over all if absent."""
        return stored_root(self._within(self.size if size is None else size), self._node)

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the entries [start, stop) in order; all if absent."""
        end = self.size if stop is None else stop
        with explained(self._path):
            rows = self._connection.execute(
                "SELECT body FROM entry WHERE position >= ? AND position < ? ORDER BY position", (start, end)
            )
            for (body,) in rows:
                yield body

    def find(self, key: str, kind: str) -> int | None:
        """Return the position of the entry under that name."""
        row = self._row("SELECT position FROM name WHERE key = ? AND kind = ?", (key, kind))
        return None if row is None else int(row[0])

    def prove_inclusion(self, position: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that the entry at `position` is in the tree of `size` entries (RFC 6962 §2.1.1)."""
        return prove_inclusion(position, self._within(size), self._node)

    def prove_consistency(self, old: int, size: int) -> tuple[bytes, ...]:
        """Return the proof that the tree of `size` entries extends that of `old` (RFC 6962 §2.1.2)."""
        return prove_consistency(old, self._within(size), self._node)

    def latest_note(self) -> bytes | None:
        """Return the checkpoint kept last, with its cosignatures."""
        row = self._row("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1")
        return None if row is None else bytes(row[0])

    def witnessed_size(self, witness: str) -> int:
        """Return the size that this witness is known to have cosigned last; 0 if never."""
        row = self._row("SELECT size FROM witnessed WHERE witness = ?", (witness,))
        return 0 if row is None else int(row[0])

    def attachment(self, name: str) -> bytes | None:
        """Return what was last kept beside the log under that name."""
        row = self._row("SELECT data FROM attachment WHERE name = ?", (name,))
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        """A log that is damaged, or is not the one of its own checkpoint, must not be appended to."""
        size = self.size
        if size and self._node(0, size - 1) != hash_leaf(self._body(size - 1)):
            raise LedgerError(file=self._path, field=f"entry {size - 1}", expected="its own hash", found="another")
        note = self.latest_note()
        if note is not None:
            kept = parse_checkpoint(parse_note(note).text)
            if kept.size > size or self.root(kept.size) != kept.root:
                raise LedgerError(file=self._path, expected="the tree of its last checkpoint", found="another tree")

    def _within(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise ValueError("a tree of this log is not larger than the log")
        return size

    def _node(self, level: int, position: int) -> bytes:
        closing = ((position + 1) << level) - 1  # the last leaf of the subtree
        place = (level * HASH_BYTES + 1, HASH_BYTES, closing)
        row = self._row("SELECT substr(hashes, ?, ?) FROM entry WHERE position = ?", place)
        if row is None or len(row[0]) != HASH_BYTES:
            raise LedgerError(file=self._path, field=f"subtree {level}/{position}", expected="its hash", found="none")
        return bytes(row[0])

    def _body(self, position: int) -> bytes:
        row = self._row("SELECT body FROM entry WHERE position = ?", (position,))
        if row is None:
            raise LedgerError(file=self._path, field=f"entry {position}", expected="its bytes", found="none")
        return bytes(row[0])

    def _count(self, query: str) -> int:
        """How many there are, given a query for the last position."""
        row = self._row(query)
        return 0 if row is None or row[0] is None else int(row[0]) + 1

    def _row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        with explained(self._path):
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        return row


class LogWriter(LogReader):
    """The one writer of a log, until it is closed or its process ends. For one thread.

    - a second writer gets a `LedgerError`, at once
    - what a method wrote is durable when it returns
    - after a failed commit nobody knows what the disk holds: the writer refuses everything until it is opened anew
    """

    def __init__(self, path: Path, *, connect: Callable[[Path], sqlite3.Connection] = connect) -> None:
        """Open a log for writing; make it where there is none."""
        self._failed = False
        self._lock = lock(path.with_name(f"{path.name}.lock"))
        try:
            if not path.exists():
                create(path, _SCHEMA, version=_VERSION)
            super().__init__(path, connect=connect)
        except BaseException:
            os.close(self._lock)
            raise
        self._size = self.size

    def append(
        self,
        entries: Sequence[NewEntry],
        *,
        attach: Mapping[str, bytes] = MappingProxyType({}),
        keep: KeptNote | None = None,
    ) -> tuple[int, ...]:
        """Append the entries, all or none, and return their positions.

        attach: bytes to keep beside them, each replacing what had its name. keep: see `keep_note`; of the tree before.

        - an entry that is there already, with the same bytes under the same name, keeps its position
        - other bytes under that name raise `LedgerError`, and nothing is appended
        - what is attached or kept is there if and only if the entries are
        """
        positions: list[int] = []
        size = self._size
        if keep is not None:
            self._check_note(keep)
        with self._commit():
            for entry in entries:
                there = self._existing(entry)
                positions.append(size if there is None else there)
                if there is None:
                    self._insert(entry, size)
                    size += 1
            self._connection.executemany("INSERT OR REPLACE INTO attachment VALUES (?, ?)", attach.items())
            if keep is not None:
                self._keep(keep)
        # A crash before the commit leaves the old log; after it, asking again returns the same positions.
        self._size = size
        return tuple(positions)

    def keep_note(self, kept: KeptNote) -> None:
        """Keep a checkpoint of this log, replacing the one of its size. Raises `LedgerError` for another tree's."""
        self._check_note(kept)
        with self._commit():
            self._keep(kept)

    def close(self) -> None:
        """Let others write."""
        super().close()
        os.close(self._lock)

    @contextlib.contextmanager
    def _commit(self) -> Iterator[None]:
        if self._failed:
            raise LedgerError(file=self._path, expected="a writer whose last commit is known", found="a failed one")
        with explained(self._path):
            self._failed = True
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                self._failed = False
                raise
            self._connection.execute("COMMIT")
            self._failed = False

    def _check_note(self, kept: KeptNote) -> None:
        checkpoint = parse_checkpoint(parse_note(kept.note).text)
        if checkpoint.size > self._size or self.root(checkpoint.size) != checkpoint.root:
            raise LedgerError(file=self._path, field="checkpoint", expected="a tree of this log", found="another tree")

    def _keep(self, kept: KeptNote) -> None:
        size = parse_checkpoint(parse_note(kept.note).text).size
        self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (?, ?)", (size, kept.note))
        self._connection.executemany("INSERT OR REPLACE INTO witnessed VALUES (?, ?)", kept.witnessed.items())

    def _existing(self, entry: NewEntry) -> int | None:
        if len(entry.body) > MAX_ENTRY_BYTES:
            raise LedgerError(field="entry", expected=f"at most {MAX_ENTRY_BYTES} bytes", found=str(len(entry.body)))
        position = self.find(entry.key, entry.kind)
        if position is None:
            return None
        if self._body(position) != entry.body:
            raise LedgerError(
                file=self._path, field=f"{entry.kind} {entry.key}", expected="the entry that is there", found="another"
            )
        return position

    def _insert(self, entry: NewEntry, position: int) -> None:
        closed = complete_subtrees(position, hash_leaf(entry.body), self._node)
        hashes = b"".join(value for _, _, value in closed)
        self._connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (position, hashes, entry.body))
        self._connection.execute("INSERT INTO name VALUES (?, ?, ?)", (entry.key, entry.kind, position))
