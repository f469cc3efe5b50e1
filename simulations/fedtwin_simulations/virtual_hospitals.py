"""The product's own hospitals: virtual patients who get better or worse, written in a hospital's own file format.

Design note: one latent severity per patient moves every vital sign, so that the task is learnable, and everything that
makes real data hard is on top of it: hospitals with different patients, personal baselines, two organ systems that fail
separately, sensor noise, values missing at random, laboratory values twice a day, and a few broken rows (impossible
values, wrong units, two rows for one instant) for the reader to quarantine.

The process, per patient and hour t (all draws from one seeded generator):
  - set point m = case mix + AGE_EFFECT · (age - 65)/15 + N(0, SET_POINT_SD²)
  - severity s, an Ornstein-Uhlenbeck process around m (Uhlenbeck, Ornstein 1930, Phys Rev 36:823), discretised exactly:
    s(t + 1) = m + (s(t) - m)·a + N(0, SPREAD²·(1 - a²)), a = exp(-1 h / RELAXATION_HOURS), s(0) stationary
  - a share c of it is circulatory, 1 - c respiratory; each `Response` says which share moves its signal, and how far
  - outcome `deteriorated`: Bernoulli(logistic(INTERCEPT + SLOPE · s(24 h)))
The slopes of the responses are round clinical numbers, not fitted to any patient; nobody in here exists.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedtwin_shared.signal import SIGNALS
from fedtwin_simulations.datasets.hospital_files import OBSERVATIONS_FILE, PATIENTS_FILE

Array = npt.NDArray[np.float64]

HOURS = 48  # the longest stay that is simulated; the shortest is half of it
DECISION_HOUR = 24  # the outcome depends on the severity at this hour
RELAXATION_HOURS = 12.0
SPREAD = 0.7
SET_POINT_SD = 0.9
AGE_EFFECT = 0.35
INTERCEPT, SLOPE = -2.9, 1.9  # about one patient in six deteriorates
BROKEN_SHARE = 0.0005  # of all observations, for each kind of broken row

_ADMITTED = pd.Timestamp("2024-01-01T00:00:00Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMix:
    """What distinguishes one hospital: how many patients, how old, how ill, and which organ fails."""

    site: str
    patients: int
    age_mean: float
    male_share: float
    severity: float
    circulatory_share: float
    observed_share: float  # of the vital signs that were due, those that were recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """How one signal follows severity: value = typical + slope · severity + personal baseline + noise (ln on "log")."""

    signal: str
    typical: float
    slope: float
    moved_by: Literal["circulation", "breathing", "both"]
    baseline_sd: float
    noise_sd: float
    every_hours: int
    digits: int


CASE_MIXES = (
    CaseMix(
        site="city",
        patients=700,
        age_mean=66,
        male_share=0.54,
        severity=0.1,
        circulatory_share=0.5,
        observed_share=0.8,
    ),
    CaseMix(
        site="coast",
        patients=450,
        age_mean=73,
        male_share=0.48,
        severity=-0.1,
        circulatory_share=0.35,
        observed_share=0.6,
    ),
    CaseMix(
        site="university",
        patients=1000,
        age_mean=58,
        male_share=0.57,
        severity=0.4,
        circulatory_share=0.65,
        observed_share=0.9,
    ),
    CaseMix(
        site="valley",
        patients=400,
        age_mean=69,
        male_share=0.51,
        severity=-0.4,
        circulatory_share=0.45,
        observed_share=0.5,
    ),
)


def _response(
    signal: str,
    typical: float,
    slope: float,
    moved_by: Literal["circulation", "breathing", "both"],
    baseline_sd: float,
    noise_sd: float,
    every_hours: int,
    digits: int,
) -> Response:
    """Shorten the table below."""
    return Response(
        signal=signal,
        typical=typical,
        slope=slope,
        moved_by=moved_by,
        baseline_sd=baseline_sd,
        noise_sd=noise_sd,
        every_hours=every_hours,
        digits=digits,
    )


RESPONSES = (
    _response("heart_rate", 82, 10, "both", 11, 5, 1, 0),
    _response("mean_pressure", 84, -8, "circulation", 9, 5, 1, 0),
    _response("systolic_pressure", 126, -11, "circulation", 14, 7, 1, 0),
    _response("respiratory_rate", 17, 3, "breathing", 2.5, 1.8, 1, 0),
    _response("pulse_oximetry", 96.5, -1.6, "breathing", 1.2, 0.9, 1, 0),
    _response("temperature", 36.9, 0.3, "both", 0.3, 0.2, 4, 1),
    _response("lactate", np.log(1.4), 0.45, "circulation", 0.25, 0.12, 12, 1),
    _response("creatinine", np.log(0.95), 0.25, "circulation", 0.35, 0.06, 12, 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalTables:
    """One hospital's two files, before they are written."""

    site: str
    patients: pd.DataFrame
    observations: pd.DataFrame


def list_case_mixes(count: int) -> tuple[CaseMix, ...]:
    """Return `count` hospitals: the four of `CASE_MIXES`, then the same kinds again under new names."""
    if not count >= 1:
        raise ValueError(f"expected at least 1 hospital, found {count}")
    kinds = len(CASE_MIXES)
    return tuple(
        CASE_MIXES[index]
        if index < kinds
        else replace(CASE_MIXES[index % kinds], site=f"{CASE_MIXES[index % kinds].site}-{index // kinds + 1}")
        for index in range(count)
    )


