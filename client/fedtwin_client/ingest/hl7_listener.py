"""The MLLP listener: HL7 v2 messages from registered feeds to the gateway, each answered once it is safe."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from fedtwin_client.ingest import hl7_answers, hl7v2, mllp
from fedtwin_client.ingest.device import Device
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, RATE, Message
from fedtwin_client.ingest.readings import Draft

_REFUSALS = {RATE: hl7_answers.RATE_LIMIT, NOT_STORED: hl7_answers.INTERNAL, NOT_REGISTERED: hl7_answers.NOT_REGISTERED}


async def listen(
    gateway: Gateway, executor: Executor, *, host: str, port: int, tls: ssl.SSLContext | None, feed: str = ""
) -> asyncio.Server:
    """Listen for HL7 v2 feeds. With `tls` (which must demand a certificate) a feed is known by its certificate;
    without it everyone is the device `feed`, which is for a port that only one trusted host can reach.
    """
    numbers = itertools.count(1)
    started = gateway.now()

    async def handle(peer: bytes, frames: Sequence[bytes]) -> list[tuple[bytes, ...]]:
        registry = gateway.registry()
        device = registry.find(peer) if tls is not None else registry.get(feed)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, answer, gateway, device, frames, _controls(started, numbers))

    return await mllp.serve(handle, host=host, port=port, tls=tls)


def _controls(started: int, numbers: Iterator[int]) -> Iterator[str]:
    """Yield our own MSH-10: never the same twice, twenty characters at most."""
    return (f"{started:x}.{number:x}" for number in numbers)


def answer(
    gateway: Gateway, device: Device | None, frames: Sequence[bytes], controls: Iterator[str]
) -> list[tuple[bytes, ...]]:
    """Read messages, hand them to the gateway together, and return the answers to each."""
    zone = ZoneInfo(device.zone) if device is not None and device.zone else None
    read: list[hl7_answers.Message] = []
    taken: list[Message] = []
    for data in frames:
        draft = Draft()
        found = hl7v2.read_message(data, draft, zone=zone)
        read.append(found)
        if found.refusal is not None:
            gateway.refuse(found.refusal.words)
        else:
            records = () if found.event is None else (found.event,)
            digest = hashlib.sha256(data).digest()
            taken.append(Message(device=device, readings=draft.readings(), records=records, digest=digest))
    receipts = iter(gateway.take_all(taken))
    now = datetime.fromtimestamp(gateway.now() / 1000, UTC)
    answers: list[tuple[bytes, ...]] = []
    for found in read:
        refused = "" if found.refusal is not None else next(receipts).refused
        said = hl7_answers.Message(header=found.header, refusal=_REFUSALS[refused]) if refused else found
        answers.append(hl7_answers.acknowledge(said, now=now, control=next(controls)))
    return answers
