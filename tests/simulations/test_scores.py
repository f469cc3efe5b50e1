"""Exact metrics against scikit-learn, and the bootstrap against a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score

from fedtwin_simulations.scores import (
    Scored,
    bootstrap_interval,
    choose_threshold,
    majority_accuracy,
    measure,
    measure_event,
    pool,
)

pairs = st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.booleans()), min_size=2, max_size=60)


def scored(rows: list[tuple[float, bool]]) -> Scored:
    return Scored(
        patients=tuple(f"p{index}" for index in range(len(rows))),
        scores=np.array([score for score, _ in rows]),
        outcomes=np.array([float(outcome) for _, outcome in rows]),
    )


@given(pairs)
def test_metrics_are_those_of_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    ours, scores, outcomes = measure(scored(rows)), [row[0] for row in rows], [row[1] for row in rows]
    assert ours.accuracy == pytest.approx(accuracy_score(outcomes, [score >= 0.5 for score in scores]))
    assert ours.brier == pytest.approx(brier_score_loss(outcomes, scores, pos_label=True))
    if len(set(outcomes)) == 1:
        assert math.isnan(ours.auroc)
    else:
        assert ours.auroc == pytest.approx(roc_auc_score(outcomes, scores))
        assert ours.auprc == pytest.approx(average_precision_score(outcomes, scores))


@given(pairs.filter(lambda rows: any(outcome for _, outcome in rows)))
def test_no_threshold_is_better_than_the_chosen_one(rows: list[tuple[float, bool]]) -> None:
    every = [measure_event(scored(rows), score) for score, _ in rows]
    assert measure_event(scored(rows), choose_threshold(scored(rows))) == pytest.approx(max(every))


def test_event_by_hand() -> None:
    # Four called, two of the three positives among them: sensitivity 2/3, precision 1/2.
    rows = scored([(0.9, True), (0.8, False), (0.7, True), (0.6, False), (0.2, True), (0.1, False)])
    assert measure_event(rows, 0.6) == pytest.approx(1 / 2)
    assert measure_event(rows, 0.95) == 0.0
    assert math.isnan(measure_event(scored([(0.2, False), (0.9, False)]), 0.5))


def test_majority_is_taken_from_the_training_patients() -> None:
    train, test = scored([(0.5, True), (0.5, True), (0.5, False)]), scored([(0.5, True)] + 3 * [(0.5, False)])
    assert majority_accuracy(train, test) == 0.25


def test_pooling_keeps_everybody() -> None:
    both = pool([scored([(0.1, False), (0.9, True)]), scored([(0.3, True)])])
    assert len(both.patients) == 3
    assert both.outcomes.sum() == 2
    assert len(pool([]).scores) == 0


def test_bootstrap_of_a_mean_is_the_textbook_interval() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    low, high = bootstrap_interval(lambda rows: float(values[rows].mean()), 400, generator=np.random.default_rng(1))
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert low < values.mean() < high


def test_records_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        Scored(patients=("a",), scores=np.zeros(2), outcomes=np.zeros(2))