def write_hospitals(target: Path, *, count: int = 4, seed: int = 0) -> tuple[str, ...]:
    """Write one directory per virtual hospital under `target` and return their names.

    - a hospital's files depend on the seed and its own name alone, not on how many others there are
    """
    cases = list_case_mixes(count)
    for case in cases:
        tables = simulate_hospital(case, seed=seed)
        folder = target / case.site
        folder.mkdir(parents=True, exist_ok=True)
        tables.patients.to_csv(folder / PATIENTS_FILE, index=False)
        tables.observations.to_parquet(folder / OBSERVATIONS_FILE, index=False)
    return tuple(case.site for case in cases)


def simulate_hospital(case: CaseMix, *, seed: int) -> HospitalTables:
    """Return the patients and observations of one virtual hospital."""
    name = zlib.crc32(case.site.encode())
    generator = np.random.default_rng([seed, name])
    identifiers = _draw_identifiers(case.patients, name, generator)
    age = np.clip(generator.normal(case.age_mean, 14, case.patients), 18, 100).round()
    severity = simulate_severity(case, age, generator)
    patients = pd.DataFrame(
        {
            "patient": identifiers,
            "admitted": [
                f"{_ADMITTED + pd.Timedelta(minutes=int(minute)):%Y-%m-%dT%H:%M:%SZ}"
                for minute in generator.integers(0, 365 * 24 * 60, case.patients)
            ],
            "age": age.astype(int),
            "sex": np.where(generator.random(case.patients) < case.male_share, "male", "female"),
            "deteriorated": draw_outcomes(severity, generator).astype(int),
        }
    )
    observations = _observe(case, patients, severity, generator)
    return HospitalTables(
        site=case.site, patients=patients, observations=_break_rows(observations, generator).reset_index(drop=True)
    )


def simulate_severity(case: CaseMix, age: Array, generator: np.random.Generator) -> Array:
    """Return the latent severity[patients, hours] at hours 0 to `HOURS`."""
    set_point = case.severity + AGE_EFFECT * (age - 65) / 15 + generator.normal(0, SET_POINT_SD, len(age))
    decay = np.exp(-1 / RELAXATION_HOURS)
    severity = np.empty((len(age), HOURS + 1))
    severity[:, 0] = set_point + generator.normal(0, SPREAD, len(age))
    for hour in range(HOURS):
        shock = generator.normal(0, SPREAD * np.sqrt(1 - decay**2), len(age))
        severity[:, hour + 1] = set_point + (severity[:, hour] - set_point) * decay + shock
    return severity


def draw_outcomes(severity: Array, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return who deteriorates[patients], by the severity at `DECISION_HOUR`."""
    risk = 1 / (1 + np.exp(-(INTERCEPT + SLOPE * severity[:, DECISION_HOUR])))
    return np.asarray(generator.random(len(risk)) < risk)


def _draw_identifiers(count: int, name: int, generator: np.random.Generator) -> list[str]:
    """Record numbers, unique over hospitals: eight hexadecimal digits of the hospital, seven drawn digits."""
    numbers = generator.choice(10**7, size=count, replace=False)
    return [f"mrn-{name:08x}-{number:07d}" for number in numbers]


def _observe(case: CaseMix, patients: pd.DataFrame, severity: Array, generator: np.random.Generator) -> pd.DataFrame:
    """Sample every signal at its own pace until discharge, some of it missing at random."""
    count = len(patients)
    stay = generator.integers(HOURS // 2, HOURS + 1, count)
    # Beta with mean `circulatory_share` and a standard deviation near 0.2: most patients have a leading organ.
    circulatory = generator.beta(4 * case.circulatory_share, 4 * (1 - case.circulatory_share), count)[:, None]
    moved = {"circulation": 2 * circulatory * severity, "breathing": 2 * (1 - circulatory) * severity, "both": severity}
    admitted = pd.to_datetime(patients["admitted"])
    tables: list[pd.DataFrame] = []
    for response in RESPONSES:
        signal = SIGNALS[response.signal]
        baseline = generator.normal(0, response.baseline_sd, (count, 1))
        noise = generator.normal(0, response.noise_sd, severity.shape)
        value = response.typical + response.slope * moved[response.moved_by] + baseline + noise
        value = np.clip(np.exp(value) if signal.scale == "log" else value, signal.low, signal.high)
        due = np.arange(HOURS + 1) % response.every_hours == 0
        recorded = due & (np.arange(HOURS + 1) <= stay[:, None])
        recorded &= generator.random(severity.shape) < case.observed_share
        rows, hours = np.nonzero(recorded)
        minute = np.minimum(hours * 60 + generator.integers(0, 50, len(rows)), HOURS * 60)
        tables.append(
            pd.DataFrame(
                {
                    "patient": patients["patient"].to_numpy()[rows],
                    "time": admitted.iloc[rows].reset_index(drop=True) + pd.to_timedelta(minute, unit="min"),
                    "signal": response.signal,
                    "value": value[rows, hours].round(response.digits),
                    "unit": signal.unit,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _break_rows(observations: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Spoil a few rows as real feeds do: an impossible heart rate, a unit that is not UCUM, one instant twice."""
    number = max(1, round(BROKEN_SHARE * len(observations)))
    broken = observations.copy()
    hearts = np.flatnonzero(broken["signal"] == "heart_rate")
    broken.loc[generator.choice(hearts, number, replace=False), "value"] = 900.0
    warmth = np.flatnonzero(broken["signal"] == "temperature")
    broken.loc[generator.choice(warmth, min(number, len(warmth)), replace=False), "unit"] = "degrees"
    twice = broken.iloc[generator.choice(len(broken), number, replace=False)].copy()
    twice["value"] = twice["value"] + 1
    return pd.concat([broken, twice], ignore_index=True)
