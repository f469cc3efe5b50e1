"""Forward passes against torch's own layers and plain numpy, and the promise that patients do not meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedtwin_client.networks import Network, build_network, extract_parameters
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import initialise, parameter_shapes
from fedtwin_shared.study import Study
from tests.client.small import MODELS, make_examples, small_study, take


def model_study(name: str, *, windows: int = 3, **model: Any) -> Study:
    return small_study(model={"name": name, **model}, features={"windows": windows})


def random_parameters(study: Study, seed: int = 0) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.normal(scale=0.7, size=shape).astype(np.float32)
        for name, shape in parameter_shapes(study).items()
    }


def logits(study: Study, network: Network, patients: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    examples = make_examples(study, patients, seed=seed)
    x, mask = torch.from_numpy(examples.x), torch.from_numpy(examples.mask)
    with torch.no_grad():
        found: Tensor = network(x, mask)
    return x, mask, found


def mean_over_known(window_logits: Tensor, mask: Tensor) -> Tensor:
    known = mask.flatten(2).any(dim=2)
    return torch.stack([one[here].mean() for one, here in zip(window_logits, known, strict=True)])


def tensors(parameters: dict[str, np.ndarray[Any, np.dtype[np.float32]]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in parameters.items()}


@pytest.mark.parametrize("mask_as_input", [False, True])
def test_logistic(mask_as_input: bool) -> None:
    study = model_study("logistic", mask_as_input=mask_as_input)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    inputs = torch.cat([x, mask.float()], dim=3) if mask_as_input else x
    p = tensors(weights)
    torch.testing.assert_close(found, mean_over_known(inputs.flatten(2) @ p["weight"] + p["bias"], mask))


def test_mlp() -> None:
    study = model_study("mlp", layers=2)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    p, state = tensors(weights), x.flatten(2)
    for layer in range(2):
        state = torch.tanh(state @ p[f"hidden{layer}.weight"].T + p[f"hidden{layer}.bias"])
    torch.testing.assert_close(found, mean_over_known((state @ p["head.weight"].T + p["head.bias"]).squeeze(2), mask))


def test_lstm_is_torchs_own() -> None:
    study = model_study("lstm", layers=2)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    reference, p = nn.LSTM(x.shape[3], study.model.hidden, num_layers=2, batch_first=True), tensors(weights)
    with torch.no_grad():
        for layer in range(2):
            getattr(reference, f"weight_ih_l{layer}").copy_(p[f"lstm{layer}.input"])
            getattr(reference, f"weight_hh_l{layer}").copy_(p[f"lstm{layer}.recurrent"])
            getattr(reference, f"bias_ih_l{layer}").copy_(p[f"lstm{layer}.bias"])
            getattr(reference, f"bias_hh_l{layer}").zero_()
        states = reference(x.flatten(0, 1))[0][:, -1].view(*x.shape[:2], -1)
    torch.testing.assert_close(found, mean_over_known((states @ p["head.weight"].T + p["head.bias"]).squeeze(2), mask))


def test_gru_is_torchs_own() -> None:
    study = model_study("gru", layers=2)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    reference, p = nn.GRU(x.shape[3], study.model.hidden, num_layers=2, batch_first=True), tensors(weights)
    with torch.no_grad():
        for layer in range(2):
            getattr(reference, f"weight_ih_l{layer}").copy_(p[f"gru{layer}.input"])
            getattr(reference, f"weight_hh_l{layer}").copy_(p[f"gru{layer}.recurrent"])
            getattr(reference, f"bias_ih_l{layer}").copy_(p[f"gru{layer}.bias"])
            getattr(reference, f"bias_hh_l{layer}").zero_()
        states = reference(x.flatten(0, 1))[0][:, -1].view(*x.shape[:2], -1)
    torch.testing.assert_close(found, mean_over_known((states @ p["head.weight"].T + p["head.bias"]).squeeze(2), mask))


def test_mingru_is_a_running_mean_with_shares_of_the_input() -> None:
    study = model_study("mingru", layers=2)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    p, states = tensors(weights), x
    for layer in range(2):
        share, fresh = (states @ p[f"mingru{layer}.weight"].T + p[f"mingru{layer}.bias"]).chunk(2, dim=3)
        share, fresh = torch.sigmoid(share), torch.tanh(fresh)
        # h_t = Σ_s z_s n_s Π_{r > s} (1 - z_r), summed as it stands
        remain = torch.stack([(1 - share[:, :, 1 + s :]).prod(dim=2) for s in range(share.shape[2])], dim=2)
        whole = [
            sum(share[:, :, s] * fresh[:, :, s] * (1 - share[:, :, s + 1 : t + 1]).prod(dim=2) for s in range(t + 1))
            for t in range(share.shape[2])
        ]
        assert isinstance(whole[0], Tensor)
        torch.testing.assert_close(whole[-1], (share * fresh * remain).sum(dim=2))
        states = torch.stack(whole, dim=2)  # type: ignore[arg-type] # sum() of tensors is one
    last = states[:, :, -1]
    torch.testing.assert_close(found, mean_over_known((last @ p["head.weight"].T + p["head.bias"]).squeeze(2), mask))


def test_tcn_is_a_causal_dilated_convolution() -> None:
    study = model_study("tcn", layers=3, kernel=3)
    weights = random_parameters(study)
    x, mask, found = logits(study, build_network(study, weights))
    p, state = tensors(weights), x.flatten(0, 1).transpose(1, 2)
    for layer in range(3):
        # Ours lists the taps from the present backwards, torch from the past to the present.
        kernel = p[f"conv{layer}.weight"].view(study.model.hidden, 3, -1).flip(1).transpose(1, 2)
        padded = nn.functional.pad(state, (2 * 2**layer, 0))
        out = torch.relu(nn.functional.conv1d(padded, kernel, p[f"conv{layer}.bias"], dilation=2**layer))
        state = out if layer == 0 else state + out
    last = state[:, :, -1].view(*x.shape[:2], -1)
    torch.testing.assert_close(found, mean_over_known((last @ p["head.weight"].T + p["head.bias"]).squeeze(2), mask))


@pytest.mark.parametrize("name", MODELS)
def test_a_patients_logit_does_not_depend_on_other_patients(name: str) -> None:
    study = model_study(name)
    network = build_network(study, random_parameters(study))
    examples = make_examples(study, 6)
    with torch.no_grad():
        together = network(torch.from_numpy(examples.x), torch.from_numpy(examples.mask))
        for row in range(6):
            one = take(examples, [row])
            alone = network(torch.from_numpy(one.x), torch.from_numpy(one.mask))
            torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("name", MODELS)
def test_windows_of_which_nothing_is_known_do_not_count(name: str) -> None:
    study = model_study(name)
    network = build_network(study, random_parameters(study))
    examples = make_examples(study, 4, ragged=False)
    x, mask = torch.from_numpy(examples.x.copy()), torch.from_numpy(examples.mask.copy())
    x[:, 1:], mask[:, 1:] = 0.0, False
    with torch.no_grad():
        torch.testing.assert_close(network(x, mask), network(x[:, :1], mask[:, :1]))


@pytest.mark.parametrize("name", MODELS)
def test_a_patient_of_whom_nothing_is_known_gets_the_logit_of_zeros(name: str) -> None:
    study = model_study(name)
    network = build_network(study, random_parameters(study))
    zeros = torch.zeros(2, 3, 4, len(study.feature_names()))
    with torch.no_grad():
        found = network(zeros, torch.zeros_like(zeros, dtype=torch.bool))
        single = network(zeros[:1, :1], torch.ones_like(zeros[:1, :1], dtype=torch.bool))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, single.expand(2))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_go_in_and_come_out_unchanged(name: str) -> None:
    study = model_study(name)
    given = random_parameters(study)
    network = build_network(study, given)
    found = extract_parameters(study, network)
    assert list(found) == list(parameter_shapes(study))
    assert all(found[key].tobytes() == given[key].tobytes() and found[key].shape == given[key].shape for key in given)
    assert sum(parameter.numel() for parameter in network.parameters()) == sum(array.size for array in given.values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(found[key].any() and given[key].any() for key in given), "a copy, not a view"


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_moves_the_logit(name: str) -> None:
    study = model_study(name)
    network = build_network(study, random_parameters(study))
    examples = make_examples(study, 6)
    torch.autograd.backward(network(torch.from_numpy(examples.x), torch.from_numpy(examples.mask)).sum())
    for key in parameter_shapes(study):
        gradient = network.parameter(key).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_received_weights_that_are_not_finite_are_refused(bad: float) -> None:
    study = model_study("mlp")
    parameters = initialise(study)
    parameters["head.weight"][0, 0] = bad
    with pytest.raises(VerificationError, match=r"head\.weight: expected finite"):
        build_network(study, parameters)


def test_received_weights_of_another_model_are_refused() -> None:
    with pytest.raises(VerificationError):
        build_network(model_study("lstm"), initialise(model_study("tcn")))
