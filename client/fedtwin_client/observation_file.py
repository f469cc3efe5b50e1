"""The rules of the observations file: which rows are observations, in which unit (format: `reader`)."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import MICROSECOND, SIGNAL_KEYS, Observations, Patients
from fedtwin_client.quarantine import Reason, Verdicts
from fedtwin_client.table import Table, as_codes, as_instants, as_numbers, look_up
from fedtwin_client.units import find_conversion
from fedtwin_shared.signal import SIGNALS

REQUIRED = ("patient", "time", "signal", "value", "unit")
EARLIEST = timedelta(days=30)  # an observation from longer before admission belongs to another stay
LATEST = timedelta(days=366)  # and so does one from longer after it

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Indexed by signal; the last is for an unknown one.
_LOW = np.array([*(SIGNALS[key].low for key in SIGNAL_KEYS), np.nan])
_HIGH = np.array([*(SIGNALS[key].high for key in SIGNAL_KEYS), np.nan])


def judge_observations(table: Table, patients: Patients) -> tuple[Verdicts, Observations]:
    """Return a verdict for each row, and the accepted observations in order."""
    patient = look_up(table.columns["patient"], {text: row for row, text in enumerate(patients.ids)})
    signal = look_up(table.columns["signal"], {key: index for index, key in enumerate(SIGNAL_KEYS)})
    instants = as_instants(table.columns["time"])
    written, wrong = as_numbers(table.columns["value"])
    value, convertible = _convert(table, signal, written)
    since = instants.time - np.append(patients.admitted, 0)[patient]

    verdicts = Verdicts(len(table))
    verdicts.reject(patient < 0, Reason.UNKNOWN_PATIENT)
    verdicts.reject(signal < 0, Reason.UNKNOWN_SIGNAL)
    verdicts.reject(~convertible, Reason.UNKNOWN_UNIT)
    verdicts.reject(wrong | np.isnan(written), Reason.NOT_A_NUMBER)
    verdicts.reject(~((value >= _LOW[signal]) & (value <= _HIGH[signal])), Reason.IMPLAUSIBLE)
    verdicts.reject(instants.unreadable, Reason.TIME_UNREADABLE)
    verdicts.reject(instants.naive, Reason.TIME_WITHOUT_ZONE)
    verdicts.reject((since < -(EARLIEST // MICROSECOND)) | (since > LATEST // MICROSECOND), Reason.OUTSIDE_STAY)

    good = np.flatnonzero(verdicts.accepted)
    order = good[np.lexsort((instants.time[good], patient[good] * len(SIGNAL_KEYS) + signal[good]))]
    ordered = Observations(patient=patient[order], signal=signal[order], time=instants.time[order], value=value[order])
    again, differing = _repeated(ordered)
    verdicts.reject(_at(order[differing], len(table)), Reason.CONFLICT)
    verdicts.reject(_at(order[again], len(table)), Reason.DUPLICATE)
    kept = ~(again | differing)
    return verdicts, Observations(
        patient=ordered.patient[kept], signal=ordered.signal[kept], time=ordered.time[kept], value=ordered.value[kept]
    )


def _convert(table: Table, signal: Rows, written: Floats) -> tuple[Floats, Flags]:
    """Return values in their signals' own units, and whether the unit is known for the signal."""
    codes, units = as_codes(table.columns["unit"])
    factor = np.full((len(SIGNAL_KEYS) + 1, len(units) + 1), np.nan)
    offset = np.zeros_like(factor)
    for row, key in enumerate(SIGNAL_KEYS):
        for column, unit in enumerate(units):
            if (conversion := find_conversion(key, unit)) is not None:
                factor[row, column], offset[row, column] = conversion.factor, conversion.offset
    scale = factor[signal, codes]
    return written * scale + offset[signal, codes], ~np.isnan(scale)


def _repeated(ordered: Observations) -> tuple[Flags, Flags]:
    """Return which rows follow one of the same patient, signal and instant, and which such groups disagree."""
    again, other = np.zeros(len(ordered), bool), np.zeros(len(ordered), bool)
    again[1:] = (
        (ordered.patient[1:] == ordered.patient[:-1])
        & (ordered.signal[1:] == ordered.signal[:-1])
        & (ordered.time[1:] == ordered.time[:-1])
    )
    other[1:] = again[1:] & (ordered.value[1:] != ordered.value[:-1])
    group = np.cumsum(~again)
    return again, np.isin(group, group[other])


def _at(rows: Rows, length: int) -> Flags:
    flags = np.zeros(length, bool)
    flags[rows] = True
    return flags
