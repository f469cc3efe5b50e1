"""Published early-warning scores, for arrays of patients.

Design note: charts have a resolution and scores are defined on it, so a value is first rounded as a nurse would chart
it (temperature to 0.1 °C, all else to whole units, halves up); a range then has no gaps. A score with a missing part is
a lower bound and says so.
Sources:
    NEWS2        Royal College of Physicians, National Early Warning Score (NEWS) 2, 2017, chart 1
    qSOFA        Singer 2016, JAMA 315:801, box 4
    SIRS         Bone 1992, Chest 101:1644
    shock index  Allgöwer, Burri 1967, Dtsch Med Wochenschr 92:1947; above 0.9: Rady 1994, Ann Emerg Med 24:685
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Points = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]

UNKNOWN: Final = -1  # points of a part that is missing
SHOCKED: Final = 0.9
PARTS: Final = (
    *("respiratory_rate", "pulse_oximetry", "oxygen", "systolic_pressure"),
    *("heart_rate", "consciousness", "temperature"),
)


class Band(IntEnum):
    """How NEWS2 is answered (chart 2): by the ward's routine, one red part, urgently, as an emergency."""

    LOW = 0
    LOW_MEDIUM = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class News2:
    """NEWS2 of patients. parts: i8[7, patients] by `PARTS`, UNKNOWN where missing. total: of the known parts.

    red: one part has 3. complete: none is missing. band: by total and red.
    """

    parts: Points
    total: Points
    red: Flags
    complete: Flags
    band: Points


def _chart(*steps: tuple[float, int], step: float = 1.0, top: float = 400.0) -> tuple[Points, float]:
    """Return points by charted value ÷ step; `steps`: the highest charted value of each range, and its points."""
    table = np.empty(round(top / step) + 1, np.int8)
    begin = 0
    for last, points in steps:
        end = min(round(last / step) if np.isfinite(last) else len(table) - 1, len(table) - 1)
        table[begin : end + 1] = points
        begin = end + 1
    return table, step


_REST = np.inf
_BREATHS = _chart((8, 3), (11, 1), (20, 0), (24, 2), (_REST, 3))
_SCALE_1 = _chart((91, 3), (93, 2), (95, 1), (_REST, 0))
_SCALE_2_AIR = _chart((83, 3), (85, 2), (87, 1), (_REST, 0))
_SCALE_2_OXYGEN = _chart((83, 3), (85, 2), (87, 1), (92, 0), (94, 1), (96, 2), (_REST, 3))
_SYSTOLIC = _chart((90, 3), (100, 2), (110, 1), (219, 0), (_REST, 3))
_PULSE = _chart((40, 3), (50, 1), (90, 0), (110, 1), (130, 2), (_REST, 3))
_TEMPERATURE = _chart((35.0, 3), (36.0, 1), (38.0, 0), (39.0, 1), (_REST, 2), step=0.1, top=60.0)


def score_news2(
    *,
    respiratory_rate: npt.ArrayLike,
    pulse_oximetry: npt.ArrayLike,
    oxygen: npt.ArrayLike,
    systolic_pressure: npt.ArrayLike,
    heart_rate: npt.ArrayLike,
    alert: npt.ArrayLike,
    temperature: npt.ArrayLike,
    scale_2: npt.ArrayLike = False,
) -> News2:
    """Return NEWS2 of patients, in the units of the Signal table; NaN is missing.

    oxygen: 1 on supplemental oxygen, 0 on air. alert: 1 alert, 0 anything else of ACVPU, new confusion included.
    scale_2: which patients a clinician has put on SpO2 scale 2 (hypercapnic respiratory failure).
    """
    oxygen, pulse_oximetry = np.asarray(oxygen, np.float64), np.asarray(pulse_oximetry, np.float64)
    on_air = np.where(np.isnan(oxygen), UNKNOWN, _look_up(_SCALE_2_AIR, pulse_oximetry))
    on_oxygen = np.where(np.isnan(oxygen), UNKNOWN, _look_up(_SCALE_2_OXYGEN, pulse_oximetry))
    second = np.where(oxygen > 0, on_oxygen, on_air)
    parts = np.stack(
        np.broadcast_arrays(
            _look_up(_BREATHS, respiratory_rate),
            np.where(scale_2, second, _look_up(_SCALE_1, pulse_oximetry)),
            np.where(np.isnan(oxygen), UNKNOWN, np.where(oxygen > 0, 2, 0)),
            _look_up(_SYSTOLIC, systolic_pressure),
            _look_up(_PULSE, heart_rate),
            np.where(np.isnan(alert), UNKNOWN, np.where(np.asarray(alert, np.float64) > 0, 0, 3)),
            _look_up(_TEMPERATURE, temperature),
        )
    ).astype(np.int8)
    total = np.maximum(parts, 0).sum(axis=0, dtype=np.int8)
    red = (parts == 3).any(axis=0)
    band = np.where(total >= 7, Band.HIGH, np.where(total >= 5, Band.MEDIUM, np.where(red, Band.LOW_MEDIUM, Band.LOW)))
    return News2(parts=parts, total=total, red=red, complete=(parts != UNKNOWN).all(axis=0), band=band.astype(np.int8))


