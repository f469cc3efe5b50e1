"""Score histograms, and every metric that a study reports, computed from them.

Design note: scores never leave a site. A histogram counts test patients by bin of their score, by class and by group;
one patient changes one bin of each group they belong to, so the L2 sensitivity with k overlapping groups is √k.
Bins have equal width in the logit of the score, because risks of rare events crowd near 0.
Noise leaves counts negative; after summing over sites each class is replaced by the nearest counts that are not
negative and have the same total. That is post-processing, free, and biases areas less than setting counts to 0 does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtwin_shared.study import Evaluation

Counts = npt.NDArray[np.float64]

CALIBRATION_BINS = 10  # of equal count, as Nixon et al. (CVPR workshops 2019) recommend over equal width


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a histogram says about a model; NaN where it says nothing (one class only)."""

    auroc: float
    auprc: float
    accuracy: float
    brier: float
    calibration_error: float
    event_rate: float


def bin_edges(evaluation: Evaluation) -> Counts:
    """Return the inner bin edges as scores in (0, 1): bins + 1 of them make bins + 2 bins.

    - the edges are the study's own constants, never computed from patients
    """
    logits = np.linspace(evaluation.low, evaluation.high, evaluation.bins + 1)
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)


def bin_centres(evaluation: Evaluation) -> Counts:
    """Return one representative score for each bin: the logit's midpoint; half a bin beyond the last edges."""
    width = (evaluation.high - evaluation.low) / evaluation.bins
    logits = evaluation.low + width * (np.arange(evaluation.bins + 2) - 0.5)
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)


def count_scores(scores: npt.NDArray[np.floating], outcomes: npt.NDArray[np.floating], edges: Counts) -> Counts:
    """Return counts[classes, bins] of `scores`[patients] with `outcomes`[patients] in {0, 1}."""
    bins = np.searchsorted(edges, scores, side="right")
    counts = np.zeros((2, len(edges) + 1))
    np.add.at(counts, (outcomes.astype(np.int64), bins), 1.0)
    return counts


def add_histograms(histograms: Iterable[Counts]) -> Counts:
    """Return the sum over sites."""
    return np.asarray(np.sum(np.stack([np.asarray(one, dtype=np.float64) for one in histograms]), axis=0))


def compute_metrics(counts: Counts, centres: Counts) -> Metrics:
    """Return the metrics of counts[classes, bins], scores taken as `centres`[bins].

    AUROC is the Mann-Whitney statistic with ties at one half; AUPRC is average precision (Davis, Goadrich, ICML
    2006, without interpolation); accuracy is at score 1/2; calibration error is the mean absolute difference of
    mean score and event rate over `CALIBRATION_BINS` groups of equal count, weighted by count.

    - all counts zero or one class only: the metrics that need both are NaN
    """
    negative, positive = (restore_counts(row) for row in np.asarray(counts, dtype=np.float64))
    total_negative, total_positive = float(negative.sum()), float(positive.sum())
    total = total_negative + total_positive
    if not total > 0:
        return Metrics(
            auroc=math.nan,
            auprc=math.nan,
            accuracy=math.nan,
            brier=math.nan,
            calibration_error=math.nan,
            event_rate=math.nan,
        )
    predicted = centres >= 0.5
    right = float(positive[predicted].sum() + negative[~predicted].sum())
    return Metrics(
        auroc=_area_under_roc(negative, positive),
        auprc=_average_precision(negative, positive),
        accuracy=right / total,
        brier=float((positive * (1 - centres) ** 2 + negative * centres**2).sum()) / total,
        calibration_error=_calibration_error(negative, positive, centres),
        event_rate=total_positive / total,
    )


def restore_counts(noised: Counts) -> Counts:
    """Return the counts[bins] nearest to `noised` that are not negative and have its total; zeros for a total <= 0.

    Source: Duchi, Shalev-Shwartz, Singer, Chandra (ICML 2008) figure 1, Euclidean projection onto a simplex.

    - counts that are not negative come back as they are
    """
    total = float(noised.sum())
    if not total > 0:
        return np.zeros_like(noised)
    if bool((noised >= 0).all()):
        return noised
    falling = np.sort(noised)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(falling) + 1)
    last = np.flatnonzero(falling > excess)[-1]
    return np.asarray(np.maximum(noised - excess[last], 0.0))


def _area_under_roc(negative: Counts, positive: Counts) -> float:
    pairs = float(negative.sum() * positive.sum())
    if not pairs > 0:
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum()) / pairs


def _average_precision(negative: Counts, positive: Counts) -> float:
    if not (positive.sum() > 0 and negative.sum() > 0):
        return math.nan
    found, wrong = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    named = found + wrong
    precision = np.divide(found, named, out=np.zeros_like(found), where=named > 0)
    return float((precision * positive[::-1]).sum() / positive.sum())


def _calibration_error(negative: Counts, positive: Counts, centres: Counts) -> float:
    both = negative + positive
    total = both.sum()
    # A bin belongs to the tenth of all patients in which its middle lies.
    middle = (np.cumsum(both) - both / 2) / total
    group = np.minimum((middle * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    expected = np.bincount(group, weights=both * centres, minlength=CALIBRATION_BINS)
    observed = np.bincount(group, weights=positive, minlength=CALIBRATION_BINS)
    return float(np.abs(expected - observed).sum() / total)
