"""Stock Flower on the same machine: its SuperLink and SuperNodes, one process for each task, its own polls.

Design note: what a consortium gets that follows Flower's deployment guide, with TLS and SuperNode authentication as in
ours. The app in `stock_flower/` is submitted as Flower's users do, with its code in the bundle.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from fedtwin_client.directory import create_node_key
from fedtwin_server.control import Control, list_nodes, register_node, run_status, submit_run
from fedtwin_server.superlink import answers
from fedtwin_shared.certificates import Identity, create_authority, issue_server_certificate
from fedtwin_shared.flower_environment import flower_environment, flower_program
from fedtwin_shared.supervision import Command, Supervisor, wait_until
from fedtwin_simulations.deployment import DeploymentError, free_ports, supervised

READY_SECONDS = 120.0
ROUND_SECONDS = 60.0  # six are usual; a loaded machine may take many


def time_stock_rounds(folder: Path, *, nodes: int, rounds: int) -> list[float]:
    """Return seconds of every round of Flower's own FedAvg over `nodes` SuperNodes on loopback.

    - when it returns or raises, none of its processes runs
    """
    folder.mkdir(parents=True)
    authority, server = make_certificates(folder)
    port, *runtime_ports = free_ports(1 + nodes)
    address = f"127.0.0.1:{port}"
    control = Control(address=address, certificate_authority=authority.certificate, home=folder / "control")
    keys = [folder / f"node{number}.key" for number in range(nodes)]
    with supervised([_superlink(folder, port, authority, server)]) as link:
        _wait_for(link, lambda: answers(f"https://{address}/health", authority.certificate), "stock SuperLink")
        for key in keys:
            key.with_suffix(".pub").write_text(create_node_key(key, comment=key.stem) + "\n", encoding="utf-8")
            register_node(control, key.with_suffix(".pub"))
        commands = [
            _supernode(folder, number, address, runtime_port, authority, key)
            for number, (runtime_port, key) in enumerate(zip(runtime_ports, keys, strict=True))
        ]
        with supervised(commands) as supernodes:
            _wait_for(supernodes, lambda: sum(node.online for node in list_nodes(control)) == nodes, "SuperNodes")
            return _run(control, folder / "times", nodes=nodes, rounds=rounds)


def _run(control: Control, times: Path, *, nodes: int, rounds: int) -> list[float]:
    bundle = Path(str(files("fedtwin_simulations") / "stock_flower"))
    times.touch()
    config = {"rounds": str(rounds), "nodes": str(nodes), "times": str(times)}
    run = submit_run(control, bundle, config)
    deadline = time.monotonic() + ROUND_SECONDS * (rounds + 1)
    while len(found := [float(line) for line in times.read_text(encoding="utf-8").split()]) <= rounds:
        if run_status(control, run).finished and len(times.read_text(encoding="utf-8").split()) <= rounds:
            raise DeploymentError(field="stock Flower", expected=f"{rounds} rounds", found=f"{len(found)} times")
        if not time.monotonic() < deadline:
            raise DeploymentError(field="stock Flower", expected="its rounds in time", found="none")
        time.sleep(2.0)
    return [after - before for before, after in itertools.pairwise(found)]


def make_certificates(folder: Path) -> tuple[Identity, Identity]:
    """Write an authority and the certificate of a server on loopback."""
    now = dt.datetime.now(dt.UTC)
    authority = Identity(certificate=folder / "authority.pem", private_key=folder / "authority.key")
    server = Identity(certificate=folder / "server.pem", private_key=folder / "server.key")
    create_authority(authority, name="bench", now=now)
    issue_server_certificate(server, authority, names=("localhost", "127.0.0.1"), now=now)
    return authority, server


def _superlink(folder: Path, port: int, authority: Identity, server: Identity) -> Command:
    return Command(
        name="superlink",
        arguments=(
            *(flower_program("flower-superlink"), "--host=127.0.0.1", f"--port={port}", "--isolation=subprocess"),
            *("--disable-runtime-dependency-installation", "--enable-supernode-auth"),
            *(f"--ssl-certfile={server.certificate}", f"--ssl-keyfile={server.private_key}"),
            f"--ssl-ca-certfile={authority.certificate}",
        ),
        log_file=folder / "superlink.log",
        environment=flower_environment(folder / "superlink"),
    )


def _supernode(folder: Path, number: int, address: str, runtime_port: int, authority: Identity, key: Path) -> Command:
    return Command(
        name=f"supernode{number}",
        arguments=(
            *(flower_program("flower-supernode"), f"--superlink={address}", "--host=127.0.0.1"),
            *(f"--port={runtime_port}", f"--root-certificates={authority.certificate}"),
            f"--auth-supernode-private-key={key}",
        ),
        log_file=folder / f"supernode{number}.log",
        environment=flower_environment(folder / f"supernode{number}"),
    )


def _wait_for(supervisor: Supervisor, check: Callable[[], bool], what: str) -> None:
    def ready() -> bool:
        supervisor.step()
        return check()

    wait_until(ready, what=what, deadline_seconds=READY_SECONDS, interval_seconds=0.5)
