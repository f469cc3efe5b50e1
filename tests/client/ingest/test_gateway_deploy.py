"""The gateway in deploy/hospital and in a hospital's directory: what `gateway-init` writes, whole and hardened."""

from __future__ import annotations

import re
import shutil
import ssl
import stat
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from cryptography import x509

from fedtwin_client.config import CONFIG_FILE, SiteConfig, read_directory
from fedtwin_client.ingest.device import identity_of
from fedtwin_client.ingest.installation import (
    COMPOSE_FILE,
    UNIT_FILE,
    Doors,
    render_compose,
    render_tables,
    render_unit,
)
from fedtwin_client.ingest.registry import FILE, read_certificate, read_registry
from fedtwin_client.ingest.tls_files import TlsFiles
from fedtwin_shared.cli import main
from fedtwin_shared.documents import check_document
from fedtwin_shared.errors import ConfigurationError
from tests.client.premises import make_premises
from tests.client.test_hospital_deploy import DEPLOY, PLACE
from tests.world import make_world

NAMES = ("--name", "ward.example.org", "--name", "10.1.2.3")


def fedtwin(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_examples_are_what_the_command_writes() -> None:
    name = tomllib.loads((DEPLOY / CONFIG_FILE).read_text())["name"]
    assert (DEPLOY / UNIT_FILE).read_text() == render_unit(name, PLACE)
    assert (DEPLOY / COMPOSE_FILE).read_text() == render_compose(Doors(names=("ward",)), PLACE)


def test_the_example_is_hardened() -> None:
    lines = set((DEPLOY / UNIT_FILE).read_text().splitlines())
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "UMask=0077",
    ):
        assert line in lines
    (service,) = yaml.safe_load((DEPLOY / COMPOSE_FILE).read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["ulimits"] == {"core": 0}
    assert service["ports"] == ["2575:2575", "8443:8443", "50061:50061"]


def test_a_gateway_is_made_once_and_a_device_gets_a_certificate(tmp_path: Path) -> None:
    hospital = make_premises(tmp_path / "a hospital", make_world())
    assert fedtwin("gateway-init", hospital.root, *NAMES, "--fhir", "0", "--broker", "localhost:8883") == 0
    settings = read_directory(hospital.root).config.gateway
    assert settings is not None
    assert (settings.mllp, settings.fhir, settings.broker) == ("0.0.0.0:2575", None, "localhost:8883")
    assert fedtwin("gateway-init", hospital.root, *NAMES) == 2
    for key in (hospital.root / "gateway").rglob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    tls = TlsFiles(folder=hospital.root / "gateway")
    assert tls.listening().verify_mode is ssl.CERT_REQUIRED
    assert tls.dialling().get_ca_certs()
    add = ("device", "add", hospital.root, "bed-1", "--patient", "p", "--issue", tmp_path / "bed-1")
    assert fedtwin(*add) == 0
    assert {file.name for file in (tmp_path / "bed-1").iterdir()} == {"bed-1.pem", "bed-1.key", "ca.pem"}
    assert fedtwin(*add) == 2
    assert not list((hospital.root / "gateway" / "issued").glob("*.key"))
    before = read_registry(hospital.node / FILE).devices["bed-1"]
    assert fedtwin("device", "renew", hospital.root, "bed-1", "--issue", tmp_path / "renewed") == 0
    after = read_registry(hospital.node / FILE).devices["bed-1"]
    assert after == replace(before, identity=identity_of(read_certificate(tmp_path / "renewed" / "bed-1.pem")))
    assert after.identity != before.identity
    old, new = (
        x509.load_pem_x509_certificate((tmp_path / where / "bed-1.pem").read_bytes()) for where in ("bed-1", "renewed")
    )
    listed = x509.load_pem_x509_crl(tls.revoked.read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(old.serial_number) is not None
    assert listed.get_revoked_certificate_by_serial_number(new.serial_number) is None
    assert fedtwin("device", "renew", hospital.root, "bed-2", "--issue", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()
    shown = tls.server[0].read_bytes()
    assert fedtwin("gateway-renew", hospital.root) == 0
    assert tls.server[0].read_bytes() != shown
    names = x509.load_pem_x509_certificate(tls.server[0].read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == ["ward.example.org", "10.1.2.3"]
    assert tls.listening().verify_mode is ssl.CERT_REQUIRED
    if shutil.which("systemd-analyze"):
        verified = subprocess.run(
            ["systemd-analyze", "verify", hospital.root / UNIT_FILE], capture_output=True, check=False
        )
        assert (verified.returncode, verified.stderr) == (0, b"")


def test_a_feed_without_tls_needs_a_loopback_port() -> None:
    text = (DEPLOY / CONFIG_FILE).read_text() + "\n" + render_tables(Doors(names=("ward",), listen="127.0.0.1"))
    check_document(tomllib.loads(text.replace("keep_days", 'mllp_feed = "lab"\nkeep_days', 1)), SiteConfig, file="x")
    open_to_all = text.replace("127.0.0.1:2575", "0.0.0.0:2575").replace("keep_days", 'mllp_feed = "lab"\nkeep_days', 1)
    with pytest.raises(ConfigurationError, match="expected a loopback address"):
        check_document(tomllib.loads(open_to_all), SiteConfig, file="x")


def test_every_key_of_the_tables_is_explained() -> None:
    lines = render_tables(Doors(names=("ward",), broker="localhost:8883")).splitlines()
    keys = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(keys) == 7
    for number in keys:
        above = number - 1
        while "=" in lines[above] and not lines[above].startswith("#"):
            above -= 1
        assert lines[above].startswith("#"), lines[number]


def test_the_guides_commands_exist_and_its_tables_are_whole() -> None:
    text = (DEPLOY / "GATEWAY.md").read_text()
    commands = re.findall(r"^fedtwin ((?:client )(?:device \w+|[\w-]+))", text, re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert not ended.value.code
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}
