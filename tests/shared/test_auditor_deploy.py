"""deploy/auditor: the compose file's commands verify real evidence; the image copies what exists."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from fedtwin_shared.cli import main
from fedtwin_shared.documents import sign_study
from tests.shared.ledger.forge import GOLDEN
from tests.world import make_world

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "auditor"


def run(name: str, evidence: Path, key: str = "") -> int:
    """Run a service's command as compose would start it, and return its exit code."""
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert (service["network_mode"], service["read_only"], service["cap_drop"]) == ("none", True, ["ALL"])
    program, *arguments = services[name]["command"]
    assert program == "fedtwin"
    mounts = {mount["target"]: mount.get("read_only", False) for mount in services[name]["volumes"]}
    assert [target for target, read_only in mounts.items() if not read_only] == ["/report"] * (name == "report")
    for inside, outside in ((r"\$\{COORDINATOR_KEY:[^}]*\}", key), ("/evidence|/report", str(evidence))):
        arguments = [re.sub(inside, outside, word) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_compose_files_commands_verify_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(GOLDEN / "pinned-keys.json", tmp_path)
    shutil.copy(GOLDEN / "honest.zip", tmp_path / "audit-bundle.zip")
    assert run("verify", tmp_path) == 0
    assert run("report", tmp_path) == 0
    assert (tmp_path / "report.html").exists()
    shutil.copy(GOLDEN / "two-views.zip", tmp_path / "audit-bundle.zip")
    assert run("verify", tmp_path) == 1
    assert "\n1. north: cosignatures: " in capsys.readouterr().out


def test_the_compose_files_command_audits_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world()
    (tmp_path / "study.signed.json").write_bytes(sign_study(world.study, world.roster, world.coordinator))
    assert run("study", tmp_path, world.coordinator_key) == 0
    assert "signature valid" in capsys.readouterr().out
    assert run("study", tmp_path, make_world().coordinator_key) == 2
    assert "trusted signer" in capsys.readouterr().err


def test_the_image_copies_what_exists_and_installs_no_extra() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for word in line.split()
    ]
    assert copied
    assert all((ROOT / path).exists() for path in copied)
    assert "install --no-cache-dir ." in text
    assert "[" not in text.split("install --no-cache-dir")[1].splitlines()[0]


def test_the_readmes_commands_are_commands() -> None:
    lines = re.findall(r"^    fedtwin (.*)$", (DEPLOY / "README.md").read_text(), flags=re.MULTILINE)
    assert {shlex.split(line)[1] for line in lines} == {"verify", "report", "study", "release"}
    for line in lines:
        words = shlex.split(line)
        for option in [word for word in words if word.startswith("--")]:
            assert option in help_of(*words[:2])


def help_of(*command: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        main([*command, "--help"])
    return shown.getvalue()
