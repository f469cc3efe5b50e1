"""Observations on their way into twins: one order that does not depend on arrival, and what is not used, and why.

Outcomes, in the order in which they are decided:
    NOT_READ   no block reads the signal
    INVALID    the device itself says so
    FUTURE     later than the node's clock by more than AHEAD: a device's clock jumped; nothing moves
    LATE       more than the window older than the newest the twin had seen when it arrived
    DUPLICATE  the same patient, signal, time, device, sequence number and value again
    CONFLICT   one device, one instant, two values: neither is used, as long as the first can still be taken back
    STUCK      the same value for STUCK_COUNT readings and STUCK_MINUTES; the twin ages instead
    ARTEFACT   beyond the gate (see `filter`)
    USED
An observation that arrives late but within the window changes the twin as if it had come in time: it is computed again
from before the window. Order among observations of one instant: by signal, device, sequence number and value.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.twins.block import Rows

AHEAD: Final = 60_000  # milliseconds
WINDOW: Final = 15 * 60_000
STUCK_COUNT, STUCK_MINUTES = 20, 30

Flags = npt.NDArray[np.bool_]
Table = npt.NDArray[np.void]
ENTRY: Final = np.dtype(
    [("row", "i8"), ("time", "i8"), ("kind", "i8"), ("device", "i8"), ("sequence", "i8"), ("value", "f4")]
)
_COLUMNS: Final = ("row", "time", "kind", "device", "sequence", "value")


class Outcome(IntEnum):
    """What became of an observation in the twin."""

    USED = 0
    ARTEFACT = 1
    STUCK = 2
    CONFLICT = 3
    DUPLICATE = 4
    LATE = 5
    FUTURE = 6
    INVALID = 7
    NOT_READ = 8


Outcomes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Runs:
    """Per patient and signal: newest value, since when and how often it came in a row, and when last one was used.

    All [patients, signals]; times in ms UTC.
    """

    value: npt.NDArray[np.float32]
    since: Rows
    count: Rows
    used: Rows


def number_device(device: str) -> int:
    """Return a number of a device that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(device.encode(), digest_size=8).digest(), "big", signed=True)


def sort_entries(table: Table) -> Rows:
    """Return the one order of entries: by patient, then time, then everything else."""
    return np.lexsort(tuple(table[name] for name in reversed(_COLUMNS)))


def find_late(row: Rows, time: Rows, newest: Rows, window: int) -> Flags:
    """Return which entries, in the order of arrival, came too late, and move `newest`[patients] on, in place.

    - how arrivals are cut into calls changes nothing
    """
    late = np.zeros(len(row), bool)
    order = np.argsort(row, kind="stable")
    first = np.flatnonzero(np.diff(row[order], prepend=-1))
    for begin, end in pairwise(np.append(first, len(row))):
        mine = order[begin:end]
        patient = row[mine[0]]
        before = np.maximum.accumulate(np.append(newest[patient], time[mine]))
        late[mine] = time[mine] < before[:-1] - window
        newest[patient] = before[-1]
    return late


def find_repeats(table: Table) -> tuple[Flags, Flags]:
    """Return which of the sorted entries repeat the one before, and which contradict another of the same device."""
    repeated, contradicted = np.zeros(len(table), bool), np.zeros(len(table), bool)
    if len(table) < 2:
        return repeated, contradicted
    same = np.ones(len(table) - 1, bool)
    for name in ("row", "time", "kind", "device"):
        same &= table[name][1:] == table[name][:-1]
    alike = same & (table["value"][1:] == table["value"][:-1])
    repeated[1:] = alike & (table["sequence"][1:] == table["sequence"][:-1])
    group = np.cumsum(np.append(True, ~same)) - 1
    differs = np.bincount(group[1:], weights=same & ~alike, minlength=group[-1] + 1) > 0
    contradicted = differs[group] & (table["kind"] >= 0)
    return repeated, contradicted & ~repeated


def find_stuck(table: Table, runs: Runs) -> Flags:
    """Return which of the sorted entries continue a value that is stuck, and move `runs` on, in place."""
    stuck = np.zeros(len(table), bool)
    for at in np.flatnonzero(table["kind"] >= 0):
        row, kind = table["row"][at], table["kind"][at]
        value, time = table["value"][at], table["time"][at]
        if runs.count[row, kind] and runs.value[row, kind] == value:
            runs.count[row, kind] += 1
            lasted = time - runs.since[row, kind]
            stuck[at] = runs.count[row, kind] >= STUCK_COUNT and lasted >= STUCK_MINUTES * 60_000
        else:
            runs.value[row, kind], runs.since[row, kind], runs.count[row, kind] = value, time, 1
    return stuck
