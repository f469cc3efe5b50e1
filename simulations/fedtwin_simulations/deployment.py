"""A whole consortium of real processes on this machine: made and driven by the commands that people type.

Design note: nothing here imports the client or the server. Every hospital has a directory, keys and a node of its own,
dials the coordinator over TLS, and is reached by nobody; that they share a machine is the one thing that is simulated.
All processes end with the `with` block, however it ends, and every one is reaped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.supervision import Command, Supervisor, wait_until

COMMAND_SECONDS = 120.0  # a command takes one or two seconds; a loaded machine may take many
READY_SECONDS = 120.0
STUDY_SECONDS = 1800.0

AT_ONCE = 2  # commands: each takes a second of one core

Say = Callable[[str], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class DeploymentError(FedtwinError):
    """A command of the deployment failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One hospital's directory and ports."""

    site: str
    directory: Path
    runtime_port: int
    health_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A coordinator's directory and its hospitals'."""

    coordinator: Path
    nodes: tuple[Node, ...]
    front_port: int


def run_command(*arguments: str | Path, seconds: float = COMMAND_SECONDS) -> str:
    """Run one `fedtwin` command to its end and return what it printed.

    Raises `DeploymentError` with its own words when it fails, `subprocess.TimeoutExpired` when it does not end.
    """
    with _child(map(str, arguments), stderr=subprocess.PIPE) as process:
        said, complained = process.communicate(timeout=seconds)
    if process.returncode != 0:
        words = (complained.strip() or said.strip())[-2000:]
        raise DeploymentError(field=f"fedtwin {' '.join(map(str, arguments[:3]))}", expected="exit code 0", found=words)
    return said


def at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return the results of `work`, a few commands at a time, in order."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        return list(pool.map(work, items))


@contextlib.contextmanager
def _child(arguments: Iterable[str], *, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """One `fedtwin` command in a session of its own; afterwards neither it nor anything that it started runs."""
    process: subprocess.Popen[str] | None = None
    try:
        with signals_wait():
            process = subprocess.Popen(
                (flower_program("fedtwin"), *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        yield process
    finally:
        if process is not None:
            with signals_wait(), contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()  # reaps it, closes its pipes


@contextlib.contextmanager
def supervised(commands: Sequence[Command]) -> Iterator[Supervisor]:
    """The processes of `commands`, just started; stopped and reaped afterwards, whenever a signal comes."""
    supervisor = Supervisor(commands)
    try:
        with signals_wait():
            supervisor.start()
        yield supervisor
    finally:
        with signals_wait():
            supervisor.stop()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the end of the block.

    An exception in the middle of starting a process would lose it: it runs, and nobody knows its id.
    """
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread only
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def answers_on(port: int) -> bool:
    """Return whether a service on this machine says that it is healthy."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def install(
    folder: Path, sites: Sequence[str], *, maximum_epsilon: float, maximum_delta: float, say: Say = lambda line: None
) -> Deployment:
    """Make the directories of a coordinator and of `sites` under `folder`, and enrol every site."""
    front, link, *others = free_ports(2 + 2 * len(sites))
    coordinator = folder / "coordinator"
    say("coordinator: keys, authority, certificate")
    run_command(
        *("server", "init", coordinator, "--name", "coordinator", "--address", f"localhost:{front}"),
        *("--listen", f"127.0.0.1:{front}", "--link-port", str(link)),
    )
    invitation = json.loads(run_command("server", "status", coordinator, "--json"))["coordinator"]
    nodes = [
        Node(
            site=site,
            directory=folder / "hospitals" / site,
            runtime_port=others[2 * number],
            health_port=others[2 * number + 1],
        )
        for number, site in enumerate(sites)
    ]

    def create(node: Node) -> None:
        run_command(
            *("client", "init", node.directory, "--name", node.site, "--superlink", invitation["address"]),
            *("--coordinator-key", invitation["public_key"], "--ca", invitation["authority"]),
            *("--bundle", invitation["bundle"], "--data", "data"),
            *("--maximum-epsilon", str(maximum_epsilon), "--maximum-delta", str(maximum_delta)),
            *("--runtime-port", str(node.runtime_port), "--health-port", str(node.health_port)),
        )

    say(f"hospitals {', '.join(sites)}: keys, configuration")
    at_once(create, nodes)
    for node in nodes:
        run_command(
            *("server", "enrol", coordinator, "--name", node.site, "--node-key", node.directory / "node.pub"),
            *("--signing-key", (node.directory / "signing.pub").read_text(encoding="utf-8").strip()),
        )
    return Deployment(coordinator=coordinator, nodes=tuple(nodes), front_port=front)


@contextlib.contextmanager
def coordinator_running(deployment: Deployment, *, logs: Path) -> Iterator[None]:
    """The coordinator's processes, just started; stopped and reaped afterwards."""
    with supervised([coordinator_command(deployment, logs)]):
        yield


