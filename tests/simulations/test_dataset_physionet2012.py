"""PhysioNet 2012 set A rewritten into four hospitals' files."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from fedtwin_shared.signal import SIGNALS
from fedtwin_simulations.datasets import physionet2012
from fedtwin_simulations.datasets.hospital_files import DatasetError, folds_as_parts

FOLDER = Path(os.environ.get("FEDTWIN_DATA", "")) / "physionet2012"
needs_data = pytest.mark.skipif(
    not os.environ.get("FEDTWIN_DATA") or not FOLDER.is_dir(), reason="FEDTWIN_DATA does not name the public sets"
)


def _stay(record: int, unit: int) -> list[tuple[int, int, str, float]]:
    return [
        (record, 0, "RecordID", record),
        (record, 0, "Age", 54),
        (record, 0, "Gender", -1 if record == 101 else 1),
        (record, 0, "Height", -1),
        (record, 0, "ICUType", unit),
        (record, 0, "Weight", -1),
        (record, 7, "HR", 0),
        (record, 61, "FiO2", 0.4),
        (record, 61, "pH", 735),
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [row for record in range(101, 117) for row in _stay(record, record % 4 + 1)]
    table = pd.DataFrame(rows, columns=["record_id", "minute", "parameter", "value"])
    table["parameter"] = table["parameter"].astype("category")
    table.to_parquet(folder / "set-a.parquet")
    outcomes = [f"{record},6,1,5,-1,{int(record > 108)}" for record in range(101, 117)]
    header = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"
    (folder / "Outcomes-a.txt").write_text("\n".join([header, *outcomes]))
    return folder


def test_oddities_are_respected(source: Path, tmp_path: Path) -> None:
    sites = physionet2012.write_hospitals(source, tmp_path)
    assert sites == ("coronary", "cardiac-surgery", "medical", "surgical")
    patients = pd.read_csv(tmp_path / "cardiac-surgery" / "patients.csv", dtype={"patient": str}).set_index("patient")
    assert list(patients.index) == ["101", "105", "109", "113"]
    assert patients["height"].isna().all()  # −1 is missing
    assert pd.isna(patients.loc["101", "sex"])
    assert patients.loc["105", "sex"] == "male"
    assert patients["died_in_hospital"].to_dict() == {"101": 0, "105": 0, "109": 1, "113": 1}
    observations = pd.read_parquet(tmp_path / "cardiac-surgery" / "observations.parquet")
    own = observations[observations["patient"] == "101"].set_index("signal")
    assert set(own.index) == {"heart_rate", "inspired_oxygen", "arterial_ph"}  # the weight of −1 is gone
    assert own.loc["heart_rate", "value"] == 0  # implausible values stay in for the reader
    assert own.loc["arterial_ph", "value"] == 735
    assert own.loc["inspired_oxygen", "value"] == pytest.approx(40)
    assert own.loc["inspired_oxygen", "unit"] == "%"
    assert own.loc["inspired_oxygen", "time"] == pd.Timestamp("2012-01-01T01:01:00Z")


def test_every_series_has_a_signal() -> None:
    assert set(physionet2012.SERIES.values()) <= set(SIGNALS)
    assert len(physionet2012.SERIES) == 37
    assert len(set(physionet2012.SERIES.values())) == 37


def test_folds_are_even_and_name_every_patient_once(source: Path) -> None:
    folds = physionet2012.folds(source, count=2, seed=3)
    patients = physionet2012.read_patients(source).set_index("patient")
    assert set(folds) == set(patients.index)
    died = [patients.loc[[p for p, fold in folds.items() if fold == k], "died_in_hospital"].sum() for k in (0, 1)]
    assert died == [4, 4]


def test_no_file_of_one_site_names_a_patient_of_another(source: Path, tmp_path: Path) -> None:
    folds = physionet2012.folds(source, count=2)
    sites = physionet2012.write_hospitals(source, tmp_path, parts=folds_as_parts(folds, 1))
    seen: set[str] = set()
    for site in sites:
        patients = pd.read_csv(tmp_path / site / "patients.csv", dtype={"patient": str})
        observations = pd.read_parquet(tmp_path / site / "observations.parquet")
        own = set(patients["patient"])
        assert set(observations["patient"]) <= own
        assert not own & seen
        assert set(patients["part"]) <= {"train", "test"}
        seen |= own
    assert seen == set(folds)


def test_outcomes_of_other_stays_are_refused(source: Path, tmp_path: Path) -> None:
    text = (source / "Outcomes-a.txt").read_text()
    (source / "Outcomes-a.txt").write_text(text.replace("116,", "999,"))
    with pytest.raises(DatasetError, match="RecordID"):
        physionet2012.write_hospitals(source, tmp_path)


def test_a_table_of_another_layout_is_refused(source: Path, tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(source / "set-a.parquet")
    with pytest.raises(DatasetError, match="record_id"):
        physionet2012.write_hospitals(source, tmp_path)


def test_a_fold_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a fold"):
        folds_as_parts({"a": 0, "b": 1}, 2)


@needs_data
def test_real_set_has_the_published_counts(tmp_path: Path) -> None:
    sites = physionet2012.write_hospitals(FOLDER, tmp_path)
    tables = {site: pd.read_csv(tmp_path / site / "patients.csv") for site in sites}
    assert {site: (len(table), int(table["died_in_hospital"].sum())) for site, table in tables.items()} == {
        "coronary": (577, 81),
        "cardiac-surgery": (874, 43),
        "medical": (1481, 275),
        "surgical": (1068, 155),
    }
