"""Sweeps: the best setting is found on seeds of their own, and a sweep that stopped goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.campaign import sweep
from fedtwin_simulations.campaign.specification import Campaign, Case
from tests.simulations.campaign.test_campaigns import make_campaign

SPACE = {"training.learning_rate": {"low": 0.1, "high": 10.0, "log": True}, "privacy.clip": {"low": 0.5, "high": 2.0}}


def campaign(trials: int = 12, **changes: Any) -> Campaign:
    return make_campaign(sweep={"seeds": [100, 101], "trials": trials, "space": SPACE, **changes})


class Bowl:
    """Best at a learning rate of 1; notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, int]] = []

    def __call__(self, campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
        rate = case.changes["training"]["learning_rate"]
        assert 0.5 <= case.changes["privacy"]["clip"] <= 2
        self.asked.append((rate, seed))
        return {"figures": {"auroc": 1 - 0.1 * abs(rate - 1)}, "sites": {}}


def test_a_sweep_finds_the_best_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, tuned = Bowl(), campaign()
    best = sweep.run_sweep(tuned, tuned.cases[1], tmp_path / "whole", run_trial=whole)
    assert best.trials == 12
    assert best.figure == pytest.approx(max(1 - 0.1 * abs(rate - 1) for rate, _ in whole.asked))
    assert {seed for _, seed in whole.asked} == {100, 101}

    class StopError(Exception):
        pass

    def stop(done: int, every: int) -> None:
        if done == 5:
            raise StopError

    parts = Bowl()
    with pytest.raises(StopError):
        sweep.run_sweep(tuned, tuned.cases[1], tmp_path / "parts", run_trial=parts, on_progress=stop)
    resumed = sweep.run_sweep(tuned, tuned.cases[1], tmp_path / "parts", run_trial=parts)
    assert parts.asked == whole.asked
    assert resumed == best


def test_nobody_is_tuned_on_who_is_reported() -> None:
    with pytest.raises(ValueError, match=r"sweep.seeds"):
        campaign(seeds=[100, 1])


def test_a_campaign_without_a_sweep_says_so(tmp_path: Path) -> None:
    plain = make_campaign()
    with pytest.raises(ConfigurationError, match="tiny: sweep"):
        sweep.run_sweep(plain, plain.cases[0], tmp_path)
