"""One signal over time, reduced to statistics of each patient's time steps.

Statistics of one time step, taken over z-scores (Signal table, ± limit), so that one wild value cannot move a mean far:
    mean, min, max, first, last
    sd       standard deviation (divided by n); 0 for a single value
    slope    least-squares change of z per hour times the step's hours: the change over one step; from two values on
    count    log(1 + number of values ÷ the number usual in a step, by the Signal table's period)
    observed 1 or 0
`count` and `observed` are always known, the others where something was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS, Observations, Patients
from fedtwin_shared.signal import SIGNALS, normalise
from fedtwin_shared.study import Features, Statistic

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_MICROSECONDS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Series:
    """One signal's values inside the study's time, ordered by patient and time.

    patient: row in `Patients`; step: time step since admission; hour: hours since the step began; z: z-score.
    usual: values that are usual in one time step.
    """

    patient: Rows
    step: Rows
    hour: Floats
    z: Floats
    usual: float


def select_series(observations: Observations, patients: Patients, features: Features, key: str) -> Series:
    """Return the values of signal `key` from admission to the end of the study's last window."""
    rows = np.flatnonzero(observations.signal == SIGNAL_KEYS.index(key))
    patient = observations.patient[rows]
    since = observations.time[rows] - patients.admitted[patient]
    width = round(features.step_hours * _MICROSECONDS_PER_HOUR)
    step = since // width
    inside = (step >= 0) & (step < features.windows * features.steps)
    return Series(
        patient=patient[inside],
        step=step[inside],
        hour=(since - step * width)[inside] / _MICROSECONDS_PER_HOUR,
        z=normalise(SIGNALS[key], observations.value[rows][inside], limit=features.limit),
        usual=_usual(key, features.step_hours),
    )


def _usual(key: str, step_hours: float) -> float:
    period = SIGNALS[key].period
    return 1.0 if period is None else step_hours * 3600 / period.total_seconds()


class Cells:
    """One signal's values grouped by patient and time step.

    - a patient's statistics are bit for bit the same whatever other patients there are
    """

    def __init__(self, series: Series, *, patients: int, steps: int) -> None:
        cell = series.patient * steps + series.step
        self._shape = (patients, steps)
        self._start = np.flatnonzero(np.diff(cell, prepend=-1))
        self._count = np.diff(self._start, append=len(cell))
        self._cell = cell[self._start]
        self._hour, self._z, self._usual = series.hour, series.z, series.usual

    def statistic(self, name: Statistic, *, step_hours: float) -> tuple[Floats, Flags]:
        """Return values, 0 where unknown, and where they are known; both [patients, steps]."""
        if name == "count":
            return self._spread(np.log1p(self._count / self._usual))[0], np.ones(self._shape, bool)
        if name == "observed":
            return self._spread(np.ones(len(self._cell)))[0], np.ones(self._shape, bool)
        value, known = self._spread(self._reduce(name, step_hours) if len(self._cell) else self._z)
        if name == "slope":
            known.reshape(-1)[self._cell[self._count < 2]] = False
        return value, known

    def carried(self) -> Floats:
        """Return [patients, steps]: the last value of the step or of the nearest one before it, 0 before the first."""
        value, known = self._spread(self._last())
        source = np.maximum.accumulate(np.where(known, np.arange(self._shape[1]), 0), axis=1)
        return np.take_along_axis(value, source, axis=1)

    def _spread(self, value: Floats) -> tuple[Floats, Flags]:
        values, known = np.zeros(self._shape), np.zeros(self._shape, bool)
        values.reshape(-1)[self._cell] = value
        known.reshape(-1)[self._cell] = True
        return values, known

    def _reduce(self, name: Statistic, step_hours: float) -> Floats:
        match name:
            case "first":
                return self._z[self._start]
            case "last":
                return self._last()
            case "min":
                return np.asarray(np.minimum.reduceat(self._z, self._start))
            case "max":
                return np.asarray(np.maximum.reduceat(self._z, self._start))
            case "mean":
                return self._mean(self._z)
            case "sd":
                return np.sqrt(self._mean(self._centre(self._z) ** 2))
            case "slope":
                return self._slope() * step_hours
        raise ValueError(f"expected a statistic of a series, found {name!r}")

    def _last(self) -> Floats:
        return np.asarray(self._z[self._start + self._count - 1])

    def _mean(self, value: Floats) -> Floats:
        return np.asarray(np.add.reduceat(value, self._start) / self._count)

    def _centre(self, value: Floats) -> Floats:
        return np.asarray(value - np.repeat(self._mean(value), self._count))

    def _slope(self) -> Floats:
        hour = self._centre(self._hour)
        spread = self._mean(hour**2)
        together = self._mean(hour * self._centre(self._z))
        return np.asarray(np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0))
