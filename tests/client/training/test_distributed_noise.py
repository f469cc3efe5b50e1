"""Noise that the sites share: one sum over all of them, in integers, and the plan's noise in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedtwin_client.networks import build_network
from fedtwin_client.training import grid
from fedtwin_client.training.batch import as_batch
from fedtwin_client.training.engine import make_patient_gradients
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_shared.models import initialise
from fedtwin_shared.secagg.terms import Terms, honest_sites, share_noise
from fedtwin_shared.study import Study
from tests.client.small import MODELS, Seeded, make_examples, take
from tests.client.training.test_private_step import make_step, step_study
from tests.shared.secagg.assembly import (
    Integers,
    make_setup,
    members_of,
    run_step,
    set_up,
)
from tests.shared.secagg.assembly import (
    make_step as make_secure_step,
)
from tests.soak import SOAK

SPLIT = {"site-000": range(9), "site-001": range(9, 11), "site-002": range(11, 30)}


def make_terms_for(dimension: int, *, patients: int, noise: float, count: int = 3) -> Terms:
    return Terms(
        members=members_of(count),
        threshold=count,
        dropouts=0,
        colluders=1,
        instances=1,
        largest=grid.largest_coordinate(dimension, patients=patients, noise_multiplier=noise),
    )


def aggregate(terms: Terms, vectors: dict[str, Integers]) -> Integers:
    assembly = set_up(make_setup(terms))
    length = len(next(iter(vectors.values())))
    _, total = run_step(assembly, make_secure_step(length=length), vectors)
    return total


@pytest.mark.parametrize("name", MODELS if SOAK else ["logistic", "lstm"])
def test_without_noise_the_sites_sum_is_that_of_their_pooled_patients(name: str) -> None:
    # To the bit, through masks: federated training is then centralised training on everybody's patients.
    study = step_study(name, windows=3)
    examples = make_examples(study, 30)

    def sum_of(rows: range) -> grid.Total:
        network = build_network(study, initialise(study))
        return make_step(network, make_gradients=make_patient_gradients).sum_patients(
            as_batch(take(examples, list(rows)))
        )

    parts = {site: sum_of(rows) for site, rows in SPLIT.items()}
    terms = make_terms_for(len(parts["site-000"]), patients=30, noise=0.0)
    assert np.array_equal(aggregate(terms, parts), sum_of(range(30)))


def test_the_shared_noise_of_the_honest_sites_is_the_plans() -> None:
    # Nobody is sampled, so that what is summed is noise alone; one site in ten may be lost, and two may collude.
    planned, count, dimension = 1.5, 10, 4000
    terms = Terms(members=members_of(count), threshold=7, dropouts=1, colluders=2, instances=1, largest=2**40)
    study = wide_study(dimension)
    examples = take(make_examples(study, 4), [])
    part = share_noise(planned, terms)
    assert part == pytest.approx(planned / math.sqrt(7))
    sums = []
    for site in range(honest_sites(terms)):
        network = build_network(study, initialise(study))
        step = PrivateStep(
            network,
            torch.optim.SGD(network.parameters(), lr=1.0),
            make_gradients=make_patient_gradients,
            clip=1.0,
            noise_multiplier=part,
            expected_batch=5.0,
            positive_weight=1.0,
            stream=Seeded(site).stream("train"),
            before_descent=lambda: None,
        )
        sums.append(step.sum_with_noise(as_batch(examples)))
    total = np.sum(sums, axis=0)
    wanted = planned * grid.sensitivity(len(total))
    # The sample deviation of n Gaussians is off by √(1/2n) of itself: six of those.
    assert total.std() == pytest.approx(wanted, rel=6 / math.sqrt(2 * len(total)))
    assert abs(total.mean()) < 6 * wanted / math.sqrt(len(total))
    assert np.abs(sums).max() <= grid.largest_coordinate(len(total), patients=0, noise_multiplier=part)


def wide_study(dimension: int) -> Study:
    return step_study("mlp").model_copy(
        update={"model": step_study("mlp").model.model_copy(update={"hidden": dimension // 12, "layers": 1})}
    )


def test_no_sum_of_planned_patients_overflows_or_the_terms_are_refused() -> None:
    dimension, most = 10_000_000, grid.MAXIMUM_PATIENTS
    largest = grid.largest_coordinate(dimension, patients=most, noise_multiplier=grid.MAXIMUM_NOISE)
    assert 200 * largest < 2**63
    make_terms_for(dimension, patients=most, noise=grid.MAXIMUM_NOISE, count=100)
    with pytest.raises(ValueError, match="2"):
        make_terms_for(dimension, patients=2**39, noise=1.0)
