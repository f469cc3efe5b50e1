"""The front's connections over real sockets: silent and dripping ones are closed, slow answers are not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedtwin_server.prompt_protocol import PromptProtocol
from fedtwin_shared.supervision import wait_until
from tests.authority import free_ports

SECONDS = 0.4
REQUEST = b"GET / HTTP/1.1\r\nhost: front\r\n\r\n"


class Hasty(PromptProtocol):
    header_seconds = SECONDS


async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(2 * SECONDS)
    await Response(b"late")(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_ports(1)[0]
    server = uvicorn.Server(
        uvicorn.Config(
            answer_late,
            host="127.0.0.1",
            port=number,
            http=Hasty,
            ws="none",
            log_level="error",
            lifespan="off",
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, what="server", deadline_seconds=10, interval_seconds=0.02)
        yield number
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    while connection.recv(4096):
        pass
    return time.monotonic() - began


def test_a_connection_that_sends_nothing_is_closed(port: int) -> None:
    with connect(port) as connection:
        assert seconds_until_closed(connection) == pytest.approx(SECONDS, abs=2.0)


@pytest.mark.parametrize("before", [b"", REQUEST], ids=["first", "second"])
def test_half_a_requests_headers_are_closed_however_they_drip(port: int, before: bytes) -> None:
    with connect(port) as connection:
        if before:
            connection.sendall(before)
            assert b"late" in connection.recv(4096)
        connection.sendall(REQUEST[:20])
        time.sleep(SECONDS / 2)
        connection.sendall(REQUEST[20:25])  # does not buy time
        began = time.monotonic()
        assert seconds_until_closed(connection) < 5
        assert time.monotonic() - began < 5  # uvicorn alone: for ever, or its own idle time of 5 s


def test_a_request_whose_headers_are_complete_is_not_touched_however_long_it_takes(port: int) -> None:
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(REQUEST)
            assert b"late" in connection.recv(4096)
            time.sleep(2 * SECONDS)  # idle between two requests: that is the server's own time to keep alive
