"""The eICU demo rewritten into one hospital directory per region."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from fedtwin_shared.signal import CATEGORIES, SIGNALS
from fedtwin_simulations.datasets import eicu, eicu_facts
from fedtwin_simulations.datasets.hospital_files import DatasetError

FOLDER = Path(os.environ.get("FEDTWIN_DATA", "")) / "eicu_crd_demo_2.0.1"
needs_data = pytest.mark.skipif(
    not os.environ.get("FEDTWIN_DATA") or not FOLDER.is_dir(), reason="FEDTWIN_DATA does not name the public sets"
)


def _write(folder: Path, name: str, columns: str, rows: list[tuple[object, ...]]) -> None:
    pd.DataFrame(rows, columns=columns.split()).to_csv(folder / f"{name}.csv.gz", index=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Patient p1 has two stays, p2 an unknown outcome, p3 no APACHE row, p4 a hospital without a region."""
    folder = tmp_path / "source"
    folder.mkdir()
    _write(
        folder,
        "patient",
        "patientunitstayid patienthealthsystemstayid uniquepid gender age hospitalid apacheadmissiondx admissionheight"
        " admissionweight hospitaladmitoffset unitadmitsource unitadmittime24 unitvisitnumber hospitaldischargeyear"
        " hospitaldischargestatus",
        [
            (11, 1, "p1", "Male", "> 89", 7, "Sepsis, GI", 170, 80, -5, "Floor", "13:14:00", 2, 2014, "Alive"),
            (10, 1, "p1", "Male", "> 89", 7, "Sepsis, GI", 170, 80, -5000, "Floor", "12:00:00", 1, 2014, "Expired"),
            (20, 2, "p2", "Female", "50", 7, None, 170, 80, -5, None, "13:14:00", 1, 2014, None),
            (30, 3, "p3", "Female", "50", 7, None, 170, 80, -5, None, "13:14:00", 1, 2014, "Alive"),
            (40, 4, "p4", "Unknown", "50", 9, "CABG alone", None, 80, -5, "ICU", "00:00:00", 1, 2015, "Alive"),
        ],
    )
    _write(folder, "hospital", "hospitalid region", [(7, "South"), (9, None)])
    worst = list(eicu_facts.WORST_OF_DAY)
    flags = [name for columns in eicu_facts.FLAGS.values() for name in columns]
    aps = [*worst, "intubated", "vent", "meds", "dialysis"]
    _write(
        folder,
        "apacheApsVar",
        "patientunitstayid " + " ".join(aps),
        [(stay, *([-1] * len(worst)), 0, 1 if stay == 10 else 0, 0, 0) for stay in (10, 11, 20, 40)],
    )
    predictors = [*(name for name in flags if name not in ("intubated", "vent", "meds")), "aids"]
    _write(
        folder,
        "apachePredVar",
        "patientunitstayid admitdiagnosis " + " ".join(predictors),
        [(stay, "S-CABG" if stay == 40 else "SEPSIS", *([0] * len(predictors))) for stay in (10, 11, 20, 40)],
    )
    _write(
        folder,
        "treatment",
        "patientunitstayid treatmentoffset treatmentstring",
        [(10, 5, "cardiovascular|shock|vasopressors|norepinephrine"), (40, 1440, "renal|dialysis|hemodialysis")],
    )
    _write(
        folder,
        "diagnosis",
        "patientunitstayid diagnosisoffset diagnosisstring",
        [(10, 1439, "cardiovascular|shock / hypotension|sepsis")],
    )
    _write(folder, "infusiondrug", "patientunitstayid infusionoffset drugname", [(40, 9, "Dopamine (ml/hr)")])
    _write(
        folder,
        "carePlanGeneral",
        "patientunitstayid cplitemoffset cplitemvalue",
        [(10, 1, "Full therapy"), (10, 2, "Do not resuscitate"), (40, 2000, "Comfort measures only")],
    )
    _write(
        folder,
        "vitalAperiodic",
        "patientunitstayid observationoffset noninvasivesystolic noninvasivediastolic noninvasivemean",
        [(10, 0, 120, 60, 80), (10, 1440, 121, 61, 81), (11, 5, 1, 1, 1), (40, 30, 900, None, None)],
    )
    _write(
        folder,
        "respiratoryCharting",
        "patientunitstayid respchartoffset respchartvaluelabel respchartvalue",
        [(10, 3, "FiO2", "0.4"), (10, 4, "FiO2", "50%"), (10, 5, "O2 Device", "Ventilator"), (10, 6, "PEEP", "five")],
    )
    return folder


def _patients(target: Path, site: str) -> pd.DataFrame:
    return pd.read_csv(target / site / "patients.csv").set_index("patient")


