"""The launcher of the SuperNode without a coordinator; `tests/e2e/test_flower_rim.py` has the rest."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.supernode import (
    IDLE_SHARE,
    LONGEST_IDLE_SECONDS,
    SuperNodeError,
    SuperNodeSettings,
    idle_seconds,
    sign_off,
    supernode_arguments,
)
from tests.authority import free_ports, make_node_identity, write_private


def make_settings(directory: Path, **changes: object) -> SuperNodeSettings:
    node = make_node_identity(directory)
    values: dict[str, object] = {
        "superlink": "127.0.0.1:1",
        "root_certificates": directory / "authority.pem",
        "private_key": node.private_key,
        "runtime_port": 9094,
        "directory": directory,
        **changes,
    }
    return SuperNodeSettings(**values)  # type: ignore[arg-type]  # a test's own values


@given(st.floats(min_value=0, max_value=1e6), st.floats(min_value=0.01, max_value=LONGEST_IDLE_SECONDS))
def test_an_idle_poll_adds_a_bounded_share_of_the_time_already_spent_idle(idle_for: float, poll_seconds: float) -> None:
    wait = idle_seconds(idle_for, poll_seconds=poll_seconds)
    assert poll_seconds <= wait <= LONGEST_IDLE_SECONDS
    assert wait <= max(poll_seconds, IDLE_SHARE * idle_for)
    assert wait <= idle_seconds(2 * idle_for, poll_seconds=poll_seconds)


@pytest.mark.parametrize("poll_seconds", [0.0, -1.0, 3.1, float("nan")])
def test_a_poll_that_is_not_positive_or_slower_than_flowers_is_refused(tmp_path: Path, poll_seconds: float) -> None:
    with pytest.raises(ValueError):
        make_settings(tmp_path, poll_seconds=poll_seconds)


def test_the_supernode_runs_no_app_and_listens_on_loopback(tmp_path: Path) -> None:
    arguments = supernode_arguments(make_settings(tmp_path, secret_file=tmp_path / "secret"))
    assert "--isolation=process" in arguments
    assert "--host=127.0.0.1" in arguments
    assert not [argument for argument in arguments if "insecure" in argument or "allow-runtime" in argument]


def test_no_secret_is_on_the_command_line(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    write_private(secret, b"a secret of the executor")
    settings = make_settings(tmp_path, secret_file=secret)
    line = " ".join(supernode_arguments(settings))
    assert "a secret of the executor" not in line
    assert settings.private_key.read_text() not in line


def launch(settings: SuperNodeSettings) -> subprocess.CompletedProcess[str]:
    arguments = (
        *("--superlink", settings.superlink, "--root-certificates", str(settings.root_certificates)),
        *("--private-key", str(settings.private_key), "--runtime-port", str(settings.runtime_port)),
        *("--directory", str(settings.directory)),
    )
    return subprocess.run(
        (sys.executable, "-m", "fedtwin_client.supernode", *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_supernode_of_one_directory_is_refused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, runtime_port=free_ports(1)[0])
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = launch(settings)
    assert done.returncode != 0
    assert "expected no other SuperNode of this directory, found one that runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_on_another_curve_is_refused_by_name(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    settings.private_key.write_bytes(key)
    with pytest.raises(SuperNodeError, match="expected an OpenSSH private key on a NIST curve, found Ed25519"):
        sign_off(settings, tmp_path / "node_id")


@pytest.mark.parametrize("content", [b"", b"no key", None])
def test_a_file_that_holds_no_key_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    settings = make_settings(tmp_path)
    settings.private_key.unlink() if content is None else settings.private_key.write_bytes(content)
    with pytest.raises(SuperNodeError, match="expected an OpenSSH private key on a NIST curve"):
        sign_off(settings, tmp_path / "node_id")


def test_signing_off_never_stands_in_the_way_of_a_start(tmp_path: Path) -> None:
    settings, node_file = make_settings(tmp_path, superlink=f"127.0.0.1:{free_ports(1)[0]}"), tmp_path / "node_id"
    began = time.monotonic()
    sign_off(settings, node_file)  # nothing to sign off
    node_file.write_text("12345\n")
    sign_off(settings, node_file)  # nobody there, and no authority's certificate either
    node_file.write_text("not a number")
    sign_off(settings, node_file)
    assert time.monotonic() - began < 30
    assert node_file.read_text() == "not a number"  # the SuperNode that starts next says who it is
