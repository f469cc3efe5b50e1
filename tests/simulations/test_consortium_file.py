"""A consortium's TOML: what it says is what is written, the same bytes each time, and every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedtwin_client.reader import read_hospital
from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.consortium_file import read_consortium, write_consortium

TEXT = """
format = 1
seed = 7
[[hospitals]]
name = "north"
count = 2
patients = 40
event_share = 0.25
[hospitals.population]
age_mean = 80.0
male_share = 0.0
[hospitals.population.scenarios]
stable = 0.5
sepsis = 0.5
[hospitals.charting]
units = { temperature = "[degF]" }
[[hospitals]]
name = "south"
patients = 20
[hospitals.population.scenarios]
haemorrhage = 1.0
[hospitals.device]
noise = 2.0
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "consortium.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_the_file_says_is_what_is_written_and_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert write_consortium(path, tmp_path / "a") == ("north", "north-2", "south")
    write_consortium(path, tmp_path / "b")
    for one in sorted((tmp_path / "a").rglob("*.*")):
        assert one.read_bytes() == (tmp_path / "b" / one.relative_to(tmp_path / "a")).read_bytes()
    north = pd.read_csv(tmp_path / "a" / "north" / "patients.csv")
    assert len(north) == 40
    assert set(north["sex"]) == {"female"}
    assert north["deteriorated"].sum() == 10
    assert north["age"].mean() > 72
    assert set(north["patient"]).isdisjoint(pd.read_csv(tmp_path / "a" / "north-2" / "patients.csv")["patient"])
    assert len(read_hospital(tmp_path / "a" / "south").patients) == 20


@pytest.mark.parametrize(
    ("old", "new", "field", "expected"),
    [
        ("seed = 7", "", "seed", "this field"),
        ("seed = 7", "seed = 7\nsead = 8", "sead", "no field of this name"),
        ("male_share = 0.0", "male_share = 1.5", "hospitals.0.population.male_share", "at most 1"),
        ("sepsis = 0.5", "sepsi = 0.5", "hospitals.0.population", "scenarios of stable"),
        ("sepsis = 0.5", "sepsis = nan", "hospitals.0.population.scenarios.sepsis", ""),
        ('"[degF]"', '"kelvin"', "hospitals.0.charting", "a unit that a hospital's reader converts"),
        ("event_share = 0.25", "event_share = -0.1", "hospitals.0.event_share", "at least 0"),
        ("patients = 20", "patients = 0", "hospitals.1.patients", "at least 1"),
        ('"south"', '"north-2"', "", "every hospital's name once"),
    ],
)
def test_a_mistake_names_file_key_and_what_was_expected(
    tmp_path: Path, old: str, new: str, field: str, expected: str
) -> None:
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        read_consortium(path)
    assert str(path) in str(caught.value)
    assert caught.value.field == field
    assert expected in caught.value.expected


def test_a_folder_with_something_in_it_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="a new or an empty folder"):
        write_consortium(write(tmp_path), tmp_path / "full")
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["kept.txt"]
