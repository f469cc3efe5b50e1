"""Signed envelopes and arrays as Flower records, and back: the only place where the two vocabularies meet.

- a record with any field beside the envelope and the arrays is refused, so nothing undeclared can ride along
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.round import Arrays

ENVELOPE = "envelope"
ARRAYS = "arrays"


def pack(envelope: bytes, arrays: Arrays) -> RecordDict:
    """Return the content of one Flower message."""
    return RecordDict(
        {
            ENVELOPE: ConfigRecord({ENVELOPE: envelope}),
            ARRAYS: ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()}),
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
    try:
        return envelope, {name: array.numpy() for name, array in arrays.items()}
    except (ValueError, TypeError, OSError, EOFError) as err:
        raise VerificationError(field="arrays", expected="numpy arrays", found="something else") from err
