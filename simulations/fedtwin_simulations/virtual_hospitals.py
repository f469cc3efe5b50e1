"""The product's own hospitals: virtual patients of the plant, written in a hospital's own file format.

Design note: what a hospital's files say is what its devices and people charted of its patients' true courses: sensors
with faults, values that nobody wrote down (more of them in quiet patients), its own units and codes, and a few broken
rows (impossible values, wrong units, two rows for one instant) for the reader to quarantine. The outcome
`deteriorated` is drawn from the true risk at the hour of decision, which no file holds and `HospitalTables.risk` keeps.
Nobody in here exists.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedtwin_client.units import CONVERSIONS
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signal import SIGNALS
from fedtwin_simulations.datasets.hospital_files import OBSERVATIONS_FILE, PATIENTS_FILE
from fedtwin_simulations.plant.lifestyle import plan_days
from fedtwin_simulations.plant.outcome import compute_risk, draw_outcomes
from fedtwin_simulations.plant.patient import Patients, Population, draw_patients
from fedtwin_simulations.plant.sensor import CHANNELS, Device, chart
from fedtwin_simulations.plant.simulate import Course, begin, read_signals, run

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

HOURS = 48  # the longest stay that is simulated; the shortest is half of it
DECISION_HOUR = 24  # the outcome depends on the true state at this hour
RECORD_MINUTES = 15
BATCH = 1000  # patients simulated together, which bounds the memory
MOST_BATCHES = 20  # for each batch of patients that is wanted, before a share of events counts as out of reach
BROKEN_SHARE = 0.0005  # of all observations, for each kind of broken row
VIGILANT_STRAIN = 0.5  # the oxygen strain at which a patient gets all the attention there is

_ADMITTED = pd.Timestamp("2024-01-01T00:00:00Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Charting:
    """How a hospital writes down.

    observed: share of due values that are charted. vigilance: added to it for the most ill. units: signal -> another
    UCUM unit that it uses. heaping: heart rates are rounded to multiples of it. unknown: share of facts left empty.
    coded: probability that a known diabetes is coded.
    """

    observed: float = 0.8
    vigilance: float = 0.1
    units: Mapping[str, str] = field(default_factory=dict)
    heaping: int = 1
    unknown: float = 0.02
    coded: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseMix:
    """One hospital. event_share: of patients with the outcome (a shift of labels alone), or as the risk has it."""

    site: str
    patients: int
    population: Population
    device: Device = field(default_factory=Device)
    charting: Charting = field(default_factory=Charting)
    event_share: float | None = None


CASE_MIXES = (
    CaseMix(
        site="city",
        patients=700,
        population=Population(
            age_mean=66,
            male_share=0.54,
            scenarios={
                "stable": 0.55,
                "sepsis": 0.12,
                "haemorrhage": 0.06,
                "respiratory_failure": 0.09,
                "postoperative": 0.13,
                "hypoglycaemia": 0.05,
            },
        ),
    ),
    CaseMix(
        site="coast",
        patients=450,
        population=Population(
            age_mean=73,
            male_share=0.48,
            frailty=1.1,
            smoker_share=0.3,
            scenarios={
                "stable": 0.55,
                "sepsis": 0.1,
                "respiratory_failure": 0.2,
                "postoperative": 0.1,
                "hypoglycaemia": 0.05,
            },
        ),
        device=Device(noise=1.2, gap_share=0.08, skew_minutes=3),
        charting=Charting(observed=0.6, units={"temperature": "[degF]"}, heaping=2),
    ),
    CaseMix(
        site="university",
        patients=1000,
        population=Population(
            age_mean=58,
            age_sd=16,
            male_share=0.57,
            severity=0.6,
            scenarios={
                "stable": 0.4,
                "sepsis": 0.2,
                "haemorrhage": 0.12,
                "respiratory_failure": 0.1,
                "postoperative": 0.18,
            },
        ),
        device=Device(noise=0.8, artefact_share=0.005, gap_share=0.02),
        charting=Charting(observed=0.9, units={"glucose": "mmol/L", "creatinine": "umol/L"}),
    ),
    CaseMix(
        site="valley",
        patients=400,
        population=Population(
            age_mean=69,
            male_share=0.51,
            frailty=0.85,
            type_two_share=0.25,
            scenarios={
                "stable": 0.7,
                "sepsis": 0.08,
                "haemorrhage": 0.04,
                "respiratory_failure": 0.06,
                "postoperative": 0.12,
            },
        ),
        device=Device(noise=1.3, artefact_share=0.02, gap_share=0.1, skew_minutes=-4),
        charting=Charting(observed=0.55, heaping=4, unknown=0.05, coded=0.7),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalTables:
    """One hospital's two files, before they are written, and the true risk[patients], which is in neither."""

    site: str
    patients: pd.DataFrame
    observations: pd.DataFrame
    risk: Array


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
        write_hospital(target / case.site, case, seed=seed)
    return tuple(case.site for case in cases)


