"""An unmodified PrivacyEngine on our recurrent layers, against a loop over patients."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedtwin_client.training.opacus_layers import PatientGRU, PatientLSTM, sample_gradients

PATIENTS, WINDOWS, STEPS, FEATURES, HIDDEN, CLIP = 9, 3, 5, 4, 6, 0.05
LAYERS = {"lstm": PatientLSTM, "gru": PatientGRU}


class Readout(nn.Module):
    """Two recurrent layers and the mean over windows of a linear readout of the last step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = LAYERS[kind](FEATURES, HIDDEN), LAYERS[kind](HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        last = self.second(self.first(x))[:, :, -1]
        logit: Tensor = self.head(last).squeeze(2).mean(dim=1)
        return logit


def loop_over_patients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for row in range(len(x)):
        model.zero_grad()
        torch.autograd.backward(
            nn.functional.binary_cross_entropy_with_logits(model(x[row : row + 1]), y[row : row + 1])
        )
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_an_unmodified_privacy_engine_descends_along_the_clipped_sum(
    kind: str, mode: Literal["hooks", "ghost"]
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Readout(kind)
    x, y = torch.randn(PATIENTS, WINDOWS, STEPS, FEATURES), (torch.rand(PATIENTS) < 0.5).float()
    gradients = loop_over_patients(model, x, y)
    scale = (CLIP / gradients.norm(dim=1)).clamp(max=1.0)
    assert (scale < 1).any()
    expected = (gradients * scale[:, None]).sum(dim=0) / PATIENTS
    model.zero_grad()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        criterion=nn.BCEWithLogitsLoss(),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=PATIENTS),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else nn.BCEWithLogitsLoss()
    optimizer.zero_grad()
    criterion(private(x), y).backward()
    if mode == "hooks":
        samples = torch.cat([s.flatten(1) for s in optimizer.grad_samples], dim=1)
        assert ((samples.norm(dim=1) - gradients.norm(dim=1)).abs() <= 1e-5 * gradients.norm(dim=1)).all()
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    moved = before - after
    # Opacus adds 1e-6 to every norm before it divides; the rest is rounding of the subtraction.
    assert (moved - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_nobody_sampled_has_gradients_of_nobody(kind: str) -> None:
    layer = LAYERS[kind](FEATURES, HIDDEN)
    found = sample_gradients(layer, [torch.zeros(0, WINDOWS, STEPS, FEATURES)], torch.zeros(0, WINDOWS, STEPS, HIDDEN))
    assert {rows.shape[0] for rows in found.values()} == {0}
