"""How well a model does here, in the only form that leaves: noised counts of scores.

Design note: counts are integers and so is their noise, a rounded Gaussian, which gives away no more than the Gaussian
itself (`training.grid`); floating-point noise would prove counts by its last bits. A patient's score must not move
another's across the edge of a bin, so for a release every patient is scored in a slot drawn for that patient alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import build_network
from fedtwin_client.randomness import KeyStream, Randomness
from fedtwin_client.training.batch import Slots, as_batch
from fedtwin_client.training.grid import draw_noise
from fedtwin_client.training.sampling import draw_slots, fill_slots
from fedtwin_shared.histogram import bin_edges, count_scores
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import HISTOGRAM, histogram_shape
from fedtwin_shared.study import Study

TILE_SLOTS = 64  # scored at once, always as many: a performance knob


def score(
    study: Study, parameters: Parameters, examples: Examples, *, slots: Slots | None = None
) -> npt.NDArray[np.float32]:
    """Return f32[patients], one risk per patient over all of the patient's windows; it stays at the hospital.

    slots: of each patient, below `TILE_SLOTS`; one after the other unless given.

    Raises `VerificationError` when the parameters do not fit the study.

    - a patient's score in a slot does not depend on the others, not even in its last bit
    """
    torch.set_num_threads(1)
    network = build_network(study, parameters).eval()
    everybody = as_batch(examples)
    if slots is None:
        slots = fill_slots(len(everybody), size=TILE_SLOTS)
    found = torch.zeros(len(everybody))
    with torch.no_grad():
        for tile, patients in everybody.tiles(slots, size=TILE_SLOTS):
            filled = patients >= 0
            found[patients[filled]] = torch.sigmoid(network(tile.x, tile.mask))[filled]
    return found.numpy()


def release_histogram(
    study: Study, parameters: Parameters, examples: Examples, randomness: Randomness
) -> dict[str, npt.NDArray[np.float32]]:
    """Return {"histogram": f32[groups, classes, bins]}: counts of scores by group and class, with integer noise.

    A patient is in "everybody" and in at most one level of each subgroup category, so k = 1 + categories groups
    overlap and the L2 sensitivity to one patient is √k; the noise is a Gaussian of sd noise_multiplier · √k, rounded.

    - one patient changes at most k counts, each by one
    - without noise only under privacy mode `none`
    """
    shape = histogram_shape(study)
    if examples.groups.shape != (len(examples), shape[0]):
        raise ValueError(f"expected groups [{len(examples)}, {shape[0]}], found {examples.groups.shape}")
    stream = randomness.stream("evaluate")
    slots = draw_slots(len(examples), size=TILE_SLOTS, stream=stream)
    scores, edges = score(study, parameters, examples, slots=slots), bin_edges(study.evaluation)
    counts = np.stack([count_scores(scores[group], examples.y[group], edges) for group in examples.groups.T])
    if study.privacy.mode != "none":
        counts += _draw_noise(study, shape, stream)
    return {HISTOGRAM: counts.astype(np.float32)}


def _draw_noise(study: Study, shape: tuple[int, int, int], stream: KeyStream) -> npt.NDArray[np.int64]:
    multiplier = study.evaluation.noise_multiplier
    if not 0 < multiplier < math.inf:
        raise ValueError(f"expected 0 < noise_multiplier < ∞, found {multiplier}")
    deviation = multiplier * math.sqrt(1 + len(study.evaluation.subgroups))
    return draw_noise(stream, math.prod(shape), deviation=math.nextafter(deviation, math.inf)).reshape(shape)
