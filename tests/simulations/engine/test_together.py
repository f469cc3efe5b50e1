"""Sites trained as one: each gets what it would get alone, from its own stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedtwin_client.cohort import Cohort, Examples
from fedtwin_client.training import train
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.study import ModelName, Study
from fedtwin_simulations.cohorts import take
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.engine.site_data import DrawnData
from fedtwin_simulations.engine.together import Member, train_together
from fedtwin_simulations.engine_bench import Case, make_study
from fedtwin_simulations.seeded_randomness import SeededRandomness

SITES = ("one", "two", "three", "four", "five")
MODELS: tuple[ModelName, ...] = ("logistic", "mlp", "lstm", "gru", "mingru", "tcn")


def make(model: ModelName, *, private: bool) -> tuple[Study, list[Examples]]:
    """Return a study with every knob turned, and sites of different sizes with ragged windows."""
    case = Case(sites=len(SITES), model=model, patients=20, steps=5, features=4, hidden=6, private=private)
    study = make_study(case, make_consortium(SITES, seed=0))
    changes: dict[str, Any] = {
        "features": study.features.model_copy(update={"windows": 2}),
        "model": study.model.model_copy(update={"layers": 1 if model == "logistic" else 2, "mask_as_input": True}),
        "training": study.training.model_copy(
            update={
                "local_steps": 3,
                "momentum": 0.5,
                "weight_decay": 0.1,
                "algorithm": "fedprox",
                "proximal": 0.2,
                "positive_weight": 3.0,
            }
        ),
        "privacy": study.privacy.model_copy(update={"sampling_rate": 0.6}),
    }
    study = study.model_copy(update=changes)
    data = DrawnData(sites=SITES, seed=1, train=20, test=1)
    return study, [_ragged(data.read(study, site), leave=number) for number, site in enumerate(SITES)]


def _ragged(cohort: Cohort, *, leave: int) -> Examples:
    everybody = cohort.train
    x, mask = everybody.x.copy(), everybody.mask.copy()
    x[::3, 1], mask[::3, 1] = 0.0, False
    kept = np.arange(len(everybody)) >= leave
    return take(replace(everybody, x=x, mask=mask), kept)


def train_alone(study: Study, sites: list[Examples]) -> list[Parameters]:
    part, start = study.participants[0], initialise(study)
    chance = [SeededRandomness(seed=3, site=site) for site in SITES]
    return [train(study, part, start, examples, own) for examples, own in zip(sites, chance, strict=True)]


def train_all(study: Study, sites: list[Examples], names: tuple[str, ...] = SITES) -> list[Parameters]:
    members = [
        Member(
            participant=study.participants[0],
            examples=examples,
            stream=SeededRandomness(seed=3, site=site).stream("train"),
        )
        for site, examples in zip(names, sites, strict=True)
    ]
    return train_together(study, members, initialise(study))


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("model", MODELS)
def test_every_site_agrees_with_itself_alone_within_a_hundred_thousandth(model: ModelName, private: bool) -> None:
    study, sites = make(model, private=private)
    for alone, together in zip(train_alone(study, sites), train_all(study, sites), strict=True):
        assert list(alone) == list(together)
        for name, array in alone.items():
            assert array.dtype == together[name].dtype
            np.testing.assert_allclose(together[name], array, atol=1e-5, rtol=0)


def test_a_sites_noise_does_not_depend_on_who_else_is_there() -> None:
    study, sites = make("mlp", private=True)
    everybody, two = train_all(study, sites), train_all(study, sites[3:], SITES[3:])
    for name in everybody[3]:
        np.testing.assert_allclose(everybody[3][name], two[0][name], atol=1e-6, rtol=0)
    noisy = [one["head.weight"] for one in everybody]
    assert all(not np.allclose(noisy[0], other, atol=1e-3) for other in noisy[1:])


def test_a_site_without_patients_gives_noise_alone() -> None:
    study, sites = make("mlp", private=True)
    nobody = take(sites[0], np.zeros(len(sites[0]), bool))
    alone, together = train_alone(study, [nobody] * 5), train_all(study, [nobody] * 5)
    np.testing.assert_allclose(together[0]["head.weight"], alone[0]["head.weight"], atol=1e-5, rtol=0)
