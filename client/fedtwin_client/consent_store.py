"""What patients agreed to and which releases they may have taken part in: on the hospital's own disk, sealed.

Design note: the keys are a ring of their own (`store.keys`), apart from the store of observations, which the gateway
holds open. Every decision is sealed under its patient's own key and bound to that patient's digest; a cohort is a list
of such digests, sealed under a key of the ring. On the disk no id stands in clear. One lock file is held around the
ring and the database, so that the node's executor and a person at a terminal may use it at the same time. Keys without
the database, or a decision that its key does not open, stop everything: nobody knows who refused.

    consent/keys/            the ring        consent/consent.sqlite    decisions, cohorts, releases
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fedtwin_client.consent import Decision, understand
from fedtwin_client.ingest.records import ConsentRecord
from fedtwin_client.journal import TaskKey
from fedtwin_client.store.keys import KeyRing, seal_now, unseal
from fedtwin_client.store.store import StoreError
from fedtwin_shared.durable import take_lock

DATABASE: Final = "consent.sqlite"
KEYS: Final = "keys"
LOCK: Final = "lock"
LOCK_SECONDS: Final = 20.0  # a whole round's reading takes well under one
DIGEST: Final = 16  # bytes of `KeyRing.digest`

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS decision (seq INTEGER PRIMARY KEY, patient BLOB NOT NULL, sealed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS cohort (name BLOB PRIMARY KEY, sealed BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS round (name TEXT PRIMARY KEY, cohort BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS release (name TEXT PRIMARY KEY, round TEXT NOT NULL, time INTEGER NOT NULL);
"""
_DECISIONS: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedRelease:
    """A release that a patient's data may have touched. study: its digest. time: when, in Unix seconds."""

    study: str
    run: str
    round: int
    task: str
    time: int


class ConsentStore:
    """Consents and cohorts of one hospital; any of its processes may use it.

    - what was kept is on the disk before the method returns
    - no id of a patient stands in clear on the disk, and a forgotten patient's decisions open to nobody
    - the cohort of a round is decided once: whoever asks again for that round gets the same patients
    - every method raises `StoreError` for a disk, key or database that is not as it must be
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    def add(self, decisions: Iterable[tuple[str, Decision]]) -> int:
        """Keep decisions, each with its patient's id, after all that are there; how many. Not of forgotten patients."""
        with self._open() as (keys, database):
            several = [(keys.digest(patient), decision) for patient, decision in decisions]
            kept = [(digest, decision) for digest, decision in several if not keys.is_forgotten(digest)]
            keys.create(digest for digest, _ in kept)
            rows = [(digest, _seal_decision(keys, digest, decision)) for digest, decision in kept]
            database.executemany("INSERT INTO decision (patient, sealed) VALUES (?, ?)", rows)
            return len(rows)

    def take(self, records: Iterable[ConsentRecord]) -> int:
        """Keep what FHIR consents say, as `add` does."""
        return self.add([(record.patient, understand(record)) for record in records])

    def decisions(self, patient: str) -> tuple[Decision, ...]:
        """Return everything that was said of a patient, in the order in which it came."""
        with self._open() as (keys, database):
            return _read_decisions(keys, database).get(keys.digest(patient), ())

    def count(self, *, judge: Callable[[Iterable[Decision]], bool]) -> tuple[int, int]:
        """Return how many patients said anything, and how many of them `judge` admits."""
        with self._open() as (keys, database):
            everything = _read_decisions(keys, database)
            return len(everything), sum(map(judge, everything.values()))

    def begin_round(
        self, key: TaskKey, patients: Collection[str], *, judge: Callable[[Iterable[Decision]], bool]
    ) -> frozenset[str]:
        """Return who of `patients` is in the cohort of the key's round: as it was decided, or decided now by `judge`.

        - whoever was forgotten is in none
        """
        with self._open() as (keys, database):
            digests = {patient: keys.digest(patient) for patient in patients}
            found = database.execute("SELECT cohort FROM round WHERE name = ?", (_round(key),)).fetchone()
            if found is None:
                said = _read_decisions(keys, database)
                members = frozenset(digest for digest in digests.values() if judge(said.get(digest, ())))
                _keep_cohort(keys, database, _round(key), members)
            else:
                members = _read_cohort(keys, database, found[0])
            return frozenset(
                patient for patient, digest in digests.items() if digest in members and not keys.is_forgotten(digest)
            )

    def note_release(self, key: TaskKey) -> None:
        """Keep that something of this task may leave. Its round has begun."""
        name = f"{_round(key)}/{key.attempt}/{key.task.value}"
        with self._locked(), self._transaction() as database:
            row = (name, _round(key), int(self._clock()))
            database.execute("INSERT OR IGNORE INTO release (name, round, time) VALUES (?, ?, ?)", row)

    def releases(self, patient: str) -> tuple[TouchedRelease, ...]:
        """Return the releases that a patient's data may have touched, in the order in which they were made."""
        with self._open() as (keys, database):
            digest, touched = keys.digest(patient), list[TouchedRelease]()
            cohorts = dict[bytes, bool]()
            rows = database.execute(
                "SELECT release.name, time, cohort FROM release JOIN round ON release.round = round.name "
                "ORDER BY release.rowid"
            )
            for name, noted, cohort in rows.fetchall():
                if cohort not in cohorts:
                    cohorts[cohort] = digest in _read_cohort(keys, database, cohort)
                if cohorts[cohort]:
                    study, run, number, _, task = name.split("/")
                    touched.append(TouchedRelease(study=study, run=run, round=int(number), task=task, time=noted))
            return tuple(touched)

    def forget(self, patient: str) -> None:
        """Destroy the patient's key and take their digest out of every cohort; they are in no later one."""
        with self._open() as (keys, database):
            digest = keys.digest(patient)
            keys.forget(digest)
            # A crash here leaves decisions that nothing opens; the next `forget` deletes them.
            database.execute("DELETE FROM decision WHERE patient = ?", (digest,))
            for (cohort,) in database.execute("SELECT name FROM cohort").fetchall():
                members = _read_cohort(keys, database, cohort)
                if digest in members:
                    sealed = _seal_cohort(keys, cohort, members - {digest})
                    database.execute("UPDATE cohort SET sealed = ? WHERE name = ?", (sealed, cohort))

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[KeyRing, sqlite3.Connection]]:
        """The ring and one transaction, for this process alone."""
        with self._locked(), self._transaction() as database:
            yield KeyRing(self._folder / KEYS), database

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _wait_for(self._folder / LOCK)
        except OSError as err:
            raise StoreError(file=self._folder, expected="a folder to write to", found=type(err).__name__) from err
        try:
            if (self._folder / KEYS).exists() and not (self._folder / DATABASE).exists():
                raise StoreError(file=self._folder / DATABASE, expected="the consents of these keys", found="no file")
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(_connect(self._folder / DATABASE)) as database, database:
                yield database
        except (OSError, sqlite3.Error) as err:
            raise StoreError(
                file=self._folder, expected="a disk and a database that read and write", found=type(err).__name__
            ) from err


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    path.chmod(0o600)
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA secure_delete = ON")
    database.executescript(_SCHEMA)
    return database