def write_hospital(folder: Path, case: CaseMix, *, seed: int) -> HospitalTables:
    """Write one hospital's files and return what is in them."""
    tables = simulate_hospital(case, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    tables.patients.to_csv(folder / PATIENTS_FILE, index=False)
    tables.observations.to_parquet(folder / OBSERVATIONS_FILE, index=False)
    return tables


def simulate_hospital(case: CaseMix, *, seed: int) -> HospitalTables:
    """Return the patients and observations of one virtual hospital.

    Raises `ConfigurationError` when its share of events is out of its patients' reach.
    """
    name = zlib.crc32(case.site.encode())
    generator = np.random.default_rng([seed, name])
    identifiers = np.array(_draw_identifiers(case.patients, name, generator))
    events = None if case.event_share is None else round(case.event_share * case.patients)
    wanted = (
        {True: case.patients, False: case.patients} if events is None else {True: events, False: case.patients - events}
    )
    found, batches = 0, 0
    people: list[pd.DataFrame] = []
    charts: list[pd.DataFrame] = []
    risks: list[Array] = []
    while found < case.patients:
        batches += 1
        if batches > MOST_BATCHES * math.ceil(case.patients / BATCH):
            raise ConfigurationError(
                field=f"{case.site}.event_share",
                expected="a share that its patients can reach",
                found=f"{case.event_share}",
            )
        size = min(BATCH, case.patients - found if events is None else case.patients)
        patients, course = _live(case, size, [seed, name, batches], generator)
        risk = compute_risk(course["strain"][:, DECISION_HOUR * 60 // RECORD_MINUTES], patients.age)
        outcome = draw_outcomes(risk, generator)
        chosen = _choose(outcome, wanted)
        for label in (True, False):
            wanted[label] -= int((outcome[chosen] == label).sum())
        own = identifiers[found : found + len(chosen)]
        table = _describe(case, own, patients, outcome, chosen, generator)
        charts.append(_observe(case, table, patients, course, chosen, generator))
        people.append(table)
        risks.append(risk[chosen])
        found += len(chosen)
    observations = _break_rows(pd.concat(charts, ignore_index=True), generator).reset_index(drop=True)
    return HospitalTables(
        site=case.site,
        patients=pd.concat(people, ignore_index=True),
        observations=observations,
        risk=np.concatenate(risks),
    )


def _live(case: CaseMix, size: int, seed: list[int], generator: np.random.Generator) -> tuple[Patients, Course]:
    """Draw some patients and let them live for `HOURS`."""
    patients = draw_patients(case.population, size, generator)
    acts = plan_days(patients, minutes=HOURS * 60, generator=generator)
    return patients, run(patients, begin(patients), minutes=HOURS * 60, seed=seed, acts=acts, every=RECORD_MINUTES)


def _choose(outcome: npt.NDArray[np.bool_], wanted: Mapping[bool, int]) -> Rows:
    """Return the first patients of each label, no more than are wanted: who has a label is who he would be anywhere."""
    number = np.where(outcome, np.cumsum(outcome), np.cumsum(~outcome))
    return np.flatnonzero(number <= np.where(outcome, wanted[True], wanted[False]))


def _draw_identifiers(count: int, name: int, generator: np.random.Generator) -> list[str]:
    """Record numbers, unique over hospitals: eight hexadecimal digits of the hospital, seven drawn digits."""
    numbers = generator.choice(10**7, size=count, replace=False)
    return [f"mrn-{name:08x}-{number:07d}" for number in numbers]


def _describe(
    case: CaseMix,
    identifiers: npt.NDArray[np.str_],
    patients: Patients,
    outcome: npt.NDArray[np.bool_],
    chosen: Rows,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Return the rows of the patients file. The minute of the day of admission is the plant's own."""
    days = generator.integers(0, 365, len(chosen)) * 1440
    minutes = days + patients.body.admitted[chosen].astype(int) % 1440
    coded = (patients.diabetes[chosen] > 0) & (generator.random(len(chosen)) < case.charting.coded)
    table = pd.DataFrame(
        {
            "patient": identifiers,
            "admitted": [f"{_ADMITTED + pd.Timedelta(minutes=int(one)):%Y-%m-%dT%H:%M:%SZ}" for one in minutes],
            "age": patients.age[chosen].astype(int),
            "sex": np.where(patients.male[chosen] > 0, "male", "female"),
            "weight": patients.weight[chosen].round(1),
            "height": patients.height[chosen].round(0),
            "diabetes": ["yes" if one else None for one in coded],
            "deteriorated": outcome[chosen].astype(int),
        }
    )
    for name in ("weight", "height"):
        table.loc[generator.random(len(table)) < case.charting.unknown, name] = np.nan
    return table


def _observe(
    case: CaseMix,
    table: pd.DataFrame,
    patients: Patients,
    course: Course,
    chosen: Rows,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Return the rows of the observations file: every signal at its own pace until discharge."""
    truth = read_signals(course, patients)
    stay = (generator.integers(HOURS // 2, HOURS + 1, len(chosen)) * 60).astype(np.float64)
    attention = np.minimum(course["strain"][chosen] / VIGILANT_STRAIN, 1.0)
    observed = np.clip(case.charting.observed + case.charting.vigilance * attention, 0, 1)
    admitted, identifiers = pd.to_datetime(table["admitted"]), table["patient"].to_numpy()
    tables: list[pd.DataFrame] = []
    for signal in CHANNELS:
        rows = chart(
            signal,
            truth[signal][chosen],
            course.minutes,
            device=case.device,
            observed=observed,
            stay=stay,
            generator=generator,
        )
        value, unit = rows.value, case.charting.units.get(signal, SIGNALS[signal].unit)
        if signal == "heart_rate":
            value = np.round(value / case.charting.heaping) * case.charting.heaping
        if unit != SIGNALS[signal].unit:
            conversion = CONVERSIONS[signal, unit]
            value = ((value - conversion.offset) / conversion.factor).round(1)
        tables.append(
            pd.DataFrame(
                {
                    "patient": identifiers[rows.patient],
                    "time": admitted.iloc[rows.patient].reset_index(drop=True)
                    + pd.to_timedelta(rows.minute, unit="min"),
                    "signal": signal,
                    "value": value,
                    "unit": unit,
                }
            ).drop_duplicates(["patient", "time"])
        )
    return pd.concat(tables, ignore_index=True)


def _break_rows(observations: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Spoil a few rows as real feeds do: an impossible heart rate, a unit that is not UCUM, one instant twice."""
    number = max(1, round(BROKEN_SHARE * len(observations)))
    broken = observations.copy()
    hearts = np.flatnonzero(broken["signal"] == "heart_rate")
    broken.loc[generator.choice(hearts, min(number, len(hearts)), replace=False), "value"] = 900.0
    warmth = np.flatnonzero(broken["signal"] == "temperature")
    broken.loc[generator.choice(warmth, min(number, len(warmth)), replace=False), "unit"] = "degrees"
    twice = broken.iloc[generator.choice(len(broken), number, replace=False)].copy()
    twice["value"] = twice["value"] + 1
    return pd.concat([broken, twice], ignore_index=True)
