"""A whole Flower rim on loopback, as real processes: front, SuperLink, executor, and sites with toy apps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtwin_client.supernode import SuperNodeSettings
from fedtwin_server.bundle import bundle_digest
from fedtwin_server.control import Control, list_nodes, register_node, run_status, submit_run
from fedtwin_server.superlink import (
    SuperLinkSettings,
    answers,
    executor_command,
    superlink_command,
    wait_until_superlink_ready,
)
from fedtwin_shared.supervision import Command, RestartPolicy, Supervisor, wait_until
from tests.authority import ServerIdentity, free_ports, make_node_identity, make_server_identity, write_private

ROOT = Path(__file__).parents[2]
BUNDLE = """\
[project]
name = "toy"
version = "1.0.0"
description = "A toy."
dependencies = []

[tool.flwr.app]
publisher = "fedtwin"

[tool.flwr.app.components]
serverapp = "tests.e2e.toy_server:app"
clientapp = "tests.e2e.toy_site:app"

[tool.flwr.app.config]
rounds = 1
nodes = 1
first = 0
"""
FRONT = """\
import sys
from pathlib import Path
from fedtwin_server.front import FrontSettings, serve_front
port, certificate, key, upstream, authority = sys.argv[1:]
serve_front(FrontSettings(host="127.0.0.1", port=int(port), certificate=Path(certificate), private_key=Path(key),
    upstream=upstream, certificate_authority=Path(authority)))
"""
QUICK = RestartPolicy(first_delay_seconds=0.3, longest_delay_seconds=3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the toy ServerApp wrote about one round."""

    number: int
    seconds: float
    replies: list[dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """What a test needs to know about the running rim."""

    directory: Path
    bundle: Path
    front_address: str
    superlink: SuperLinkSettings
    identity: ServerIdentity
    control: Control
    coordinator: Supervisor
    sites: tuple[Supervisor, ...]

    def run(
        self, *, rounds: int, nodes: int, first: int = 0, bundle: Path | None = None, deadline_seconds: float = 180
    ) -> list[Round]:
        """Submit, wait for the end, and return one record per round."""
        before = len(self.rounds())
        config = {"rounds": str(rounds), "nodes": str(nodes), "first": str(first)}
        run_id = submit_run(self.control, bundle or self.bundle, config)
        self.wait_for_end(run_id, deadline_seconds=deadline_seconds)
        return self.rounds()[before:]

    def wait_for_end(self, run_id: int, *, deadline_seconds: float = 180) -> None:
        wait_until(
            lambda: run_status(self.control, run_id).finished,
            what=f"run {run_id}",
            deadline_seconds=deadline_seconds,
            interval_seconds=0.5,
        )

    def rounds(self) -> list[Round]:
        path = self.directory / "results"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Round(**json.loads(line)) for line in lines]

    def logs(self) -> str:
        return "\n".join(f"== {path}\n{path.read_text()[-4000:]}" for path in self.directory.rglob("*.log"))


def write_bundle(directory: Path, text: str = BUNDLE) -> Path:
    bundle = directory / "toy"
    bundle.mkdir(parents=True)
    (bundle / "pyproject.toml").write_text(text)
    return bundle


def front_command(directory: Path, port: int, identity: ServerIdentity, upstream: str) -> Command:
    arguments = (str(port), str(identity.certificate), str(identity.private_key), upstream)
    return Command(
        name="front",
        arguments=(sys.executable, "-c", FRONT, *arguments, str(identity.certificate_authority)),
        log_file=directory / "front.log",
    )


def site_commands(settings: SuperNodeSettings, digest: str) -> tuple[Command, ...]:
    home, address = settings.directory, f"127.0.0.1:{settings.runtime_port}"
    supernode = (
        *(sys.executable, "-m", "fedtwin_client.supernode", "--superlink", settings.superlink),
        *("--root-certificates", str(settings.root_certificates), "--private-key", str(settings.private_key)),
        *("--runtime-port", str(settings.runtime_port), "--directory", str(home)),
        *("--secret-file", str(settings.secret_file), "--poll-seconds", str(settings.poll_seconds)),
    )
    executor = (
        *(sys.executable, "-m", "tests.e2e.toy_site", address, digest),
        *(str(settings.secret_file), str(home / "records")),
    )
    return (
        Command(name="supernode", arguments=supernode, log_file=home / "supernode.log"),
        Command(
            name="executor",
            arguments=executor,
            log_file=home / "executor.log",
            environment={"PYTHONPATH": str(ROOT), "FLWR_HOME": str(home / "executor")},
        ),
    )


@contextmanager
def running_rim(
    directory: Path, *, nodes: int, poll_seconds: float = 0.05, environment: Mapping[str, str] | None = None
) -> Iterator[Rim]:
    """The rim with every node online; everything is stopped and reaped afterwards."""
    os.environ["PYTHONPATH"] = str(ROOT)  # Flower looks for the toy apps' modules when a run is submitted
    identity = make_server_identity(directory / "identity")
    superlink_port, front_port, *runtime_ports = free_ports(2 + nodes)
    secret = directory / "identity" / "superexec.secret"
    write_private(secret, os.urandom(32))
    settings = SuperLinkSettings(
        directory=directory / "coordinator",
        port=superlink_port,
        certificate=identity.certificate,
        private_key=identity.private_key,
        certificate_authority=identity.certificate_authority,
        secret_file=secret,
        server_app_environment={
            "PYTHONPATH": str(ROOT),
            "TOY_RESULTS": str(directory / "results"),
            **(environment or {}),
        },
    )
    settings.directory.mkdir()
    bundle = write_bundle(directory)
    front_address = f"127.0.0.1:{front_port}"
    control = Control(
        address=settings.address,
        certificate_authority=identity.certificate_authority,
        home=directory / "control",
    )
    commands = (
        superlink_command(settings),
        executor_command(settings),
        front_command(directory, front_port, identity, f"https://{settings.address}"),
    )
    sites: list[Supervisor] = []
    with Supervisor(commands, policy=QUICK) as coordinator:
        try:
            wait_until_superlink_ready(settings)
            wait_until(
                lambda: answers(f"https://{front_address}/health", identity.certificate_authority),
                what="front",
                deadline_seconds=20,
            )
            for number, port in enumerate(runtime_ports):
                home = directory / f"site{number}"
                node = make_node_identity(home)
                site_secret = home / "secret"
                write_private(site_secret, os.urandom(32))
                register_node(control, node.public_key)
                site = SuperNodeSettings(
                    superlink=front_address,
                    root_certificates=identity.certificate_authority,
                    private_key=node.private_key,
                    runtime_port=port,
                    directory=home,
                    secret_file=site_secret,
                    poll_seconds=poll_seconds,
                )
                sites.append(Supervisor(site_commands(site, bundle_digest(bundle)), policy=QUICK))
                sites[-1].start()
            wait_until(
                lambda: sum(node.online for node in list_nodes(control)) == nodes,
                what="nodes online",
                deadline_seconds=60,
            )
            yield Rim(
                directory=directory,
                bundle=bundle,
                front_address=front_address,
                superlink=settings,
                identity=identity,
                control=control,
                coordinator=coordinator,
                sites=tuple(sites),
            )
        finally:
            for supervisor in sites:
                supervisor.stop()
