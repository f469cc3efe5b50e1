"""One round at one site: constants of the plan, fresh optimisers, FedProx, bit-reproducibility, steps as accounted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import build_network
from fedtwin_client.training import train
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import Parameters, digest_parameters, initialise, parameter_shapes
from fedtwin_shared.study import Study
from tests.client.small import MODELS, Seeded, make_examples, small_study, take

NONE = {"mode": "none"}


def run(study: Study, examples: Examples, *, start: Parameters | None = None, seed: int = 0) -> Parameters:
    return train(study, study.participants[0], initialise(study) if start is None else start, examples, Seeded(seed))


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """Count the steps that torch's own optimiser really makes, in the first and only element."""
    made = [0]

    def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        made[0] += 1

    handle = register_optimizer_step_post_hook(count)
    try:
        yield made
    finally:
        handle.remove()


@pytest.mark.parametrize("mode", ["local", "none"])
@pytest.mark.parametrize("patients", [0, 1, 30])
@pytest.mark.parametrize(("rounds", "local_steps"), [(1, 1), (3, 7)])
def test_accounted_steps_equal_steps_run(mode: str, patients: int, rounds: int, local_steps: int) -> None:
    study = small_study(
        training={"rounds": rounds, "local_steps": local_steps, "learning_rate": 0.1},
        privacy={"mode": mode, "sampling_rate": 0.1},
    )
    examples, parameters = make_examples(study, patients), initialise(study)
    with counted_steps() as made:
        for seed in range(rounds):
            parameters = dict(run(study, examples, start=parameters, seed=seed))
    assert made == [study.training_event(study.planned_steps).count] == [rounds * local_steps]


