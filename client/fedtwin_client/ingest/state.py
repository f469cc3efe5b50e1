"""What a gateway says of itself to whoever may read its directory: counts, no ids."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

from fedtwin_client.config import HospitalDirectory
from fedtwin_shared.durable import take_lock

LOCK: Final = "gateway.lock"


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
