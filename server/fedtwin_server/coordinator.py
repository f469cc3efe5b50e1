"""The coordinator's processes in the foreground: link, executor and front, supervised, with one clean end.

Design note: ready means that the front answers from end to end, not that processes were started. Hospitals that were
enrolled while nothing ran are registered as soon as the link answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.control import NodeRecord, list_nodes, register_node
from fedtwin_server.errors import ControlError
from fedtwin_server.superlink import answers, executor_command, superlink_command
from fedtwin_shared.durable import replace_file
from fedtwin_shared.fields import split_address
from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.supervision import STEP_SECONDS, Command, SupervisionError, Supervisor

READY_SECONDS: Final = 60.0  # two seconds are usual; a loaded machine may take many
FRONT: Final = "front"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolledNode:
    """A hospital's node as the link sees it; `status` is `not registered` before its first registration."""

    site: str
    node_id: int | None
    status: str


def coordinator_commands(directory: CoordinatorDirectory) -> tuple[Command, ...]:
    """Return the processes of a coordinator: link, executor and, unless another one serves, front."""
    settings = directory.superlink
    front = Command(
        name=FRONT,
        arguments=(flower_program("fedtwin"), "server", "front", str(directory.root)),
        log_file=settings.directory / "logs" / "front.log",
    )
    commands = (superlink_command(settings), executor_command(settings))
    return (*commands, front) if directory.config.front.enabled else commands


def run_coordinator(directory: CoordinatorDirectory, stop: threading.Event, say: Say) -> None:
    """Run until `stop` is set. Raises `SupervisionError` when the processes are not ready in time.

    - on return every process has ended and is reaped
    """
    with Supervisor(coordinator_commands(directory)) as supervisor:
        if not _wait_until_ready(directory, supervisor, stop):
            return
        for site, node in register_pending(directory).items():
            say(f"registered {site} as node {node}")
        say(f"ready: hospitals dial {directory.config.front.address}")
        supervisor.run(stop)
        say("stopped")


def is_healthy(directory: CoordinatorDirectory) -> bool:
    """Return whether the front, and the link behind it, answer on this machine."""
    if not directory.config.front.enabled:
        return link_answers(directory)
    host, port = split_address(directory.config.front.listen)
    if host in ("0.0.0.0", "::"):  # listens everywhere, so also here; the certificate names loopback
        host = "127.0.0.1"
    return answers(f"https://{host}:{port}/health", directory.authority.certificate)


def link_answers(directory: CoordinatorDirectory) -> bool:
    """Return whether the SuperLink answers."""
    return answers(f"https://{directory.superlink.address}/health", directory.authority.certificate)


def register_pending(directory: CoordinatorDirectory) -> dict[str, int]:
    """Register the nodes of hospitals that the link does not know yet; their ids by site. Raises `ControlError`."""
    new: dict[str, int] = {}
    for key in sorted(directory.nodes.glob("*.pub")):
        if _node_id(directory, key.stem) is None:
            new[key.stem] = register_node(directory.control, key)
            marker = _marker(directory, key.stem)
            marker.parent.mkdir(exist_ok=True, mode=0o700)
            replace_file(marker, str(new[key.stem]).encode())
    return new


def enrolled_nodes(directory: CoordinatorDirectory) -> tuple[EnrolledNode, ...]:
    """Return the node of every enrolled hospital; without a link that answers, their status is `unknown`."""
    records: dict[int, NodeRecord] | None = None
    if link_answers(directory):
        records = {record.node_id: record for record in list_nodes(directory.control)}
    nodes = []
    for key in sorted(directory.nodes.glob("*.pub")):
        node_id = _node_id(directory, key.stem)
        if node_id is None:
            status = "not registered"
        else:
            status = "unknown" if records is None or node_id not in records else records[node_id].status
        nodes.append(EnrolledNode(site=key.stem, node_id=node_id, status=status))
    return tuple(nodes)


def _wait_until_ready(directory: CoordinatorDirectory, supervisor: Supervisor, stop: threading.Event) -> bool:
    """False: asked to stop before it was ready."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_healthy(directory):
        supervisor.step()
        if not time.monotonic() < deadline:
            down = [status.name for status in supervisor.status() if status.process_id is None] or ["nothing"]
            raise SupervisionError(
                file=directory.superlink.directory / "logs",
                expected=f"a coordinator that answers within {READY_SECONDS:g} s",
                found=f"no answer; down: {', '.join(down)}",
            )
        if stop.wait(STEP_SECONDS):
            return False
    return True


def _marker(directory: CoordinatorDirectory, site: str) -> Path:
    # Beside the link's database: whoever removes one removes the other.
    return directory.superlink.directory / "registered" / site


def _node_id(directory: CoordinatorDirectory, site: str) -> int | None:
    try:
        return int(_marker(directory, site).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as err:
        raise ControlError(file=_marker(directory, site), expected="a node's id", found="something else") from err
