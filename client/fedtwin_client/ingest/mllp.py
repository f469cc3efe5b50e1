"""HL7 v2 over TCP in minimal lower layer protocol frames: <VT> message <FS><CR> (HL7 v2.5.1 implementation guide, C.4).

Design note: all whole frames that a read brought are handed on together and answered in order, so that one store
transaction serves many messages; an answer is written only after `handle` returned. A peer that sends more than
`maximum` bytes without ending a frame is disconnected.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fedtwin_client.ingest.hl7v2 import MAXIMUM_BYTES

START: Final = b"\x0b"
END: Final = b"\x1c\r"
READ_BYTES: Final = 1 << 16

# The peer's certificate in DER, b"" without TLS, and the frames; returns for each its answers.
Handle = Callable[[bytes, Sequence[bytes]], Awaitable[Sequence[Sequence[bytes]]]]


def frame(message: bytes) -> bytes:
    """Return the message in its frame."""
    return b"".join((START, message, END))


def split_frames(buffer: bytes) -> tuple[list[bytes], bytes, int]:
    """Return the whole messages in `buffer`, what remains of it, and how many bytes stood outside any frame.

    - what remains is empty or begins with a frame's first byte
    """
    frames: list[bytes] = []
    outside = at = 0
    while True:
        start = buffer.find(START, at)
        if start < 0:
            return frames, b"", outside + len(buffer) - at
        outside += start - at
        end = buffer.find(END, start + 1)
        if end < 0:
            return frames, buffer[start:], outside
        frames.append(buffer[start + 1 : end])
        at = end + len(END)


async def serve(
    handle: Handle,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    maximum: int = MAXIMUM_BYTES,
    idle_seconds: float | None = None,
) -> asyncio.Server:
    """Listen for peers and answer their messages. Nothing is acknowledged before `handle` returned for it.

    - a peer whose frame exceeds `maximum` bytes is disconnected, and so is one that is silent for `idle_seconds`
    - reading stops while `handle` works: a sender is slowed down and no queue grows
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("ssl_object")
        peer = connection.getpeercert(binary_form=True) or b"" if connection is not None else b""
        rest = b""
        try:
            while data := await asyncio.wait_for(reader.read(READ_BYTES), idle_seconds):
                frames, rest, _ = split_frames(rest + data)
                if any(len(one) > maximum for one in frames):
                    break
                if frames:
                    answers = await handle(peer, frames)
                    writer.write(b"".join(frame(one) for several in answers for one in several))
                    await writer.drain()
                if len(rest) > maximum + len(START) + len(END):
                    break
        except (ConnectionError, TimeoutError, ssl.SSLError):
            pass  # whoever was not answered sends again
        finally:
            writer.close()

    return await asyncio.start_server(converse, host, port, ssl=tls)


async def send(
    messages: Sequence[bytes], *, host: str, port: int, tls: ssl.SSLContext | None = None, timeout: float = 10.0
) -> list[bytes]:
    """Send messages one after the other over one connection and return the first answer to each.

    Raises `OSError`, or `TimeoutError` when an answer takes longer than `timeout` seconds.
    """
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=MAXIMUM_BYTES)
    answers: list[bytes] = []
    try:
        for message in messages:
            writer.write(frame(message))
            await writer.drain()
            found = await asyncio.wait_for(reader.readuntil(END), timeout)
            answers.append(found.removeprefix(START).removesuffix(END))
    except asyncio.IncompleteReadError as err:
        raise ConnectionError("the peer closed without an answer") from err
    finally:
        writer.close()
    return answers
