"""README's own commands: every one parses, and the four quick starts run as they stand, on other ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from fedtwin_shared.cli import fedtwin
from fedtwin_simulations.deployment import free_ports

ROOT = Path(__file__).parents[2]
FEDTWIN = Path(sys.executable).with_name("fedtwin")


def read_blocks() -> dict[str, list[list[str]]]:
    """The commands of README's shell blocks by heading, each as its words."""
    blocks: dict[str, list[list[str]]] = {}
    for part in re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading = part.splitlines()[0]
        for block in re.findall(r"^```sh\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            blocks.setdefault(heading, []).extend(
                words for line in lines if (words := shlex.split(line, comments=True))
            )
    return blocks


BLOCKS = read_blocks()
COMMANDS = [words for block in BLOCKS.values() for words in block if words[0] == "fedtwin"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_parses(words: list[str]) -> None:
    command: click.Command = fedtwin
    context, rest = click.Context(fedtwin, info_name="fedtwin"), words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, rest[0]
        command, context, rest = found, click.Context(found, parent=context, info_name=rest[0]), rest[1:]
    # Parsed for its options and arguments; nothing is called.
    command.make_parser(context).parse_args(list(rest))
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_every_person_has_a_quick_start() -> None:
    for person in ("the consortium", "hospital IT", "the auditor", "the researcher"):
        assert BLOCKS[f"Quick start: {person}"]


def command_of(person: str, *start: str) -> list[str]:
    (found,) = [words for words in BLOCKS[f"Quick start: {person}"] if words[: len(start)] == list(start)]
    return found


class Walkthrough:
    """Runs README's commands in one folder, with what a reader would put in their place of placeholders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replacements: dict[str, str] = {}

    def words(self, person: str, *start: str, more: tuple[str, ...] = ()) -> list[str]:
        words = [str(FEDTWIN), *command_of(person, "fedtwin", *start)[1:], *more]
        for placeholder, value in self.replacements.items():
            words = [word.replace(placeholder, value) for word in words]
        return words

    def run(self, person: str, *start: str, more: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            self.words(person, *start, more=more),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def foreground(self, person: str, *start: str) -> Iterator[None]:
        process = subprocess.Popen(
            self.words(person, *start), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield
            assert process.poll() is None, "it ended by itself"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.slow
def test_the_quick_starts_run_as_they_stand(tmp_path: Path) -> None:
    walk = Walkthrough(tmp_path)
    front, link, runtime, health = free_ports(4)
    walk.replacements["localhost:9443"] = f"localhost:{front}"

    # Researcher: files, as one hospital would have them.
    walk.run("the researcher", "simulate", "hospitals")
    # Consortium.
    listen = ("--listen", f"127.0.0.1:{front}", "--link-port", str(link))
    walk.run("the consortium", "server", "init", more=listen)
    coordinator = json.loads(walk.run("the consortium", "server", "status"))["coordinator"]
    walk.replacements |= {"ed25519:…": coordinator["public_key"], "SHA256": coordinator["bundle"]}
    # Hospital IT, with what it was given.
    shutil.copy(coordinator["authority"], tmp_path / "ca.pem")
    walk.run("hospital IT", "client", "init", more=("--runtime-port", str(runtime), "--health-port", str(health)))
    assert ["cp", "patients.csv", "observations.parquet", "north/data/"] in BLOCKS["Quick start: hospital IT"]
    shutil.copytree(tmp_path / "files" / "city", tmp_path / "north" / "data", dirs_exist_ok=True)
    assert "quarantine" in walk.run("hospital IT", "client", "check")
    # Consortium again. The shell would have read the key from its file.
    walk.replacements["$(cat north/signing.pub)"] = (tmp_path / "north" / "signing.pub").read_text().strip()
    walk.run("the consortium", "server", "enrol")
    walk.run("the consortium", "server", "study", "draft")
    shorten(tmp_path / "coordinator" / "studies" / "deterioration" / "study.toml")
    walk.run("the consortium", "server", "study", "sign")
    signed = tmp_path / "coordinator" / "studies" / "deterioration" / "study.signed.json"
    shutil.copy(signed, tmp_path / "study.signed.json")
    # Auditor.
    assert "signature valid" in walk.run("the auditor", "audit", "study")
    # Both run; the study starts and ends.
    assert "deterioration" in walk.run("hospital IT", "client", "review")
    walk.run("hospital IT", "client", "approve", more=("--yes",))
    assert "for life" in walk.run("hospital IT", "client", "begin-ledger")
    with walk.foreground("the consortium", "server", "run"), walk.foreground("hospital IT", "client", "run"):
        wait_until_online(walk)
        assert "finished" in walk.run("the consortium", "server", "study", "start")
        assert "deterioration" in walk.run("hospital IT", "client", "status")
        walk.run("the consortium", "server", "release")
        assert "deterioration" in walk.run("hospital IT", "client", "release")
    (run,) = (tmp_path / "coordinator" / "runs").glob("*/release")
    assert {file.name for file in run.iterdir()} >= {"model.npz", "report.json"}


def shorten(study: Path) -> None:
    """Fewer rounds than the draft has: this is about commands."""
    text, count = re.subn(r"^rounds = 30$", "rounds = 3", study.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1
    text = re.sub(r"^average_from_round = \d+$", "average_from_round = 0", text, flags=re.MULTILINE)
    study.write_text(re.sub(r"^rounds = \[.*\]$", "rounds = []", text, flags=re.MULTILINE), encoding="utf-8")


def wait_until_online(walk: Walkthrough) -> None:
    for _ in range(60):
        nodes = json.loads(walk.run("the consortium", "server", "status"))["nodes"]
        if [node["status"] for node in nodes] == ["online"]:
            return
        time.sleep(1)
    raise AssertionError(f"the node is not online within a minute; {os.getpid()=}")
