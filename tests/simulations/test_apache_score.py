"""The APACHE III score: rules of the publication that are easy to get wrong, and eICU's own score as the judge."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from fedtwin_simulations.datasets import eicu
from fedtwin_simulations.datasets.apache_score import score_apache_three
from fedtwin_simulations.datasets.hospital_files import find

FOLDER = Path(os.environ.get("FEDTWIN_DATA", "")) / "eicu_crd_demo_2.0.1"
needs_data = pytest.mark.skipif(
    not os.environ.get("FEDTWIN_DATA") or not FOLDER.is_dir(), reason="FEDTWIN_DATA does not name the public sets"
)

WORST = (
    *("heartrate", "meanbp", "temperature", "respiratoryrate", "hematocrit", "wbc", "bun", "sodium", "albumin"),
    *("bilirubin", "glucose", "urine", "creatinine", "ph", "pco2", "pao2", "fio2", "eyes", "verbal", "motor"),
    *("intubated", "vent", "meds", "dialysis"),
)
CHRONIC = (
    *("cirrhosis", "immunosuppression", "leukemia", "metastaticcancer", "lymphoma", "hepaticfailure", "aids"),
    "electivesurgery",
)


def _score(*, age: float = 30, **known: float) -> int:
    worst = pd.DataFrame([{name: known.get(name, float("nan")) for name in WORST}])
    predictors = pd.DataFrame([{name: known.get(name, 0.0) for name in CHRONIC}])
    return int(score_apache_three(worst, predictors, pd.Series([age])).iloc[0])


def test_what_was_not_measured_counts_as_normal() -> None:
    assert _score() == 0
    assert _score(age=float("nan")) == 0


@pytest.mark.parametrize(
    ("known", "points"),
    [
        ({"heartrate": 155}, 17),
        ({"meanbp": 39}, 23),
        ({"temperature": 32.9}, 20),
        ({"respiratoryrate": 8}, 8),
        ({"respiratoryrate": 8, "vent": 1}, 0),
        ({"respiratoryrate": 5, "vent": 1}, 17),
        ({"respiratoryrate": 12, "intubated": 1}, 7),
        ({"creatinine": 2.0, "urine": 500}, 7 + 8),
        ({"creatinine": 2.0, "urine": 409}, 10 + 8),
        ({"creatinine": 2.0, "urine": 409, "dialysis": 1}, 7 + 8),
        ({"pao2": 49}, 15),
        ({"pao2": 100, "fio2": 100, "pco2": 40, "intubated": 1}, 14),
        ({"pao2": 100, "fio2": 100, "pco2": 40}, 0),
        ({"ph": 7.1, "pco2": 49}, 12),
        ({"ph": 7.1, "pco2": 50}, 4),
        ({"ph": 7.7, "pco2": 40}, 12),
        ({"ph": 7.1}, 0),
        ({"eyes": 1, "verbal": 1, "motor": 1}, 48),
        ({"eyes": 2, "verbal": 1, "motor": 1}, 29),
        ({"eyes": 4, "verbal": 5, "motor": 6}, 0),
        ({"eyes": 4, "verbal": 4, "motor": 6}, 3),
        ({"eyes": 1, "verbal": 1, "motor": 1, "meds": 1}, 0),
        ({"age": 44}, 0),
        ({"age": 85}, 24),
        ({"cirrhosis": 1, "aids": 1}, 23),
        ({"aids": 1, "electivesurgery": 1}, 0),
    ],
)
def test_points_are_those_of_the_publication(known: dict[str, float], points: int) -> None:
    assert _score(**known) == points


@needs_data
def test_equals_the_score_that_eicu_states_for_every_stay_that_has_one() -> None:
    stays = eicu.read_stays(FOLDER)

    def read(name: str) -> pd.DataFrame:
        table = pd.read_csv(find(FOLDER, name)).drop_duplicates("patientunitstayid").set_index("patientunitstayid")
        return table.reindex(stays["stay"]).replace(-1, float("nan"))

    age = stays["age"].set_axis(stays["stay"])
    ours = score_apache_three(read("apacheApsVar.csv.gz"), read("apachePredVar.csv.gz"), age)
    stated = read("apachePatientResult.csv.gz")["apachescore"].dropna()
    assert len(stated) == 1450
    assert (ours[stated.index] == stated).all()
