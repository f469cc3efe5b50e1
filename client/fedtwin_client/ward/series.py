"""What simulated patients' devices have to say: made up, or taken from a folder of files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signal import SIGNALS

VITAL_SIGNS: Final = ("heart_rate", "respiratory_rate", "pulse_oximetry", "temperature", "cuff_systolic", "cuff_mean")
MINUTE: Final = 60_000  # milliseconds
# Of the made-up series: periods in minutes, and the step of phases that fills the circle evenly (the golden section).
_SLOW, _FAST, _GOLDEN = 97.0, 11.3, 0.618033988749895

# Names in the set of PhysioNet's challenge of 2012 (https://physionet.org/content/challenge-2012/1.0.0/).
_PHYSIONET: Final = {
    "HR": "heart_rate",
    "RespRate": "respiratory_rate",
    "Temp": "temperature",
    "NISysABP": "cuff_systolic",
    "NIDiasABP": "cuff_diastolic",
    "NIMAP": "cuff_mean",
    "SysABP": "arterial_systolic",
    "DiasABP": "arterial_diastolic",
    "MAP": "arterial_mean",
    "SaO2": "arterial_saturation",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Stay:
    """What one patient's device measures, in the order of time; a signal has one value at a time.

    signal: i64[rows], index in `SIGNAL_KEYS`. offset: i64[rows], milliseconds since the beginning. value: f32[rows].

    - its repr shows nothing
    """

    patient: str
    signal: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    value: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.value)

    def kind(self, row: int) -> tuple[str, str]:
        """Return code and UCUM unit of a row: LOINC, or the key of a signal that has none."""
        signal = SIGNALS[SIGNAL_KEYS[self.signal[row]]]
        return signal.loinc or SIGNAL_KEYS[self.signal[row]], signal.unit


def make_stays(patients: int, *, minutes: int, seed: int) -> list[Stay]:
    """Return made-up stays: every vital sign once a minute, wandering about its usual value, inside its range.

    Two waves for each signal, whose phases no two patients share: a formula, so that nothing here draws a number.
    """
    signals = [SIGNALS[key] for key in VITAL_SIGNS]
    mean, sd = np.array([one.mean for one in signals]), np.array([one.sd for one in signals])
    low, high = np.array([one.low for one in signals]), np.array([one.high for one in signals])
    time, place = np.arange(minutes)[:, None], np.arange(len(signals))
    stays = []
    for number in range(patients):
        phase = 2 * np.pi * ((seed + number * len(signals) + place) * _GOLDEN % 1)
        level = np.sin(2 * np.pi * time / _SLOW + phase) + 0.3 * np.sin(2 * np.pi * time / _FAST + 7 * phase)
        values = np.clip(mean + sd * level, low, high)
        stays.append(
            Stay(
                patient=f"ward-patient-{number:04d}",
                signal=np.tile([SIGNAL_KEYS.index(key) for key in VITAL_SIGNS], minutes),
                offset=np.repeat(np.arange(minutes) * MINUTE, len(signals)),
                value=values.round(2).astype(np.float32).ravel(),
            )
        )
    return stays


def read_stays(folder: Path, *, patients: int) -> list[Stay]:
    """Return the first patients' stays of a folder: PhysioNet's `set-a.parquet`, or a hospital's `observations` file.

    Raises `ConfigurationError` for a folder with neither, or without patients. Values are not judged here.
    """
    table = _read_table(folder)
    names = sorted(pc.unique(table["patient"]).to_pylist())[:patients]
    if not names:
        raise ConfigurationError(file=folder, expected="observations of patients", found="none")
    table = table.filter(pc.is_in(table["patient"], pa.array(names)))
    stays = []
    for number, name in enumerate(names):
        own = table.filter(pc.equal(table["patient"], name))
        signal = np.array([SIGNAL_KEYS.index(key) for key in own["signal"].to_pylist()], np.int64)
        time, value = own["time"].to_numpy().astype(np.int64), own["value"].to_numpy().astype(np.float32)
        order = np.lexsort((signal, time))
        signal, time, value = signal[order], time[order], value[order]
        first = np.ones(len(time), bool)
        first[1:] = (np.diff(time) != 0) | (np.diff(signal) != 0)
        offset = (time - time.min())[first]
        stays.append(
            Stay(patient=f"ward-patient-{number:04d}", signal=signal[first], offset=offset, value=value[first])
        )
    return stays


def _read_table(folder: Path) -> pa.Table:
    """Return patient, signal, time (milliseconds) and value of signals that we know, without what is no number."""
    if (path := folder / "set-a.parquet").exists():
        found = parquet.read_table(path)
        known = found.filter(pc.is_in(found["parameter"].cast(pa.string()), pa.array(list(_PHYSIONET))))
        signal = pa.array([_PHYSIONET[name] for name in known["parameter"].to_pylist()], pa.string())
        time = pc.multiply(known["minute"].cast(pa.int64()), MINUTE)
        patient, value = known["record_id"].cast(pa.string()), known["value"]
    else:
        for name, read in (("observations.parquet", parquet.read_table), ("observations.csv", csv.read_csv)):
            if (path := folder / name).exists():
                known = read(path)
                break
        else:
            raise ConfigurationError(
                file=folder, expected="set-a.parquet, observations.parquet or observations.csv", found="neither"
            )
        known = known.filter(pc.is_in(known["signal"].cast(pa.string()), pa.array(SIGNAL_KEYS)))
        time = known["time"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        patient, signal, value = known["patient"].cast(pa.string()), known["signal"].cast(pa.string()), known["value"]
    whole = pa.table({"patient": patient, "signal": signal, "time": time, "value": value.cast(pa.float64())})
    return whole.filter(pc.is_finite(whole["value"]))
