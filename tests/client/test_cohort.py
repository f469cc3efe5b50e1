"""From records to tensors: against a slow reference written from the study's words, and patient by patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.cohort import Examples, form_cohort, missing_columns
from fedtwin_client.errors import DataError
from fedtwin_client.reader import HospitalRecords, read_hospital
from fedtwin_shared.signal import SIGNALS, normalise
from fedtwin_shared.study import Study, is_held_out
from tests.client.small import Row, observation, patient, small_study, write_folder

STATISTICS = ("mean", "min", "max", "first", "last", "sd", "slope", "count", "observed")
Values = Sequence[tuple[float, float]]


def records_of(folder: Path, patients: Sequence[Row], rows: Sequence[Row]) -> HospitalRecords:
    return read_hospital(write_folder(folder, patients, rows or None))


def everybody(folder: Path, study: Study, patients: Sequence[Row], rows: Sequence[Row]) -> Examples:
    return form_cohort(records_of(folder, patients, rows), study, "north").train


def series_study(windows: int = 1, statistics: Sequence[str] = STATISTICS, **features: Any) -> Study:
    series = [{"signal": "heart_rate", "statistics": statistics, "hinges": features.pop("hinges", False)}]
    return small_study(features={"windows": windows, "series": series, "facts": [], **features})


def reference(values: Values) -> dict[str, tuple[float, bool]]:
    """Return each statistic of (hour in the step, z) of one step of one hour, in plain Python."""
    z = [value for _, value in values]
    found = {"count": (math.log1p(len(z)), True), "observed": (float(bool(z)), True)}
    if not z:
        return {**found, **{name: (0.0, False) for name in STATISTICS if name not in found}}
    mean = sum(z) / len(z)
    found |= {"mean": (mean, True), "min": (min(z), True), "max": (max(z), True)}
    found |= {"first": (z[0], True), "last": (z[-1], True)}
    found["sd"] = (math.sqrt(sum((one - mean) ** 2 for one in z) / len(z)), True)
    middle = sum(hour for hour, _ in values) / len(z)
    spread = sum((hour - middle) ** 2 for hour, _ in values)
    together = sum((hour - middle) * (one - mean) for hour, one in values)
    found["slope"] = (max(-4.0, min(4.0, together / spread)), True) if len(z) > 1 else (0.0, False)
    return found


BEATS = st.lists(st.tuples(st.integers(-60, 9 * 60), st.integers(20, 250)), max_size=25, unique_by=lambda pair: pair[0])


@settings(max_examples=40, deadline=None)
@given(beats=BEATS, carry=st.booleans())
def test_agrees_with_the_reference(
    tmp_path_factory: pytest.TempPathFactory, beats: list[tuple[int, int]], carry: bool
) -> None:
    study = series_study(windows=2, carry_forward=carry)
    rows = [observation("anna", minute / 60, value) for minute, value in beats]
    found = everybody(tmp_path_factory.mktemp("one"), study, [patient("anna", age=50, deteriorated=1)], rows)
    by_step: list[list[tuple[float, float]]] = [[] for _ in range(8)]
    for minute, rate in sorted(beats):
        if 0 <= minute < 8 * 60:
            z = float(normalise(SIGNALS["heart_rate"], rate))
            by_step[minute // 60].append((minute % 60 / 60, z))
    windows = 2 if any(by_step[4:]) else 1
    carried = 0.0
    for step, values in enumerate(by_step):
        carried = values[-1][1] if values else carried
        for at, (name, (value, known)) in enumerate((name, reference(values)[name]) for name in STATISTICS):
            filled = carry and not values and name in ("mean", "min", "max", "first", "last")
            exists = step // 4 < windows
            expected = (carried if filled else value) if exists else 0.0
            assert found.mask[0, step // 4, step % 4, at] == (known and exists)
            assert found.x[0, step // 4, step % 4, at] == pytest.approx(expected, abs=2e-5)


PEOPLE = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d", "e"]),
    st.tuples(st.integers(18, 90), st.sampled_from(["male", "female", ""]), BEATS),
    min_size=2,
)


@settings(max_examples=25, deadline=None)
@given(people=PEOPLE)
def test_a_patients_row_is_the_same_whatever_others_there_are(
    tmp_path_factory: pytest.TempPathFactory, people: Mapping[str, tuple[int, str, list[tuple[int, int]]]]
) -> None:
    study = series_study(
        windows=2, carry_forward=True, hinges=True, facts=[{"signal": "age"}], categories=["sex"], site_indicator=True
    )

    def build(names: Sequence[str]) -> Examples:
        patients = [patient(name, age=people[name][0], sex=people[name][1], deteriorated=1) for name in names]
        rows = [observation(name, minute / 60, value) for name in names for minute, value in people[name][2]]
        return everybody(tmp_path_factory.mktemp("some"), study, patients, rows)

    together = build(sorted(people, reverse=True))
    assert together.patients == tuple(sorted(people))
    for at, name in enumerate(together.patients):
        alone = build([name])
        assert alone.x[0].tobytes() == together.x[at].tobytes()
        assert alone.mask[0].tobytes() == together.mask[at].tobytes()


def test_features_stand_in_the_order_of_their_names(tmp_path: Path) -> None:
    study = small_study(
        features={
            "series": [{"signal": "heart_rate", "statistics": ["mean", "observed"], "hinges": True}],
            "facts": [{"signal": "age", "hinges": True}, {"signal": "height"}],
            "categories": ["sex"],
            "site_indicator": True,
        }
    )
    rows = [observation("anna", 0.5, 86 + 20 * 3)]
    found = everybody(tmp_path, study, [patient("anna", age=62 - 17 * 2, sex="male", deteriorated=0)], rows)
    expected = {
        "heart_rate.mean": 3,
        "heart_rate.mean.high": 2,
        "heart_rate.mean.low": 0,
        "heart_rate.observed": 1,
        "age": -2,
        "age.high": 0,
        "age.low": 1,
        "height": 0,
        "sex=female": 0,
        "sex=male": 1,
        "site=north": 1,
        "site=south": 0,
    }
    assert study.feature_names() == tuple(expected)
    assert found.x[0, 0, 0].tolist() == pytest.approx(list(expected.values()), abs=1e-6)
    assert found.mask[0, 0, 0].tolist() == [name != "height" for name in expected]
    # Facts repeat over time; the signal was measured in the first step only.
    assert (found.x[0, 0, :, 4:] == found.x[0, 0, 0, 4:]).all()
    assert not found.mask[0, 0, 1:, 0].any()


def test_an_unknown_category_is_all_zeros_and_unknown(tmp_path: Path) -> None:
    study = small_study(features={"series": [], "facts": [], "categories": ["chest_pain"]})
    found = everybody(tmp_path, study, [patient("anna", chest_pain="", deteriorated=1)], [])
    assert not found.x.any()
    assert not found.mask.any()


def test_values_beyond_the_limit_are_set_to_it(tmp_path: Path) -> None:
    study = series_study(statistics=["max", "min"], limit=2.0)
    rows = [observation("anna", 0.5, 300), observation("anna", 0.6, 10)]
    found = everybody(tmp_path, study, [patient("anna", deteriorated=1)], rows)
    assert found.x[0, 0, 0].tolist() == [2.0, -2.0]


def test_windows_end_with_the_patients_own_record(tmp_path: Path) -> None:
    study = small_study(features={"windows": 3, "carry_forward": True, "site_indicator": True})
    patients = [patient(name, age=62 + 17, deteriorated=0) for name in ("anna", "ben", "carl")]
    rows = [observation("anna", 1, 86), observation("anna", 11.9, 86), observation("ben", 5, 86)]
    found = everybody(tmp_path, study, patients, rows)
    assert found.mask.any(axis=(2, 3)).tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert np.array_equal(found.x.any(axis=(2, 3)), found.mask.any(axis=(2, 3)))


def test_who_is_in(tmp_path: Path) -> None:
    study = small_study(cohort={"requires": ["heart_rate", "weight", "sex"]})
    complete = {"age": 50, "weight": 70, "sex": "male", "deteriorated": 1}
    patients = [
        patient("complete", **complete),
        patient("without-outcome", **{**complete, "deteriorated": ""}),
        patient("without-weight", **{**complete, "weight": ""}),
        patient("weighed-later", **{**complete, "weight": ""}),
        patient("without-sex", **{**complete, "sex": ""}),
        patient("without-heart-rate", **complete),
        patient("heart-rate-too-late", **complete),
        patient("heart-rate-too-early", **complete),
    ]
    rows = [
        *(observation(str(row["patient"]), 1, 80) for row in patients[:5]),
        observation("weighed-later", 2, 70, signal="weight", unit="kg"),
        observation("heart-rate-too-late", 4, 80),
        observation("heart-rate-too-early", -1, 80),
    ]
    found = everybody(tmp_path, study, patients, rows)
    assert found.patients == ("complete", "weighed-later")
    assert found.y.tolist() == [1.0, 1.0]


def test_who_is_held_out_depends_on_the_own_id_alone(tmp_path: Path) -> None:
    study = small_study(split={"test_fraction": 0.3, "salt": "s"})
    names = [f"p{row}" for row in range(200)]
    records = records_of(tmp_path, [patient(name, age=50, deteriorated=0) for name in names], [])
    cohort = form_cohort(records, study, "north")
    assert cohort.test.patients == tuple(sorted(name for name in names if is_held_out(study.split, name)))
    assert sorted(cohort.train.patients + cohort.test.patients) == sorted(names)
    assert 30 <= len(cohort.test) <= 90


def test_a_split_by_column(tmp_path: Path) -> None:
    study = small_study(split={"rule": "column"})
    parts = {"a": "test", "b": "train", "c": "", "d": "neither"}
    patients = [patient(name, age=50, part=part, deteriorated=0) for name, part in parts.items()]
    cohort = form_cohort(records_of(tmp_path, patients, []), study, "north")
    assert (cohort.train.patients, cohort.test.patients) == (("b",), ("a",))


def test_groups_are_everybody_and_the_levels_of_each_category(tmp_path: Path) -> None:
    study = small_study(evaluation={"subgroups": ["sex", "exercise_angina"]})
    patients = [
        patient("a", sex="male", exercise_angina="no", deteriorated=0),
        patient("b", sex="female", exercise_angina="", deteriorated=0),
        patient("c", sex="", exercise_angina="yes", deteriorated=0),
    ]
    found = everybody(tmp_path, study, patients, [])
    assert found.groups.tolist() == [
        [True, False, True, True, False],
        [True, True, False, False, False],
        [True, False, False, False, True],
    ]


@pytest.mark.parametrize(("split", "column"), [("hash", "deteriorated"), ("column", "part")])
def test_a_missing_outcome_or_part_is_fatal_before_anything_is_spent(tmp_path: Path, split: str, column: str) -> None:
    row = patient("anna", age=50, **({} if column == "deteriorated" else {"deteriorated": 1}))
    records = records_of(tmp_path, [row], [])
    with pytest.raises(DataError, match=rf"patients\.csv: {column}: expected a column of .*, found no such column"):
        form_cohort(records, small_study(split={"rule": split}), "north")


def test_other_missing_columns_are_named_and_unknown(tmp_path: Path) -> None:
    study = small_study(
        features={"facts": [{"signal": "age"}, {"signal": "height"}], "categories": ["sex"]},
        evaluation={"subgroups": ["sex", "exercise_angina"]},
        cohort={"requires": ["age", "heart_rate", "chest_pain"]},
    )
    records = records_of(tmp_path, [patient("anna", age=62, deteriorated=1)], [observation("anna", 1, 80)])
    assert missing_columns(records, study) == ("height", "sex", "exercise_angina", "chest_pain")
    study = study.model_copy(update={"cohort": small_study().cohort})
    found = form_cohort(records, study, "north").train
    assert found.mask[0, 0, 1].tolist() == [True, True, False, False, False]


def test_nobody_is_a_cohort_too(tmp_path: Path) -> None:
    study = series_study()
    cohort = form_cohort(records_of(tmp_path, [patient("anna", deteriorated="")], []), study, "north")
    assert (len(cohort.train), len(cohort.test)) == (0, 0)
    assert cohort.train.x.shape == (0, 1, 4, len(STATISTICS))
    assert cohort.train.x.dtype == np.float32


def test_examples_show_no_patient_and_no_value(tmp_path: Path) -> None:
    found = everybody(tmp_path, small_study(), [patient("anna", age=62 + 17 * 3, deteriorated=1)], [])
    cohort = form_cohort(records_of(tmp_path, [patient("anna", age=62, deteriorated=1)], []), small_study(), "north")
    assert "anna" not in f"{found!r}{cohort!r}"
    assert "array" not in f"{found!r}{cohort!r}"
