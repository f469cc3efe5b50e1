"""PhysioNet / Computing in Cardiology Challenge 2012, set A: 4,000 intensive-care stays of 48 h, hospital death.

Public address: https://physionet.org/content/challenge-2012/1.0.0/ (Silva 2012, Comput Cardiol 39:245). Read here from
`set-a.parquet` (record_id, minute, parameter, value: the published text files in one table, no value changed) and
`Outcomes-a.txt`. It comes from one hospital; the four kinds of intensive-care unit stand for four hospitals.

Oddities:
  - −1 means "not recorded" for height, weight and sex, and is dropped here
  - inspired oxygen is a fraction, magnesium is in mg/dL although the description says mmol/L (values near 2)
  - impossible values (pH 735, temperature −17.8, heart rate 0) stay in: quarantine is the hospital reader's work
  - there are no dates; every stay is given the same admission instant
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedtwin_simulations.datasets.hospital_files import DatasetError, find, write_sites

SITES = {1: "coronary", 2: "cardiac-surgery", 3: "medical", 4: "surgical"}  # by the set's ICUType

_ADMITTED = pd.Timestamp("2012-01-01T00:00:00Z")
_NOT_RECORDED = -1
_FRACTION_TO_PERCENT = 100

SERIES: Mapping[str, str] = {
    "ALP": "alkaline_phosphatase",
    "ALT": "alanine_transferase",
    "AST": "aspartate_transferase",
    "Albumin": "albumin",
    "BUN": "urea_nitrogen",
    "Bilirubin": "bilirubin",
    "Cholesterol": "cholesterol",
    "Creatinine": "creatinine",
    "DiasABP": "arterial_diastolic",
    "FiO2": "inspired_oxygen",
    "GCS": "glasgow",
    "Glucose": "glucose",
    "HCO3": "bicarbonate",
    "HCT": "hematocrit",
    "HR": "heart_rate",
    "K": "potassium",
    "Lactate": "lactate",
    "MAP": "arterial_mean",
    "MechVent": "ventilated",
    "Mg": "magnesium",
    "NIDiasABP": "cuff_diastolic",
    "NIMAP": "cuff_mean",
    "NISysABP": "cuff_systolic",
    "Na": "sodium",
    "PaCO2": "arterial_carbon_dioxide",
    "PaO2": "arterial_oxygen",
    "Platelets": "platelets",
    "RespRate": "respiratory_rate",
    "SaO2": "arterial_saturation",
    "SysABP": "arterial_systolic",
    "Temp": "temperature",
    "TroponinI": "troponin_i",
    "TroponinT": "troponin_t",
    "Urine": "urine_output",
    "WBC": "white_cells",
    "Weight": "weight",
    "pH": "arterial_ph",
}


def read_patients(source: Path) -> pd.DataFrame:
    """Return one row per stay; raises DatasetError when a file is missing or the two name different stays."""
    return _patients(source, _read_series(source))


def _read_series(source: Path) -> pd.DataFrame:
    path = find(source, "set-a.parquet")
    table = pd.read_parquet(path)
    expected = {"record_id", "minute", "parameter", "value"}
    if not expected <= set(table.columns):
        raise DatasetError(file=path, expected=", ".join(sorted(expected)), found=", ".join(table.columns))
    return table


def _patients(source: Path, series: pd.DataFrame) -> pd.DataFrame:
    wanted = series[series["parameter"].isin(["Age", "Gender", "Height", "ICUType"]) & (series["minute"] == 0)]
    facts = wanted.pivot_table(index="record_id", columns="parameter", values="value", aggfunc="first", observed=True)
    facts = facts.where(facts != _NOT_RECORDED)
    path = find(source, "Outcomes-a.txt")
    died = pd.read_csv(path).set_index("RecordID")["In-hospital_death"]
    if set(died.index) != set(facts.index):
        raise DatasetError(file=path, field="RecordID", expected="the stays of set-a.parquet", found="others")
    return pd.DataFrame(
        {
            "site": facts["ICUType"].map(SITES),
            "patient": facts.index.astype(str),
            "admitted": _ADMITTED,
            "age": facts["Age"],
            "height": facts["Height"].round(1),
            "sex": facts["Gender"].map({0: "female", 1: "male"}),
            "died_in_hospital": died.loc[facts.index].astype(int),
        }
    ).reset_index(drop=True)


def _observations(series: pd.DataFrame) -> pd.DataFrame:
    kept = series[series["parameter"].isin(list(SERIES))]
    kept = kept[~((kept["parameter"] == "Weight") & (kept["value"] == _NOT_RECORDED))]
    percent = kept["parameter"] == "FiO2"
    value = kept["value"].astype("float64")
    return pd.DataFrame(
        {
            "patient": kept["record_id"].astype(str),
            "minute": kept["minute"],
            "signal": kept["parameter"].map(dict(SERIES)),
            "value": value.where(~percent, value * _FRACTION_TO_PERCENT).round(4),
        }
    )


def folds(source: Path, *, count: int = 5, seed: int = 0) -> dict[str, int]:
    """Return patient -> fold; deaths and kinds of unit are spread evenly over the folds."""
    from sklearn.model_selection import StratifiedKFold

    patients = read_patients(source)
    stratum = patients["site"] + patients["died_in_hospital"].astype(str)
    dealt = StratifiedKFold(count, shuffle=True, random_state=seed).split(patients, stratum)
    names = patients["patient"].tolist()
    return {names[row]: fold for fold, (_, test) in enumerate(dealt) for row in test}


def write_hospitals(source: Path, target: Path, *, parts: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Rewrite set A into four hospitals' directories under `target` and return their names."""
    series = _read_series(source)
    sites = tuple(SITES.values())
    return write_sites(target, _patients(source, series), _observations(series), sites=sites, parts=parts)
