"""What must hold about everybody's directories after a study, whatever happened during it."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from pathlib import Path

from fedtwin_shared.study import Study
from fedtwin_simulations.deployment import Deployment, Node, run_command
from tests.e2e.patterns import found_in, text_forms

KEYS = ("signing.key", "node.key", "server.key", "authority.key")


def check_world(deployment: Deployment, study: Study, *, report: dict, patients: dict[str, tuple[str, ...]]) -> None:  # type: ignore[type-arg]  # a JSON document
    """Check spending, keys, and that nobody holds or logged another's patients. `patients`: ids by site."""
    for node in deployment.nodes:
        check_keys(node.directory)
        others = [who for site, ids in patients.items() if site != node.site for who in ids]
        check_nobody(node.directory, others)
        # In its own directory a patient is in the data and the quarantine, and nowhere else: no log, no journal.
        check_nobody(
            node.directory, patients[node.site], but=(node.directory / "data", node.directory / "quarantine.csv")
        )
        if study.participant(node.site) is not None and study.privacy.mode != "none":
            check_spending(node, study, report)
    check_keys(deployment.coordinator)
    check_nobody(deployment.coordinator, [who for ids in patients.values() for who in ids])


def check_spending(node: Node, study: Study, report: dict) -> None:  # type: ignore[type-arg]  # a JSON document
    """The hospital's own journal charged exactly what the coordinator got, and no more than the plan."""
    (row,) = [
        row
        for row in json.loads(run_command("client", "status", node.directory, "--json"))["studies"]
        if row["digest"] == study.digest
    ]
    answered = report["answered_rounds"][node.site]
    assert row["steps"] == len(answered["train"]) * study.training.local_steps <= row["planned_steps"]
    assert row["releases"] == len(answered["evaluate"]) <= row["planned_releases"]
    assert row["epsilon"] <= row["price"] <= study.privacy.epsilon
    assert row["epsilon"] <= report["privacy"]["spent_epsilon"]


def check_keys(folder: Path) -> None:
    """Every private key is its owner's alone."""
    keys = [path for path in folder.rglob("*") if path.name in KEYS or path.suffix == ".secret"]
    assert keys
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def check_nobody(folder: Path, patients: Iterable[str], *, but: tuple[Path, ...] = ()) -> None:
    """No file under `folder`, but for some, holds any of the ids."""
    needles = [form for who in patients for form in text_forms(who)]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(path.is_relative_to(allowed) for allowed in but):
            assert found_in(path.read_bytes(), needles) == [], path


def processes_under(folder: Path) -> dict[int, str]:
    """Every process whose environment or command line names `folder`, zombies not included, and what it runs."""
    wanted, found = str(folder).encode(), dict[int, str]()
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if command and (wanted in command or wanted in (entry / "environ").read_bytes()):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found
