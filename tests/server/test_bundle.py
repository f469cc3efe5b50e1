"""The bundle: no code, and the same digest from our own computing and from Flower's command, wherever it is run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
import tomli_w

from fedtwin_server.bundle import BUNDLE_DIRECTORY, build_bundle, bundle_digest
from fedtwin_shared.flower_environment import flower_environment, flower_program

CONFIGURATION = (BUNDLE_DIRECTORY / "pyproject.toml").read_bytes()


@pytest.mark.slow
def test_equal_to_the_digest_of_what_flwr_build_writes_wherever_and_whenever(tmp_path: Path) -> None:
    digests = set()
    for name in ("first", "second"):
        directory = tmp_path / name / "bundle"
        shutil.copytree(BUNDLE_DIRECTORY, directory)
        os.utime(directory / "pyproject.toml", (0, 0) if name == "first" else None)
        done = subprocess.run(
            (flower_program("flwr"), "build", "--app", str(directory)),
            cwd=tmp_path / name,
            env={**os.environ, **flower_environment(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        built = list((tmp_path / name).glob("*.fab"))
        assert len(built) == 1, done.stdout + done.stderr
        digests.add(hashlib.sha256(built[0].read_bytes()).hexdigest())
    assert digests == {bundle_digest()}


def test_the_bundle_carries_no_code() -> None:
    assert [path.name for path in BUNDLE_DIRECTORY.iterdir()] == ["pyproject.toml"]
    with zipfile.ZipFile(BytesIO(build_bundle(CONFIGURATION))) as bundle:
        assert bundle.namelist() == ["pyproject.toml", ".info/CONTENT"]
    assert tomllib.loads(CONFIGURATION.decode())["project"]["dependencies"] == []


def test_the_configuration_is_already_as_flower_rewrites_it() -> None:
    assert tomli_w.dumps(tomllib.loads(CONFIGURATION.decode())).encode() == CONFIGURATION


def test_another_configuration_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(CONFIGURATION.replace(b'version = "1.0.0"', b'version = "1.0.1"'))
    assert bundle_digest(tmp_path) != bundle_digest()
