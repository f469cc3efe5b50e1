"""Whether a model still meets the patients it was made for: how its scores moved, and whether its risks come true.

Sources:
    population stability index, and 0.1 and 0.25 as its levels   Siddiqi 2006, Credit Risk Scorecards, ch. 9
    z of calibration                                             Spiegelhalter 1986, Stat Med 5:421
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SHIFTED, MOVED = 0.1, 0.25
EDGES: Final = tuple(round(0.1 * edge, 1) for edge in range(11))
FLOOR: Final = 0.5  # of a count: an empty bin is rare, not impossible
DOUBT: Final = 3.0  # standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """stability: index of the scores' distribution. calibration: observed ÷ expected outcomes; z: its surprise."""

    stability: float
    calibration: float
    z: float

    @property
    def words(self) -> str:
        """What a person should know."""
        found = []
        if not self.stability < MOVED:
            found.append(f"scores have moved (index {self.stability:.2f})")
        elif not self.stability < SHIFTED:
            found.append(f"scores are shifting (index {self.stability:.2f})")
        if abs(self.z) > DOUBT:
            found.append(f"{self.calibration:.2f} outcomes for each that is expected ({self.z:+.1f} sd)")
        return "; ".join(found) or "as it was made"


def count_scores(risk: npt.ArrayLike) -> tuple[int, ...]:
    """Return how many risks lie in each tenth."""
    counts, _ = np.histogram(np.asarray(risk, np.float64), bins=EDGES)
    return tuple(int(count) for count in counts)


def index_stability(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the population stability index of two sets of counts by the same bins.

    >>> index_stability((10, 20), (10, 20))
    0.0
    """
    if len(before) != len(after) or sum(before) <= 0 or sum(after) <= 0:
        raise ValueError("expected two sets of counts by the same bins, neither empty")
    one, other = (np.maximum(np.asarray(counts, np.float64), FLOOR) for counts in (before, after))
    one, other = one / one.sum(), other / other.sum()
    return float(np.sum((other - one) * np.log(other / one)))


def measure_drift(risk: npt.ArrayLike, outcome: npt.ArrayLike, *, before: Sequence[int]) -> Drift:
    """Return the drift of risks[patients], whose outcomes[patients] are known, 0 or 1, from the counts of before."""
    p, o = np.asarray(risk, np.float64), np.asarray(outcome, np.float64)
    if p.shape != o.shape or not ((p >= 0) & (p <= 1)).all() or not np.isin(o, (0, 1)).all():
        raise ValueError("expected a risk from 0 to 1 and an outcome of 0 or 1 of each patient")
    variance = float(np.sum((1 - 2 * p) ** 2 * p * (1 - p)))
    z = float(np.sum((o - p) * (1 - 2 * p))) / math.sqrt(variance) if variance > 0 else 0.0
    expected = float(p.sum())
    return Drift(
        stability=index_stability(before, count_scores(p)),
        calibration=float(o.sum()) / expected if expected > 0 else math.inf,
        z=z,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """What would change if the shadow were at work. agree: share of patients on the same side of the level."""

    patients: int
    agree: float
    newly_above: int
    newly_below: int
    mean_change: float


def compare_shadow(at_work: npt.ArrayLike, shadow: npt.ArrayLike, *, level: float) -> ShadowReport:
    """Return how the shadow's risks[patients] differ from those at work on the same patients, at an alert's level."""
    now, then = np.asarray(at_work, np.float64), np.asarray(shadow, np.float64)
    if now.shape != then.shape or len(now) == 0:
        raise ValueError("expected risks of the same patients, at least one")
    up, down = (then > level) & ~(now > level), (now > level) & ~(then > level)
    return ShadowReport(
        patients=len(now),
        agree=float(1 - np.mean(up | down)),
        newly_above=int(up.sum()),
        newly_below=int(down.sum()),
        mean_change=float(np.mean(then - now)),
    )
