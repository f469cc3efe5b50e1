"""What the reader did not accept, and why: counted, and written where only the hospital reads it.

Design note: nothing is silently dropped and nothing here is fatal. Of a row that breaks several rules the first in the
order of `Reason` is named. The file quotes the hospital's own rows, so it is theirs alone: mode 0600, in their folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from fedtwin_client.errors import DataError

COLUMNS = ("file", "row", "reason", "patient", "time", "signal", "value", "unit")


class Reason(StrEnum):
    """Why a row or a cell is not used. Reasons are only ever added."""

    MALFORMED_ROW = "malformed-row"  # not as many fields as the header
    MISSING_COLUMN = "missing-column"  # the file lacks a column that every row needs
    PATIENT_MISSING = "patient-missing"
    UNKNOWN_PATIENT = "unknown-patient"
    UNKNOWN_SIGNAL = "unknown-signal"
    UNKNOWN_UNIT = "unknown-unit"
    NOT_A_NUMBER = "not-a-finite-number"
    IMPLAUSIBLE = "implausible-value"
    UNKNOWN_LEVEL = "unknown-level"
    NOT_ZERO_OR_ONE = "not-zero-or-one"
    NOT_TRAIN_OR_TEST = "not-train-or-test"
    TIME_UNREADABLE = "time-unreadable"
    TIME_WITHOUT_ZONE = "time-without-zone"
    OUTSIDE_STAY = "time-outside-stay"
    DUPLICATE = "duplicate"  # the same row again: the first stays, this one does not
    CONFLICT = "conflict"  # two different rows for one thing: none of them stays
    # Only what arrives live can be
    WITHDRAWN = "withdrawn"  # its sender says that it is no result: cancelled, deleted, entered in error
    MODIFIED = "unknown-modifier"  # carries an extension that changes its meaning in a way that we do not know
    NOT_USED = "resource-not-used"  # readable, of a kind that this node does not take
    MALFORMED = "malformed-resource"  # one entry of a message that is readable otherwise
    FUTURE_TIME = "time-in-the-future"
    OLD_TIME = "time-too-old"
    FOREIGN_PATIENT = "patient-not-assigned"  # the device may not speak for this patient
    FOREIGN_SIGNAL = "signal-not-assigned"  # the device may not report this signal
    REPLAYED = "replayed"  # a sequence number from before the replay window
    DEVICE_QUARANTINED = "device-quarantined"
    PATIENT_FORGOTTEN = "patient-forgotten"  # erased: nothing of theirs is kept, not even set aside


REASONS = tuple(Reason)

_ACCEPTED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many rows (or cells) of one file were looked at, and how many were not accepted, by reason.

    - accepted plus quarantined is the total
    """

    file: str
    what: Literal["rows", "cells"]
    total: int
    quarantined: Mapping[Reason, int]
    lacking: tuple[str, ...] = ()  # columns that every row needs and the file does not have

    @property
    def accepted(self) -> int:
        """Number of rows (or cells) in use."""
        return self.total - sum(self.quarantined.values())


class Verdicts:
    """One verdict for each row of a table (or cell of a column): accepted, or the first reason against it."""

    def __init__(self, rows: int) -> None:
        self._reasons = np.full(rows, _ACCEPTED, np.int8)

    def reject(self, where: npt.NDArray[np.bool_], reason: Reason) -> None:
        """Give `reason` where nothing was said against the row so far."""
        self._reasons[where & self.accepted] = REASONS.index(reason)

    @property
    def accepted(self) -> npt.NDArray[np.bool_]:
        """Where nothing was said against the row."""
        return np.equal(self._reasons, _ACCEPTED)

    def rejected(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
        """Return the rejected rows and, for each, the index of its reason in `REASONS`."""
        rows = np.flatnonzero(~self.accepted)
        return rows, self._reasons[rows]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """Rejected rows of one file in columns.

    row: 1-based row of the file, the header not counted. reason: index in `REASONS`, per row.
    found: what stood there, by name of the quarantine file's column.
    """

    file: str
    row: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int8]
    found: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.row)


def count(entries: Iterable[Entry]) -> dict[Reason, int]:
    """Return how often each reason was given."""
    counts = sum((np.bincount(entry.reason, minlength=len(REASONS)) for entry in entries), np.zeros(len(REASONS), int))
    return {reason: int(number) for reason, number in zip(REASONS, counts, strict=True) if number}


def write_quarantine(path: Path, entries: Iterable[Entry]) -> None:
    """Write all rejected rows to `path` as CSV, replacing what was there. Raises `DataError` when it cannot.

    - mode 0600 from its first byte on, whole or not at all
    - an empty quarantine is a file with its header only, so that an old one does not stay
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                csv.write_csv(pa.concat_tables([_SCHEMA.empty_table(), *_tables(entries)]), stream)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as err:
        raise DataError(file=path, expected="a place to write the quarantine", found=type(err).__name__) from err


_SCHEMA = pa.schema([(name, pa.large_string()) for name in COLUMNS])
_REASON_NAMES = pa.array([str(reason) for reason in REASONS])


def _tables(entries: Iterable[Entry]) -> Iterator[pa.Table]:
    for entry in entries:
        blank = pa.nulls(len(entry), pa.large_string())
        columns = {
            "file": pa.repeat(entry.file, len(entry)),
            "row": pa.array(entry.row),
            "reason": _REASON_NAMES.take(pa.array(entry.reason)),
        }
        yield pa.table({name: columns.get(name, entry.found.get(name, blank)) for name in COLUMNS}, schema=_SCHEMA)
