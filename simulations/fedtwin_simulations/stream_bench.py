"""What one gRPC stream brings, judged and handed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
import grpc.aio

from fedtwin_client.ingest import grpc_stream
from fedtwin_client.ingest.ingest_pb2 import Batch, Kind
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_simulations.ingest_site import (
    DEVICE,
    HOST,
    PATIENCE,
    RESULTS,
    TOGETHER,
    Site,
    beside,
    now,
    open_gateway,
    rate_row,
)
from fedtwin_simulations.results import BenchRow

GRPC_GOAL: Final = 150_000


def time_stream(site: Site, *, batches: int = 1500) -> BenchRow:
    """Measure observations a second over one stream, from the first batch taken to the last."""
    times: list[float] = []
    counted = 0

    def keep(batch: ObservationBatch) -> None:
        nonlocal counted
        counted += len(batch)
        times.append(time.perf_counter())

    async def listen() -> None:
        with ThreadPoolExecutor(1) as executor:
            server, port = await grpc_stream.listen(
                open_gateway(site, keep),
                executor,
                address=f"{HOST}:0",
                authority=site.file("ca.pem").read_bytes(),
                certificate=site.file(f"{HOST}.pem").read_bytes(),
                private_key=site.file(f"{HOST}.key").read_bytes(),
            )
            with beside(send_batches, site, port, batches):
                until = time.monotonic() + PATIENCE
                while len(times) < batches and time.monotonic() < until:
                    await asyncio.sleep(0.02)
            await server.stop(None)

    asyncio.run(listen())
    rate = (counted - TOGETHER) / (times[-1] - times[0])
    return rate_row("gRPC, mutual TLS, batches of 256, judged and handed on", rate, GRPC_GOAL)


def send_batches(site: Site, port: int, number: int) -> None:
    """Send so many batches of 256 readings over one stream, and wait for all receipts: the load generator."""
    kinds = [Kind(code=code, unit=unit) for code, _, unit in RESULTS]
    columns = Batch(
        kinds=kinds,
        time=range(TOGETHER),
        value=[float(RESULTS[at % 6][1]) for at in range(TOGETHER)],
        patient=[at % 50 for at in range(TOGETHER)],
        kind=[at % 6 for at in range(TOGETHER)],
    )
    patients, base = [f"p{at}" for at in range(50)], now() - 10_000
    made = []
    for at in range(number):
        batch = Batch(number=at, base_time=base, first_sequence=at * TOGETHER, patients=patients)
        batch.MergeFrom(columns)
        made.append(batch)

    async def send() -> AsyncIterator[Batch]:
        for batch in made:
            yield batch

    async def talk() -> None:
        credentials = grpc.ssl_channel_credentials(
            *(site.file(name).read_bytes() for name in ("ca.pem", f"{DEVICE}.key", f"{DEVICE}.pem"))
        )
        async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
            async for _ in grpc_stream.open_stream(channel, send()):
                pass

    asyncio.run(talk())
