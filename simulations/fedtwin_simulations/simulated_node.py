"""A hospital's node as real processes, but with a simulation's policy and seeded chance: to compare the two runtimes.

    python -m fedtwin_simulations.simulated_node DIRECTORY [--approve STUDY] [--seed N]

Design note: real hospitals refuse studies without privacy, so that real processes and one process can be compared bit
for bit only with a node that does not. The transport is the hospital's own; the executor is the hospital's own loop
around a `Hospital` that differs from a real one in its policy and its randomness, and in nothing else.
"""

from __future__ import annotations

import argparse
import functools
import os
import secrets
import sys
from pathlib import Path
from typing import NoReturn

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.evaluation import release_histogram
from fedtwin_client.file_journal import FileJournal
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital import Hospital
from fedtwin_client.installation import load_cohort
from fedtwin_client.node import check_files, node_commands, secret_file
from fedtwin_client.studies import open_studies, read_study
from fedtwin_client.training import train
from fedtwin_shared.supervision import Command, Supervisor, stop_on_signals
from fedtwin_simulations.seeded_randomness import SeededRandomness
from fedtwin_simulations.simulation_policy import SimulationPolicy


def run_simulated_node(directory: HospitalDirectory, *, seed: int) -> None:
    """Run transport and executor until SIGTERM or SIGINT; main thread only.

    - after it returns no child runs, and every child is reaped
    """
    check_files(directory)
    write_secret(secret_file(directory))
    with stop_on_signals() as stop, Supervisor(simulated_commands(directory, seed=seed)) as supervisor:
        supervisor.run(stop)


def simulated_commands(directory: HospitalDirectory, *, seed: int) -> tuple[Command, Command]:
    """Return the hospital's own transport, and the simulation's executor in the hospital's environment."""
    transport, executor = node_commands(directory)
    module = (sys.executable, "-m", "fedtwin_simulations.simulated_node", str(directory.root))
    return transport, Command(
        name=executor.name,
        arguments=(*module, "--seed", str(seed), "--executor"),
        log_file=executor.log_file,
        environment=executor.environment,
    )


def run_simulated_executor(directory: HospitalDirectory, *, seed: int) -> None:
    """Answer tasks until a signal, as the hospital's own executor does; main thread only."""
    from fedtwin_client.client_app import make_client_app
    from fedtwin_client.executor import execute_tasks

    hospital = open_simulated_hospital(directory, seed=seed)
    with stop_on_signals() as stop:
        execute_tasks(
            f"127.0.0.1:{directory.config.ports.runtime}",
            make_client_app(lambda context: hospital),
            allowed_bundles=frozenset(directory.config.policy.allowed_bundles),
            refuse=_refuse_unknown_bundle,
            stop=stop,
            secret_file=secret_file(directory),
        )


def open_simulated_hospital(directory: HospitalDirectory, *, seed: int) -> Hospital:
    """Return the hospital of the directory, its policy and randomness replaced."""
    gate = open_gate(directory)
    return Hospital(
        gate=gate,
        coordinator=directory.config.coordinator.public_key,
        find_study=open_studies(directory, gate).find,
        policy=SimulationPolicy(),
        journal=FileJournal(directory.journal),
        randomness=SeededRandomness(seed=seed, site=directory.config.name),
        load_cohort=functools.partial(load_cohort, directory),
        train=train,
        release_histogram=release_histogram,
    )


def approve(directory: HospitalDirectory, study: Path) -> None:
    """Approve a study that a real hospital's policy would refuse."""
    signed = read_study(study, coordinator=directory.config.coordinator.public_key)
    open_studies(directory, open_gate(directory)).add(signed)


def write_secret(path: Path) -> None:
    """Write a new secret for the node's two processes, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))


def _refuse_unknown_bundle(message: object) -> NoReturn:
    """A simulation's coordinator has one bundle; any other is a mistake of the simulation."""
    raise RuntimeError("expected the installed bundle")


def main(arguments: list[str] | None = None) -> None:
    """Run the node, or one part of it."""
    parser = argparse.ArgumentParser(description="A simulated hospital's node.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--approve", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", action="store_true")
    given = parser.parse_args(arguments)
    directory = read_directory(given.directory)
    if given.approve is not None:
        approve(directory, given.approve)
    elif given.executor:
        run_simulated_executor(directory, seed=given.seed)
    else:
        run_simulated_node(directory, seed=given.seed)


if __name__ == "__main__":
    main()
