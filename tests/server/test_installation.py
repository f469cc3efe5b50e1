"""A coordinator's directory and its hospitals: nothing is overwritten, keys are the owner's, the roster only grows."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedtwin_server.config import CoordinatorDirectory, read_directory
from fedtwin_server.installation import (
    create_coordinator,
    enrol_site,
    format_roster,
    public_key,
    read_roster,
    renew_certificate,
)
from fedtwin_shared.certificates import expires_at
from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.roster import Roster
from fedtwin_shared.signing import format_public_key
from tests.authority import make_node_identity

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def create(root: Path, *, name: str = "consortium", address: str = "fl.example.org:9443") -> CoordinatorDirectory:
    return create_coordinator(root, name=name, address=address, listen="0.0.0.0:9443", link_port=9092, now=NOW)


@pytest.fixture
def directory(tmp_path: Path) -> CoordinatorDirectory:
    return create(tmp_path / "consortium")


def new_key() -> str:
    return format_public_key(Ed25519PrivateKey.generate().public_key())


def test_a_new_directory_reads_back(directory: CoordinatorDirectory) -> None:
    assert read_directory(directory.root) == directory
    assert public_key(directory).startswith("ed25519:")


def test_every_secret_is_readable_by_its_owner_only(directory: CoordinatorDirectory) -> None:
    secrets = [
        directory.signing_key,
        directory.server.private_key,
        directory.authority.private_key,
        directory.superlink.secret_file,
    ]
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert directory.root.stat().st_mode & 0o777 == 0o700


def test_nothing_is_ever_overwritten(directory: CoordinatorDirectory) -> None:
    before = directory.signing_key.read_bytes()
    with pytest.raises(ConfigurationError, match="a new or empty directory"):
        create(directory.root)
    assert directory.signing_key.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [("Not A Name", "h:1", "name"), ("consortium", "h", "front.address"), ('x"\n[link]', "h:1", "name")],
)
def test_a_wrong_value_makes_nothing(tmp_path: Path, name: str, address: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create(tmp_path / "consortium", name=name, address=address)
    assert list(tmp_path.iterdir()) == []


def test_a_renewed_certificate_lives_on_under_the_same_authority(directory: CoordinatorDirectory) -> None:
    authority = directory.authority.certificate.read_bytes()
    renew_certificate(directory, now=NOW + dt.timedelta(days=200))
    assert directory.authority.certificate.read_bytes() == authority
    assert (expires_at(directory.server.certificate) - NOW).days == 597


def test_the_roster_grows_by_one_version_for_each_hospital(directory: CoordinatorDirectory) -> None:
    keys = {name: new_key() for name in ("ward-a", "ward-b")}
    for version, (name, key) in enumerate(keys.items(), start=1):
        node = make_node_identity(directory.root.parent / name)
        roster = enrol_site(directory, name=name, signing_key=key, node_key=node.public_key)
        assert roster.version == version
        assert enrol_site(directory, name=name, signing_key=key, node_key=node.public_key) == roster
    assert read_roster(directory).keys() == {key: name for name, key in keys.items()}
    assert (directory.nodes / "ward-b.pub").read_text().startswith("ecdsa-sha2-nistp")


def test_before_the_first_hospital_there_is_no_roster(directory: CoordinatorDirectory) -> None:
    with pytest.raises(ConfigurationError, match="at least one enrolled hospital"):
        read_roster(directory)


def test_a_hospital_cannot_be_enrolled_wrongly(directory: CoordinatorDirectory) -> None:
    root = directory.root.parent
    first, second = make_node_identity(root / "one").public_key, make_node_identity(root / "two").public_key
    key = new_key()
    enrol_site(directory, name="ward-a", signing_key=key, node_key=first)
    before = directory.roster.read_bytes()
    (root / "rsa.pub").write_text("ssh-rsa AAAA")
    (root / "edwards.pub").write_bytes(
        Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    )
    wrong = [
        ("ward-b", new_key(), first, "a node key of its own, found that of ward-a"),
        ("ward-a", new_key(), second, "expected a new hospital, found an enrolled one"),
        ("ward-b", key, second, "every name and every key once"),
        ("ward-b", public_key(directory), second, "every name and every key once"),
        ("consortium", new_key(), second, "every name and every key once"),
        ("Ward B", new_key(), second, "name"),
        ("../ward", new_key(), second, "name"),
        ("ward-b", "ed25519:AAAA", second, "public_key"),
        ("ward-b", new_key(), root / "missing.pub", "a node's public key"),
        ("ward-b", new_key(), root / "rsa.pub", "a public key as ssh-keygen writes it"),
        ("ward-b", new_key(), root / "edwards.pub", "an ECDSA key"),
    ]
    for name, signing_key, node_key, message in wrong:
        with pytest.raises(ConfigurationError, match=message):
            enrol_site(directory, name=name, signing_key=signing_key, node_key=node_key)
    assert directory.roster.read_bytes() == before
    assert [path.name for path in directory.nodes.iterdir()] == ["ward-a.pub"]


def test_a_crash_between_key_and_roster_leaves_the_hospital_out(directory: CoordinatorDirectory) -> None:
    node = make_node_identity(directory.root.parent / "one").public_key
    (directory.nodes / "ward-a.pub").write_bytes(b" ".join(node.read_bytes().split()[:2]) + b"\n")
    with pytest.raises(ConfigurationError, match="no roster"):
        read_roster(directory)
    assert enrol_site(directory, name="ward-a", signing_key=new_key(), node_key=node).version == 1


def test_a_roster_of_another_coordinator_is_refused(directory: CoordinatorDirectory, tmp_path: Path) -> None:
    other = create(tmp_path / "other")
    node = make_node_identity(tmp_path / "one").public_key
    roster = enrol_site(other, name="ward-a", signing_key=new_key(), node_key=node)
    directory.roster.write_text(format_roster(roster))
    with pytest.raises(ConfigurationError, match="coordinator: expected"):
        read_roster(directory)


def test_the_written_roster_reads_back(directory: CoordinatorDirectory, tmp_path: Path) -> None:
    node = make_node_identity(tmp_path / "one").public_key
    roster = enrol_site(directory, name="ward-a", signing_key=new_key(), node_key=node)
    assert read_toml(directory.roster, Roster) == roster
