"""What a site must not forget between two messages of a secure aggregation, in one SQLite file, synced at every commit.

Design note: one row for each instance of a set-up. A row only ever moves forward, and by a comparison with what it was,
so that an instance cannot be used twice whatever restarts in between. A site's own secrets leave the row at the moment
of use, the others' shares when they are revealed or a later step begins; `secure_delete` writes zeros over them and the
log is emptied, so that no file of the folder keeps them. (What a disk itself keeps of overwritten data, only an
encrypted disk hides.)
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol

from fedtwin_shared.durable import sync_folder, take_lock
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.secagg.agreement import Agreed
from fedtwin_shared.secagg.masking import Masked
from fedtwin_shared.secagg.sharing import Instance
from fedtwin_shared.signing import canonical_json, parse_canonical

DATABASE: Final = "secure-aggregation.db"
LOCK: Final = "lock"

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS setup (digest TEXT PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS instance (
        setup TEXT, number INTEGER, status TEXT NOT NULL, state BLOB, request TEXT NOT NULL, answer BLOB,
        PRIMARY KEY (setup, number));
"""
_END: Final = """UPDATE instance SET status = ?, state = NULL, request = '', answer = NULL
    WHERE status NOT IN (?, ?)"""

State = Instance | Masked | Agreed


class SecureStoreError(FedtwinError):
    """The store of secure aggregations cannot be opened, read or written: the site takes part in none until it can."""


