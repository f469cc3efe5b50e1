"""A small experiment and small virtual hospitals, for tests of everything that runs studies in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedtwin_simulations.cohorts import Gathered, read_hospitals
from fedtwin_simulations.specification import Experiment
from fedtwin_simulations.virtual_hospitals import CASE_MIXES, simulate_hospital

SITES = ("city", "coast", "valley")


def write_small_hospitals(folder: Path, *, patients: int = 80, sites: Sequence[str] = SITES) -> dict[str, Path]:
    """Write the first `patients` patients of some virtual hospitals; their folders by site."""
    folders: dict[str, Path] = {}
    for case in CASE_MIXES:
        if case.site in sites:
            tables = simulate_hospital(case, seed=0)
            kept = tables.patients.head(patients)
            folders[case.site] = folder / case.site
            folders[case.site].mkdir(parents=True)
            kept.to_csv(folders[case.site] / "patients.csv", index=False)
            rows = tables.observations[tables.observations["patient"].isin(kept["patient"])]
            rows = rows[rows["time"] < pd.Timestamp("2030-01-01T00:00:00Z")]
            rows.to_parquet(folders[case.site] / "observations.parquet", index=False)
    return folders


def small_gathered(folder: Path, *, patients: int = 80) -> Gathered:
    """Return small hospitals' records."""
    return read_hospitals(write_small_hospitals(folder, patients=patients))


def small_experiment(**changes: Any) -> Experiment:
    """Return an experiment of a few rounds over the small hospitals; `changes` replace whole keys."""
    return Experiment.model_validate(experiment_document() | changes)


def experiment_document() -> dict[str, Any]:
    """Return it as TOML would give it."""
    return {
        "name": "small",
        "title": "A small experiment",
        "dataset": "virtual",
        "metrics": ["auroc", "accuracy"],
        "delta": 1e-4,
        "demo_epsilon": 3.0,
        "partitions": [{"rule": "hash", "seeds": [0, 1]}],
        "methods": [
            {"method": "pooled"},
            {"method": "local"},
            {"method": "federated"},
            {"method": "private", "epsilon": 3.0},
        ],
        "study": study_document(),
    }


def study_document() -> dict[str, Any]:
    """Return a study without roster and price."""
    return {
        "name": "deterioration",
        "version": 1,
        "question": "Who deteriorates after the first day?",
        "outcome": "deteriorated",
        "participants": [{"site": site, "patients": 60, "weight": 60.0} for site in SITES],
        "cohort": {"minimum_patients": 20},
        "features": {
            "window_hours": 24.0,
            "step_hours": 24.0,
            "series": [{"signal": "heart_rate"}, {"signal": "mean_pressure"}, {"signal": "lactate"}],
            "facts": [{"signal": "age"}],
            "site_indicator": True,
        },
        "model": {"name": "logistic"},
        "training": {"rounds": 4, "learning_rate": 2.0, "minimum_sites": 2},
        "privacy": {"clip": 1.0},
        "evaluation": {"bins": 8, "low": -4.0, "high": 4.0, "rounds": [2]},
    }
