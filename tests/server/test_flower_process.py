"""Flower's own programs under our launcher: the same command, frozen objects, an end with the supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_server.errors import RunError
from fedtwin_server.flower_process import flower_command, main
from fedtwin_shared.flower_environment import flower_environment
from fedtwin_shared.supervision import SUPERVISOR_VARIABLE, wait_until
from tests.authority import free_ports


def test_it_is_flowers_own_command(tmp_path: Path) -> None:
    done = subprocess.run(
        flower_command("flwr", "--version"),
        env={**os.environ, **flower_environment(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "1.41.0" in done.stdout


def test_another_program_is_refused() -> None:
    for arguments in ([], ["no-such-program"]):
        with pytest.raises(RunError, match="console commands"):
            main(arguments)


def test_it_ends_when_its_supervisor_does_however_that_ends(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    line = flower_command("flower-superlink", "--insecure", "--isolation=process", "--host=127.0.0.1", f"--port={port}")
    supervisor = (
        "import os, subprocess, sys, time\n"
        f"environment = {{**os.environ, {SUPERVISOR_VARIABLE!r}: str(os.getpid())}}\n"
        "child = subprocess.Popen(sys.argv[1:], env=environment, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        (sys.executable, "-c", supervisor, *line),
        env={**os.environ, **flower_environment(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        started = f"port={port}".encode()
        wait_until(lambda: started in read_command(child), what="the SuperLink", deadline_seconds=30)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    try:
        wait_until(lambda: not read_command(child), what="its end", deadline_seconds=30)
    finally:
        if read_command(child):
            os.kill(child, signal.SIGKILL)


def read_command(process: int) -> bytes:
    """Its command line; empty once it has ended, reaped or not."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
