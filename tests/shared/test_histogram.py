from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from fedtwin_shared.histogram import (
    add_histograms,
    bin_centres,
    bin_edges,
    compute_metrics,
    count_scores,
    restore_counts,
)
from fedtwin_shared.study import Evaluation

EVALUATION = Evaluation(noise_multiplier=1.0, bins=60, low=-6.0, high=6.0)
EDGES, CENTRES = bin_edges(EVALUATION), bin_centres(EVALUATION)


def draw(seed: int, patients: int = 400) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    outcomes = (generator.random(patients) < 0.2).astype(np.float64)
    scores = 1 / (1 + np.exp(-(generator.normal(size=patients) + 1.5 * outcomes - 2)))
    return scores, outcomes


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_metrics_of_a_fine_histogram_are_the_exact_ones(seed: int) -> None:
    scores, outcomes = draw(seed)
    metrics = compute_metrics(count_scores(scores, outcomes, EDGES), CENTRES)
    assert metrics.auroc == pytest.approx(roc_auc_score(outcomes, scores), abs=0.01)
    assert metrics.auprc == pytest.approx(average_precision_score(outcomes, scores), abs=0.04)
    assert metrics.accuracy == pytest.approx(float(np.mean((scores >= 0.5) == outcomes)), abs=1e-9)
    assert metrics.brier == pytest.approx(float(np.mean((scores - outcomes) ** 2)), abs=0.003)
    assert metrics.event_rate == pytest.approx(outcomes.mean())


def test_scores_that_are_bin_centres_give_exact_areas() -> None:
    generator = np.random.default_rng(0)
    bins = generator.integers(0, len(CENTRES), 500)
    outcomes = (generator.random(500) < CENTRES[bins]).astype(np.float64)
    metrics = compute_metrics(count_scores(CENTRES[bins], outcomes, EDGES), CENTRES)
    assert metrics.auroc == pytest.approx(roc_auc_score(outcomes, CENTRES[bins]), abs=1e-12)
    assert metrics.auprc == pytest.approx(average_precision_score(outcomes, CENTRES[bins]), abs=1e-12)
    assert metrics.brier == pytest.approx(float(np.mean((CENTRES[bins] - outcomes) ** 2)), abs=1e-12)


def test_calibration_error_sees_a_shift_and_not_a_calibrated_model() -> None:
    generator = np.random.default_rng(1)
    scores = generator.beta(1, 4, 200_000)
    outcomes = (generator.random(200_000) < scores).astype(np.float64)
    calibrated = compute_metrics(count_scores(scores, outcomes, EDGES), CENTRES)
    shifted = compute_metrics(count_scores(np.clip(scores + 0.1, 0, 1), outcomes, EDGES), CENTRES)
    assert calibrated.calibration_error < 0.006
    assert shifted.calibration_error == pytest.approx(0.1, abs=0.01)


@given(st.floats(0, 1), st.sampled_from([0.0, 1.0]), st.integers(0, 1000))
def test_one_patient_changes_one_count_by_one(score: float, outcome: float, seed: int) -> None:
    scores, outcomes = draw(seed, 20)
    without = count_scores(scores, outcomes, EDGES)
    joined = count_scores(np.append(scores, score), np.append(outcomes, outcome), EDGES)
    assert np.abs(joined - without).sum() == 1


def test_every_score_has_a_bin_whose_centre_is_near() -> None:
    assert len(CENTRES) == len(EDGES) + 1 == EVALUATION.bins + 2
    assert np.all(CENTRES[1:-1] > EDGES[:-1])
    assert np.all(CENTRES[1:-1] < EDGES[1:])
    counts = count_scores(np.array([0.0, 1.0]), np.array([0.0, 1.0]), EDGES)
    assert counts[0, 0] == 1
    assert counts[1, -1] == 1


def test_histograms_add_over_sites() -> None:
    parts = [draw(seed, 50) for seed in range(4)]
    summed = add_histograms(count_scores(*part, EDGES) for part in parts)
    scores, outcomes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert np.array_equal(summed, count_scores(scores, outcomes, EDGES))


def test_one_class_or_nobody_says_nothing() -> None:
    nobody = compute_metrics(np.zeros((2, len(CENTRES))), CENTRES)
    assert math.isnan(nobody.auroc)
    assert math.isnan(nobody.accuracy)
    only = np.zeros((2, len(CENTRES)))
    only[1, -1] = 5
    metrics = compute_metrics(only, CENTRES)
    assert math.isnan(metrics.auroc)
    assert math.isnan(metrics.auprc)
    assert metrics.accuracy == 1.0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20))
def test_restored_counts_are_the_nearest_possible_ones_of_the_same_total(noised: list[float]) -> None:
    row = np.array(noised)
    restored = restore_counts(row)
    assert (restored >= 0).all()
    if row.sum() > 0:
        assert restored.sum() == pytest.approx(row.sum(), abs=1e-9)
        # Nearest: the correction is the same for all counts that stay, and no larger for those set to zero.
        shift = row - restored
        kept = restored > 0
        assert np.ptp(shift[kept]) < 1e-9
        assert (shift[~kept] <= shift[kept].max() + 1e-9).all()
    else:
        assert not restored.any()


def test_restored_counts_are_less_biased_than_clipped_ones() -> None:
    generator = np.random.default_rng(3)
    scores, outcomes = draw(7, 4000)
    counts = count_scores(scores, outcomes, EDGES)
    exact, restored, clipped = compute_metrics(counts, CENTRES).auroc, [], []
    for _ in range(50):
        noised = counts + generator.normal(0, 4, counts.shape)
        restored.append(compute_metrics(noised, CENTRES).auroc)
        clipped.append(compute_metrics(np.clip(noised, 0, None), CENTRES).auroc)
    assert abs(np.mean(restored) - exact) < abs(np.mean(clipped) - exact)
