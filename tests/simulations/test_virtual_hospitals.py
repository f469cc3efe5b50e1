"""Virtual hospitals: a task worth learning, in the hospital's own format, with something for the reader to refuse."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedtwin_shared.signal import CATEGORIES, SIGNALS
from fedtwin_simulations.scores import Scored, measure
from fedtwin_simulations.virtual_hospitals import (
    CASE_MIXES,
    DECISION_HOUR,
    HOURS,
    INTERCEPT,
    RELAXATION_HOURS,
    RESPONSES,
    SLOPE,
    SPREAD,
    draw_outcomes,
    list_case_mixes,
    simulate_hospital,
    simulate_severity,
    write_hospitals,
)


def test_four_hospitals_take_less_than_five_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    assert write_hospitals(tmp_path) == ("city", "coast", "university", "valley")
    assert time.monotonic() - started < 5


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_hospitals(tmp_path / name, count=1, seed=seed)
    first, again, other = ((tmp_path / name / "city" / "patients.csv").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_a_hospital_does_not_depend_on_how_many_others_there_are(tmp_path: Path) -> None:
    write_hospitals(tmp_path / "one", count=1)
    write_hospitals(tmp_path / "six", count=6)
    assert len(list((tmp_path / "six").iterdir())) == 6
    one, six = (pd.read_parquet(tmp_path / name / "city" / "observations.parquet") for name in ("one", "six"))
    assert one.equals(six)


def test_no_patient_is_in_two_hospitals() -> None:
    patients = [set(simulate_hospital(case, seed=0).patients["patient"]) for case in list_case_mixes(8)]
    assert len(set.union(*patients)) == sum(map(len, patients)) == sum(case.patients for case in list_case_mixes(8))


def test_severity_is_the_stationary_process_that_the_docstring_states() -> None:
    case = CASE_MIXES[0]
    severity = simulate_severity(case, np.full(20_000, 65.0), np.random.default_rng(0))
    assert severity.shape == (20_000, HOURS + 1)
    inner = severity - severity.mean(axis=1, keepdims=True)
    assert severity[:, 0].mean() == pytest.approx(case.severity, abs=0.03)
    assert severity[:, 0].std() == pytest.approx(severity[:, -1].std(), rel=0.02)
    # One hour apart: E (s(t+1) - s(t))² = 2·SPREAD²·(1 - exp(-1/RELAXATION_HOURS)).
    moved = np.square(np.diff(severity, axis=1)).mean()
    assert moved == pytest.approx(2 * SPREAD**2 * (1 - np.exp(-1 / RELAXATION_HOURS)), rel=0.02)
    assert inner.std() > 0


def test_outcomes_follow_the_severity_at_the_decision_hour() -> None:
    severity = np.zeros((50_000, HOURS + 1))
    severity[:, DECISION_HOUR] = 1.0
    share = draw_outcomes(severity, np.random.default_rng(0)).mean()
    assert share == pytest.approx(1 / (1 + np.exp(-(INTERCEPT + SLOPE))), abs=0.01)


def test_the_task_is_learnable_but_not_trivial() -> None:
    outcomes, scores = [], []
    for case in CASE_MIXES:
        generator = np.random.default_rng(1)
        severity = simulate_severity(case, generator.normal(case.age_mean, 14, 4000), generator)
        outcomes.append(draw_outcomes(severity, generator).astype(float))
        scores.append(severity[:, DECISION_HOUR])
    known = np.concatenate(scores)
    best = measure(
        Scored(patients=("",) * len(known), scores=1 / (1 + np.exp(-known)), outcomes=np.concatenate(outcomes))
    )
    assert 0.1 < best.event_rate < 0.25
    assert 0.85 < best.auroc < 0.93  # of whoever knows the true severity: an upper bound for every model


def test_hospitals_differ_in_their_patients() -> None:
    tables = [simulate_hospital(case, seed=0).patients for case in CASE_MIXES]
    assert max(one["age"].mean() for one in tables) - min(one["age"].mean() for one in tables) > 8
    assert max(one["deteriorated"].mean() for one in tables) > 1.2 * min(one["deteriorated"].mean() for one in tables)


def test_values_are_plausible_but_for_the_broken_rows_which_are_few() -> None:
    tables = simulate_hospital(CASE_MIXES[1], seed=0)
    rows = tables.observations
    signal = rows["signal"].map(dict(SIGNALS))
    outside = (rows["value"] < signal.map(lambda row: row.low)) | (rows["value"] > signal.map(lambda row: row.high))
    wrong_unit = rows["unit"] != signal.map(lambda row: row.unit)
    twice = rows.duplicated(["patient", "time", "signal"], keep=False)
    for kind in (outside, wrong_unit, twice):
        assert 0 < kind.sum() < 0.005 * len(rows)
    assert set(rows["signal"]) == {response.signal for response in RESPONSES}
    assert set(tables.patients["sex"]) == set(CATEGORIES["sex"].levels)


def test_every_observation_belongs_to_a_patient_and_follows_admission() -> None:
    tables = simulate_hospital(CASE_MIXES[3], seed=0)
    admitted = pd.to_datetime(tables.patients.set_index("patient")["admitted"])
    since = tables.observations["time"] - tables.observations["patient"].map(admitted)
    assert since.min() >= pd.Timedelta(0)
    assert since.max() <= pd.Timedelta(hours=HOURS)


def test_no_hospital_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list_case_mixes(0)
