from __future__ import annotations

import io
from typing import Any

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
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], dtype=object), allow_pickle=True)
    hostile = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=buffer.getvalue())
    content = RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ArrayRecord({"a": hostile})})
    with pytest.raises(VerificationError, match="numpy arrays"):
        unpack(content)


def header(shape: tuple[int, ...], *, kind: str = "<f4", column_major: bool = False) -> bytes:
    """The header of a .npy file that claims `shape`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": column_major, "shape": shape})
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1, np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "shape", "kind"),
    [
        (archive(), (1,), "float32"),
        (b"PK\x03\x04 and no archive", (1,), "float32"),
        (header((10**12,)), (10**12,), "float32"),  # would be 4 TB
        (header((2**62, 8)), (2**62, 8), "float32"),
        (header((-1,)) + bytes(4), (-1,), "float32"),
        (header((2, 2), column_major=True) + bytes(16), (2, 2), "float32"),
        (header((1,)) + bytes(5), (1,), "float32"),  # one byte more
        (header((1,)) + bytes(4), (1,), "heart rate 900"),  # a type that says something else
        (header((1,)) + bytes(4), (1, 7), "float32"),  # a shape that says something else
        (header((1,), kind="|O") + bytes(8), (1,), "object"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, (1,), "float32"),
        (b"\x93NUMPY\x02\x00", (1,), "float32"),
    ],
)
def test_what_is_not_exactly_the_announced_array_is_refused(data: bytes, shape: tuple[int, ...], kind: str) -> None:
    hostile = Array(dtype=kind, shape=shape, stype="numpy.ndarray", data=data)
    content = RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": ArrayRecord({"a": hostile})})
    with pytest.raises(VerificationError, match="numpy arrays"):
        unpack(content)


@pytest.mark.parametrize(
    ("shape", "kind", "serialization"),
    [
        (["1"], "float32", "numpy.ndarray"),
        ([None], "float32", "numpy.ndarray"),
        ([1.0], "float32", "numpy.ndarray"),
        (7, "float32", "numpy.ndarray"),
        ([1], ["float32"], "numpy.ndarray"),
        ([1], "float32", "pickle"),
    ],
)
def test_what_announces_an_array_may_be_of_any_type(shape: Any, kind: Any, serialization: Any) -> None:
    hostile = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=header((1,)) + bytes(4))
    arrays = ArrayRecord({"a": hostile})
    arrays["a"].__dict__.update(shape=shape, dtype=kind, stype=serialization)  # Flower's own checks are not relied on
    content = RecordDict({"envelope": ConfigRecord({"envelope": b"x"}), "arrays": arrays})
    with pytest.raises(VerificationError, match="numpy arrays"):
        unpack(content)


@pytest.mark.parametrize("array", [np.float32(1.0), np.zeros((0, 3)), np.asfortranarray(np.eye(3)), np.arange(6)[::2]])
def test_any_layout_of_an_array_round_trips(array: np.ndarray) -> None:
    _, arrays = unpack(pack(b"", {"a": np.asarray(array)}))
    assert np.array_equal(arrays["a"], array)
    assert arrays["a"].flags.writeable
