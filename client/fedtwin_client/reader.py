"""A hospital's own files become records: checked row by row, in the signals' own units, nothing silently dropped.

A hospital keeps one folder with

patients.csv or patients.parquet, a row per patient (per stay, where a study counts stays)
    patient    the hospital's own id; it never leaves
    admitted   ISO 8601 with `Z` or an offset (2024-03-01T08:30:00Z); in Parquet a timestamp with a time zone
    part       optional, `train` or `test`; used only by studies whose split rule is `column` (simulations)
    …          any key of the Signal table: a number known at admission, in the signal's own unit
    …          any key of the Category table: one of its levels, as text
    …          every other column is an outcome: 0 or 1
    An empty cell is unknown. A column that a study uses and the file does not have is unknown for everybody and named
    by `cohort.missing_columns`.

observations.csv or observations.parquet, a row per value (optional: a study may use facts only)
    patient    as above
    time       as `admitted`
    signal     a key of the Signal table
    value      a decimal number
    unit       UCUM: the signal's own unit, or another that `units` knows how to convert

CSV is UTF-8 with commas and a header. The order of columns and rows means nothing.

What is not accepted is counted by reason and written to a quarantine file (`quarantine`):
  - a row with a wrong number of fields, an unknown patient, signal or unit, an unreadable time or one without a zone, a
    time more than EARLIEST before or LATEST after admission, a value that is no finite number or is outside the
    signal's plausible range after conversion
  - the same row again: the first stays, each further one is a `duplicate`
  - different rows for one patient, or for one patient, signal and instant: all of them are in `conflict` and go
  - a fact or outcome that is impossible: the cell goes, the patient stays with that fact unknown
  - every row of a file that lacks a column which every row needs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedtwin_client.errors import DataError
from fedtwin_client.observation import SIGNAL_KEYS, Observations, Patients
from fedtwin_client.quarantine import REASONS, Entry, Reason, Tally, count_reasons, write_quarantine
from fedtwin_client.table import Instants, Table, as_codes, as_instants, as_numbers, as_text, read_table
from fedtwin_client.units import find_conversion
from fedtwin_shared.signal import CATEGORIES, SIGNALS

EARLIEST = timedelta(days=30)  # an observation from longer before admission belongs to another stay
LATEST = timedelta(days=366)

PATIENT_COLUMNS = ("patient", "admitted")
OBSERVATION_COLUMNS = ("patient", "time", "signal", "value", "unit")
_PARTS = ("train", "test")
_ACCEPTED = np.int8(-1)

Reasons = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HospitalRecords:
    """Everything accepted from a hospital's folder, and the tallies of what was not.

    - its repr shows no patient and no value
    """

    folder: Path
    patients: Patients
    observations: Observations
    tallies: tuple[Tally, ...]


def read_hospital(folder: Path, *, quarantine: Path | None = None) -> HospitalRecords:
    """Return the records of `folder`; write what was not accepted to the file `quarantine`.

    Raises `DataError` when there is no readable patients file, or an observations file that cannot be read.

    - accepted plus quarantined is the total, for the rows and for the cells of every file
    - the result does not depend on the order of rows
    - no message holds an id or a value of a patient
    """
    table = read_table(folder, "patients")
    if table is None:
        raise DataError(file=folder, field="patients", expected="patients.csv or patients.parquet", found="neither")
    observed = read_table(folder, "observations")
    patients, tallies, entries = _accept_patients(table)
    observations = _NO_OBSERVATIONS
    if observed is not None:
        observations, tally, rejected = _accept_observations(observed, patients)
        tallies, entries = (*tallies, tally), (*entries, *rejected)
    if quarantine is not None:
        write_quarantine(quarantine, entries)
    return HospitalRecords(folder=folder, patients=patients, observations=observations, tallies=tallies)


_NO_OBSERVATIONS = Observations(
    patient=np.empty(0, np.int64), signal=np.empty(0, np.int64), time=np.empty(0, np.int64), value=np.empty(0)
)


def _accept_patients(table: Table) -> tuple[Patients, tuple[Tally, ...], tuple[Entry, ...]]:
    if lacking := [name for name in PATIENT_COLUMNS if name not in table.names]:
        tally, entries = _reject_all(table, lacking)
        return _NO_PATIENTS, (tally,), entries
    codes, ids = as_codes(table.columns["patient"])
    admitted = as_instants(table.columns["admitted"])
    reasons = np.full(len(table), _ACCEPTED)
    _mark(reasons, codes < 0, Reason.PATIENT_MISSING)
    _mark_time(reasons, admitted)
    again, differing = _repeated_patients(table, codes)
    _mark(reasons, differing, Reason.CONFLICT)
    _mark(reasons, again, Reason.DUPLICATE)
    kept = np.flatnonzero(reasons == _ACCEPTED)
    kept = kept[np.argsort(np.array(ids, dtype=object)[codes[kept]], kind="stable")] if len(kept) else kept
    texts = {"patient": as_text(table.columns["patient"]), "time": as_text(table.columns["admitted"])}
    rows = [_entry(table, reasons, texts), *_malformed(table)]
    patients, cells, reason_counts = _read_cells(table, kept, tuple(ids[code] for code in codes[kept]), admitted)
    tallies = (
        Tally(file=table.name, what="rows", total=len(table) + len(table.malformed), quarantined=_counts(rows)),
        Tally(file=table.name, what="cells", total=reason_counts, quarantined=_counts(cells)),
    )
    return patients, tallies, (*rows, *cells)


_NO_PATIENTS = Patients(ids=(), admitted=np.empty(0, np.int64), numbers={}, levels={}, outcomes={}, part=None)


def _repeated_patients(table: Table, codes: npt.NDArray[np.int64]) -> tuple[Flags, Flags]:
    """Return which rows repeat an earlier row of their patient exactly, and which patients' rows differ."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    same_as_before = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)) + 1
    again, differing = np.zeros(len(table), bool), np.zeros(len(table), bool)
    again[order[same_as_before]] = True
    if len(same_as_before):
        doubtful = np.isin(codes, np.unique(ordered[same_as_before]))
        rows = table.columns.filter(pa.array(doubtful)).to_pylist()
        first: dict[int, object] = {}
        conflicting = {
            int(code)
            for code, row in zip(codes[doubtful], rows, strict=True)
            if repr(first.setdefault(int(code), row)) != repr(row)
        }
        differing = np.isin(codes, list(conflicting))
    return again, differing