def _wait_for(path: Path) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    while (lock := take_lock(path)) is None:
        if not time.monotonic() < deadline:
            raise StoreError(file=path, expected=f"to be free within {LOCK_SECONDS:g} s", found="another process")
        time.sleep(0.02)
    return lock


def _round(key: TaskKey) -> str:
    return f"{key.study}/{key.run}/{key.round}"


def _seal_decision(keys: KeyRing, digest: bytes, decision: Decision) -> bytes:
    cipher = keys.cipher(digest)
    assert cipher is not None  # the key comes before what it seals
    return seal_now(cipher, msgspec.json.encode(asdict(decision)), b"consent" + digest)


def _read_decisions(keys: KeyRing, database: sqlite3.Connection) -> Mapping[bytes, tuple[Decision, ...]]:
    found = dict[bytes, list[Decision]]()
    for digest, sealed in database.execute("SELECT patient, sealed FROM decision ORDER BY seq"):
        if keys.is_forgotten(digest):
            continue
        cipher = keys.cipher(digest)
        content = None if cipher is None else unseal(cipher, sealed, b"consent" + digest)
        if content is None:
            # To go on without it would take whoever refused for somebody who never said anything.
            raise StoreError(field="decision", expected="one that its patient's key opens", found="damage")
        found.setdefault(digest, []).append(Decision(**_DECISIONS.decode(content)))
    return {digest: tuple(decisions) for digest, decisions in found.items()}


def _keep_cohort(keys: KeyRing, database: sqlite3.Connection, name: str, members: frozenset[bytes]) -> None:
    """Keep a round's cohort; one that did not change since an earlier round is kept once."""
    cohort = keys.digest(hashlib.sha256(b"".join(sorted(members))).hexdigest())
    sealed = _seal_cohort(keys, cohort, members)
    database.execute("INSERT OR IGNORE INTO cohort (name, sealed) VALUES (?, ?)", (cohort, sealed))
    database.execute("INSERT INTO round (name, cohort) VALUES (?, ?)", (name, cohort))


def _seal_cohort(keys: KeyRing, name: bytes, members: Iterable[bytes]) -> bytes:
    return seal_now(keys.names, b"".join(sorted(members)), b"cohort" + name)


def _read_cohort(keys: KeyRing, database: sqlite3.Connection, name: bytes) -> frozenset[bytes]:
    (sealed,) = database.execute("SELECT sealed FROM cohort WHERE name = ?", (name,)).fetchone()
    content = unseal(keys.names, sealed, b"cohort" + name)
    if content is None:
        raise StoreError(field="cohort", expected="one that the hospital's key opens", found="damage")
    return frozenset(content[at : at + DIGEST] for at in range(0, len(content), DIGEST))
