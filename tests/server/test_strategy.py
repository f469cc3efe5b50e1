"""The pure step against Flower's own strategies kept alive over many rounds, and against the formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedtwin_server.errors import RunError
from fedtwin_server.rounds import GlobalModel
from fedtwin_server.strategy import _as_reply, aggregate_updates, make_strategy
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.round import SiteUpdate
from tests.world import SITES, World, make_world

TRAINING = {"rounds": 5, "learning_rate": 1.0, "minimum_sites": 2}
ADAPTIVE: list[dict[str, Any]] = [
    {"algorithm": "fedadam", "server_learning_rate": 0.1},
    {"algorithm": "fedyogi", "server_learning_rate": 0.03},
]


def updates(world: World, number: int, sites: tuple[str, ...] = SITES) -> list[SiteUpdate]:
    """Random parameters of every site, the same for the same round."""
    generator = np.random.Generator(np.random.PCG64(number))
    return [
        SiteUpdate(
            site=site,
            plan="0" * 64,
            arrays={
                name: (array + generator.normal(0, 1, array.shape)).astype(np.float32)
                for name, array in initialise(world.study).items()
            },
        )
        for site in sites
    ]


def mean(world: World, of: list[SiteUpdate], name: str) -> Any:
    weights = {part.site: part.weight for part in world.study.participants}
    total = sum(weights[update.site] for update in of)
    return sum(weights[update.site] / total * update.arrays[name].astype(np.float64) for update in of)


def assert_equal(found: Parameters, expected: Parameters) -> None:
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, np.asarray(expected[name], np.float32))


@pytest.mark.parametrize("training", ADAPTIVE, ids=lambda changes: changes["algorithm"])
def test_rounds_in_a_row_equal_one_strategy_of_flowers_kept_alive(training: dict[str, Any]) -> None:
    world = make_world(training=TRAINING | training, model={"name": "mlp"})
    model = GlobalModel(parameters=initialise(world.study))
    alive: Any = make_strategy(world.study.training, model)
    for number in range(1, 6):
        of = updates(world, number)
        arrays, _ = alive.aggregate_train(number, [_as_reply(world.study, update) for update in of])
        model = aggregate_updates(world.study, number, model, of)
        expected = {name: array.numpy().astype(np.float32) for name, array in arrays.items()}
        alive.current_arrays = dict(expected)  # what its configure_train would set from the model that is sent
        assert_equal(model.parameters, expected)
    assert set(model.first_moment) == set(model.second_moment) == set(model.parameters)


def test_fedadam_is_its_formula() -> None:
    world = make_world(training=TRAINING | ADAPTIVE[0])
    model, first, second = GlobalModel(parameters=initialise(world.study)), 0.0, 0.0
    for number in range(1, 4):
        of, before = updates(world, number), model.parameters["weight"].astype(np.float64)
        delta = mean(world, of, "weight") - before
        first, second = 0.9 * first + 0.1 * delta, 0.99 * second + 0.01 * delta**2
        # Kingma, Ba (ICLR 2015) §2: the corrected rate, with Flower's count of rounds, which starts at two
        rate = 0.1 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
        model = aggregate_updates(world.study, number, model, of)
        np.testing.assert_allclose(
            model.parameters["weight"], before + rate * first / (np.sqrt(second) + 1e-3), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("algorithm", [{"algorithm": "fedavg"}, {"algorithm": "fedprox", "proximal": 0.1}])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_fedavg_and_fedprox_step_to_the_weighted_mean(algorithm: dict[str, Any], rate: float) -> None:
    participants = [{"site": site, "patients": 9, "weight": 1.0 + n} for n, site in enumerate(SITES)]
    world = make_world(training=TRAINING | algorithm | {"server_learning_rate": rate}, participants=participants)
    start = initialise(world.study)
    of = updates(world, 1, SITES[1:])
    found = aggregate_updates(world.study, 1, GlobalModel(parameters=start), of)
    for name, array in found.parameters.items():
        assert array.dtype == np.float32
        expected = start[name] + rate * (mean(world, of, name) - start[name])
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert (found.first_moment, found.second_moment) == ({}, {})


def test_the_model_it_was_given_is_unchanged() -> None:
    world = make_world(training=TRAINING | ADAPTIVE[0])
    first = aggregate_updates(world.study, 1, GlobalModel(parameters=initialise(world.study)), updates(world, 1))
    before = {name: array.copy() for name, array in first.first_moment.items()}
    aggregate_updates(world.study, 2, first, updates(world, 2))
    assert_equal(first.first_moment, before)


def test_a_site_that_takes_no_part_has_no_weight() -> None:
    world = make_world()
    stranger = SiteUpdate(site="stranger", plan="0" * 64, arrays=initialise(world.study))
    with pytest.raises(RunError, match="a participant of the study, found stranger"):
        aggregate_updates(world.study, 1, GlobalModel(parameters=initialise(world.study)), [stranger])
    with pytest.raises(RunError, match="expected at least one"):
        aggregate_updates(world.study, 1, GlobalModel(parameters=initialise(world.study)), [])
