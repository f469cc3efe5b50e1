"""Body temperature of one patient: it follows a set point that fever and the time of day move.

- T' = (set point - T) / 60 min (assumed); day and night ± 0.25 °C, highest at 17 h (Mackowiak 1992, JAMA 268:1578:
  range 0.5 °C, highest between 16 h and 18 h)
- metabolism × 1.13 for each °C (Du Bois 1921, JAMA 77:352)
"""

from __future__ import annotations

import numpy as np

from fedtwin_simulations.plant.engine import Array, compilable

FOLLOWING_MINUTES = 60.0
DAY_AMPLITUDE = 0.25
DAY_PEAK = 17 * 60.0
METABOLIC_FACTOR = 1.13


@compilable
def swing(clock: Array) -> Array:
    """Return what the time of day (minutes since midnight) adds to the set point, in °C."""
    turn: Array = np.cos((clock - DAY_PEAK) * (2.0 * np.pi / 1440.0))
    return DAY_AMPLITUDE * turn


@compilable
def advance(temperature: Array, set_point: Array, minutes: float) -> Array:
    """Return the temperature after one step, exactly, towards a constant set point."""
    kept: float = np.exp(-minutes / FOLLOWING_MINUTES)
    return set_point + (temperature - set_point) * kept
