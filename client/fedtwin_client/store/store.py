"""What a hospital's store of observations does, whatever database is behind it.

Design note: what can be erased is what has a key of its own. Every patient has one; everything that the store keeps
of a patient, their id included, is encrypted under it; `forget` destroys it. On disk a patient is a keyed digest.
In clear stand only: that digest's number, a signal's number, which four hours a block is of, and its number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, Protocol, Self

from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_shared.errors import FedtwinError

SPAN: Final = 4 * 3600 * 1000  # milliseconds of one block: 14,400 rows at one a second, and 4 of an hourly chart


class StoreError(FedtwinError):
    """The store's disk, its keys or its database is not as it must be. Nothing acknowledged is lost by it."""


class EntryKind(IntEnum):
    """What an entry is."""

    ASIDE = 1  # readings that were not accepted, with their reasons
    RECORD = 2  # an admission event, a patient record, a consent, an administration


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """What is kept of a patient beside observations, as bytes; sealed and erased as they are.

    patient: "" for what names nobody. time: when it arrived, milliseconds since 1970 UTC.

    - its repr shows nothing
    """

    kind: EntryKind
    patient: str
    time: int
    content: bytes


NO_PROGRESS: Final[Mapping[str, bytes]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an append did: rows that are on the disk, and rows of forgotten patients, which are not kept."""

    stored: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A block that cannot be read. It was set aside; it is not served and not deleted. No patient is named.

    signal: key of the Signal table, "" for a block of many. start: milliseconds since 1970 UTC; the block is of `SPAN`.
    """

    signal: str
    start: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check found.

    blocks, rows: whole and served. damaged: set aside, now and earlier. repairs: in words, what was done about the
    database itself. erased: patients whose erasure was finished, because a crash or an older database had left it.
    """

    blocks: int
    rows: int
    damaged: tuple[Damage, ...]
    repairs: tuple[str, ...]
    erased: int

    @property
    def whole(self) -> bool:
        """Nothing is missing that was ever acknowledged and not erased."""
        return not self.damaged and not self.repairs


class ObservationStore(Protocol):
    """Durable, encrypted observations of one hospital. One process at a time; its methods may be called by any thread.

    - `append` returns only after everything is on the disk, and what it acknowledged survives a kill at any instant
    - `append` stores the whole batch or, when it raises, none of it
    - rows that are wholly the same are returned once, however often they were appended
    - no id of a patient and no value stands in clear on the disk
    - once a patient is forgotten, no file of the store, and no copy of one, can be read for this patient
    - a damaged block is set aside and reported, and everything else is served
    - every method raises `StoreError` for a disk, key or database that is not as it must be
    """

    @property
    def report(self) -> Report:
        """What was found when the store was opened, and by reading since."""

    def append(
        self, batch: ObservationBatch, entries: Sequence[Entry] = (), progress: Mapping[str, bytes] = NO_PROGRESS
    ) -> Receipt:
        """Store a batch, entries, and how far devices have come (device -> anything), all of it or none.

        Rows of forgotten patients are refused and counted, their entries dropped, until `readmit`.
        """

    def read(self, patient: str, *, since: int | None = None, until: int | None = None) -> ObservationBatch:
        """Return one patient's rows with since <= time < until, in order of signal, time and device; ms UTC."""

    def scan(self) -> Iterator[ObservationBatch]:
        """Yield every patient's rows, a batch of one patient at a time."""

    def patients(self) -> tuple[str, ...]:
        """Return the ids of all patients with data, in increasing order."""

    def entries(self, kind: EntryKind, patient: str | None = None) -> Iterator[Entry]:
        """Yield the entries of a kind, of one patient or of all, in the order in which they were appended."""

    def progress(self) -> Mapping[str, bytes]:
        """Return what `append` kept last for each device."""

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        """Return those whose rows would be refused."""

    def forget(self, patient: str) -> bool:
        """Destroy the patient's key, then delete what it encrypted; whether there was one. Their rows are refused from
        now on, also for a patient that was never there."""

    def readmit(self, patient: str) -> bool:
        """Take a forgotten patient's rows again, under a new key; whether they were forgotten."""

    def drop_before(self, time: int) -> int:
        """Delete the blocks that end at or before `time` (ms UTC); return how many rows went."""

    def drop_entries(self, kind: EntryKind, time: int) -> int:
        """Delete the entries of a kind that arrived before `time` (ms UTC); return how many."""

    def compact(self) -> None:
        """Put everything from the write-ahead area into blocks."""

    def check(self) -> Report:
        """Decrypt every block, set aside what is damaged, finish what a crash left, and report."""

    def watch(self, changed: Callable[[str], None]) -> None:
        """Call `changed` with a patient's id after each change of their rows, so that a cache can drop them."""

    def close(self) -> None:
        """Free the store for another process."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
