"""The gateway's keeper: the hospital's own store, opened again when its disk or its server came back.

Set-aside readings and records are entries of their patients: sealed under the patient's key, gone when it is. What is
set aside of a message stands there in the message's own words: code, unit and value as they were sent.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from fedtwin_client.ingest.device import NEW, WINDOW, Progress
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.readings import SetAside
from fedtwin_client.ingest.records import AdministrationRecord, AdmissionEvent, ConsentRecord, PatientRecord, Record
from fedtwin_client.quarantine import REASONS
from fedtwin_client.store.block_store import BlockStore
from fedtwin_client.store.store import Entry, EntryKind, ObservationStore
from fedtwin_shared.errors import FedtwinError

_PROGRESS: Final = struct.Struct("<qq")
_RECORDS: Final[Mapping[bytes, type[Record]]] = {
    b"admission": AdmissionEvent,
    b"patient": PatientRecord,
    b"consent": ConsentRecord,
    b"administration": AdministrationRecord,
}
_NAMES: Final = {kind: name for name, kind in _RECORDS.items()}


class Aside(msgspec.Struct, frozen=True, gc=False):
    """One reading that was not accepted, as it was sent; time None: none could be read, value None: no number."""

    device: str
    reason: str
    code: str
    unit: str
    time: int | None
    value: float | None
    sequence: int


_ASIDES: Final = msgspec.json.Decoder(list[Aside])


class StoreKeeper:
    """See `Keeper`; `open_store` opens the store, and is called again after a failure that broke it."""

    def __init__(
        self,
        open_store: Callable[[bool], BlockStore],
        *,
        keep_consents: Callable[[Sequence[ConsentRecord]], object] = lambda records: None,
    ) -> None:
        """`open_store(check)`; `keep_consents`: durably, for studies. Raises `StoreError` if it does not open now."""
        self._open, self._lock, self._keep_consents = open_store, threading.RLock(), keep_consents
        self._store: BlockStore | None = open_store(True)
        self.openings = 1

    def store(self) -> BlockStore:
        """Return the open store. Raises `StoreError` while it cannot be opened."""
        with self._lock:
            if self._store is not None and self._store.broken:
                self.close()
            if self._store is None:
                self._store = self._open(False)
                self.openings += 1
            return self._store

    def keep(self, intake: Intake) -> None:
        """See `Keeper.keep`."""
        entries = [*_seal_asides(intake.aside, intake.time), *(_entry(one, intake.time) for one in intake.records)]
        progress = {device: write_progress(one) for device, one in intake.progress.items()}
        # Before the rest: a message that is not acknowledged comes again, and a consent may be kept twice but not lost.
        if consents := [one for one in intake.records if isinstance(one, ConsentRecord)]:
            self._keep_consents(consents)
        self.store().append(intake.batch, entries, progress)

    def progress(self) -> Mapping[str, Progress]:
        """See `Keeper.progress`."""
        return {device: read_progress(content) for device, content in self.store().progress().items()}

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        """See `Keeper.forgotten`."""
        return self.store().forgotten(patients)

    def is_well(self) -> bool:
        """Whether the store is open and not broken."""
        with self._lock:
            return self._store is not None and not self._store.broken

    def close(self) -> None:
        """Free the store for another process."""
        with self._lock:
            if self._store is not None:
                store, self._store = self._store, None
                store.close()


def read_asides(store: ObservationStore, patient: str | None = None) -> Iterator[tuple[str, Aside]]:
    """Yield (patient, reading) of everything that was set aside, of one patient or of all; "" is nobody's."""
    for entry in store.entries(EntryKind.ASIDE, patient):
        for one in _ASIDES.decode(entry.content):
            yield entry.patient, one


def read_records(store: ObservationStore, patient: str | None = None) -> Iterator[tuple[int, Record]]:
    """Yield (when it arrived in ms UTC, record) in the order of arrival, of one patient or of all."""
    for entry in store.entries(EntryKind.RECORD, patient):
        name, _, content = entry.content.partition(b"\n")
        yield entry.time, msgspec.json.decode(content, type=_RECORDS[name])


def write_progress(progress: Progress) -> bytes:
    """Return what a restart has to know: the rate's tokens are not part of it."""
    span = min(progress.highest + 1, WINDOW)
    missing = ((1 << span) - 1) & ~progress.seen
    head = _PROGRESS.pack(progress.highest, progress.latest)
    return head + missing.to_bytes((missing.bit_length() + 7) // 8, "little")


def read_progress(content: bytes) -> Progress:
    """Return what `write_progress` wrote. Raises `FedtwinError` for anything else."""
    if len(content) < _PROGRESS.size:
        raise FedtwinError(field="progress", expected=f"{_PROGRESS.size} bytes at least", found=str(len(content)))
    highest, latest = _PROGRESS.unpack_from(content)
    span = min(highest + 1, WINDOW)
    missing = int.from_bytes(content[_PROGRESS.size :], "little")
    return Progress(highest=highest, seen=((1 << span) - 1) & ~missing, latest=latest, tokens=NEW.tokens)


def _seal_asides(several: Sequence[SetAside], time: int) -> Iterator[Entry]:
    """Yield an entry for each message and patient."""
    for aside in several:
        readings = aside.readings
        whose = readings.patient[aside.row]
        for index in np.unique(whose).tolist():
            rows, reasons = aside.row[whose == index], aside.reason[whose == index]
            said = [_aside(aside, row, reason) for row, reason in zip(rows.tolist(), reasons.tolist(), strict=True)]
            content = msgspec.json.encode(said)
            yield Entry(kind=EntryKind.ASIDE, patient=readings.patients[index], time=time, content=content)


def _aside(aside: SetAside, row: int, reason: int) -> Aside:
    readings = aside.readings
    code, unit = readings.kinds[readings.kind[row]]
    value = float(readings.value[row])
    return Aside(
        device=aside.device,
        reason=REASONS[reason],
        code=code,
        unit=unit,
        time=int(readings.time[row]) if readings.fault[row] < 0 else None,
        value=value if np.isfinite(value) else None,
        sequence=int(readings.sequence[row]),
    )


def _entry(record: Record, time: int) -> Entry:
    content = _NAMES[type(record)] + b"\n" + msgspec.json.encode(record)
    return Entry(kind=EntryKind.RECORD, patient=record.patient, time=time, content=content)
