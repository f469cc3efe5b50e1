"""What is charted of a course: each signal at its own pace, through a device with its own faults.

A charted value is true value · (1 + drift) + noise, or an artefact; some are never charted, and the clock is off.
  - noise: cuffs, sd 5 mmHg (ISO 81060-2 allows 5 ± 8); pulse oximeters, sd 1.5 points (ISO 80601-2-61 allows 4);
    laboratories, coefficients of variation of 3 to 6 % (Ricos 1999, Scand J Clin Lab Invest 59:491); others assumed
  - drift: a slow process of its own for each patient and device, sd `drift` for most signals
  - artefacts: a probe that comes off (saturation falls), movement (rate rises), a cuff that was bent (pressure off)
  - gaps: a device is off for one to four hours; beyond it, a value is charted with probability `observed`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from fedtwin_shared.signal import SIGNALS
from fedtwin_simulations.plant.engine import Array

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """How one signal is charted. noise: sd, absolute or (`relative`) as a share. artefact: range of what is added."""

    every_minutes: int
    noise: float
    relative: bool
    digits: int
    artefact: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The devices of one hospital.

    noise: factor. drift: share, sd. artefact_share: of values. gap_share: of hours. skew_minutes: its clock's error.
    """

    noise: float = 1.0
    drift: float = 0.005
    artefact_share: float = 0.01
    gap_share: float = 0.05
    skew_minutes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charted:
    """Rows of one signal: which patient, minute after admission, value in the signal's own unit."""

    signal: str
    patient: Rows
    minute: Rows
    value: Array


def _channel(every_minutes: int, noise: float, relative: bool, digits: int, artefact: tuple[float, float]) -> Channel:
    """Shorten the table below."""
    return Channel(every_minutes=every_minutes, noise=noise, relative=relative, digits=digits, artefact=artefact)


CHANNELS: Mapping[str, Channel] = MappingProxyType(
    {
        "heart_rate": _channel(60, 2.5, False, 0, (10, 60)),
        "mean_pressure": _channel(60, 5.0, False, 0, (-30, 30)),
        "systolic_pressure": _channel(60, 5.0, False, 0, (-30, 30)),
        "respiratory_rate": _channel(60, 1.5, False, 0, (-6, 12)),
        "pulse_oximetry": _channel(60, 1.2, False, 0, (-25, -5)),
        "temperature": _channel(240, 0.15, False, 1, (-1.5, 0)),
        "glucose": _channel(360, 0.05, True, 0, (0, 0)),
        "lactate": _channel(720, 0.06, True, 1, (0, 0)),
        "creatinine": _channel(720, 0.04, True, 2, (0, 0)),
        "hematocrit": _channel(720, 0.03, True, 1, (0, 0)),
    }
)
GAP_HOURS = (1, 4)
DRIFT_HOURS = 24.0
LABORATORY = frozenset(
    {"glucose", "lactate", "creatinine", "hematocrit"}
)  # no bedside device, so neither drift nor gap


def chart(
    signal: str,
    truth: Array,
    minutes: Array,
    *,
    device: Device,
    observed: Array,
    stay: Array,
    generator: np.random.Generator,
) -> Charted:
    """Return what is charted of truth[patients, times], with `minutes`[times] evenly apart.

    observed: probability[patients, times] that a value that is due is charted. stay: minutes[patients] to discharge.

    - every value lies in the signal's plausible range, every minute in [0, the last of `minutes`]
    """
    channel, table = CHANNELS[signal], SIGNALS[signal]
    step = round(minutes[1] - minutes[0])
    first = generator.integers(0, max(1, min(channel.every_minutes, 60) // step), len(truth))
    due = np.arange(0, round(minutes[-1]) - channel.every_minutes + 1, channel.every_minutes) // step
    column = first[:, None] + due[None, :]
    rows = np.arange(len(truth))[:, None]
    taken = (minutes[column] <= stay[:, None]) & (generator.random(column.shape) < observed[rows, column])
    if signal not in LABORATORY:
        taken &= ~_gaps(column.shape, device, channel, generator)
    value = truth[rows, column]
    noise = device.noise * channel.noise * generator.standard_normal(column.shape)
    if signal in LABORATORY:
        value = value * (1 + noise)
    else:
        slow = device.drift * _wander(column.shape, channel.every_minutes / 60, generator)
        value = value * (1 + slow) + noise
        spoiled = generator.random(column.shape) < device.artefact_share
        value = value + spoiled * generator.uniform(*channel.artefact, column.shape)
    patient, at = np.nonzero(taken)
    minute = minutes[column[patient, at]] + generator.integers(0, step, len(patient)) + round(device.skew_minutes)
    return Charted(
        signal=signal,
        patient=patient,
        minute=np.clip(minute, 0, minutes[-1]).astype(np.int64),
        value=np.clip(value[patient, at], table.low, table.high).round(channel.digits),
    )


def _gaps(
    shape: tuple[int, ...], device: Device, channel: Channel, generator: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return where the device was off: gaps of one to four hours, `gap_share` of the time."""
    longest = GAP_HOURS[1] * 60 // channel.every_minutes
    mean = max(1.0, sum(GAP_HOURS) / 2 * 60 / channel.every_minutes)
    begins = generator.random(shape) < device.gap_share / mean
    length = generator.integers(GAP_HOURS[0], GAP_HOURS[1] + 1, shape) * 60 // channel.every_minutes
    off = np.array(begins)
    for later in range(1, max(1, longest)):
        off[:, later:] |= begins[:, :-later] & (length[:, :-later] > later)
    return off


def _wander(shape: tuple[int, ...], hours: float, generator: np.random.Generator) -> Array:
    """Return a stationary Ornstein-Uhlenbeck process of unit variance along the second axis."""
    decay = np.exp(-hours / DRIFT_HOURS)
    shocks = generator.standard_normal(shape)
    process = np.empty(shape)
    process[:, 0] = shocks[:, 0]
    for at in range(1, shape[1]):
        process[:, at] = decay * process[:, at - 1] + np.sqrt(1 - decay**2) * shocks[:, at]
    return process
