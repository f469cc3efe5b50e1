"""Supervision with real processes: each test starts small Python children and looks at them through their ids."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.supervision import (
    Command,
    RestartPolicy,
    SupervisionError,
    Supervisor,
    stop_on_signals,
    wait_until,
)

QUICK = RestartPolicy(first_delay_seconds=0.05, longest_delay_seconds=0.2)
SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
FORKING = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print(child.pid, flush=True); time.sleep(60)"
)


def command(directory: Path, name: str, code: str, *, restarts: bool = True, **environment: str) -> Command:
    return Command(
        name=name,
        arguments=(sys.executable, "-c", code),
        log_file=directory / f"{name}.log",
        environment=environment,
        restarts=restarts,
    )


def exists(process_id: int) -> bool:
    """Whether the process is there at all, a zombie included."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def runs(process_id: int) -> bool:
    """Whether the process is there and not a zombie that its parent has yet to reap."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def log_of(directory: Path, name: str) -> str:
    path = directory / f"{name}.log"
    return path.read_text() if path.exists() else ""


def wait_for_log(directory: Path, name: str, text: str) -> None:
    wait_until(lambda: text in log_of(directory, name), what=f"log of {name}", deadline_seconds=10)


def test_start_either_starts_every_command_or_leaves_none_running(tmp_path: Path) -> None:
    good = command(tmp_path, "good", SLEEP)
    bad = Command(name="bad", arguments=(str(tmp_path / "no-such-program"),), log_file=tmp_path / "bad.log")
    supervisor = Supervisor([good, bad])
    with pytest.raises(SupervisionError, match="bad: expected a program that starts"):
        supervisor.start()
    assert [status.process_id for status in supervisor.status()] == [None, None]
    assert supervisor.status()[0].starts == 1


def test_an_exited_child_is_reaped_and_started_again_after_a_bounded_delay(tmp_path: Path) -> None:
    with Supervisor([command(tmp_path, "child", SLEEP)], policy=QUICK) as supervisor:
        first = supervisor.status()[0].process_id
        assert first is not None
        os.kill(first, signal.SIGKILL)

        def restarted() -> bool:
            supervisor.step()
            return supervisor.status()[0].starts == 2

        wait_until(restarted, what="restart", deadline_seconds=10, interval_seconds=0.02)
        assert not exists(first)  # reaped: a zombie would still be there
        assert supervisor.status()[0].exit_code == -signal.SIGKILL


def test_a_command_that_does_not_restart_stays_down(tmp_path: Path) -> None:
    once = command(tmp_path, "once", "raise SystemExit(7)", restarts=False)
    with Supervisor([once], policy=QUICK) as supervisor:

        def exited() -> bool:
            supervisor.step()
            return supervisor.status()[0].exit_code == 7

        wait_until(exited, what="exit", deadline_seconds=10, interval_seconds=0.02)
        time.sleep(0.3)
        supervisor.step()
        assert supervisor.status()[0].starts == 1


def test_after_stop_no_child_runs_and_every_child_is_reaped(tmp_path: Path) -> None:
    commands = [command(tmp_path, "polite", SLEEP), command(tmp_path, "stubborn", STUBBORN)]
    supervisor = Supervisor(commands)
    supervisor.start()
    process_ids = [status.process_id for status in supervisor.status()]
    for name in ("polite", "stubborn"):
        wait_for_log(tmp_path, name, "up")
    before = time.monotonic()
    supervisor.stop(deadline_seconds=1.0)
    assert time.monotonic() - before < 4
    assert all(process_id is not None and not exists(process_id) for process_id in process_ids)
    assert [status.exit_code for status in supervisor.status()] == [-signal.SIGTERM, -signal.SIGKILL]


def test_after_stop_no_process_of_a_childs_group_runs(tmp_path: Path) -> None:
    supervisor = Supervisor([command(tmp_path, "forking", FORKING)])
    supervisor.start()
    wait_for_log(tmp_path, "forking", "\n")
    grandchild = int(log_of(tmp_path, "forking"))
    assert runs(grandchild)
    supervisor.stop()
    wait_until(lambda: not runs(grandchild), what="grandchild gone", deadline_seconds=5)


def test_environment_is_laid_over_the_supervisors_own_and_the_log_is_private(tmp_path: Path) -> None:
    code = "import os; print(os.environ['RIM'], 'PATH' in os.environ, flush=True)"
    with Supervisor([command(tmp_path, "child", code, restarts=False, RIM="yes")]):
        wait_for_log(tmp_path, "child", "yes True")
    assert stat.S_IMODE((tmp_path / "child.log").stat().st_mode) == 0o600


def test_run_stops_the_children_when_the_event_is_set(tmp_path: Path) -> None:
    supervisor = Supervisor([command(tmp_path, "child", SLEEP)])
    supervisor.start()
    process_id = supervisor.status()[0].process_id
    assert process_id is not None
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    supervisor.run(stop)
    assert not exists(process_id)


def test_sigterm_to_the_supervising_process_ends_its_children(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from fedtwin_shared.supervision import Command, Supervisor, stop_on_signals
code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
child = Command(name="child", arguments=(sys.executable, "-c", code), log_file=Path({str(tmp_path)!r}) / "child.log")
with stop_on_signals() as stop, Supervisor([child]) as supervisor:
    supervisor.run(stop)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_for_log(tmp_path, "child", "\n")
        child = int(log_of(tmp_path, "child"))
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=10) == 0
        assert not runs(child)
    finally:
        parent.kill()
        parent.wait()


def test_stop_on_signals_restores_the_former_handlers() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(2)
    assert signal.getsignal(signal.SIGTERM) is former


def test_wait_until_checks_at_least_once_and_names_what_was_not_ready() -> None:
    calls: list[int] = []

    def check() -> bool:
        calls.append(1)
        return False

    with pytest.raises(SupervisionError, match=r"the link: expected ready within 0 s"):
        wait_until(check, what="the link", deadline_seconds=0)
    assert len(calls) == 1


def test_two_commands_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different names"):
        Supervisor([command(tmp_path, "same", SLEEP), command(tmp_path, "same", SLEEP)])


@given(st.integers(min_value=1, max_value=10_000))
def test_the_restart_delay_never_shrinks_and_never_exceeds_its_bound(exits: int) -> None:
    policy = RestartPolicy()
    assert policy.first_delay_seconds <= policy.delay_after(exits) <= policy.longest_delay_seconds
    assert policy.delay_after(exits) <= policy.delay_after(exits + 1)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_restart_policy_refuses_what_is_not_positive(value: float) -> None:
    with pytest.raises(ValueError):
        RestartPolicy(first_delay_seconds=value)
    with pytest.raises(ValueError):
        RestartPolicy(healthy_after_seconds=value)
