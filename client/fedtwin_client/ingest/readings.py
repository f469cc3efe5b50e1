"""What messages say, in columns and before anything in it is believed; and what is believed of it.

Design note: a parser turns bytes into rows of a `Draft`, several messages into one where they arrive together, because
judging a thousand readings costs hardly more than judging one. Nothing is dropped: each reading is accepted or has
exactly one reason. No record of this module prints its contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from fedtwin_client.ingest.codes import find_meaning
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import FIRST_TIME, LAST_TIME, NO_SEQUENCE, ObservationBatch, Quality
from fedtwin_client.quarantine import REASONS, Reason, Verdicts
from fedtwin_shared.signal import SIGNALS

NO_TIME: Final = -(2**52)  # stands where no time could be read; its reading always has a fault
NO_FAULT: Final = -1
FAULT: Final[Mapping[Reason, int]] = {reason: index for index, reason in enumerate(REASONS)}
SOUND: Final = int(Quality.VALID)
DOUBTFUL: Final = int(Quality.QUESTIONABLE)

# (patient, (code, unit), time, value, sequence, quality, fault); time in milliseconds since 1970 UTC
Row = tuple[str, tuple[str, str], int, float, int, int, int]

_LOW = np.array([*(SIGNALS[key].low for key in SIGNAL_KEYS), np.nan])
_HIGH = np.array([*(SIGNALS[key].high for key in SIGNAL_KEYS), np.nan])
_NAN: Final = float("nan")
_NOTHING: Final = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Readings:
    """Readings in columns of one length, in the order in which they arrived.

    patients: ids that `patient` (i32) points into. kinds: (code, unit) pairs that `kind` (i32) points into.
    time: i64, milliseconds since 1970 UTC. value: f64, in the unit as it was sent; NaN: no number.
    sequence: i64, `NO_SEQUENCE` for none. quality: u8. fault: i8, index in `REASONS` of what the parser found, or -1.
    """

    patients: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    patient: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    sequence: npt.NDArray[np.int64]
    quality: npt.NDArray[np.uint8]
    fault: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.value)


class Draft:
    """Rows that parsers append to; `readings` makes the columns."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    def set_aside(self, reason: Reason, *, patient: str = "") -> None:
        """Add an entry that never was a reading, with its reason."""
        self.rows.append((patient, _NOTHING, NO_TIME, _NAN, NO_SEQUENCE, SOUND, FAULT[reason]))

    def readings(self) -> Readings:
        """Return the rows as columns."""
        if not self.rows:
            return NO_READINGS
        patient, kind, time, value, sequence, quality, fault = zip(*self.rows, strict=True)
        patients = {name: index for index, name in enumerate(dict.fromkeys(patient))}
        kinds = {pair: index for index, pair in enumerate(dict.fromkeys(kind))}
        return Readings(
            patients=tuple(patients),
            kinds=tuple(kinds),
            patient=np.array([patients[name] for name in patient], np.int32),
            kind=np.array([kinds[pair] for pair in kind], np.int32),
            time=np.array(time, np.int64),
            value=np.array(value, np.float64),
            sequence=np.array(sequence, np.int64),
            quality=np.array(quality, np.uint8),
            fault=np.array(fault, np.int8),
        )


NO_READINGS: Final = Readings(
    patients=(),
    kinds=(),
    patient=np.empty(0, np.int32),
    kind=np.empty(0, np.int32),
    time=np.empty(0, np.int64),
    value=np.empty(0, np.float64),
    sequence=np.empty(0, np.int64),
    quality=np.empty(0, np.uint8),
    fault=np.empty(0, np.int8),
)


def join(parts: Sequence[Readings]) -> Readings:
    """Return the readings of several messages as those of one, in order."""
    if len(parts) == 1:
        return parts[0]
    patients = {name: index for index, name in enumerate(dict.fromkeys(name for one in parts for name in one.patients))}
    kinds = {pair: index for index, pair in enumerate(dict.fromkeys(pair for one in parts for pair in one.kinds))}
    return Readings(
        patients=tuple(patients),
        kinds=tuple(kinds),
        patient=_joined([np.array([patients[name] for name in one.patients], np.int32)[one.patient] for one in parts]),
        kind=_joined([np.array([kinds[pair] for pair in one.kinds], np.int32)[one.kind] for one in parts]),
        time=_joined([one.time for one in parts]),
        value=_joined([one.value for one in parts]),
        sequence=_joined([one.sequence for one in parts]),
        quality=_joined([one.quality for one in parts]),
        fault=_joined([one.fault for one in parts]),
    )


