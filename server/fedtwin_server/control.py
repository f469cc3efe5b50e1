"""What the coordinator tells its SuperLink: register a node, list nodes, submit, look at and stop a run.

Design note: Flower's Control API is private in Python, its command line is public, so this speaks through `flwr` with
`--format json` (about a second per call; calls are few). Exit codes are not trusted: `flwr` ends with 0 on rejected and
on failed runs, so success is what the JSON says.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtwin_server.errors import ControlError
from fedtwin_shared.flower_environment import flower_environment, flower_program

CALL_SECONDS: Final = 60.0  # one second is usual; a loaded machine may take many
_CONNECTION: Final = "fedtwin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """How to reach the SuperLink: its loopback address, its authority, and a home for Flower's command line."""

    address: str
    certificate_authority: Path
    home: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One registered SuperNode."""

    node_id: int
    status: str  # registered, online, offline or unregistered

    @property
    def online(self) -> bool:
        """Whether the SuperLink hears from it."""
        return self.status == "online"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run of Flower's. A killed ServerApp comes back as another run, so this id names nothing of ours."""

    run_id: int
    status: str  # pending, starting, running or finished:<how>
    details: str
    bundle_digest: str
    received_bytes: int  # by the SuperLink
    sent_bytes: int

    @property
    def finished(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status.startswith("finished")

    @property
    def completed(self) -> bool:
        """Whether the ServerApp returned without an error."""
        return self.status == "finished:completed"


def register_node(control: Control, public_key: Path) -> int:
    """Register the SuperNode of an OpenSSH public key (NIST curve); its node id. Raises ControlError."""
    return _integer(_call(control, "supernode", "register", str(public_key.resolve()), _CONNECTION), "node-id")


def list_nodes(control: Control) -> tuple[NodeRecord, ...]:
    """Every registered SuperNode. Raises ControlError."""
    nodes = _records(_call(control, "supernode", "list", _CONNECTION), "nodes")
    return tuple(NodeRecord(node_id=_integer(node, "node-id"), status=_text(node, "status")) for node in nodes)


def submit_run(control: Control, bundle_directory: Path, run_config: Mapping[str, str]) -> int:
    """Submit the bundle with values for the keys that its configuration declares; Flower's id of the run.

    Guarantees:
      - returns only when the SuperLink has accepted the run; raises ControlError otherwise
    """
    values = " ".join(f"{key}={_quoted(value)}" for key, value in sorted(run_config.items()))
    options = ("--run-config", values) if values else ()
    return _integer(_call(control, "run", str(bundle_directory.resolve()), _CONNECTION, *options), "run-id")


def run_status(control: Control, run_id: int) -> RunRecord:
    """Where a run stands. Raises ControlError, also for an unknown run."""
    runs = _records(_call(control, "list", _CONNECTION, "--run-id", str(run_id)), "runs")
    if len(runs) != 1:
        raise ControlError(field="runs", expected="one run", found=str(len(runs)))
    run = runs[0]
    traffic = run.get("network-traffic")
    if not isinstance(traffic, dict):
        raise ControlError(field="network-traffic", expected="an object", found=type(traffic).__name__)
    return RunRecord(
        run_id=_integer(run, "run-id"),
        status=_text(run, "status"),
        details=_text(run, "status-details"),
        bundle_digest=_text(run, "fab-hash"),
        received_bytes=_integer(traffic, "inbound-bytes"),
        sent_bytes=_integer(traffic, "outbound-bytes"),
    )


def stop_run(control: Control, run_id: int) -> None:
    """Stop a run. Raises ControlError where the SuperLink did not."""
    _call(control, "stop", str(run_id), _CONNECTION)


def _call(control: Control, *arguments: str) -> dict[str, object]:
    """One `flwr` command; its JSON answer, which said success."""
    control.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (control.home / "config.toml").write_text(
        f"[superlink]\ndefault = {_quoted(_CONNECTION)}\n\n[superlink.{_CONNECTION}]\n"
        f"address = {_quoted(control.address)}\n"
        f"root-certificates = {_quoted(str(control.certificate_authority.resolve()))}\n"
    )
    what = "flwr " + " ".join(arguments[:2])
    try:
        done = subprocess.run(
            (flower_program("flwr"), *arguments, "--format", "json"),
            env={**os.environ, **flower_environment(control.home)},
            cwd=control.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,  # not trusted: 0 on a rejected run
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ControlError(field=what, expected="an answer", found=type(error).__name__) from error
    try:
        answer = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["nothing"]
        raise ControlError(field=what, expected="a JSON answer", found=last[0][:200]) from error
    if not isinstance(answer, dict) or answer.get("success") is not True:
        reason = answer.get("error-message") if isinstance(answer, dict) else None
        raise ControlError(field=what, expected="success", found=" ".join(str(reason or "a refusal").split())[:500])
    return answer


def _quoted(value: str) -> str:
    """A basic TOML string; JSON's escapes are a subset of its."""
    return json.dumps(value)


def _records(answer: Mapping[str, object], key: str) -> list[dict[str, object]]:
    values = answer.get(key)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ControlError(field=key, expected="a list of objects", found=type(values).__name__)
    return values


def _integer(answer: Mapping[str, object], key: str) -> int:
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ControlError(field=key, expected="a number", found=type(value).__name__)
    try:
        return int(value)
    except ValueError as error:
        raise ControlError(field=key, expected="a number", found="text") from error


def _text(answer: Mapping[str, object], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise ControlError(field=key, expected="text", found=type(value).__name__)
    return value
