"""The gRPC door (`ingest.proto`): batches over one stream, a receipt for each once it is safe, mutual TLS.

Design note: a stream's next batch is read when the last one is safe, so HTTP/2's own flow control slows a sender down
and nothing queues here. A device is known by its certificate, and looked up for every batch: a revocation ends its
stream. `ingest_pb2` is generated from the protocol file and checked in, so that no hospital needs a compiler.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Final

import grpc
import grpc.aio
import numpy as np

from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.ingest_pb2 import Batch, Receipt
from fedtwin_client.ingest.intake import NOT_REGISTERED
from fedtwin_client.ingest.readings import NO_FAULT, Readings
from fedtwin_client.observation_batch import LATEST, NO_SEQUENCE, Quality

SERVICE: Final = "fedtwin.ingest.v1.Ingest"
METHOD: Final = "Stream"
MAXIMUM_BYTES: Final = 1 << 20
MAXIMUM_STREAMS: Final = 4096
UNREADABLE: Final = "columns do not add up"


def read_batch(batch: Batch) -> Readings | str:
    """Return a batch's readings, or fixed words why it has none. Never raises.

    - columns of different lengths, indices that point nowhere, an id twice: refused whole
    """
    count = len(batch.value)
    columns = (batch.time, batch.patient, batch.kind)
    if any(len(column) != count for column in columns) or len(batch.quality) not in (0, count):
        return UNREADABLE
    patients, kinds = tuple(batch.patients), tuple((kind.code, kind.unit) for kind in batch.kinds)
    patient, kind = np.fromiter(batch.patient, np.uint32, count), np.fromiter(batch.kind, np.uint32, count)
    quality = np.fromiter(batch.quality, np.uint32, count) if len(batch.quality) else np.zeros(count, np.uint32)
    if len(set(patients)) != len(patients) or not -LATEST // 2 < batch.base_time < LATEST // 2:
        return UNREADABLE
    if count and not (
        int(patient.max()) < len(patients) and int(kind.max()) < len(kinds) and int(quality.max()) <= Quality.INVALID
    ):
        return UNREADABLE
    if batch.HasField("first_sequence"):
        if batch.first_sequence + count >= LATEST:
            return UNREADABLE
        sequence = np.arange(batch.first_sequence, batch.first_sequence + count, dtype=np.int64)
    else:
        sequence = np.full(count, NO_SEQUENCE, np.int64)
    return Readings(
        patients=patients,
        kinds=kinds,
        patient=patient.astype(np.int32),
        kind=kind.astype(np.int32),
        time=np.fromiter(batch.time, np.int64, count) + batch.base_time,
        value=np.fromiter(batch.value, np.float64, count),
        sequence=sequence,
        quality=quality.astype(np.uint8),
        fault=np.full(count, NO_FAULT, np.int8),
    )


async def listen(
    gateway: Gateway, executor: Executor, *, address: str, authority: bytes, certificate: bytes, private_key: bytes
) -> tuple[grpc.aio.Server, int]:
    """Listen on `address` (`host:port`) with TLS both ways, all three in PEM; return the started server and its port.

    - whoever shows no certificate of `authority` is not let in; who is not registered is told `PERMISSION_DENIED`
    """

    async def stream(batches: AsyncIterator[Batch], context: grpc.aio.ServicerContext) -> AsyncIterator[Receipt]:
        loop = asyncio.get_running_loop()
        peer = ssl.PEM_cert_to_DER_cert(context.auth_context()["x509_pem_cert"][0].decode())
        async for batch in batches:
            if gateway.registry().find(peer) is None:
                gateway.refuse(NOT_REGISTERED)
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, NOT_REGISTERED)
            yield await loop.run_in_executor(executor, _take, gateway, peer, batch)

    handler = grpc.stream_stream_rpc_method_handler(
        stream, request_deserializer=Batch.FromString, response_serializer=Receipt.SerializeToString
    )
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", MAXIMUM_BYTES)], maximum_concurrent_rpcs=MAXIMUM_STREAMS
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    credentials = grpc.ssl_server_credentials([(private_key, certificate)], authority, require_client_auth=True)
    port = server.add_secure_port(address, credentials)
    await server.start()
    return server, port


def _take(gateway: Gateway, peer: bytes, batch: Batch) -> Receipt:
    readings = read_batch(batch)
    if isinstance(readings, str):
        taken = gateway.refuse(readings)
    else:
        taken = gateway.take(gateway.registry().find(peer), readings)
    return Receipt(
        number=batch.number,
        accepted=taken.accepted,
        set_aside=taken.set_aside + taken.forgotten,
        duplicate=taken.duplicate,
        refused=taken.refused,
    )


def open_stream(channel: grpc.aio.Channel, batches: AsyncIterator[Batch]) -> AsyncIterator[Receipt]:
    """Return the receipts of the batches that a sender puts into one stream."""
    call: AsyncIterator[Receipt] = channel.stream_stream(
        f"/{SERVICE}/{METHOD}",
        request_serializer=Batch.SerializeToString,
        response_deserializer=Receipt.FromString,
    )(batches)
    return call
