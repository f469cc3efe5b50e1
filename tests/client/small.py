"""Small studies, hospitals' folders and examples, for tests of the data and of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedtwin_client.cohort import Examples
from fedtwin_shared.round import histogram_shape
from fedtwin_shared.study import Study
from fedtwin_simulations.seeded_randomness import SeededRandomness

MODELS = ("logistic", "mlp", "lstm", "gru", "mingru", "tcn")
ADMITTED = "2024-03-01T08:00:00Z"
Row = Mapping[str, object]


class Seeded(SeededRandomness):
    """Streams from a seed, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed, site="north")


def small_study(**tables: Mapping[str, Any] | str) -> Study:
    """Return a study of one signal and one fact at two sites; `tables` add to, or replace values of, its tables."""
    document: dict[str, Any] = {
        "name": "small",
        "version": 1,
        "question": "Who deteriorates?",
        "outcome": "deteriorated",
        "roster": "0" * 64,
        "participants": [{"site": "north", "patients": 20}, {"site": "south", "patients": 40}],
        "cohort": {"minimum_patients": 1},
        "features": {
            "window_hours": 4.0,
            "step_hours": 1.0,
            "series": [{"signal": "heart_rate"}],
            "facts": [{"signal": "age"}],
        },
        "split": {"test_fraction": 0.0},
        "model": {"name": "logistic", "hidden": 5, "layers": 2, "kernel": 2},
        "training": {"rounds": 1, "learning_rate": 1.0, "minimum_sites": 1},
        "privacy": {"epsilon": 1e300, "delta": 1e-5, "noise_multiplier": 1.0},
        "evaluation": {"noise_multiplier": 1.0},
    }
    for name, table in tables.items():
        document[name] = {**document[name], **table} if isinstance(table, Mapping) else table
    if document["privacy"].get("mode") == "none":
        document["privacy"]["noise_multiplier"] = document["evaluation"]["noise_multiplier"] = 0.0
    return Study.model_validate(document)


def write_folder(
    folder: Path, patients: Sequence[Row], observations: Sequence[Row] | None = None, *, suffix: str = "csv"
) -> Path:
    """Write a hospital's folder, everything as text, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in (("patients", patients), ("observations", observations)):
        if rows is None:
            continue
        table = pd.DataFrame(list(rows))
        if suffix == "csv":
            table.to_csv(folder / f"{stem}.csv", index=False)
        else:
            table.to_parquet(folder / f"{stem}.parquet", index=False)
    return folder


def patient(name: str, **facts: object) -> dict[str, object]:
    """Return a row of the patients file."""
    return {"patient": name, "admitted": ADMITTED, **facts}


def observation(
    name: str, hours: float, value: object, *, signal: str = "heart_rate", unit: str = "/min", **other: object
) -> dict[str, object]:
    """Return a row of the observations file, `hours` after admission."""
    time = pd.Timestamp(ADMITTED) + pd.Timedelta(hours=hours)
    row = {"patient": name, "time": time.isoformat(), "signal": signal, "value": value, "unit": unit}
    return row | other


def make_examples(study: Study, patients: int, *, seed: int = 0, ragged: bool = True) -> Examples:
    """Return random patients of the study's shape; with `ragged`, of one window up to all."""
    generator = np.random.default_rng(seed)
    features = study.features
    shape = (patients, features.windows, features.steps, len(study.feature_names()))
    lengths = generator.integers(1, features.windows + 1, patients) if ragged else np.full(patients, features.windows)
    exists = np.arange(features.windows) < lengths[:, None]
    mask = (generator.random(shape) < 0.8) & exists[:, :, None, None]
    mask[:, 0, 0, 0] = True
    x = np.where(mask, generator.normal(size=shape), 0.0).astype(np.float32)
    groups = np.ones((patients, histogram_shape(study)[0]), bool)
    return Examples(
        x=x,
        mask=mask,
        y=(generator.random(patients) < 0.4).astype(np.float32),
        groups=groups,
        patients=tuple(f"p{row}" for row in range(patients)),
    )


def take(examples: Examples, rows: Sequence[int]) -> Examples:
    """Return the examples of some patients."""
    chosen = list(rows)
    return Examples(
        x=examples.x[chosen],
        mask=examples.mask[chosen],
        y=examples.y[chosen],
        groups=examples.groups[chosen],
        patients=tuple(examples.patients[row] for row in chosen),
    )
