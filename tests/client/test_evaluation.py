"""Score histograms: metrics against the exact ones, one score per patient, and noise for k overlapping groups."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from fedtwin_client.cohort import Examples, form_cohort
from fedtwin_client.evaluation import release_histogram, score
from fedtwin_client.reader import read_hospital
from fedtwin_shared.histogram import bin_centres, compute_metrics
from fedtwin_shared.models import initialise
from fedtwin_shared.round import HISTOGRAM, histogram_shape
from fedtwin_shared.signal import CATEGORIES
from fedtwin_shared.study import Study
from tests.client.small import MODELS, Seeded, make_examples, patient, small_study, take, write_folder


def logistic(weight: float = 1.0, *, mode: str = "none", subgroups: tuple[str, ...] = (), bins: int = 200) -> Study:
    return small_study(
        features={"windows": 2},
        privacy={"mode": mode},
        evaluation={"subgroups": subgroups, "bins": bins, "low": -8.0, "high": 8.0, "noise_multiplier": 3.0},
    )


def weights(study: Study, scale: float = 1.0) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    generator = np.random.default_rng(5)
    return {
        name: (scale * generator.normal(size=array.shape)).astype(np.float32)
        for name, array in initialise(study).items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_metrics_from_the_histogram_are_the_exact_ones(seed: int) -> None:
    study = logistic()
    examples = make_examples(study, 800, seed=seed)
    parameters = weights(study)
    exact = score(study, parameters, examples)
    examples.y[:] = np.random.default_rng(seed).random(800) < exact
    (counts,) = release_histogram(study, parameters, examples, Seeded())[HISTOGRAM]
    found = compute_metrics(counts.astype(np.float64), bin_centres(study.evaluation))
    assert found.auroc == pytest.approx(roc_auc_score(examples.y, exact), abs=2e-3)
    assert found.auprc == pytest.approx(average_precision_score(examples.y, exact), abs=1e-2)
    assert found.brier == pytest.approx(brier_score_loss(examples.y, exact), abs=2e-3)
    assert found.accuracy == pytest.approx(np.mean((exact >= 0.5) == examples.y), abs=1e-9)
    assert found.event_rate == pytest.approx(examples.y.mean())
    order = np.array_split(np.argsort(exact, kind="stable"), 10)
    error = sum(len(ten) * abs(exact[ten].mean() - examples.y[ten].mean()) for ten in order) / len(exact)
    assert found.calibration_error == pytest.approx(error, abs=1.5e-2)


@pytest.mark.parametrize("name", MODELS)
def test_one_score_per_patient(name: str) -> None:
    study = small_study(features={"windows": 3}, model={"name": name}, privacy={"mode": "none"})
    examples = make_examples(study, 17)
    found = score(study, initialise(study), examples)
    assert found.shape == (17,)
    assert found.dtype == np.float32
    assert ((found > 0) & (found < 1)).all()
    counts = release_histogram(study, initialise(study), examples, Seeded())[HISTOGRAM]
    assert counts.sum() == 17


def test_scores_do_not_depend_on_how_patients_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    study = logistic()
    examples = make_examples(study, 11)
    whole = score(study, weights(study), examples)
    monkeypatch.setattr("fedtwin_client.evaluation.TILE_SLOTS", 3)
    assert score(study, weights(study), examples) == pytest.approx(whole, abs=1e-6)
    assert score(study, weights(study), take(examples, [])).shape == (0,)


def subgroup_examples(folder: Path, study: Study) -> Examples:
    rows = [
        patient(f"p{row:02d}", age=40 + row, sex=("male", "female", "")[row % 3], deteriorated=row % 2)
        for row in range(30)
    ]
    records = read_hospital(write_folder(folder, rows))
    return form_cohort(records, study, "north").train


def test_a_score_does_not_depend_on_how_many_others_there_are() -> None:
    # One value in each step makes these four statistics equal; weights that cancel leave nothing but rounding.
    study = small_study(features={"series": [{"signal": "heart_rate", "statistics": ["mean", "min", "max", "first"]}]})
    examples = make_examples(study, 90)
    examples.x[:] = examples.x[..., :1]
    generator = np.random.default_rng(2)
    weight = generator.normal(scale=1e5, size=(study.features.steps, examples.x.shape[3])).astype(np.float32)
    weight[:, -1] = -weight[:, :-1].astype(np.float64).sum(axis=1)
    parameters = {"weight": weight.reshape(-1), "bias": np.zeros(1, np.float32)}
    everybody = score(study, parameters, examples)
    assert len(np.unique(everybody)) > 5
    for others in range(1, len(examples)):
        rows = list(range(len(examples) - others, len(examples)))
        assert np.array_equal(score(study, parameters, take(examples, rows)), everybody[rows])


def test_groups_are_counted_in_the_declared_order(tmp_path: Path) -> None:
    study = logistic(subgroups=("sex",))
    examples = subgroup_examples(tmp_path, study)
    counts = release_histogram(study, weights(study), examples, Seeded())[HISTOGRAM]
    assert counts.shape == histogram_shape(study) == (1 + len(CATEGORIES["sex"].levels), 2, study.evaluation.bins + 2)
    assert counts.dtype == np.float32
    male = CATEGORIES["sex"].levels.index("male")
    everybody, men = counts[0], counts[1 + male]
    assert (everybody.sum(), men.sum()) == (30, 10)
    assert everybody.sum(axis=1).tolist() == [15, 15]
    only_men = take(examples, [row for row in range(30) if examples.groups[row, 1 + male]])
    assert np.array_equal(release_histogram(study, weights(study), only_men, Seeded())[HISTOGRAM][0], men)


@settings(max_examples=20, deadline=None)
@given(left_out=st.integers(0, 29))
def test_one_patient_changes_at_most_k_counts_each_by_one(
    tmp_path_factory: pytest.TempPathFactory, left_out: int
) -> None:
    study = logistic(subgroups=("sex", "exercise_angina"))
    examples = subgroup_examples(tmp_path_factory.mktemp("k"), study)
    others = take(examples, [row for row in range(30) if row != left_out])
    moved = (
        release_histogram(study, weights(study), examples, Seeded())[HISTOGRAM]
        - release_histogram(study, weights(study), others, Seeded())[HISTOGRAM]
    )
    assert set(np.unique(moved)) <= {0.0, 1.0}
    assert 1 <= moved.sum() <= 3
    assert np.linalg.norm(moved) <= math.sqrt(3)


@pytest.mark.parametrize(("subgroups", "k"), [((), 1), (("sex",), 2), (("sex", "exercise_angina", "chest_pain"), 4)])
def test_the_noise_is_that_of_k_overlapping_groups(subgroups: tuple[str, ...], k: int) -> None:
    study = logistic(mode="local", subgroups=subgroups, bins=1000)
    parameters, examples = weights(study), make_examples(study, 5)
    silent = logistic(subgroups=subgroups, bins=1000)
    exact = release_histogram(silent, parameters, examples, Seeded())[HISTOGRAM]
    noise = (release_histogram(study, parameters, examples, Seeded(1))[HISTOGRAM] - exact).ravel() / math.sqrt(k)
    count = len(noise)
    assert noise.mean() == pytest.approx(0, abs=3.0 * 5 / math.sqrt(count))
    assert noise.std() == pytest.approx(3.0, rel=5 / math.sqrt(2 * count))
    again = release_histogram(study, parameters, examples, Seeded(2))[HISTOGRAM]
    assert abs(np.corrcoef(noise, (again - exact).ravel())[0, 1]) < 5 / math.sqrt(count)


def test_a_private_histogram_without_noise_is_refused() -> None:
    study = logistic(mode="local")
    silent = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"noise_multiplier": 0.0})})
    with pytest.raises(ValueError, match="noise_multiplier"):
        release_histogram(silent, weights(study), make_examples(study, 3), Seeded())


def test_a_score_that_is_not_a_number_is_counted_once_and_stops_nothing() -> None:
    study = logistic()
    examples = make_examples(study, 6)
    examples.x[2] = np.nan
    counts = release_histogram(study, weights(study), examples, Seeded())[HISTOGRAM]
    assert counts.sum() == 6


def test_groups_of_another_study_are_refused() -> None:
    with pytest.raises(ValueError, match="expected groups"):
        release_histogram(logistic(subgroups=("sex",)), weights(logistic()), make_examples(logistic(), 3), Seeded())
