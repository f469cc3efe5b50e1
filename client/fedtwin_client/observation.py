"""One timed value of one signal for one patient, and a hospital's worth of them in columns. Nothing here ever leaves.

Design note: no record of this module prints its contents, so that a log or a traceback cannot hold a patient's value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from fedtwin_shared.signal import SIGNALS

SIGNAL_KEYS = tuple(SIGNALS)
MICROSECOND = timedelta(microseconds=1)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Observation:
    """One value of one signal, in the signal's own unit and inside its plausible range.

    - its repr shows no value
    """

    patient: str
    time: datetime
    signal: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Patients:
    """The accepted patients, in increasing order of their id.

    admitted: i64[patients], microseconds since 1970 UTC.
    numbers: signal key -> f64[patients] known at admission, in the signal's unit; NaN = unknown.
    levels: category key -> i64[patients], index of the level; -1 = unknown.
    outcomes: column -> f64[patients], 0 or 1; NaN = unknown.
    part: "train", "test" or "" per patient; None when the file has no such column.
    """

    ids: tuple[str, ...]
    admitted: npt.NDArray[np.int64]
    numbers: Mapping[str, npt.NDArray[np.float64]]
    levels: Mapping[str, npt.NDArray[np.int64]]
    outcomes: Mapping[str, npt.NDArray[np.float64]]
    part: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Observations:
    """The accepted observations in columns, ordered by patient, signal and time; no two share all three.

    patient: row in `Patients`; signal: index in `SIGNAL_KEYS`; time: microseconds since 1970 UTC; value: f64.
    """

    patient: npt.NDArray[np.int64]
    signal: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.value)

    def of(self, patients: Patients, patient: str) -> Iterator[Observation]:
        """Yield one patient's observations, by signal and time."""
        if patient not in patients.ids:
            return
        row = patients.ids.index(patient)
        first, last = np.searchsorted(self.patient, [row, row + 1])
        for at in range(first, last):
            yield Observation(
                patient=patient,
                time=_EPOCH + int(self.time[at]) * MICROSECOND,
                signal=SIGNAL_KEYS[self.signal[at]],
                value=float(self.value[at]),
            )
