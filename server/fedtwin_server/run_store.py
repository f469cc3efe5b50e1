"""Where a run's state lives between rounds: in memory for simulations and tests, in files at a coordinator.

Design note: one store is one run. What is stored names the next round and attempt, so a plan is on disk before its
messages go out: whoever resumes asks exactly the same again, and never something that nobody knows was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedtwin_server.rounds import RunState
from fedtwin_shared.models import Parameters


class RunStore(Protocol):
    """The state, progress and release of one run. One process at a time; not for several threads."""

    def load(self) -> RunState:
        """Return the state that was saved last. Raises `ConfigurationError` where there is none or it is damaged."""

    def save(self, state: RunState) -> None:
        """Replace the state. Atomic, and durable on return."""

    def note(self, entry: Mapping[str, Any]) -> None:
        """Append one line of progress for people and programs that follow the run. Not durable on return."""

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        """Write the released model and its report. Durable on return; doing it again replaces both."""


class MemoryRunStore:
    """A store that forgets: for simulations and tests, which read its fields."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.progress: list[Mapping[str, Any]] = []
        self.released: tuple[Parameters, Mapping[str, Any]] | None = None

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
