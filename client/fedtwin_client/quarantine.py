"""What the reader did not accept, and why: counted, and written where only the hospital reads it.

Design note: nothing is silently dropped and nothing here is fatal. Of a row that breaks several rules the first in the
order of `Reason` is named. The file quotes the hospital's own rows, so it is theirs alone: mode 0600, in their folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

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


REASONS = tuple(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many rows (or cells) of one file were accepted, and how many were not, by reason.

    - accepted plus quarantined is the total
    """

    file: str
    what: str  # "rows" or "cells"
    total: int
    quarantined: Mapping[Reason, int]

    @property
    def accepted(self) -> int:
        """Number of rows (or cells) in use."""
        return self.total - sum(self.quarantined.values())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """Rejected rows of one kind in columns: 1-based row of the file (the header is not counted) and what stood there.

    reason: index in `REASONS`, per row.
    """

    file: str
    row: npt.NDArray[np.int64]
    reason: npt.NDArray[np.int8]
    found: Mapping[str, pa.Array]  # patient, time, signal, value, unit; those that the row has

    def __len__(self) -> int:
        return len(self.row)


def count_reasons(reasons: npt.NDArray[np.int8]) -> dict[Reason, int]:
    """Return how often each reason was given; -1 is an accepted row and not counted."""
    counts = np.bincount(reasons[reasons >= 0], minlength=len(REASONS))
    return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}


def write_quarantine(path: Path, entries: Sequence[Entry]) -> None:
    """Write all rejected rows to `path` as CSV, replacing what was there.

    - mode 0600 from its first byte on, whole or not at all
    - an empty quarantine is a file with its header only, so that an old one does not stay
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        csv.write_csv(pa.concat_tables([_EMPTY, *_tables(entries)]), stream)
    os.replace(draft, path)


_EMPTY = pa.table({name: pa.array([], pa.string()) for name in COLUMNS})


def _tables(entries: Sequence[Entry]) -> Iterator[pa.Table]:
    names = pa.array([str(reason) for reason in REASONS])
    for entry in entries:
        blank = pa.nulls(len(entry), pa.string())
        yield pa.table(
            {
                "file": pa.repeat(entry.file, len(entry)),
                "row": pa.array(entry.row).cast(pa.string()),
                "reason": names.take(pa.array(entry.reason)),
                **{name: entry.found.get(name, blank) for name in COLUMNS[3:]},
            }
        )
