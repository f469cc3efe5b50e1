"""Training with a secure aggregation for each step, over Flower's messages: as if one site had everybody's patients."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error

from fedtwin_client.client_app import make_secure_app
from fedtwin_client.secure_round import Compute, SecureRounds
from fedtwin_client.secure_site import SecureSite
from fedtwin_client.secure_store import SqliteInstanceStore
from fedtwin_client.training import grid, train
from fedtwin_client.training.shared_step import contribute
from fedtwin_server.secagg_workflow import FlowerExchange
from fedtwin_server.secure_rounds import SecureCoordinator
from fedtwin_server.shared_descent import check_descent, descend, dimension
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.models import Parameters, digest_parameters, initialise, parameter_shapes, verify_parameters
from fedtwin_shared.round import RoundPlan, Task, sign_round_plan, verify_round_plan
from fedtwin_shared.secagg.message import MESSAGE_TYPE
from fedtwin_shared.secagg.terms import Setup, Step, Terms
from fedtwin_shared.signing import digest, format_public_key, sign_envelope
from fedtwin_shared.study import Study
from fedtwin_shared.wire import decode_arrays, encode_arrays
from fedtwin_simulations.local_grid import FIRST_NODE_ID, LocalGrid
from tests.client.small import Seeded, make_examples, small_study, take
from tests.shared.secagg.assembly import RUN, members_of, signing_key, site_names

COORDINATOR = Ed25519PrivateKey.from_private_bytes(bytes(32))
ROWS = {"site-000": range(6), "site-001": range(6, 8), "site-002": range(8, 17), "site-003": range(17, 30)}
STEPS = 4
SILENT = 1e-9  # of the noise multiplier: every number of noise rounds to zero


def make_study(names: Mapping[str, int], **privacy: float) -> Study:
    return small_study(
        participants=[{"site": name, "patients": patients} for name, patients in names.items()],  # type: ignore[arg-type]  # a table of tables
        model={"name": "mlp"},
        training={"rounds": STEPS, "weight_decay": 0.1, "learning_rate": 0.5},
        privacy={"clip": 0.5, "noise_multiplier": SILENT, **privacy},
    )


SHARED = make_study({name: len(rows) for name, rows in ROWS.items()})
EXAMPLES = make_examples(SHARED, 30)
TERMS = Terms(
    members=members_of(4),
    threshold=3,
    dropouts=1,
    colluders=1,
    instances=STEPS,
    largest=grid.largest_coordinate(dimension(SHARED), patients=30, noise_multiplier=1.0),
)


def open_site(folder: Path, name: str) -> SecureSite:
    """A site that verifies the coordinator's plan and the model before it computes."""

    def prepare(setup: Setup, instance: int, plan: bytes, model: bytes) -> tuple[Step, Compute]:
        verified = verify_round_plan(plan, coordinator=format_public_key(COORDINATOR.public_key()))
        parameters = verify_parameters(decode_arrays(model), parameter_shapes(SHARED))
        if verified.model != digest_parameters(parameters):
            raise VerificationError(field="model", expected="the plan's", found="another")
        examples, chance = take(EXAMPLES, list(ROWS[name])), Seeded(verified.round)
        compute = functools.partial(contribute, SHARED, parameters, examples, chance, terms=TERMS)
        return make_step(verified, plan, instance), compute

    sign = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(name))
    return SecureSite(
        rounds=SecureRounds(name=name, sign=sign, store=SqliteInstanceStore(folder / name)),
        find_setup=lambda study, run, number: Setup(terms=TERMS, study=study, run=run, number=number),
        prepare_step=prepare,
    )


def make_step(plan: RoundPlan, envelope: bytes, instance: int) -> Step:
    return Step(
        instance=instance,
        round=plan.round,
        attempt=plan.attempt,
        plan=digest(envelope),
        model=plan.model,
        length=dimension(SHARED),
    )


def train_together(folder: Path, *, lost: Mapping[int, str] | None = None) -> tuple[Parameters, list[tuple[str, ...]]]:
    """The model after all steps, and whose patients were in each. lost: by round, who is away in it."""
    sites, names = {name: open_site(folder, name) for name in TERMS.names}, site_names(4)
    away = lost or {}
    number = 0

    def is_away(node: int) -> bool:
        return away.get(number) == names[node - FIRST_NODE_ID]

    grid_of_sites = LocalGrid(
        make_secure_app(lambda context: sites[str(context.node_config["site"])]),
        [{"site": name} for name in names],
        fault=lambda message: Error(5, "away") if is_away(message.metadata.dst_node_id) else None,
    )
    exchange = FlowerExchange(grid_of_sites, patience_seconds=5.0, deadline_seconds=10.0)
    coordinator = SecureCoordinator(terms=TERMS, study=SHARED.digest, run=RUN, exchange=exchange)
    parameters: Parameters = initialise(SHARED)
    present = []
    for number in range(1, STEPS + 1):
        plan = RoundPlan(
            study=SHARED.digest, run=RUN, round=number, attempt=1, task=Task.TRAIN, model=digest_parameters(parameters)
        )
        envelope = sign_round_plan(plan, COORDINATOR)
        found = coordinator.aggregate(
            make_step=functools.partial(make_step, plan, envelope), plan=envelope, model=encode_arrays(parameters)
        )
        parameters = descend(SHARED, parameters, found.total, survivors=found.survivors)
        present.append(found.survivors)
    return parameters, present


def train_alone(rows_by_round: list[list[int]]) -> Parameters:
    """One site with everybody's patients, by its own private steps."""
    parameters: Parameters = initialise(SHARED)
    for number, rows in enumerate(rows_by_round, start=1):
        study = make_study({"site-000": len(rows), "site-001": 1})
        parameters = train(study, study.participants[0], parameters, take(EXAMPLES, rows), Seeded(number))
    return parameters


def check_close(found: Parameters, expected: Parameters) -> None:
    for name, array in expected.items():
        assert found[name] == pytest.approx(array, abs=1e-6), name


def test_sites_together_train_what_one_site_with_all_patients_trains(tmp_path: Path) -> None:
    found, present = train_together(tmp_path)
    assert present == [TERMS.names] * STEPS
    check_close(found, train_alone([list(range(30))] * STEPS))
    assert any(np.abs(found[name] - array).max() > 0.01 for name, array in initialise(SHARED).items())


def test_a_site_that_is_lost_in_one_step_is_missing_in_that_step_alone(tmp_path: Path) -> None:
    found, present = train_together(tmp_path, lost={2: "site-002"})
    rows = [list(range(30)) for _ in range(STEPS)]
    rows[1] = [row for row in rows[1] if row not in ROWS["site-002"]]
    assert [len(names) for names in present] == [4, 3, 4, 4]
    check_close(found, train_alone(rows))


@pytest.mark.parametrize(
    ("training", "field"),
    [({"local_steps": 2}, "local_steps"), ({"momentum": 0.9}, "momentum"), ({"algorithm": "fedadam"}, "algorithm")],
)
def test_training_that_is_not_one_plain_step_is_refused(training: dict[str, object], field: str) -> None:
    check_descent(SHARED)
    with pytest.raises(ConfigurationError, match=f"training.{field}"):
        check_descent(small_study(training=training))


def test_a_sum_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="numbers"):
        descend(SHARED, initialise(SHARED), np.zeros(dimension(SHARED) + 1, dtype=np.int64), survivors=["site-000"])