@contextlib.contextmanager
def hospitals_online(
    deployment: Deployment, *, logs: Path, commands: Sequence[Command] = (), say: Say = lambda line: None
) -> Iterator[None]:
    """Every hospital's node, online; stopped and reaped afterwards.

    commands: other nodes in their place. Raises `SupervisionError` when they are not online in time.
    """
    # A node that the link does not know yet is turned away, and costs the machine another start.
    _wait(lambda: not {"not registered", "unknown"} & set(node_statuses(deployment)), "nodes registered")
    with supervised(commands or hospital_commands(deployment, logs)) as supervisor:

        def all_online() -> bool:
            supervisor.step()
            return set(node_statuses(deployment)) == {"online"}

        _wait(all_online, "hospitals online")
        say(f"{len(deployment.nodes)} hospitals online")
        yield


def node_statuses(deployment: Deployment) -> list[str]:
    """Return what the coordinator says of every hospital's node."""
    status = json.loads(run_command("server", "status", deployment.coordinator, "--json"))
    return [node["status"] for node in status["nodes"]]


def _wait(check: Callable[[], bool], what: str) -> None:
    wait_until(check, what=what, deadline_seconds=READY_SECONDS, interval_seconds=0.5)


def coordinator_command(deployment: Deployment, logs: Path) -> Command:
    """Return the coordinator's foreground process."""
    return Command(
        name="coordinator",
        arguments=(flower_program("fedtwin"), "server", "run", str(deployment.coordinator)),
        log_file=logs / "coordinator.log",
    )


def hospital_commands(deployment: Deployment, logs: Path) -> tuple[Command, ...]:
    """Return one foreground process for each hospital."""
    return tuple(
        Command(
            name=node.site,
            arguments=(flower_program("fedtwin"), "client", "run", str(node.directory)),
            log_file=logs / f"{node.site}.log",
        )
        for node in deployment.nodes
    )


def follow_study(deployment: Deployment, signed: Path, *, say: Say) -> str:
    """Start a signed study, hand every line that the command prints to `say`, and return fedtwin's id of the run.

    Raises `DeploymentError` unless the run finishes.
    """
    printed: list[str] = []
    arguments = ("server", "study", "start", str(deployment.coordinator), str(signed))
    with _child(arguments, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + STUDY_SECONDS
        for text in process.stdout:
            printed.append(text.rstrip())
            say(printed[-1])
            if not time.monotonic() < deadline:
                raise DeploymentError(field="study", expected=f"an end within {STUDY_SECONDS:g} s", found="none")
        code = process.wait()
    if code != 0 or not printed:
        raise DeploymentError(field="fedtwin server study start", expected="exit code 0", found="\n".join(printed[-5:]))
    return printed[0].removeprefix("run ")


def read_release(deployment: Deployment, run: str) -> tuple[Path, dict[str, Any]]:
    """Return the released model's file and the coordinator's report about the run."""
    folder = deployment.coordinator / "runs" / run / "release"
    return folder / "model.npz", json.loads((folder / "report.json").read_text(encoding="utf-8"))