def _read_cells(
    table: Table, kept: npt.NDArray[np.int64], ids: tuple[str, ...], admitted: Instants
) -> tuple[Patients, tuple[Entry, ...], int]:
    """Return the patients, the rejected cells, and how many cells were looked at."""
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    levels: dict[str, npt.NDArray[np.int64]] = {}
    outcomes: dict[str, npt.NDArray[np.float64]] = {}
    part: tuple[str, ...] | None = None
    entries: list[Entry] = []
    cells = 0
    patient = as_text(table.columns["patient"])
    for name in table.names:
        if name in PATIENT_COLUMNS:
            continue
        column = table.columns[name].take(pa.array(kept))
        reasons = np.full(len(kept), _ACCEPTED)
        if name in SIGNALS:
            numbers[name] = _read_numbers(name, column, reasons)
        elif name in CATEGORIES:
            levels[name] = _read_levels(CATEGORIES[name].levels, column, reasons, Reason.UNKNOWN_LEVEL)
        elif name == "part":
            found = _read_levels(_PARTS, column, reasons, Reason.NOT_TRAIN_OR_TEST)
            part = tuple((*_PARTS, "")[code] for code in found)
        else:
            outcomes[name] = _read_outcomes(column, reasons)
        cells += len(kept)
        if (rejected := reasons != _ACCEPTED).any():
            where = pa.array(kept[rejected])
            texts = {
                "patient": patient.take(where),
                "signal": pa.repeat(name, len(where)),
                "value": as_text(table.columns[name].take(where)),
            }
            rows = table.row[kept[rejected]]
            entries.append(Entry(file=table.name, row=rows, reason=reasons[rejected], found=texts))
    patients = Patients(
        ids=ids, admitted=admitted.time[kept], numbers=numbers, levels=levels, outcomes=outcomes, part=part
    )
    return patients, tuple(entries), cells


