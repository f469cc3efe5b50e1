"""Virtual hospitals: a task worth learning, in the hospital's own format, with something for the reader to refuse."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedtwin_client.reader import read_hospital
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signal import CATEGORIES, SIGNALS
from fedtwin_simulations.plant.outcome import attainable_auroc
from fedtwin_simulations.plant.sensor import CHANNELS
from fedtwin_simulations.scores import Scored, measure
from fedtwin_simulations.virtual_hospitals import (
    CASE_MIXES,
    HOURS,
    Charting,
    HospitalTables,
    list_case_mixes,
    simulate_hospital,
    write_hospital,
    write_hospitals,
)


def test_four_hospitals_take_less_than_five_seconds_of_a_core(tmp_path: Path) -> None:
    simulate_hospital(CASE_MIXES[3], seed=0)  # compiles, once for an installation
    started = time.process_time()
    assert write_hospitals(tmp_path) == ("city", "coast", "university", "valley")
    assert time.process_time() - started < 5


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_hospitals(tmp_path / name, count=1, seed=seed)
    first, again, other = ((tmp_path / name / "city" / "patients.csv").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_a_hospital_does_not_depend_on_how_many_others_there_are(tmp_path: Path) -> None:
    write_hospitals(tmp_path, count=2)
    second = pd.read_parquet(tmp_path / "coast" / "observations.parquet")
    assert second["value"].to_list() == hospital(1).observations["value"].to_list()
    assert [case.site for case in list_case_mixes(6)][3:] == ["valley", "city-2", "coast-2"]


def test_no_patient_is_in_two_hospitals() -> None:
    small = [replace(case, patients=50) for case in list_case_mixes(8)]
    patients = [set(simulate_hospital(case, seed=0).patients["patient"]) for case in small]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 400


@functools.cache
def hospital(case: int, *, seed: int = 0) -> HospitalTables:
    """Return one hospital, simulated once for all tests that only look at it."""
    return simulate_hospital(CASE_MIXES[case], seed=seed)


def test_the_task_is_learnable_but_not_trivial() -> None:
    risks = np.concatenate([hospital(case).risk for case in range(4)])
    assert 0.1 < risks.mean() < 0.25
    assert 0.9 < attainable_auroc(risks) < 0.99  # of whoever knows the true risk: an upper bound for every model


def test_outcomes_follow_the_true_risk() -> None:
    tables = [hospital(case) for case in range(4)]
    risk = np.concatenate([one.risk for one in tables])
    outcome = np.concatenate([one.patients["deteriorated"].to_numpy() for one in tables])
    assert outcome.mean() == pytest.approx(risk.mean(), abs=0.02)
    assert outcome[risk > 0.5].mean() == pytest.approx(risk[risk > 0.5].mean(), abs=0.05)
    scored = measure(Scored(patients=("",) * len(risk), scores=risk, outcomes=outcome.astype(float)))
    assert scored.auroc == pytest.approx(attainable_auroc(risk), abs=0.01)


def test_a_share_of_events_shifts_labels_and_nothing_else() -> None:
    plain, shifted = (
        simulate_hospital(replace(CASE_MIXES[3], patients=200, event_share=share), seed=0) for share in (None, 0.3)
    )
    assert shifted.patients["deteriorated"].sum() == 60
    assert len(shifted.patients) == len(set(shifted.patients["patient"])) == 200
    # Patients of one label are as they were: the risk of who deteriorates, and of who does not.
    for label in (0, 1):
        one, other = (two.risk[two.patients["deteriorated"] == label].mean() for two in (plain, shifted))
        assert one == pytest.approx(other, abs=0.12)


def test_a_share_that_no_patient_reaches_is_refused() -> None:
    healthy = replace(CASE_MIXES[3].population, frailty=0.01, scenarios={"stable": 1.0})
    with pytest.raises(ConfigurationError, match="event_share"):
        simulate_hospital(replace(CASE_MIXES[3], patients=20, population=healthy, event_share=1.0), seed=0)


def test_a_hospitals_habits_are_what_its_reader_undoes(tmp_path: Path) -> None:
    habits = {"temperature": "[degF]", "glucose": "mmol/L", "creatinine": "umol/L"}
    case = replace(CASE_MIXES[3], patients=100, charting=Charting(units=habits))
    rows = write_hospital(tmp_path, case, seed=0).observations
    assert set(rows.loc[rows["signal"] == "temperature", "unit"]) == {"[degF]", "degrees"}
    records = read_hospital(tmp_path)
    for name, low, high in (("temperature", 36, 39), ("glucose", 80, 220), ("creatinine", 0.5, 2)):
        value = records.observations.value[records.observations.signal == list(SIGNALS).index(name)]
        assert low < np.median(value) < high
    assert sum(sum(tally.quarantined.values()) for tally in records.tallies) < 0.005 * len(rows)


def test_the_ill_are_charted_more_often() -> None:
    case = replace(CASE_MIXES[0], patients=300, charting=Charting(observed=0.5, vigilance=0.5))
    tables = simulate_hospital(case, seed=0)
    hearts = tables.observations[tables.observations["signal"] == "heart_rate"].groupby("patient").size()
    many = hearts.reindex(tables.patients["patient"], fill_value=0).to_numpy()
    assert many[tables.risk > 0.7].mean() > 1.1 * many[tables.risk < 0.1].mean()


def test_hospitals_differ_in_their_patients() -> None:
    tables = [hospital(case).patients for case in range(4)]
    assert max(one["age"].mean() for one in tables) - min(one["age"].mean() for one in tables) > 8
    assert max(one["deteriorated"].mean() for one in tables) > 1.2 * min(one["deteriorated"].mean() for one in tables)


def test_values_are_plausible_but_for_the_broken_rows_which_are_few() -> None:
    tables = hospital(1)
    rows = tables.observations
    signal = rows["signal"].map(dict(SIGNALS))
    outside = (rows["value"] < signal.map(lambda row: row.low)) | (rows["value"] > signal.map(lambda row: row.high))
    outside &= rows["unit"] == signal.map(lambda row: row.unit)  # the others are judged by the reader
    wrong_unit = rows["unit"] == "degrees"
    twice = rows.duplicated(["patient", "time", "signal"], keep=False)
    for kind in (outside, wrong_unit, twice):
        assert 0 < kind.sum() < 0.005 * len(rows)
    assert set(rows["signal"]) == set(CHANNELS)
    assert set(tables.patients["sex"]) == set(CATEGORIES["sex"].levels)


def test_every_observation_belongs_to_a_patient_and_follows_admission() -> None:
    tables = hospital(3)
    admitted = pd.to_datetime(tables.patients.set_index("patient")["admitted"])
    since = tables.observations["time"] - tables.observations["patient"].map(admitted)
    assert since.min() >= pd.Timedelta(0)
    assert since.max() <= pd.Timedelta(hours=HOURS)


def test_no_hospital_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list_case_mixes(0)
