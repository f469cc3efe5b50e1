"""The hospital's policy: what it refuses, and that it is in force only as it was signed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.gate import Gate, open_gate
from fedtwin_client.installation import open_installation
from fedtwin_client.policy import SitePolicy
from fedtwin_client.policy_signature import open_policy, sign_policy
from fedtwin_shared.cli import main
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.round import Refusal, RefusalCode, Task, verify_answer
from fedtwin_shared.signing import canonical_json, parse_canonical
from tests.client.premises import make_premises
from tests.client.setting import POLICY, make_setting
from tests.world import World, make_world


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    return make_premises(tmp_path / "north", world)


def changed(**changes: Any) -> SitePolicy:
    return SitePolicy.model_validate(POLICY.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maximum_epsilon": 1.0}, "privacy.epsilon 8 is above this hospital's 1"),
        ({"maximum_delta": 1e-6}, "privacy.delta 1e-05 is above"),
        ({"minimum_noise": 4.5}, "noise_multiplier 4 is below this hospital's 4.5"),
        ({"minimum_secure_peers": 1}, "an update is seen alone, where this hospital asks for 1 peers"),
        ({"allowed_models": ("lstm", "gru")}, "model.name logistic is not one"),
        ({"allowed_models": ()}, "model.name logistic is not one"),
        ({"allowed_signals": ("heart_rate", "age")}, "sex is not a signal"),
        ({"allowed_signals": ()}, "heart_rate is not a signal"),
        ({"allowed_releases": ("model-update",)}, "a score-histogram is not a release"),
        ({"allowed_releases": ("score-histogram",)}, "a model-update is not a release"),
    ],
)
def test_every_limit_refuses_a_study_beyond_it(world: World, changes: dict[str, Any], words: str) -> None:
    assert changed().objections(world.study) == ()
    policy = changed(**changes)
    assert words in "\n".join(policy.objections(world.study))
    assert policy.refuses(world.study) is RefusalCode.POLICY


def test_signals_by_name_permit_what_they_name(world: World) -> None:
    assert changed(allowed_signals=("heart_rate", "age", "sex")).refuses(world.study) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, "many", None, True])
@pytest.mark.parametrize(
    "field", ["maximum_epsilon", "maximum_epsilon_year", "maximum_epsilon_lifetime", "maximum_delta", "minimum_noise"]
)
def test_odd_values_are_no_policy(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        changed(**{field: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"minimum_patients": 0},
        {"minimum_patients": 10.5},
        {"minimum_secure_peers": -1},
        {"maximum_delta": 1.0},
        {"maximum_epsilon_year": 7.0},  # below that of one study
        {"maximum_epsilon_lifetime": 15.0},  # below that of a year
        {"allowed_models": ("perceptron",)},
        {"allowed_releases": ("rows",)},
        {"allowed_servers": ("ed25519:AAAA",)},
        {"allowed_bundles": ("ff",)},
        {"trusted_peers": {"South!": "ed25519:AAAA"}},
        {"plan_signatures": "nobody"},
        {"human_approval": "yes"},
        {"consent": "none"},
        {"surprise": 1},
    ],
)
def test_a_malformed_policy_is_no_policy(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        changed(**changes)


def test_a_new_hospital_has_a_signed_policy(directory: HospitalDirectory, world: World) -> None:
    assert open_policy(directory, open_gate(directory)).refuses(world.study) is None


def unsign(at: HospitalDirectory) -> None:
    at.policy_signature.unlink()


def sign_by_another(at: HospitalDirectory) -> object:
    return sign_policy(at, Gate(site="north", key=Ed25519PrivateKey.generate()))


def sign_for_another(at: HospitalDirectory) -> object:
    return sign_policy(at, Gate(site="south", key=open_gate(at).key))


def sign_an_answer(at: HospitalDirectory) -> object:
    return at.policy_signature.write_bytes(open_gate(at).refuse(b"", RefusalCode.POLICY))


def change_a_byte(at: HospitalDirectory) -> object:
    content = at.policy_signature.read_bytes()
    return at.policy_signature.write_bytes(content.replace(b"A", b"B", 1))


def empty(at: HospitalDirectory) -> object:
    return at.policy_signature.write_bytes(b"")


def raise_a_limit(at: HospitalDirectory) -> object:
    return edit(at, "maximum_epsilon_lifetime = 24.0", "maximum_epsilon_lifetime = 2400.0")


def edit(at: HospitalDirectory, old: str, new: str) -> object:
    text = at.config_file.read_text()
    assert text.count(old) == 1
    return at.config_file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "spoil",
    [unsign, sign_by_another, sign_for_another, sign_an_answer, change_a_byte, empty, raise_a_limit],
)
def test_a_policy_that_is_not_as_it_was_signed_refuses_every_study(
    directory: HospitalDirectory, world: World, spoil: Callable[[HospitalDirectory], object]
) -> None:
    spoil(directory)
    policy = open_policy(read_directory(directory.root), open_gate(directory))
    assert policy.refuses(world.study) is RefusalCode.POLICY_UNVERIFIED
    with pytest.raises(FedtwinError):
        policy.verify()


def test_a_signature_that_goes_while_the_node_runs_is_missed_at_once(
    directory: HospitalDirectory, world: World
) -> None:
    policy = open_policy(directory, open_gate(directory))
    assert policy.refuses(world.study) is None
    unsign(directory)
    assert policy.refuses(world.study) is RefusalCode.POLICY_UNVERIFIED


def test_a_policy_ends_after_its_last_day(directory: HospitalDirectory, world: World) -> None:
    last = directory.config.policy.valid_until
    gate = open_gate(directory)
    assert open_policy(directory, gate, today=lambda: last).refuses(world.study) is None
    after = last + timedelta(days=1)
    assert open_policy(directory, gate, today=lambda: after).refuses(world.study) is RefusalCode.POLICY_EXPIRED


def test_another_coordinator_than_the_signed_one_is_refused(directory: HospitalDirectory, world: World) -> None:
    # The connection's own table is not signed: whoever changes it there gets refusals.
    text = directory.config_file.read_text()
    before, _, after = text.partition(f'public_key = "{world.coordinator_key}"')
    directory.config_file.write_text(f'{before}public_key = "{make_world().coordinator_key}"{after}')
    policy = open_policy(read_directory(directory.root), open_gate(directory))
    assert policy.refuses(world.study) is RefusalCode.POLICY_UNVERIFIED


def test_the_coordinator_gets_a_signed_refusal_with_the_reason(directory: HospitalDirectory, world: World) -> None:
    policy = open_policy(directory, open_gate(directory), today=lambda: date.max)
    setting = make_setting(world, policy=policy)
    plan, model = setting.plan(), setting.model()
    envelope, arrays, _ = setting.hospital.answer(plan, model)
    answer = verify_answer(envelope, arrays, plan=plan, task=Task.TRAIN, study=world.study, roster=world.roster)
    assert isinstance(answer, Refusal)
    assert answer.code is RefusalCode.POLICY_EXPIRED
    assert setting.ward.trained == setting.ward.loaded == 0


def test_a_real_hospital_asks_its_signed_policy(directory: HospitalDirectory, world: World) -> None:
    unsign(directory)
    installed = open_installation(directory)
    assert installed.hospital._policy.refuses(world.study) is RefusalCode.POLICY_UNVERIFIED
    installed.journal.close()


def test_the_digest_is_of_the_signed_statement_and_differs_by_site() -> None:
    statement = POLICY.statement("north")
    assert canonical_json(parse_canonical(statement)) == statement
    assert POLICY.digest("north") != POLICY.digest("south")
    assert POLICY.digest("north") != changed(minimum_patients=11).digest("north")


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_changed_policy_is_shown_and_signed(
    directory: HospitalDirectory, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_a_limit(directory)
    assert fedtwin("policy", "show", directory.root) == 2
    assert "expected the policy that was signed, found another" in capsys.readouterr().err
    assert fedtwin("check", directory.root) == 2
    capsys.readouterr()
    assert fedtwin("policy", "sign", directory.root, "--yes") == 0
    shown = capsys.readouterr().out
    assert "maximum_epsilon_lifetime: 2400.0" in shown
    changed_directory = read_directory(directory.root)
    assert open_policy(changed_directory, open_gate(directory)).refuses(world.study) is None
    assert fedtwin("policy", "show", directory.root) == 0
    assert re.search(r"^digest: [0-9a-f]{64}$", capsys.readouterr().out, re.MULTILINE)
