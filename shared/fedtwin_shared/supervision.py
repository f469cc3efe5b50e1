"""Child processes of one machine: started, watched, restarted, stopped and reaped. Standard library only.

Design note: a hospital runs a transport and an executor, a coordinator runs a link, an executor and a front. Each side
describes its processes as frozen `Command` records, and one `Supervisor` runs them in the foreground, so that systemd,
compose and a terminal all see a single process with a clean SIGTERM. Every child leads a session of its own: a Ctrl-C
on the terminal reaches the supervisor alone, which then asks each child by its own process id, and whatever a child
has left behind dies with its group. Children are always reaped: Flower takes an unreaped zombie for alive.
A supervisor that is itself killed with SIGKILL cannot stop its children: our own programs ask the kernel to be told
(`end_with_parent`), everybody else's are killed by systemd and compose with their control group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO, Final, Self

from fedtwin_shared.errors import FedtwinError

STEP_SECONDS: Final = 0.1  # between two looks at the children: short for a person, nothing for the processor
STRAGGLER_SECONDS: Final = 2.0  # what a stopped child left behind has this long to end by itself
PR_SET_PDEATHSIG: Final = 1  # prctl(2)
SUPERVISOR_VARIABLE: Final = "FEDTWIN_SUPERVISOR"  # its process id, for its children
LOG_BYTES: Final = 32 * 1024 * 1024  # a log above this is set aside as <name>.1 when its process (re)starts


class SupervisionError(FedtwinError):
    """A process could not be started, or something did not become ready in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process to run. `environment` is laid over the supervisor's own; no secret belongs in `arguments`."""

    name: str
    arguments: tuple[str, ...]
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    restarts: bool = True  # False: run once, stay down after an exit


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How soon an exited child is started again: a delay that doubles, and is forgotten after a healthy stretch."""

    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 15.0
    healthy_after_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.first_delay_seconds <= self.longest_delay_seconds:
            raise ValueError("expected 0 < first_delay_seconds <= longest_delay_seconds")
        if not self.healthy_after_seconds > 0:
            raise ValueError("expected healthy_after_seconds > 0")

    def delay_after(self, quick_exits: int) -> float:
        """Seconds to wait after `quick_exits` (>= 1) exits in a row, each before the child was healthy.

        >>> [RestartPolicy().delay_after(exits) for exits in (1, 2, 3, 50)]
        [0.5, 1.0, 2.0, 15.0]
        """
        doublings = min(quick_exits - 1, 60)  # beyond this a float would overflow; the cap was reached long before
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0**doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """What an operator may know about one child: `process_id` and `exit_code` are None where there is none."""

    name: str
    process_id: int | None
    starts: int
    exit_code: int | None


class _Child:
    """One command and the process that runs it now."""

    def __init__(self, command: Command, policy: RestartPolicy) -> None:
        self.command = command
        self.policy = policy
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.starts = 0
        self.quick_exits = 0
        self.exit_code: int | None = None
        self.due_at: float | None = 0.0  # when to start (again); None: running, or down for good

    def start(self) -> None:
        environment = {**os.environ, **self.command.environment, SUPERVISOR_VARIABLE: str(os.getpid())}
        try:
            with _open_log(self.command.log_file) as log:
                self.process = subprocess.Popen(
                    self.command.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise SupervisionError(
                field=self.command.name,
                expected=f"a program that starts: {self.command.arguments[0]}",
                found=type(error).__name__,
            ) from error
        self.started_at = time.monotonic()
        self.starts += 1
        self.due_at = None

    def step(self, now: float) -> None:
        if self.process is not None and (code := self.process.poll()) is not None:  # poll() also reaps
            _kill_group(self.process.pid, signal.SIGTERM)
            self.process, self.exit_code = None, code
            healthy = now - self.started_at >= self.policy.healthy_after_seconds
            self.quick_exits = 1 if healthy else self.quick_exits + 1
            self.due_at = now + self.policy.delay_after(self.quick_exits) if self.command.restarts else None
        if self.process is None and self.due_at is not None and now >= self.due_at:
            self.start()

    def status(self) -> ChildStatus:
        process_id = None if self.process is None else self.process.pid
        return ChildStatus(name=self.command.name, process_id=process_id, starts=self.starts, exit_code=self.exit_code)


class Supervisor:
    """Runs commands as child processes. One thread at a time calls its methods.

    Guarantees:
      - start() either starts every command or leaves none running
      - a child that exits is reaped and, unless its command says otherwise, started again after a bounded delay
      - after stop() no child and no process of a child's group runs, and every child is reaped
    """

    def __init__(self, commands: Sequence[Command], *, policy: RestartPolicy | None = None) -> None:
        if len({command.name for command in commands}) != len(commands):
            raise ValueError("expected different names of commands")
        self._children = [_Child(command, policy or RestartPolicy()) for command in commands]

    def start(self) -> None:
        """Start every command, in order. Raises SupervisionError where a program cannot be started."""
        try:
            for child in self._children:
                if child.process is None:
                    child.start()
        except BaseException:
            self.stop()
            raise

    def step(self) -> None:
        """Reap what has exited and start what is due again. A program that no longer starts counts as an exit."""
        now = time.monotonic()
        for child in self._children:
            try:
                child.step(now)
            except SupervisionError:
                child.quick_exits += 1
                child.due_at = now + child.policy.delay_after(child.quick_exits)

    def run(self, stop: threading.Event) -> None:
        """Watch the children until `stop` is set, then stop them."""
        try:
            while not stop.wait(STEP_SECONDS):
                self.step()
        finally:
            self.stop()

    def status(self) -> tuple[ChildStatus, ...]:
        """The children in the order of their commands."""
        return tuple(child.status() for child in self._children)

    def stop(self, *, deadline_seconds: float = 10.0) -> None:
        """Ask every child to end (SIGTERM, last started first), kill what has not ended in time, reap everything."""
        running = [child for child in reversed(self._children) if child.process is not None]
        for child in self._children:
            child.due_at = None
        for child in running:
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + deadline_seconds
        for child in running:
            process = child.process
            assert process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            _end_group(process.pid, min(deadline, time.monotonic() + STRAGGLER_SECONDS))
            child.exit_code = process.wait()
            child.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; the former handlers return afterwards. Main thread only."""
    stop = threading.Event()

    def set_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    former = {number: signal.signal(number, set_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the supervisor of this process ends, however it ends; Linux only.

    - a supervisor that has ended already ends this process at once (`SystemExit`)
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.environ.get(SUPERVISOR_VARIABLE, str(os.getppid())) != str(os.getppid()):
        raise SystemExit("the supervisor has ended")


def end_with_supervisor() -> None:
    """`end_with_parent` for a program that people start, too: only where a supervisor of ours has started it."""
    if SUPERVISOR_VARIABLE in os.environ:
        end_with_parent()


def wait_until(check: Callable[[], bool], *, what: str, deadline_seconds: float, interval_seconds: float = 0.1) -> None:
    """Return once `check()` is true; raise SupervisionError naming `what` when the deadline has passed.

    Guarantees:
      - `check` runs at least once, and never more often than once per interval
    """
    deadline = time.monotonic() + deadline_seconds
    while not check():
        if not time.monotonic() < deadline:
            raise SupervisionError(field=what, expected=f"ready within {deadline_seconds:g} s", found="not ready")
        time.sleep(interval_seconds)


def _open_log(path: Path) -> BinaryIO:
    """The log, for appending and for its owner alone (0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def _kill_group(group: int, number: signal.Signals) -> bool:
    """Signal every process of the group; False where none is left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _end_group(group: int, deadline: float) -> None:
    """End what a child left in its group: SIGTERM until the deadline, then SIGKILL."""
    while _kill_group(group, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(STEP_SECONDS)
    _kill_group(group, signal.SIGKILL)
