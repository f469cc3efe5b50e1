"""Our launcher of Flower's SuperNode: transport only, no data, with the waits and the tell-tales taken out.

    python -m fedtwin_client.supernode --superlink HOST:PORT --root-certificates CA --private-key KEY \\
        --runtime-port PORT --directory DIRECTORY

Design note: the SuperNode speaks with the coordinator and hands tasks to the executor on loopback; it runs no app
(`--isolation process`). What is changed in Flower's modules is all here:
  - its idle poll of 3 s becomes `poll_seconds`, growing to 5 % of the time already spent idle: at most 5 % latency, and
    a site that has had nothing to do for a minute asks every 3 s again;
  - nothing inside the hospital polls: the executor's request for a task is held until a message is complete, and the
    SuperNode's loop waits for the executor's end of the task (Flower: 0.5 s naps);
  - the 1 s wait for an object that is registered but not stored yet starts at `poll_seconds`;
  - the processing time that every reply would report to the coordinator is reported as zero: the time of a training
    step tells how many patients were sampled.
A SuperNode that was killed leaves its node online at the coordinator, which then refuses (412) every new one for about
a minute. The launcher keeps its node id on disk and signs the old activation off first: a restart takes seconds.

This file and `executor.py` are the only ones that use Flower's private API; `tests/client/test_supernode_contract.py`
fails when Flower changes what is used here.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from fedtwin_shared.durable import take_lock
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.flower_environment import FLOWER_OFFLINE
from fedtwin_shared.supervision import end_with_parent

if TYPE_CHECKING:
    from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
    from flwr.supernode.nodestate import NodeState
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

IDLE_SHARE: Final = 0.05  # of the time already spent idle; bounds the latency that polling adds
LONGEST_IDLE_SECONDS: Final = 3.0  # Flower's own idle poll
LONGEST_OBJECT_SECONDS: Final = 1.0
NO_RUN: Final = 0  # Flower's ids of runs are positive
HOLD_SECONDS: Final = 0.4  # of an executor's request; an executor that stops waits for it to end


class SuperNodeError(FedtwinError):
    """The SuperNode cannot start as configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperNodeSettings:
    """How the SuperNode dials the coordinator and where it listens for the executor. No data, no secret values."""

    superlink: str  # host:port of the coordinator's front
    root_certificates: Path  # PEM of the authority that signed the front's certificate
    private_key: Path  # OpenSSH, NIST curve; its public half is registered at the coordinator
    runtime_port: int  # on 127.0.0.1, for the executor
    directory: Path  # FLWR_HOME, lock and node id; one per SuperNode
    secret_file: Path | None = None  # shared with the executor; without it any local process can take tasks
    node_config: str = ""
    poll_seconds: float = 0.1  # each poll is a write to the SuperLink's database, some 8 ms of its one interpreter

    def __post_init__(self) -> None:
        if not 0 < self.poll_seconds <= LONGEST_IDLE_SECONDS:
            raise ValueError(f"expected 0 < poll_seconds <= {LONGEST_IDLE_SECONDS}")


def idle_seconds(idle_for: float, *, poll_seconds: float) -> float:
    """How long to wait before asking again, after `idle_for` seconds without a message.

    >>> [idle_seconds(idle, poll_seconds=0.05) for idle in (0, 1, 20, 3600)]
    [0.05, 0.05, 1.0, 3.0]
    """
    return min(LONGEST_IDLE_SECONDS, max(poll_seconds, IDLE_SHARE * idle_for))


def supernode_arguments(settings: SuperNodeSettings) -> tuple[str, ...]:
    """The command line of Flower's own main."""
    arguments = [
        "flower-supernode",
        "--isolation=process",
        f"--superlink={settings.superlink}",
        f"--root-certificates={settings.root_certificates}",
        f"--auth-supernode-private-key={settings.private_key}",
        "--host=127.0.0.1",
        f"--port={settings.runtime_port}",
    ]
    if settings.secret_file is not None:
        arguments.append(f"--superexec-auth-secret-file={settings.secret_file}")
    if settings.node_config:
        arguments.append(f"--node-config={settings.node_config}")
    return tuple(arguments)


def run_supernode(settings: SuperNodeSettings) -> None:
    """Become the SuperNode: sets this process's environment and arguments, then runs Flower's main until a signal."""
    os.environ.update(FLOWER_OFFLINE, FLWR_HOME=str(settings.directory))
    settings.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_one(settings.directory):
        from flwr.supernode.cli import flower_supernode  # after the environment: Flower reads it at import

        shorten_waits(settings.poll_seconds)
        hide_processing_time()
        node_file = settings.directory / "node_id"
        sign_off(settings, node_file)
        remember_node(node_file)
        sys.argv = list(supernode_arguments(settings))
        flower_supernode()


