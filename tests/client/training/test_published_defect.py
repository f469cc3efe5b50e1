"""Regression: what accounting for other steps than were run does to a published benchmark.

FLamby's Fed-Heart-Disease with DP-FedAvg (flamby/strategies/utils.py) calibrates its noise for `epochs` = number of
rounds = 15, which is 15 · ⌈n / 4⌉ steps of batch 4, and then makes 100 updates in each round: 1,500 steps at each site.
"""

from __future__ import annotations

import math

import pytest

from fedtwin_client.training import train
from fedtwin_shared.models import initialise
from fedtwin_shared.privacy import Mechanism, PrivacyEvent, compute_epsilon_renyi
from fedtwin_shared.study import Study
from tests.client.small import Seeded, make_examples, small_study
from tests.client.training.test_local_steps import counted_steps

DELTA, BATCH, ROUNDS, UPDATES = 1e-3, 4, 15, 100

# Training patients of Cleveland, Hungary, Switzerland, Long Beach; claimed ε; the noise multiplier that Rényi
# accounting of the calibrated steps gives for it (found by bisection); the ε of the steps that run.
PUBLISHED = [
    (199, 1.0, 1.7907, 1.5),
    (172, 1.0, 1.9026, 1.6),
    (30, 1.0, 4.4048, 4.4),
    (85, 1.0, 2.6504, 2.4),
    (199, 10.0, 0.6018, 14.5),
    (172, 10.0, 0.6166, 15.9),
    (30, 10.0, 0.9350, 61.5),
    (85, 10.0, 0.7125, 25.9),
]
HONEST = 2.3999  # the noise multiplier for ε = 1 at Cleveland when all 1,500 steps are accounted


def epsilon(patients: int, noise: float, steps: int) -> float:
    event = PrivacyEvent(
        mechanism=Mechanism.POISSON_GAUSSIAN, noise_multiplier=noise, sampling_rate=BATCH / patients, count=steps
    )
    return compute_epsilon_renyi([event], delta=DELTA)


@pytest.mark.parametrize(("patients", "claimed", "noise", "really"), PUBLISHED)
def test_noise_for_15_epochs_and_1500_steps(patients: int, claimed: float, noise: float, really: float) -> None:
    assert epsilon(patients, noise, ROUNDS * math.ceil(patients / BATCH)) == pytest.approx(claimed, rel=1e-3)
    assert epsilon(patients, noise, ROUNDS * UPDATES) == pytest.approx(really, abs=0.05)


def cleveland_study(noise: float) -> Study:
    patients = PUBLISHED[0][0]
    return small_study(
        participants=[{"site": "north", "patients": patients}],  # type: ignore[arg-type]
        training={"rounds": ROUNDS, "local_steps": UPDATES, "learning_rate": 0.01},
        privacy={"epsilon": 1.0, "delta": DELTA, "sampling_rate": BATCH / patients, "noise_multiplier": noise},
        evaluation={"noise_multiplier": 1e3},
    )


def test_such_a_plan_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"at least the price of the plan, 1\.28"):
        cleveland_study(PUBLISHED[0][2])


def test_a_plan_that_can_be_written_runs_the_steps_that_it_accounts() -> None:
    study = cleveland_study(HONEST)
    with counted_steps() as made:
        train(study, study.participants[0], initialise(study), make_examples(study, 199), Seeded())
    assert made[0] * ROUNDS == study.planned_steps == study.training_event(study.planned_steps).count == 1500
