"""The benchmark's twins compute what our networks compute, and a row says what was measured."""

from __future__ import annotations

import pytest
import torch

from fedtwin_client.networks import build_network
from fedtwin_client.training.arithmetic import TORCH
from fedtwin_shared.models import initialise
from fedtwin_simulations import private_step_bench
from fedtwin_simulations.private_step_bench import Case, Twin, make_batch, make_study, measure_case

SMALL = {"hidden": 8, "patients": 6, "windows": 3, "goal": 1.0}


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("model", ["lstm", "gru", "tcn"])
def test_the_twin_is_the_same_model(model: str, cut: bool) -> None:
    case = Case(model=model, ragged=True, cut=cut and model == "tcn", **SMALL)  # type: ignore[arg-type]
    study, twin, batch = make_study(case), Twin(case), make_batch(case)
    network = build_network(study, initialise(study))
    with torch.no_grad():
        if model == "tcn":
            for layer, convolution in enumerate(twin.layers):
                # Ours lists the taps from the present backwards, torch from the past to the present.
                taps = network.parameter(f"conv{layer}.weight").view(8, private_step_bench.TAPS, -1)
                convolution.get_parameter("weight").copy_(taps.flip(1).transpose(1, 2))
                convolution.get_parameter("bias").copy_(network.parameter(f"conv{layer}.bias"))
        else:
            cell = twin.layers[0]
            for theirs, ours in (("weight_ih_l0", "input"), ("weight_hh_l0", "recurrent"), ("bias_ih_l0", "bias")):
                cell.get_parameter(theirs).copy_(network.parameter(f"{model}0.{ours}"))
            cell.get_parameter("bias_hh_l0").zero_()
        twin.head.weight.copy_(network.parameter("head.weight"))
        twin.head.bias.copy_(network.parameter("head.bias"))
        torch.testing.assert_close(twin(batch.x, batch.mask), network(batch.x, batch.mask))


def test_a_row_says_what_was_measured() -> None:
    row = measure_case(Case(model="lstm", **SMALL), None, repeats=2)  # type: ignore[arg-type]
    assert row.case.startswith("lstm, hidden 8, 6 patients × 3 × 48 h; engine ")
    assert row.ours > 0
    assert row.baseline is not None
    assert row.baseline > 0
    assert row.holds == (row.ours <= row.baseline)
    other = measure_case(Case(model="gru", **SMALL), TORCH, repeats=1)  # type: ignore[arg-type]
    assert other.case.endswith("engine torch")
    assert other.holds
