"""The coordinator's own commands as real processes: enrol, sign, start, kill the ServerApp, resume, stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_client.supernode import SuperNodeSettings
from fedtwin_server.config import DIRECTORY_VARIABLE, read_directory
from fedtwin_server.coordinator import enrolled_nodes, is_healthy
from fedtwin_server.rounds import start_run
from fedtwin_server.run_store import MemoryRunStore
from fedtwin_server.runs import read_progress, summarise_runs
from fedtwin_server.server_app import Run, conduct
from fedtwin_server.studies import read_signed
from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.signing import create_signing_key, format_public_key, load_signing_key
from fedtwin_shared.supervision import Command, Supervisor, wait_until
from tests.authority import free_ports, make_node_identity, write_private
from tests.e2e.signing_site import make_app
from tests.server.consortium import Node, SilentGrid, StillClock

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SITES = ("ward-a", "ward-b")
CHANGES = {
    "rounds = 30": "rounds = 4",
    "average_from_round = 15": "average_from_round = 2",
    "rounds = [0, 15]": "rounds = [0]",
    'algorithm = "fedavg"': 'algorithm = "fedadam"',
}


def fedtwin(*arguments: str | Path, expect: int = 0) -> str:
    done = subprocess.run(
        (flower_program("fedtwin"), *map(str, arguments)), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A coordinator's directory, whose coordinator runs."""
    directory = tmp_path_factory.mktemp("coordinator") / "consortium"
    front, link = free_ports(2)
    address = f"127.0.0.1:{front}"
    fedtwin(
        *("server", "init", directory, "--name", "consortium", "--address", address),
        *("--listen", address, "--link-port", str(link)),
    )
    enrol(directory, SITES[0])  # before the coordinator runs
    with (directory / "out").open("w") as out:
        process = subprocess.Popen((flower_program("fedtwin"), "server", "run", str(directory)), stdout=out, stderr=out)
        try:
            wait_until(lambda: "ready" in (directory / "out").read_text(), what="coordinator", deadline_seconds=90)
            yield directory
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=30)
    assert code == 0, (directory / "out").read_text()
    assert (directory / "out").read_text().splitlines()[-1] == "stopped"
    assert not is_healthy(read_directory(directory))
    assert processes_of(directory) == []


def enrol(directory: Path, site: str) -> None:
    home = directory.parent / site
    home.mkdir()
    key = format_public_key(create_signing_key(home / "signing.key").public_key())
    node = make_node_identity(home)
    fedtwin("server", "enrol", directory, "--name", site, "--signing-key", key, "--node-key", node.public_key)


def processes_of(directory: Path) -> list[int]:
    """Every process that got the coordinator's directory in its environment, zombies not included."""
    wanted = f"{DIRECTORY_VARIABLE}={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def server_app_process(directory: Path) -> int | None:
    for process in processes_of(directory):
        if b"serverapp" in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    return None


def site_commands(directory: Path, site: str, study: Path, port: int) -> tuple[Command, ...]:
    status = json.loads(fedtwin("server", "status", directory, "--json"))["coordinator"]
    home = directory.parent / site
    write_private(home / "secret", os.urandom(32))
    settings = SuperNodeSettings(
        superlink=status["address"],
        root_certificates=Path(status["authority"]),
        private_key=home / "node",
        runtime_port=port,
        directory=home,
        secret_file=home / "secret",
        poll_seconds=0.05,
    )
    configuration = {
        "site": site,
        "key": str(home / "signing.key"),
        "coordinator": status["public_key"],
        "study": str(study),
        "seconds": "0.5",
        "runtime": f"127.0.0.1:{port}",
        "bundle": status["bundle"],
        "secret": str(home / "secret"),
    }
    supernode = (
        *(sys.executable, "-m", "fedtwin_client.supernode", "--superlink", settings.superlink),
        *("--root-certificates", str(settings.root_certificates), "--private-key", str(settings.private_key)),
        *("--runtime-port", str(port), "--directory", str(home)),
        *("--secret-file", str(settings.secret_file), "--poll-seconds", "0.05"),
    )
    executor = (sys.executable, "-m", "tests.e2e.signing_site", json.dumps(configuration))
    environment = {"PYTHONPATH": str(ROOT), "FLWR_HOME": str(home / "executor")}
    return (
        Command(name="supernode", arguments=supernode, log_file=home / "supernode.log"),
        Command(name="executor", arguments=executor, log_file=home / "executor.log", environment=environment),
    )


