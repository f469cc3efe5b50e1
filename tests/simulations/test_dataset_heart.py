"""The UCI heart set rewritten into four hospitals' files."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from fedtwin_shared.signal import CATEGORIES, SIGNALS
from fedtwin_simulations.datasets import heart
from fedtwin_simulations.datasets.hospital_files import DatasetError

FOLDER = Path(os.environ.get("FEDTWIN_DATA", "")) / "uci_heart_disease_4hospitals"
needs_data = pytest.mark.skipif(
    not os.environ.get("FEDTWIN_DATA") or not FOLDER.is_dir(), reason="FEDTWIN_DATA does not name the public sets"
)

LINES = """\
63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0
67,0,4,160,0,0,1,108,1,1.5,?,?,?,2
40,1,2,?,200,0,0,120,0,0,?,?,?,0
50,1,3,120,210,0,0,170,0,0,?,?,?,0
51,1,3,120,210,0,0,170,0,0,?,?,?,0
52,0,3,120,210,0,0,170,0,0,?,?,?,1
53,0,3,120,210,0,0,170,0,0,?,?,?,4
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in heart.SITES.values():
        (folder / f"processed.{name}.data").write_text(LINES)
    return folder


def _read(target: Path, site: str) -> pd.DataFrame:
    return pd.read_csv(target / site / "patients.csv").set_index("patient")


def test_oddities_are_respected(source: Path, tmp_path: Path) -> None:
    sites = heart.write_hospitals(source, tmp_path / "target")
    assert sites == ("cleveland", "hungary", "switzerland", "long-beach")
    patients = _read(tmp_path / "target", "hungary")
    assert "hungary-003" not in patients.index  # a missing pressure drops the row, a missing slope does not
    assert len(patients) == 6
    first, second = patients.loc["hungary-001"], patients.loc["hungary-002"]
    assert first["cholesterol"] == 233
    assert pd.isna(second["cholesterol"])  # 0 is missing
    assert first["st_depression"] == pytest.approx(0.23)  # 2.3 mm
    assert (first["sex"], first["chest_pain"], first["resting_ecg"]) == (
        "male",
        "typical_angina",
        "ventricular_hypertrophy",
    )
    assert (first["heart_disease"], second["heart_disease"]) == (0, 1)  # grade 2 is disease


def test_every_column_and_level_is_in_the_table(source: Path, tmp_path: Path) -> None:
    heart.write_hospitals(source, tmp_path)
    patients = _read(tmp_path, "cleveland")
    facts = set(patients.columns) - {"admitted", "heart_disease"}
    assert facts <= set(SIGNALS) | set(CATEGORIES)
    for key in facts & set(CATEGORIES):
        assert set(patients[key].dropna()) <= set(CATEGORIES[key].levels)
    observations = pd.read_parquet(tmp_path / "cleveland" / "observations.parquet")
    assert list(observations.columns) == ["patient", "time", "signal", "value", "unit"]
    assert observations.empty
    schema = pyarrow.parquet.read_schema(tmp_path / "cleveland" / "observations.parquet")
    assert str(schema.field("signal").type.value_type) == "string"  # typed although there is no row


def test_split_deals_every_patient_once_and_depends_on_the_seed(source: Path, tmp_path: Path) -> None:
    parts = heart.split(source, seed=1)
    assert set(parts) == set(heart.read_patients(source)["patient"])
    assert set(parts.values()) == {"train", "test"}
    assert parts == heart.split(source, seed=1)
    assert parts != heart.split(source, seed=2)
    heart.write_hospitals(source, tmp_path, parts=parts)
    assert _read(tmp_path, "hungary")["part"].to_dict() == {
        patient: part for patient, part in parts.items() if patient.startswith("hungary")
    }


def test_a_missing_or_malformed_file_is_our_error(source: Path, tmp_path: Path) -> None:
    (source / "processed.va.data").write_text("1,2,3\n")
    with pytest.raises(DatasetError, match="14 columns"):
        heart.write_hospitals(source, tmp_path)
    (source / "processed.va.data").unlink()
    with pytest.raises(DatasetError, match=r"processed\.va\.data"):
        heart.write_hospitals(source, tmp_path)


@needs_data
def test_real_set_has_flambys_counts() -> None:
    patients = heart.read_patients(FOLDER)
    assert patients["site"].value_counts().to_dict() == {
        "cleveland": 303,
        "hungary": 261,
        "switzerland": 46,
        "long-beach": 130,
    }
    assert patients.groupby("site")["heart_disease"].sum()["switzerland"] == 45
    assert patients.loc[patients["site"] == "switzerland", "cholesterol"].isna().all()
    part = patients["patient"].map(heart.split(FOLDER))
    counted = patients.groupby(["site", part]).size().to_dict()
    assert counted == {
        ("cleveland", "train"): 199,
        ("cleveland", "test"): 104,
        ("hungary", "train"): 172,
        ("hungary", "test"): 89,
        ("switzerland", "train"): 30,
        ("switzerland", "test"): 16,
        ("long-beach", "train"): 85,
        ("long-beach", "test"): 45,
    }
