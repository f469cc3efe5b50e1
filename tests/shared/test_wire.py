from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.signing import canonical_json
from fedtwin_shared.wire import (
    MAX_HEADER_BYTES,
    decode_arrays,
    encode_arrays,
    pack,
    pack_bytes,
    unpack,
    unpack_bytes,
)

ARRAYS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([1.0], dtype=np.float32)}
EMPTY = encode_arrays({})


def encoded(header: object, numbers: bytes = b"") -> bytes:
    """Bytes with any header, canonical where it can be."""
    text = header if isinstance(header, bytes) else canonical_json(header)
    return len(text).to_bytes(4, "big") + text + numbers


def test_envelope_and_arrays_round_trip() -> None:
    envelope, arrays = unpack(pack(b"signed", ARRAYS))
    assert envelope == b"signed"
    assert list(arrays) == list(ARRAYS)
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert unpack(pack(b"refusal", {})) == (b"refusal", {})


@given(
    st.dictionaries(
        st.text("abc.é", max_size=5),
        arrays_of.arrays(
            st.sampled_from([np.float32, np.float64, np.int64]), arrays_of.array_shapes(min_dims=0, min_side=0)
        ),
        max_size=3,
    )
)
def test_any_arrays_round_trip_bit_for_bit(arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    found = decode_arrays(encode_arrays(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


@pytest.mark.parametrize("array", [np.asfortranarray(np.eye(3)), np.arange(6)[::2], np.arange(3).astype(">i8")])
def test_any_layout_of_an_array_round_trips(array: npt.NDArray[np.generic]) -> None:
    found = decode_arrays(encode_arrays({"a": array}))["a"]
    assert np.array_equal(found, array)
    assert found.dtype.isnative


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({"envelope": b"x", "arrays": EMPTY})}),
        RecordDict({"fedtwin": ConfigRecord({"envelope": b"x"})}),
        RecordDict({"fedtwin": ConfigRecord({"envelope": b"x", "arrays": EMPTY}), "m": MetricRecord({"n": 1})}),
        RecordDict({"fedtwin": ConfigRecord({"envelope": b"x", "arrays": EMPTY, "patients": 7})}),
        RecordDict({"fedtwin": ConfigRecord({"envelope": "text", "arrays": EMPTY})}),
        RecordDict({"fedtwin": ConfigRecord({"envelope": b"x", "arrays": [1.0]})}),
        RecordDict({"fedtwin": MetricRecord({"envelope": 1, "arrays": 2})}),
        RecordDict({"fedtwin": ArrayRecord({"envelope": Array(np.zeros(1)), "arrays": Array(np.zeros(1))})}),
    ],
)
def test_a_record_with_anything_else_is_refused(content: RecordDict) -> None:
    with pytest.raises(VerificationError):
        unpack(content)


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(1, np.float32))
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        archive(),
        pickled(),
        (2**32 - 1).to_bytes(4, "big") + b"[]",
        encoded(b" " * (MAX_HEADER_BYTES + 1)),
        encoded(b"[" * 50_000),
        encoded(b"[] "),
        encoded({}),
        encoded([["a"]]),
        encoded([["a", "object", [1]]], bytes(8)),
        encoded([["a", "heart rate 900", [1]]], bytes(4)),
        encoded([[1, "float32", [1]]], bytes(4)),
        encoded([["a", "float32", 1]], bytes(4)),
        encoded([["a", "float32", ["1"]]], bytes(4)),
        encoded([["a", "float32", [True]]], bytes(4)),
        encoded([["a", "float32", [-1]]], bytes(4)),
        encoded([["a", "float32", [-1, -1]]], bytes(4)),
        encoded([["a", "float32", [10**12]]]),  # would be 4 TB
        encoded([["a", "float32", [2**50, 2**50]]]),
        encoded([["a", "float32", [1]]], bytes(3)),
        encoded([["a", "float32", [1]]], bytes(5)),
        encoded([["a", "float32", [1]], ["a", "float32", [1]]], bytes(8)),
        EMPTY + b"\x00",
    ],
)
def test_bytes_that_pack_would_not_write_are_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        unpack(RecordDict({"fedtwin": ConfigRecord({"envelope": b"x", "arrays": data})}))


@given(st.binary(max_size=60))
def test_random_bytes_are_arrays_or_refused(data: bytes) -> None:
    try:
        arrays = decode_arrays(data)
    except VerificationError:
        return
    assert encode_arrays(arrays) == data


def test_what_is_no_number_is_not_sent() -> None:
    with pytest.raises(TypeError):
        encode_arrays({"a": np.array(["name"])})


def test_bytes_alone_are_unpacked_as_they_were() -> None:
    assert unpack_bytes(pack_bytes(b"\x00\xff")) == b"\x00\xff"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        pack(b"envelope", {}),
        RecordDict({"fedtwin": ConfigRecord({"bytes": "text"})}),
        RecordDict({"fedtwin": ConfigRecord({"bytes": b"", "more": 1})}),
        RecordDict({"fedtwin": ConfigRecord({"bytes": b""}), "more": ConfigRecord()}),
        RecordDict({"fedtwin": MetricRecord({"bytes": 1})}),
    ],
)
def test_anything_else_than_bytes_alone_is_refused(content: RecordDict) -> None:
    with pytest.raises(VerificationError):
        unpack_bytes(content)