def test_the_cohort_is_each_patients_first_eligible_stay(source: Path, tmp_path: Path) -> None:
    sites = eicu.write_hospitals(source, tmp_path)
    assert sites == ("midwest", "south", "west", "northeast-or-unstated")
    assert list(_patients(tmp_path, "south").index) == ["p1"]
    assert list(_patients(tmp_path, "northeast-or-unstated").index) == ["p4"]
    assert _patients(tmp_path, "midwest").empty
    assert _patients(tmp_path, "south").loc["p1", "died_in_hospital"] == 1  # the first stay's outcome


def test_oddities_are_respected(source: Path, tmp_path: Path) -> None:
    eicu.write_hospitals(source, tmp_path)
    first = _patients(tmp_path, "south").loc["p1"]
    assert first["age"] == 90
    assert pd.isna(first["sodium"])  # −1
    assert first["admitted"] == "2014-01-01T12:00:00Z"
    assert (first["admission_diagnosis"], first["unit_source"], first["days_before_unit"]) == (
        "sepsis",
        "ward",
        "within_week",
    )
    assert (first["invasive_ventilation"], first["vasopressor"], first["shock"]) == ("yes", "yes", "yes")
    assert first["care_limit"] == "no_resuscitation"  # the most limiting of the day
    assert first["apache_three"] == 24  # of age alone: nothing was measured
    other = _patients(tmp_path, "northeast-or-unstated").loc["p4"]
    assert other["admission_diagnosis"] == "heart_surgery"
    assert other["vasopressor"] == "yes"  # from the infusion
    assert pd.isna(other["renal_replacement"])  # charted after the first day
    assert pd.isna(other["care_limit"])
    assert pd.isna(other["sex"])


def test_series_are_of_the_first_day_in_the_signals_unit(source: Path, tmp_path: Path) -> None:
    eicu.write_hospitals(source, tmp_path)
    observations = pd.read_parquet(tmp_path / "south" / "observations.parquet")
    assert sorted(zip(observations["signal"], observations["value"], strict=True)) == [
        ("cuff_diastolic", 60),
        ("cuff_mean", 80),
        ("cuff_systolic", 120),
        ("inspired_oxygen", 40),
        ("inspired_oxygen", 50),
    ]
    odd = pd.read_parquet(tmp_path / "northeast-or-unstated" / "observations.parquet")
    assert odd["value"].tolist() == [900]  # implausible values stay in for the reader


def test_no_file_names_a_hospital(source: Path, tmp_path: Path) -> None:
    eicu.write_hospitals(source, tmp_path)
    columns = set(_patients(tmp_path, "south").columns)
    assert columns - {"admitted", "died_in_hospital"} <= set(SIGNALS) | set(CATEGORIES)


def test_every_level_that_can_be_written_is_in_the_table() -> None:
    levels = {key: set(CATEGORIES[key].levels) for key in CATEGORIES}
    diagnoses = {*eicu_facts.ADMISSION_DIAGNOSES, "other_medical", "other_surgery", "heart_surgery"}
    assert levels["admission_diagnosis"] == diagnoses
    assert levels["unit_source"] == set(eicu_facts.UNIT_SOURCES)
    assert levels["care_limit"] == set(eicu_facts.CARE_LIMITS)
    for key in (*eicu_facts.FLAGS, *eicu_facts.TREATMENTS, *eicu_facts.DIAGNOSES):
        assert levels[key] == {"yes"}


def test_a_missing_table_is_our_error(source: Path, tmp_path: Path) -> None:
    (source / "treatment.csv.gz").unlink()
    with pytest.raises(DatasetError, match="treatment"):
        eicu.write_hospitals(source, tmp_path)


@needs_data
def test_real_set_folds_by_hospital() -> None:
    stays = eicu.read_stays(FOLDER)
    assert (len(stays), int(stays["died_in_hospital"].sum())) == (1765, 167)
    assert stays["patient"].is_unique
    folds = stays["patient"].map(eicu.folds(FOLDER))
    assert stays.groupby("hospital")["patient"].count().sum() == 1765
    assert folds.groupby(stays["hospital"]).nunique().max() == 1
    deaths = stays.groupby(folds)["died_in_hospital"].sum()
    assert deaths.max() - deaths.min() <= 10


@needs_data
def test_real_set_keeps_to_the_table(tmp_path: Path) -> None:
    for site in eicu.write_hospitals(FOLDER, tmp_path):
        patients = _patients(tmp_path, site)
        for key in set(patients.columns) & set(CATEGORIES):
            assert set(patients[key].dropna()) <= set(CATEGORIES[key].levels), key


@needs_data
def test_apache_predictions_are_the_published_comparator() -> None:
    from sklearn.metrics import roc_auc_score

    predicted = eicu.apache_predictions(FOLDER)
    died = eicu.read_stays(FOLDER).set_index("patient")["died_in_hospital"].loc[list(predicted)]
    assert len(predicted) == 1422
    assert roc_auc_score(died, list(predicted.values())) == pytest.approx(0.866, abs=0.002)
