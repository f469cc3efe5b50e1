"""A site's part in one step whose noise the sites share: its patients' sum and its share of the noise, in grid units.

Design note: alone, this vector has too little noise to be released; it leaves under a secure aggregation's masks only,
and the sum over at least n - d sites has the plan's noise from its n - d - c honest ones (`secagg.terms.share_noise`).
The descent is the coordinator's: one step for all sites, so that training is as if one site had everybody's patients.
"""

from __future__ import annotations

import numpy as np
import torch

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import build_network
from fedtwin_client.randomness import Randomness
from fedtwin_client.training import grid
from fedtwin_client.training.batch import as_batch
from fedtwin_client.training.engine import make_patient_gradients
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_client.training.sampling import draw_batch
from fedtwin_shared.models import Parameters, parameter_shapes
from fedtwin_shared.secagg.terms import Terms, share_noise
from fedtwin_shared.study import Study


def contribute(
    study: Study, parameters: Parameters, examples: Examples, randomness: Randomness, *, terms: Terms
) -> grid.Total:
    """Return what this site adds to one step's sum, i64[d], parameters in the order of `parameter_shapes`.

    - every site samples with the plan's rate, by itself, and tells nobody whom
    - the noise is the plan's multiplier ÷ √(n - d - c) times one patient's sensitivity
    - another call draws another sample and other noise: it is another step, to be charged again
    """
    torch.set_num_threads(1)  # sums in one order on every machine
    network, stream = build_network(study, parameters), randomness.stream("train")
    privacy = study.privacy
    step = PrivateStep(
        network,
        torch.optim.SGD(network.parameters(), lr=study.training.learning_rate),  # never taken: the coordinator descends
        make_gradients=make_patient_gradients,
        clip=privacy.clip,
        noise_multiplier=share_noise(privacy.noise_multiplier, terms),
        expected_batch=1.0,
        positive_weight=study.training.positive_weight,
        stream=stream,
        before_descent=lambda: None,
    )
    total = step.sum_with_noise(draw_batch(as_batch(examples), rate=privacy.sampling_rate, stream=stream))
    places, start = dict[int, slice](), 0
    for weight in network.parameters():
        places[id(weight)] = slice(start, start + weight.numel())
        start += weight.numel()
    return np.concatenate([total[places[id(network.parameter(name))]] for name in parameter_shapes(study)])
