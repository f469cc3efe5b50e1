"""`fedtwin client run`: a hospital's two processes in the foreground, watched, restarted and stopped together.

Design note: the transport dials the coordinator and holds no data; the executor holds the data and dials nobody but the
transport, on loopback, with a secret that is new at every start. Everything is checked before the first process starts.
Flower's own executor would start a process for each task with the task's token on its command line, where every account
of the machine can read it; here no process is started for a task, and both processes get files' names only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedtwin_client.config import DIRECTORY_VARIABLE, HospitalDirectory
from fedtwin_client.gate import open_gate
from fedtwin_client.health import Health, is_reachable, is_serving, serve_health
from fedtwin_client.studies import approved_digests
from fedtwin_shared.durable import take_lock
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.flower_environment import flower_environment
from fedtwin_shared.supervision import Command, Supervisor, stop_on_signals

STOP_SECONDS: Final = 8.0  # systemd and compose are told 20; a person at a terminal waits less
# glibc gives freed blocks back to the kernel and faults them in again at every step; keeping them halves the time of an
# LSTM's step from 512 patients on. The values are "never" for a training process of any hospital.
KEEP_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Sums in one order on every machine: training is single-threaded, whatever libraries would choose.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_node(directory: HospitalDirectory) -> None:
    """Run the node of `directory` until SIGTERM or SIGINT; main thread only.

    Raises `ConfigurationError` for a file, key or port that is not as it must be: then nothing was started.

    - after it returns no child runs, and every child is reaped
    """
    check_files(directory)
    with _only_one(directory), stop_on_signals() as stop:
        _write_secret(secret_file(directory))
        supervisor = Supervisor(node_commands(directory))
        started = time.time()
        with serve_health(directory.config.ports.health, lambda: look(directory, supervisor, started=started)):
            try:
                supervisor.start()
                while not stop.wait(0.1):
                    supervisor.step()
            finally:
                supervisor.stop(deadline_seconds=STOP_SECONDS)


def check_files(directory: HospitalDirectory) -> None:
    """Raise `ConfigurationError` unless keys are there and private, and the coordinator's authority is readable."""
    open_gate(directory)
    check_private(directory.node_key)
    try:
        authority = directory.ca_file.read_bytes()
    except OSError as err:
        raise ConfigurationError(
            file=directory.ca_file, expected="a certificate in PEM", found=err.strerror or "no file"
        ) from err
    if b"-----BEGIN CERTIFICATE-----" not in authority:
        raise ConfigurationError(file=directory.ca_file, expected="a certificate in PEM", found="something else")


def check_private(path: Path) -> None:
    """Raise `ConfigurationError` unless `path` is a file that only its owner may read."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as err:
        raise ConfigurationError(file=path, expected="a private key", found=err.strerror or "no file") from err
    if mode & 0o077:
        raise ConfigurationError(file=path, field="mode", expected="0600", found=f"{mode:04o}")


def node_commands(directory: HospitalDirectory) -> tuple[Command, Command]:
    """Return the transport's and the executor's command. No secret stands in either."""
    config, home = directory.config, directory.node
    transport = (
        *(sys.executable, "-m", "fedtwin_client.supernode", "--superlink", config.coordinator.superlink),
        *("--root-certificates", str(directory.ca_file), "--private-key", str(directory.node_key)),
        *("--runtime-port", str(config.ports.runtime), "--directory", str(home)),
        *("--secret-file", str(secret_file(directory)), "--poll-seconds", str(config.performance.poll_seconds)),
    )
    return (
        Command(
            name="transport",
            arguments=transport,
            log_file=directory.logs / "transport.log",
            environment=flower_environment(home),
        ),
        Command(
            name="executor",
            arguments=(sys.executable, "-m", "fedtwin_client.node_executor"),
            log_file=directory.logs / "executor.log",
            environment={
                **flower_environment(home / "executor"),
                **KEEP_MEMORY,
                **ONE_THREAD,
                DIRECTORY_VARIABLE: str(directory.root),
            },
        ),
    )


def look(directory: HospitalDirectory, supervisor: Supervisor, *, started: float) -> Health:
    """Return the node's health now; `started` is when it was, in seconds since 1970."""
    running = {child.name: child.process_id is not None for child in supervisor.status()}
    accepted = directory.node / "node_id"  # written by the transport when the coordinator accepts it
    transport = running["transport"] and is_serving(directory.config.ports.runtime)
    return Health(
        transport=transport,
        executor=running["executor"],
        connected=transport
        and accepted.exists()
        and accepted.stat().st_mtime >= started
        and is_reachable(directory.config.coordinator.superlink),
        studies=approved_digests(directory.studies),
    )


def secret_file(directory: HospitalDirectory) -> Path:
    """Return the file that the node's two processes know each other by."""
    return directory.node / "executor.secret"


def _write_secret(path: Path) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))


@contextlib.contextmanager
def _only_one(directory: HospitalDirectory) -> Iterator[None]:
    """A second node of one directory would fight over its journal and its key; it is told so instead."""
    directory.node.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = take_lock(directory.node / "run.lock")
    if lock is None:
        raise ConfigurationError(file=directory.root, expected="no other node of this directory", found="one that runs")
    try:
        _check_free(directory.config.ports.runtime)
        yield
    finally:
        os.close(lock)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as err:
            raise ConfigurationError(field="ports.runtime", expected="a free port", found=f"{port} in use") from err
