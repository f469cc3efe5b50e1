"""A subscriber in a process of its own, to be killed: it keeps each value in a file, synced, before it returns."""

from __future__ import annotations

import os
import signal
import ssl
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from fedtwin_client.ingest.device import Progress
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.mqtt import Broker, Subscriber


class Synced:
    """A keeper of sequence numbers alone, which forgets nobody and knows nothing of before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def keep(self, intake: Intake) -> None:
        self._file.write(intake.batch.sequence.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def progress(self) -> Mapping[str, Progress]:
        return {}

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        return ()


def main(folder: Path, port: int) -> None:
    """Run until SIGTERM."""
    with (folder / "kept").open("ab") as kept:
        gateway = Gateway(folder / "devices.json", Synced(kept), clock=lambda: 1_795_345_200_000)
        tls = ssl.create_default_context(cafile=str(folder / "tls" / "ca.pem"))
        tls.load_cert_chain(folder / "tls" / "gateway.pem", folder / "tls" / "gateway.key")
        subscriber = Subscriber(gateway, Broker(host="localhost", port=port, tls=tls))
        subscriber.start()
        signal.sigwait({signal.SIGTERM})
        subscriber.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(Path(sys.argv[1]), int(sys.argv[2]))
