"""The closed registry of models: names, parameter shapes, seeded initial values. The forward pass is the client's.

Design note: a study names a model and its size; code never travels. The coordinator needs shapes and initial values
only, so it needs no torch. Parameters are float32 arrays by name, always in the order of `parameter_shapes`.
The generator below is seeded by the study and public: it draws starting weights, never anything private.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.study import Study

Parameters = Mapping[str, npt.NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]

# No model of the registry comes near it on normalised inputs; sums and squares of such numbers stay finite in float32,
# so that no site can make the aggregate of all overflow.
MAX_MAGNITUDE = 1e6


def input_features(study: Study) -> int:
    """Return the size of the model's last input dimension: features, and their mask where the study asks for it."""
    return len(study.feature_names()) * (2 if study.model.mask_as_input else 1)


def parameter_shapes(study: Study) -> Shapes:
    """Return the shape of every parameter of the study's model, in order.

    logistic: weight[time · features], bias[1]
    mlp: per layer hidden{i}.weight[hidden, inputs], hidden{i}.bias[hidden]; head.weight[1, hidden], head.bias[1]
    lstm: per layer lstm{i}.input[4 · hidden, inputs], lstm{i}.recurrent[4 · hidden, hidden], lstm{i}.bias[4 · hidden]
          (gates in the order input, forget, cell, output); head
    gru: per layer gru{i}.input[3 · hidden, inputs], gru{i}.recurrent[3 · hidden, hidden], gru{i}.bias[3 · hidden]
         (gates in the order reset, keep, candidate); head
    mingru: per layer mingru{i}.weight[2 · hidden, inputs], mingru{i}.bias[2 · hidden] (in the order update, candidate);
            head
    tcn: per layer conv{i}.weight[hidden, kernel · inputs], conv{i}.bias[hidden] with dilation 2^i; head
    """
    model, inputs, steps = study.model, input_features(study), study.features.steps
    shapes: Shapes = {}
    if model.name == "logistic":
        return {"weight": (steps * inputs,), "bias": (1,)}
    width = steps * inputs if model.name == "mlp" else inputs
    for layer in range(model.layers):
        if model.name == "mlp":
            shapes[f"hidden{layer}.weight"] = (model.hidden, width)
            shapes[f"hidden{layer}.bias"] = (model.hidden,)
        elif model.name in ("lstm", "gru"):
            gates = (4 if model.name == "lstm" else 3) * model.hidden
            shapes[f"{model.name}{layer}.input"] = (gates, width)
            shapes[f"{model.name}{layer}.recurrent"] = (gates, model.hidden)
            shapes[f"{model.name}{layer}.bias"] = (gates,)
        elif model.name == "mingru":
            shapes[f"mingru{layer}.weight"] = (2 * model.hidden, width)
            shapes[f"mingru{layer}.bias"] = (2 * model.hidden,)
        else:
            shapes[f"conv{layer}.weight"] = (model.hidden, model.kernel * width)
            shapes[f"conv{layer}.bias"] = (model.hidden,)
        width = model.hidden
    return shapes | {"head.weight": (1, model.hidden), "head.bias": (1,)}


def initialise(study: Study) -> dict[str, npt.NDArray[np.float32]]:
    """Return the initial parameters: the same on every machine for the same study.

    Matrices are uniform in ±1/√fan-in (LeCun et al. 1998, §4.6, as torch's `nn.Linear`), vectors zero; the forget
    gate's bias is 1 (Jozefowicz et al., ICML 2015); logistic regression starts at zero.
    """
    # Public chance: the seed is in the signed study, and everybody draws the same starting weights.
    generator = np.random.Generator(np.random.PCG64(study.model.seed))
    parameters: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in parameter_shapes(study).items():
        if len(shape) == 1:
            parameters[name] = np.zeros(shape, dtype=np.float32)
            if name.startswith("lstm"):
                parameters[name][study.model.hidden : 2 * study.model.hidden] = 1.0
        else:
            bound = 1 / math.sqrt(shape[1])
            parameters[name] = generator.uniform(-bound, bound, shape).astype(np.float32)
    return parameters


def digest_parameters(parameters: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Return the SHA-256 over names, types, shapes and little-endian bytes, in order of names."""
    running = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(parameters[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        running.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode())
        running.update(little.tobytes())
    return running.hexdigest()


def verify_parameters(parameters: Mapping[str, npt.NDArray[np.generic]], shapes: Shapes) -> Parameters:
    """Return the parameters when names, shapes, type float32 and magnitudes (finite, ≤ 1e6) are as they must be.

    Raises `VerificationError`.
    """
    if set(parameters) != set(shapes):
        raise VerificationError(field="parameters", expected=f"{sorted(shapes)}", found=f"{sorted(parameters)}"[:200])
    checked: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        array = parameters[name]
        if array.shape != shape or array.dtype != np.float32:
            raise VerificationError(field=name, expected=f"float32{shape}", found=f"{array.dtype}{array.shape}")
        if not bool((np.abs(array) <= MAX_MAGNITUDE).all()):
            raise VerificationError(
                field=name, expected=f"finite numbers up to ±{MAX_MAGNITUDE:g}", found="NaN, infinite or larger ones"
            )
        checked[name] = array.astype(np.float32, copy=False)
    return checked
