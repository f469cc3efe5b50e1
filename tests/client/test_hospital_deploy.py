"""deploy/hospital: the examples are what `init` writes, systemd and compose accept them, and their commands run."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from fedtwin_client.config import CONFIG_FILE, SiteConfig
from fedtwin_client.directory import (
    COMPOSE_FILE,
    UNIT_FILE,
    Answers,
    Place,
    find_executable,
    render_compose,
    render_config,
    render_unit,
)
from fedtwin_client.health import is_reachable
from fedtwin_shared.documents import read_toml
from fedtwin_shared.supervision import wait_until
from tests.client.premises import make_premises
from tests.world import make_world

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "hospital"
PLACE = Place(
    directory=Path("/var/lib/fedtwin/hospital"),
    data=Path("/srv/records"),
    executable=Path("/opt/fedtwin/bin/fedtwin"),
    user="fedtwin",
    owner="1000:1000",
)


def test_the_example_configuration_loads_and_is_what_init_writes() -> None:
    config = read_toml(DEPLOY / CONFIG_FILE, SiteConfig)
    answers = Answers(
        name=config.name,
        superlink=config.coordinator.superlink,
        coordinator_key=config.coordinator.public_key,
        valid_until=config.policy.valid_until,
        data=config.data.folder,
    )
    assert (DEPLOY / CONFIG_FILE).read_text() == render_config(answers)
    assert Path(config.data.folder) == PLACE.data


def test_the_example_unit_and_compose_file_are_what_init_writes() -> None:
    name = tomllib.loads((DEPLOY / CONFIG_FILE).read_text())["name"]
    assert (DEPLOY / UNIT_FILE).read_text() == render_unit(name, PLACE)
    assert (DEPLOY / COMPOSE_FILE).read_text() == render_compose(8181, PLACE)


@pytest.mark.parametrize("folder", ["north", "a hospital 100%"])
def test_systemd_accepts_the_unit(tmp_path: Path, folder: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    directory = make_premises(tmp_path / folder, make_world())
    assert find_executable().exists()
    unit = directory.root / UNIT_FILE
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    unit.write_text(unit.read_text().replace("ExecStart=", "ExecStart=/nonexistent").replace("Type=exec", "Type=what"))
    broken = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert broken.stderr  # the check can fail


def test_the_unit_is_hardened() -> None:
    lines = set((DEPLOY / UNIT_FILE).read_text().splitlines())
    for line in (
        *(
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "ProtectHome=read-only",
            "PrivateTmp=yes",
            "PrivateDevices=yes",
        ),
        *("CapabilityBoundingSet=", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "LimitCORE=0", "UMask=0077"),
    ):
        assert line in lines


def test_the_container_is_hardened_and_reads_the_data_only() -> None:
    (service,) = yaml.safe_load((DEPLOY / COMPOSE_FILE).read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"] == {"core": 0}
    assert "ports" not in service  # nothing dials in
    mounts = {mount["target"]: mount.get("read_only", False) for mount in service["volumes"]}
    assert mounts == {str(PLACE.directory): False, str(PLACE.data): True}


def test_docker_compose_accepts_the_file() -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker compose is not installed")
    file = str(DEPLOY / COMPOSE_FILE)
    done = subprocess.run(["docker", "compose", "--file", file, "config", "--quiet"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.slow
def test_the_compose_files_commands_run(tmp_path: Path) -> None:
    directory = make_premises(tmp_path / "north", make_world())
    (service,) = yaml.safe_load((directory.root / COMPOSE_FILE).read_text())["services"].values()
    scripts, health = sysconfig.get_path("scripts"), f"127.0.0.1:{directory.config.ports.health}"
    assert service["command"] == ["fedtwin", "client", "run", str(directory.root)]
    node = subprocess.Popen([f"{scripts}/{service['command'][0]}", *service["command"][1:]])
    try:
        wait_until(lambda: is_reachable(health), what="health", deadline_seconds=30)
        kind, *check = service["healthcheck"]["test"]
        assert (kind, check[0], check[-1]) == ("CMD", "python", str(directory.config.ports.health))
        # No coordinator answers here, so the node is up and not healthy: 1 is the check's own word, 2 would be a crash.
        assert subprocess.run([sys.executable, *check[1:]], check=False).returncode == 1
    finally:
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=20) == 0


def test_the_dockerfile_copies_what_exists_and_pins_what_the_project_pins() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()
    ]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(wheel["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(copied)
    (torch,) = [need for need in wheel["project"]["optional-dependencies"]["client"] if need.startswith("torch")]
    assert torch in text
