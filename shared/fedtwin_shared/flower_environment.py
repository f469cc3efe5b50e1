"""The environment that every Flower process of ours gets: offline, with a directory of its own, and its programs found.

Strings only: this module does not import Flower, so both sides may use it.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Final

# No telemetry, no question to a package index, no installing of what a bundle asks for. Flower reads these at import.
FLOWER_OFFLINE: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
LOOPBACK_HOSTS: Final = "127.0.0.1,localhost,::1"  # never through a proxy of the environment


def flower_environment(home: Path) -> dict[str, str]:
    """What to lay over the parent's environment for one Flower process with the home directory `home`."""
    programs = sysconfig.get_path("scripts")
    return {
        **FLOWER_OFFLINE,
        "FLWR_HOME": str(home),
        "NO_PROXY": LOOPBACK_HOSTS,
        "no_proxy": LOOPBACK_HOSTS,
        # Flower starts its own programs by bare name.
        "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath))),
        "PYTHONUNBUFFERED": "1",
    }


def flower_program(name: str) -> str:
    """The absolute path of one of Flower's programs in the running interpreter's environment."""
    return str(Path(sysconfig.get_path("scripts")) / name)
