"""What the database holds besides blocks, in memory: numbers of patients and names, and what waits to be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.store.database import Database, Kind, NameRow, PatientRow
from fedtwin_client.store.keys import KeyRing, seal_now, unseal
from fedtwin_client.store.store import StoreError

_MARK: Final = "fedtwin store 1"  # sealed in every database: opens with the keys that belong to it, and no others


@dataclass(slots=True, kw_only=True)
class Names:
    """Names of one kind in both directions; numbers begin at 1."""

    numbers: dict[str, int] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    def add(self, text: str, number: int) -> None:
        """Give `text` a number."""
        self.numbers[text], self.texts[number] = number, text


@dataclass(slots=True, kw_only=True, repr=False)
class Index:
    """The store's patients, names and counters.

    numbers: digest -> number. digests: the reverse. ids: number -> id, of patients whose key is there.
    pending: number -> rows in the write-ahead area. version: of the last block. entry: number of the last entry.
    positions: number of a signal -> index in `SIGNAL_KEYS`.
    erased: patients that were in the database though they are forgotten. lost: what could not be read, in words.
    """

    numbers: dict[bytes, int] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    signals: Names = field(default_factory=Names)
    devices: Names = field(default_factory=Names)
    pending: Counter[int] = field(default_factory=Counter)
    version: int = 0
    entry: int = 0
    erased: int = 0
    lost: tuple[str, ...] = ()
    positions: npt.NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))

    def add_patients(self, database: Database, keys: KeyRing, patients: Iterable[tuple[bytes, str]]) -> None:
        """Give a number to every patient without one, an id to one whose id was lost; their keys are there."""
        rows = []
        next_number = max(self.digests, default=0) + 1
        for digest, patient in patients:
            number, cipher = self.numbers.get(digest), keys.cipher(digest)
            if cipher is None or number in self.ids:
                continue
            sealed = seal_now(cipher, patient.encode(), digest)
            if number is None:
                number, next_number = next_number, next_number + 1
                rows.append(PatientRow(number=number, digest=digest, sealed=sealed))
            else:
                database.reseal_patient(PatientRow(number=number, digest=digest, sealed=sealed))
            self.numbers[digest], self.digests[number], self.ids[number] = number, digest, patient
        database.add_patients(rows)

    def add_names(self, database: Database, keys: KeyRing, kind: Kind, texts: Iterable[str]) -> None:
        """Give every name without one a number."""
        names = self.signals if kind is Kind.SIGNAL else self.devices
        rows = []
        for text in texts:
            if text not in names.numbers:
                number = max(names.texts, default=0) + 1
                rows.append(_name_row(keys, kind, number, text))
                names.add(text, number)
        database.add_names(rows)

    def remove_patient(self, database: Database, number: int) -> None:
        """Delete everything of a patient but the key."""
        database.remove_patient(number)
        self.numbers.pop(self.digests.pop(number), None)
        self.ids.pop(number, None)
        self.pending.pop(number, None)


def load_index(database: Database, keys: KeyRing) -> Index:
    """Return the index, inside a transaction; forgotten patients that are still there go.

    Raises `StoreError` when keys and database do not belong together.
    """
    index = Index(pending=Counter(database.pending()), version=database.last_version(), entry=database.last_entry())
    _load_names(index, database, keys)
    unreadable = 0
    for row in database.patients():
        index.numbers[row.digest], index.digests[row.number] = row.number, row.digest
        cipher = keys.cipher(row.digest)
        if keys.is_forgotten(row.digest):
            # A crash between the destroyed key and this, or a database from before.
            index.remove_patient(database, row.number)
            index.erased += 1
        elif cipher is not None and (text := unseal(cipher, row.sealed, row.digest)) is not None:
            index.ids[row.number] = text.decode()
        else:
            unreadable += 1
    if unreadable:
        index.lost += (f"patients without a readable key or id: {unreadable}",)
    if keys.damaged:
        index.lost += (f"damaged records in the file of patients' keys: {keys.damaged}",)
    return index


def _load_names(index: Index, database: Database, keys: KeyRing) -> None:
    rows = database.names()
    if not rows:
        database.add_names([_name_row(keys, Kind.STORE, 0, _MARK)])
    elif not any(unseal(keys.names, row.sealed, _bound(row.kind, row.number)) for row in rows):
        raise StoreError(file=keys.folder, expected="the keys that belong to this database", found="others")
    for row in rows:
        text = unseal(keys.names, row.sealed, _bound(row.kind, row.number))
        if row.kind == Kind.DEVICE:
            index.devices.add(text.decode() if text else f"unreadable device {row.number}", row.number)
        elif row.kind == Kind.SIGNAL and text:
            index.signals.add(text.decode(), row.number)
        if not text:
            index.lost += ("a name of a signal or device",)
    if unknown := sorted(set(index.signals.numbers) - set(SIGNAL_KEYS)):
        raise StoreError(expected=f"a Signal table with {', '.join(unknown)}", found="one without")
    index.add_names(database, keys, Kind.SIGNAL, SIGNAL_KEYS)
    index.positions = np.full(max(index.signals.texts) + 1, -1, np.int16)
    for key, number in index.signals.numbers.items():
        index.positions[number] = SIGNAL_KEYS.index(key)


def _name_row(keys: KeyRing, kind: Kind, number: int, text: str) -> NameRow:
    return NameRow(kind=kind, number=number, sealed=seal_now(keys.names, text.encode(), _bound(kind, number)))


def _bound(kind: int, number: int) -> bytes:
    return f"{kind}:{number}".encode()
