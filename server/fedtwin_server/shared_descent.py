"""The coordinator's descent along a sum of all sites' gradients: plain SGD, as one site with everybody's patients has.

Design note: the sum is in units of the integer grid and has its noise already; everything here is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.gradient_grid import scale
from fedtwin_shared.models import Parameters, parameter_shapes
from fedtwin_shared.study import Study


def check_descent(study: Study) -> None:
    """Raise `ConfigurationError` unless the study trains in single steps of plain SGD.

    Noise that is shared bounds one step: over several, without noise in each, a patient moves a model by more.
    """
    training = study.training
    for field, holds, expected in (
        ("training.local_steps", training.local_steps == 1, "1 with shared noise"),
        ("training.algorithm", training.algorithm == "fedavg", '"fedavg" with shared noise'),
        ("training.momentum", training.momentum == 0, "0 with shared noise"),
        ("training.server_learning_rate", training.server_learning_rate == 1, "1 with shared noise"),
    ):
        if not holds:
            raise ConfigurationError(field=field, expected=expected, found="another value")


def dimension(study: Study) -> int:
    """Return how many numbers a step's sum has."""
    return sum(math.prod(shape) for shape in parameter_shapes(study).values())


def descend(
    study: Study, parameters: Parameters, total: npt.NDArray[np.int64], *, survivors: Iterable[str]
) -> Parameters:
    """Return the parameters after one step along `total`, i64[d], the sum over the survivors.

    - the denominator is the plan's: sampling rate times the nominal patients of the survivors, who are public
    """
    training, privacy = study.training, study.privacy
    nominal = {part.site: part.patients for part in study.participants}
    expected = privacy.sampling_rate * sum(nominal[site] for site in survivors)
    mean, start, after = (total / (scale(privacy.clip) * expected)).astype(np.float32), 0, {}
    for name, shape in parameter_shapes(study).items():
        size = math.prod(shape)
        gradient = mean[start : start + size].reshape(shape)
        if not name.endswith("bias"):
            gradient = gradient + np.float32(training.weight_decay) * parameters[name]
        after[name] = parameters[name] - np.float32(training.learning_rate) * gradient
        start += size
    if start != len(total):
        raise ValueError(f"expected a sum of {start} numbers, found {len(total)}")
    return after
