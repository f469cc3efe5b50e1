"""Rows into sealed blocks and back.

A block is sealed by its patient's key and bound to that patient's digest, the signal's key, its span, its number of
rows and its version, so that none can stand for another one, of the same patient or of another.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtwin_client.store.database import MIXED, BlockRow
from fedtwin_client.store.index import Index
from fedtwin_client.store.keys import NONCE, TAG, KeyRing, seal
from fedtwin_client.store.rows import COLUMNS, SIGNAL, TIME, Rows, Table, pack, unpack
from fedtwin_client.store.store import SPAN

_BOUND: Final = struct.Struct("<16sqqI")


def seal_blocks(
    owner: Rows, table: Table, starts: Rows, *, mixed: bool, index: Index, keys: KeyRing
) -> Iterator[BlockRow]:
    """Yield a sealed block for each run of rows; `index.version` counts them."""
    data, offsets = pack(table, starts)
    view, nonces = data.data, os.urandom(NONCE * (len(starts) - 1))
    first = starts[:-1]
    places = zip(
        offsets[:-1].tolist(),
        offsets[1:].tolist(),
        owner[first].tolist(),
        table[SIGNAL, first].tolist(),
        (table[TIME, first] // SPAN).tolist(),
        np.diff(starts).tolist(),
        strict=True,
    )
    for at, (begin, end, patient, signal, span, rows) in enumerate(places):
        index.version += 1
        block = BlockRow(
            version=index.version,
            patient=patient,
            signal=MIXED if mixed else signal,
            span=0 if mixed else span,
            rows=rows,
            sealed=b"",
        )
        cipher = keys.cipher(index.digests[patient])
        assert cipher is not None  # the key comes before the rows
        nonce = nonces[NONCE * at : NONCE * (at + 1)]
        yield BlockRow(
            version=block.version,
            patient=block.patient,
            signal=block.signal,
            span=block.span,
            rows=rows,
            sealed=seal(cipher, view[begin:end], _bind(block, index), nonce),
        )


def open_blocks(blocks: Sequence[BlockRow], *, index: Index, keys: KeyRing) -> tuple[Table, list[BlockRow]]:
    """Return the rows of all blocks of one patient one after the other, and the blocks that are damaged."""
    if not blocks:
        return np.empty((COLUMNS, 0), np.int64), []
    digest = index.digests.get(blocks[0].patient)
    cipher = keys.cipher(digest) if digest is not None else None
    if cipher is None:
        return np.empty((COLUMNS, 0), np.int64), list(blocks)
    sizes = [max(len(block.sealed) - NONCE - TAG, 0) for block in blocks]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    data = np.empty(int(offsets[-1]), np.uint8)
    view, ends = data.data, offsets.tolist()
    damaged = [
        block
        for at, block in enumerate(blocks)
        if not _open(cipher, block, _bind(block, index), view[ends[at] : ends[at + 1]])
    ]
    if not damaged:
        starts = np.concatenate(([0], np.cumsum([block.rows for block in blocks])))
        table = unpack(data, offsets, starts)
        if table is not None:
            return table, []
        # Sealed by this store and yet not what it says: only a fault of its own could do that. One by one, then.
        damaged = list(blocks) if len(blocks) == 1 else [one for one in blocks if _is_odd(one, index, keys)]
    gone = {block.version for block in damaged}
    whole = [block for block in blocks if block.version not in gone]
    return open_blocks(whole, index=index, keys=keys)[0], damaged


def _is_odd(block: BlockRow, index: Index, keys: KeyRing) -> bool:
    return bool(open_blocks([block], index=index, keys=keys)[1])


def _open(cipher: AESGCM, block: BlockRow, bound: bytes, room: memoryview) -> bool:
    sealed = memoryview(block.sealed)
    try:
        cipher.decrypt_into(sealed[:NONCE], sealed[NONCE:], bound, room)
    except (InvalidTag, ValueError):
        return False
    return True


def _bind(block: BlockRow, index: Index) -> bytes:
    signal = "" if block.signal == MIXED else index.signals.texts.get(block.signal, "?")
    return _BOUND.pack(index.digests[block.patient], block.version, block.span, block.rows) + signal.encode()
