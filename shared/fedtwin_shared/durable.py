"""Files that a crash leaves whole, and that one process at a time may hold."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, readable by its owner only.

    - atomic: whoever reads `path` finds the old bytes or the new ones
    - durable on return: file and folder are synced
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        _write(draft, data, os.O_TRUNC | os.O_NOFOLLOW)
        # A crash before this line leaves the old file; a crash after it the new one.
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> None:
    """Write `data` to a new file, readable by its owner only before its first byte is written.

    - an existing file is never overwritten (`FileExistsError`)
    - durable on return: file and folder are synced
    """
    _write(path, data, os.O_EXCL)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int | None:
    """Return a descriptor that holds `path` until it is closed or the process ends, however it ends; or None.

    - None where another process, or another part of this one, holds it
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if lock_descriptor(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def lock_descriptor(descriptor: int) -> bool:
    """Return whether the open file is now held by this descriptor alone, until it is closed (flock(2))."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, data: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