@pytest.mark.parametrize("mode", ["local", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_bits(name: str, mode: str) -> None:
    study = small_study(
        features={"windows": 2},
        model={"name": name, "mask_as_input": True},
        training={"local_steps": 3, "momentum": 0.5, "weight_decay": 0.01},
        privacy={"mode": mode, "sampling_rate": 0.5},
    )
    examples = make_examples(study, 12)
    one, again, other = (digest_parameters(run(study, examples, seed=seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("mode", ["local", "none"])
def test_neither_the_received_parameters_nor_the_examples_change(mode: str) -> None:
    study = small_study(privacy={"mode": mode})
    examples, start = make_examples(study, 5), initialise(study)
    before = (digest_parameters(start), examples.x.tobytes(), examples.mask.tobytes(), examples.y.tobytes())
    result = run(study, examples, start=start)
    assert (digest_parameters(start), examples.x.tobytes(), examples.mask.tobytes(), examples.y.tobytes()) == before
    assert digest_parameters(result) != before[0]
    assert {name: array.shape for name, array in result.items()} == parameter_shapes(study)
    assert all(array.dtype == np.float32 for array in result.values())


def test_chance_comes_from_what_was_passed_in_alone() -> None:
    study = small_study(model={"name": "lstm"}, privacy={"sampling_rate": 0.5})
    before = torch.get_rng_state()
    run(study, make_examples(study, 5))
    assert torch.equal(torch.get_rng_state(), before)


def loss_gradient(study: Study, parameters: Parameters, examples: Examples) -> dict[str, Tensor]:
    """Return the gradient of the summed loss, by plain autograd."""
    network = build_network(study, parameters)
    logit = network(torch.from_numpy(examples.x), torch.from_numpy(examples.mask))
    weight = torch.tensor(study.training.positive_weight)
    y = torch.from_numpy(examples.y)
    torch.autograd.backward(binary_cross_entropy_with_logits(logit, y, pos_weight=weight, reduction="sum"))
    return {name: gradient for name in parameters if (gradient := network.parameter(name).grad) is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("proximal", [0.0, 0.3])
def test_plain_steps_are_gradient_descent_with_the_plans_denominator_and_decay(name: str, proximal: float) -> None:
    rate, momentum, decay, learning_rate, patients = 1.0, 0.4, 0.05, 0.2, 20
    study = small_study(
        features={"windows": 2},
        model={"name": name},
        training={
            "algorithm": "fedprox" if proximal else "fedavg",
            "local_steps": 3,
            "learning_rate": learning_rate,
            "momentum": momentum,
            "weight_decay": decay,
            "proximal": proximal,
            "positive_weight": 2.0,
        },
        privacy={"mode": "none", "sampling_rate": rate},
    )
    assert study.participants[0].patients == patients
    examples = make_examples(study, 7)  # not the number that the plan states
    start = initialise(study)
    weights = {key: np.array(array) for key, array in start.items()}
    velocity = {key: np.zeros_like(array) for key, array in start.items()}
    for _ in range(3):
        gradients = loss_gradient(study, weights, examples)
        for key, array in weights.items():
            slope = gradients[key].numpy().reshape(array.shape) / (rate * patients)
            slope = slope + (0 if key.endswith("bias") else decay) * array + proximal * (array - start[key])
            velocity[key] = (momentum * velocity[key] + slope).astype(np.float32)
        weights = {key: (array - learning_rate * velocity[key]).astype(np.float32) for key, array in weights.items()}
    found = run(study, examples, start=start)
    for key, array in weights.items():
        assert found[key] == pytest.approx(array, abs=1e-5)


def test_momentum_starts_afresh_every_round() -> None:
    study = small_study(training={"momentum": 0.9, "learning_rate": 0.1}, privacy=NONE)
    examples = make_examples(study, 9)
    once = run(study, examples)
    without = study.model_copy(update={"training": study.training.model_copy(update={"momentum": 0.0})})
    assert digest_parameters(run(study, examples, start=once)) == digest_parameters(run(without, examples, start=once))


@pytest.mark.parametrize("mode", ["local", "none"])
def test_the_cohorts_size_changes_no_denominator(mode: str) -> None:
    """Twice the same patients descend twice as far: nothing is divided by how many there are."""
    study = small_study(privacy={"mode": mode, "noise_multiplier": 1e-9, "clip": 100.0})
    examples = make_examples(study, 6)
    start = initialise(study)
    single = run(study, examples, start=start)
    double = run(study, take(examples, [*range(6), *range(6)]), start=start)
    for name, array in start.items():
        assert double[name] - array == pytest.approx(2 * (single[name] - array), abs=1e-6)


def test_fedprox_pulls_by_a_term_outside_the_clip() -> None:
    """With everything clipped to nothing, two steps of proximal 0.5 differ from plain ones by the pull alone."""
    tables = {"privacy": {"clip": 1.0, "noise_multiplier": 5.0}}
    plain = small_study(training={"local_steps": 2}, **tables)
    pulled = small_study(training={"local_steps": 2, "algorithm": "fedprox", "proximal": 0.5}, **tables)
    one_step = small_study(**tables)
    nobody = make_examples(plain, 0)
    start = initialise(plain)
    first = run(one_step, nobody, start=start, seed=1)
    straight, back = (run(study, nobody, start=start, seed=1) for study in (plain, pulled))
    for name, array in start.items():
        assert np.abs(first[name] - array).max() > 0.01, "noise must have moved it"
        assert straight[name] - back[name] == pytest.approx(0.5 * (first[name] - array), abs=1e-5)


def test_nobody_there_is_no_reason_to_stop() -> None:
    for mode in ("local", "none"):
        study = small_study(training={"local_steps": 3}, privacy={"mode": mode, "sampling_rate": 0.01})
        result = run(study, make_examples(study, 0))
        assert all(np.isfinite(array).all() for array in result.values())
        assert (digest_parameters(result) == digest_parameters(initialise(study))) == (mode == "none")


def test_parameters_of_another_study_are_refused_before_anything_runs() -> None:
    study = small_study()
    wrong = initialise(small_study(model={"name": "lstm"}))
    with counted_steps() as made, pytest.raises(VerificationError):
        run(study, make_examples(study, 3), start=wrong)
    assert made == [0]


def test_private_training_learns() -> None:
    """Sanity of the whole: with many patients and moderate noise, the weights point at the truth."""
    study = small_study(
        participants=[{"site": "north", "patients": 2000}],  # type: ignore[arg-type]
        training={"rounds": 1, "local_steps": 40, "learning_rate": 2.0},
        privacy={"noise_multiplier": 4.0, "sampling_rate": 0.5},
    )
    examples = make_examples(study, 2000, ragged=False)
    truth = np.random.default_rng(3).normal(size=examples.x[0].size)
    score = examples.x.reshape(2000, -1) @ truth
    examples.y[:] = score > 0
    weight = run(study, examples)["weight"]
    assert np.corrcoef(weight, truth)[0, 1] > 0.97
