"""Recurrent layers that an unmodified Opacus `PrivacyEngine` trains, one gradient for each patient.

Opacus refuses `nn.LSTM` and `nn.GRU`, and its own cells loop over time and sum one product for every step. These are
torch's fused cells with a grad sampler and a norm sampler beside them, which run our kernels (`recurrent_layers`) on
what Opacus kept: inputs and gradients at outputs. Dimension 0 is the patient, whatever windows and time steps follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from torch import Tensor, nn

from fedtwin_client.training.arithmetic import available_arithmetic
from fedtwin_client.training.chunks import ROW_MULTIPLE
from fedtwin_client.training.products import Span, make_rows
from fedtwin_client.training.recurrent_layers import GatedRecurrentUnits, LongShortTermMemoryCells


class PatientLSTM(nn.LSTM):
    """One layer of an LSTM: h[patients, …, time, hidden] of x[patients, …, time, inputs]; one bias for each gate."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True)
        _freeze_second_bias(self)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] # neither a state in nor a state out
        """Return h at every step."""
        return _run_windows(super().forward, x)


class PatientGRU(nn.GRU):
    """One layer of a GRU: h[patients, …, time, hidden] of x[patients, …, time, inputs]; one bias for each gate."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, batch_first=True)
        _freeze_second_bias(self)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] # neither a state in nor a state out
        """Return h at every step."""
        return _run_windows(super().forward, x)


def _run_windows(cells: Callable[[Tensor], tuple[Tensor, object]], x: Tensor) -> Tensor:
    """Return h[patients, …, time, hidden]: patients and windows side by side within torch's cells only."""
    states, _ = cells(x.flatten(0, -3))
    return states.view(*x.shape[:-1], states.shape[-1])


def _freeze_second_bias(layer: nn.RNNBase) -> None:
    """torch has two biases that are always added: one would only add noise."""
    second = layer.get_parameter("bias_hh_l0")
    nn.init.zeros_(second)
    second.requires_grad_(False)


def _trained(layer: PatientLSTM | PatientGRU) -> dict[str, Tensor]:
    """Return the layer's trained parameters by the names that `layers` gives them."""
    names = {"input": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_ih_l0"}
    return {ours: layer.get_parameter(theirs) for ours, theirs in names.items()}


@register_grad_sampler([PatientLSTM, PatientGRU])  # type: ignore[untyped-decorator] # Opacus has no types
def sample_gradients(
    layer: PatientLSTM | PatientGRU, activations: Sequence[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return each patient's gradient of each parameter, [patients, *shape]."""
    with torch.no_grad():
        x, patients = activations[0], len(backprops)
        parameters = _trained(layer)
        found = {name: x.new_zeros(patients, value.numel()) for name, value in parameters.items()}
        if patients > 0:
            _write_gradients(layer, _lay_out(x), _lay_out(backprops), found)
        return {value: found[name].view(patients, *value.shape) for name, value in parameters.items()}


@register_norm_sampler([PatientLSTM, PatientGRU])  # type: ignore[untyped-decorator] # Opacus has no types
def sample_norms(
    layer: PatientLSTM | PatientGRU, activations: Sequence[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the norm of each patient's gradient of each parameter, [patients]."""
    gradients = sample_gradients(layer, activations, backprops)
    return {parameter: rows.flatten(1).norm(dim=1) for parameter, rows in gradients.items()}


def _write_gradients(layer: PatientLSTM | PatientGRU, x: Tensor, d: Tensor, found: dict[str, Tensor]) -> None:
    arithmetic, patients = available_arithmetic()[0], len(found["bias"])
    make = LongShortTermMemoryCells if isinstance(layer, PatientLSTM) else GatedRecurrentUnits
    parameters = _trained(layer)
    cells = make(
        parameters["input"],
        parameters["recurrent"],
        parameters["bias"],
        steps=x.shape[0],
        rows=-(-x.shape[1] // ROW_MULTIPLE) * ROW_MULTIPLE,
        products=arithmetic.products,
        gates=arithmetic.gates,
    )
    filled, slopes = (_fill_rows(part) for part in (x, d))
    cells.forward(filled)
    cells.backward(slopes, inputs=False)
    windows = x.shape[1] // patients
    cells.write(
        [Span(slot=slot, first=slot * windows, end=(slot + 1) * windows) for slot in range(patients)],
        found,
    )


def _lay_out(x: Tensor) -> Tensor:
    """Return [time, rows, features] of x[patients, …, time, features]."""
    return x.flatten(0, -3).transpose(0, 1)


def _fill_rows(x: Tensor) -> Tensor:
    """Return x[time, rows, features] with zeros up to a multiple of rows."""
    filled = make_rows(x, x.shape[0], -(-x.shape[1] // ROW_MULTIPLE) * ROW_MULTIPLE, x.shape[2])
    filled[:, : x.shape[1]] = x
    return filled
