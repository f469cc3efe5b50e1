"""The integer grid on which patients are summed and noise is added: units, clipping, rounding, sensitivity.

Design note. One grid unit is clip ÷ 2^24. Each patient's gradient is clipped and rounded to whole units *alone*, and
whole units are added up in integers, so that nobody's contribution depends on who else is there or on the order of a
sum. (Rounding the float sum instead is wrong: removing one patient moved the others' sum by thousands of units.)

- Clipping: a factor for each patient, f = min(s, 2^24 / ‖g‖) with s = 2^24 / clip, rounded *down* to float32. A product
  of two float32 numbers is exact in float64, so the real vector f · g is at most 2^24 long, without an "almost".
- Rounding each of d coordinates to the nearest integer moves a vector by at most √d / 2.
- Sensitivity (L2, add or remove one patient): 2^24 + √d / 2 units.
- Noise: the nearest integer to a Gaussian of standard deviation σ · sensitivity, units. For integers X,
  X + round(N) = round(X + N): what is released is the Gaussian mechanism and a rounding after it, with σ the plan's.
  Floating-point noise is not: with float32 noise 11 to 13 % of coordinates prove that a patient is there
  (Mironov, CCS 2012; Haney et al., CCS 2022, for the Gaussian).
- Nothing overflows: a coordinate of n patients is at most n · (2^24 + 1), exact in float64 and int64 up to 2^28
  patients; noise is at most 13.4 · 10^6 · (2^24 + √d / 2) < 2^48.

Two forms of each kernel give the same bits: numpy's, and one fused by numba where it is installed.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.randomness import KeyStream
from fedtwin_shared.gradient_grid import UNITS as UNITS
from fedtwin_shared.gradient_grid import round_down as round_down
from fedtwin_shared.gradient_grid import scale as scale

MAXIMUM_PATIENTS: Final = 2**28  # in one sum
CLIPS: Final = (1e-6, 1e6)  # smallest and largest clip, as the study has them
MAXIMUM_NOISE: Final = 1e6  # multiplier, as the study has it
LANES: Final = 8  # partial sums of a squared norm: one order of additions in both forms
NOISE_REACH: Final = 13.4  # standard deviations; `KeyStream.gaussians` ends before
# Of a norm: float64 sums of at most 2^22 / LANES squares a lane are this close from below.
NORM_MARGIN: Final = 1 + 2.0**-30

Rows = npt.NDArray[np.float32]
Total = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Factors = npt.NDArray[np.float32]


def check_mechanism(*, clip: float, noise_multiplier: float) -> None:
    """Raise `ValueError` unless both are within the limits of a study, saying what to do instead."""
    if not CLIPS[0] <= clip <= CLIPS[1]:
        raise ValueError(f"expected {CLIPS[0]:g} <= clip <= {CLIPS[1]:g}, found {clip}: use the study's privacy.clip")
    if not 0 < noise_multiplier <= MAXIMUM_NOISE:
        raise ValueError(
            f"expected 0 < noise_multiplier <= {MAXIMUM_NOISE:g}, found {noise_multiplier}: use the study's "
            'privacy.noise_multiplier; without noise only a simulation trains, with privacy.mode "none"'
        )


def sensitivity(dimension: int) -> float:
    """Return the most by which one patient changes a sum of `dimension` coordinates, L2, in grid units."""
    return UNITS + math.sqrt(dimension) / 2


def noise_deviation(dimension: int, *, noise_multiplier: float) -> float:
    """Return the standard deviation of the noise in grid units, before its rounding.

    - divided by the sensitivity it is never below the plan's multiplier
    """
    return math.nextafter(noise_multiplier * math.nextafter(sensitivity(dimension), math.inf), math.inf)


def largest_coordinate(dimension: int, *, patients: int, noise_multiplier: float) -> int:
    """Return the largest absolute value that a coordinate of a sum with noise can have, in grid units.

    - no sample of at most that many patients, and no draw of the noise, goes beyond it
    """
    noise = NOISE_REACH * noise_deviation(dimension, noise_multiplier=noise_multiplier) if noise_multiplier else 0.0
    return patients * (UNITS + 1) + math.ceil(noise) + 1


def clip_factors(norms: Floats, *, clip: float) -> Factors:
    """Return for each patient's norm the factor that takes the gradient to the grid, clipped.

    - factor · norm is at most 2^24, and factor at most `scale(clip)`
    - a norm that is not finite has factor 0: that patient counts as zero, and data never stop a round
    """
    finite = np.isfinite(norms)
    longest = np.maximum(np.where(finite, norms, 1.0) * NORM_MARGIN, clip)
    factors = np.minimum(round_down(UNITS / longest), np.float32(scale(clip)))
    return np.where(finite, factors, np.float32(0.0))


def draw_noise(stream: KeyStream, count: int, *, deviation: float) -> Total:
    """Return `count` Gaussians of this standard deviation, each rounded to the nearest integer."""
    return np.rint(deviation * stream.gaussians(count)).astype(np.int64)


def measure_norms_plainly(rows: Rows) -> Floats:
    """Return the norm of each of rows f32[patients, d], in float64; the numpy form."""
    patients, dimension = rows.shape
    squares = np.zeros((patients, -(-dimension // LANES) * LANES))
    np.square(rows, out=squares[:, :dimension], dtype=np.float64)
    lanes = squares.reshape(patients, -1, LANES).sum(axis=1)  # not the last axis: numpy adds one after the other
    found: Floats = np.sqrt(lanes.T.cumsum(axis=0)[-1])
    return found


def accumulate_plainly(total: Total, rows: Rows, factors: Factors) -> None:
    """Add each row times its factor, rounded to integers by itself, to total i64[d]; the numpy form.

    - a row of factor 0 adds nothing, whatever it holds
    """
    for row, factor in zip(rows, factors, strict=True):
        if factor > 0:
            total += np.rint(row.astype(np.float64) * np.float64(factor)).astype(np.int64)


def _measure_norms(rows: Rows, norms: Floats) -> None:
    patients, dimension = rows.shape
    lanes = np.zeros(LANES)
    for patient in range(patients):
        lanes[:] = 0.0
        whole = dimension - dimension % LANES
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                value = np.float64(rows[patient, start + lane])
                lanes[lane] += value * value
        for column in range(whole, dimension):
            value = np.float64(rows[patient, column])
            lanes[column - whole] += value * value
        found = 0.0
        for lane in range(LANES):
            found += lanes[lane]
        norms[patient] = np.sqrt(found)


def _accumulate(total: Total, rows: Rows, factors: Factors) -> None:
    patients, dimension = rows.shape
    for patient in range(patients):
        factor = np.float64(factors[patient])
        if factor > 0:
            for column in range(dimension):
                total[column] += np.int64(np.rint(np.float64(rows[patient, column]) * factor))


def _compile() -> tuple[Callable[[Rows], Floats], Callable[[Total, Rows, Factors], None]]:
    import numba

    def compiled(function: Callable[..., None]) -> Callable[..., None]:
        try:
            kernel: Callable[..., None] = numba.njit(cache=True, nogil=True)(function)
        except RuntimeError:  # no folder in which this user may keep compiled code: a second for every process
            kernel = numba.njit(nogil=True)(function)
        return kernel

    compiled_norms, compiled_sum = compiled(_measure_norms), compiled(_accumulate)

    def measure(rows: Rows) -> Floats:
        norms = np.empty(len(rows))
        compiled_norms(rows, norms)
        return norms

    return measure, compiled_sum


if importlib.util.find_spec("numba") is not None:
    measure_norms, accumulate = _compile()
else:
    measure_norms, accumulate = measure_norms_plainly, accumulate_plainly
