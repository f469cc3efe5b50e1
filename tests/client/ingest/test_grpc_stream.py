"""The gRPC stream over a real socket with mutual TLS: a receipt means kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest import grpc_stream
from fedtwin_client.ingest.grpc_stream import listen, open_stream, read_batch
from fedtwin_client.ingest.ingest_pb2 import Batch, Kind, Receipt
from fedtwin_client.ingest.registry import read_registry, set_state, write_registry
from tests.client.ingest.bedside import NOW, Authority, Certified, Kept, make_device, make_gateway
from tests.client.ingest.foreign import INPUTS, judge


def make_batch(number: int, *, who: str = "p1", size: int = 4, **changes: Any) -> Batch:
    fields: dict[str, Any] = {
        "number": number,
        "base_time": NOW - 10_000,
        "first_sequence": number * size,
        "patients": [who],
        "kinds": [Kind(code="mdc:147842", unit="/min")],
        "time": list(range(size)),
        "value": [80.0] * size,
        "patient": [0] * size,
        "kind": [0] * size,
    }
    return Batch(**{**fields, **changes})


def test_the_generated_code_is_that_of_the_protocol_file(tmp_path: Path) -> None:
    folder = Path(grpc_stream.__file__).parent
    root = folder.parents[1]
    into = [f"-I{root}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(folder / "ingest.proto")]
    assert protoc.main(["protoc", *into]) == 0
    for name in ("ingest_pb2.py", "ingest_pb2.pyi"):
        assert (tmp_path / "fedtwin_client" / "ingest" / name).read_text() == (folder / name).read_text()


def test_a_receipt_means_that_the_batch_is_kept(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    server, monitor, stranger = (authority.certify(name) for name in ("localhost", "monitor", "stranger"))
    kept = Kept()
    gateway = make_gateway(tmp_path, kept, make_device("monitor", monitor.der, frozenset({"p1"})))

    async def say(who: Certified, port: int, *batches: Batch) -> list[Receipt]:
        credentials = grpc.ssl_channel_credentials(
            authority.certificate.read_bytes(), who.private_key.read_bytes(), who.certificate.read_bytes()
        )

        async def send() -> AsyncIterator[Batch]:
            for batch in batches:
                yield batch

        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            return [receipt async for receipt in open_stream(channel, send())]

    async def talk() -> None:
        with ThreadPoolExecutor(1) as executor:
            listener, port = await listen(
                gateway,
                executor,
                address="localhost:0",
                authority=authority.certificate.read_bytes(),
                certificate=server.certificate.read_bytes(),
                private_key=server.private_key.read_bytes(),
            )
            try:
                receipts = await say(monitor, port, *(make_batch(number) for number in range(10)))
                assert [(one.number, one.accepted) for one in receipts] == [(number, 4) for number in range(10)]
                assert len(kept.values()) == 40
                again, foreign, bad = await say(
                    monitor, port, make_batch(3), make_batch(10, who="p2"), make_batch(11, kind=[7] * 4)
                )
                assert (again.duplicate, foreign.set_aside) == (4, 4)
                assert bad.refused
                kept.broken = True
                assert (await say(monitor, port, make_batch(11)))[0].refused
                kept.broken = False
                assert (await say(monitor, port, make_batch(11)))[0].accepted == 4
                with pytest.raises(grpc.aio.AioRpcError) as denied:
                    await say(stranger, port, make_batch(0))
                assert denied.value.code() == grpc.StatusCode.PERMISSION_DENIED
                path = tmp_path / "devices.json"
                write_registry(path, set_state(read_registry(path), "monitor", "revoked"))
                with pytest.raises(grpc.aio.AioRpcError):
                    await say(monitor, port, make_batch(12))
            finally:
                await listener.stop(None)

    asyncio.run(asyncio.wait_for(talk(), 30))
    totals = gateway.totals
    assert len(kept.values()) == 44
    assert totals.accepted + totals.set_aside + totals.duplicate + totals.refused == totals.received == 44 + 8 + 4


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_crashes_it(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        base = make_batch(1).SerializeToString()
        start, length = data.draw(st.integers(0, len(base))), data.draw(st.integers(0, 8))
        try:
            batch = Batch.FromString(base[:start] + data.draw(st.binary(max_size=8)) + base[start + length :])
        except DecodeError:  # the server answers it before us
            batch = make_batch(1)
    else:
        numbers = st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=3)
        batch = make_batch(
            data.draw(st.integers(0, 5)),
            size=2,
            base_time=data.draw(st.integers(-(2**63), 2**63 - 1)),
            first_sequence=data.draw(st.integers(0, 2**64 - 1)),
            value=data.draw(st.lists(st.floats(width=32), min_size=1, max_size=3)),
            patient=data.draw(numbers),
            kind=data.draw(numbers),
            quality=data.draw(st.one_of(st.just([]), numbers)),
        )
    readings = read_batch(batch)
    if isinstance(readings, str):
        assert readings == grpc_stream.UNREADABLE
    else:
        judged = judge(readings)
        assert len(judged.batch) + len(judged.set_aside) == len(readings) == len(batch.value)
