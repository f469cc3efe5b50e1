"""A study that every site must sign: nothing runs before, and only peers that this hospital verified count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.gate import open_gate
from fedtwin_client.installation import open_installation
from fedtwin_client.policy_signature import sign_policy
from fedtwin_client.studies import COUNTERSIGNED_FILE, open_studies
from fedtwin_shared.documents import countersign_study, merge_studies, sign_study, verify_study
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import Refusal, RefusalCode, RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from fedtwin_shared.signing import format_public_key
from tests.client.premises import make_premises, write_study
from tests.client.setting import RUN, SITE
from tests.world import SITES, World, make_world

PEERS = tuple(name for name in SITES if name != SITE)


@pytest.fixture
def world() -> World:
    return make_world()


def premises(root: Path, world: World, *, trusted: tuple[str, ...]) -> HospitalDirectory:
    """Return a hospital that asks for every site's signature and verified some peers' keys."""
    directory = make_premises(root, world)
    keys = {name: format_public_key(world.sites[name].public_key()) for name in trusted}
    peers = ", ".join(f"{name} = {json.dumps(key)}" for name, key in keys.items())
    text = directory.config_file.read_text()
    text = text.replace('plan_signatures = "coordinator"', 'plan_signatures = "every-site"')
    directory.config_file.write_text(text.replace("trusted_peers = {}", f"trusted_peers = {{ {peers} }}"))
    directory = read_directory(root)
    sign_policy(directory, open_gate(directory))
    return directory


def countersigned(world: World, *names: str) -> bytes:
    """Return the study as the coordinator sends it once these sites have signed."""
    coordinator = world.coordinator_key
    alone = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=coordinator)
    each = [countersign_study(alone, world.sites[name]) for name in names]
    return merge_studies([alone, *(verify_study(one, coordinator=coordinator) for one in each)])


def answer(directory: HospitalDirectory, world: World) -> SiteUpdate | Refusal:
    """Ask a real hospital for its first step."""
    model = initialise(world.study)
    plan = RoundPlan(
        study=world.study.digest, run=RUN, round=1, attempt=1, task=Task.TRAIN, model=digest_parameters(model)
    )
    signed = sign_round_plan(plan, world.coordinator)
    installed = open_installation(directory)
    try:
        envelope, arrays, *_ = installed.hospital.answer(signed, model)
    finally:
        installed.journal.close()
    return verify_answer(envelope, arrays, plan=signed, task=Task.TRAIN, study=world.study, roster=world.roster)


def approve(directory: HospitalDirectory, envelope: bytes) -> None:
    file = directory.root.parent / "received.json"
    file.write_bytes(envelope)
    approve_study(directory, examine_study(directory, file))


def test_nothing_runs_before_everybody_has_signed(tmp_path: Path, world: World) -> None:
    directory = premises(tmp_path / "north", world, trusted=PEERS)
    for signers in ((), PEERS, SITES[:3]):  # without its own signature too
        approve(directory, countersigned(world, *signers))
        refusal = answer(directory, world)
        assert isinstance(refusal, Refusal), signers
        assert refusal.code is RefusalCode.STUDY_UNSIGNED
    approve(directory, countersigned(world, *SITES))
    assert isinstance(answer(directory, world), SiteUpdate)


def test_a_peer_that_this_hospital_did_not_verify_does_not_count(tmp_path: Path, world: World) -> None:
    directory = premises(tmp_path / "north", world, trusted=PEERS[:2])
    approve(directory, countersigned(world, *SITES))
    refusal = answer(directory, world)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.STUDY_UNSIGNED


def test_an_invented_hospital_under_a_verified_name_does_not_count(tmp_path: Path) -> None:
    real = make_world()
    directory = premises(tmp_path / "north", real, trusted=PEERS)
    invented = dict.fromkeys(PEERS, None)
    keys = {SITE: real.sites[SITE], **{name: Ed25519PrivateKey.generate() for name in invented}}
    roster = real.roster.model_copy(
        update={
            "sites": tuple(
                site.model_copy(update={"public_key": format_public_key(keys[site.name].public_key())})
                for site in real.roster.sites
            )
        }
    )
    study = real.study.model_copy(update={"roster": roster.digest})
    world = World(coordinator=real.coordinator, sites=keys, roster=roster, study=study)
    approve(directory, countersigned(world, *SITES))
    refusal = answer(directory, world)
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.STUDY_UNSIGNED


def test_an_approval_makes_the_signature_that_the_coordinator_collects(tmp_path: Path, world: World) -> None:
    directory = premises(tmp_path / "north", world, trusted=PEERS)
    approve(directory, countersigned(world))
    file = directory.studies / world.study.digest / COUNTERSIGNED_FILE
    assert verify_study(file.read_bytes(), coordinator=world.coordinator_key).signers == {SITE}
    found = open_studies(directory, open_gate(directory)).find(world.study.digest)
    assert found is not None
    assert (found.attested, found.complete) == (True, False)


def test_signatures_that_come_while_the_node_runs_are_seen(tmp_path: Path, world: World) -> None:
    directory = premises(tmp_path / "north", world, trusted=PEERS)
    approve(directory, countersigned(world))
    running = open_studies(directory, open_gate(directory))
    found = running.find(world.study.digest)
    assert found is not None
    assert not found.complete
    approve(directory, countersigned(world, *SITES))
    found = running.find(world.study.digest)
    assert found is not None
    assert found.complete


def test_a_hospital_that_asks_for_the_coordinator_alone_runs_the_same_study(tmp_path: Path, world: World) -> None:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    assert isinstance(answer(directory, world), SiteUpdate)


def test_a_hospital_is_told_who_signed_and_whom_it_verified(tmp_path: Path, world: World) -> None:
    directory = premises(tmp_path / "north", world, trusted=("south",))
    file = tmp_path / "study.json"
    file.write_bytes(countersigned(world, "south", "east"))
    shown = [words for _, words in examine_study(directory, file).words]
    assert "the coordinator, east, south" in shown
    assert "verified here: south" in shown
    assert "known from the coordinator alone: east, west" in shown
    assert "no round before these have signed, under keys verified here: north, east, west" in shown
