"""Training windows of one patient or of all, from the store; a cache of them lives in memory and nowhere else.

A window is a number of time steps; a step holds, for each signal, the mean z-score (Signal table, ± limit) of what was
measured in it: the same number as the statistic `mean` of `series`. What a device itself calls invalid is not used.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, Quality
from fedtwin_client.store.store import SPAN, ObservationStore
from fedtwin_shared.signal import CLIP, SIGNALS

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowShape:
    """What a window is. step: milliseconds. signals: keys of the Signal table, the columns."""

    windows: int
    steps: int
    step: int
    signals: tuple[str, ...]
    limit: float = CLIP

    def __post_init__(self) -> None:
        if not (self.windows > 0 and self.steps > 0 and self.step > 0 and self.limit > 0 and self.signals):
            raise ValueError("expected windows, steps, step and limit > 0, and a signal")
        if unknown := set(self.signals) - set(SIGNALS):
            raise ValueError(f"signals: expected keys of the Signal table, found {sorted(unknown)}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Windows:
    """Windows of patients, in increasing order of their id.

    x: f32[patients, windows, steps, signals], 0 where nothing was measured. mask: bool, same shape: measured.

    - a patient's windows are the same whatever other patients there are
    - its repr shows no patient and no value
    """

    patients: tuple[str, ...]
    x: Floats
    mask: Flags


class WindowCache:
    """Windows of a store's patients; in memory only, rebuilt from the store when it is asked.

    - windows of a patient who changed, or was forgotten, are dropped before the store's method returns
    - what it gives is what building anew would give
    """

    def __init__(self, store: ObservationStore, shape: WindowShape) -> None:
        self._store, self._shape = store, shape
        self._lock = threading.Lock()
        self._built = dict[tuple[str, int], tuple[Floats, Flags]]()
        self._changes = Counter[str]()
        store.watch(self._drop)

    def __len__(self) -> int:
        return len(self._built)

    def build(self, starts: Mapping[str, int]) -> Windows:
        """Return the windows of these patients; starts: patient -> beginning of the first window, ms UTC."""
        patients = tuple(sorted(starts))
        size = (len(patients), self._shape.windows, self._shape.steps, len(self._shape.signals))
        x, mask = np.empty(size, np.float32), np.empty(size, bool)
        for row, patient in enumerate(patients):
            x[row], mask[row] = self._of(patient, starts[patient])
        return Windows(patients=patients, x=x, mask=mask)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._built.clear()

    def _of(self, patient: str, start: int) -> tuple[Floats, Flags]:
        with self._lock:
            if (found := self._built.get((patient, start))) is not None:
                return found
            changes = self._changes[patient]
        end = start + self._shape.windows * self._shape.steps * self._shape.step
        # Whole blocks: cutting them to the window costs the store more than reading on.
        since, until = start // SPAN * SPAN, -(-end // SPAN) * SPAN
        built = build_windows(self._store.read(patient, since=since, until=until), start, self._shape)
        with self._lock:
            if changes == self._changes[patient]:  # else it changed since, and what was read may be erased
                self._built[patient, start] = built
        return built

    def _drop(self, patient: str) -> None:
        with self._lock:
            self._changes[patient] += 1
            for key in [key for key in self._built if key[0] == patient]:
                del self._built[key]


def build_windows(batch: ObservationBatch, start: int, shape: WindowShape) -> tuple[Floats, Flags]:
    """Return x and mask of one patient, both [windows, steps, signals]; `start` is where the first window begins."""
    column = np.full(len(SIGNAL_KEYS), -1, np.int64)
    column[[SIGNAL_KEYS.index(key) for key in shape.signals]] = np.arange(len(shape.signals))
    rows = [SIGNALS[key] for key in shape.signals]
    scale = np.array([(row.low, row.high, row.mean, row.sd, row.scale == "log") for row in rows], np.float64)
    total = np.zeros((shape.windows * shape.steps, len(rows)))
    count = np.zeros(total.shape, np.int64)
    usable = batch.quality != Quality.INVALID
    _add_up(batch.signal, batch.time, batch.value, usable, start, shape.step, shape.limit, column, scale, total, count)
    size = (shape.windows, shape.steps, len(rows))
    x = np.divide(total, count, out=np.zeros(total.shape), where=count > 0).astype(np.float32)
    return x.reshape(size), (count > 0).reshape(size)


@njit(cache=True)
def _add_up(
    signal: npt.NDArray[np.int16],
    time: npt.NDArray[np.int64],
    value: Floats,
    usable: Flags,
    start: int,
    step: int,
    limit: float,
    column: npt.NDArray[np.int64],
    scale: npt.NDArray[np.float64],
    total: npt.NDArray[np.float64],
    count: npt.NDArray[np.int64],
) -> None:
    for row in range(len(value)):
        at, place = column[signal[row]], (time[row] - start) // step
        if at < 0 or place < 0 or place >= len(total) or not usable[row]:
            continue
        plausible = min(max(np.float64(value[row]), scale[at, 0]), scale[at, 1])
        if scale[at, 4] > 0:
            plausible = np.log(plausible)
        z = (plausible - scale[at, 2]) / scale[at, 3]
        total[place, at] += min(max(z, -limit), limit)
        count[place, at] += 1
