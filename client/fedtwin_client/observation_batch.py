"""Observations on their way from ingest to the store: columns, as they arrived, with the device that made each.

Design note: `observation.Observations` is what a study reads (one value for one patient, signal and instant);
a batch is what devices sent, so it keeps device, sequence number and quality. Values are already in the signal's own
unit (Signal table) and inside its plausible range; nothing here converts. 32 bits hold seven digits, more than any
sensor of the table gives. No record of this module prints its contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS

NO_SEQUENCE = -1  # the source numbers nothing
LATEST = 2**53  # sequence numbers end before it: every whole number below survives JSON
FIRST_TIME, LAST_TIME = -62_135_596_800_000, 253_402_300_799_999  # years 1 to 9999: what ISO 8601 can write


class Quality(IntEnum):
    """What the device itself says of a value (ISO/IEEE 11073-10201, MeasurementStatus, reduced to three)."""

    VALID = 0
    QUESTIONABLE = 1
    INVALID = 2


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ObservationBatch:
    """Observations in columns of one length, in any order.

    patients, devices: the ids that the columns point into; every id once, none empty.
    patient: i32, index in `patients`. signal: i16, index in `SIGNAL_KEYS`. time: i64, milliseconds since 1970 UTC.
    value: f32, in the signal's unit, finite. device: i32, index in `devices`. quality: u8, a `Quality`.
    sequence: i64, the device's own number of the observation; `NO_SEQUENCE` where it has none.

    - a column of another type or length, an index that points nowhere, a value that is not finite: `ValueError`
    - its repr shows no id and no value
    """

    patients: tuple[str, ...]
    devices: tuple[str, ...]
    patient: npt.NDArray[np.int32]
    signal: npt.NDArray[np.int16]
    time: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]
    device: npt.NDArray[np.int32]
    sequence: npt.NDArray[np.int64]
    quality: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            column = getattr(self, name)
            if column.dtype != kind or column.shape != (len(self.value),):
                raise ValueError(f"{name}: expected {kind}[{len(self.value)}], found {column.dtype}{column.shape}")
        for name, ids in (("patients", self.patients), ("devices", self.devices)):
            if len(set(ids)) != len(ids) or "" in ids:
                raise ValueError(f"{name}: expected every id once and none empty")
        if len(self) == 0:
            return
        _check_range("patient", self.patient, 0, len(self.patients))
        _check_range("signal", self.signal, 0, len(SIGNAL_KEYS))
        _check_range("device", self.device, 0, len(self.devices))
        _check_range("time", self.time, FIRST_TIME, LAST_TIME + 1)
        _check_range("sequence", self.sequence, NO_SEQUENCE, LATEST)
        _check_range("quality", self.quality, 0, len(Quality))
        if not np.isfinite(self.value).all():
            raise ValueError("value: expected finite numbers")

    def __len__(self) -> int:
        return len(self.value)


_KINDS: Mapping[str, np.dtype[np.generic]] = {
    "patient": np.dtype(np.int32),
    "signal": np.dtype(np.int16),
    "time": np.dtype(np.int64),
    "value": np.dtype(np.float32),
    "device": np.dtype(np.int32),
    "sequence": np.dtype(np.int64),
    "quality": np.dtype(np.uint8),
}


def make_batch(
    *,
    patients: Sequence[str],
    devices: Sequence[str],
    patient: npt.ArrayLike,
    signal: npt.ArrayLike,
    time: npt.ArrayLike,
    value: npt.ArrayLike,
    device: npt.ArrayLike,
    sequence: npt.ArrayLike,
    quality: npt.ArrayLike,
) -> ObservationBatch:
    """Return a batch of whatever arrays or lists hold its columns. Raises `ValueError`."""
    return ObservationBatch(
        patients=tuple(patients),
        devices=tuple(devices),
        patient=np.asarray(patient, np.int32),
        signal=np.asarray(signal, np.int16),
        time=np.asarray(time, np.int64),
        value=np.asarray(value, np.float32),
        device=np.asarray(device, np.int32),
        sequence=np.asarray(sequence, np.int64),
        quality=np.asarray(quality, np.uint8),
    )


def join_batches(batches: Sequence[ObservationBatch]) -> ObservationBatch:
    """Return the observations of several batches as those of one, in order."""
    if len(batches) == 1:
        return batches[0]
    patients = {
        name: index for index, name in enumerate(dict.fromkeys(one for batch in batches for one in batch.patients))
    }
    devices = {
        name: index for index, name in enumerate(dict.fromkeys(one for batch in batches for one in batch.devices))
    }
    columns: dict[str, npt.NDArray[np.generic]] = {
        name: np.concatenate([np.empty(0, kind), *(getattr(batch, name) for batch in batches)])
        for name, kind in _KINDS.items()
        if name not in ("patient", "device")
    }
    return make_batch(
        patients=tuple(patients),
        devices=tuple(devices),
        patient=_renumber([(batch.patients, batch.patient) for batch in batches], patients),
        device=_renumber([(batch.devices, batch.device) for batch in batches], devices),
        **columns,
    )


def _renumber(
    parts: Sequence[tuple[tuple[str, ...], npt.NDArray[np.int32]]], numbers: Mapping[str, int]
) -> npt.NDArray[np.int32]:
    """Return columns that point into ids of their own as one that points into all of them."""
    moved = [np.array([numbers[name] for name in (*ids,)] or [0], np.int32)[column] for ids, column in parts]
    return np.concatenate([np.empty(0, np.int32), *moved])


def _check_range(name: str, column: npt.NDArray[np.generic], low: int, end: int) -> None:
    smallest, largest = int(column.min()), int(column.max())
    if not (low <= smallest and largest < end):
        raise ValueError(f"{name}: expected {low} to {end - 1}, found one outside")
