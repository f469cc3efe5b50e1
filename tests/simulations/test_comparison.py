"""Methods on one fold: the same patients, and the relations between them that must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtwin_simulations.cohorts import Gathered
from fedtwin_simulations.comparison import Trial, run_method
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.specification import POOLED, Experiment
from tests.simulations.laboratory import SITES, small_experiment, small_gathered


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    return small_gathered(tmp_path_factory.mktemp("hospitals"))


def run_all(experiment: Experiment, gathered: Gathered) -> dict[str, Trial]:
    consortium = make_consortium([*SITES, POOLED])
    parts = {
        patient: "test" if number % 3 == 0 else "train"
        for site in SITES
        for number, patient in enumerate(gathered.records(site).patients.ids)
    }
    return {
        entry.method: run_method(experiment, entry, gathered, parts, consortium, seed=0) for entry in experiment.methods
    }


def test_every_method_is_tested_on_the_same_patients_with_the_same_outcomes(gathered: Gathered) -> None:
    trials = run_all(small_experiment(), gathered)
    for site in SITES:
        first = trials["pooled"].test[site]
        assert len(first.patients) > 20
        for trial in trials.values():
            assert trial.test[site].patients == first.patients
            assert np.array_equal(trial.test[site].outcomes, first.outcomes)
            assert not set(trial.train[site].patients) & set(first.patients)


def test_one_full_step_a_round_weighted_by_patients_is_pooled_training(gathered: Gathered) -> None:
    # FedSGD: the weighted mean of the sites' full gradients is the gradient over everybody.
    trials = run_all(small_experiment(), gathered)
    for site in SITES:
        pooled, federated = trials["pooled"].test[site].scores, trials["federated"].test[site].scores
        assert np.allclose(pooled, federated, atol=1e-4)
    assert not np.allclose(trials["local"].test["city"].scores, trials["federated"].test["city"].scores, atol=1e-3)


def test_noise_is_in_private_methods_alone(gathered: Gathered) -> None:
    trials = run_all(small_experiment(), gathered)
    for method, trial in trials.items():
        assert all(np.array_equal(counts, np.round(counts)) for counts in trial.histograms.values())
        counted = sum(counts.sum() for counts in trial.histograms.values())
        assert (counted == sum(len(scored.outcomes) for scored in trial.test.values())) == (method != "private")
    assert set(trials["pooled"].histograms) == {POOLED}


def test_a_site_alone_is_untouched_by_the_others(gathered: Gathered, tmp_path: Path) -> None:
    trials = run_all(small_experiment(), gathered)
    alone = Gathered({"city": gathered.records("city")})
    experiment, consortium = small_experiment(), make_consortium([*SITES, POOLED])
    parts = {
        patient: "test" if number % 3 == 0 else "train"
        for number, patient in enumerate(alone.records("city").patients.ids)
    }
    trial = run_method(experiment, experiment.methods[1], alone, parts, consortium, seed=0)
    assert np.array_equal(trial.test["city"].scores, trials["local"].test["city"].scores)