def expected_model(directory: Path, study: Path) -> tuple[Any, Any]:
    """The released model and report of the same run in one process."""
    found = read_directory(directory)
    signed, clock = read_signed(found, study), StillClock()
    store = MemoryRunStore(start_run(signed.study, run="0" * 32))
    key = load_signing_key(found.signing_key)
    apps = {
        site: make_app(
            site,
            load_signing_key(directory.parent / site / "signing.key"),
            format_public_key(key.public_key()),
            study,
            seconds=0.0,
        )
        for site in SITES
    }
    from flwr.app import Context, Message, RecordDict

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}, series_id=1)

    def behaviour(site: str) -> Any:
        def answer(message: Message) -> RecordDict:
            return apps[site](message, context).content

        return answer

    nodes = {number: Node(behaviour=behaviour(site)) for number, site in enumerate(SITES, start=1)}
    conduct(Run(signed=signed, key=key, store=store, clock=clock, sleep=clock.sleep), SilentGrid(nodes, clock))
    assert store.released is not None
    return store.released


def test_a_study_whose_server_app_is_killed_is_resumed_to_the_same_model(coordinator: Path) -> None:
    assert "registered ward-a" in (coordinator / "out").read_text()
    enrol(coordinator, SITES[1])  # while it runs: registered at once
    assert all(node.node_id is not None for node in enrolled_nodes(read_directory(coordinator)))

    draft = Path(fedtwin("server", "study", "draft", coordinator, "deterioration").strip())
    text = draft.read_text()
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    draft.write_text(text)
    assert "price ε" in fedtwin("server", "study", "sign", coordinator, draft)
    signed = draft.with_suffix(".signed.json")

    with Supervisor(
        [
            Command(
                name=f"{site}-{command.name}",
                arguments=command.arguments,
                log_file=command.log_file,
                environment=command.environment,
            )
            for site, port in zip(SITES, free_ports(2), strict=True)
            for command in site_commands(coordinator, site, signed, port)
        ]
    ):
        directory = read_directory(coordinator)
        wait_until(
            lambda: all(node.status == "online" for node in enrolled_nodes(directory)),
            what="nodes online",
            deadline_seconds=60,
            interval_seconds=0.5,
        )
        fedtwin("server", "study", "start", coordinator, signed, "--detach")
        (run,) = summarise_runs(directory)
        folder = directory.runs / run.run
        wait_until(lambda: len(read_progress(folder)[0]) >= 2, what="two tasks", deadline_seconds=60)
        process = server_app_process(coordinator)
        assert process is not None
        fedtwin("server", "resume", coordinator, run.run, expect=2)  # it is under way
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: summarise_runs(directory)[0].status == "interrupted", what="kill", deadline_seconds=30)
        done = len(read_progress(folder)[0])
        assert done < 6

        assert "finished" in fedtwin("server", "resume", coordinator, run.run)  # within its own 120 s
        fedtwin("server", "resume", coordinator, run.run, expect=2)  # it is complete
        fedtwin("server", "study", "start", coordinator, signed, expect=2)  # the study has its run

    entries, _ = read_progress(folder)
    assert [(entry["task"], entry["round"]) for entry in entries] == [
        ("evaluate", 0),
        *(("train", number) for number in range(1, 5)),
        ("evaluate", 4),
    ]
    parameters, expected = expected_model(coordinator, signed)
    with np.load(folder / "release" / "model.npz") as archive:
        released = {name: archive[name] for name in archive.files}
    assert digest_parameters(released) == digest_parameters(parameters)
    report = json.loads((folder / "release" / "report.json").read_text())
    assert report | {"run": "", "history": []} == expected | {"run": "", "history": []}
