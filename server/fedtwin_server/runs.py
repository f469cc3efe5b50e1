"""Runs in a coordinator's directory: prepared before anything is asked, found again by fedtwin's own id.

Design note: Flower's id of a run names nothing, because a killed ServerApp can only come back as another Flower run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.errors import RunError
from fedtwin_server.proof import fix_proof, proof_rule
from fedtwin_server.rounds import RunState, next_task, retry_round, start_run
from fedtwin_server.run_store import PROGRESS, RELEASE, REPORT, FileRunStore, is_under_way, read_state
from fedtwin_server.studies import read_signed
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.durable import replace_file
from fedtwin_shared.ledger.witnesses import WITNESSES, read_witnesses

STUDY: Final = "study.signed.json"
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Where one run stands, for people and programs that ask."""

    run: str
    study: str  # name and version
    digest: str
    rounds_done: int
    rounds_planned: int
    status: str  # finished, under way, failed or interrupted; the last two can be resumed


def run_directory(directory: CoordinatorDirectory, run: str) -> Path:
    """Return the folder of an existing run. Raises `RunError` for what is not the id of one."""
    if _RUN_ID.fullmatch(run) is None:  # it came from outside and becomes part of a path
        raise RunError(field="run", expected="32 hexadecimal digits", found=repr(run[:40]))
    folder = directory.runs / run
    if not folder.is_dir():
        raise RunError(field="run", expected=f"a run in {directory.runs}", found=run)
    return folder


def prepare_run(directory: CoordinatorDirectory, signed: SignedStudy, *, run: str) -> Path:
    """Make the folder of a new run with its first state; the folder.

    Raises `RunError` when the study has a run already: hospitals spend a study's budget once, so it is resumed instead.
    """
    digest = signed.study.digest
    for other in _run_ids(directory):
        if read_state(directory.runs / other).study == digest:
            raise RunError(field="study", expected="a study that has no run yet", found=f"its run {other}: resume that")
    folder = directory.runs / run
    rule = proof_rule(signed.study, read_witnesses(directory.root / WITNESSES))
    folder.mkdir(mode=0o700)
    with FileRunStore(folder) as store:
        store.save(fix_proof(start_run(signed.study, run=run), rule))
    replace_file(folder / STUDY, signed.envelope)  # a run is listed from here on
    return folder


def prepare_resume(directory: CoordinatorDirectory, run: str) -> SignedStudy:
    """Make a run ready to be conducted again from its next round; its study.

    Raises `RunError` when it is complete, under way, out of spare rounds, or began with other witnesses.
    """
    folder = run_directory(directory, run)
    signed = read_signed(directory, folder / STUDY)
    rule = proof_rule(signed.study, read_witnesses(directory.root / WITNESSES))
    with FileRunStore(folder) as store:
        state = store.load()
        if next_task(signed.study, state) is None and (folder / RELEASE / REPORT).exists():
            raise RunError(field="run", expected="a run to resume", found="a complete one")
        store.save(retry_round(signed.study, fix_proof(state, rule)))
    return signed


def summarise_run(directory: CoordinatorDirectory, run: str) -> RunSummary:
    """Return where a run stands. Raises `RunError`."""
    folder = run_directory(directory, run)
    study, state = read_signed(directory, folder / STUDY).study, read_state(folder)
    return RunSummary(
        run=run,
        study=f"{study.name} version {study.version}",
        digest=state.study,
        rounds_done=state.rounds_done,
        rounds_planned=study.training.rounds,
        status=_status(folder, state),
    )


def summarise_runs(directory: CoordinatorDirectory) -> tuple[RunSummary, ...]:
    """Return where every run stands, in order of their ids."""
    return tuple(summarise_run(directory, run) for run in _run_ids(directory))


def read_progress(folder: Path, *, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of progress after `offset` bytes, and the offset after them."""
    try:
        with (folder / PROGRESS).open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_parse_lines(whole)), offset + len(whole)


def _parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # torn by a kill in the middle of a line; what it said is in the checkpoint
            continue


def _status(folder: Path, state: RunState) -> str:
    if (folder / RELEASE / REPORT).exists():
        return "finished"
    if is_under_way(folder):
        return "under way"
    return "interrupted" if state.failed is None else "failed"


def _run_ids(directory: CoordinatorDirectory) -> list[str]:
    return sorted(path.parent.name for path in directory.runs.glob(f"*/{STUDY}") if _RUN_ID.fullmatch(path.parent.name))
