"""MQTT's packets: the standard's own examples, any cut of a stream, and whatever bytes come."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest import mqtt_packets
from fedtwin_client.ingest.mqtt_packets import Packet, ProtocolError, read_publication, split_packets
from tests.client.ingest.foreign import INPUTS

MAXIMUM = 300_000


def test_the_standards_example_of_a_connect_and_a_publish() -> None:
    # MQTT 3.1.1, figures 3.6 and 3.11, and table 2.4 for the lengths.
    assert (
        mqtt_packets.write_connect("a", clean=True, keep_alive=10) == b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x0a\x00\x01a"
    )
    assert mqtt_packets.write_publication("a/b", b"", quality=1, number=10) == b"\x32\x07\x00\x03a/b\x00\x0a"
    assert mqtt_packets.write_subscribe(10, ["a/b"], quality=1) == b"\x82\x08\x00\x0a\x00\x03a/b\x01"
    assert mqtt_packets.write_acknowledgements([1, 513]) == b"\x40\x02\x00\x01\x40\x02\x02\x01"
    for length, encoded in ((127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (2_097_151, "ffff7f")):
        packet = mqtt_packets.write_publication("a", bytes(length - 3))
        assert packet[1 : 1 + len(encoded) // 2].hex() == encoded


@given(
    messages=st.lists(st.tuples(st.text(max_size=40), st.binary(max_size=400), st.integers(0, 1)), max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_what_is_written_is_read_however_it_is_cut(messages: list[tuple[str, bytes, int]], cuts: list[int]) -> None:
    stream = b"".join(
        mqtt_packets.write_publication(topic, payload, quality=quality, number=number)
        for number, (topic, payload, quality) in enumerate(messages, 1)
    )
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    found, rest = list[Packet](), b""
    for begin, end in itertools.pairwise(edges):
        packets, rest = split_packets(rest + stream[begin:end], maximum=MAXIMUM)
        found += packets
    assert rest == b""
    read = [read_publication(packet) for packet in found]
    assert [(one.topic, one.payload, one.quality) for one in read] == messages
    assert [one.number for one in read] == [at if one[2] else 0 for at, one in enumerate(messages, 1)]


@pytest.mark.parametrize(
    "data", [b"\x30\xff\xff\xff\xff\x01", b"\x30\x80\x80\x80\x80", b"\x30" + b"\xff\xff\x7f" + bytes(10)]
)
def test_a_length_that_is_none_or_too_large_is_an_error_before_anything_is_held(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        split_packets(data, maximum=1000)


@pytest.mark.parametrize(
    ("flags", "body"),
    [(0, b""), (0, b"\0"), (0, b"\0\5ab"), (6, b"\0\1a\0\1"), (2, b"\0\1a\0"), (2, b"\0\1a\0\0"), (0, b"\0\1\xff")],
)
def test_a_publication_that_does_not_add_up_is_an_error(flags: int, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_publication(Packet(3, flags, body))


def test_a_broker_that_refuses_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        mqtt_packets.check_connected(Packet(2, 0, b"\0\5"))
    with pytest.raises(ProtocolError):
        mqtt_packets.check_subscribed(Packet(9, 0, b"\0\1\x80"), number=1, quality=1)
    mqtt_packets.check_subscribed(Packet(9, 0, b"\0\1\1\1"), number=1, quality=1)


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=60))
def test_no_input_crashes_it(data: bytes) -> None:
    whole, outcome = list[Packet](), "held"
    try:
        whole, rest = split_packets(data, maximum=50)
        assert data.endswith(rest)
        assert sum(2 + len(packet.body) for packet in whole) <= len(data) - len(rest)
        for packet in whole:
            read_publication(packet)
            outcome = "read"
    except ProtocolError:
        outcome = "refused"
    assert outcome in ("read", "refused") or not whole