Number = TypeVar("Number", bound=np.generic)


def _joined(columns: Sequence[npt.NDArray[Number]]) -> npt.NDArray[Number]:
    return np.concatenate(columns)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SetAside:
    """Readings that were not accepted: their rows in `readings`, and for each the index of its reason in `REASONS`.

    - its repr shows no id and no value
    """

    device: str
    readings: Readings
    row: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.row)

    def counts(self) -> dict[Reason, int]:
        """Return how often each reason was given."""
        found = np.bincount(self.reason, minlength=len(REASONS))
        return {reason: int(number) for reason, number in zip(REASONS, found, strict=True) if number}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Judged:
    """What became of some readings: accepted plus set aside is all of them."""

    batch: ObservationBatch
    set_aside: SetAside


def believe(readings: Readings, verdicts: Verdicts, *, device: str, shift: int = 0) -> Judged:
    """Return the readings that nothing speaks against as observations of `device`, the others with their reasons.

    `verdicts` holds what the device's registry said; what the values themselves say comes behind it. `shift`
    milliseconds are added to every time: the device's clock corrected.

    - accepted plus set aside is all of them
    - a time before the year 1 or after 9999 is never accepted
    - an unknown code, a unit that the signal is not measured in, or a value out of its range is never accepted
    """
    signal, factor, offset = _meanings(readings)
    patient_known = np.array([bool(name) for name in (*readings.patients, "")])[readings.patient]
    with np.errstate(over="ignore", invalid="ignore"):
        value = readings.value * factor + offset
    for index in np.unique(readings.fault[readings.fault >= 0]).tolist():
        verdicts.reject(readings.fault == index, REASONS[index])
    time = readings.time + shift
    verdicts.reject((time < FIRST_TIME) | (time > LAST_TIME), Reason.TIME_UNREADABLE)
    verdicts.reject(~patient_known, Reason.PATIENT_MISSING)
    verdicts.reject(signal < 0, Reason.UNKNOWN_SIGNAL)
    verdicts.reject(np.isnan(factor), Reason.UNKNOWN_UNIT)
    verdicts.reject(~np.isfinite(readings.value), Reason.NOT_A_NUMBER)
    verdicts.reject(~((value >= _LOW[signal]) & (value <= _HIGH[signal])), Reason.IMPLAUSIBLE)
    rows, reasons = verdicts.rejected()
    kept = slice(None) if len(rows) == 0 else np.flatnonzero(verdicts.accepted)
    return Judged(
        batch=_make_batch(readings, kept, signal, value, device=device, shift=shift),
        set_aside=SetAside(device=device, readings=readings, row=rows, reason=reasons),
    )


def signals_of(readings: Readings) -> npt.NDArray[np.int16]:
    """Return i16[readings], the index of each signal in `SIGNAL_KEYS`; -1 for a code that nobody knows."""
    found = [find_meaning(code, unit).signal for code, unit in readings.kinds]
    return np.array([*found, -1], np.int16)[readings.kind]


def _meanings(
    readings: Readings,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    found = [find_meaning(code, unit) for code, unit in readings.kinds]
    signal = np.array([*(one.signal for one in found), -1], np.int16)
    factor = np.array([*(one.factor for one in found), np.nan])
    offset = np.array([*(one.offset for one in found), 0.0])
    return signal[readings.kind], factor[readings.kind], offset[readings.kind]


def _make_batch(
    readings: Readings,
    kept: slice | npt.NDArray[np.int64],
    signal: npt.NDArray[np.int16],
    value: npt.NDArray[np.float64],
    *,
    device: str,
    shift: int,
) -> ObservationBatch:
    patient = readings.patient[kept]
    patients = readings.patients
    if "" in patients:  # no kept row points at it
        blank = patients.index("")
        patients = (*patients[:blank], *patients[blank + 1 :])
        patient = (patient - (patient > blank)).astype(np.int32)
    return ObservationBatch(
        patients=patients,
        devices=(device,),
        patient=patient,
        signal=signal[kept],
        time=readings.time[kept] + shift,
        value=value[kept].astype(np.float32),
        device=np.zeros(len(patient), np.int32),
        sequence=readings.sequence[kept],
        quality=readings.quality[kept],
    )
