"""How well a model does here, in the only form that leaves: noised counts of scores."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import build_network
from fedtwin_client.randomness import Randomness
from fedtwin_client.training.batch import as_batch
from fedtwin_shared.histogram import bin_edges, count_scores
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import HISTOGRAM, histogram_shape
from fedtwin_shared.study import Study

TILE_PATIENTS = 256  # scored at once, always as many: a performance knob


def score(study: Study, parameters: Parameters, examples: Examples) -> npt.NDArray[np.float32]:
    """Return f32[patients], one risk per patient over all of the patient's windows; it stays at the hospital.

    Raises `VerificationError` when the parameters do not fit the study.

    - a patient's score does not depend on how many others there are, not even in its last bit
    """
    torch.set_num_threads(1)
    network = build_network(study, parameters).eval()
    with torch.no_grad():
        tiles = as_batch(examples).tiles(TILE_PATIENTS)
        parts = [torch.sigmoid(network(tile.x, tile.mask))[:patients] for tile, patients in tiles]
    return torch.cat(parts).numpy()


def release_histogram(
    study: Study, parameters: Parameters, examples: Examples, randomness: Randomness
) -> dict[str, npt.NDArray[np.float32]]:
    """Return {"histogram": f32[groups, classes, bins]}: counts of scores by group and class, with Gaussian noise.

    A patient is in "everybody" and in at most one level of each subgroup category, so k = 1 + categories groups
    overlap and the L2 sensitivity to one patient is √k; the noise has sd noise_multiplier · √k on every count.

    - one patient changes at most k counts, each by one
    - without noise only under privacy mode `none`
    """
    shape = histogram_shape(study)
    if examples.groups.shape != (len(examples), shape[0]):
        raise ValueError(f"expected groups [{len(examples)}, {shape[0]}], found {examples.groups.shape}")
    scores, edges = score(study, parameters, examples), bin_edges(study.evaluation)
    counts = np.stack([count_scores(scores[group], examples.y[group], edges) for group in examples.groups.T])
    if study.privacy.mode != "none":
        counts += _noise(study, shape, randomness)
    return {HISTOGRAM: counts.astype(np.float32)}


def _noise(study: Study, shape: tuple[int, int, int], randomness: Randomness) -> npt.NDArray[np.float64]:
    multiplier = study.evaluation.noise_multiplier
    if not 0 < multiplier < math.inf:
        raise ValueError(f"expected 0 < noise_multiplier < ∞, found {multiplier}")
    sd = multiplier * math.sqrt(1 + len(study.evaluation.subgroups))
    return torch.normal(0.0, sd, shape, generator=randomness.generator(), dtype=torch.float64).numpy()
