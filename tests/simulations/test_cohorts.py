"""Folds in memory are what reading the same parts from files would give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedtwin_client.cohort import Examples, form_cohort
from fedtwin_client.reader import read_hospital
from fedtwin_shared.study import Split, Study
from fedtwin_simulations.cohorts import Gathered, pool_cohorts, read_hospitals
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.specification import draft_study
from tests.simulations.laboratory import SITES, small_experiment, small_gathered, write_small_hospitals


def small_study() -> Study:
    experiment = small_experiment()
    return draft_study(experiment, experiment.methods[2], make_consortium(SITES).roster)


def same(one: Examples, other: Examples) -> bool:
    return one.patients == other.patients and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("x", "mask", "y", "groups")
    )


def test_a_fold_in_memory_is_the_fold_read_from_files(tmp_path: Path) -> None:
    folder = write_small_hospitals(tmp_path)["city"]
    patients = pd.read_csv(folder / "patients.csv")
    parts = {
        patient: ("train", "test", "")[number % 3 if number % 5 else 2]
        for number, patient in enumerate(patients["patient"])
    }
    gathered = read_hospitals({"city": folder})
    in_memory = gathered.cohort(small_study(), "city", {who: part for who, part in parts.items() if part})
    patients.insert(2, "part", patients["patient"].map(parts))
    patients.to_csv(folder / "patients.csv", index=False)
    by_column = small_study().model_copy(update={"split": Split(rule="column")})
    from_files = form_cohort(read_hospital(folder), by_column, "city")
    assert len(in_memory.test) > 10
    assert same(in_memory.train, from_files.train)
    assert same(in_memory.test, from_files.test)


def test_the_split_of_real_hospitals_is_the_one_by_hash(tmp_path: Path) -> None:
    gathered, study = small_gathered(tmp_path), small_study()
    real = form_cohort(gathered.records("coast"), study, "coast")
    ours = gathered.cohort(study, "coast", gathered.parts(study))
    assert same(real.train, ours.train)
    assert same(real.test, ours.test)


def test_examples_are_formed_once_for_the_same_features(tmp_path: Path) -> None:
    gathered, study = small_gathered(tmp_path), small_study()
    first = gathered.examples(study, "city")
    other_price = study.model_copy(update={"training": study.training.model_copy(update={"learning_rate": 9.0})})
    assert gathered.examples(other_price, "city") is first
    other_features = study.model_copy(update={"features": study.features.model_copy(update={"limit": 2.0})})
    assert gathered.examples(other_features, "city") is not first


def test_pooling_loses_and_doubles_nobody(tmp_path: Path) -> None:
    gathered: Gathered = small_gathered(tmp_path)
    study = small_study()
    cohorts = [gathered.cohort(study, site, gathered.parts(study)) for site in SITES]
    pooled = pool_cohorts(cohorts)
    assert sorted(pooled.train.patients) == sorted(who for cohort in cohorts for who in cohort.train.patients)
    assert len(set(pooled.test.patients)) == len(pooled.test) == sum(len(cohort.test) for cohort in cohorts)
    assert not set(pooled.train.patients) & set(pooled.test.patients)