class Status(StrEnum):
    """How far an instance is. It only ever moves forward."""

    UNUSED = "unused"
    MASKED = "masked"  # from before the first mask exists
    AGREED = "agreed"
    REVEALED = "revealed"
    ENDED = "ended"  # another step began first


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One instance as it is kept. request: what `answer` answers: the very same request gets the same bytes again.

    A masked vector is no answer that is kept: it is as long as a model, and lives in memory.
    """

    status: Status
    state: State | None = field(default=None, repr=False)
    request: str = ""
    answer: bytes | None = field(default=None, repr=False)


class InstanceStore(Protocol):
    """Where a site keeps its instances. One process, one thread at a time; durable when a call returns."""

    def open_setup(self, setup: str) -> bool:
        """Return whether the set-up of this digest is new, and from now on it is not."""

    def keep(self, setup: str, instances: Iterable[Instance]) -> None:
        """Keep the unused instances of a set-up."""

    def find(self, setup: str, number: int) -> Kept | None:
        """Return an instance, or None when there is none."""

    def replace(self, setup: str, number: int, kept: Kept, *, before: Status) -> None:
        """Keep an instance in its next status. Raises `SecureStoreError` unless its status was `before`.

        - where it was unused, a new step begins: every other one that is in use ends, and what it held is forgotten
        """

    def forget(self, setup: str) -> None:
        """Forget all instances of a set-up; it stays known."""


class SqliteInstanceStore:
    """An `InstanceStore` in a folder of its own, which no other process may have open.

    - a second process that opens the same folder gets a `SecureStoreError`
    - after a failed write everything raises, until the folder is opened again
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._broken = folder / DATABASE, False
        with self._report_failure(), contextlib.ExitStack() as stack:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = take_lock(folder / LOCK)
            if lock is None:
                raise SecureStoreError(file=folder, expected="no other process with this store", found="one that runs")
            stack.callback(os.close, lock)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            stack.callback(self._connection.close)
            for pragma in ("secure_delete=ON", "journal_mode=WAL", "synchronous=FULL"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._connection.executescript(_SCHEMA)
            sync_folder(folder)
            self._open = stack.pop_all()

    def open_setup(self, setup: str) -> bool:
        """See `InstanceStore.open_setup`."""
        with self._transaction():
            return self._connection.execute("INSERT OR IGNORE INTO setup VALUES (?)", (setup,)).rowcount == 1

    def keep(self, setup: str, instances: Iterable[Instance]) -> None:
        """See `InstanceStore.keep`."""
        rows = [(setup, one.number, Status.UNUSED.value, encode_state(one), "", None) for one in instances]
        with self._transaction():
            self._connection.executemany("INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?)", rows)

    def find(self, setup: str, number: int) -> Kept | None:
        """See `InstanceStore.find`."""
        query = "SELECT status, state, request, answer FROM instance WHERE setup = ? AND number = ?"
        with self._report_failure():
            row = self._connection.execute(query, (setup, number)).fetchone()
        if row is None:
            return None
        status, state, request, answer = row
        return Kept(
            status=Status(status), state=None if state is None else decode_state(state), request=request, answer=answer
        )

    def replace(self, setup: str, number: int, kept: Kept, *, before: Status) -> None:
        """See `InstanceStore.replace`."""
        state = None if kept.state is None else encode_state(kept.state)
        change = """UPDATE instance SET status = ?, state = ?, request = ?, answer = ?
            WHERE setup = ? AND number = ? AND status = ?"""
        values = (kept.status.value, state, kept.request, kept.answer, setup, number, before.value)
        with self._transaction():
            if before is Status.UNUSED:
                self._connection.execute(_END, (Status.ENDED.value, Status.UNUSED.value, Status.ENDED.value))
            if self._connection.execute(change, values).rowcount != 1:
                raise SecureStoreError(file=self._path, expected=f"an instance that is {before}", found="another")
        if kept.status is Status.REVEALED:
            self._empty_log()

    def forget(self, setup: str) -> None:
        """See `InstanceStore.forget`."""
        with self._transaction():
            self._connection.execute("DELETE FROM instance WHERE setup = ?", (setup,))
        self._empty_log()

    def close(self) -> None:
        """Give the folder free for another process."""
        self._open.close()

    def _empty_log(self) -> None:
        """What was overwritten stands in the log too, until its pages are in the file and it is cut off."""
        with self._report_failure():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._report_failure():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                # A crash before this line leaves what was; after it, what is.
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        if self._broken:
            raise SecureStoreError(file=self._path, expected="to be opened again", found="an earlier failed write")
        try:
            yield
        except (sqlite3.Error, OSError) as err:
            self._broken = True
            raise SecureStoreError(
                file=self._path, expected="a disk that reads and writes", found=type(err).__name__
            ) from err


def encode_state(state: State) -> bytes:
    """Return a state as bytes from which `decode_state` makes it again."""
    held = {name: [seed.hex(), key.hex()] for name, (seed, key) in state.held.items()}
    common: dict[str, object] = {"held": held, "kind": type(state).__name__, "number": state.number}
    match state:
        case Instance():
            peers = {name: key.hex() for name, key in state.peers.items()}
            own = {"key": state.key.hex(), "peers": peers, "roll": state.roll, "seed": state.seed.hex()}
        case Masked():
            own = {"binding": state.binding, "members": list(state.members)}
        case Agreed():
            own = {"binding": state.binding, "members": list(state.members), "survivors": list(state.survivors)}
    return canonical_json({**common, **own})


def decode_state(data: bytes) -> State:
    """Return the state that `encode_state` wrote; for bytes that this site itself stored."""
    found: Any = parse_canonical(data)
    number, held = found["number"], _read_held(found["held"])
    if found["kind"] == Instance.__name__:
        return Instance(
            number=number,
            roll=found["roll"],
            seed=bytes.fromhex(found["seed"]),
            key=bytes.fromhex(found["key"]),
            peers={name: bytes.fromhex(key) for name, key in found["peers"].items()},
            held=held,
        )
    members, binding = tuple(found["members"]), found["binding"]
    if found["kind"] == Masked.__name__:
        return Masked(number=number, binding=binding, members=members, held=held)
    return Agreed(number=number, binding=binding, members=members, survivors=tuple(found["survivors"]), held=held)


def _read_held(held: Mapping[str, list[str]]) -> dict[str, tuple[bytes, bytes]]:
    return {name: (bytes.fromhex(seed), bytes.fromhex(key)) for name, (seed, key) in held.items()}
