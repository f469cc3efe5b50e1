"""The packets of MQTT 3.1.1 that a subscriber or a sensor needs, as bytes; no socket, no state.

Design note: a general client library spends tens of microseconds on a message; a ward's gateway has forty for
everything. What a peer sends is checked as far as it is used, and anything else ends the connection. A broker speaks
3.1.1 to us whatever version the devices speak to it. Source: OASIS MQTT 3.1.1, sections in brackets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 2, 3, 4, 9, 13
LENGTH_BYTES: Final = 4  # [2.2.3]
LARGEST_LENGTH: Final = (1 << 28) - 1

PING: Final = b"\xc0\x00"
DISCONNECT: Final = b"\xe0\x00"


class ProtocolError(Exception):
    """The peer sent what is no packet of MQTT, or one larger than was agreed. Fixed words, nothing of the content."""


@dataclass(frozen=True, slots=True, repr=False)
class Publication:
    """One PUBLISH. number: the packet's identifier, 0 at quality of service 0.

    - its repr shows nothing
    """

    topic: str
    payload: bytes
    quality: int
    number: int


@dataclass(frozen=True, slots=True, repr=False)
class Packet:
    """Any packet: its type, the four bits beside it, and what follows its length."""

    kind: int
    flags: int
    body: bytes


def split_packets(buffer: bytes, *, maximum: int) -> tuple[list[Packet], bytes]:
    """Return the whole packets at the beginning of `buffer`, and what remains. Raises `ProtocolError`.

    - what remains is never longer than one packet of `maximum` bytes
    """
    packets: list[Packet] = []
    at, size = 0, len(buffer)
    while size - at >= 2:
        length = buffer[at + 1]
        start = at + 2
        if length & 0x80:
            length &= 0x7F
            for place in range(1, LENGTH_BYTES + 1):
                if place == LENGTH_BYTES:
                    raise ProtocolError("a length of more than four bytes")
                if start >= size:
                    return packets, buffer[at:]
                byte = buffer[start]
                start += 1
                length |= (byte & 0x7F) << (7 * place)
                if not byte & 0x80:
                    break
        if length > maximum:
            raise ProtocolError("a packet larger than agreed")
        if size - start < length:
            break
        packets.append(Packet(buffer[at] >> 4, buffer[at] & 15, buffer[start : start + length]))
        at = start + length
    return packets, buffer[at:]


def read_publication(packet: Packet) -> Publication:
    """Return a PUBLISH [3.3]. Raises `ProtocolError`."""
    body, quality = packet.body, packet.flags >> 1 & 3
    size = len(body)
    end = 2 + (body[0] << 8 | body[1]) if size >= 2 else 3
    start = end + 2 if quality else end
    if quality == 3 or start > size:
        raise ProtocolError("a PUBLISH that does not add up")
    try:
        topic = body[2:end].decode()
    except UnicodeDecodeError as err:
        raise ProtocolError("a topic that is not UTF-8") from err
    number = body[end] << 8 | body[end + 1] if quality else 0
    if quality and number == 0:
        raise ProtocolError("a PUBLISH without a number")
    return Publication(topic, body[start:], quality, number)


def read_number(packet: Packet) -> int:
    """Return which packet a PUBACK or SUBACK answers [3.4, 3.9]. Raises `ProtocolError`."""
    if len(packet.body) < 2:
        raise ProtocolError("an acknowledgement without a number")
    return packet.body[0] << 8 | packet.body[1]


def check_connected(packet: Packet) -> None:
    """Raise `ProtocolError` unless the packet is a CONNACK that accepts us [3.2]."""
    if packet.kind != CONNACK or len(packet.body) != 2 or packet.body[1] != 0:
        raise ProtocolError("not accepted by the broker")


def check_subscribed(packet: Packet, *, number: int, quality: int) -> None:
    """Raise `ProtocolError` unless the packet is a SUBACK that grants every topic [3.9]."""
    granted = packet.body[2:]
    if packet.kind != SUBACK or read_number(packet) != number or any(one != quality for one in granted) or not granted:
        raise ProtocolError("a topic was not granted")


def write_connect(client: str, *, clean: bool, keep_alive: int) -> bytes:
    """Return a CONNECT [3.1]; who we are is said by TLS."""
    head = b"\x00\x04MQTT\x04" + struct.pack("!BH", 2 if clean else 0, keep_alive)
    return _packet(0x10, head + _text(client))


def write_subscribe(number: int, topics: Sequence[str], *, quality: int) -> bytes:
    """Return a SUBSCRIBE [3.8]."""
    return _packet(0x82, struct.pack("!H", number) + b"".join(_text(topic) + bytes((quality,)) for topic in topics))


def write_publication(topic: str, payload: bytes, *, quality: int = 0, number: int = 0, again: bool = False) -> bytes:
    """Return a PUBLISH [3.3]."""
    mark = struct.pack("!H", number) if quality else b""
    return _packet(0x30 | quality << 1 | again << 3, _text(topic) + mark + payload)


def write_acknowledgements(numbers: Iterable[int]) -> bytes:
    """Return a PUBACK for each number [3.4]."""
    return b"".join(struct.pack("!HH", 0x4002, number) for number in numbers)


def _packet(first: int, body: bytes) -> bytes:
    length, head = len(body), bytearray((first,))
    if length > LARGEST_LENGTH:
        raise ValueError(f"expected {LARGEST_LENGTH} bytes at most, found {length}")
    while True:
        length, byte = length >> 7, length & 0x7F
        head.append(byte | 0x80 if length else byte)
        if not length:
            return bytes(head) + body


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("!H", len(encoded)) + encoded
