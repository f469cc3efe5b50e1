"""The private step against a loop over patients and against Opacus, its sensitivity, its noise, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPGRU, DPLSTM
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import Network, build_network, extract_parameters
from fedtwin_client.training import grid, private_step, train
from fedtwin_client.training.batch import Batch, Slots, as_batch
from fedtwin_client.training.engine import make_patient_gradients
from fedtwin_client.training.gradient import check_layers, sum_losses
from fedtwin_client.training.patient_gradients import MakeGradients, OpacusGradients
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_shared.models import Parameters, parameter_shapes
from fedtwin_shared.study import Study
from tests.client.small import MODELS, Seeded, make_examples, small_study, take

ENGINES: Sequence[MakeGradients] = [OpacusGradients, make_patient_gradients]  # the reference, and what trains here
CLIP = 0.5
PATIENTS = 20  # that the plan states; the cohorts below have other numbers
SILENT = 1e-9  # a noise multiplier too small to see
POSITIVE_WEIGHT = 3.0


def step_study(name: str = "logistic", *, clip: float = CLIP, noise: float = SILENT, windows: int = 8) -> Study:
    return small_study(
        features={"windows": windows},
        model={"name": name},
        training={"positive_weight": POSITIVE_WEIGHT},
        privacy={"clip": clip, "noise_multiplier": noise},
    )


def random_parameters(study: Study) -> Parameters:
    generator = np.random.default_rng(1)
    shapes = parameter_shapes(study)
    return {name: generator.normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes.items()}


def flat(parameters: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([array.ravel() for array in parameters.values()]).astype(np.float64)


def descent(study: Study, examples: Examples, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the sum over patients that one round's one step of learning rate 1 descended along."""
    start = random_parameters(study)
    participant = study.participants[0]
    assert participant.patients == PATIENTS
    end = train(study, participant, start, examples, Seeded(seed))
    return (flat(start) - flat(end)) * PATIENTS * study.privacy.sampling_rate


