"""Simulated devices and feeds: each keeps what it has measured until it is acknowledged, and sends it again until then.

Design note: this is what a device has to do that must lose nothing. All run in one event loop; a broken connection is
made again. "Acknowledged" is what the node itself says: HL7 AA, HTTP 200, a gRPC receipt, and for MQTT the numbers
on the device's `receipts` topic, since the broker's PUBACK speaks for the broker alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from fedtwin_client.ingest import grpc_stream, mllp, mqtt_packets, packed
from fedtwin_client.ingest.ingest_pb2 import Batch, Kind
from fedtwin_client.ingest.mqtt_packets import ProtocolError
from fedtwin_client.ward.series import Stay

RETRY_SECONDS: Final = 0.3
RESEND_SECONDS: Final = 2.0  # without a receipt
ANSWER_SECONDS: Final = 10.0
KEEP_ALIVE: Final = 60
READ_BYTES: Final = 1 << 16
UCUM: Final = "http://unitsofmeasure.org"
LOINC: Final = "http://loinc.org"

_LOST: Final = (OSError, EOFError, TimeoutError, ssl.SSLError, ProtocolError, grpc.RpcError, ValueError)


@dataclass(slots=True, repr=False)
class Bed:
    """One patient's device: what it has to send, in parts, when each part is due, and what was acknowledged.

    begin: milliseconds since 1970 UTC of offset 0. size: rows of a part. seconds: over which the parts become due.
    """

    device: str
    stay: Stay
    begin: int
    size: int
    seconds: float
    started: float
    kept: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.zeros(len(self.stay), bool)

    @property
    def parts(self) -> range:
        """Numbers of the parts."""
        return range(-(-len(self.stay) // self.size))

    def rows(self, part: int) -> slice:
        """Return the rows of a part."""
        return slice(part * self.size, min((part + 1) * self.size, len(self.stay)))

    def due(self, part: int) -> float:
        """Return when a part is due, on the event loop's clock."""
        return self.started + self.seconds * part / len(self.parts)

    def left(self) -> list[int]:
        """Return the parts that were not acknowledged."""
        return [part for part in self.parts if not self.kept[self.rows(part)].all()]

    def time(self, row: int) -> datetime:
        """Return when a row was measured."""
        return datetime.fromtimestamp((self.begin + int(self.stay.offset[row])) / 1000, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where a sender reaches the node, and the folder of its certificates."""

    host: str
    port: int
    folder: Path

    def tls(self, name: str = "") -> ssl.SSLContext:
        """Return a context that believes the hospital's authority, and shows the certificate of `name`."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if name:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


async def send_mqtt(bed: Bed, way: Way) -> None:
    """Publish a bed's parts at QoS 1, in SenML or packed, until every number has its receipt."""
    tls = way.tls(bed.device)
    while bed.left():
        with contextlib.suppress(*_LOST):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(way.host, way.port, ssl=tls), ANSWER_SECONDS
            )
            try:
                writer.write(mqtt_packets.write_connect(bed.device, clean=True, keep_alive=KEEP_ALIVE))
                topic = f"fedtwin/{bed.device}/receipts"
                writer.write(mqtt_packets.write_subscribe(1, [topic], quality=0))
                await _publish_until_kept(bed, reader, writer)
                writer.write(mqtt_packets.DISCONNECT)
            finally:
                writer.close()
        await asyncio.sleep(RETRY_SECONDS if bed.left() else 0)


