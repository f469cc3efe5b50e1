"""`fedtwin simulate bench ingest`: what the node's front door takes, each case beside its baseline where it has one.

The node's half runs in this process, the load generator in another one; the keeper counts and hands on. Parsers are
measured in processor time, since they wait for nothing; everything with a socket in wall time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from fedtwin_client.ingest.broker import find_broker
from fedtwin_simulations.broker_bench import time_broker
from fedtwin_simulations.ingest_site import make_site
from fedtwin_simulations.parser_bench import time_parsers
from fedtwin_simulations.results import Bench
from fedtwin_simulations.stream_bench import time_stream

Say = Callable[[str], None]


def bench_ingest(say: Say) -> Bench:
    """Measure parsers, the gRPC stream and, where mosquitto is installed, MQTT."""
    say("parsers")
    rows = [*time_parsers()]
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        site = make_site(Path(folder))
        say("gRPC stream")
        rows.append(time_stream(site))
        if find_broker() is not None:
            say("MQTT through mosquitto with TLS")
            rows += time_broker(site)
    return Bench(bench="ingest", rows=tuple(rows))
