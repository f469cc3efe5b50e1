"""Entries and devices' progress into sealed rows and back.

An entry is sealed by its patient's key, or by the key of the store's names where it names nobody, and bound to that
patient's digest, its own number, its kind and its time; progress is bound to its device's number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtwin_client.store.database import EntryRow, ProgressRow
from fedtwin_client.store.index import Index
from fedtwin_client.store.keys import DIGEST, KeyRing, seal_now, unseal
from fedtwin_client.store.store import Entry, EntryKind

_ENTRY_BOUND: Final = struct.Struct("<16sqqq")
_NOBODY: Final = bytes(DIGEST)


def seal_entries(entries: Iterable[tuple[int, Entry]], *, index: Index, keys: KeyRing) -> Iterator[EntryRow]:
    """Yield a sealed row for each (patient's number, entry); 0 is nobody's. `index.entry` counts them."""
    for patient, entry in entries:
        index.entry += 1
        row = EntryRow(number=index.entry, patient=patient, kind=entry.kind, time=entry.time, sealed=b"")
        cipher = _entry_cipher(row, index, keys)
        assert cipher is not None  # the key comes before what it seals
        yield replace(row, sealed=seal_now(cipher, entry.content, _bind_entry(row, index)))


def open_entry(row: EntryRow, *, index: Index, keys: KeyRing) -> Entry | None:
    """Return an entry; None when it is damaged, or its patient's key is gone."""
    cipher = _entry_cipher(row, index, keys)
    content = None if cipher is None else unseal(cipher, row.sealed, _bind_entry(row, index))
    if content is None:
        return None
    return Entry(kind=EntryKind(row.kind), patient=index.ids.get(row.patient, ""), time=row.time, content=content)


def _entry_cipher(row: EntryRow, index: Index, keys: KeyRing) -> AESGCM | None:
    if row.patient == 0:
        return keys.names
    digest = index.digests.get(row.patient)
    return None if digest is None else keys.cipher(digest)


def _bind_entry(row: EntryRow, index: Index) -> bytes:
    return _ENTRY_BOUND.pack(index.digests.get(row.patient, _NOBODY), row.number, row.kind, row.time)


def seal_progress(progress: Mapping[str, bytes], *, index: Index, keys: KeyRing) -> Iterator[ProgressRow]:
    """Yield a sealed row for each device, whose name the index has."""
    for device, content in progress.items():
        number = index.devices.numbers[device]
        yield ProgressRow(device=number, sealed=seal_now(keys.names, content, _bind_progress(number)))


def open_progress(rows: Iterable[ProgressRow], *, index: Index, keys: KeyRing) -> dict[str, bytes]:
    """Return device -> content of what can be opened."""
    opened = ((row.device, unseal(keys.names, row.sealed, _bind_progress(row.device))) for row in rows)
    return {index.devices.texts[device]: content for device, content in opened if content is not None}


def _bind_progress(device: int) -> bytes:
    return f"progress:{device}".encode()
