"""`fedtwin client device` as a hospital types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedtwin_client.ingest.registry import read_certificate, read_registry
from fedtwin_shared.cli import main
from tests.authority import make_server_identity
from tests.client.ingest.bedside import Authority

KEY = "ed25519:qxUgM8trzSi80x+hf8Pdo5rbhlgtEI01dffdrkvTkKU="


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    authority = make_server_identity(tmp_path / "identity").certificate_authority
    root = tmp_path / "north"
    place = ("--superlink", "localhost:9092", "--coordinator-key", KEY, "--ca", str(authority))
    assert fedtwin("init", root, "--name", "north", *place) == 0
    return root


def test_a_device_is_registered_listed_quarantined_and_revoked(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Authority(tmp_path / "tls").certify("monitor")
    add = ("device", "add", hospital, "monitor", "--certificate", monitor.certificate)
    assert fedtwin(*add, "--patient", "secret-7", "--signal", "heart_rate", "--clock", "-250") == 0
    file = hospital / "node" / "devices.json"
    device = read_registry(file).find(read_certificate(monitor.certificate))
    assert device is not None
    assert (device.patients, device.signals, device.clock) == (frozenset({"secret-7"}), frozenset({"heart_rate"}), -250)
    assert fedtwin("device", "add", hospital, "records", "--every-patient") == 0
    printed = re.search(r"shown this once: (\S+)", capsys.readouterr().out)
    assert printed is not None
    assert read_registry(file).find(printed[1].encode()) is not None
    assert printed[1] not in file.read_text()
    assert fedtwin("device", "list", hospital) == 0
    listed = capsys.readouterr().out
    assert "monitor" in listed
    assert "secret-7" not in listed
    assert fedtwin("device", "quarantine", hospital, "monitor") == 0
    assert read_registry(file).devices["monitor"].state == "quarantined"
    assert fedtwin("device", "quarantine", hospital, "monitor", "--lift") == 0
    assert fedtwin("device", "revoke", hospital, "monitor") == 0
    assert read_registry(file).get("monitor") is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "a/b", "--every-patient"),
        ("add", "x"),
        ("add", "x", "--every-patient", "--patient", "p"),
        ("add", "x", "--every-patient", "--signal", "hr"),
        ("add", "x", "--every-patient", "--rate", "nan"),
        ("revoke", "nobody"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_two(
    hospital: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert fedtwin("device", command, hospital, *rest) == 2
    assert "Traceback" not in capsys.readouterr().err
