"""Private descent of logistic regression in matrix products: what `ablation` varies, product or not.

Design note: a patient's gradient of logistic regression is a number times the patient's input, so a whole study is a
few matrix products and hundreds of them can be run; a test shows that the plain recipe is what the protocol trains.
Noise is drawn by numpy from a seed: simulations only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedtwin_client.cohort import Examples
from fedtwin_client.discrete_laplace import release_counts
from fedtwin_shared.ledger.mechanism import DiscreteLaplace
from fedtwin_simulations.seeded_randomness import SeededStream
from fedtwin_simulations.specification import calibrated_noise

Array = npt.NDArray[np.float64]

MOMENTUM: Final = 0.9
ADAM: Final = (0.9, 0.99, 1e-3)  # β₁, β₂ and τ of Reddi et al. (ICLR 2021), algorithm 2; τ as in its section 5
DECAY: Final = 0.9  # of the exponential average, per round
QUANTILE, QUANTILE_SHARE = 0.5, 0.05  # of the norms that the clip is; of ε that finding it costs
NORM_EDGES: Final = np.geomspace(0.1, 20.0, 24)  # public edges of the norms' histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One line: how a study is trained.

    schedule: ln of the last round's noise ÷ the first's; the total is the accountant's whatever it is.
    clip: a number; `rule`, half the root of the number of inputs, which needs no data; `quantile`, a charged one.
    start: zeros, or what was trained on virtual patients, of whom no site ever knew.
    """

    name: str
    rounds: int
    learning_rate: float
    weight_decay: float
    clip: float | Literal["rule", "quantile"]
    sampling_rate: float = 1.0
    momentum: float = 0.0
    adam: bool = False
    average: Literal["tail", "exponential", "last"] = "tail"
    schedule: float = 0.0
    start: Literal["zeros", "virtual"] = "zeros"
    noise: Literal["local", "distributed"] = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One hospital's patients: x[patients, inputs + 1], the last column being 1 for the intercept; y[patients]."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array
    test_patients: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The plan's constants, shared by all lines. weights, patients[sites]; start[inputs + 1]: of virtual patients."""

    epsilon: float
    delta: float
    patients: Array
    weights: Array
    positive_weight: float
    start: Array


def train(sites: Sequence[Site], recipe: Recipe, problem: Problem, *, seed: Sequence[int]) -> Array:
    """Return the released weights[inputs + 1] of one private study.

    - with noise of zero it is what the protocol trains
    """
    generator = np.random.default_rng([*seed])
    clip, charged = _choose_clip(sites, recipe, problem, seed)
    # The packaged clip and step belong together: a step is as long as the clip lets it.
    base = recipe.clip if isinstance(recipe.clip, float) else clip
    rate = recipe.learning_rate * (1.0 if recipe.adam else base / clip)
    levels = noise_levels(recipe, epsilon=problem.epsilon - charged, delta=problem.delta)
    shared = recipe.noise == "distributed"
    share = 1 / math.sqrt(len(sites)) if shared else 1.0
    weighed = problem.patients if shared else problem.weights  # a shared sum counts every patient alike
    scale = weighed / weighed.sum() / (recipe.sampling_rate * problem.patients)
    weights = problem.start.copy() if recipe.start == "virtual" else np.zeros_like(problem.start)
    velocity, squares, total, mass = np.zeros((4, len(weights)))
    for turn, level in enumerate(levels):
        slope = np.zeros_like(weights)
        for site, factor in zip(sites, scale, strict=True):
            noise = share * level * clip * generator.standard_normal(len(weights))
            slope += factor * (_clipped_sum(site, weights, clip, recipe, problem, generator) + noise)
        slope[:-1] += recipe.weight_decay * weights[:-1]
        if recipe.adam:
            first, second, floor = ADAM
            velocity = first * velocity + (1 - first) * slope
            squares = second * squares + (1 - second) * slope**2
            weights = weights - rate * velocity / (np.sqrt(squares) + floor)
        else:
            velocity = recipe.momentum * velocity + slope
            weights = weights - rate * velocity
        keep = _average_weight(recipe, turn)
        total, mass = (1 - keep) * total + keep * weights, (1 - keep) * mass + keep
    return total / mass


