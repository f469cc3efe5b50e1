"""`fedtwin simulate`: every command parses, and a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedtwin_shared.cli import main
from fedtwin_shared.flower_environment import flower_program
from fedtwin_simulations.cli import app
from fedtwin_simulations.toml_text import write_toml
from tests.simulations.laboratory import experiment_document

RUNNER = CliRunner()


def fedtwin(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = (flower_program("fedtwin"), "simulate", *arguments)
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", ["run", "experiment", "demo", "bench", "hospitals"])
def test_every_command_explains_itself(command: str) -> None:
    done = RUNNER.invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("experiment", "nothing-of-ours"), "expected one of"),
        (("experiment", "heart"), "--data"),
        (("experiment", "heart", "--data", "/nowhere"), "processed.cleveland.data"),
        (("run", "nothing.toml"), "nothing.toml"),
        (("bench", "nothing"), "expected one of round"),
        (("demo", "--study", "nothing-of-ours"), "expected one of"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert words in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_hospitals_are_written_and_named(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["hospitals", str(tmp_path), "--sites", "2"])
    assert done.exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"city", "coast"}


def test_json_stands_alone_on_standard_output(tmp_path: Path) -> None:
    document = experiment_document()
    document["methods"] = document["methods"][2:]
    document["partitions"] = [{"rule": "hash", "seeds": [0]}]
    file = tmp_path / "mine.toml"
    file.write_text(write_toml(document), encoding="utf-8")
    done = fedtwin("experiment", str(file), "--json", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert [row["method"] for row in json.loads(done.stdout)["results"] if row["primary"]] == ["federated", "private"]
    assert "2 of 2" in done.stderr


def test_the_group_loads_neither_torch_nor_flower_to_explain_itself() -> None:
    program = (
        "import sys, fedtwin_simulations.cli\nassert not {'torch', 'flwr', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([flower_program("python"), "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
