"""Observations as rows of whole numbers: put in order, cut into blocks, packed into bytes and back.

A table is i64[6, rows]: signal number, time (milliseconds since 1970 UTC), the value's 32 bits, device number, sequence
number, quality. In order means by all six, first to last, and no row twice.

A packed block is the number of rows (u32) and, for each of the six columns, base (i64), stride (i64), width in bytes
(u8: 0, 1, 2, 4 or 8) and rows × width bytes; all little-endian. Row i holds base + i × stride + its unsigned bytes:
frame of reference with a linear model (Lemire & Boytsov 2015, Softw Pract Exp 45:1, for the constant one), so a signal
at a steady rate with consecutive numbers costs its 4 bytes of value and little more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Table = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

COLUMNS = 6
SIGNAL, TIME, VALUE, DEVICE, SEQUENCE, QUALITY = range(COLUMNS)
HEADER = 4
COLUMN_HEADER = 17

_STRICT, _REPEATS, _UNORDERED = 2, 1, 0


def arrange(owner: Rows, table: Table) -> tuple[Rows, Table]:
    """Return owners and their rows in order, by owner first; a row that is there twice is there once.

    - nothing is dropped but exact repetitions
    """
    if len(owner) == 0 or (found := _find_order(owner, table)) == _STRICT:
        return owner, table
    if found == _UNORDERED:
        # What arrives in the order of time needs no more than this, and small keys are sorted by radix.
        key = owner * (int(table[SIGNAL].max()) + 1) + table[SIGNAL]
        order = np.argsort(key.astype(np.uint16) if key.max() < 2**16 and key.min() >= 0 else key, kind="stable")
        owner, table = owner[order], table[:, order]
        found = _find_order(owner, table)
    if found == _UNORDERED:
        order = np.lexsort((*table[::-1], owner))
        owner, table = owner[order], table[:, order]
        found = _find_order(owner, table)
    if found == _REPEATS:
        first = np.ones(len(owner), bool)
        first[1:] = (np.diff(owner) != 0) | (np.diff(table, axis=1) != 0).any(axis=0)
        owner, table = owner[first], table[:, first]
    return owner, table


def cut(*keys: Rows) -> Rows:
    """Return where each run of equal keys starts, and the end of the last: i64[runs + 1]."""
    length = len(keys[0])
    changes = np.zeros(length, bool)
    changes[:1] = True
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.append(np.flatnonzero(changes), length)


def pack(table: Table, starts: Rows) -> tuple[Bytes, Rows]:
    """Return the blocks' bytes one after the other, and where each starts: i64[blocks + 1].

    starts: i64[blocks + 1], the first row of each block and the end of the last; no block is empty.
    """
    blocks = len(starts) - 1
    model = np.empty((blocks, COLUMNS, 4), np.int64)
    offsets = np.zeros(blocks + 1, np.int64)
    _fit(table, starts, model, offsets)
    data = np.empty(offsets[-1], np.uint8)
    _write(table, starts, model, offsets, data)
    return data, offsets


def unpack(data: Bytes, offsets: Rows, starts: Rows) -> Table | None:
    """Return the rows of packed blocks; None when one of them does not hold what `starts` says."""
    table = np.empty((COLUMNS, int(starts[-1])), np.int64)
    return table if _read(data, offsets, starts, table) else None


@njit(cache=True)
def _find_order(owner: Rows, table: Table) -> int:
    found = _STRICT
    for row in range(1, len(owner)):
        step = owner[row] - owner[row - 1]
        column = 0
        while step == 0 and column < COLUMNS:
            step = table[column, row] - table[column, row - 1]
            column += 1
        if step < 0:
            return _UNORDERED
        if step == 0:
            found = _REPEATS
    return found


@njit(cache=True)
def _fit(table: Table, starts: Rows, model: Table, offsets: Rows) -> None:
    """Find base, stride, smallest residual and width of every column of every block."""
    for block in range(len(starts) - 1):
        first, last = starts[block], starts[block + 1] - 1
        size = HEADER
        for column in range(COLUMNS):
            values = table[column]
            stride = 0
            if column != VALUE and last > first:
                stride = (values[last] - values[first]) // (last - first)
            low = high = values[first]
            for row in range(first, last + 1):
                rest = values[row] - (row - first) * stride
                low, high = min(low, rest), max(high, rest)
            spread = high - low
            width = 8
            if spread == 0:
                width = 0
            elif spread < 1 << 8:
                width = 1
            elif spread < 1 << 16:
                width = 2
            elif spread < 1 << 32:
                width = 4
            model[block, column, 0] = low
            model[block, column, 1] = stride
            model[block, column, 2] = width
            size += COLUMN_HEADER + (last + 1 - first) * width
        offsets[block + 1] = offsets[block] + size


@njit(cache=True)
def _put(data: Bytes, at: int, value: int, width: int) -> int:
    for byte in range(width):
        data[at + byte] = (value >> (8 * byte)) & 255
    return at + width


@njit(cache=True)
def _write(table: Table, starts: Rows, model: Table, offsets: Rows, data: Bytes) -> None:
    for block in range(len(starts) - 1):
        first, end = starts[block], starts[block + 1]
        at = _put(data, offsets[block], end - first, HEADER)
        for column in range(COLUMNS):
            values = table[column]
            low, stride, width = model[block, column, 0], model[block, column, 1], model[block, column, 2]
            at = _put(data, at, low, 8)
            at = _put(data, at, stride, 8)
            at = _put(data, at, width, 1)
            if width == 1:
                for row in range(first, end):
                    data[at] = values[row] - (row - first) * stride - low
                    at += 1
            elif width == 2:
                for row in range(first, end):
                    at = _put(data, at, values[row] - (row - first) * stride - low, 2)
            elif width == 4:
                for row in range(first, end):
                    at = _put(data, at, values[row] - (row - first) * stride - low, 4)
            elif width == 8:
                for row in range(first, end):
                    at = _put(data, at, values[row] - (row - first) * stride - low, 8)


@njit(cache=True)
def _get(data: Bytes, at: int, width: int) -> int:
    value = np.int64(0)
    for byte in range(width):
        value |= np.int64(data[at + byte]) << (8 * byte)
    return int(value)


@njit(cache=True)
def _read(data: Bytes, offsets: Rows, starts: Rows, table: Table) -> bool:
    for block in range(len(starts) - 1):
        first, end = starts[block], starts[block + 1]
        at, limit = offsets[block], offsets[block + 1]
        if limit - at < HEADER + COLUMNS * COLUMN_HEADER or _get(data, at, HEADER) != end - first:
            return False
        at += HEADER
        for column in range(COLUMNS):
            if limit - at < COLUMN_HEADER:
                return False
            values = table[column]
            low, stride, width = _get(data, at, 8), _get(data, at + 8, 8), _get(data, at + 16, 1)
            at += COLUMN_HEADER
            if width > 8 or limit - at < (end - first) * width:
                return False
            if width == 0:
                for row in range(first, end):
                    values[row] = low + (row - first) * stride
            elif width == 1:
                for row in range(first, end):
                    values[row] = low + (row - first) * stride + data[at + row - first]
            elif width == 2:
                for row in range(first, end):
                    values[row] = low + (row - first) * stride + _get(data, at + (row - first) * 2, 2)
            elif width == 4:
                for row in range(first, end):
                    values[row] = low + (row - first) * stride + _get(data, at + (row - first) * 4, 4)
            else:
                for row in range(first, end):
                    values[row] = low + (row - first) * stride + _get(data, at + (row - first) * width, width)
            at += (end - first) * width
        if at != limit:
            return False
    return True
