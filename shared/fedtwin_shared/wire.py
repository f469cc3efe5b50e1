"""Signed envelopes and arrays as Flower records, and back: the only place where the two vocabularies meet.

- a record with any field beside the envelope and the arrays is refused, so nothing undeclared can ride along
"""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.round import Arrays

ENVELOPE = "envelope"
ARRAYS = "arrays"
SERIALIZATION: Final = "numpy.ndarray"  # Flower's name of the .npy format


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
    """Return the array, without `numpy.load`: that also opens archives, and allocates whatever a header claims."""
    stream = io.BytesIO(array.data)
    try:
        if array.stype != SERIALIZATION or np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another serialization")
        shape, column_major, kind = np.lib.format.read_array_header_1_0(stream)
        data = stream.getbuffer()[stream.tell() :]
        # Compared before anything is allocated.
        if kind.hasobject or column_major or min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(data):
            raise ValueError("another size")
        if (array.dtype, tuple(array.shape)) != (str(kind), shape):
            raise ValueError("another type or shape than announced")
        return np.frombuffer(data, dtype=kind).reshape(shape).copy()
    except (ValueError, TypeError, RecursionError, MemoryError) as err:
        raise VerificationError(field="arrays", expected="numpy arrays", found="something else") from err
