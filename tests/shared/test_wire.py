from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.wire import pack, unpack

ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([1.0], dtype=np.float32)}


def test_envelope_and_arrays_round_trip() -> None:
    envelope, arrays = unpack(pack(b"signed", ARRAYS))
    assert envelope == b"signed"
    assert list(arrays) == list(ARRAYS)
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)


def test_no_arrays_round_trip() -> None:
    assert unpack(pack(b"refusal", {})) == (b"refusal", {})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"envelope": ConfigRecord({"envelope": b"x"})}),
        RecordDict(
            {"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ArrayRecord(), "m": MetricRecord({"n": 1})}
        ),
        RecordDict({"envelope": ConfigRecord({"envelope": b"x", "patients": 7}), "arrays": ArrayRecord()}),
        RecordDict({"envelope": ConfigRecord({"envelope": "text"}), "arrays": ArrayRecord()}),
        RecordDict({"envelope": MetricRecord({"envelope": 1}), "arrays": ArrayRecord()}),
        RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ConfigRecord()}),
    ],
)
def test_a_record_with_anything_else_is_refused(content: RecordDict) -> None:
    with pytest.raises(VerificationError):
        unpack(content)


def test_bytes_that_are_no_array_are_refused() -> None:
    hostile = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"not an array")
    content = RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ArrayRecord({"a": hostile})})
    with pytest.raises(VerificationError, match="numpy arrays"):
        unpack(content)


def test_a_pickled_array_is_never_loaded() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], dtype=object), allow_pickle=True)
    hostile = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())
    content = RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ArrayRecord({"a": hostile})})
    with pytest.raises(VerificationError, match="numpy arrays"):
        unpack(content)
