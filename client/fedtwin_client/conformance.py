"""The conformance audit: does the step that trains here do what is claimed of it? No patient, no budget.

Design note: canaries are made up here and put through the production `train`; nothing of it is replaced: sampling,
clipping, grid, noise, denominators, optimiser, the operating system's randomness. A canary is a patient with four
windows whose gradient is far above the clip along a coordinate of its own: coordinates are independent copies of the
one-dimensional mechanism, and confidence limits are the plain binomial ones. Half of the canaries are left out; an
attacker who sees every step's noised sum scores each by its exact likelihood ratio. Coordinates of the absent ones are
pure noise. This module has no way to a hospital's files.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.cohort import Examples
from fedtwin_client.hospital import Train
from fedtwin_client.randomness import Randomness
from fedtwin_shared.conformance_result import Claim, ConformanceResult, Noise, Point
from fedtwin_shared.models import initialise
from fedtwin_shared.study import Study

CLIP: Final = 3.0  # not 1: a forgotten factor must show
WINDOWS: Final = 4  # of a canary: clipping each record instead of each patient must show
TIMES_CLIP: Final = 1000.0  # length of a canary's gradient ÷ clip
QUANTILES: Final = (0.5, 0.9, 0.99)  # of absent canaries' scores: where the thresholds are
PRICELESS: Final = 1e5  # a study computes its price, in seconds for little noise; canaries pay none
MOST_STEPS: Final = 100  # of a plan that are run; the claim is then of so many
STANDARD: Final = Claim(sampling_rate=0.05, noise_multiplier=0.8, steps=MOST_STEPS, delta=1e-5)  # where no study is

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """canaries: of one run. runs: how many, each with other canaries."""

    canaries: int = 1000
    runs: int = 6


def claim_of(study: Study) -> Claim:
    """Return what the study says of its training step. Raises `ValueError` for one without privacy."""
    if study.privacy.mode == "none":
        raise ValueError("expected a study with privacy: one without makes no claim")
    return Claim(
        sampling_rate=study.privacy.sampling_rate,
        noise_multiplier=study.privacy.noise_multiplier,
        steps=max(2, min(study.planned_steps, MOST_STEPS)),
        delta=study.privacy.delta,
    )


def audit_step(
    claim: Claim, *, train: Train, randomness: Randomness, effort: Effort, site: str, engine: str, day: dt.date
) -> ConformanceResult:
    """Return what canaries show of `train` under the claim. Nothing of a hospital is read or charged."""
    runs = [_run(claim, train, randomness, effort.canaries) for _ in range(effort.runs)]
    present = np.concatenate([one.present for one in runs])
    scores = np.concatenate([one.scores for one in runs])
    noise = np.concatenate([one.released[:, ~one.present] for one in runs], axis=1) / claim.noise_multiplier
    lag = float(np.mean(noise[1:] * noise[:-1]) / max(noise.var(), 1e-12))
    return ConformanceResult(
        site=site,
        day=day.isoformat(),
        engine=engine,
        versions={name: importlib.metadata.version(name) for name in ("fedtwin", "torch", "numpy", "cryptography")},
        claim=claim,
        points=_points(scores, present),
        noise=Noise(numbers=noise[1:].size, variance=float(np.mean(noise**2)), lag=max(-1.0, min(1.0, lag))),
    )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Run:
    """released: [steps, canaries], in clips. present: bool[canaries]. scores: [canaries], log-likelihood ratios."""

    released: Floats
    present: npt.NDArray[np.bool_]
    scores: Floats


def _run(claim: Claim, train: Train, randomness: Randomness, canaries: int) -> _Run:
    study = make_canary_study(claim, canaries=canaries)
    present = randomness.stream("canaries").choices(canaries, rate=0.5)
    examples, start = _examples(present), initialise(study)
    participant = study.participants[0]
    rows = []
    for _ in range(claim.steps):
        end = train(study, participant, start, examples, randomness)["weight"].astype(np.float64)
        # The step was -(noised sum) / (rate · patients) from zero; a canary's gradient is negative.
        rows.append(end * claim.sampling_rate * participant.patients / CLIP)
    released = np.array(rows)
    q, variance = claim.sampling_rate, claim.noise_multiplier**2
    # log of (1 - q) + q · N(1, σ²) / N(0, σ²) at what was released
    shifted = np.minimum((2 * released - 1) / (2 * variance), 50.0)
    return _Run(released=released, present=present, scores=np.log1p(q * np.expm1(shifted)).sum(axis=0))


def _points(scores: Floats, present: npt.NDArray[np.bool_]) -> tuple[Point, ...]:
    """Thresholds come from every other canary, counts from the rest: a threshold must not know what it counts."""
    even = np.arange(len(scores)) % 2 == 0
    thresholds = np.quantile(scores[even & ~present], QUANTILES)
    absent, there = scores[~even & ~present], scores[~even & present]
    return tuple(
        Point(
            false_positives=int((absent > threshold).sum()),
            absent=len(absent),
            true_positives=int((there > threshold).sum()),
            present=len(there),
        )
        for threshold in thresholds
    )


def make_canary_study(claim: Claim, *, canaries: int) -> Study:
    """Return logistic regression with a coordinate for each canary; a step of rate 1 from zero is the noised sum."""
    study = Study.model_validate(
        {
            "name": "conformance",
            "version": 1,
            "question": "Does the step do what is claimed of it?",
            "outcome": "deteriorated",
            "roster": "0" * 64,
            "participants": [{"site": "canaries", "patients": canaries}],
            "cohort": {"minimum_patients": 1},
            "features": {
                "window_hours": float(canaries),
                "windows": WINDOWS,
                "step_hours": 1.0,
                "series": [{"signal": "heart_rate"}],
            },
            "model": {"name": "logistic"},
            "training": {"rounds": 1, "learning_rate": 1.0, "minimum_sites": 1},
            "privacy": {
                "epsilon": 1.0,
                "delta": claim.delta,
                "sampling_rate": claim.sampling_rate,
                "clip": CLIP,
                "noise_multiplier": PRICELESS,
            },
            "evaluation": {"noise_multiplier": PRICELESS},
        }
    )
    privacy = study.privacy.model_copy(update={"noise_multiplier": claim.noise_multiplier})
    return study.model_copy(update={"privacy": privacy})


def _examples(present: npt.NDArray[np.bool_]) -> Examples:
    """The present canaries. At weights of zero the residual is 1/2; the gradient of the bias is lost in theirs."""
    rows = np.flatnonzero(present)
    x = np.zeros((len(rows), WINDOWS, len(present), 1), np.float32)
    x[np.arange(len(rows)), :, rows, 0] = 2 * TIMES_CLIP * CLIP
    return Examples(
        x=x,
        mask=np.ones(x.shape, bool),
        y=np.ones(len(rows), np.float32),
        groups=np.ones((len(rows), 1), bool),
    )