def shorten_waits(poll_seconds: float) -> None:
    """Replace Flower's hard-coded waits: in the SuperNode's main loop, and in its answer to the executor."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
    from flwr.supernode.servicer.runtime import runtime_handlers

    idle_since = time.monotonic()
    message_complete, task_ended = threading.Event(), threading.Event()
    pull, push = loop._pull_and_store_message, loop._push_messages
    acquire, finish = runtime_handlers.acquire_task, InMemoryNodeState.finish_task

    def sleep(seconds: float) -> None:
        if seconds >= LONGEST_IDLE_SECONDS:  # the idle poll of the coordinator
            time.sleep(idle_seconds(time.monotonic() - idle_since, poll_seconds=poll_seconds))
        elif task_ended.wait(seconds):  # a nap until the executor's reply is there, or all of it
            task_ended.clear()

    def pull_and_note(*arguments: Any, **named: Any) -> int | None:
        nonlocal idle_since
        run_id = pull(*arguments, **named)
        if run_id is not None:
            idle_since = time.monotonic()
            task_ended.clear()
            message_complete.set()
        elif has_waiting_reply(named["state"]):
            return NO_RUN  # anything but None: then the loop sends replies
        return run_id

    def push_and_note(*arguments: Any, **named: Any) -> None:
        nonlocal idle_since
        push(*arguments, **named)
        idle_since = time.monotonic()

    def acquire_when_complete(request: AcquireTaskRequest, state: NodeState) -> AcquireTaskResponse:
        # Flower creates a task before its message is there, and handles one message at a time.
        if message_complete.wait(HOLD_SECONDS):
            message_complete.clear()
        return acquire(request, state)

    def finish_and_note(state: InMemoryNodeState, task_id: int, sub_status: str, details: str) -> bool:
        finished = finish(state, task_id, sub_status, details)
        task_ended.set()
        return finished

    _replace(
        loop,
        time=SimpleNamespace(sleep=sleep),
        _pull_and_store_message=pull_and_note,
        _push_messages=push_and_note,
        pull_objects=functools.partial(pull_objects, initial_backoff=poll_seconds, backoff_cap=LONGEST_OBJECT_SECONDS),
    )
    _replace(runtime_handlers, acquire_task=acquire_when_complete)
    _replace(InMemoryNodeState, finish_task=finish_and_note)


def has_waiting_reply(state: InMemoryNodeState) -> bool:
    """Whether a reply is there that was not sent.

    Flower sends replies after it has received a message, and only then. When a run was killed while its message was on
    the way, an error reply for that message goes out in the place of the next run's reply, which would wait for ever.
    """
    with state.lock_msg_store:
        return any(
            entry.message.metadata.reply_to_message_id and not entry.is_retrieved for entry in state.msg_store.values()
        )


def hide_processing_time() -> None:
    """Report every processing time to the coordinator as zero."""
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    measure: Callable[[InMemoryNodeState, str], float] = InMemoryNodeState.get_message_processing_duration

    @functools.wraps(measure)
    def report_zero(state: InMemoryNodeState, message_id: str) -> float:
        measure(state, message_id)  # also drops old entries
        return 0.0

    _replace(InMemoryNodeState, get_message_processing_duration=report_zero)


def remember_node(node_file: Path) -> None:
    """Write the node id that the coordinator assigned, for the next start's `sign_off`."""
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    set_node_id = InMemoryNodeState.set_node_id

    @functools.wraps(set_node_id)
    def set_and_write(state: InMemoryNodeState, node_id: int | None) -> None:
        set_node_id(state, node_id)
        if node_id is not None:
            node_file.write_text(f"{node_id}\n")

    _replace(InMemoryNodeState, set_node_id=set_and_write)


def sign_off(settings: SuperNodeSettings, node_file: Path) -> None:
    """Deactivate what a killed SuperNode of this directory left online; whatever goes wrong is left to the start."""
    import httpx
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    expected = "an OpenSSH private key on a NIST curve"
    try:
        key = load_ssh_private_key(settings.private_key.read_bytes(), None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SuperNodeError(file=settings.private_key, expected=expected, found=type(error).__name__) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SuperNodeError(file=settings.private_key, expected=expected, found=type(key).__name__)
    if not node_file.exists():
        return
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor("SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    with (
        contextlib.suppress(httpx.HTTPError, OSError, ValueError, RuntimeError),
        FleetHttpClient.from_server_address(
            settings.superlink, False, str(settings.root_certificates), interceptors
        ) as client,
    ):
        client.DeactivateNode(DeactivateNodeRequest(node_id=int(node_file.read_text())))


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Two SuperNodes of one key would sign each other off for ever; the operating system keeps the second out."""
    lock = take_lock(directory / "lock")
    if lock is None:
        raise SuperNodeError(file=directory, expected="no other SuperNode of this directory", found="one that runs")
    try:
        yield
    finally:
        os.close(lock)


def _replace(owner: object, **attributes: object) -> None:
    """Set attributes that must exist already: a renamed one would otherwise go unnoticed."""
    for name, value in attributes.items():
        if not hasattr(owner, name):
            raise RuntimeError(f"Flower changed: {owner!r} has no {name}")
        setattr(owner, name, value)


def _parse(arguments: Sequence[str] | None) -> SuperNodeSettings:
    parser = argparse.ArgumentParser(
        prog="python -m fedtwin_client.supernode", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="the coordinator's front")
    parser.add_argument("--root-certificates", required=True, type=Path, help="PEM of the coordinator's authority")
    parser.add_argument("--private-key", required=True, type=Path, help="OpenSSH key of this node, NIST curve")
    parser.add_argument("--runtime-port", required=True, type=int, help="loopback port for the executor")
    parser.add_argument("--directory", required=True, type=Path, help="this node's own directory")
    parser.add_argument("--secret-file", type=Path, help="secret shared with the executor")
    parser.add_argument("--node-config", default="", help="key=value pairs of Flower's node configuration")
    parser.add_argument("--poll-seconds", type=float, default=0.1, help="shortest wait between two polls")
    return SuperNodeSettings(**vars(parser.parse_args(arguments)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and become the SuperNode."""
    end_with_parent()
    try:
        run_supernode(_parse(arguments))
    except SuperNodeError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
