"""A hospital's own files become records: checked row by row, in the signals' own units, nothing silently dropped.

A hospital keeps one folder with

patients.csv or patients.parquet, a row per patient (per stay, where a study counts stays)
    patient    the hospital's own id; it never leaves
    admitted   ISO 8601 with `Z` or an offset (2024-03-01T08:30:00Z); in Parquet a timestamp with a time zone
    part       optional, `train` or `test`; used only by studies whose split rule is `column` (simulations)
    …          any key of the Signal table: a number known at admission, in the signal's own unit
    …          any key of the Category table: one of its levels, as text
    …          every other column is an outcome: 0 or 1
    An empty cell is unknown. A column that a study uses and the file does not have is unknown for everybody, and named
    by `cohort.missing_columns`.

observations.csv or observations.parquet, a row per value (optional: a study may use facts only)
    patient    as above
    time       as `admitted`
    signal     a key of the Signal table
    value      a decimal number
    unit       UCUM: the signal's own unit, or another that `units` converts

CSV is UTF-8 with commas, a header, and no line break inside a field. The order of columns and of rows means nothing.

What is not accepted is counted by reason and written to a quarantine file (reasons: `quarantine.Reason`):
  - a row with a wrong number of fields, without a patient, with an unknown patient, signal or unit, with an unreadable
    time or one without a zone, more than 30 days before or 366 days after admission, with a value that is no finite
    number or, converted, outside the signal's plausible range
  - the same row again: the first stays, each further one is a `duplicate`
  - different rows for one patient, or for one patient, signal and instant: they are in `conflict` and none stays
  - an impossible fact or outcome: the cell goes, the patient stays, with this unknown
  - all rows of a file without one of the columns that every row needs (patient, admitted; the five above)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from fedtwin_client import observation_file, patient_file
from fedtwin_client.errors import DataError
from fedtwin_client.observation import Observations, Patients
from fedtwin_client.quarantine import COLUMNS, REASONS, Entry, Reason, Tally, Verdicts, count, write_quarantine
from fedtwin_client.table import Table, as_text, read_table


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

    Raises `DataError` when there is no patients file, or a file that cannot be read as a table.

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


_NO_PATIENTS = Patients(ids=(), admitted=np.empty(0, np.int64), numbers={}, levels={}, outcomes={}, part=None)
_NO_OBSERVATIONS = Observations(
    patient=np.empty(0, np.int64), signal=np.empty(0, np.int64), time=np.empty(0, np.int64), value=np.empty(0)
)


def _accept_patients(table: Table) -> tuple[Patients, tuple[Tally, ...], tuple[Entry, ...]]:
    if lacking := [name for name in patient_file.REQUIRED if name not in table.names]:
        rows = _reject_all(table, lacking)
        return _NO_PATIENTS, (replace(_tally(table, rows), lacking=tuple(lacking)),), rows
    verdicts, ids, kept, admitted = patient_file.judge_patients(table)
    patients, cells, total = patient_file.read_facts(table, kept, ids, admitted)
    rows = _rejected_rows(table, verdicts)
    of_cells = Tally(file=table.name, what="cells", total=total, quarantined=count(cells))
    return patients, (_tally(table, rows), of_cells), (*rows, *cells)


def _accept_observations(table: Table, patients: Patients) -> tuple[Observations, Tally, tuple[Entry, ...]]:
    if lacking := [name for name in observation_file.REQUIRED if name not in table.names]:
        rows = _reject_all(table, lacking)
        return _NO_OBSERVATIONS, replace(_tally(table, rows), lacking=tuple(lacking)), rows
    verdicts, observations = observation_file.judge_observations(table, patients)
    rows = _rejected_rows(table, verdicts)
    return observations, _tally(table, rows), rows


def _tally(table: Table, rows: tuple[Entry, ...]) -> Tally:
    total = len(table) + len(table.malformed)
    return Tally(file=table.name, what="rows", total=total, quarantined=count(rows))


def _reject_all(table: Table, lacking: Sequence[str]) -> tuple[Entry, ...]:
    """Quarantine a whole file; the columns that it lacks are named where a rejected cell's column is."""
    verdicts = Verdicts(len(table))
    verdicts.reject(np.ones(len(table), bool), Reason.MISSING_COLUMN)
    return _rejected_rows(table, verdicts, signal=" ".join(lacking))


def _rejected_rows(table: Table, verdicts: Verdicts, **named: str) -> tuple[Entry, ...]:
    rows, reasons = verdicts.rejected()
    # The two files share the quarantine file's columns; an admission stands where an observation's time does.
    found = {"time" if name == "admitted" else name: table.columns[name] for name in table.names}
    texts = {name: as_text(column.take(pa.array(rows))) for name, column in found.items() if name in COLUMNS[3:]}
    texts |= {name: pa.repeat(text, len(rows)) for name, text in named.items()}
    entry = Entry(file=table.name, row=table.row[rows], reason=reasons, found=texts)
    if not table.malformed:
        return (entry,)
    malformed = Entry(
        file=table.name,
        row=np.array([one.row for one in table.malformed]),
        reason=np.full(len(table.malformed), REASONS.index(Reason.MALFORMED_ROW), np.int8),
        found={"value": pa.array([one.text for one in table.malformed])},
    )
    return entry, malformed
