"""The privacy ledgers of a whole consortium on this machine, their witnesses, and the bundle that an auditor gets.

Design note: made and driven by the commands that people type, as `deployment` is. The coordinator runs a witness and so
do two hospitals. Each may be wrong about its own hospital's ledger, so one of three may lie (f = 1), and the quorum
⌊(3 + 1) / 2⌋ + 1 is all three: any two of them that are honest have seen the same history.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.ledger.witnesses import WITNESSES
from fedtwin_shared.supervision import Command, wait_until
from fedtwin_simulations.deployment import (
    READY_SECONDS,
    Deployment,
    Node,
    answers_on,
    at_once,
    free_ports,
    run_command,
    supervised,
)
from fedtwin_simulations.toml_text import write_toml

BUNDLE: Final = "audit-bundle.zip"
PINNED: Final = "pinned-keys.json"
KEEPERS: Final = 2  # hospitals that run a witness, beside the coordinator
FAULTY: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A witness's directory, which command runs it, its loopback port and its vkey."""

    keeper: str
    side: str  # server or client
    directory: Path
    port: int
    key: str

    @property
    def address(self) -> str:
        """Where it takes checkpoints."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledgers:
    """Every hospital's vkey, by site, and the witnesses."""

    logs: dict[str, str]
    witnesses: tuple[Witness, ...]


def begin_ledgers(deployment: Deployment, *, epsilon: float, delta: float) -> Ledgers:
    """Begin every hospital's ledger for a lifetime of (ε, δ), make the witnesses, and tell each side of them."""
    claim = ("--epsilon", _plain(epsilon), "--delta", _plain(delta))

    def begin(node: Node) -> str:
        return _pinned(run_command("client", "begin-ledger", node.directory, *claim))

    keys = at_once(begin, deployment.nodes)
    logs = {node.site: key for node, key in zip(deployment.nodes, keys, strict=True)}
    keepers = [("coordinator", "server", deployment.coordinator / "witness")]
    keepers += [(node.site, "client", node.directory / "witness") for node in deployment.nodes[:KEEPERS]]
    ports = free_ports(len(keepers))
    witnesses = tuple(
        at_once(lambda one: make_witness(*one[0], port=one[1], logs=logs), list(zip(keepers, ports, strict=True)))
    )
    tables = [{"key": one.key, "address": one.address} for one in witnesses]
    pins = write_toml({"faulty": min(FAULTY, len(witnesses) - 1), "witness": tables})
    for directory in (deployment.coordinator, *(node.directory for node in deployment.nodes)):
        (directory / WITNESSES).write_text(pins, encoding="utf-8")
    return Ledgers(logs=logs, witnesses=witnesses)


@contextlib.contextmanager
def witnesses_running(witnesses: Sequence[Witness], *, logs: Path) -> Iterator[None]:
    """The witnesses' processes, ready; stopped and reaped afterwards. Raises `SupervisionError` when they are not."""
    commands = [
        Command(
            name=f"witness-{one.keeper}",
            arguments=(flower_program("fedtwin"), one.side, "witness", str(one.directory)),
            log_file=logs / f"witness-{one.keeper}.log",
        )
        for one in witnesses
    ]
    with supervised(commands) as supervisor:

        def ready() -> bool:
            supervisor.step()
            return all(answers_on(one.port) for one in witnesses)

        wait_until(ready, what="witnesses", deadline_seconds=READY_SECONDS, interval_seconds=0.2)
        yield


def export_ledgers(deployment: Deployment, ledgers: Ledgers, folder: Path, *, documents: Sequence[Path]) -> Path:
    """Have every ledger cosigned as it is now, write the auditor's bundle and pinned keys, and return the bundle.

    The hospitals' nodes do not run, the witnesses do. documents: what entries name by digest.
    """
    at_once(lambda node: run_command("client", "checkpoint", node.directory), deployment.nodes)
    arguments: list[str | Path] = []
    for node in deployment.nodes:
        arguments += ["--log", f"{node.site}={node.directory / 'ledger' / 'ledger.sqlite'}"]
    for document in documents:
        arguments += ["--document", document]
    run_command("audit", "bundle", folder / BUNDLE, *arguments)
    pinned = {
        "version": 1,
        "logs": ledgers.logs,
        "witnesses": [one.key for one in ledgers.witnesses],
        "faulty": min(FAULTY, len(ledgers.witnesses) - 1),
    }
    (folder / PINNED).write_text(json.dumps(pinned, indent=2) + "\n", encoding="utf-8")
    return folder / BUNDLE


def make_witness(keeper: str, side: str, directory: Path, *, port: int, logs: dict[str, str]) -> Witness:
    """Make a witness of these logs (vkeys by site). side: whose command it is, server or client."""
    directory.mkdir(mode=0o700)
    settings = {"name": f"{keeper}/witness", "listen": f"127.0.0.1:{port}", "logs": list(logs.values())}
    (directory / "witness.toml").write_text(write_toml(settings), encoding="utf-8")
    key = _pinned(run_command(side, "witness", directory, "--new"))
    return Witness(keeper=keeper, side=side, directory=directory, port=port, key=key)


def _pinned(said: str) -> str:
    """The vkey in what a command printed."""
    (line,) = (line for line in said.splitlines() if " pin: " in line)
    return line.rpartition(" ")[2]


def _plain(number: float) -> str:
    """The decimal form that a ledger takes: no exponent, no trailing zero."""
    return format(Decimal(str(number)).normalize(), "f")
