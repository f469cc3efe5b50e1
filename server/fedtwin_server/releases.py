"""Releasing what a finished run learned: signed, beside the weights, where the front serves both.

Design note: the statement is worked out from the run's stored state, never from the report that lies beside the model.
Files are written in the order in which they are needed: whoever finds a release finds its weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedtwin_server.checkpoint import encode_arrays
from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.errors import RunError
from fedtwin_server.installation import public_key
from fedtwin_server.rounds import RunState, attempts_issued, release_model
from fedtwin_server.run_store import EVIDENCE, MODEL, RELEASE, read_state
from fedtwin_server.runs import STUDY, RunSummary, run_directory, summarise_runs
from fedtwin_server.studies import read_signed
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.evidence import parse_evidence
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.release import (
    RELEASE_FILE,
    WEIGHTS_FILE,
    Release,
    read_release,
    sign_release,
    state_guarantee,
    verify_release,
)
from fedtwin_shared.round import Task
from fedtwin_shared.signing import digest, load_signing_key


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFile:
    """A release and where it lies, its weights beside it."""

    release: Release
    file: Path


def release_study(directory: CoordinatorDirectory, name: str, *, clock: Callable[[], float]) -> ReleasedFile:
    """Sign and publish the model of the newest version of a study whose run is finished.

    Raises `RunError` where there is none or its files are damaged; `VerificationError` for a study without noise.

    - a study that was released already is left as it is
    """
    summary = _finished_run(directory, name)
    folder = run_directory(directory, summary.run)
    signed, state = read_signed(directory, folder / STUDY), read_state(folder)
    target = directory.releases / signed.study.digest
    there = _existing(target / RELEASE_FILE, public_key(directory))
    if there is not None:
        return ReleasedFile(release=there, file=target / RELEASE_FILE)
    weights = _read_weights(folder, signed, state)
    release = _describe(folder, signed, state, weights, time=int(clock()))
    envelope = sign_release(release, load_signing_key(directory.signing_key))
    verify_release(envelope, signed=signed)  # nothing is published that a site would refuse
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file, content in ((WEIGHTS_FILE, weights), (RELEASE_FILE, envelope)):
        replace_file(target / file, content)
    return ReleasedFile(release=release, file=target / RELEASE_FILE)


def _finished_run(directory: CoordinatorDirectory, name: str) -> RunSummary:
    found = [
        (signed.version, run)
        for run in summarise_runs(directory)
        if run.status == "finished"
        and (signed := read_signed(directory, run_directory(directory, run.run) / STUDY).study).name == name
    ]
    if not found:
        raise RunError(field="study", expected="a study whose run is finished", found=repr(name[:64]))
    return max(found, key=lambda item: item[0])[1]


def _existing(file: Path, coordinator: str) -> Release | None:
    return read_release(file.read_bytes(), coordinator=coordinator, file=file) if file.exists() else None


def _read_weights(folder: Path, signed: SignedStudy, state: RunState) -> bytes:
    file = folder / RELEASE / MODEL
    data = file.read_bytes() if file.exists() else b""
    if data != encode_arrays(release_model(signed.study, state)):
        raise RunError(file=file, expected="the model of the run's last state", found="other bytes, or none")
    return data


def _describe(folder: Path, signed: SignedStudy, state: RunState, weights: bytes, *, time: int) -> Release:
    study = signed.study
    sites = {site for record in state.history if record.task is Task.TRAIN for site in record.sites}
    return Release(
        study=study.digest,
        name=study.name,
        version=study.version,
        run=state.run,
        weights=digest(weights),
        model=digest_parameters(release_model(study, state)),
        time=time,
        sites=tuple(sorted(sites)),
        guarantee=state_guarantee(
            study,
            steps=study.training.local_steps * attempts_issued(study, state, Task.TRAIN),
            histograms=attempts_issued(study, state, Task.EVALUATE),
        ),
        checkpoints=_latest_checkpoints(folder, sites),
    )


def _latest_checkpoints(folder: Path, sites: set[str]) -> dict[str, str]:
    """The note of the largest tree that came with an update of each site: its ledger only grows."""
    latest: dict[str, tuple[int, str]] = {}
    for file in sorted((folder / EVIDENCE).glob("*.json")):
        try:
            for site, evidence in json.loads(file.read_bytes()).items():
                note = parse_evidence(evidence.encode()).note
                size = parse_checkpoint(parse_note(note).text).size
                if site in sites and size > latest.get(site, (-1, ""))[0]:
                    latest[site] = (size, note.decode())
        except (ValueError, AttributeError, VerificationError) as err:
            raise RunError(file=file, expected="the evidence of a round", found="damage") from err
    return {site: note for site, (_, note) in sorted(latest.items())}
