"""Exact metrics of held-out scores. They exist in simulations only: a real hospital's scores never leave it.

Design note: the same formulas as for histograms (`fedtwin_shared.histogram`), with every distinct score as a bin of its
own, so that an exact figure and its noised neighbour differ by binning and noise and by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtwin_shared.histogram import Metrics, compute_metrics

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Scores[patients] in (0, 1), outcomes[patients] in {0, 1} and who they belong to."""

    patients: tuple[str, ...]
    scores: Array
    outcomes: Array

    def __post_init__(self) -> None:
        if not len(self.patients) == len(self.scores) == len(self.outcomes):
            raise ValueError("expected one patient, score and outcome each")


def pool(parts: Sequence[Scored]) -> Scored:
    """Return everybody's scores in one record."""
    return Scored(
        patients=tuple(patient for part in parts for patient in part.patients),
        scores=np.concatenate([part.scores for part in parts]) if parts else np.empty(0),
        outcomes=np.concatenate([part.outcomes for part in parts]) if parts else np.empty(0),
    )


def measure(scored: Scored) -> Metrics:
    """Return the exact metrics; NaN where one class only is present."""
    centres, bins = np.unique(scored.scores, return_inverse=True)
    counts = np.zeros((2, len(centres)))
    np.add.at(counts, (scored.outcomes.astype(np.int64), bins), 1.0)
    return compute_metrics(counts, centres)


def choose_threshold(scored: Scored) -> float:
    """Return the score at which min(sensitivity, precision) is largest, on the patients given."""
    order = np.argsort(-scored.scores, kind="stable")
    scores, found = scored.scores[order], np.cumsum(scored.outcomes[order])
    last_of_tie = np.append(scores[1:] != scores[:-1], True)
    named = np.arange(1, len(scores) + 1)
    reached = np.minimum(found / max(found[-1], 1), found / named)
    return float(scores[last_of_tie][np.argmax(reached[last_of_tie])])


def measure_event(scored: Scored, threshold: float) -> float:
    """Return min(sensitivity, precision) at `threshold`: Event 1 of the PhysioNet Challenge 2012 (Silva 2012)."""
    named = scored.scores >= threshold
    hits = float(scored.outcomes[named].sum())
    positives, calls = float(scored.outcomes.sum()), int(named.sum())
    if not positives > 0:
        return math.nan
    return min(hits / positives, hits / calls if calls else 0.0)


def majority_accuracy(train: Scored, test: Scored) -> float:
    """Return the test accuracy of always naming the training patients' more frequent class."""
    common = float(train.outcomes.mean() >= 0.5) if len(train.outcomes) else 0.0
    return float((test.outcomes == common).mean())


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    patients: int,
    *,
    generator: np.random.Generator,
    repeats: int = 2000,
) -> tuple[float, float]:
    """Return the 95 % percentile interval of `statistic`(rows drawn with replacement) (Efron 1979, Ann Stat 7:1).

    - a statistic of two models on the same rows gives a paired interval
    - draws on which the statistic is NaN (one class only) are left out
    """
    drawn = [statistic(generator.integers(0, patients, patients)) for _ in range(repeats)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)
