"""The rules of the patients file: which rows are patients, which cells are facts and outcomes (format: `reader`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedtwin_client.observation import Patients
from fedtwin_client.quarantine import Entry, Reason, Verdicts
from fedtwin_client.table import Instants, Table, as_codes, as_instants, as_numbers, as_text, look_up
from fedtwin_shared.signal import CATEGORIES, SIGNALS

REQUIRED = ("patient", "admitted")
PARTS = ("train", "test")

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def judge_patients(table: Table) -> tuple[Verdicts, tuple[str, ...], Rows, Instants]:
    """Return a verdict for each row; for the accepted rows their ids, in order, and their row; and all admissions."""
    codes, ids = as_codes(table.columns["patient"])
    admitted = as_instants(table.columns["admitted"])
    verdicts = Verdicts(len(table))
    verdicts.reject(codes < 0, Reason.PATIENT_MISSING)
    verdicts.reject(admitted.unreadable, Reason.TIME_UNREADABLE)
    verdicts.reject(admitted.naive, Reason.TIME_WITHOUT_ZONE)
    again, differing = _repeated(table, codes)
    verdicts.reject(differing, Reason.CONFLICT)
    verdicts.reject(again, Reason.DUPLICATE)
    kept = sorted(np.flatnonzero(verdicts.accepted).tolist(), key=lambda row: ids[codes[row]])
    return verdicts, tuple(ids[codes[row]] for row in kept), np.array(kept, np.int64), admitted


def _repeated(table: Table, codes: Rows) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which rows repeat an earlier row of their patient exactly, and which are of patients whose rows differ."""
    number = np.bincount(codes[codes >= 0], minlength=1)
    several = np.flatnonzero((codes >= 0) & (number[codes] > 1))
    again, differing = np.zeros(len(table), bool), np.zeros(len(table), bool)
    # Compared as text, so that two unknown numbers are the same.
    texts = [as_text(column.take(pa.array(several))).to_pylist() for column in table.columns.columns]
    first: dict[int, object] = {}
    for row, code, contents in zip(several, codes[several].tolist(), zip(*texts, strict=True), strict=True):
        again[row] = code in first
        differing[row] = first.setdefault(code, contents) != contents
    return again, np.isin(codes, np.unique(codes[differing]))


def read_facts(
    table: Table, kept: Rows, ids: tuple[str, ...], admitted: Instants
) -> tuple[Patients, tuple[Entry, ...], int]:
    """Return the patients of the rows `kept`, the cells that were not accepted, and how many were looked at."""
    numbers: dict[str, Floats] = {}
    levels: dict[str, Rows] = {}
    outcomes: dict[str, Floats] = {}
    part: tuple[str, ...] | None = None
    entries: list[Entry] = []
    names = [name for name in table.names if name not in REQUIRED]
    for name in names:
        column, verdicts = table.columns[name].take(pa.array(kept)), Verdicts(len(kept))
        if name in SIGNALS:
            numbers[name] = _read_numbers(name, column, verdicts)
        elif name in CATEGORIES:
            levels[name] = _read_levels(CATEGORIES[name].levels, column, verdicts, Reason.UNKNOWN_LEVEL)
        elif name == "part":
            found = _read_levels(PARTS, column, verdicts, Reason.NOT_TRAIN_OR_TEST)
            part = tuple((*PARTS, "")[code] for code in found)
        else:
            outcomes[name] = _read_outcomes(column, verdicts)
        entries.append(_entry(table, name, kept, verdicts))
    patients = Patients(
        ids=ids, admitted=admitted.time[kept], numbers=numbers, levels=levels, outcomes=outcomes, part=part
    )
    return patients, tuple(entries), len(kept) * len(names)


def _read_numbers(key: str, column: pa.ChunkedArray, verdicts: Verdicts) -> Floats:
    values, wrong = as_numbers(column)
    verdicts.reject(wrong, Reason.NOT_A_NUMBER)
    verdicts.reject((values < SIGNALS[key].low) | (values > SIGNALS[key].high), Reason.IMPLAUSIBLE)
    return np.where(verdicts.accepted, values, np.nan)


def _read_levels(levels: Sequence[str], column: pa.ChunkedArray, verdicts: Verdicts, reason: Reason) -> Rows:
    found = look_up(column, {level: index for index, level in enumerate(levels)})
    verdicts.reject((found < 0) & as_text(column).is_valid().to_numpy(zero_copy_only=False), reason)
    return found


def _read_outcomes(column: pa.ChunkedArray, verdicts: Verdicts) -> Floats:
    values, wrong = as_numbers(column)
    verdicts.reject(wrong | ~(np.isnan(values) | (values == 0) | (values == 1)), Reason.NOT_ZERO_OR_ONE)
    return np.where(verdicts.accepted, values, np.nan)


def _entry(table: Table, name: str, kept: Rows, verdicts: Verdicts) -> Entry:
    rejected, reasons = verdicts.rejected()
    rows = kept[rejected]
    texts = {
        "patient": as_text(table.columns["patient"].take(pa.array(rows))),
        "signal": pa.repeat(name, len(rows)),
        "value": as_text(table.columns[name].take(pa.array(rows))),
    }
    return Entry(file=table.name, row=table.row[rows], reason=reasons, found=texts)
