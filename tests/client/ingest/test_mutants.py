"""The long campaign: seeded mutants of sound messages through every parser; no crash, no hang, no reading lost."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError

from fedtwin_client.ingest import fhir, grpc_stream, hl7v2, mqtt_packets, packed, senml
from fedtwin_client.ingest.ingest_pb2 import Batch
from fedtwin_client.ingest.mllp import frame, split_frames
from fedtwin_client.ingest.readings import Draft, Readings
from tests.client.ingest.foreign import MUTANTS, judge
from tests.client.ingest.test_fhir import observation
from tests.client.ingest.test_grpc_stream import make_batch
from tests.client.ingest.test_hl7v2 import ORU
from tests.client.ingest.test_packed import MESSAGE

TOGETHER = 64  # mutants that are judged at once
SLOWEST = 1.0  # seconds of processor time for one mutant of a few kilobytes, a thousand times what it takes

Reader = Callable[[bytes, Draft], Readings | str | None]


def read_hl7(data: bytes, draft: Draft) -> None:
    before = len(draft)
    message = hl7v2.read_message(data, draft)
    assert message.rows == len(draft) - before


def read_fhir(data: bytes, draft: Draft) -> None:
    before = len(draft)
    document = fhir.read_message(data, draft)
    assert document.rows == len(draft) - before


def read_lines(data: bytes, draft: Draft) -> None:
    before = len(draft)
    assert fhir.read_ndjson(data, draft).rows == len(draft) - before


def read_senml(data: bytes, draft: Draft) -> None:
    before = len(draft)
    assert senml.read_message(data, draft, now=0).rows == len(draft) - before


def read_packed(data: bytes, draft: Draft) -> Readings | str:
    return packed.read_message(data)


def read_grpc(data: bytes, draft: Draft) -> Readings | str:
    try:
        return grpc_stream.read_batch(Batch.FromString(data))
    except DecodeError:
        return "unreadable"


def read_mllp(data: bytes, draft: Draft) -> None:
    frames, rest, outside = split_frames(data)
    assert sum(map(len, frames)) + 3 * len(frames) + len(rest) + outside == len(data)


def read_mqtt(data: bytes, draft: Draft) -> str | None:
    try:
        packets, rest = mqtt_packets.split_packets(data, maximum=1000)
        for packet in packets:
            if packet.kind == mqtt_packets.PUBLISH:
                mqtt_packets.read_publication(packet)
            elif packet.kind in (mqtt_packets.PUBACK, mqtt_packets.SUBACK):
                mqtt_packets.read_number(packet)
    except mqtt_packets.ProtocolError:
        return "unreadable"
    assert data.endswith(rest)
    assert sum(len(packet.body) + 2 for packet in packets) + len(rest) <= len(data)
    assert len(rest) <= 1000 + 5
    return None


RESOURCE = json.dumps(observation(component=[{"code": {}, "valueQuantity": {"value": 1}}])).encode()
BUNDLE = json.dumps({"resourceType": "Bundle", "entry": [{"fullUrl": "x", "resource": observation()}]}).encode()
CONSENT = (
    b'{"resourceType":"Consent","status":"active","patient":{"reference":"Patient/p"},"provision":{"type":"deny"}}'
)
PACK = b'[{"bn":"p1/","bt":1.7e9,"bu":"/min","n":"heart_rate","v":80,"sq":1},{"n":"8867-4","t":-5,"v":81.5}]'
FORMATS: dict[str, tuple[Reader, list[bytes]]] = {
    "hl7v2": (read_hl7, [ORU, ORU.replace(b"ORU^R01^ORU_R01", b"ADT^A01")]),
    "mllp": (read_mllp, [frame(b"a") + frame(b"b") + b"\x0brest"]),
    "fhir": (read_fhir, [RESOURCE, BUNDLE, CONSENT]),
    "ndjson": (read_lines, [RESOURCE + b"\n" + CONSENT]),
    "senml": (read_senml, [PACK]),
    "packed": (read_packed, [MESSAGE]),
    "mqtt": (
        read_mqtt,
        [
            b" \x02\x00\x00"
            + mqtt_packets.write_publication("fedtwin/a/senml", PACK, quality=1, number=7)
            + b"\x90\x03\x00\x01\x01",
            mqtt_packets.write_publication("fedtwin/b/packed", MESSAGE) + mqtt_packets.write_acknowledgements([1, 2]),
        ],
    ),
    "grpc": (read_grpc, [make_batch(3).SerializeToString()]),
}


def mutate(source: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return the source with one to four spans changed, removed, doubled, or taken from another message."""
    data = bytearray(source)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(data) + 1), chance.choice((0, 1, 1, 2, 4, 16))
        kind = chance.randrange(5)
        if kind == 0:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length * 4]
        elif kind == 3:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            data[at : at + length] = other[start : start + length * 4]
        else:
            data[at : at + 1] = chance.choice(
                (b"\0", b"\xff", b'"', b"{", b"[", b"|", b"\\", b"\r", b"9" * 40, b"-", b"e9")
            )
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutant_crashes_or_hangs_a_parser(name: str) -> None:
    read, sources = FORMATS[name]
    chance = random.Random(f"mutants of {name}")
    refused = 0
    for _ in range(0, MUTANTS, TOGETHER):
        draft = Draft()
        for _ in range(TOGETHER):
            data = mutate(chance.choice(sources), sources, chance)
            began = time.process_time()
            found = read(data, draft)
            assert time.process_time() - began < SLOWEST
            if isinstance(found, Readings):
                judge(found)
            refused += isinstance(found, str)
        judge(draft.readings())
    assert refused < MUTANTS  # the mutants are not all so broken that nothing is read of them
