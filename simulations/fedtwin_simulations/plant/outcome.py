"""Who deteriorates: a probability that is a stated function of the true physiology, so the best attainable is known.

risk = logistic(INTERCEPT + STRAIN · ln(1 + strain / UNIT) + AGE · (age - 65) / 10), with the oxygen strain (see
`physiology`) at the hour of decision. No sensor shows the strain: it is made of products over time of what they show.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedtwin_simulations.plant.engine import Array

INTERCEPT, STRAIN, UNIT, AGE = -6.5, 5.0, 0.1, 0.15


def compute_risk(strain: Array, age: Array) -> Array:
    """Return the probability of deterioration[patients]."""
    return np.asarray(1 / (1 + np.exp(-(INTERCEPT + STRAIN * np.log1p(strain / UNIT) + AGE * (age - 65) / 10))))


def draw_outcomes(risk: Array, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return who deteriorates[patients]."""
    return np.asarray(generator.random(len(risk)) < risk)


def attainable_auroc(risk: Array) -> float:
    """Return the expected AUROC of whoever knows the risk itself: no model can be better.

    Σ over pairs of r_i (1 - r_j) where r_i > r_j (half where equal), divided by Σ r · Σ (1 - r); i = j is no pair.

    >>> round(attainable_auroc(np.array([0.0, 1.0])), 3)
    1.0
    """
    levels, at = np.unique(risk, return_inverse=True)
    positive = np.bincount(at, weights=risk, minlength=len(levels))
    negative = np.bincount(at, weights=1 - risk, minlength=len(levels))
    below = np.cumsum(negative) - negative
    return float(np.sum(positive * (below + 0.5 * negative)) / (positive.sum() * negative.sum()))
