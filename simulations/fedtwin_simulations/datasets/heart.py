"""UCI Heart Disease: four hospitals, facts only, coronary artery disease yes or no.

Public address: https://archive.ics.uci.edu/dataset/45/heart+disease (CC BY 4.0; Janosi, Steinbrunn, Pfisterer, Detrano
1988). Files `processed.{cleveland,hungarian,switzerland,va}.data`: 14 columns, no header.

Oddities, from `heart-disease.names` and from the files:
  - `?` is a missing value, and so is a cholesterol of 0 (every row of Switzerland)
  - ST depression is in millimetres on paper, 1 mm = 0.1 mV
  - the outcome is a grade 0–4; any grade above 0 is disease (at least one artery narrowed by half)
  - there are no dates; every patient is given the same admission instant
Selection as in FLamby's Fed-Heart-Disease, so that figures compare: columns 10–12 (slope, vessels, thal) are dropped,
then every row that still has a `?`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedtwin_simulations.datasets.hospital_files import DatasetError, find, no_observations, write_sites

SITES = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "long-beach": "va"}
FLAMBY_SEED = 43  # of FLamby's own split, datasets/fed_heart_disease/dataset.py
TRAIN_SHARE, TEST_SHARE = 0.66, 0.34  # likewise

_COLUMNS = 14
_DROPPED = (10, 11, 12)
_ADMITTED = pd.Timestamp("1988-07-01T00:00:00Z")
_LEVELS: Mapping[str, tuple[int, Mapping[float, str]]] = {
    "sex": (1, {0: "female", 1: "male"}),
    "chest_pain": (2, {1: "typical_angina", 2: "atypical_angina", 3: "not_angina", 4: "none"}),
    "fasting_glucose": (5, {0: "up_to_120", 1: "above_120"}),
    "resting_ecg": (6, {0: "normal", 1: "st_t_abnormality", 2: "ventricular_hypertrophy"}),
    "exercise_angina": (8, {0: "no", 1: "yes"}),
}


def read_patients(source: Path) -> pd.DataFrame:
    """Return the patients of all four hospitals; raises DatasetError when a file is missing or of another layout."""
    return pd.concat([_read_site(source, site) for site in SITES], ignore_index=True)


def _read_site(source: Path, site: str) -> pd.DataFrame:
    path = find(source, f"processed.{SITES[site]}.data")
    raw = pd.read_csv(path, header=None, na_values="?")
    if raw.shape[1] != _COLUMNS:
        raise DatasetError(file=path, expected=f"{_COLUMNS} columns", found=f"{raw.shape[1]}")
    raw = raw.dropna(subset=[column for column in range(_COLUMNS) if column not in _DROPPED])
    return pd.DataFrame(
        {
            "site": site,
            "patient": [f"{site}-{row + 1:03d}" for row in raw.index],
            "admitted": _ADMITTED,
            "age": raw[0],
            "systolic_pressure": raw[3],
            "cholesterol": raw[4].where(raw[4] != 0),
            "peak_heart_rate": raw[7],
            "st_depression": raw[9] / 10,
            **{key: raw[column].map(levels) for key, (column, levels) in _LEVELS.items()},
            "heart_disease": (raw[13] > 0).astype(int),
        }
    )


def split(source: Path, *, seed: int = FLAMBY_SEED) -> dict[str, str]:
    """Return patient -> "train" | "test" per hospital as FLamby splits; seed 43 is FLamby's own split."""
    from sklearn.model_selection import train_test_split

    patients = read_patients(source)
    parts: dict[str, str] = {}
    for _, own in patients.groupby("site", sort=False):
        # FLamby stratifies only where each class has more than two patients: Switzerland has one without disease.
        outcome = own["heart_disease"]
        stratified = outcome if outcome.nunique() > 1 and outcome.value_counts().min() > 2 else None
        train, test = train_test_split(
            own["patient"].tolist(),
            test_size=TEST_SHARE,
            train_size=TRAIN_SHARE,
            random_state=seed,
            shuffle=True,
            stratify=stratified,
        )
        parts |= dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    return parts


def write_hospitals(source: Path, target: Path, *, parts: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Rewrite the set into four hospitals' directories under `target` and return their names."""
    return write_sites(target, read_patients(source), no_observations(), sites=tuple(SITES), parts=parts)