def _read_numbers(key: str, column: pa.ChunkedArray, reasons: Reasons) -> npt.NDArray[np.float64]:
    values, wrong = as_numbers(column)
    signal = SIGNALS[key]
    _mark(reasons, wrong, Reason.NOT_A_NUMBER)
    _mark(reasons, (values < signal.low) | (values > signal.high), Reason.IMPLAUSIBLE)
    return np.where(reasons == _ACCEPTED, values, np.nan)


def _read_levels(
    levels: tuple[str, ...], column: pa.ChunkedArray, reasons: Reasons, reason: Reason
) -> npt.NDArray[np.int64]:
    codes, texts = as_codes(column)
    known = {level: index for index, level in enumerate(levels)}
    found = np.array([*(known.get(text, -1) for text in texts), -1], dtype=np.int64)[codes]
    _mark(reasons, (codes >= 0) & (found < 0), reason)
    return found


def _read_outcomes(column: pa.ChunkedArray, reasons: Reasons) -> npt.NDArray[np.float64]:
    values, wrong = as_numbers(column)
    _mark(reasons, wrong | ~(np.isnan(values) | (values == 0) | (values == 1)), Reason.NOT_ZERO_OR_ONE)
    return np.where(reasons == _ACCEPTED, values, np.nan)


def _accept_observations(table: Table, patients: Patients) -> tuple[Observations, Tally, tuple[Entry, ...]]:
    if lacking := [name for name in OBSERVATION_COLUMNS if name not in table.names]:
        tally, entries = _reject_all(table, lacking)
        return _NO_OBSERVATIONS, tally, entries
    patient = _look_up(table.columns["patient"], {text: row for row, text in enumerate(patients.ids)}.get)
    signal = _look_up(table.columns["signal"], {key: index for index, key in enumerate(SIGNAL_KEYS)}.get)
    instants = as_instants(table.columns["time"])
    raw, wrong = as_numbers(table.columns["value"])
    value, convertible = _convert(table, signal, raw)
    low, high = (np.array([*(getattr(SIGNALS[key], end) for key in SIGNAL_KEYS), np.nan]) for end in ("low", "high"))

    reasons = np.full(len(table), _ACCEPTED)
    _mark(reasons, patient < 0, Reason.UNKNOWN_PATIENT)
    _mark(reasons, signal < 0, Reason.UNKNOWN_SIGNAL)
    _mark(reasons, ~convertible, Reason.UNKNOWN_UNIT)
    _mark(reasons, wrong | np.isnan(raw), Reason.NOT_A_NUMBER)
    _mark(reasons, ~((value >= low[signal]) & (value <= high[signal])), Reason.IMPLAUSIBLE)
    _mark_time(reasons, instants)
    since = instants.time - np.append(patients.admitted, 0)[patient]
    _mark(reasons, (since < -_microseconds(EARLIEST)) | (since > _microseconds(LATEST)), Reason.OUTSIDE_STAY)

    good = np.flatnonzero(reasons == _ACCEPTED)
    order = good[np.lexsort((instants.time[good], patient[good] * len(SIGNAL_KEYS) + signal[good]))]
    again, differing = _repeated_observations(patient[order], signal[order], instants.time[order], value[order])
    reasons[order[differing]] = REASONS.index(Reason.CONFLICT)
    reasons[order[again & ~differing]] = REASONS.index(Reason.DUPLICATE)
    kept = order[~(again | differing)]
    observations = Observations(patient=patient[kept], signal=signal[kept], time=instants.time[kept], value=value[kept])
    rows = [_entry_of_columns(table, reasons), *_malformed(table)]
    total = len(table) + len(table.malformed)
    return observations, Tally(file=table.name, what="rows", total=total, quarantined=_counts(rows)), tuple(rows)


