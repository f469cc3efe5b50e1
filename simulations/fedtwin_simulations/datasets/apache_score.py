"""The APACHE III score of one day, from a patient's own worst values: a public table of points, nothing fitted here.

Source: Knaus et al. 1991, Chest 100:1619 (LOINC 9265-0). Physiology, age and chronic health add up to 0 to 299 points.
What was not measured counts as normal, as in the publication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Points = npt.NDArray[np.int64]

# Column of apacheApsVar, or age -> upper ends of the ranges (not included) and the points of every range.
_RANGES: Mapping[str, tuple[Sequence[float], Sequence[int]]] = {
    "heartrate": ((40, 50, 100, 110, 120, 140, 155), (8, 5, 0, 1, 5, 7, 13, 17)),
    "meanbp": ((40, 60, 70, 80, 100, 120, 130, 140), (23, 15, 7, 6, 0, 4, 7, 9, 10)),
    "temperature": ((33, 33.5, 34, 35, 36, 40), (20, 16, 13, 8, 2, 0, 4)),
    "respiratoryrate": ((6, 12, 14, 25, 35, 40, 50), (17, 8, 7, 0, 6, 9, 11, 18)),
    "hematocrit": ((41, 50), (3, 0, 3)),
    "wbc": ((1, 3, 20, 25), (19, 5, 0, 1, 5)),
    "bun": ((17, 20, 40, 80), (0, 2, 7, 11, 12)),
    "sodium": ((120, 135, 155), (3, 2, 0, 4)),
    "albumin": ((2, 2.5, 4.5), (11, 6, 0, 4)),
    "bilirubin": ((2, 3, 5, 8), (0, 5, 6, 8, 16)),
    "glucose": ((40, 60, 200, 350), (8, 9, 0, 3, 5)),
    "urine": ((400, 600, 900, 1500, 2000, 4000), (15, 8, 7, 5, 4, 0, 1)),
    "age": ((45, 60, 65, 70, 75, 85), (0, 5, 11, 13, 16, 17, 24)),
}
_OXYGEN = ((50, 70, 80), (15, 5, 2, 0))
_OXYGEN_GRADIENT = ((100, 250, 350, 500), (0, 7, 9, 11, 14))
_DRY_AIR = 713.0  # mm[Hg]: atmosphere less water vapour at 37 °C
_CREATININE = ((0.5, 1.5, 1.95), (3, 0, 4, 7))
_KIDNEY_FAILURE = 10

# Upper end of pH -> upper ends of pCO2 and their points.
_ACID_BASE: Sequence[tuple[float, Sequence[float], Sequence[int]]] = (
    (7.20, (50,), (12, 4)),
    (7.30, (30, 40, 50), (9, 6, 3, 2)),
    (7.35, (30, 45), (9, 0, 1)),
    (7.45, (30, 45), (5, 0, 1)),
    (7.50, (30, 35, 45), (5, 0, 2, 12)),
    (7.60, (40,), (3, 12)),
    (np.inf, (25, 40), (0, 3, 12)),
)

# (highest verbal, highest motor) -> points when the eyes stay closed, when they open; the first that fits counts.
_COMA: Sequence[tuple[int, int, int, int]] = (
    (1, 2, 48, 29),
    (1, 4, 33, 24),
    (1, 6, 16, 15),
    (3, 2, 29, 29),
    (3, 4, 24, 24),
    (3, 5, 0, 13),
    (3, 6, 0, 10),
    (4, 4, 0, 13),
    (4, 5, 0, 8),
    (4, 6, 0, 3),
    (5, 5, 0, 3),
)

# Column of apachePredVar -> points; the worst one counts, none after elective surgery.
_CHRONIC: Mapping[str, int] = {
    "cirrhosis": 4,
    "immunosuppression": 10,
    "leukemia": 10,
    "metastaticcancer": 11,
    "lymphoma": 13,
    "hepaticfailure": 16,
    "aids": 23,
}


def score_apache_three(worst: pd.DataFrame, predictors: pd.DataFrame, age: pd.Series) -> pd.Series:
    """Return the score, one row per stay: eICU's tables apacheApsVar and apachePredVar with NaN where unknown, years.

    - equals the score that eICU itself states, for every stay that has one
    """
    values = worst.assign(age=age)
    points = {name: _rank(values[name], *table) for name, table in _RANGES.items()}
    # A machine breathes at 6 to 12 a minute: not a sign of illness.
    by_machine = (worst["vent"] == 1) & worst["respiratoryrate"].between(6, 12)
    points["respiratoryrate"][by_machine.to_numpy()] = 0
    physiology = sum(points.values(), _creatinine(worst) + _oxygen(worst) + _acid_base(worst) + _coma(worst))
    return pd.Series(physiology + _chronic(predictors), index=worst.index)


def _rank(value: pd.Series, ends: Sequence[float], points: Sequence[int]) -> Points:
    found = np.asarray(points)[np.digitize(value.fillna(0).to_numpy(dtype=float), ends)]
    return np.where(value.notna(), found, 0)


def _creatinine(worst: pd.DataFrame) -> Points:
    kidneys_fail = (worst["creatinine"] >= 1.5) & (worst["urine"] < 410) & (worst["dialysis"] != 1)
    return np.where(kidneys_fail, _KIDNEY_FAILURE, _rank(worst["creatinine"], *_CREATININE))


def _oxygen(worst: pd.DataFrame) -> Points:
    """The alveolar-arterial gradient of patients with a tube on half oxygen or more, arterial oxygen of the others."""
    gradient = worst["fio2"] / 100 * _DRY_AIR - worst["pco2"] - worst["pao2"]
    use_gradient = (worst["intubated"] == 1) & (worst["fio2"] >= 50) & gradient.notna()
    return np.where(use_gradient, _rank(gradient, *_OXYGEN_GRADIENT), _rank(worst["pao2"], *_OXYGEN))


def _acid_base(worst: pd.DataFrame) -> Points:
    points = np.zeros(len(worst), np.int64)
    for end, ends, of_range in reversed(_ACID_BASE):
        points = np.where(worst["ph"] < end, _rank(worst["pco2"], ends, of_range), points)
    return points


def _coma(worst: pd.DataFrame) -> Points:
    closed, verbal, motor = worst["eyes"] == 1, worst["verbal"], worst["motor"]
    points = np.zeros(len(worst), np.int64)
    for most_verbal, most_motor, if_closed, if_open in reversed(_COMA):
        fits = (verbal <= most_verbal) & (motor <= most_motor)
        points = np.where(fits, np.where(closed, if_closed, if_open), points)
    return np.where(worst["eyes"].isna() | (worst["meds"] == 1), 0, points)


def _chronic(predictors: pd.DataFrame) -> Points:
    points = np.zeros(len(predictors), np.int64)
    for column, points_if in _CHRONIC.items():
        points = np.where(predictors[column] == 1, np.maximum(points, points_if), points)
    return np.where(predictors["electivesurgery"] == 1, 0, points)
