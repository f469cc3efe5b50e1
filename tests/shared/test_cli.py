from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fedtwin_shared.cli import fedtwin, main
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


def test_every_argument_and_option_has_a_help_that_is_shown() -> None:
    def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                below = command.get_command(click.Context(command), name)
                assert below is not None
                yield from leaves(below, f"{path} {name}")
        else:
            yield path, command

    found = [(path, parameter) for path, command in leaves(fedtwin, "fedtwin") for parameter in command.params]
    assert len(found) > 40
    assert [f"{path} {parameter.name}" for path, parameter in found if not getattr(parameter, "help", None)] == []


def test_an_auditor_recomputes_the_price_of_a_signed_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.signed.json"
    file.write_bytes(sign_study(WORLD.study, WORLD.roster, WORLD.coordinator))
    assert run("audit", "study", str(file), "--key", WORLD.coordinator_key, "--json") == 0
    statement = json.loads(capsys.readouterr().out)
    assert statement["training"]["steps"] == 3
    assert statement["training"]["epsilon_pld"] <= statement["training"]["epsilon_renyi"]
    assert max(statement[part]["epsilon_pld"] for part in ("training", "evaluation")) == WORLD.study.price()
    assert statement["price"] == WORLD.study.price() <= statement["budget"]["epsilon"]
    assert "nominal" in statement["caveat"]
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
