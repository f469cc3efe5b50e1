"""A TLS proxy in front of one hospital: passes everything on, and keeps what passed in the clear."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h11


@dataclass(slots=True)
class Exchange:
    """The bytes of one connection, in both directions."""

    up: bytearray = field(default_factory=bytearray)  # from the hospital
    down: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request of the hospital."""

    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(slots=True)
class Recording:
    """Everything that passed."""

    exchanges: list[Exchange] = field(default_factory=list)

    def up(self) -> bytes:
        """All bytes that left the hospital, headers included."""
        return b"\n".join(bytes(one.up) for one in self.exchanges)

    def requests(self) -> list[Request]:
        """Every complete request, in order of connections."""
        return [request for one in self.exchanges for request in parse_requests(bytes(one.up))]


def parse_requests(data: bytes) -> Iterator[Request]:
    """Read one connection as HTTP/1.1; a request that was cut off at the end is left out."""
    while data:
        reader = h11.Connection(h11.SERVER)
        reader.receive_data(data)
        head, body = None, b""
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return
        assert head is not None
        yield Request(target=head.target.decode(), headers=tuple(head.headers), body=body)
        data = reader.trailing_data[0]


@contextlib.contextmanager
def recording_proxy(
    port: int, upstream: tuple[str, int], *, certificate: Path, private_key: Path, authority: Path
) -> Iterator[Recording]:
    """Listen on loopback with the given certificate and pass on to `upstream`; closed afterwards."""
    recording = Recording()
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(certificate, private_key)
    outside = ssl.create_default_context(cafile=str(authority))

    async def serve(started: threading.Event, stop: asyncio.Event) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            exchange = Exchange()
            recording.exchanges.append(exchange)
            try:
                up_reader, up_writer = await asyncio.open_connection(*upstream, ssl=outside)
            except OSError:
                writer.close()
                return
            await asyncio.gather(
                pump(reader, up_writer, exchange.up), pump(up_reader, writer, exchange.down), return_exceptions=True
            )

        server = await asyncio.start_server(handle, "127.0.0.1", port, ssl=inside)
        started.set()
        await stop.wait()
        server.close()

    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(started, stop)), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield recording
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    try:
        while data := await reader.read(65536):
            record += data
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
