"""The coordinator's Flower commands and its control, without starting them; `tests/e2e/test_flower_rim.py` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedtwin_server import control
from fedtwin_server.control import Control, list_nodes, register_node, run_status
from fedtwin_server.errors import ControlError
from fedtwin_server.superlink import SuperLinkSettings, answers, executor_command, superlink_command
from tests.authority import free_ports, make_server_identity, write_private

SECRET = b"a secret of superlink and executor"


@pytest.fixture
def settings(tmp_path: Path) -> SuperLinkSettings:
    identity = make_server_identity(tmp_path / "identity")
    write_private(tmp_path / "secret", SECRET)
    return SuperLinkSettings(
        directory=tmp_path / "coordinator",
        port=free_ports(1)[0],
        certificate=identity.certificate,
        private_key=identity.private_key,
        certificate_authority=identity.certificate_authority,
        secret_file=tmp_path / "secret",
        server_app_environment={"FOR_THE_SERVER_APP": "yes"},
    )


def test_the_superlink_listens_on_loopback_with_tls_a_database_and_node_authentication(
    settings: SuperLinkSettings,
) -> None:
    arguments = superlink_command(settings).arguments
    assert {"--host=127.0.0.1", "--isolation=process", "--enable-supernode-auth"} <= set(arguments)
    assert "--disable-runtime-dependency-installation" in arguments
    assert f"--database={settings.database}" in arguments
    assert not [argument for argument in arguments if "insecure" in argument]


def test_every_flower_process_is_offline_and_has_a_home_of_its_own(settings: SuperLinkSettings) -> None:
    commands = (superlink_command(settings), executor_command(settings))
    for command in commands:
        assert command.environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert command.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert command.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert "127.0.0.1" in command.environment["NO_PROXY"]
        assert Path(command.arguments[0]).is_absolute()
    assert len({command.environment["FLWR_HOME"] for command in commands}) == len(commands)


def test_the_server_apps_environment_is_the_executors_alone(settings: SuperLinkSettings) -> None:
    assert executor_command(settings).environment["FOR_THE_SERVER_APP"] == "yes"
    assert "FOR_THE_SERVER_APP" not in superlink_command(settings).environment


def test_no_secret_is_on_a_command_line_or_in_an_environment(settings: SuperLinkSettings) -> None:
    for command in (superlink_command(settings), executor_command(settings)):
        text = " ".join((*command.arguments, *command.environment.values()))
        assert SECRET.decode() not in text
        assert settings.private_key.read_text() not in text


def test_answers_is_false_where_nobody_listens(settings: SuperLinkSettings) -> None:
    assert not answers(f"https://{settings.address}/health", settings.certificate_authority)


def fake_flower(directory: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int = 0) -> Control:
    """A `flwr` that prints what a broken or changed one might; the real one is in the end-to-end tests."""
    program = directory / "flwr"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    program.chmod(0o700)
    monkeypatch.setattr(control, "flower_program", lambda name: str(directory / name))
    return Control(address="127.0.0.1:1", certificate_authority=directory / "authority.pem", home=directory / "home")


@pytest.mark.parametrize(
    "output",
    [
        "",
        "Traceback (most recent call last)",
        "[]",
        "{}",
        '{"success": "true", "nodes": []}',
        '{"success": false, "error-message": "no"}',
        '{"success": true}',
        '{"success": true, "nodes": 1}',
        '{"success": true, "nodes": [1]}',
        '{"success": true, "nodes": [{"node-id": "x", "status": "online"}]}',
        '{"success": true, "nodes": [{"node-id": true, "status": "online"}]}',
        '{"success": true, "nodes": [{"node-id": 1}]}',
    ],
)
def test_an_answer_that_is_not_understood_is_an_error_whatever_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    with pytest.raises(ControlError):
        list_nodes(fake_flower(tmp_path, monkeypatch, output))


def test_a_success_is_believed_whatever_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"success": true, "nodes": [{"node-id": "18446744073709551615", "status": "online"}]}'
    (node,) = list_nodes(fake_flower(tmp_path, monkeypatch, answer, code=1))
    assert (node.node_id, node.online) == (2**64 - 1, True)


def test_two_runs_where_one_was_asked_for_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ControlError, match="expected one run, found 2"):
        run_status(fake_flower(tmp_path, monkeypatch, '{"success": true, "runs": [{}, {}]}'), 1)


def test_a_superlink_that_is_away_is_an_error(settings: SuperLinkSettings, tmp_path: Path) -> None:
    away = Control(
        address=settings.address, certificate_authority=settings.certificate_authority, home=tmp_path / "home"
    )
    with pytest.raises(ControlError):
        register_node(away, tmp_path / "no-such-key.pub")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert os.environ.get("FLWR_HOME") != str(tmp_path / "home")