async def _publish_until_kept(bed: Bed, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop, sent, rest, number, subscribed = asyncio.get_running_loop(), dict[int, float](), b"", 1, False
    form = "packed" if len(bed.device) % 2 else "senml"
    while left := bed.left():
        now = loop.time()
        for part in left:
            if subscribed and bed.due(part) <= now and sent.get(part, -RESEND_SECONDS) <= now - RESEND_SECONDS:
                number = number % 65_535 + 1
                payload = _write_packed(bed, part) if form == "packed" else _write_senml(bed, part)
                writer.write(
                    mqtt_packets.write_publication(f"fedtwin/{bed.device}/{form}", payload, quality=1, number=number)
                )
                sent[part] = now
        await writer.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            data = await asyncio.wait_for(reader.read(READ_BYTES), RETRY_SECONDS)
            if not data:
                raise EOFError
            packets, rest = mqtt_packets.split_packets(rest + data, maximum=READ_BYTES)
            for packet in packets:
                subscribed |= packet.kind == mqtt_packets.SUBACK
                if packet.kind == mqtt_packets.PUBLISH:
                    for first, last in json.loads(mqtt_packets.read_publication(packet).payload)["kept"]:
                        bed.kept[first : last + 1] = True


def _write_senml(bed: Bed, part: int) -> bytes:
    rows = range(len(bed.stay))[bed.rows(part)]
    records: list[dict[str, object]] = []
    for row in rows:
        code, unit = bed.stay.kind(row)
        time = (bed.begin + int(bed.stay.offset[row])) / 1000
        name = f"{bed.stay.patient}/{code}"
        records.append({"n": name, "u": unit, "t": time, "v": float(str(bed.stay.value[row]))})
    records[0]["sq"] = rows[0]
    return json.dumps(records).encode()


def _write_packed(bed: Bed, part: int) -> bytes:
    rows = bed.rows(part)
    kinds, which = _kinds(bed, rows)
    return packed.write_message(
        patients=[bed.stay.patient],
        kinds=kinds,
        base=bed.begin,
        time=bed.stay.offset[rows],
        value=bed.stay.value[rows],
        patient=np.zeros(len(which)),
        kind=which,
        first=rows.start,
    )


def _kinds(bed: Bed, rows: slice) -> tuple[list[tuple[str, str]], list[int]]:
    found = [bed.stay.kind(row) for row in range(len(bed.stay))[rows]]
    kinds = list(dict.fromkeys(found))
    return kinds, [kinds.index(one) for one in found]


async def send_grpc(bed: Bed, way: Way) -> None:
    """Send a bed's parts over a stream until each has its receipt."""
    credentials = grpc.ssl_channel_credentials(
        *((way.folder / name).read_bytes() for name in ("ca.pem", f"{bed.device}.key", f"{bed.device}.pem"))
    )
    while bed.left():
        with contextlib.suppress(*_LOST):
            async with grpc.aio.secure_channel(f"{way.host}:{way.port}", credentials) as channel:
                async for receipt in grpc_stream.open_stream(channel, _batches(bed)):
                    if not receipt.refused:
                        bed.kept[bed.rows(receipt.number)] = True
        await asyncio.sleep(RETRY_SECONDS if bed.left() else 0)


async def _batches(bed: Bed) -> AsyncIterator[Batch]:
    for part in bed.left():
        await _wait_for(bed.due(part))
        rows = bed.rows(part)
        kinds, which = _kinds(bed, rows)
        yield Batch(
            number=part,
            base_time=bed.begin,
            first_sequence=rows.start,
            patients=[bed.stay.patient],
            kinds=[Kind(code=code, unit=unit) for code, unit in kinds],
            time=bed.stay.offset[rows].tolist(),
            value=bed.stay.value[rows].tolist(),
            patient=[0] * len(which),
            kind=which,
        )


async def send_hl7(beds: Sequence[Bed], way: Way, feed: str) -> None:
    """Send several beds' parts as ORU^R01 over one connection, one after the other, each until it is answered AA."""
    tls = way.tls(feed)
    while parts := _in_order(beds):
        with contextlib.suppress(*_LOST):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(way.host, way.port, ssl=tls), ANSWER_SECONDS
            )
            try:
                for bed, part in parts:
                    await _wait_for(bed.due(part))
                    writer.write(mllp.frame(_write_oru(bed, part)))
                    await writer.drain()
                    answer = await asyncio.wait_for(reader.readuntil(mllp.END), ANSWER_SECONDS)
                    if b"\rMSA|AA|" in answer:
                        bed.kept[bed.rows(part)] = True
            finally:
                writer.close()
        await asyncio.sleep(RETRY_SECONDS if _in_order(beds) else 0)


def _write_oru(bed: Bed, part: int) -> bytes:
    rows = range(len(bed.stay))[bed.rows(part)]
    lines = [
        rf"MSH|^~\&|ENGINE|WARD|NODE|SITE|{_hl7_time(bed, rows[0])}||ORU^R01^ORU_R01|{bed.device}.{part}|P|2.5.1",
        f"PID|1||{bed.stay.patient}^^^HOSP^MR",
        "OBR|1|||VITALS",
    ]
    for number, row in enumerate(rows, 1):
        code, unit = bed.stay.kind(row)
        time = _hl7_time(bed, row)
        lines.append(f"OBX|{number}|NM|{code}^x^LN||{bed.stay.value[row]}|{unit}^^UCUM|||||F|||{time}")
    return "".join(f"{line}\r" for line in lines).encode()


def _hl7_time(bed: Bed, row: int) -> str:
    time = bed.time(row)
    return f"{time:%Y%m%d%H%M%S}.{time.microsecond // 1000:03d}+0000"


async def send_fhir(beds: Sequence[Bed], way: Way, key: str) -> None:
    """Post several beds' parts as Bundles over one connection, each until it is answered 200."""
    tls = way.tls()
    while parts := _in_order(beds):
        with contextlib.suppress(*_LOST):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(way.host, way.port, ssl=tls), ANSWER_SECONDS
            )
            try:
                for bed, part in parts:
                    await _wait_for(bed.due(part))
                    status = await asyncio.wait_for(
                        _post(reader, writer, _write_bundle(bed, part), way.host, key), ANSWER_SECONDS
                    )
                    if status == 200:
                        bed.kept[bed.rows(part)] = True
            finally:
                writer.close()
        await asyncio.sleep(RETRY_SECONDS if _in_order(beds) else 0)


def _in_order(beds: Sequence[Bed]) -> list[tuple[Bed, int]]:
    """Return what is left of several beds, in the order in which it becomes due."""
    return sorted(((bed, part) for bed in beds for part in bed.left()), key=lambda one: one[0].due(one[1]))


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, host: str, key: str) -> int:
    """Post once over an open connection and return the status (HTTP/1.1, RFC 9112)."""
    head = (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    lengths = [int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")]
    await reader.readexactly(lengths[0] if lengths else 0)
    return int(lines[0].split()[1])


def _write_bundle(bed: Bed, part: int) -> bytes:
    entries = []
    for row in range(len(bed.stay))[bed.rows(part)]:
        code, unit = bed.stay.kind(row)
        resource = {
            "resourceType": "Observation",
            "status": "final",
            "code": {"coding": [{"system": LOINC, "code": code}]},
            "subject": {"reference": f"Patient/{bed.stay.patient}"},
            "effectiveDateTime": bed.time(row).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "valueQuantity": {"value": float(str(bed.stay.value[row])), "system": UCUM, "code": unit},
        }
        entries.append({"resource": resource})
    return json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}).encode()


async def _wait_for(time: float) -> None:
    await asyncio.sleep(max(0.0, time - asyncio.get_running_loop().time()))
