"""Signed envelopes and arrays as Flower records, and back: the only place where the two vocabularies meet.

- a record with any field beside the envelope and the arrays is refused, so nothing undeclared can ride along
"""

from __future__ import annotations

import functools
import io
import math
import operator
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.round import Arrays

ENVELOPE = "envelope"
ARRAYS = "arrays"
SERIALIZATION: Final = "numpy.ndarray"  # Flower's name of the .npy format
NUMBERS: Final = frozenset({"float32", "float64", "int64"})


def pack(envelope: bytes, arrays: Arrays) -> RecordDict:
    """Return the content of one Flower message."""
    return RecordDict(
        {
            ENVELOPE: ConfigRecord({ENVELOPE: envelope}),
            ARRAYS: ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()}),
        }
    )


def unpack(content: RecordDict) -> tuple[bytes, Arrays]:
    """Return the envelope and the arrays of one Flower message. Raises `VerificationError` for any other form."""
    if set(content) != {ENVELOPE, ARRAYS}:
        raise VerificationError(field="content", expected="envelope and arrays", found=f"{len(content)} records")
    config, arrays = content[ENVELOPE], content[ARRAYS]
    if not isinstance(config, ConfigRecord) or not isinstance(arrays, ArrayRecord) or set(config) != {ENVELOPE}:
        raise VerificationError(field="content", expected="one envelope and its arrays", found="other records")
    envelope = config[ENVELOPE]
    if not isinstance(envelope, bytes):
        raise VerificationError(field="envelope", expected="bytes", found=type(envelope).__name__)
    return envelope, {name: _decode(array) for name, array in arrays.items()}


def _decode(array: Array) -> npt.NDArray[np.generic]:
    """Return the array, without `numpy.load`: that also opens archives, and allocates whatever a header claims.

    The header is not parsed either: it must be, byte for byte, the one of the announced type and shape.
    """
    try:
        shape = tuple(operator.index(size) for size in array.shape)
        if array.stype != SERIALIZATION or array.dtype not in NUMBERS or not all(0 <= size < 2**63 for size in shape):
            raise ValueError("another serialization")
        header, kind = _header(array.dtype, shape), np.dtype(array.dtype)
        # Compared before anything is allocated.
        if len(array.data) != len(header) + math.prod(shape) * kind.itemsize or not array.data.startswith(header):
            raise ValueError("another header or size")
        return np.frombuffer(array.data, dtype=kind, offset=len(header)).reshape(shape).copy()
    except (TypeError, ValueError) as err:  # what a peer announces may be of any type
        raise VerificationError(field="arrays", expected="numpy arrays", found="something else") from err


@functools.lru_cache(maxsize=256)
def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    """Return what `numpy.save` writes before the numbers of an array."""
    buffer = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()
