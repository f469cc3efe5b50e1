"""What the store asks of a database: tables in transactions, and no secret.

patient    number, digest of the id, the id sealed under the patient's own key
name       kind, number, sealed: names of signals and devices, sealed under a key of the store
block      version, patient, signal, span, rows, sealed; signal `MIXED` is the write-ahead area
damaged    the same columns: blocks that were set aside
entry      number, patient, kind, time, sealed; patient 0 is nobody
progress   device (number of its name), sealed: how far a device has come
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

MIXED: Final = 0  # the signal number, and the span, of a block that holds whatever arrived together


class Kind(IntEnum):
    """What a name is of."""

    STORE = 0
    SIGNAL = 1
    DEVICE = 2


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatientRow:
    """One patient that has, or had, blocks."""

    number: int
    digest: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NameRow:
    """One name."""

    kind: int
    number: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BlockRow:
    """One block. version: higher than that of every block before it. span: number of its `SPAN` since 1970."""

    version: int
    patient: int
    signal: int
    span: int
    rows: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EntryRow:
    """One entry. number: higher than that of every entry before it. time: when it arrived, milliseconds UTC."""

    number: int
    patient: int
    kind: int
    time: int
    sealed: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProgressRow:
    """How far one device has come."""

    device: int
    sealed: bytes


class Database(Protocol):
    """Every method raises `StoreError`; all but `transaction`, `shrink` and `repair` are called inside a transaction.

    - what a transaction wrote is on the disk once its block is left, all of it; when it raises, none
    - after a failure that leaves unknown what the disk holds `broken` is true, and everything raises until it is opened
      again
    """

    broken: bool

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside happens, or nothing."""

    def names(self) -> Sequence[NameRow]:
        """Return all names."""

    def add_names(self, rows: Iterable[NameRow]) -> None:
        """Add names."""

    def patients(self) -> Sequence[PatientRow]:
        """Return all patients."""

    def add_patients(self, rows: Iterable[PatientRow]) -> None:
        """Add patients."""

    def reseal_patient(self, row: PatientRow) -> None:
        """Replace a patient's sealed id."""

    def remove_patient(self, number: int) -> None:
        """Delete the patient, all blocks and all entries."""

    def last_version(self) -> int:
        """Return the highest version that any block has, 0 without one."""

    def pending(self) -> dict[int, int]:
        """Return rows in the write-ahead area by patient."""

    def add_blocks(self, rows: Iterable[BlockRow]) -> None:
        """Add blocks."""

    def blocks(self, patient: int, *, first: int, last: int) -> Sequence[BlockRow]:
        """Return a patient's blocks of first <= span <= last and the write-ahead area, by signal, span and version."""

    def all_blocks(self) -> Iterator[BlockRow]:
        """Yield every block, by version, holding few of them in memory."""

    def parts(self, patient: int) -> Sequence[tuple[int, int, int, int]]:
        """Return version, signal, span and rows of every block of a patient that is not in the write-ahead area."""

    def find(self, versions: Iterable[int]) -> Sequence[BlockRow]:
        """Return the blocks of these versions."""

    def remove_blocks(self, versions: Iterable[int]) -> None:
        """Delete blocks."""

    def set_aside(self, versions: Iterable[int]) -> None:
        """Move blocks to `damaged`."""

    def damaged(self) -> Sequence[BlockRow]:
        """Return what was set aside, without its bytes."""

    def drop_before(self, span: int) -> int:
        """Delete the blocks of earlier spans; return their rows."""

    def last_entry(self) -> int:
        """Return the highest number that any entry has, 0 without one."""

    def add_entries(self, rows: Iterable[EntryRow]) -> None:
        """Add entries."""

    def entries(self, kind: int, patient: int | None) -> Iterator[EntryRow]:
        """Yield the entries of a kind, of one patient or of all, by number, holding few of them in memory."""

    def drop_entries(self, kind: int, time: int) -> int:
        """Delete the entries of a kind that arrived earlier; return how many."""

    def progress(self) -> Sequence[ProgressRow]:
        """Return every device's progress."""

    def put_progress(self, rows: Iterable[ProgressRow]) -> None:
        """Replace devices' progress."""

    def shrink(self) -> None:
        """Give back what deleted rows took, leaving none of their bytes in any file of the database."""

    def repair(self) -> tuple[str, ...]:
        """Check the database's own structure, save what can be read, and say in words what was done."""

    def close(self) -> None:
        """Close it."""
