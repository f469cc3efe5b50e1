"""The steps that are accounted are the steps that run: what FLamby's published figures got wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedtwin_client.training.private_step import PrivateStep
from fedtwin_shared.privacy import Mechanism, PrivacyBudget, PrivacyEvent, calibrate_noise, compute_epsilon
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.one_process import run_study
from fedtwin_simulations.specification import draft_study, merge
from tests.simulations.laboratory import SITES, small_experiment, small_gathered, study_document

# FLamby (edacf54), flamby/strategies: noise is calibrated for 15 epochs, 15 rounds of 100 updates of 4 patients run.
BATCH, EPOCHS, STEPS_RUN, DELTA = 4, 15, 1500, 1e-3
TRULY = {199: 1.5, 172: 1.6, 30: 4.4, 85: 2.4}  # training patients -> ε of a claimed 1


@pytest.mark.parametrize(("patients", "truly"), TRULY.items())
def test_flambys_claim_of_one_is_really_more(patients: int, truly: float) -> None:
    steps_of_an_epoch = math.ceil(patients / BATCH)
    claimed = PrivacyEvent(
        mechanism=Mechanism.POISSON_GAUSSIAN,
        noise_multiplier=1.0,
        sampling_rate=1 / steps_of_an_epoch,
        count=EPOCHS * steps_of_an_epoch,
    )
    noise = calibrate_noise(claimed, PrivacyBudget(epsilon=1.0, delta=DELTA), tolerance=0.01)
    ran = PrivacyEvent(
        mechanism=Mechanism.POISSON_GAUSSIAN,
        noise_multiplier=noise,
        sampling_rate=1 / steps_of_an_epoch,
        count=STEPS_RUN,
    )
    assert compute_epsilon([ran], delta=DELTA) == pytest.approx(truly, rel=0.05)


@pytest.mark.parametrize(("rounds", "local_steps"), [(3, 1), (2, 5)])
def test_the_accounted_steps_equal_the_steps_run(
    rounds: int, local_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = 0
    step = PrivateStep.__call__

    def counted(self: PrivateStep, *arguments: object) -> None:
        nonlocal ran
        ran += 1
        step(self, *arguments)  # type: ignore[arg-type]  # passes on what it was given

    monkeypatch.setattr(PrivateStep, "__call__", counted)
    changes = {"training": {"rounds": rounds, "local_steps": local_steps}, "evaluation": {"rounds": []}}
    experiment = small_experiment(study=merge(study_document(), changes))
    consortium = make_consortium(SITES)
    study = draft_study(experiment, experiment.methods[3], consortium.roster)
    gathered = small_gathered(tmp_path, patients=40)
    cohorts = {site: gathered.cohort(study, site, gathered.parts(study)) for site in SITES}
    outcome = run_study(study, consortium, cohorts, seed=0)
    assert ran == len(SITES) * rounds * local_steps
    assert {spend.steps for spend in outcome.spent.values()} == {rounds * local_steps} == {study.planned_steps}
    assert study.spent(steps=rounds * local_steps, releases=1) == study.price() <= study.privacy.epsilon
