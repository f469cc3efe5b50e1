from __future__ import annotations

import numpy as np
import pytest

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import digest_parameters, initialise, input_features, parameter_shapes, verify_parameters
from tests.world import make_world

WORLD = make_world()


@pytest.mark.parametrize(
    ("model", "count"),
    [  # 8 + 1 + ... features: 6 of heart rate, age, 2 of sex = 9; 4 time steps
        ({"name": "logistic"}, 4 * 9 + 1),
        ({"name": "mlp", "hidden": 5}, 5 * 36 + 5 + 5 + 1),
        ({"name": "mlp", "hidden": 5, "layers": 2}, 5 * 36 + 5 + 25 + 5 + 5 + 1),
        ({"name": "lstm", "hidden": 5}, 20 * 9 + 20 * 5 + 20 + 5 + 1),
        ({"name": "lstm", "hidden": 5, "layers": 2, "mask_as_input": True}, 20 * 18 + 100 + 20 + 200 + 20 + 6),
        ({"name": "gru", "hidden": 5, "layers": 2}, 15 * 9 + 75 + 15 + 75 + 75 + 15 + 6),
        ({"name": "mingru", "hidden": 5, "layers": 2}, 10 * 9 + 10 + 10 * 5 + 10 + 6),
        ({"name": "tcn", "hidden": 5, "layers": 2, "kernel": 3}, 5 * 27 + 5 + 5 * 15 + 5 + 6),
    ],
)
def test_the_number_of_parameters_is_that_of_the_architecture(model: dict[str, object], count: int) -> None:
    study = make_world(model=model).study
    shapes = parameter_shapes(study)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    parameters = initialise(study)
    assert {name: array.shape for name, array in parameters.items()} == shapes
    assert verify_parameters(parameters, shapes).keys() == shapes.keys()


def test_initial_parameters_are_the_same_everywhere_and_differ_by_seed() -> None:
    first = make_world(model={"name": "lstm", "seed": 1}).study
    again, other = (
        make_world(model={"name": "lstm", "seed": 1}).study,
        make_world(model={"name": "lstm", "seed": 2}).study,
    )
    assert digest_parameters(initialise(first)) == digest_parameters(initialise(again))
    assert digest_parameters(initialise(first)) != digest_parameters(initialise(other))
    # golden: any change of the generator or of the order would break sites that run another version
    assert digest_parameters(initialise(first))[:16] == "76efe56bd16ee98e"


def test_the_forget_gate_starts_open() -> None:
    parameters = initialise(make_world(model={"name": "lstm", "hidden": 3}).study)
    assert parameters["lstm0.bias"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_the_digest_sees_name_type_shape_and_value() -> None:
    one = {"a": np.zeros((2, 3), dtype=np.float32)}
    digests = {
        digest_parameters(one),
        digest_parameters({"b": one["a"]}),
        digest_parameters({"a": one["a"].reshape(3, 2)}),
        digest_parameters({"a": one["a"].astype(np.float64)}),
        digest_parameters({"a": one["a"] + 1}),
    }
    assert len(digests) == 5
    assert digest_parameters({"a": np.asfortranarray(one["a"] + 1)}) == digest_parameters({"a": one["a"] + 1})


def test_the_mask_doubles_the_input() -> None:
    study = make_world(model={"name": "tcn", "mask_as_input": True}).study
    assert input_features(study) == 2 * len(study.feature_names())


def test_parameters_that_are_not_finite_float32_of_the_shape_are_refused() -> None:
    shapes = parameter_shapes(WORLD.study)
    good = initialise(WORLD.study)
    for bad in (
        {"weight": good["weight"]},
        good | {"bias": np.array([np.nan], dtype=np.float32)},
        good | {"bias": np.array([np.inf], dtype=np.float32)},
        good | {"bias": np.array([3e38], dtype=np.float32)},
        good | {"bias": np.array([-1.1e6], dtype=np.float32)},
        good | {"bias": np.array([0.0])},
        good | {"bias": np.zeros((1, 1), dtype=np.float32)},
    ):
        with pytest.raises(VerificationError):
            verify_parameters(bad, shapes)
