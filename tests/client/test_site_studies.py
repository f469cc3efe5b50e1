"""Approved studies on disk: found when whole, attested when this hospital said so, gone when withdrawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.gate import Gate
from fedtwin_client.studies import ATTESTATION_FILE, STUDY_FILE, StudyFolder, read_study
from fedtwin_shared.documents import sign_study
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.signing import format_public_key
from tests.client.premises import write_study
from tests.world import make_world

WORLD = make_world()
DIGEST = WORLD.study.digest
GATE = Gate(site="north", key=WORLD.sites["north"])


def folder(path: Path) -> StudyFolder:
    return StudyFolder(path / "studies", coordinator=WORLD.coordinator_key, gate=GATE)


def approve(path: Path) -> StudyFolder:
    studies = folder(path)
    studies.add(read_study(write_study(path, WORLD), coordinator=WORLD.coordinator_key))
    return studies


def test_an_approved_study_is_found_and_attested(tmp_path: Path) -> None:
    assert folder(tmp_path).digests() == ()
    assert folder(tmp_path).find(DIGEST) is None
    for studies in (approve(tmp_path), folder(tmp_path)):
        assert studies.digests() == (DIGEST,)
        found = studies.find(DIGEST)
        assert found is not None
        assert (found.study, found.roster, found.attested) == (WORLD.study, WORLD.roster, True)


def test_an_approval_while_the_node_runs_is_seen(tmp_path: Path) -> None:
    running = folder(tmp_path)
    assert running.find(DIGEST) is None
    approve(tmp_path)
    assert running.find(DIGEST) is not None


def test_a_removed_folder_is_a_withdrawn_study(tmp_path: Path) -> None:
    studies = approve(tmp_path)
    assert studies.find(DIGEST) is not None
    shutil.rmtree(tmp_path / "studies" / DIGEST)
    assert studies.find(DIGEST) is None


def test_approving_again_replaces(tmp_path: Path) -> None:
    approve(tmp_path)
    (tmp_path / "studies" / DIGEST / ATTESTATION_FILE).unlink()
    assert approve(tmp_path).digests() == (DIGEST,)
    found = folder(tmp_path).find(DIGEST)
    assert found is not None
    assert found.attested


@pytest.mark.parametrize("content", [None, b"", b"{}", "south"])
def test_a_study_without_this_hospitals_attestation_is_not_attested(
    tmp_path: Path, content: bytes | str | None
) -> None:
    approve(tmp_path)
    file = tmp_path / "studies" / DIGEST / ATTESTATION_FILE
    file.unlink()
    if content is not None:
        south = Gate(site="south", key=WORLD.sites["south"]).attest(DIGEST)
        file.write_bytes(content if isinstance(content, bytes) else south)
    found = folder(tmp_path).find(DIGEST)
    assert found is not None
    assert not found.attested


def test_a_study_of_another_signer_or_under_another_name_is_damaged(tmp_path: Path) -> None:
    approve(tmp_path)
    file = tmp_path / "studies" / DIGEST / STUDY_FILE
    moved = tmp_path / "studies" / ("0" * 64)
    shutil.copytree(file.parent, moved)
    with pytest.raises(VerificationError, match="digest"):
        folder(tmp_path).find("0" * 64)
    file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(VerificationError):
        folder(tmp_path).find(DIGEST)


def test_a_half_written_approval_is_none(tmp_path: Path) -> None:
    studies = approve(tmp_path)
    (tmp_path / "studies" / DIGEST).rename(tmp_path / "studies" / f".{DIGEST}")
    assert studies.digests() == ()
    assert studies.find(DIGEST) is None
    assert approve(tmp_path).find(DIGEST) is not None


def test_reading_a_study_needs_the_pinned_signer(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected a signed study"):
        read_study(tmp_path / "none.json", coordinator=WORLD.coordinator_key)
    forger = Ed25519PrivateKey.generate()
    file = tmp_path / "forged.json"
    file.write_bytes(sign_study(WORLD.study, WORLD.roster, forger))
    with pytest.raises(VerificationError):
        read_study(file, coordinator=WORLD.coordinator_key)
    with pytest.raises(VerificationError, match=r"roster\.coordinator"):
        read_study(file, coordinator=format_public_key(forger.public_key()))
