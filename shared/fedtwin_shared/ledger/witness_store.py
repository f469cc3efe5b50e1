"""A witness that remembers: its key, the latest checkpoint of each log, and the evidence, in one SQLite file.

Design note: the key lives in the same file as the memory, so that a witness which lost its memory has lost its name
too. A witness that forgot what it cosigned would cosign a second history; it must be retired, not restarted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.database import LedgerError, check_version, connect, create, explained, transaction
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, VerifierKey, make_verifier_key
from fedtwin_shared.ledger.witness import Answer, Decision, decide, own_note, read_origin

SEED_BYTES: Final = 32  # RFC 8032 §5.1.5
MAX_EVIDENCE: Final = 10_000  # notes kept for each log and reason; the first ones are the proof, prevents DoS

_VERSION: Final = 3  # of these tables; a file of any other is refused
_SCHEMA: Final = """
CREATE TABLE identity (name TEXT NOT NULL, seed BLOB NOT NULL);
CREATE TABLE latest (origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL);
CREATE TABLE cosigned (
    origin TEXT NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL, PRIMARY KEY (origin, size)
);
CREATE TABLE evidence (
    origin TEXT NOT NULL, note BLOB NOT NULL, against BLOB NOT NULL, reason TEXT NOT NULL, seen INTEGER NOT NULL,
    UNIQUE (origin, note)
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A note that a log signed, and the one it contradicts, each with the log's own signature only.

    reason: `TWO_ROOTS` proves a fork by itself; `NOT_EXTENDED` says that no valid proof came with the note, which is
    to be cleared up with the log: whoever sent it may have sent a wrong proof of an honest tree.
    """

    origin: str
    note: bytes  # what it offered
    against: bytes  # what it had signed before
    reason: str
    seen: int  # seconds since the epoch


class WitnessStore:
    """One witness's durable state. Several threads, and several processes on one file: answers come one at a time."""

    def __init__(self, path: Path, *, logs: Mapping[str, VerifierKey]) -> None:
        """Open the memory that `create` made. Raises `LedgerError` where there is none: it must not start anew."""
        if not path.is_file():
            raise LedgerError(file=path, expected="the memory of this witness", found="none")
        self._path = path
        self._logs = dict(logs)
        self._one_at_a_time = Lock()  # of the threads that share this connection
        self._connection = connect(path)
        check_version(self._connection, path, _VERSION)
        with explained(path):
            identity = self._connection.execute("SELECT name, seed FROM identity").fetchall()
        if len(identity) != 1 or len(identity[0][1]) != SEED_BYTES:
            raise LedgerError(file=path, expected="one name and one key", found="another number of them")
        self._name, self._key = str(identity[0][0]), Ed25519PrivateKey.from_private_bytes(identity[0][1])

    @classmethod
    def create(cls, path: Path, *, name: str, logs: Mapping[str, VerifierKey]) -> Self:
        """Make a new witness with a new key. Raises `ConfigurationError` where the file exists."""
        key = Ed25519PrivateKey.generate()
        make_verifier_key(name, key)  # refuses a name that no note can hold
        seed = key.private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        try:
            identity = f"INSERT INTO identity VALUES (CAST(x'{name.encode().hex()}' AS TEXT), x'{seed.hex()}');"
            create(path, _SCHEMA + identity, version=_VERSION)
        except FileExistsError as err:
            raise ConfigurationError(file=path, expected="no witness yet", found="one") from err
        return cls(path, logs=logs)

    @property
    def verifier_key(self) -> VerifierKey:
        """What others pin."""
        return make_verifier_key(self._name, self._key, algorithm=COSIGNATURE)

    def add_checkpoint(self, body: bytes, *, clock: Callable[[], int]) -> Answer:
        """Return the answer to one request; `clock` gives seconds since the epoch.

        - the check and what it changes are one transaction
        - the new checkpoint, or the evidence, is durable before the answer exists
        """
        try:
            origin = read_origin(body)
        except VerificationError:
            origin = ""
        with self._one_at_a_time, transaction(self._connection, self._path):
            latest = self._latest(origin)
            now = clock()
            decision = decide(
                body,
                logs=self._logs,
                latest=latest,
                cosigned_root=partial(self._cosigned_root, origin),
                name=self._name,
                key=self._key,
                now=now,
            )
            if decision.latest is not None:
                note = own_note(body, self._logs[origin])
                row = (origin, decision.latest.size, decision.latest.root, note)
                self._connection.execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?)", row)
                self._connection.execute("INSERT OR IGNORE INTO cosigned VALUES (?, ?, ?, ?)", row)
            if decision.evidence is not None:
                self._keep(origin, decision, now)
        # A crash before the commit answers nothing; a crash here means that the log asks again and hears 200 or 409.
        return decision.answer

    def latest(self, origin: str) -> Checkpoint | None:
        """Return the latest checkpoint that this witness cosigned of that log."""
        with explained(self._path):
            return self._latest(origin)

    def evidence(self) -> tuple[Evidence, ...]:
        """Return what was kept against logs, oldest first."""
        with explained(self._path):
            rows = self._connection.execute("SELECT origin, note, against, reason, seen FROM evidence ORDER BY rowid")
            return tuple(
                Evidence(origin=origin, note=note, against=against, reason=reason, seen=seen)
                for origin, note, against, reason, seen in rows
            )

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def _latest(self, origin: str) -> Checkpoint | None:
        row = self._connection.execute("SELECT size, root FROM latest WHERE origin = ?", (origin,)).fetchone()
        return None if row is None else Checkpoint(origin=origin, size=row[0], root=row[1])

    def _cosigned_root(self, origin: str, size: int) -> bytes | None:
        query = "SELECT root FROM cosigned WHERE origin = ? AND size = ?"
        row = self._connection.execute(query, (origin, size)).fetchone()
        return None if row is None else bytes(row[0])

    def _keep(self, origin: str, decision: Decision, now: int) -> None:
        count = "SELECT count(*) FROM evidence WHERE origin = ? AND reason = ?"
        (kept,) = self._connection.execute(count, (origin, decision.reason)).fetchone()
        if kept < MAX_EVIDENCE:
            self._connection.execute(
                "INSERT OR IGNORE INTO evidence SELECT origin, ?, note, ?, ? FROM cosigned"
                " WHERE origin = ? AND size = ?",
                (decision.evidence, decision.reason, now, origin, decision.against),
            )
