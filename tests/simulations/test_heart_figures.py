"""The heart experiment's figures on the real set: what the README says must stay true."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedtwin_simulations.experiment import run_experiment
from fedtwin_simulations.results import Results
from fedtwin_simulations.specification import read_experiment

FOLDER = Path(os.environ.get("FEDTWIN_DATA", "")) / "uci_heart_disease_4hospitals"

pytestmark = pytest.mark.skipif("FEDTWIN_DATA" not in os.environ, reason="FEDTWIN_DATA does not name the public sets")


@pytest.fixture(scope="module")
def results() -> Results:
    """The published split under four seeds, and four re-splits."""
    experiment = read_experiment("heart")
    fewer = tuple(part.model_copy(update={"seeds": part.seeds[:4]}) for part in experiment.partitions)
    methods = tuple(
        entry for entry in experiment.methods if entry.method != "pooled" and entry.epsilon not in (0.1, 3.0, 8.0)
    )
    return run_experiment(experiment.model_copy(update={"partitions": fewer, "methods": methods}), data=FOLDER)


def site_mean(results: Results, method: str, epsilon: float | None, metric: str = "accuracy") -> float:
    (row,) = (row for row in results.results if (row.method, row.epsilon, row.metric) == (method, epsilon, metric))
    assert row.site_mean is not None
    return row.site_mean


def test_the_majority_class_gives_what_was_computed_from_the_published_split(results: Results) -> None:
    (majority,) = (one for one in results.references if one.name.startswith("majority") and one.metric == "accuracy")
    assert majority.value == pytest.approx(0.721, abs=0.0005)


def test_federated_reaches_its_figure_and_beats_each_site_alone(results: Results) -> None:
    assert site_mean(results, "federated", None) >= 0.84
    assert site_mean(results, "federated", None) > site_mean(results, "local", None)


def test_private_figures_are_in_reach_of_four_seeds(results: Results) -> None:
    # The goals 0.82 and 0.81 are of ten seeds; over four the mean has a standard error near 0.008.
    assert site_mean(results, "private", 1.0) >= 0.81
    assert site_mean(results, "private", 0.5) >= 0.79


def test_published_figures_stand_beside_ours(results: Results) -> None:
    published = {one.name: one.value for one in results.references if one.name.startswith("published")}
    assert set(published.values()) == {0.735, 0.730, 0.685, 0.731, 0.702}