def _convert(
    table: Table, signal: npt.NDArray[np.int64], raw: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], Flags]:
    """Return values in their signals' own units, and whether the unit is known for the signal."""
    codes, units = as_codes(table.columns["unit"])
    factor = np.full((len(SIGNAL_KEYS) + 1, len(units) + 1), np.nan)
    offset = np.zeros_like(factor)
    for row, key in enumerate(SIGNAL_KEYS):
        for column, unit in enumerate(units):
            if (conversion := find_conversion(key, unit)) is not None:
                factor[row, column], offset[row, column] = conversion.factor, conversion.offset
    scale = factor[signal, codes]
    return raw * scale + offset[signal, codes], ~np.isnan(scale)


def _repeated_observations(
    patient: npt.NDArray[np.int64],
    signal: npt.NDArray[np.int64],
    time: npt.NDArray[np.int64],
    value: npt.NDArray[np.float64],
) -> tuple[Flags, Flags]:
    """Return which ordered rows follow one of the same patient, signal and instant, and which of these disagree."""
    again = np.zeros(len(value), bool)
    again[1:] = (patient[1:] == patient[:-1]) & (signal[1:] == signal[:-1]) & (time[1:] == time[:-1])
    group = np.cumsum(~again) - 1
    other = np.zeros(len(value), bool)
    other[1:] = again[1:] & (value[1:] != value[:-1])
    return again, np.isin(group, group[other]) if other.any() else other


def _look_up(column: pa.ChunkedArray, find: Callable[[str], int | None]) -> npt.NDArray[np.int64]:
    """Return for each row what `find` says of its text, -1 where it is empty or nothing is found."""
    codes, texts = as_codes(column)
    found = [find(text) for text in texts]
    return np.array([*(-1 if row is None else row for row in found), -1], dtype=np.int64)[codes]


def _mark(reasons: Reasons, where: Flags, reason: Reason) -> None:
    """Note `reason` where no earlier one stands."""
    reasons[where & (reasons == _ACCEPTED)] = REASONS.index(reason)


def _mark_time(reasons: Reasons, instants: Instants) -> None:
    _mark(reasons, instants.unreadable, Reason.TIME_UNREADABLE)
    _mark(reasons, instants.naive, Reason.TIME_WITHOUT_ZONE)


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _reject_all(table: Table, lacking: list[str]) -> tuple[Tally, tuple[Entry, ...]]:
    """Quarantine a whole file; the columns that it lacks stand in `signal`, where a rejected cell's column stands."""
    reasons = np.full(len(table), REASONS.index(Reason.MISSING_COLUMN), np.int8)
    entry = _entry_of_columns(table, reasons)
    named = {**entry.found, "signal": pa.repeat(" ".join(lacking), len(entry))}
    rows = [Entry(file=table.name, row=entry.row, reason=entry.reason, found=named), *_malformed(table)]
    total = len(table) + len(table.malformed)
    return Tally(file=table.name, what="rows", total=total, quarantined=_counts(rows)), tuple(rows)


def _entry_of_columns(table: Table, reasons: Reasons) -> Entry:
    where = pa.array(np.flatnonzero(reasons != _ACCEPTED))
    present = [name for name in OBSERVATION_COLUMNS if name in table.names]
    return _entry(table, reasons, {name: as_text(table.columns[name].take(where)) for name in present}, taken=True)


def _entry(table: Table, reasons: Reasons, texts: dict[str, pa.Array], *, taken: bool = False) -> Entry:
    where = np.flatnonzero(reasons != _ACCEPTED)
    found = texts if taken else {name: text.take(pa.array(where)) for name, text in texts.items()}
    return Entry(file=table.name, row=table.row[where], reason=reasons[where], found=found)


def _malformed(table: Table) -> list[Entry]:
    if not table.malformed:
        return []
    numbers, texts = zip(*table.malformed, strict=True)
    reasons = np.full(len(numbers), REASONS.index(Reason.MALFORMED_ROW), np.int8)
    return [Entry(file=table.name, row=np.array(numbers), reason=reasons, found={"value": pa.array(texts)})]


def _counts(entries: list[Entry] | tuple[Entry, ...]) -> dict[Reason, int]:
    return count_reasons(np.concatenate([entry.reason for entry in entries] or [np.empty(0, np.int8)]))
