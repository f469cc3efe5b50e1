"""The coordinator's Flower processes: the SuperLink and its executor, as commands for a supervisor.

Design note: `--isolation process`, a supervised executor and a database are the only set-up of Flower in which a run
survives the death of its SuperLink. The SuperLink listens on loopback (`front.py` is the public door) and takes no
code from a package index.

What remains: Flower's executor starts one process per run and puts that run's task token on its command line, so any
local user who can list processes can act as that run, and Flower's Control API asks no user for a password. Both are
contained by the machine, not by Flower: a user of its own for the coordinator, other users' processes hidden (systemd
`ProtectProc=invisible`, or /proc mounted with hidepid=2), and nobody else on the machine or in the container. The
secret between SuperLink and executor is a 0600 file whose path, not content, is on a command line. Hospitals have no
token on a command line: their executor is ours.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedtwin_server.flower_process import flower_command
from fedtwin_shared.flower_environment import flower_environment
from fedtwin_shared.supervision import Command, wait_until

EXECUTOR_POLL_SECONDS: Final = 0.5  # until a submitted run starts; each poll costs the SuperLink some 8 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperLinkSettings:
    """Where the SuperLink lives. Every file is the coordinator's own; `secret_file` and `private_key` are 0600."""

    directory: Path  # database, logs and Flower's homes
    port: int  # on 127.0.0.1
    certificate: Path  # PEM with 127.0.0.1 among its names
    private_key: Path
    certificate_authority: Path  # PEM that signed `certificate`
    secret_file: Path  # shared by SuperLink and executor
    server_app_environment: Mapping[str, str] = field(default_factory=dict)  # what the ServerApp's process sees

    @property
    def address(self) -> str:
        """host:port of the SuperLink, on loopback."""
        return f"127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        """Runs, nodes and undelivered messages; the executor and the front hold nothing."""
        return self.directory / "superlink.db"


def superlink_command(settings: SuperLinkSettings) -> Command:
    """The SuperLink itself: Fleet, Control and Runtime on one loopback port, TLS, SuperNode authentication."""
    return Command(
        name="superlink",
        arguments=flower_command(
            "flower-superlink",
            "--isolation=process",
            "--host=127.0.0.1",
            f"--port={settings.port}",
            f"--database={settings.database}",
            f"--ssl-certfile={settings.certificate}",
            f"--ssl-keyfile={settings.private_key}",
            f"--ssl-ca-certfile={settings.certificate_authority}",
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            f"--superexec-auth-secret-file={settings.secret_file}",
        ),
        log_file=settings.directory / "logs" / "superlink.log",
        environment=flower_environment(settings.directory / "superlink"),
    )


def executor_command(settings: SuperLinkSettings) -> Command:
    """Flower's executor, which starts one process per run with the installed ServerApp."""
    return Command(
        name="superexec",
        arguments=flower_command(
            "flower-superexec",
            f"--runtime-api-address={settings.address}",
            f"--root-certificates={settings.certificate_authority}",
            f"--superexec-auth-secret-file={settings.secret_file}",
        ),
        log_file=settings.directory / "logs" / "superexec.log",
        environment={
            **flower_environment(settings.directory / "superexec"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": f"{EXECUTOR_POLL_SECONDS:g}",
            **settings.server_app_environment,
        },
    )


def wait_until_superlink_ready(settings: SuperLinkSettings, *, deadline_seconds: float = 30.0) -> None:
    """Return once the SuperLink answers; raises SupervisionError after the deadline."""
    authority = settings.certificate_authority
    wait_until(
        lambda: answers(f"https://{settings.address}/health", authority),
        what="SuperLink",
        deadline_seconds=deadline_seconds,
    )


def answers(url: str, certificate_authority: Path) -> bool:
    """Whether an https address says 200 under the given authority."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(certificate_authority))),
    )
    try:
        with opener.open(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
