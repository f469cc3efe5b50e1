"""Each patient's gradient at about the price of one ordinary training step.

**The method.** The loss of patient p is ℓ_p, and W a weight applied to inputs z at every window w and time step t:
a = W z. By the chain rule ∂ℓ_p/∂W = Σ_w Σ_t d z ᵀ with d = ∂ℓ_p/∂a. An ordinary step sums the same outer products over
all patients too, in one matrix product. So one backward pass gives every d, and instead of one product over patients,
windows and steps there is one for each patient over that patient's windows and steps: the same multiplications, no
second backward pass, no loop over time (Goodfellow 2015, arXiv:1510.01799, for layers that are used once; Lee and
Kifer, PoPETs 2021, for the others). What privacy adds is reading the rows once for their norms and once for their sum.

**Shapes.** A *tile* is what the private step hands over: x[slots, windows, time, features] with a mask; a slot holds
one patient or nobody. A *row* is one window of one patient, and only windows that count become rows (`chunks`), so
padding costs nothing. A *chunk* is a fixed number of rows, whole patients in it, small enough that what its layers
keep, [time, rows, ·], stays in the cache; chunks stream through the same buffers, so memory does not grow with the
patients. Time comes first because a recurrent step then reads and writes contiguous memory. Gradients are f32[slots,
d], where d counts the network's parameters in the order of `parameters()`; their unit is that of the loss ÷ that of
the parameter.

**The readout.** A patient's logit is s_p = Σ_w ω s_pw with ω = 1 ÷ (windows that count), so ∂ℓ_p/∂s_pw = ω ∂ℓ_p/∂s_p,
and with σ = 1/(1 + e^{-s}) and the weight v of patients with the outcome, ℓ = -v y ln σ - (1 - y) ln(1 - σ) has the
derivative σ (1 + (v - 1) y) - v y.

**The layers** (`layers`, `recurrent_layers`) are written out by hand: `forward`, `backward` for d, `write` for the
products. To add a model, add its forward pass to `networks`, which is the definition, and its layers to `programs`;
tests compare both with a loop over patients. The element-wise half of a cell is in `gates` (torch) and `fused_gates`
(numba: one pass over memory instead of a dozen), with every formula; the products are in `products`.

**Why a row does not depend on the others.** The private step quantises each patient's clipped gradient by itself,
which is private only when other patients cannot move it, not even in its last bit. Products of all rows have one shape
for the engine's life, and in that shape a row's result is the same at every place (tested, for hostile weights too; it
holds because rows are a multiple of 32, start at multiples of 64 bytes, and float32 is computed as such, never as TF32
or bf16). Element-wise kernels go by columns. A patient's own products have a size that is the patient's own and start
at the same memory for everybody. What is measured on one machine need not hold on the next: `find_moved_rows` looks
for it where it runs, and an arithmetic that it finds rows for may serve training without privacy only.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from fedtwin_client.networks import Network, build_network
from fedtwin_client.training.arithmetic import TORCH, Arithmetic, available_arithmetic
from fedtwin_client.training.batch import Batch
from fedtwin_client.training.chunks import CHUNK_ROWS, Chunk, chunk_rows, cut_tile
from fedtwin_client.training.patient_gradients import OpacusGradients, PatientGradients
from fedtwin_client.training.products import make_rows
from fedtwin_client.training.programs import PROGRAMS, Shape
from fedtwin_client.training.row_check import find_moved_rows, make_up
from fedtwin_shared.models import initialise
from fedtwin_shared.study import Study


def make_patient_gradients(network: nn.Module, positive_weight: float) -> PatientGradients:
    """Return the fastest engine that is fit for private training of this network on this machine; the last is Opacus.

    - an arithmetic that moves a row when others change is passed over
    """
    if type(network) in PROGRAMS:
        assert isinstance(network, Network)
        for arithmetic in available_arithmetic():
            if _keeps_rows(network.study, arithmetic):
                return TapedGradients(network, positive_weight, arithmetic)
    return OpacusGradients(network, positive_weight)


@lru_cache(maxsize=64)
def _keeps_rows(study: Study, arithmetic: Arithmetic) -> bool:
    """Whether no row of a made-up tile moves, with the weights of nobody's model: one chunk, once a process."""
    network = build_network(study, initialise(study))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(make_up(*parameter.shape, name=name))
    shape = (CHUNK_ROWS // 2, 2, study.features.steps, len(study.feature_names()))
    tile = Batch(
        x=make_up(*shape, name="x"),
        mask=make_up(*shape, name="mask") < 0,
        y=(make_up(shape[0], name="y") < 0).float(),
    )
    return not find_moved_rows(TapedGradients(network, 1.0, arithmetic), tile)


class TapedGradients:
    """Patient gradients of a model of the registry, by one backward pass; implements `PatientGradients`.

    Raises `TypeError` for a network that is not of the registry.

    - a row is bit for bit the same in every slot, whatever is in the other slots
    - memory beyond the gradients does not grow with the number of slots
    """

    def __init__(self, network: nn.Module, positive_weight: float, arithmetic: Arithmetic | None = None) -> None:
        if type(network) not in PROGRAMS:
            raise TypeError(
                f"expected a model of the registry, found {type(network).__name__}: use OpacusGradients for a network "
                "of nn.Linear layers"
            )
        assert isinstance(network, Network)
        device = next(network.parameters()).device
        chosen = available_arithmetic()[0] if device.type == "cpu" else TORCH
        self._network, self._weight, self._arithmetic = network, positive_weight, arithmetic or chosen
        self._program: _Program | None = None
        self._gradients = torch.empty(0)

    @property
    def name(self) -> str:
        """The engine's name."""
        return self._arithmetic.name

    @property
    def any_slot(self) -> bool:
        """Yes: a row is the same in every slot."""
        return True

    def __call__(self, tile: Batch, filled: Tensor) -> Tensor:
        """Return gradients f32[slots, d], as the protocol says; rows of empty slots are left as they were."""
        with torch.no_grad():
            slots, windows, steps, _ = tile.x.shape
            if self._program is None:
                rows = chunk_rows(slots, windows)
                self._program = _Program(self._network, steps=steps, rows=rows, arithmetic=self._arithmetic)
                numbers = sum(parameter.numel() for parameter in self._network.parameters())
                self._gradients = tile.x.new_zeros(slots, numbers)
            if len(self._gradients) != slots:
                raise ValueError(f"expected {len(self._gradients)} slots as in every tile before, found {slots}")
            self._program.bind(self._gradients)
            for chunk in cut_tile(tile, filled, self._program.rows):
                self._program.run(tile, chunk, self._weight)
            return self._gradients


class _Program:
    """A network's layers for chunks of one shape, and where each parameter's gradient goes."""

    def __init__(self, network: Network, *, steps: int, rows: int, arithmetic: Arithmetic) -> None:
        self.rows, self._network = rows, network
        self._mask_as_input = network.mask_as_input
        self._stages = PROGRAMS[type(network)](network, Shape(steps=steps, rows=rows, arithmetic=arithmetic))
        self._columns: list[dict[str, Tensor]] = []
        self._x = torch.empty(0)

    def bind(self, gradients: Tensor) -> None:
        """Say which tensor the gradients go to."""
        start = 0
        places: dict[Tensor, Tensor] = {}
        for parameter in self._network.parameters():
            places[parameter] = gradients[:, start : start + parameter.numel()]
            start += parameter.numel()
        self._columns = [
            {name: places[parameter] for name, parameter in stage.parameters.items()} for stage in self._stages
        ]

    def run(self, tile: Batch, chunk: Chunk, positive_weight: float) -> None:
        """Write the gradients of the chunk's patients."""
        value = self._gather(tile, chunk)
        for stage in self._stages:
            value = stage.layer.forward(stage.select(value))
        d = self._differentiate(value.view(-1), tile.y, chunk, positive_weight).view(value.shape)
        for index in reversed(range(len(self._stages))):
            passed = self._stages[index].layer.backward(d, inputs=index > 0)
            if passed is not None:
                d = passed
        for stage, columns in zip(self._stages, self._columns, strict=True):
            stage.layer.write(chunk.spans, columns)

    def _gather(self, tile: Batch, chunk: Chunk) -> Tensor:
        """Return x[time, rows, inputs] of the chunk's windows, zeros in rows without one."""
        x, mask = tile.x.flatten(0, 1), tile.mask.flatten(0, 1)
        steps, features = x.shape[1], x.shape[2]
        width = features * (2 if self._mask_as_input else 1)
        if self._x.shape != (steps, self.rows, width):
            self._x = make_rows(x, steps, self.rows, width)
        used = len(chunk.windows)
        self._x[:, :used, :features] = x[chunk.windows].transpose(0, 1)
        if self._mask_as_input:
            self._x[:, :used, features:] = mask[chunk.windows].transpose(0, 1)
        self._x[:, used:] = 0.0
        return self._x

    def _differentiate(self, logit: Tensor, y: Tensor, chunk: Chunk, positive_weight: float) -> Tensor:
        """Return the loss' derivative at each row's logit, zero in rows without a window."""
        used, spans = len(chunk.windows), chunk.spans
        sizes = torch.tensor([span.end - span.first for span in spans], device=logit.device)
        owner = torch.arange(len(spans), device=logit.device).repeat_interleave(sizes)
        first = torch.tensor([span.first for span in spans], device=logit.device)
        spread = logit.new_zeros(self.rows, int(sizes.max()))
        spread[owner, torch.arange(used, device=logit.device) - first[owner]] = logit[:used] * chunk.weight
        # In order, one window after the other: a patient's sum has nothing to do with how many windows others have.
        total = logit.new_zeros(self.rows)
        for column in spread.unbind(dim=1):
            total += column
        outcome = logit.new_zeros(self.rows)
        outcome[: len(spans)] = y[torch.tensor([span.slot for span in spans], device=y.device)]
        slope = torch.sigmoid(total) * (1 + (positive_weight - 1) * outcome) - positive_weight * outcome
        d = torch.zeros_like(logit)
        d[:used] = slope[owner] * chunk.weight
        return d
