r"""The packed form for high rates: the columns of a batch as they lie in memory, little-endian.

    bytes   field
    4       magic, b"FTP1"
    2 u16   number of patient ids, p
    2 u16   number of kinds, k
    4 u32   number of readings, n
    8 i64   sequence number of the first reading; each one after it is one more; -1: not numbered
    8 i64   base time, milliseconds since 1970 UTC
    …       p ids, then k kinds, in UTF-8: an id as u8 length and bytes; a kind as two of these, code and UCUM unit
            (code as `codes` writes it: `8867-4`, `mdc:147842`, `heart_rate`)
    4·n i32 time after the base, milliseconds
    4·n f32 value, in the kind's unit
    2·n u16 patient, index of an id
    2·n u16 kind, index of a kind
    1·n u8  quality: 0 valid, 1 questionable, 2 invalid

Thirteen bytes a reading. Nothing follows. A message of n bytes, n <= `MAXIMUM_BYTES`, takes at most
`MEMORY_FACTOR` · n while it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.ingest.readings import NO_FAULT, Readings
from fedtwin_client.observation_batch import LATEST, NO_SEQUENCE, Quality

MAGIC: Final = b"FTP1"
MAXIMUM_BYTES: Final = 1 << 20
MEMORY_FACTOR: Final = 40
BYTES_A_READING: Final = 13

_HEAD: Final = struct.Struct("<4sHHIqq")
_COLUMNS: Final = (("<i4", 4), ("<f4", 4), ("<u2", 2), ("<u2", 2), ("u1", 1))


def read_message(data: bytes) -> Readings | str:
    """Return the readings of one message, or fixed words why it is none. Never raises.

    - lengths that do not add up to the message, indices that point nowhere, an id twice, bad text: refused whole
    """
    if len(data) > MAXIMUM_BYTES:
        return "message too large"
    if len(data) < _HEAD.size:
        return "message unreadable"
    magic, patient_count, kind_count, count, first, base = _HEAD.unpack_from(data)
    if magic != MAGIC:
        return "version not supported"
    texts, at = _read_texts(data, _HEAD.size, patient_count + 2 * kind_count)
    if texts is None or len(data) - at != BYTES_A_READING * count:
        return "message unreadable"
    if len(set(texts[:patient_count])) != patient_count:
        return "message unreadable"
    if not (first >= NO_SEQUENCE and first + count < LATEST and -LATEST // 2 < base < LATEST // 2):
        return "message unreadable"
    columns: list[npt.NDArray[np.generic]] = []
    for kind, size in _COLUMNS:
        columns.append(np.frombuffer(data, kind, count, at))
        at += size * count
    time, value, patient, which, quality = columns
    if count and not (int(patient.max()) < patient_count and int(which.max()) < kind_count):
        return "message unreadable"
    if count and int(quality.max()) > Quality.INVALID:
        return "message unreadable"
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        wide = value.astype(np.float64)
    pairs = texts[patient_count:]
    sequence = np.full(count, NO_SEQUENCE, np.int64) if first < 0 else np.arange(first, first + count, dtype=np.int64)
    return Readings(
        patients=tuple(texts[:patient_count]),
        kinds=tuple(zip(pairs[::2], pairs[1::2], strict=True)),
        patient=patient.astype(np.int32),
        kind=which.astype(np.int32),
        time=time.astype(np.int64) + base,
        value=wide,
        sequence=sequence,
        quality=quality.astype(np.uint8),
        fault=np.full(count, NO_FAULT, np.int8),
    )


def write_message(
    *,
    patients: Sequence[str],
    kinds: Sequence[tuple[str, str]],
    base: int,
    time: npt.ArrayLike,
    value: npt.ArrayLike,
    patient: npt.ArrayLike,
    kind: npt.ArrayLike,
    quality: npt.ArrayLike | None = None,
    first: int = NO_SEQUENCE,
) -> bytes:
    """Return readings in columns as one message; `time` counts from `base`. Raises `ValueError` or `struct.error`."""
    after = np.asarray(time, "<i4")
    texts = [text.encode() for text in (*patients, *(part for pair in kinds for part in pair))]
    given = np.zeros(len(after), "u1") if quality is None else np.asarray(quality, "u1")
    columns = (after, np.asarray(value, "<f4"), np.asarray(patient, "<u2"), np.asarray(kind, "<u2"), given)
    if any(len(column) != len(after) for column in columns):
        raise ValueError("expected columns of one length")
    return b"".join(
        (
            _HEAD.pack(MAGIC, len(patients), len(kinds), len(after), first, base),
            *(struct.pack("<B", len(text)) + text for text in texts),
            *(column.tobytes() for column in columns),
        )
    )


def _read_texts(data: bytes, at: int, number: int) -> tuple[list[str] | None, int]:
    """Return so many texts from `at` on, and where they end; None: they are not there."""
    texts: list[str] = []
    for _ in range(number):
        if at >= len(data):
            return None, at
        end = at + 1 + data[at]
        try:
            texts.append(data[at + 1 : end].decode())
        except UnicodeDecodeError:
            return None, at
        at = end
    return (texts, at) if at <= len(data) else (None, at)
