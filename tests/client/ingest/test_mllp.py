"""MLLP: frames whole whatever way they arrive, and an answer only after the message is safe."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest.mllp import END, frame, send, serve, split_frames


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(st.binary(max_size=30).filter(lambda one: END not in one + END[1:]), max_size=5),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_frames_are_whole_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(one) for one in messages)
    found, rest = list[bytes](), b""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        frames, rest, outside = split_frames(rest + stream[start:end])
        assert outside == 0
        found += frames
    assert found == messages
    assert rest == b""


def test_bytes_outside_a_frame_are_counted() -> None:
    assert split_frames(b"xx" + frame(b"m") + b"y\x0brest") == ([b"m"], b"\x0brest", 3)


def test_messages_are_answered_in_order_and_a_flood_is_cut_off() -> None:
    seen: list[bytes] = []

    async def handle(peer: bytes, frames: Sequence[bytes]) -> list[list[bytes]]:
        seen.extend(frames)
        return [[b"answer to " + one] for one in frames]

    async def talk() -> None:
        server = await serve(handle, host="127.0.0.1", port=0, maximum=1000)
        port = server.sockets[0].getsockname()[1]
        async with server:
            sent = [b"one", b"two", b"x" * 900]
            assert await send(sent, host="127.0.0.1", port=port) == [b"answer to " + one for one in sent]
            with pytest.raises(OSError):
                await send([b"x" * 5000], host="127.0.0.1", port=port)
        assert seen == sent

    asyncio.run(asyncio.wait_for(talk(), 20))
