"""Every engine gives each patient's own gradient, and the same bits whoever else is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedtwin_client.networks import build_network
from fedtwin_client.training.batch import Batch, as_batch
from fedtwin_client.training.gradient import sum_losses
from fedtwin_client.training.patient_gradients import MakeGradients, OpacusGradients
from fedtwin_shared.models import Parameters, parameter_shapes
from tests.client.small import MODELS, make_examples, small_study

ENGINES: Sequence[MakeGradients] = [OpacusGradients]
POSITIVE_WEIGHT = 3.0
SLOTS = 8
STUDIES = {name: small_study(features={"windows": 3}, model={"name": name}) for name in MODELS}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # as training does


def random_parameters(name: str, scale: float = 0.5) -> Parameters:
    generator = np.random.default_rng(1)
    shapes = parameter_shapes(STUDIES[name])
    return {key: generator.normal(scale=scale, size=shape).astype(np.float32) for key, shape in shapes.items()}


def place(batch: Batch, slots: dict[int, int]) -> tuple[Batch, Tensor]:
    """Return a tile with patients of `batch` (values) in some slots (keys), and which slots are filled."""
    tile = Batch(
        x=batch.x.new_zeros((SLOTS, *batch.x.shape[1:])),
        mask=batch.mask.new_zeros((SLOTS, *batch.mask.shape[1:])),
        y=batch.y.new_zeros(SLOTS),
    )
    filled = torch.zeros(SLOTS, dtype=torch.bool)
    for slot, row in slots.items():
        tile.x[slot], tile.mask[slot], tile.y[slot], filled[slot] = batch.x[row], batch.mask[row], batch.y[row], True
    return tile, filled


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_gradients_of_a_loop_over_patients(make: MakeGradients, name: str) -> None:
    batch = as_batch(make_examples(STUDIES[name], 7))
    engine = make(build_network(STUDIES[name], random_parameters(name)), POSITIVE_WEIGHT)
    for _ in range(2):  # a second call starts from nothing
        found = engine(*place(batch, {row + 1: row for row in range(7)}))
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    alone = build_network(STUDIES[name], random_parameters(name))
    assert found.shape == (SLOTS, sum(part.numel() for part in alone.parameters()))
    for row in range(7):
        alone.zero_grad()
        one = slice(row, row + 1)
        loss = sum_losses(alone(batch.x[one], batch.mask[one]), batch.y[one], positive_weight=POSITIVE_WEIGHT)
        torch.autograd.backward(loss)
        expected = torch.cat([part.grad.flatten() for part in alone.parameters() if part.grad is not None])
        assert float((found[row + 1] - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", [0.5, 3e4])
def test_a_row_is_bit_identical_whatever_is_in_the_other_slots(make: MakeGradients, name: str, scale: float) -> None:
    # Huge weights (a hostile coordinator's) blow a difference in the last bit up to any size.
    batch = as_batch(make_examples(STUDIES[name], 2 * SLOTS))
    engine = make(build_network(STUDIES[name], random_parameters(name, scale)), POSITIVE_WEIGHT)
    generator = np.random.default_rng(0)
    for slot in range(SLOTS):
        home = 0 if engine.any_slot else slot
        alone = engine(*place(batch, {home: 0}))[home].numpy().tobytes()
        for _ in range(3):
            others = generator.choice(np.arange(1, 2 * SLOTS), SLOTS, replace=False)
            slots = {at: int(row) for at, row in enumerate(others) if generator.random() < 0.7} | {slot: 0}
            assert engine(*place(batch, slots))[slot].numpy().tobytes() == alone
