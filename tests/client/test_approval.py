"""Approval: what the machine refuses, what the person is told, and that no number of patients is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.approval import ApprovalError, approve_study, describe_request, examine_study
from fedtwin_client.errors import DataError
from fedtwin_client.gate import open_gate
from fedtwin_client.studies import open_studies
from fedtwin_shared.documents import sign_study
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.study import Study
from tests.client.premises import make_premises, write_data, write_study
from tests.client.setting import SITE
from tests.world import World, make_world


def test_an_examined_study_is_approved_and_attested(tmp_path: Path) -> None:
    world = make_world()
    directory = make_premises(tmp_path / "north", world)
    request = examine_study(directory, write_study(tmp_path, world))
    assert request.missing == ()
    studies = open_studies(directory, open_gate(directory))
    assert studies.find(world.study.digest) is None
    approve_study(directory, request)
    found = studies.find(world.study.digest)
    assert found is not None
    assert found.attested


def test_the_person_is_told_what_else_a_patient_may_pay_for(tmp_path: Path) -> None:
    world = make_world()
    directory = make_premises(tmp_path / "north", world)
    file = write_study(tmp_path, world)
    first = examine_study(directory, file)
    assert "approved here" not in dict(first.words)
    approve_study(directory, first)
    assert "approved here" not in dict(examine_study(directory, file).words)  # itself
    other = world.study.model_copy(update={"version": world.study.version + 1})
    envelope = sign_study(other, world.roster, world.coordinator)
    (tmp_path / "second.json").write_bytes(envelope)
    words = dict(examine_study(directory, tmp_path / "second.json").words)["approved here"]
    assert f"{world.study.name} version {world.study.version} (approved)" in words
    assert f"ε = {world.study.price():.3f}" in words


def test_columns_that_the_hospital_lacks_are_named(tmp_path: Path) -> None:
    world = make_world()
    directory = make_premises(tmp_path / "north", world)
    patients = directory.data / "patients.csv"
    patients.write_text(re.sub(",(female|male),", ",", patients.read_text()).replace(",sex,", ","))
    assert examine_study(directory, write_study(tmp_path, world)).missing == ("sex",)


@pytest.mark.parametrize(("minimum", "patients"), [(10, 9), (1, 9), (200, 199)])
def test_too_few_patients_are_refused_without_a_count(tmp_path: Path, minimum: int, patients: int) -> None:
    world = make_world(cohort={"minimum_patients": minimum})  # the hospital's own minimum is 10
    directory = make_premises(tmp_path / "north", world, patients=patients)
    with pytest.raises(ApprovalError, match="found fewer") as raised:
        examine_study(directory, write_study(tmp_path, world))
    assert str(patients) not in str(raised.value).removeprefix(str(tmp_path))
    write_data(directory.data, patients=max(minimum, 10))
    examine_study(directory, write_study(tmp_path, world))


NONE = {
    "privacy": {"mode": "none", "epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 0.0},
    "evaluation": {"noise_multiplier": 0.0},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (NONE, 'privacy.mode "none"'),
        ({"split": {"rule": "column"}}, 'split.rule "column"'),
        ({"privacy": {"epsilon": 20.0, "delta": 1e-5, "noise_multiplier": 4.0}}, "privacy.epsilon 20 is above"),
        ({"privacy": {"epsilon": 8.0, "delta": 1e-2, "noise_multiplier": 4.0}}, "privacy.delta 0.01 is above"),
    ],
)
def test_what_the_policy_forbids_no_person_can_approve(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    world = make_world(**changes)
    directory = make_premises(tmp_path / "north", world)
    with pytest.raises(ApprovalError, match=re.escape(words)):
        examine_study(directory, write_study(tmp_path, world))


def test_a_study_without_this_hospital_is_refused(tmp_path: Path) -> None:
    everybody = make_world()
    directory = make_premises(tmp_path / "north", everybody)
    others = tuple(part for part in everybody.study.participants if part.site != SITE)
    study = everybody.study.model_copy(update={"participants": others})
    world = World(coordinator=everybody.coordinator, sites=everybody.sites, roster=everybody.roster, study=study)
    with pytest.raises(ApprovalError, match="participants: expected north among them"):
        examine_study(directory, write_study(tmp_path, world))


def test_a_roster_with_another_key_of_this_hospital_is_refused(tmp_path: Path) -> None:
    world = make_world()
    own = {**world.sites, SITE: Ed25519PrivateKey.generate()}
    changed = World(coordinator=world.coordinator, sites=own, roster=world.roster, study=world.study)
    directory = make_premises(tmp_path / "north", changed)
    with pytest.raises(ApprovalError, match="another key"):
        examine_study(directory, write_study(tmp_path, world))


def test_another_coordinator_is_refused(tmp_path: Path) -> None:
    directory = make_premises(tmp_path / "north", make_world())
    with pytest.raises(VerificationError):
        examine_study(directory, write_study(tmp_path, make_world()))


def test_data_that_cannot_be_read_are_fatal_before_anything_is_kept(tmp_path: Path) -> None:
    world = make_world()
    directory = make_premises(tmp_path / "north", world)
    (directory.data / "patients.csv").unlink()
    with pytest.raises(DataError):
        examine_study(directory, write_study(tmp_path, world))
    assert not directory.studies.exists()


def test_the_person_is_told_what_is_read_what_leaves_and_what_it_costs() -> None:
    study = make_world(evaluation={"noise_multiplier": 4.0, "subgroups": ["sex"]}).study
    text = "\n".join(words for _, words in describe_request(study))
    for words in ("deteriorated", "age, sex", "heart_rate", f"{_numbers(study)} numbers"):
        assert words in text
    assert f"ε = {study.price():.3f} of 8 at δ = 1e-05" in text
    assert "nominal ε" in text


def _numbers(study: Study) -> int:
    return len(study.feature_names()) * study.features.steps + 1
