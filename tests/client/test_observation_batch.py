"""A batch holds what its columns say and refuses everything else, without showing any of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import LAST_TIME, NO_SEQUENCE, ObservationBatch, Quality, make_batch


def two_rows() -> ObservationBatch:
    return make_batch(
        patients=("Ada", "Bo"),
        devices=("monitor-1",),
        patient=[0, 1],
        signal=[3, 4],
        time=[0, LAST_TIME],
        value=[86.5, 19],
        device=[0, 0],
        sequence=[NO_SEQUENCE, 7],
        quality=[Quality.VALID, Quality.INVALID],
    )


def test_a_batch_has_columns_of_one_length() -> None:
    batch = two_rows()
    assert len(batch) == 2
    assert batch.value.tolist() == [86.5, 19]
    assert "Ada" not in repr(batch)
    assert "86.5" not in repr(batch)


@pytest.mark.parametrize(
    "change",
    [
        {"patient": np.array([0, 2], np.int32)},
        {"patient": np.array([0, -1], np.int32)},
        {"patient": np.array([0, 1], np.int64)},
        {"signal": np.array([0, len(SIGNAL_KEYS)], np.int16)},
        {"time": np.array([0], np.int64)},
        {"time": np.array([0, LAST_TIME + 1], np.int64)},
        {"value": np.array([1, np.nan], np.float32)},
        {"value": np.array([1, np.inf], np.float32)},
        {"device": np.array([0, 1], np.int32)},
        {"sequence": np.array([0, -2], np.int64)},
        {"quality": np.array([0, 3], np.uint8)},
        {"patients": ("Ada", "Ada")},
        {"patients": ("Ada", "")},
    ],
)
def test_anything_else_is_refused_without_showing_it(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        replace(two_rows(), **change)  # type: ignore[arg-type] # one field of any type
    assert "Ada" not in str(caught.value)


def test_an_empty_batch_is_one() -> None:
    none: list[int] = []
    batch = make_batch(
        patients=(),
        devices=(),
        patient=none,
        signal=none,
        time=none,
        value=none,
        device=none,
        sequence=none,
        quality=none,
    )
    assert len(batch) == 0
