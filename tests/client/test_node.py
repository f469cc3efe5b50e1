"""The running node: real processes, health on loopback, restarts, a clean end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.directory import Answers, create_directory, find_executable
from fedtwin_client.health import Health, is_reachable, is_serving, serve_health
from fedtwin_client.node import node_commands
from fedtwin_server.control import register_node
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.supervision import wait_until
from tests.authority import free_ports
from tests.client.premises import make_premises
from tests.e2e.rim import running_rim
from tests.world import make_world

WELL = Health(transport=True, executor=True, connected=True, studies=("a",))


def get(port: int, path: str = "/health") -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as err:
        body = err.read()
        return err.code, json.loads(body) if body.startswith(b"{") else {}


def test_health_is_200_while_all_is_well_and_503_otherwise() -> None:
    (port,) = free_ports(1)
    now = [WELL]
    with serve_health(port, lambda: now[0]):
        fields = {"ok", "transport", "executor", "connected", "studies"}
        assert get(port) == (
            200,
            {"ok": True, "transport": True, "executor": True, "connected": True, "studies": ["a"]},
        )
        assert is_serving(port)
        for name in ("transport", "executor", "connected"):
            now[0] = Health(**{**dict.fromkeys(("transport", "executor", "connected"), True), name: False}, studies=())
            status, body = get(port)
            assert (status, set(body), body[name]) == (503, fields, False)
            assert not is_serving(port)
        assert get(port, "/patients")[0] == 404
    assert not is_serving(port)


def test_a_taken_health_port_is_one_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=r"ports.health: expected a free port"),
            serve_health(port, lambda: WELL),
        ):
            pass


def test_reachable_means_that_something_listens() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert not is_reachable(address)
        server.listen()
        assert is_reachable(address)
    assert not is_reachable(address)


def test_no_secret_stands_on_a_command_line_or_in_an_environment(tmp_path: Path) -> None:
    directory = make_premises(tmp_path / "north", make_world())
    directory.node.mkdir()
    secrets = [directory.signing_key.read_text(), directory.node_key.read_text()]
    for command in node_commands(directory):
        words = (*command.arguments, *command.environment.values())
        assert not any(line in word for word in words for secret in secrets for line in secret.splitlines()[1:-1])


def test_the_executor_has_its_directory_its_memory_settings_and_one_thread(tmp_path: Path) -> None:
    directory = make_premises(tmp_path / "north", make_world())
    transport, executor = node_commands(directory)
    assert executor.environment["FEDTWIN_HOSPITAL"] == str(directory.root)
    assert executor.environment["OMP_NUM_THREADS"] == "1"
    assert "MALLOC_MMAP_THRESHOLD_" in executor.environment
    assert "FEDTWIN_HOSPITAL" not in transport.environment
    assert str(directory.data) not in transport.arguments
    homes = {command.environment["FLWR_HOME"] for command in (transport, executor)}
    assert len(homes) == 2
    assert all(command.environment["FLWR_TELEMETRY_ENABLED"] == "0" for command in (transport, executor))


@contextmanager
def running_node(directory: HospitalDirectory) -> Iterator[subprocess.Popen[str]]:
    command = [str(find_executable()), "client", "run", str(directory.root)]
    node = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield node
    finally:
        if node.poll() is None:
            node.terminate()
        node.communicate(timeout=20)


def children(process_id: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "--ppid", str(process_id), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


def is_alive(process_id: int) -> bool:
    """Whether the process runs; an orphan that nobody reaps does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def logs(directory: HospitalDirectory) -> str:
    return "\n".join(path.read_text()[-3000:] for path in directory.logs.glob("*.log"))


@pytest.mark.slow
def test_a_node_connects_restarts_what_died_and_ends_cleanly(tmp_path: Path) -> None:
    with running_rim(tmp_path / "rim", nodes=0) as rim:
        runtime_port, health_port = free_ports(2)
        answers = Answers(
            name="north",
            superlink=rim.front_address,
            coordinator_key=make_world().coordinator_key,
            valid_until=date(2030, 12, 31),
            runtime_port=runtime_port,
            health_port=health_port,
        )
        root = tmp_path / "north"
        create_directory(root, answers, authority=rim.identity.certificate_authority)
        register_node(rim.control, root / "node.pub")
        directory = read_directory(root)
        with running_node(directory) as node:
            try:
                wait_until(lambda: is_serving(health_port), what="healthy node", deadline_seconds=60)
            except Exception as err:
                raise AssertionError(logs(directory)) from err
            assert get(health_port) == (
                200,
                {"ok": True, "transport": True, "executor": True, "connected": True, "studies": []},
            )
            started = children(node.pid)
            assert len(started) == 2
            second = subprocess.run(
                [find_executable(), "client", "run", root], capture_output=True, text=True, check=False
            )
            assert second.returncode == 2
            assert "expected no other node of this directory, found one that runs" in second.stderr
            for process_id in started:
                os.kill(process_id, signal.SIGKILL)
            wait_until(lambda: not set(children(node.pid)) & set(started), what="reaped", deadline_seconds=10)
            wait_until(lambda: is_serving(health_port), what="healthy again", deadline_seconds=60)
            again = children(node.pid)
            stopping = time.monotonic()
            node.send_signal(signal.SIGTERM)
            assert node.wait(timeout=20) == 0
            assert time.monotonic() - stopping < 10
            assert not any(is_alive(process_id) for process_id in (*started, *again))
        assert "Traceback" not in logs(directory)


@pytest.mark.slow
def test_a_node_without_a_coordinator_says_so_and_a_killed_one_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = make_premises(tmp_path / "north", make_world())
    port = directory.config.ports.health
    with running_node(directory) as node:
        wait_until(lambda: is_reachable(f"127.0.0.1:{port}"), what="health", deadline_seconds=30)
        wait_until(lambda: "north answers tasks of 0 studies" in logs(directory), what="executor", deadline_seconds=30)
        status, body = get(port)
        assert (status, body["connected"]) == (503, False)
        started = children(node.pid)
        assert len(started) == 2
        node.kill()
        node.wait()
        wait_until(lambda: not any(map(is_alive, started)), what="end of the orphans", deadline_seconds=10)
    with running_node(directory) as node:  # neither a port nor the journal is still held
        wait_until(lambda: is_reachable(f"127.0.0.1:{port}"), what="health", deadline_seconds=30)
        wait_until(lambda: len(children(node.pid)) == 2, what="children", deadline_seconds=30)
        stopping = time.monotonic()
        node.send_signal(signal.SIGTERM)
        assert node.wait(timeout=20) == 0
        assert time.monotonic() - stopping < 10
    assert "JournalError" not in logs(directory)
