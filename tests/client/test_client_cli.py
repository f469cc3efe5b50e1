"""`fedtwin client` as a hospital types it: what it makes, what it shows, and one line and exit code 2 for an error."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedtwin_client.config import HospitalDirectory
from fedtwin_shared.cli import main
from fedtwin_shared.signing import format_public_key, load_signing_key
from tests.authority import make_server_identity
from tests.client.premises import SECRET_PATIENT, make_premises, write_study
from tests.world import World, make_world

KEY = "ed25519:qxUgM8trzSi80x+hf8Pdo5rbhlgtEI01dffdrkvTkKU="


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_server_identity(tmp_path / "identity").certificate_authority


def init(directory: Path, authority: Path, *more: str, name: str = "north", key: str = KEY) -> int:
    place = ("--superlink", "localhost:9092", "--coordinator-key", key, "--ca", str(authority))
    return fedtwin("init", directory, "--name", name, *place, *more)


def test_init_makes_private_keys_and_prints_their_public_halves(
    tmp_path: Path, authority: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "north"
    assert init(root, authority) == 0
    printed = capsys.readouterr().out
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for name in ("signing.key", "node.key"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o600
    signing = format_public_key(load_signing_key(root / "signing.key").public_key())
    assert signing in printed
    assert (root / "signing.pub").read_text().strip() == signing
    node = (root / "node.pub").read_text().strip()
    assert node in printed
    private = load_ssh_private_key((root / "node.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    public = load_ssh_public_key(node.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key().public_numbers() == public.public_numbers()
    for path in root.iterdir():
        if path.is_file() and path.suffix != ".key":
            assert "PRIVATE" not in path.read_text()


def test_the_node_key_is_one_that_ssh_keygen_reads(tmp_path: Path, authority: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    init(tmp_path / "north", authority)
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / "north" / "node.key"], capture_output=True, text=True, check=True
    )
    assert derived.stdout.split()[:2] == (tmp_path / "north" / "node.pub").read_text().split()[:2]


def test_init_never_overwrites(tmp_path: Path, authority: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "north"
    assert init(root, authority) == 0
    before = {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}
    assert init(root, authority) == 2
    assert "expected a new or empty directory, found something in it" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()} == before


def test_init_refuses_a_bad_answer_before_anything_is_written(
    tmp_path: Path, authority: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "north"
    no_certificate = tmp_path / "text.pem"
    no_certificate.write_text("text")
    bad: dict[str, Callable[[], int]] = {
        "name: expected": lambda: init(root, authority, name="St. Mary"),
        "coordinator.public_key: expected": lambda: init(root, authority, key="ed25519:AAAA"),
        "policy.maximum_epsilon: expected": lambda: init(root, authority, "--maximum-epsilon", "nan"),
        "ports.health: expected another port than runtime": lambda: init(root, authority, "--health-port", "9094"),
        "policy.allowed_bundles.0: expected": lambda: init(root, authority, "--bundle", "zz"),
        "text.pem: expected a certificate in PEM": lambda: init(root, no_certificate),
    }
    for words, attempt in bad.items():
        assert attempt() == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
        assert not root.exists()


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    return make_premises(tmp_path / "north", world)


def test_check_shows_what_was_quarantined_and_why(
    directory: HospitalDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with (directory.data / "observations.csv").open("a") as file:
        file.write("patient-1,2026-01-01T04:00:00Z,heart_rate,900,/min\n")
        file.write("patient-1,2026-01-01T05:00:00Z,heart_rate,80,parsec\n")
    assert fedtwin("check", directory.root) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "implausible-value" in shown
    assert "unknown-unit" in shown
    assert "configuration, keys and data can be read" in shown
    assert "coordinator localhost:1: cannot be reached from here" in shown
    assert "900" in directory.quarantine.read_text()
    assert stat.S_IMODE(directory.quarantine.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda at: (at.root / "hospital.toml").write_text("name = 1"), "hospital.toml: name: expected"),
        (lambda at: at.signing_key.chmod(0o640), "signing.key: mode: expected 0600, found 0640"),
        (lambda at: at.node_key.chmod(0o604), "node.key: mode: expected 0600, found 0604"),
        (lambda at: at.signing_key.unlink(), "signing.key: expected a private key"),
        (lambda at: at.signing_key.write_text("text"), "signing.key: expected an Ed25519 key in PEM"),
        (lambda at: at.ca_file.write_text("text"), "ca.pem: expected a certificate in PEM"),
        (lambda at: (at.data / "patients.csv").unlink(), "patients: expected"),
        (lambda at: rename(at.data / "observations.csv", "unit", "units"), "observations.csv: unit: expected a column"),
        (lambda at: rename(at.data / "patients.csv", "admitted", "at"), "patients.csv: admitted: expected a column"),
    ],
)
def test_check_says_what_is_wrong_in_one_line_with_exit_code_two(
    directory: HospitalDirectory,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[HospitalDirectory], object],
    words: str,
) -> None:
    spoil(directory)
    assert fedtwin("check", directory.root) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def rename(file: Path, column: str, name: str) -> None:
    header, _, rows = file.read_text().partition("\n")
    file.write_text(",".join(name if word == column else word for word in header.split(",")) + "\n" + rows)


def test_run_starts_nothing_when_the_data_of_an_approved_study_cannot_be_read(
    directory: HospitalDirectory, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("approve", directory.root, write_study(tmp_path, world), "--yes") == 0
    (directory.data / "patients.csv").rename(directory.data / "patients.parquet")
    capsys.readouterr()
    assert fedtwin("run", directory.root) == 2
    assert "patients.parquet: expected" in capsys.readouterr().err
    assert not directory.logs.exists()


def test_run_starts_nothing_when_something_is_wrong(
    directory: HospitalDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.node_key.chmod(0o644)
    assert fedtwin("run", directory.root) == 2
    assert "expected 0600" in capsys.readouterr().err
    assert not directory.logs.exists()


def test_approve_asks_and_keeps_nothing_on_a_no(
    directory: HospitalDirectory,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = write_study(tmp_path, world)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: "n")
    assert fedtwin("approve", directory.root, study) == 1
    assert not directory.studies.exists()
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: "y")
    assert fedtwin("approve", directory.root, study) == 0
    shown = capsys.readouterr().out
    assert "heart_rate" in shown
    assert "ε" in shown
    assert SECRET_PATIENT not in shown
    assert [path.name for path in directory.studies.iterdir()] == [world.study.digest]


def test_approve_refuses_with_one_line_and_exit_code_two(
    directory: HospitalDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("approve", directory.root, write_study(tmp_path, make_world()), "--yes") == 2
    error = capsys.readouterr().err
    assert "expected a trusted signer" in error
    assert error.count("\n") == 1
    assert not directory.studies.exists()


def test_status_is_for_people_and_for_programs(
    directory: HospitalDirectory, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("approve", directory.root, write_study(tmp_path, world), "--yes") == 0
    capsys.readouterr()
    assert fedtwin("status", directory.root, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    (study,) = document["studies"]
    assert document["site"] == "north"
    assert (study["name"], study["state"], study["steps"], study["planned_steps"]) == (
        "deterioration",
        "approved",
        0,
        3,
    )
    assert fedtwin("status", directory.root) == 0
    assert "0 of 3" in capsys.readouterr().out
