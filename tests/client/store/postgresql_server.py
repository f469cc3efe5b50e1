"""A PostgreSQL server of a test's own: Debian's programs, a fresh folder, a socket there and no network."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_programs() -> Path | None:
    """The newest server's programs, None where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def running_server(programs: Path) -> Iterator[str]:
    """Yield what libpq needs to reach a new server; it refuses to run as root, so root lends it another account."""
    folder = Path(tempfile.mkdtemp(prefix="fedtwin-pg-"))  # a socket's path may have 107 characters: not the test's
    account = pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else None
    if account is not None:
        os.chown(folder, account, -1)

    def run(name: str, *arguments: str) -> None:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        command = [str(programs / name), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment, user=account)

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", "fedtwin", "--no-sync")
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -h ''", "start")
        try:
            yield f"host={folder} user=fedtwin dbname=postgres"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