def patient_gradients(study: Study, network: Network, examples: Examples) -> list[Tensor]:
    """Return each patient's gradient by itself, one backward pass each."""
    found = []
    for row in range(len(examples)):
        network.zero_grad()
        one = as_batch(take(examples, [row]))
        torch.autograd.backward(sum_losses(network(one.x, one.mask), one.y, positive_weight=POSITIVE_WEIGHT))
        gradients = [network.parameter(name).grad for name in parameter_shapes(study)]
        found.append(torch.cat([one.flatten() for one in gradients if one is not None]))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_a_loop_over_patients(name: str) -> None:
    study = step_study(name)
    examples = make_examples(study, 13)
    gradients = patient_gradients(study, build_network(study, random_parameters(study)), examples)
    norms = torch.stack([one.norm() for one in gradients])
    assert (norms > CLIP).any(), "somebody must be clipped"
    expected = sum(one * min(1.0, CLIP / float(norm)) for one, norm in zip(gradients, norms, strict=True))
    assert isinstance(expected, Tensor)
    assert descent(study, examples) == pytest.approx(expected.numpy(), abs=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_one_patient_changes_the_sum_before_noise_by_at_most_the_clip(name: str) -> None:
    study = step_study(name, clip=0.05)
    examples = make_examples(study, 8, ragged=False)
    gradients = patient_gradients(study, build_network(study, random_parameters(study)), examples)
    together = descent(study, examples)
    for row in range(len(examples)):
        assert gradients[row].norm() > 0.05, "the clip must have had something to do"
        others = [other for other in range(len(examples)) if other != row]
        moved = np.linalg.norm(together - descent(study, take(examples, others)))
        assert moved <= 0.05 * (1 + 1e-3)


def test_windows_folded_into_the_batch_are_found_out() -> None:
    class Folded(nn.Module):
        """Windows as if they were patients: what is clipped would be a window."""

        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.linear = nn.Linear(inputs, 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            logit: Tensor = self.linear(x.flatten(0, 1).flatten(1))
            return logit.view(x.shape[:2]).mean(dim=1)

    study = step_study()
    batch = as_batch(make_examples(study, 5))
    step = make_step(Folded(batch.x[0, 0].numel()))
    with pytest.raises(RuntimeError, match=r"one gradient for each of 32 patients, found \(256,\)"):
        step(batch)


def make_step(network: nn.Module, *, make_gradients: MakeGradients = OpacusGradients, **changes: float) -> PrivateStep:
    numbers = {"clip": 1.0, "noise_multiplier": 1.0, "expected_batch": 5.0, "positive_weight": 1.0} | changes
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return PrivateStep(
        network,
        optimizer,
        make_gradients=make_gradients,
        **numbers,
        stream=Seeded().stream("train"),
        before_descent=lambda: None,
    )


@pytest.mark.parametrize("name", ["clip", "noise_multiplier", "expected_batch"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_numbers_without_meaning_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        make_step(nn.Sequential(nn.Linear(2, 1)), **{name: value})  # type: ignore[arg-type]  # a number of this name


BARE_NORM = nn.BatchNorm1d(4, affine=False, track_running_stats=False)  # neither parameters nor buffers


@pytest.mark.parametrize(
    ("layer", "instead"),
    [
        (BARE_NORM, "public constants of the Signal table"),
        (nn.BatchNorm1d(4), "public constants of the Signal table"),
        (nn.Conv1d(4, 4, 3), "the registry's tcn"),
        (nn.LSTM(4, 4), "the registry's lstm"),
        (DPLSTM(4, 4), "the registry's lstm"),
        (DPGRU(4, 4), "the registry's lstm"),
        (nn.LayerNorm(4), "use nn.Linear"),
    ],
)
def test_layers_that_could_mix_patients_are_refused_with_what_to_use_instead(layer: nn.Module, instead: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(TypeError, match=rf"layer 1: expected nn.Linear, found {type(layer).__name__}: .*{instead}"):
        check_layers(network)
    with pytest.raises(TypeError):
        make_step(network)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_nothing_stops(name: str, bad: float) -> None:
    study = step_study(name)
    examples = make_examples(study, 9)
    examples.x[4, 0, :, 0] = bad
    others = take(examples, [row for row in range(9) if row != 4])
    found = descent(study, examples)
    assert np.isfinite(found).all()
    assert found == pytest.approx(descent(study, others), abs=2e-5)


def test_discarding_counts_patients_and_leaves_the_others() -> None:
    study = step_study()
    examples = make_examples(study, 40)
    step = make_step(build_network(study, random_parameters(study)))
    step.sum_patients(as_batch(examples))
    assert step.discarded == 0
    examples.x[[4, 30], 0, 0, 0] = np.nan, np.inf
    step.sum_patients(as_batch(examples))
    assert step.discarded == 2


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_a_patients_integers_are_the_same_whatever_other_patients_there_are(
    make: MakeGradients, name: str, scale: float
) -> None:
    # As a whole: who is left out shifts the others' places and changes how many tiles there are.
    study = step_study(name, windows=3)
    parameters = {key: scale * array for key, array in random_parameters(study).items()}
    examples = make_examples(study, 70, ragged=False)
    examples.x[9] = 3e38

    def total(rows: list[int], slots: Slots) -> grid.Total:
        step = make_step(build_network(study, parameters), make_gradients=make, clip=CLIP)
        with pytest.MonkeyPatch.context() as patch:  # each patient's own draw, as in any sample that they are in
            patch.setattr(private_step, "draw_slots", lambda patients, **_: slots[rows])
            return step.sum_patients(as_batch(take(examples, rows)))

    generator = np.random.default_rng(4)
    slots = generator.integers(0, private_step.SMALLEST_TILE, len(examples))
    everybody = total(list(range(70)), slots)
    for _ in range(4):
        here = generator.random(70) < 0.6
        parts = [total(np.flatnonzero(rows).tolist(), slots) for rows in (here, ~here)]
        assert np.array_equal(parts[0] + parts[1], everybody)


@pytest.mark.parametrize("make", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_before_noise_agrees_with_opacus(make: MakeGradients, name: str) -> None:
    study = step_study(name)
    examples = make_examples(study, 13)
    network = build_network(study, random_parameters(study))
    step = make_step(network, make_gradients=make, clip=CLIP, positive_weight=POSITIVE_WEIGHT)
    found = step.sum_patients(as_batch(examples))
    oracle = build_network(study, random_parameters(study))
    sampled = GradSampleModule(oracle, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(oracle.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    everybody = as_batch(examples)
    logit = sampled(everybody.x, everybody.mask)
    torch.autograd.backward(sum_losses(logit, everybody.y, positive_weight=POSITIVE_WEIGHT))
    optimizer.pre_step()
    expected = torch.cat([part.grad.flatten() for part in oracle.parameters() if part.grad is not None])
    error = found / grid.scale(CLIP) - expected.double().numpy()
    assert np.linalg.norm(error) <= 1e-5 * float(expected.norm())


def test_rows_that_are_not_patients_are_refused() -> None:
    class Windows:
        """An engine that gives a row for each window."""

        name, any_slot = "windows", True

        def __init__(self, network: nn.Module, positive_weight: float) -> None:
            self._engine = OpacusGradients(network, positive_weight)

        def __call__(self, tile: Batch, filled: Tensor) -> Tensor:
            return self._engine(tile, filled).repeat_interleave(tile.x.shape[1], dim=0)

    study = step_study()
    step = make_step(build_network(study, random_parameters(study)), make_gradients=Windows)
    with pytest.raises(RuntimeError, match=r"one contiguous float32 row for each of the tile's patients, \(32, 9\)"):
        step(as_batch(make_examples(study, 5)))


def test_a_gradient_too_large_for_its_own_norm_is_clipped_too() -> None:
    study = step_study()
    examples = make_examples(study, 3)
    examples.x[1] = 3e38
    assert np.linalg.norm(descent(study, examples) - descent(study, take(examples, [0, 2]))) <= CLIP * (1 + 1e-3)


@pytest.mark.parametrize("patients", [0, 3])
def test_the_noise_has_the_stated_standard_deviation_whoever_is_there(patients: int) -> None:
    """Nobody included: the noise of an empty batch is the same."""
    noise, clip = 7.0, 0.5
    study = small_study(
        features={"windows": 2},
        model={"name": "mlp", "hidden": 200, "layers": 1},
        privacy={"clip": clip, "noise_multiplier": noise, "sampling_rate": 0.5},
    )
    examples = make_examples(study, patients)
    found = descent(study, examples) / (noise * clip)
    count = len(found)
    assert count > 2000
    assert found.mean() == pytest.approx(0, abs=5 / math.sqrt(count))
    assert found.std() == pytest.approx(1, abs=5 / math.sqrt(2 * count))
    assert np.mean(found**4) == pytest.approx(3, abs=5 * math.sqrt(96 / count))
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 5 / math.sqrt(count)


def test_noise_is_never_used_twice() -> None:
    study = step_study("mlp", noise=1.0)
    nobody = make_examples(study, 0)
    start, source = random_parameters(study), Seeded()
    first, second = (flat(train(study, study.participants[0], start, nobody, source)) for _ in range(2))
    assert abs(np.corrcoef(first - flat(start), second - flat(start))[0, 1]) < 5 / math.sqrt(len(first))
    two_steps = study.model_copy(update={"training": study.training.model_copy(update={"local_steps": 2})})
    both = flat(train(two_steps, study.participants[0], start, nobody, Seeded())) - flat(start)
    once = flat(train(study, study.participants[0], start, nobody, Seeded())) - flat(start)
    assert abs(np.corrcoef(once, both - once)[0, 1]) < 5 / math.sqrt(len(once))


@pytest.mark.parametrize("name", MODELS)
def test_smaller_tiles_change_rounding_only_and_the_noise_comes_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = step_study(name, noise=0.3)
    examples = make_examples(study, 11)
    whole = descent(study, examples)
    parameters = sum(array.size for array in random_parameters(study).values())
    monkeypatch.setattr(private_step, "TILE_NUMBERS", 3 * parameters)
    assert descent(study, examples) == pytest.approx(whole, abs=2e-5)


def test_the_loss_weighs_the_outcome_by_the_constant() -> None:
    logit, y = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0])
    expected = -POSITIVE_WEIGHT * math.log(1 / (1 + math.exp(-0.3))) - math.log(1 - 1 / (1 + math.exp(1.2)))
    assert float(sum_losses(logit, y, positive_weight=POSITIVE_WEIGHT)) == pytest.approx(expected, rel=1e-6)


def test_extracted_parameters_are_the_trained_ones() -> None:
    study = step_study("mlp")
    network = build_network(study, random_parameters(study))
    before = flat(extract_parameters(study, network))
    make_step(network)(as_batch(make_examples(study, 4)))
    assert not np.array_equal(flat(extract_parameters(study, network)), before)
