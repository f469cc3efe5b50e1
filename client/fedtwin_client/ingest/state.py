"""What a gateway says of itself to whoever may read its directory: counts, no ids."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_shared.durable import take_lock

LOCK: Final = "gateway.lock"
FRESH: Final = 15_000  # milliseconds; it is written every second


def is_running(directory: HospitalDirectory) -> bool:
    """Return whether a gateway of this directory runs."""
    if not (directory.node / LOCK).exists():
        return False
    lock = take_lock(directory.node / LOCK)
    if lock is not None:
        os.close(lock)
    return lock is None


def read_state(directory: HospitalDirectory) -> Mapping[str, Any] | None:
    """Return what the gateway wrote of itself last, and whether it runs; None: it never ran."""
    try:
        state: dict[str, Any] = json.loads(directory.gateway_state.read_bytes())
    except (OSError, ValueError):
        return None
    return {"running": is_running(directory), **state}


def is_healthy(state: Mapping[str, Any] | None, *, now: int) -> bool:
    """Return whether a gateway runs, has its store and its broker, and wrote so lately; `now`: ms since 1970 UTC."""
    if state is None:
        return False
    fresh = now - int(state["written"]) <= FRESH
    return bool(state["running"] and fresh and state["store"] and state["broker"] is not False)


if __name__ == "__main__":  # for the health check of a container: python -m fedtwin_client.ingest.state DIRECTORY
    found = read_state(read_directory(Path(sys.argv[1])))
    sys.exit(0 if is_healthy(found, now=time.time_ns() // 1_000_000) else 1)
