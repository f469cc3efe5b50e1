"""`fedtwin server`: one line and exit code 2 for what is wrong; help without importing Flower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_shared.cli import main
from fedtwin_shared.signing import format_public_key, load_signing_key
from tests.authority import free_ports, make_node_identity
from tests.server.directories import make_directory, sign_short_study

COMMANDS = ("init", "enrol", "run", "front", "health", "renew", "status", "resume", "study")


def fedtwin(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_names_every_command_and_imports_neither_flower_nor_uvicorn() -> None:
    program = (
        "import sys\nfrom fedtwin_shared.cli import main\n"
        "try:\n    main(['server', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'flwr', 'uvicorn', 'starlette', 'numpy'} & set(sys.modules), 'too much is imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS), *(["study", n] for n in ("draft", "sign", "start"))]
)
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fedtwin("server", *command, "--help") == 0
    assert len(capsys.readouterr().out) > 200


def test_from_an_empty_folder_to_a_signed_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "consortium"
    front, link = free_ports(2)
    init = ("server", "init", root, "--name", "consortium", "--address", f"localhost:{front}", "--link-port", str(link))
    assert fedtwin(*init) == 0
    said = capsys.readouterr().out
    assert f"localhost:{front}" in said
    assert "ed25519:" in said
    node = make_node_identity(tmp_path / "ward-a").public_key
    key = format_public_key(load_signing_key(root / "keys" / "signing.key").public_key())
    enrol = ("server", "enrol", root, "--name", "ward-a", "--node-key", node, "--signing-key")
    assert fedtwin(*enrol, key) == 2  # the coordinator's own key
    assert "every name and every key once" in capsys.readouterr().err
    other = make_directory(tmp_path / "other")
    assert fedtwin(*enrol, format_public_key(load_signing_key(other.signing_key).public_key())) == 0
    assert "roster version 1: ward-a" in capsys.readouterr().out
    assert fedtwin("server", "study", "draft", root, "deterioration") == 0
    draft = capsys.readouterr().out.strip()
    assert fedtwin("server", "study", "sign", root, draft) == 0
    assert "price ε = 2.986 of 3 at δ = 1e-05" in capsys.readouterr().out
    assert fedtwin("server", "health", root) == 1
    capsys.readouterr()
    assert fedtwin("server", "status", root, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["coordinator"]["healthy"] is False
    assert status["nodes"] == [{"site": "ward-a", "node_id": None, "status": "not registered"}]
    assert status["runs"] == []
    assert fedtwin("server", "renew", root) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "{missing}"), "expected a coordinator's directory, found none"),
        (("run", "{missing}"), "expected a coordinator's directory, found none"),
        (("health", "{broken}"), "coordinator.toml: link: expected"),
        (("study", "sign", "{good}", "{missing}"), "missing: expected a readable file"),
        (("study", "start", "{good}", "{missing}"), "missing: expected a signed study"),
        (("study", "draft", "{good}", "x", "--template", "no"), "template: expected"),
        (("resume", "{good}", "1234"), "run: expected 32 hexadecimal digits"),
        (("init", "{good}", "--name", "x", "--address", "h:1"), "a new or empty directory"),
        (("init", "{missing}", "--name", "x", "--address", "h"), "front.address: expected host:port"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    good = make_directory(tmp_path / "good", "ward-a")
    (tmp_path / "broken").mkdir()
    text = (good.root / "coordinator.toml").read_text()
    (tmp_path / "broken" / "coordinator.toml").write_text(text.replace("[link]", "[links]"))
    places = {"missing": tmp_path / "missing", "broken": tmp_path / "broken", "good": good.root}
    assert fedtwin("server", *(argument.format(**places) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_without_a_running_coordinator_a_start_says_so_and_prepares_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front, link = free_ports(2)
    directory = make_directory(tmp_path / "consortium", "ward-a", "ward-b", front=front, link=link)
    study = sign_short_study(directory)
    assert fedtwin("server", "study", "start", directory.root, study.file) == 2
    captured = capsys.readouterr()
    assert "link: expected a running coordinator" in captured.err
    assert captured.err.count("\n") == 1
    assert list(directory.runs.iterdir()) == []
