"""The unit of the integer grid on which gradients are summed: what a site counts in, and what a coordinator divides by.

One unit is clip ÷ 2^24. The scale is rounded down to a float32, so that both sides have the same number to the bit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

UNITS: Final = 2**24  # of the grid in one clip


def scale(clip: float) -> float:
    """Return how many grid units there are in 1: 2^24 / clip, rounded down to a float32."""
    return float(round_down(np.array([UNITS / clip]))[0])


def round_down(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the largest float32 not above each value (all are positive)."""
    nearest = values.astype(np.float32)
    return np.where(nearest.astype(np.float64) > values, np.nextafter(nearest, np.float32(0)), nearest)
