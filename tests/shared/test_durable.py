"""Tests of fedtwin_shared.durable, where it can be with a second process and a disk that gives up half-way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_shared.durable import create_file, lock_descriptor, replace_file, take_lock

# The kernel refuses to make a file longer than this: the write fails half-way, as on a full disk.
_FAIL_HALF_WAY = """
import pathlib, resource, signal, sys
from fedtwin_shared.durable import replace_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    replace_file(pathlib.Path(sys.argv[1]), b"n" * 10_000)
except OSError:
    sys.exit(7)
"""
_HOLD = """
import pathlib, sys
from fedtwin_shared.durable import take_lock
print("held" if take_lock(pathlib.Path(sys.argv[1])) is not None else "refused", flush=True)
sys.stdin.read()
"""


def test_a_replaced_file_is_the_new_one_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", _FAIL_HALF_WAY, str(path)], timeout=60, check=False)
    assert done.returncode == 7
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_a_draft_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (tmp_path / ".state.new").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(tmp_path / "state", b"new")
    assert victim.read_bytes() == b"untouched"


def test_a_created_file_is_never_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "key"
    create_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lock_is_held_against_another_process_until_that_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert take_lock(path) is None
        holder.kill()
        holder.wait(timeout=30)
    descriptor = take_lock(path)
    assert descriptor is not None
    os.close(descriptor)


def test_a_lock_is_held_against_this_process_too(tmp_path: Path) -> None:
    first = take_lock(tmp_path / "lock")
    assert first is not None
    assert take_lock(tmp_path / "lock") is None
    os.close(first)
    second = os.open(tmp_path / "lock", os.O_RDWR)
    assert lock_descriptor(second)
    os.close(second)
