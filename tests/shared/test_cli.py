from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedtwin_shared.cli import main
from fedtwin_shared.documents import sign_study
from tests.world import make_world

WORLD = make_world()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_names_every_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for word in ("client", "server", "simulate", "audit", "Hospital IT", "Consortium", "Researchers", "Auditors"):
        assert word in shown


def test_an_auditor_recomputes_the_price_of_a_signed_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.signed.json"
    file.write_bytes(sign_study(WORLD.study, WORLD.roster, WORLD.coordinator))
    assert run("audit", "study", str(file), "--key", WORLD.coordinator_key, "--json") == 0
    statement = json.loads(capsys.readouterr().out)
    assert statement["training"]["steps"] == 3
    assert statement["training"]["epsilon_pld"] <= statement["training"]["epsilon_renyi"]
    assert max(statement[part]["epsilon_pld"] for part in ("training", "evaluation")) == WORLD.study.price()
    assert set(statement["leaves_a_site"]["train"]) == {"weight", "bias"}
    assert run("audit", "study", str(file), "--key", WORLD.coordinator_key) == 0
    assert "signature valid" in capsys.readouterr().out


def test_a_study_that_does_not_verify_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.signed.json"
    file.write_bytes(sign_study(WORLD.study, WORLD.roster, WORLD.coordinator)[:-9])
    assert run("audit", "study", str(file), "--key", WORLD.coordinator_key) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "expected" in shown
    assert run("audit", "study", str(tmp_path / "none"), "--key", WORLD.coordinator_key) == 2
    assert run("audit", "study", str(file), "--key", "ed25519:x") == 2
