"""Starting a run through Flower and following it to its end, by what fedtwin itself wrote down."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fedtwin_server.bundle import BUNDLE_DIRECTORY
from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.control import run_status, submit_run
from fedtwin_server.coordinator import link_answers
from fedtwin_server.errors import ControlError
from fedtwin_server.rounds import EVERYBODY
from fedtwin_server.run_store import is_under_way
from fedtwin_server.runs import prepare_resume, prepare_run, read_progress, run_directory, summarise_run
from fedtwin_shared.documents import SignedStudy

POLL_SECONDS: Final = 0.2
ASK_SECONDS: Final = 10.0  # between two questions to Flower while nobody holds the run; each costs about a second

Say = Callable[[str], None]


def new_run_id() -> str:
    """Return 128 random bits in hexadecimal."""
    return secrets.token_hex(16)


def start_study(directory: CoordinatorDirectory, signed: SignedStudy, *, run: str) -> int:
    """Prepare the run and submit it; Flower's id. Raises `RunError`, `ControlError`.

    - without a running coordinator nothing is prepared
    - when the submission fails after all, the run is there and can be resumed
    """
    _check_link(directory)
    prepare_run(directory, signed, run=run)
    try:
        return _submit(directory, signed, run)
    except ControlError as err:
        found = f"{err.found}; to go on: fedtwin server resume {directory.root} {run}"
        raise ControlError(file=err.file, field=err.field, expected=err.expected, found=found) from err


def resume_run(directory: CoordinatorDirectory, run: str) -> int:
    """Submit an interrupted or failed run again under its own id; Flower's new id. Raises as `start_study`."""
    _check_link(directory)
    return _submit(directory, prepare_resume(directory, run), run)


def _check_link(directory: CoordinatorDirectory) -> None:
    if not link_answers(directory):
        expected = f"a running coordinator: fedtwin server run {directory.root}"
        raise ControlError(field="link", expected=expected, found=f"no answer on {directory.superlink.address}")


def _submit(directory: CoordinatorDirectory, signed: SignedStudy, run: str) -> int:
    return submit_run(directory.control, BUNDLE_DIRECTORY, {"run": run, "study": signed.study.digest})


def progress_size(directory: CoordinatorDirectory, run: str) -> int:
    """Return where the progress of a run ends now: what is followed after it is new."""
    return read_progress(run_directory(directory, run))[1]


def follow_run(directory: CoordinatorDirectory, run: str, *, flower_run: int, offset: int, say: Say) -> str:
    """Say each round as it ends, until the run has ended; its status: finished, failed or interrupted.

    - the status is what fedtwin stored, never Flower's word or an exit code
    """
    folder, asked = run_directory(directory, run), time.monotonic()
    while True:
        ended = not is_under_way(folder)
        entries, offset = read_progress(folder, offset=offset)
        for entry in entries:
            say(describe_entry(entry))
        status = summarise_run(directory, run).status if entries or ended else "under way"
        if status in ("finished", "failed"):
            return status
        # Nobody holds the run: not started yet, killed, or stopped by an error that is in the executor's log.
        if ended and time.monotonic() - asked >= ASK_SECONDS:
            asked = time.monotonic()
            if run_status(directory.control, flower_run).finished and not is_under_way(folder):
                return summarise_run(directory, run).status
        time.sleep(POLL_SECONDS)


def describe_entry(entry: Mapping[str, Any]) -> str:
    """Return one task of one round in words."""
    parts = [f"{entry['task']} {entry['round']}"]
    if entry["attempt"] > 1:
        parts.append(f"attempt {entry['attempt']}")
    parts.append(f"{len(entry['sites'])} sites in {entry['seconds']:.2f} s")
    parts += [f"{site} refused: {code}" for site, code in entry["refusals"].items()]
    parts += [f"{count} × {code}" for code, count in entry["errors"].items()]
    if entry["unverified"]:
        parts.append(f"{entry['unverified']} answers that did not verify")
    if not entry["counts"]:
        parts.append("too few: the run has failed")
    auroc = entry.get("metrics", {}).get("overall", {}).get(EVERYBODY, {}).get("auroc")
    if auroc is not None:
        parts.append(f"AUROC {auroc:.3f}")
    return ", ".join(parts)


def release_folder(directory: CoordinatorDirectory, run: str) -> Path:
    """Return where a finished run's model and report lie."""
    return run_directory(directory, run) / "release"
