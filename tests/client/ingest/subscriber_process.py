"""A subscriber in a process of its own, to be killed: it keeps each value in a file, synced, before it returns."""

from __future__ import annotations

import os
import signal
import ssl
import sys
from pathlib import Path

from fedtwin_client.ingest.gateway import Gateway, Sinks
from fedtwin_client.ingest.mqtt import Broker, Subscriber
from fedtwin_client.observation_batch import ObservationBatch


def main(folder: Path, port: int) -> None:
    """Run until SIGTERM."""
    with (folder / "kept").open("ab") as kept:

        def keep(batch: ObservationBatch) -> None:
            kept.write(batch.sequence.tobytes())
            kept.flush()
            os.fsync(kept.fileno())

        sinks = Sinks(
            observations=keep, aside=lambda aside: None, records=lambda device, records: None, gaps=lambda gaps: None
        )
        gateway = Gateway(folder / "devices.json", sinks, clock=lambda: 1_795_345_200_000)
        tls = ssl.create_default_context(cafile=str(folder / "tls" / "ca.pem"))
        tls.load_cert_chain(folder / "tls" / "gateway.pem", folder / "tls" / "gateway.key")
        subscriber = Subscriber(gateway, Broker(host="localhost", port=port, tls=tls))
        subscriber.start()
        signal.sigwait({signal.SIGTERM})
        subscriber.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(Path(sys.argv[1]), int(sys.argv[2]))
