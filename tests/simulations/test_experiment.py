"""A whole experiment: the jobs that are needed and no others, rows that add up, the same figures on any machine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.experiment import Laboratory, run_experiment, run_jobs
from fedtwin_simulations.jobs import Job, list_jobs
from fedtwin_simulations.results import write_json
from fedtwin_simulations.scores import measure, pool
from fedtwin_simulations.specification import merge
from fedtwin_simulations.summary import HISTOGRAM_SUFFIX, summarise
from tests.simulations.laboratory import small_experiment, study_document, write_small_hospitals


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    folders = write_small_hospitals(tmp_path_factory.mktemp("hospitals"))
    return Laboratory(small_experiment(metrics=["auroc", "event1"]), folders, data=None)


def test_what_seeds_cannot_change_runs_once() -> None:
    jobs = list_jobs(small_experiment())
    assert [(job.method, job.seed) for job in jobs] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]
    sampled = small_experiment(study=merge(study_document(), {"privacy": {"sampling_rate": 0.5}}))
    assert len(list_jobs(sampled)) == 8
    folds = small_experiment(partitions=[{"rule": "folds", "folds": 3, "seeds": [0, 1]}])
    assert len(list_jobs(folds)) == 4 * 2 * 3


def test_rows_are_made_of_the_trials(laboratory: Laboratory) -> None:
    experiment, jobs = laboratory.experiment, list_jobs(laboratory.experiment)
    seen: list[tuple[int, int]] = []
    trials = run_jobs(laboratory, jobs, on_progress=lambda done, every: seen.append((done, every)))
    rows = summarise(experiment, trials)
    assert seen == [(done, 5) for done in range(6)]
    federated = next(row for row in rows if row.method == "federated" and row.metric == "auroc")
    trial = trials[Job(partition=0, method=2, seed=0, fold=0)]
    assert federated.overall == measure(pool(list(trial.test.values()))).auroc
    assert federated.per_site == {site: measure(scored).auroc for site, scored in trial.test.items()}
    private = next(row for row in rows if row.method == "private" and row.metric == "auroc")
    assert set(private.per_seed) == {"0", "1"}
    assert private.overall == pytest.approx(sum(value for value in private.per_seed.values() if value) / 2)


def test_there_is_one_primary_row_for_each_method_and_price(laboratory: Laboratory) -> None:
    rows = summarise(laboratory.experiment, run_jobs(laboratory, list_jobs(laboratory.experiment)))
    primary = [(row.method, row.epsilon) for row in rows if row.primary]
    assert primary == [("pooled", None), ("local", None), ("federated", None), ("private", 3.0)]
    noised = [row for row in rows if row.metric.endswith(HISTOGRAM_SUFFIX)]
    assert {row.method for row in noised} == {"private"}
    assert all(row.metric != "event1" + HISTOGRAM_SUFFIX for row in noised)
    events = [row for row in rows if row.metric == "event1"]
    assert all(row.overall is not None and 0 <= row.overall <= 1 for row in events)


def test_two_processes_give_the_same_bits_as_one(laboratory: Laboratory) -> None:
    jobs = [job for job in list_jobs(laboratory.experiment) if job.method in (2, 3)]
    alone, shared = (run_jobs(laboratory, jobs, workers=workers) for workers in (1, 2))
    for job in jobs:
        for site, scored in alone[job].test.items():
            assert scored.scores.tobytes() == shared[job].test[site].scores.tobytes()


def test_a_public_set_needs_its_folder() -> None:
    experiment = small_experiment(dataset="heart")
    with pytest.raises(ConfigurationError, match="--data: expected the folder"):
        run_experiment(experiment)


def test_a_rule_that_the_set_does_not_have_is_refused(laboratory: Laboratory) -> None:
    experiment = small_experiment(partitions=[{"rule": "published", "seeds": [0]}])
    with pytest.raises(ConfigurationError, match=r"partitions.rule"):
        Laboratory(experiment, laboratory.folders, data=None).parts(0, 0)


def test_results_of_an_experiment_are_json_with_its_policy(laboratory: Laboratory, tmp_path: Path) -> None:
    sites = [{"site": site, "patients": 300} for site in ("city", "coast", "university", "valley")]
    study = merge(study_document(), {"participants": sites, "training": {"rounds": 2}, "evaluation": {"rounds": []}})
    experiment = small_experiment(study=study, partitions=[{"rule": "hash", "seeds": [3]}])
    document = json.loads(write_json(run_experiment(experiment)))
    assert document["study"] == "small"
    assert document["seeds"] == [3]
    assert document["seconds"] > 0
    assert "nominal ε" in document["policy"][0]
    assert all(math.isfinite(row["overall"]) for row in document["results"])
