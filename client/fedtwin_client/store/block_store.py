"""The store over any `Database`: rows are cut into blocks of one patient, signal and `SPAN`, packed and sealed.

What is too little for a block of its own waits, sealed all the same, in the write-ahead area: one entry of an append
for each patient. Once a patient has `FOLD` rows there, the append that sees it puts them into blocks, in its own
transaction. A span may have several blocks; folding merges those that are at most twice what it adds, so that a row is
written again a logarithmic number of times.

What this does not see: a whole older database, or rows that somebody deleted from it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_client.store.batches import to_batch, to_table
from fedtwin_client.store.database import MIXED, BlockRow, Database, Kind
from fedtwin_client.store.entries import open_entry, open_progress, seal_entries, seal_progress
from fedtwin_client.store.index import Index, load_index
from fedtwin_client.store.keys import KeyRing
from fedtwin_client.store.rows import COLUMNS, SIGNAL, TIME, Rows, Table, arrange, cut
from fedtwin_client.store.sealing import open_blocks, seal_blocks
from fedtwin_client.store.sqlite_database import SqliteDatabase
from fedtwin_client.store.store import NO_PROGRESS, SPAN, Damage, Entry, EntryKind, Receipt, Report

DIRECT: Final = 256  # rows that are a block of their own at once
FOLD: Final = 2048  # rows of one patient in the write-ahead area, at most
KEYS_FOLDER: Final = "keys"


def open_store(folder: Path, *, check: bool = True) -> BlockStore:
    """Open, or make, the SQLite store of a folder; `check` decrypts every block first.

    Raises `StoreError`, also when another process has it open.
    """
    database = SqliteDatabase(folder)
    try:
        return BlockStore(database, KeyRing(folder / KEYS_FOLDER), check=check)
    except BaseException:
        database.close()
        raise


class BlockStore:
    """See `ObservationStore`."""

    def __init__(self, database: Database, keys: KeyRing, *, check: bool = True) -> None:
        self._database, self._keys = database, keys
        self._lock, self._watchers = threading.RLock(), list[Callable[[str], None]]()
        self._repairs = database.repair() if check else ()
        self._index, self._stale = Index(), True
        erased = self._current().erased
        if erased:
            database.shrink()
        with self._lock, database.transaction():
            damaged = tuple(self._describe(block) for block in database.damaged())
        self._report = Report(
            blocks=0, rows=0, damaged=damaged, repairs=(*self._repairs, *self._index.lost), erased=erased
        )
        if check:
            self.check()

    @property
    def broken(self) -> bool:
        """Whether the database failed in a way that only opening it again mends."""
        return self._database.broken

    @property
    def report(self) -> Report:
        """See `ObservationStore.report`."""
        return self._report

    def append(
        self, batch: ObservationBatch, entries: Sequence[Entry] = (), progress: Mapping[str, bytes] = NO_PROGRESS
    ) -> Receipt:
        """See `ObservationStore.append`."""
        with self._lock:
            digests = [self._keys.digest(patient) for patient in batch.patients]
            kept = np.array([not self._keys.is_forgotten(digest) for digest in digests], bool)
            rows = slice(None) if kept.all() else np.flatnonzero(kept[batch.patient])
            used = np.flatnonzero(np.bincount(batch.patient[rows], minlength=len(digests))).tolist()
            owners = [(self._keys.digest(entry.patient) if entry.patient else b"", entry) for entry in entries]
            owners = [(digest, entry) for digest, entry in owners if not self._keys.is_forgotten(digest)]
            named = {digests[at]: batch.patients[at] for at in used}
            named |= {digest: entry.patient for digest, entry in owners if digest}
            # Keys first: a crash after this leaves keys without rows, never rows without a key.
            self._keys.create(named)
            with self._change() as index:
                index.add_patients(self._database, self._keys, named.items())
                index.add_names(self._database, self._keys, Kind.DEVICE, (*batch.devices, *progress))
                numbers = np.array([index.numbers.get(digest, 0) for digest in digests], np.int64)
                self._write(*arrange(numbers[batch.patient[rows]], to_table(batch, rows, index)))
                owned = [(index.numbers.get(digest, 0), entry) for digest, entry in owners]
                self._database.add_entries(seal_entries(owned, index=index, keys=self._keys))
                self._database.put_progress(seal_progress(progress, index=index, keys=self._keys))
            self._notify([batch.patients[at] for at in used])
            stored = len(batch.patient[rows])
            return Receipt(stored=stored, refused=len(batch) - stored)

    def read(self, patient: str, *, since: int | None = None, until: int | None = None) -> ObservationBatch:
        """See `ObservationStore.read`."""
        with self._lock:
            index = self._current()
            number = index.numbers.get(self._keys.digest(patient), 0)
            first, last = _FIRST if since is None else since // SPAN, _LAST if until is None else (until - 1) // SPAN
            with self._database.transaction():
                table = self._open(self._database.blocks(number, first=first, last=last))
            if since is not None or until is not None:
                low, high = -_FAR if since is None else since, _FAR if until is None else until
                inside = (table[TIME] >= low) & (table[TIME] < high)
                table = table if inside.all() else table[:, inside]
            return to_batch(patient, arrange(np.zeros(table.shape[1], np.int64), table)[1], index)

    def scan(self) -> Iterator[ObservationBatch]:
        """See `ObservationStore.scan`."""
        for patient in self.patients():
            batch = self.read(patient)
            if len(batch):
                yield batch

    def patients(self) -> tuple[str, ...]:
        """See `ObservationStore.patients`."""
        with self._lock:
            return tuple(sorted(self._current().ids.values()))

    def entries(self, kind: EntryKind, patient: str | None = None) -> Iterator[Entry]:
        """See `ObservationStore.entries`."""
        with self._lock:
            index, owner = self._current(), None
            if patient is not None:
                owner = index.numbers.get(self._keys.digest(patient), -1) if patient else 0
            with self._database.transaction():
                opened = [open_entry(row, index=index, keys=self._keys) for row in self._database.entries(kind, owner)]
        return (entry for entry in opened if entry is not None)

    def progress(self) -> Mapping[str, bytes]:
        """See `ObservationStore.progress`."""
        with self._lock:
            index = self._current()
            with self._database.transaction():
                return open_progress(self._database.progress(), index=index, keys=self._keys)

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        """See `ObservationStore.forgotten`."""
        with self._lock:
            if not self._keys.any_forgotten:
                return frozenset()
            return frozenset(one for one in patients if self._keys.is_forgotten(self._keys.digest(one)))

    def forget(self, patient: str) -> bool:
        """See `ObservationStore.forget`."""
        with self._lock:
            digest = self._keys.digest(patient)
            number = self._current().numbers.get(digest)
            # From here on nothing can be read. A crash before the end is finished by the next start.
            was = self._keys.forget(digest)
            self._notify([patient])
            if number is not None:
                with self._change() as index:
                    index.remove_patient(self._database, number)
            self._database.shrink()
            return was

    def readmit(self, patient: str) -> bool:
        """See `ObservationStore.readmit`."""
        with self._lock:
            return self._keys.readmit(self._keys.digest(patient))

    def drop_before(self, time: int) -> int:
        """See `ObservationStore.drop_before`."""
        with self._lock:
            self.compact()
            with self._change():
                rows = self._database.drop_before(time // SPAN)
            self._database.shrink()
            self._notify(self.patients())
            return rows

    def drop_entries(self, kind: EntryKind, time: int) -> int:
        """See `ObservationStore.drop_entries`."""
        with self._lock:
            with self._change():
                dropped = self._database.drop_entries(kind, time)
            if dropped:
                self._database.shrink()
            return dropped

    def compact(self) -> None:
        """See `ObservationStore.compact`."""
        with self._lock:
            for number in sorted(+self._current().pending):
                with self._change():
                    self._fold(number, np.empty((COLUMNS, 0), np.int64))
            self._database.shrink()

    def check(self) -> Report:
        """See `ObservationStore.check`."""
        with self._lock:
            index, blocks, rows = self._current(), 0, 0
            damaged = []
            with self._database.transaction():
                for block in self._database.all_blocks():
                    if open_blocks([block], index=index, keys=self._keys)[1]:
                        damaged.append(block)
                    else:
                        blocks, rows = blocks + 1, rows + block.rows
                self._set_aside(damaged)
                lost = sum(
                    open_entry(row, index=index, keys=self._keys) is None
                    for kind in EntryKind
                    for row in self._database.entries(kind, None)
                )
            repairs = (*self._repairs, *index.lost, *((f"entries that cannot be read: {lost}",) if lost else ()))
            self._report = replace(self._report, blocks=blocks, rows=rows, repairs=repairs)
            return self._report

    def watch(self, changed: Callable[[str], None]) -> None:
        """See `ObservationStore.watch`."""
        self._watchers.append(changed)

    def close(self) -> None:
        """See `ObservationStore.close`."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _current(self) -> Index:
        """Return the index; read again from the database after a change that did not happen."""
        if self._stale:
            with self._database.transaction():
                self._index = load_index(self._database, self._keys)
            self._stale = False
        return self._index

    @contextlib.contextmanager
    def _change(self) -> Iterator[Index]:
        """A transaction that may change the index with the database."""
        index = self._current()
        self._stale = True
        with self._database.transaction():
            yield index
        self._stale = False

    def _write(self, owner: Rows, table: Table) -> None:
        """Write rows in order: whole blocks as such, the rest to the write-ahead area, or folded with what is there."""
        starts = cut(owner, table[SIGNAL], table[TIME] // SPAN)
        sizes = np.diff(starts)
        if (sizes < DIRECT).any():
            direct = np.repeat(sizes >= DIRECT, sizes)
            self._write_small(owner[~direct], table[:, ~direct])
            owner, table = owner[direct], table[:, direct]
            starts = np.concatenate(([0], np.cumsum(sizes[sizes >= DIRECT])))
        self._add(owner, table, starts, mixed=False)

    def _write_small(self, owner: Rows, table: Table) -> None:
        starts = cut(owner)
        numbers, sizes = owner[starts[:-1]], np.diff(starts)
        pending = self._index.pending
        folded = np.array(
            [pending[number] + size >= FOLD for number, size in zip(numbers.tolist(), sizes.tolist(), strict=True)]
        )
        for at in np.flatnonzero(folded):
            self._fold(int(numbers[at]), table[:, starts[at] : starts[at + 1]])
        waiting = np.repeat(~folded, sizes)
        for number, size in zip(numbers[~folded].tolist(), sizes[~folded].tolist(), strict=True):
            pending[number] += size
        self._add(owner[waiting], table[:, waiting], cut(owner[waiting]), mixed=True)

    def _fold(self, number: int, table: Table) -> None:
        """Put a patient's rows, new ones and those of the write-ahead area, into blocks."""
        entries = self._database.blocks(number, first=_LAST, last=_FIRST)
        table = np.concatenate((table, self._open(entries)), axis=1)
        merged = self._find_merged(number, table)
        table = np.concatenate((table, self._open(merged)), axis=1)
        owner, table = arrange(np.full(table.shape[1], number), table)
        self._add(owner, table, cut(owner, table[SIGNAL], table[TIME] // SPAN), mixed=False)
        self._database.remove_blocks(block.version for block in (*entries, *merged))
        self._index.pending.pop(number, None)

    def _find_merged(self, number: int, table: Table) -> Sequence[BlockRow]:
        """Return the blocks that are written again together with `table`."""
        if table.shape[1] == 0:
            return ()
        places, counts = np.unique(np.stack((table[SIGNAL], table[TIME] // SPAN)), axis=1, return_counts=True)
        added = dict(zip(zip(*places.tolist(), strict=True), counts.tolist(), strict=True))
        merged = []
        for version, signal, span, rows in sorted(self._database.parts(number), key=lambda part: part[3]):
            if rows <= 2 * added.get((signal, span), 0):
                added[signal, span] += rows
                merged.append(version)
        return self._database.find(merged)

    def _add(self, owner: Rows, table: Table, starts: Rows, *, mixed: bool) -> None:
        if len(owner):
            blocks = seal_blocks(owner, table, starts, mixed=mixed, index=self._index, keys=self._keys)
            self._database.add_blocks(blocks)

    def _open(self, blocks: Sequence[BlockRow]) -> Table:
        """Return the rows of a patient's blocks; what is damaged is set aside."""
        table, damaged = open_blocks(blocks, index=self._index, keys=self._keys)
        self._set_aside(damaged)
        return table

    def _set_aside(self, blocks: Sequence[BlockRow]) -> None:
        if blocks:
            self._database.set_aside(block.version for block in blocks)
            found = tuple(self._describe(block) for block in blocks)
            self._report = replace(self._report, damaged=(*self._report.damaged, *found))

    def _describe(self, block: BlockRow) -> Damage:
        signal = "" if block.signal == MIXED else self._index.signals.texts.get(block.signal, "")
        return Damage(signal=signal, start=block.span * SPAN, rows=block.rows)

    def _notify(self, patients: Sequence[str]) -> None:
        for changed in self._watchers:
            for patient in patients:
                changed(patient)


_FAR = 2**62
_FIRST, _LAST = -_FAR // SPAN, _FAR // SPAN
