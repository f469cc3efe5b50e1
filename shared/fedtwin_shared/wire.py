"""Signed envelopes and arrays as one Flower record, and back: the only place where the two vocabularies meet.

Design note: everything travels in one `ConfigRecord` of two byte strings, or three where a ledger proves an update.
Flower stores and fetches every array of an `ArrayRecord`, and every chunk of it, as an object of its own by a request
of its own, on each of four legs; a model of two small arrays cost eight requests a leg and now costs three. The arrays'
bytes are a canonical header (names, types and shapes) followed by their numbers, little-endian, in C order.

- a record with any other field is refused, so nothing undeclared can ride along
- bytes that are not exactly what `pack` writes are refused before anything is allocated
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.round import Arrays
from fedtwin_shared.signing import canonical_json, parse_canonical

RECORD: Final = "fedtwin"
ENVELOPE: Final = "envelope"
ARRAYS: Final = "arrays"
BYTES: Final = "bytes"
EVIDENCE: Final = "evidence"
NUMBERS: Final = frozenset({"float32", "float64", "int64"})
MAX_HEADER_BYTES: Final = 1 << 20  # names and shapes of 10,000 arrays; prevents DoS


def pack(envelope: bytes, arrays: Arrays, evidence: bytes = b"") -> RecordDict:
    """Return the content of one Flower message. evidence: what proves an update's charge (`ledger.evidence`)."""
    fields = {ENVELOPE: envelope, ARRAYS: encode_arrays(arrays)} | ({EVIDENCE: evidence} if evidence else {})
    return RecordDict({RECORD: ConfigRecord({**fields})})


def unpack(content: RecordDict) -> tuple[bytes, Arrays]:
    """Return envelope and arrays of a message without evidence. Raises `VerificationError` for any other form."""
    envelope, arrays, evidence = unpack_answer(content)
    if evidence:
        raise VerificationError(field="content", expected="one envelope and its arrays", found="evidence, too")
    return envelope, arrays


def unpack_answer(content: RecordDict) -> tuple[bytes, Arrays, bytes]:
    """Return the envelope, the arrays and the evidence of one Flower message; the last may be empty.

    Raises `VerificationError` for any other form.
    """
    record = content.get(RECORD)
    if (
        set(content) != {RECORD}
        or not isinstance(record, ConfigRecord)
        or set(record) - {EVIDENCE} != {ENVELOPE, ARRAYS}
    ):
        raise VerificationError(field="content", expected="one envelope and its arrays", found="other records")
    envelope, arrays, evidence = record[ENVELOPE], record[ARRAYS], record.get(EVIDENCE, b"")
    if not isinstance(envelope, bytes) or not isinstance(arrays, bytes) or not isinstance(evidence, bytes):
        raise VerificationError(field="content", expected="bytes", found="another type")
    if EVIDENCE in record and not evidence:
        raise VerificationError(field="content", expected="no evidence, or some", found="an empty one")
    return envelope, decode_arrays(arrays), evidence


def pack_bytes(data: bytes) -> RecordDict:
    """Return the content of a message that is bytes alone: an order of a secure aggregation, or its answer."""
    return RecordDict({RECORD: ConfigRecord({BYTES: data})})


def unpack_bytes(content: RecordDict) -> bytes:
    """Return the bytes that `pack_bytes` packed. Raises `VerificationError` for any other form."""
    record = content.get(RECORD)
    if set(content) != {RECORD} or not isinstance(record, ConfigRecord) or set(record) != {BYTES}:
        raise VerificationError(field="content", expected="bytes alone", found="other records")
    data = record[BYTES]
    if not isinstance(data, bytes):
        raise VerificationError(field="content", expected="bytes", found="another type")
    return data


def encode_arrays(arrays: Arrays) -> bytes:
    """Return the header's length (4 bytes, big-endian), the header and the numbers of each array in turn.

    Raises `TypeError` for arrays of anything but float32, float64 and int64.
    """
    header, numbers = [], []
    for name, array in arrays.items():
        if array.dtype.name not in NUMBERS:
            raise TypeError(f"expected one of {sorted(NUMBERS)}, found {array.dtype}")
        header.append([name, array.dtype.name, list(array.shape)])
        numbers.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    encoded = canonical_json(header)
    return b"".join([len(encoded).to_bytes(4, "big"), encoded, *numbers])


def decode_arrays(data: bytes) -> Arrays:
    """Return the arrays that `encode_arrays` wrote. Raises `VerificationError` for any other bytes."""
    length = int.from_bytes(data[:4], "big")
    if not (4 + length <= len(data) and length <= MAX_HEADER_BYTES):
        raise VerificationError(field="arrays", expected="a header and numbers", found="something else")
    entries = _parse_header(data[4 : 4 + length])
    sizes = [math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in entries]
    if 4 + length + sum(sizes) != len(data) or len({name for name, _, _ in entries}) != len(entries):
        raise VerificationError(field="arrays", expected="the announced numbers", found="others")
    arrays, at = {}, 4 + length
    for (name, kind, shape), size in zip(entries, sizes, strict=True):
        little = np.frombuffer(data[at : at + size], dtype=np.dtype(kind).newbyteorder("<"))
        arrays[name] = little.astype(kind).reshape(shape)
        at += size
    return arrays


def _parse_header(data: bytes) -> list[tuple[str, str, tuple[int, ...]]]:
    refused = VerificationError(field="arrays", expected="a canonical header", found="something else")
    header = parse_canonical(data)
    if not isinstance(header, list):
        raise refused
    entries = []
    for entry in header:
        match entry:
            case [str(name), str(kind), list(shape)] if kind in NUMBERS:
                # `True` is an int to Python and no size to anybody.
                if not all(type(size) is int and size >= 0 for size in shape):
                    raise refused
                entries.append((name, kind, tuple(shape)))
            case _:
                raise refused
    return entries
