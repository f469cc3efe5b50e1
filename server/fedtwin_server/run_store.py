"""Where a run's state lives between rounds: in memory for simulations and tests, in files at a coordinator.

Design note: one store is one run. What is stored names the next round and attempt, so a plan is on disk before its
messages go out: whoever resumes asks exactly the same again, and never something that nobody knows was asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from fedtwin_server.checkpoint import decode_state, encode_arrays, encode_state
from fedtwin_server.errors import RunError
from fedtwin_server.rounds import RoundRecord, RunState
from fedtwin_shared.durable import lock_descriptor, replace_file
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import RoundPlan, Task
from fedtwin_shared.signing import canonical_json

CHECKPOINT: Final = "checkpoint.npz"
PROGRESS: Final = "progress.jsonl"
RELEASE: Final = "release"
EVIDENCE: Final = "evidence"
MODEL: Final = "model.npz"
REPORT: Final = "report.json"
LOCK: Final = "lock"
LOCK_SECONDS: Final = 0.5  # `is_under_way` holds a run for an instant; whoever holds it longer conducts it


class RunStore(Protocol):
    """The state, progress and release of one run. One process at a time; not for several threads."""

    def load(self) -> RunState:
        """Return the state that was saved last. Raises `RunError` where there is none or it is damaged."""

    def save(self, state: RunState) -> None:
        """Replace the state. Atomic, and durable on return."""

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append one line of progress for people and programs that follow the run. Not durable on return."""

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        """Write the released model and its report. Durable on return; doing it again replaces both."""

    def prove(self, plan: RoundPlan, evidence: Mapping[str, bytes]) -> None:
        """Keep the verified evidence of a round's updates, by site. Durable on return."""

    def read_evidence(self, record: RoundRecord) -> Mapping[str, bytes]:
        """Return what was kept of that attempt, by site; nothing where nothing readable is."""

    def close(self) -> None:
        """Let other processes have the run. Nothing else is called after it."""


class MemoryRunStore:
    """A store that forgets: for simulations and tests, which read its fields."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.progress: list[Mapping[str, Any]] = []
        self.released: tuple[Parameters, Mapping[str, Any]] | None = None
        self.evidence: dict[tuple[Task, int, int], Mapping[str, bytes]] = {}  # by task, round and attempt

    def load(self) -> RunState:
        """Return the state that was saved last, or the one given at the start."""
        return self.state

    def save(self, state: RunState) -> None:
        """Replace the state."""
        self.state = state

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append one line of progress."""
        self.progress.append(dict(entry))

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        """Keep the released model and its report."""
        self.released = (parameters, report)

    def prove(self, plan: RoundPlan, evidence: Mapping[str, bytes]) -> None:
        """Keep what proves the charges behind a round's updates, by site."""
        self.evidence[plan.task, plan.round, plan.attempt] = dict(evidence)

    def read_evidence(self, record: RoundRecord) -> Mapping[str, bytes]:
        """Return what was kept of that attempt, by site."""
        return self.evidence.get((record.task, record.round, record.attempt), {})

    def close(self) -> None:
        """Nothing to let go of."""


class FileRunStore:
    """The files of one run, held for this process alone until it is closed or ends, however it ends.

    Raises `RunError` where another process holds the run: two coordinators of one run would overwrite each other.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LOCK_SECONDS
        while not lock_descriptor(self._lock):
            if not time.monotonic() < deadline:
                os.close(self._lock)
                raise RunError(file=directory, expected="a run that is not under way", found="one that is")
            time.sleep(LOCK_SECONDS / 10)

    def load(self) -> RunState:
        """Return the state that was saved last. Raises `RunError` where there is none or it is damaged."""
        return read_state(self._directory)

    def save(self, state: RunState) -> None:
        """Replace the state: atomic, and durable on return."""
        replace_file(self._directory / CHECKPOINT, encode_state(state))

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append one line of JSON, on its own line even after a crash in the middle of one."""
        with open(self._directory / PROGRESS, "a+b", opener=_owner_only) as file:
            torn = file.tell() > 0 and not _ends_line(self._directory / PROGRESS)
            file.write(b"\n" * torn + json.dumps(entry, allow_nan=False).encode() + b"\n")

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        """Write the model, then its report: where there is a report, the model beside it is whole."""
        folder = self._directory / RELEASE
        folder.mkdir(exist_ok=True, mode=0o700)
        replace_file(folder / MODEL, encode_arrays(parameters))
        replace_file(folder / REPORT, json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False).encode())

    def prove(self, plan: RoundPlan, evidence: Mapping[str, bytes]) -> None:
        """Write what proves the charges behind a round's updates, by site: whole, and durable on return."""
        folder = self._directory / EVIDENCE
        folder.mkdir(exist_ok=True, mode=0o700)
        content = {site: data.decode() for site, data in sorted(evidence.items())}
        replace_file(folder / f"{plan.task}-{plan.round}-{plan.attempt}.json", canonical_json(content))

    def read_evidence(self, record: RoundRecord) -> Mapping[str, bytes]:
        """Return what was kept of that attempt, by site; nothing where nothing readable is."""
        file = self._directory / EVIDENCE / f"{record.task}-{record.round}-{record.attempt}.json"
        try:
            return {site: str(data).encode() for site, data in json.loads(file.read_bytes()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def close(self) -> None:
        """Let other processes have the run."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_state(directory: Path) -> RunState:
    """Return a run's saved state without holding the run. Raises `RunError` where there is none or it is damaged."""
    file = directory / CHECKPOINT
    try:
        data = file.read_bytes()
    except OSError as err:
        raise RunError(file=file, expected="a checkpoint", found=err.strerror or "none") from err
    try:
        return decode_state(data)
    except RunError as err:
        raise RunError(file=file, field=err.field, expected=err.expected, found=err.found) from err


def is_under_way(directory: Path) -> bool:
    """Return whether a living process holds the run. Holds it for an instant, which an opening store waits for."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return not lock_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _owner_only(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
