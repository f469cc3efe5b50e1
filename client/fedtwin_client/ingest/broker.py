"""What a mosquitto broker needs to know: TLS, one identity a device, topics by identity, and limits that lose nothing.

Design note: stock limits drop what a slow subscriber has not fetched (`max_queued_messages` is 1,000) and "unlimited"
ones stall, so every limit is stated. A device is the common name of its certificate and may write under its own topic
only. What the broker has acknowledged and not delivered survives its own restart; saving on every change would cost
most of its speed, so a kill of the broker itself loses at most what came in the second before, which a device knows by
the receipts that it did not get (`mqtt`).
Source: mosquitto.conf(5), mosquitto 2.0.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOPICS: Final = ("senml", "packed")
ANSWERS: Final = ("receipts", "errors")
GATEWAY: Final = "gateway"  # common name of the subscriber's own certificate
IN_FLIGHT: Final = 1000
QUEUED: Final = 1_000_000
QUEUED_BYTES: Final = 1 << 30
MESSAGE_BYTES: Final = 1 << 20
PACKET_BYTES: Final = MESSAGE_BYTES + 1024  # a message, its topic and its number


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFiles:
    """PEM files: the authority that certifies devices, the broker's own certificate and key, and who was revoked."""

    authority: Path
    certificate: Path
    private_key: Path
    revoked: Path | None = None


def find_broker() -> Path | None:
    """Return the mosquitto program of this machine; None: there is none. Debian keeps it where only root looks."""
    found = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
    return None if found is None else Path(found)


def write_broker(folder: Path, files: BrokerFiles, *, host: str, port: int) -> Path:
    """Write the broker's configuration and access list into `folder`, and return the file to start it with."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    access = folder / "access"
    lines = [f"user {GATEWAY}", *(f"topic read fedtwin/+/{topic}" for topic in TOPICS)]
    lines += [f"topic write fedtwin/+/{topic}" for topic in ANSWERS]
    own = [f"pattern write fedtwin/%u/{topic}" for topic in TOPICS]
    own += [f"pattern read fedtwin/%u/{topic}" for topic in ANSWERS]
    access.write_text("\n".join([*lines, "", *own, ""]), encoding="utf-8")
    access.chmod(0o600)
    settings = {
        "listener": f"{port} {host}",
        "cafile": files.authority,
        "certfile": files.certificate,
        "keyfile": files.private_key,
        **({"crlfile": files.revoked} if files.revoked is not None else {}),
        "require_certificate": "true",
        "use_identity_as_username": "true",
        "tls_version": "tlsv1.2",  # and above
        "allow_anonymous": "false",
        "acl_file": access,
        "persistence": "true",
        "persistence_location": f"{folder}/",
        "autosave_interval": 1,
        "max_inflight_messages": IN_FLIGHT,
        "max_queued_messages": QUEUED,
        "max_queued_bytes": QUEUED_BYTES,
        "max_packet_size": PACKET_BYTES,
        "persistent_client_expiration": "31d",
        "log_type": "warning",
    }
    path = folder / "mosquitto.conf"
    path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()), encoding="utf-8")
    return path
