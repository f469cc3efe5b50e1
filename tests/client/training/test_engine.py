"""Every engine and model against a loop over patients, and the promise that a row is nobody else's business."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import Network, build_network
from fedtwin_client.training import chunks
from fedtwin_client.training import engine as engines
from fedtwin_client.training.arithmetic import Arithmetic, available_arithmetic
from fedtwin_client.training.batch import Batch, as_batch
from fedtwin_client.training.engine import TapedGradients, make_patient_gradients
from fedtwin_client.training.row_check import find_moved_rows
from fedtwin_shared.models import parameter_shapes
from fedtwin_shared.study import Study
from tests.client.small import MODELS, make_examples, small_study

ENGINES = available_arithmetic()
POSITIVE_WEIGHT = 3.0
CLIP = 0.5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in training: sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_study(name: str, *, windows: int = 3, hidden: int = 5, mask_as_input: bool = False) -> Study:
    return small_study(
        features={"windows": windows, "window_hours": 9.0},
        model={"name": name, "hidden": hidden, "layers": 2, "kernel": 3, "mask_as_input": mask_as_input},
    )


def make_network(study: Study, *, scale: float = 0.5, seed: int = 1) -> Network:
    generator = np.random.default_rng(seed)
    return build_network(
        study,
        {
            name: generator.normal(scale=scale, size=shape).astype(np.float32)
            for name, shape in parameter_shapes(study).items()
        },
    )


def loop_over_patients(network: nn.Module, batch: Batch) -> Tensor:
    """Return f64[patients, d] by one ordinary backward pass for each patient alone."""
    rows, weight = [], torch.tensor(POSITIVE_WEIGHT)
    for row in range(len(batch)):
        network.zero_grad()
        logit = network(batch.x[row : row + 1], batch.mask[row : row + 1])
        torch.autograd.backward(
            binary_cross_entropy_with_logits(logit, batch.y[row : row + 1], pos_weight=weight, reduction="sum")
        )
        gradients = [parameter.grad for parameter in network.parameters()]
        rows.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).double())
    return torch.stack(rows)


def clipped_sum(rows: Tensor) -> Tensor:
    scale = (CLIP / rows.norm(dim=1)).clamp(max=1.0)
    found: Tensor = (rows * scale[:, None]).sum(dim=0)
    return found


def all_filled(batch: Batch) -> Tensor:
    return torch.ones(len(batch), dtype=torch.bool)


def assert_agrees(found: Tensor, expected: Tensor) -> None:
    """Norms and clipped sum within 1e-5, relative, and every row too."""
    found = found.double()
    assert (expected.norm(dim=1) > CLIP).any(), "somebody must be clipped"
    assert ((found.norm(dim=1) - expected.norm(dim=1)).abs() <= 1e-5 * expected.norm(dim=1)).all()
    assert ((found - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    total = clipped_sum(expected)
    assert (clipped_sum(found) - total).norm() <= 1e-5 * total.norm()


@pytest.mark.parametrize("arithmetic", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_a_loop_over_patients(name: str, arithmetic: Arithmetic) -> None:
    study = engine_study(name, mask_as_input=name in ("lstm", "mlp"))
    network, batch = make_network(study), as_batch(make_examples(study, 23))
    engine = TapedGradients(network, POSITIVE_WEIGHT, arithmetic)
    assert engine.name == arithmetic.name
    assert_agrees(engine(batch, all_filled(batch)), loop_over_patients(network, batch))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_read_afresh_and_chunks_change_nothing_but_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 32)
    study = engine_study(name)
    network, batch = make_network(study), as_batch(make_examples(study, 40))
    engine = TapedGradients(network, POSITIVE_WEIGHT)
    for scale in (1.0, -0.5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(scale)
        assert_agrees(engine(batch, all_filled(batch)), loop_over_patients(network, batch))


@pytest.mark.parametrize("name", MODELS)
def test_empty_slots_and_patients_of_whom_nothing_is_known(name: str) -> None:
    study = engine_study(name)
    network, batch = make_network(study), as_batch(make_examples(study, 12))
    batch.mask[3] = False
    batch.x[3, 1] = 0.7  # carried forward from before, and never measured
    expected = loop_over_patients(network, batch)
    filled = torch.tensor([True, False] * 6)
    filled[3] = True
    engine = TapedGradients(network, POSITIVE_WEIGHT)
    assert_agrees(engine(batch, filled)[filled], expected[filled])
    nobody = Batch(x=torch.zeros_like(batch.x), mask=torch.zeros_like(batch.mask), y=torch.zeros_like(batch.y))
    assert len(engine(nobody, torch.zeros(12, dtype=torch.bool))) == 12


@pytest.mark.parametrize("arithmetic", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("hidden", "scale"), [(5, 0.5), (16, 300.0)], ids=["odd", "hostile"])
def test_a_row_is_bit_for_bit_the_same_whoever_else_is_there(
    name: str, arithmetic: Arithmetic, hidden: int, scale: float
) -> None:
    study = engine_study(name, hidden=hidden)
    batch = as_batch(make_examples(study, 90))
    engine = TapedGradients(make_network(study, scale=scale), POSITIVE_WEIGHT, arithmetic)
    assert engine.any_slot
    assert find_moved_rows(engine, batch) == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand")
@pytest.mark.parametrize("name", MODELS)
def test_the_torch_engine_agrees_on_a_cuda_device_and_keeps_rows_there(name: str) -> None:
    study = engine_study(name)
    network, batch = make_network(study), as_batch(make_examples(study, 90))
    expected = loop_over_patients(network, batch)
    there = Batch(x=batch.x.cuda(), mask=batch.mask.cuda(), y=batch.y.cuda())
    engine = TapedGradients(make_network(study).cuda(), POSITIVE_WEIGHT)
    assert engine.name == "torch"
    assert_agrees(engine(there, all_filled(there).cuda()).cpu(), expected)
    assert find_moved_rows(engine, there) == ()


@given(seed=st.integers(0, 2**31), slots=st.integers(1, 50), windows=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_rows_do_not_move_in_tiles_of_any_size(seed: int, slots: int, windows: int) -> None:
    study = engine_study("lstm", windows=windows, hidden=3)
    engine = TapedGradients(make_network(study, scale=3.0, seed=seed), POSITIVE_WEIGHT)
    assert find_moved_rows(engine, as_batch(make_examples(study, slots, seed=seed)), seed=seed) == ()


class ByTheBatch:
    """An engine as it must not be: every row carries something of the others."""

    name, any_slot = "coupled", True

    def __init__(self, engine: TapedGradients) -> None:
        self._engine = engine

    def __call__(self, tile: Batch, filled: Tensor) -> Tensor:
        rows = self._engine(tile, filled)
        return rows if filled.all() else torch.nextafter(rows, rows + 1)


def test_a_row_that_others_move_by_one_bit_is_found() -> None:
    study = engine_study("logistic")
    batch = as_batch(make_examples(study, 21))
    engine = TapedGradients(make_network(study), POSITIVE_WEIGHT)
    assert find_moved_rows(ByTheBatch(engine), batch, seed=2)


def test_an_engine_that_moves_rows_is_not_chosen_for_private_training(monkeypatch: pytest.MonkeyPatch) -> None:
    study = engine_study("gru")
    network = make_network(study)
    assert make_patient_gradients(network, 1.0).name == ENGINES[0].name
    engines._keeps_rows.cache_clear()
    monkeypatch.setattr(engines, "find_moved_rows", lambda gradients, tile: (0,) * (gradients.name != "torch"))
    assert make_patient_gradients(network, 1.0).name == "torch"
    engines._keeps_rows.cache_clear()
    monkeypatch.setattr(engines, "find_moved_rows", lambda gradients, tile: (3,))
    assert make_patient_gradients(network, 1.0).name == "opacus"
    engines._keeps_rows.cache_clear()
    assert make_patient_gradients(nn.Sequential(nn.Linear(2, 1)), 1.0).name == "opacus"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", MODELS)
def test_a_patient_with_numbers_that_are_not_finite_keeps_them(name: str, bad: float) -> None:
    study = engine_study(name)
    examples = make_examples(study, 9)
    network = make_network(study)
    engine = TapedGradients(network, POSITIVE_WEIGHT)
    batch = as_batch(examples)
    expected = engine(batch, all_filled(batch)).clone()
    examples.x[4, 0] = bad
    found = engine(as_batch(examples), all_filled(batch))
    others = [row for row in range(9) if row != 4]
    assert torch.equal(found[others], expected[others])
    assert not torch.isfinite(found[4]).all()


def test_memory_does_not_grow_with_the_slots() -> None:
    study = engine_study("lstm", windows=2)

    def buffers(slots: int) -> int:
        engine = TapedGradients(make_network(study), POSITIVE_WEIGHT)
        batch = as_batch(make_examples(study, slots))
        engine(batch, all_filled(batch))
        assert engine._program is not None
        return engine._program.rows

    assert buffers(400) == buffers(800) == chunks.CHUNK_ROWS


def test_another_number_of_slots_is_refused() -> None:
    study = engine_study("logistic")
    engine = TapedGradients(make_network(study), POSITIVE_WEIGHT)
    engine(*tile_of(make_examples(study, 4)))
    with pytest.raises(ValueError, match="expected 4 slots"):
        engine(*tile_of(make_examples(study, 5)))


def tile_of(examples: Examples) -> tuple[Batch, Tensor]:
    batch = as_batch(examples)
    return batch, all_filled(batch)


def test_a_network_that_is_not_of_the_registry_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a model of the registry, found Linear"):
        TapedGradients(nn.Linear(2, 1), 1.0)


TORCH_CELLS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}


@pytest.mark.parametrize("arithmetic", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_agrees_with_torchs_own_cells(name: str, arithmetic: Arithmetic) -> None:
    study = engine_study(name, windows=1)
    network, batch = make_network(study), as_batch(make_examples(study, 7))
    reference = TORCH_CELLS[name](batch.x.shape[3], study.model.hidden, num_layers=2, batch_first=True)
    head = nn.Linear(study.model.hidden, 1)
    with torch.no_grad():
        for layer in range(2):
            getattr(reference, f"weight_ih_l{layer}").copy_(network.parameter(f"{name}{layer}.input"))
            getattr(reference, f"weight_hh_l{layer}").copy_(network.parameter(f"{name}{layer}.recurrent"))
            getattr(reference, f"bias_ih_l{layer}").copy_(network.parameter(f"{name}{layer}.bias"))
            getattr(reference, f"bias_hh_l{layer}").zero_()
        head.weight.copy_(network.parameter("head.weight"))
        head.bias.copy_(network.parameter("head.bias"))
    found = TapedGradients(network, POSITIVE_WEIGHT, arithmetic)(batch, all_filled(batch))
    by_name = columns_by_name(study, network, found)
    for row in range(len(batch)):
        reference.zero_grad()
        head.zero_grad()
        logit = head(reference(batch.x[row])[0][:, -1]).squeeze(1)
        weight = torch.tensor(POSITIVE_WEIGHT)
        torch.autograd.backward(
            binary_cross_entropy_with_logits(logit, batch.y[row : row + 1], pos_weight=weight, reduction="sum")
        )
        for layer in range(2):
            for ours, theirs in (("input", "weight_ih"), ("recurrent", "weight_hh"), ("bias", "bias_ih")):
                expected = getattr(reference, f"{theirs}_l{layer}").grad
                torch.testing.assert_close(by_name[f"{name}{layer}.{ours}"][row], expected, rtol=1e-4, atol=1e-6)


def columns_by_name(study: Study, network: Network, rows: Tensor) -> dict[str, Tensor]:
    """Return each parameter's gradients[patients, *shape] by its name in the registry."""
    start, found = 0, {}
    names = {id(network.parameter(name)): name for name in parameter_shapes(study)}
    for parameter in network.parameters():
        part = rows[:, start : start + parameter.numel()]
        found[names[id(parameter)]] = part.view(len(rows), *parameter.shape)
        start += parameter.numel()
    return found