def _average_weight(recipe: Recipe, turn: int) -> float:
    """Return the weight of this round's model in the running mean of models."""
    if recipe.average == "last":
        return 1.0
    if recipe.average == "exponential":
        return 1 - DECAY
    first = recipe.rounds // 2
    return 1 / (turn - first + 1) if turn >= first else 1.0


def noise_levels(recipe: Recipe, *, epsilon: float, delta: float) -> Array:
    """Return every round's noise multiplier: all of them together cost ε.

    - unsampled Gaussians compose as Σ 1/σ² (Dong, Roth, Su, JRSS B 2022, corollary 3.3), so a schedule keeps that sum
    """
    if recipe.schedule != 0 and recipe.sampling_rate != 1:
        raise ValueError("expected sampling_rate 1 with a schedule: the sum of 1/σ² is no price of a sampled mechanism")
    flat = calibrated_noise(recipe.rounds, recipe.sampling_rate, epsilon, delta)
    shape = np.exp(recipe.schedule * np.arange(recipe.rounds) / max(recipe.rounds - 1, 1))
    return np.asarray(flat * shape * math.sqrt(float(np.mean(shape**-2.0))))


def _clipped_sum(
    site: Site, weights: Array, clip: float, recipe: Recipe, problem: Problem, generator: np.random.Generator
) -> Array:
    x, y = site.x, site.y
    if recipe.sampling_rate < 1:
        drawn = generator.random(len(y)) < recipe.sampling_rate
        x, y = x[drawn], y[drawn]
    chance = 1 / (1 + np.exp(-(x @ weights)))
    slope = chance * (1 + (problem.positive_weight - 1) * y) - problem.positive_weight * y
    norm = np.abs(slope) * np.sqrt(np.einsum("ij,ij->i", x, x))
    return np.asarray((slope * np.minimum(1.0, clip / np.maximum(norm, 1e-300))) @ x)


def _choose_clip(sites: Sequence[Site], recipe: Recipe, problem: Problem, seed: Sequence[int]) -> tuple[float, float]:
    """Return the clip and the ε that was spent on it."""
    if recipe.clip == "rule":
        return math.sqrt(len(problem.start)) / 2, 0.0
    if recipe.clip != "quantile":
        return float(recipe.clip), 0.0
    # Each site counts its patients by the norm of their first gradient; a patient is in one count.
    charged = QUANTILE_SHARE * problem.epsilon
    mechanism = DiscreteLaplace(scale=Decimal(f"{1 / charged:.6f}"))
    total = np.zeros(len(NORM_EDGES) + 1, np.int64)
    for number, site in enumerate(sites):
        norms = np.abs(0.5 - site.y) * np.linalg.norm(site.x, axis=1)
        counts = np.bincount(np.searchsorted(NORM_EDGES, norms), minlength=len(total)).astype(np.int64)
        key = hashlib.sha256(f"clip {list(seed)} {number}".encode()).digest()
        total += release_counts(counts, mechanism, SeededStream(key))
    share = np.maximum(total, 0).cumsum() / max(int(np.maximum(total, 0).sum()), 1)
    return float(NORM_EDGES[min(int(np.searchsorted(share, QUANTILE)), len(NORM_EDGES) - 1)]), charged


def as_inputs(examples: Examples) -> tuple[Array, Array]:
    """Return x[patients, time · features + 1] and y[patients]."""
    flat = examples.x.reshape(len(examples.y), -1).astype(np.float64)
    return np.hstack([flat, np.ones((len(flat), 1))]), examples.y.astype(np.float64)
