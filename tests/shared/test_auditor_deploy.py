"""deploy/auditor: the compose file's command verifies a real study; the image copies what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types

from fedtwin_shared.cli import main
from fedtwin_shared.documents import sign_study
from tests.world import make_world

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "auditor"


def command(evidence: Path, key: str) -> list[str]:
    """The compose file's command as compose would start it."""
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert (service["network_mode"], service["read_only"], service["cap_drop"]) == ("none", True, ["ALL"])
    program, *arguments = service["command"]
    assert program == "fedtwin"
    return [re.sub(r"\$\{COORDINATOR_KEY:[^}]*\}", key, word).replace("/evidence", str(evidence)) for word in arguments]


def test_the_compose_files_command_audits_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world()
    (tmp_path / "study.signed.json").write_bytes(sign_study(world.study, world.roster, world.coordinator))
    with pytest.raises(SystemExit) as right:
        main(command(tmp_path, world.coordinator_key))
    assert right.value.code in (0, None)
    assert "signature valid" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main(command(tmp_path, make_world().coordinator_key))
    assert wrong.value.code == 2
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
    text = (DEPLOY / "README.md").read_text()
    assert "fedtwin audit study study.signed.json --key" in text
