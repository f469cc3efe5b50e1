"""Whether the vital signs' 90 % intervals hold 90 %, on virtual patients the twin's equations know nothing of.

Each reading is compared with what the twin expected just before it (one step ahead: an hour, or as long as the gap
that the deleted readings leave), artefacts and all. The plant's equations are not the twin's (`plant.physiology`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.twins.channels import BLOCKS, NORMAL_90, make_events
from fedtwin_client.twins.filter import make_bank
from fedtwin_client.twins.kernel import apply_events
from fedtwin_simulations.monitor_bench import DAY, MINUTE, Stream

EVERY: Final = 60  # minutes between readings
BEFORE: Final = 6 * 60  # minutes in which the twin gets to know the patient
DELETED: Final = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Share of a signal's readings inside the interval. nis: median of the squared normalised innovation ÷ what is due.

    uniform: largest distance of the innovations' probability integral transform from uniform.
    """

    signal: str
    deleted: float
    covered: float
    nis: float
    uniform: float
    readings: int


def measure_coverage(stream: Stream, *, deleted: float, seed: int = 0) -> tuple[Coverage, ...]:
    """Return each signal's coverage with so large a share of readings, at random, missing."""
    generator = np.random.default_rng(seed)
    count = len(next(iter(stream.readings.values())))
    minutes = np.arange(EVERY // 2, DAY, EVERY)
    parts = []
    for signal, values in stream.readings.items():
        patient, at = np.nonzero(generator.random((count, len(minutes))) >= deleted)
        kind = np.full(len(patient), SIGNAL_KEYS.index(signal))
        parts.append((patient, minutes[at], kind, values[patient, minutes[at]].astype(np.float32)))
    row, minute, kind, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((kind, minute))
    found = []
    for number, block in enumerate(BLOCKS):
        _, events = make_events(number, row[order], minute[order] * MINUTE, kind[order], value[order])
        if not len(events):
            continue
        predicted = apply_events(block, make_bank(block, count), events)
        z = (events.value - predicted.mean) / np.sqrt(predicted.variance)
        for place, channel in enumerate(block.channels):
            mine = z[(events.channel == place) & (events.time >= BEFORE * MINUTE)].astype(np.float64)
            if len(mine):
                found.append(_cover(channel.signal, deleted, mine))
    return tuple(found)


def _cover(signal: str, deleted: float, z: npt.NDArray[np.float64]) -> Coverage:
    from scipy.stats import kstest, norm

    return Coverage(
        signal=signal,
        deleted=deleted,
        covered=float(np.mean(np.abs(z) <= NORMAL_90)),
        nis=float(np.median(z**2)) / 0.4549,  # median of chi-square with one degree of freedom
        uniform=float(kstest(norm.cdf(z), "uniform").statistic),
        readings=len(z),
    )