def score_qsofa(
    *, respiratory_rate: npt.ArrayLike, systolic_pressure: npt.ArrayLike, glasgow: npt.ArrayLike
) -> tuple[Points, Flags]:
    """Return the points of what is known, 0 to 3, and whether all of it is; 2 are positive."""
    breaths, pressure, coma = (np.asarray(x, np.float64) for x in (respiratory_rate, systolic_pressure, glasgow))
    points = (_charted(breaths) >= 22).astype(np.int8) + (_charted(pressure) <= 100) + (_charted(coma) < 15)
    return points.astype(np.int8), ~(np.isnan(breaths) | np.isnan(pressure) | np.isnan(coma))


def score_sirs(
    *,
    temperature: npt.ArrayLike,
    heart_rate: npt.ArrayLike,
    respiratory_rate: npt.ArrayLike,
    arterial_carbon_dioxide: npt.ArrayLike,
    white_cells: npt.ArrayLike,
) -> tuple[Points, Flags]:
    """Return the criteria that are met, 0 to 4, and whether every one could be told; 2 are positive."""
    warmth = _charted(temperature, 0.1)
    pulse, breaths = _charted(heart_rate), _charted(respiratory_rate)
    gas, cells = np.asarray(arterial_carbon_dioxide, np.float64), np.asarray(white_cells, np.float64)
    met = ((warmth > 38.0) | (warmth < 36.0)).astype(np.int8) + (pulse > 90) + ((breaths > 20) | (gas < 32))
    met = met + ((cells > 12) | (cells < 4))
    known = ~(np.isnan(warmth) | np.isnan(pulse) | (np.isnan(breaths) & np.isnan(gas)) | np.isnan(cells))
    return met.astype(np.int8), known


def shock_index(*, heart_rate: npt.ArrayLike, systolic_pressure: npt.ArrayLike) -> Values:
    """Return heart rate ÷ systolic pressure; NaN where either is missing or the pressure is 0.

    >>> float(shock_index(heart_rate=110, systolic_pressure=100))
    1.1
    """
    pressure = np.asarray(systolic_pressure, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pressure > 0, np.asarray(heart_rate, np.float64) / pressure, np.nan)


def _charted(value: npt.ArrayLike, step: float = 1.0) -> Values:
    """Return the value as charted: to the nearest step, halves up; a float32's error does not move it."""
    steps = np.floor(np.asarray(value, np.float64) / step + 0.5 + 1e-5)
    return np.asarray(np.round(steps * step, 6))


def _look_up(chart: tuple[Points, float], value: npt.ArrayLike) -> Points:
    table, step = chart
    value = np.asarray(value, np.float64)
    missing = np.isnan(value)
    at = np.floor(np.where(missing, 0.0, value) / step + (0.5 + 1e-5)).astype(np.int64)
    points = table[np.clip(at, 0, len(table) - 1)]
    return np.where(missing, np.int8(UNKNOWN), points)
