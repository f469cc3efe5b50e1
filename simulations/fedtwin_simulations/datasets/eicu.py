"""eICU Collaborative Research Database Demo 2.0.1: first day in intensive care, 186 hospitals, hospital death.

Public address: https://physionet.org/content/eicu-crd-demo/2.0.1/ (ODbL 1.0; Johnson 2021, doi:10.13026/4mxk-na84).
Sites are the regions of the United States. Cohort: of each patient the first stay that has an APACHE row and a known
hospital outcome. Everything is from before the end of the first 24 hours in the unit.

Oddities:
  - −1 is a missing value in the APACHE tables; the age of the oldest is written "> 89" and read as 90
  - hospitals without a stated region join the smallest one: that site is "northeast-or-unstated"
  - APACHE rows are one worst value of the day, so they are facts here; cuff pressure and breathing are series
  - inspired oxygen is charted as a fraction or as a percentage: at most 1 is a fraction
  - a treatment or diagnosis is known only where somebody charted it, so such a category has the one level "yes"
  - only the year and the time of day of an admission are known
Tables lab, vitalPeriodic, nurseCharting and intakeOutput are not read. No file of a site names a hospital: whoever
groups by hospital uses `folds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedtwin_simulations.datasets.eicu_facts import admission_facts, charted_facts
from fedtwin_simulations.datasets.hospital_files import find, write_sites

SITES = {"Midwest": "midwest", "South": "south", "West": "west", "Northeast": "northeast-or-unstated"}
DAY_MINUTES = 24 * 60

_UNSTATED = "northeast-or-unstated"
_OLDEST = {"> 89": "90"}
_CUFF = {
    "noninvasivesystolic": "cuff_systolic",
    "noninvasivediastolic": "cuff_diastolic",
    "noninvasivemean": "cuff_mean",
}
_CHARTED = {
    "FiO2": "inspired_oxygen",
    "RR (patient)": "respiratory_rate",
    "LPM O2": "oxygen_flow",
    "PEEP": "end_expiratory",
    "SaO2": "pulse_oximetry",
    "Vent Rate": "breaths_set",
    "Tidal Volume (set)": "tidal_volume_set",
    "Mean Airway Pressure": "airway_mean",
    "Peak Insp. Pressure": "airway_peak",
}
# The first stay comes first: year, then the hospital's own numbering of its stays and of the units within a stay.
_ORDER = ["hospitaldischargeyear", "patienthealthsystemstayid", "unitvisitnumber", "patientunitstayid"]


def read_stays(source: Path) -> pd.DataFrame:
    """Return the cohort: one row per patient with `site`, `patient`, `admitted`, `stay`, `hospital` and the outcome."""
    stays = pd.read_csv(find(source, "patient.csv.gz"))
    eligible = pd.read_csv(find(source, "apacheApsVar.csv.gz"), usecols=["patientunitstayid"])["patientunitstayid"]
    region = pd.read_csv(find(source, "hospital.csv.gz")).set_index("hospitalid")["region"].map(SITES)
    known = stays[stays["patientunitstayid"].isin(eligible) & stays["hospitaldischargestatus"].notna()]
    first = known.sort_values(_ORDER).drop_duplicates("uniquepid").reset_index(drop=True)
    instant = first["hospitaldischargeyear"].astype(str) + "-01-01T" + first["unitadmittime24"] + "Z"
    return first.assign(
        site=first["hospitalid"].map(region).fillna(_UNSTATED),
        patient=first["uniquepid"],
        admitted=pd.to_datetime(instant, format="%Y-%m-%dT%H:%M:%SZ", utc=True),
        stay=first["patientunitstayid"],
        hospital=first["hospitalid"],
        age=pd.to_numeric(first["age"].replace(_OLDEST)),
        died_in_hospital=(first["hospitaldischargestatus"] == "Expired").astype(int),
    )


def folds(source: Path, *, count: int = 5, seed: int = 0) -> dict[str, int]:
    """Return patient -> fold; no hospital is in two folds, deaths are spread evenly."""
    from sklearn.model_selection import StratifiedGroupKFold

    stays = read_stays(source)
    dealt = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(
        stays, stays["died_in_hospital"], stays["hospital"]
    )
    names = stays["patient"].tolist()
    return {names[row]: fold for fold, (_, test) in enumerate(dealt) for row in test}


def apache_predictions(source: Path) -> dict[str, float]:
    """Return patient -> hospital mortality predicted by APACHE IVa, for the cohort's stays that have one."""
    table = pd.read_csv(find(source, "apachePatientResult.csv.gz"))
    table = table[(table["apacheversion"] == "IVa") & (table["predictedhospitalmortality"] >= 0)]
    patient = read_stays(source).set_index("stay")["patient"]
    table = table[table["patientunitstayid"].isin(patient.index)]
    return dict(
        zip(table["patientunitstayid"].map(patient), table["predictedhospitalmortality"].astype(float), strict=True)
    )


def _long(table: pd.DataFrame, patient: pd.Series, *, stay: str, minute: str) -> pd.DataFrame:
    """Keep the cohort's rows of the first day, as `patient`, `minute`, `signal`, `value`."""
    kept = table[table[stay].isin(patient.index) & table[minute].between(0, DAY_MINUTES - 1)].dropna(subset=["value"])
    return pd.DataFrame(
        {
            "patient": kept[stay].map(patient),
            "minute": kept[minute],
            "signal": kept["signal"],
            "value": kept["value"].astype("float64"),
        }
    )


def _observations(source: Path, patient: pd.Series) -> pd.DataFrame:
    cuff = pd.read_csv(find(source, "vitalAperiodic.csv.gz")).rename(columns=_CUFF)
    cuff = cuff.melt(["patientunitstayid", "observationoffset"], list(_CUFF.values()), "signal", "value")
    charted = pd.read_csv(find(source, "respiratoryCharting.csv.gz"))
    charted = charted[charted["respchartvaluelabel"].isin(list(_CHARTED))].assign(
        signal=lambda rows: rows["respchartvaluelabel"].map(_CHARTED),
        value=lambda rows: pd.to_numeric(rows["respchartvalue"].str.rstrip("%"), errors="coerce"),
    )
    fraction = (charted["signal"] == "inspired_oxygen") & (charted["value"] <= 1)
    charted["value"] = charted["value"].where(~fraction, charted["value"] * 100).round(4)
    parts = (
        _long(cuff, patient, stay="patientunitstayid", minute="observationoffset"),
        _long(charted, patient, stay="patientunitstayid", minute="respchartoffset"),
    )
    return pd.concat(parts, ignore_index=True)


def write_hospitals(source: Path, target: Path, *, parts: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Rewrite the set into one directory per region under `target` and return their names."""
    stays = read_stays(source)
    facts = pd.concat([admission_facts(source, stays), charted_facts(source, stays["stay"], until=DAY_MINUTES)], axis=1)
    patients = pd.concat(
        [stays[["site", "patient", "admitted"]], facts.reset_index(drop=True), stays[["died_in_hospital"]]], axis=1
    )
    observations = _observations(source, stays.set_index("stay")["patient"])
    return write_sites(target, patients, observations, sites=tuple(SITES.values()), parts=parts)
