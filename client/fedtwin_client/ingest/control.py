"""A line to the running gateway, which alone has the store open: a socket in the node's folder, for its owner only.

One JSON object a line each way. `forget`: patients' ids; `export`: one id and a new file. The answer has `done`, or
`error` with words. Nothing here is printed or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from fedtwin_shared.errors import FedtwinError

SOCKET: Final = "gateway.sock"
MAXIMUM_BYTES: Final = 1 << 20
SECONDS: Final = 600.0  # erasing many patients of a large store

Handle = Callable[[Mapping[str, Any]], int]


async def listen(folder: Path, handle: Handle, executor: Executor) -> asyncio.Server:
    """Answer requests in the folder's socket; `handle` may block."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            request = json.loads(await reader.readline())
            try:
                answer: dict[str, object] = {
                    "done": await asyncio.get_running_loop().run_in_executor(executor, handle, request)
                }
            except FedtwinError as err:
                answer = {"error": [err.file, err.field, err.expected, err.found]}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    with _short(folder) as path:
        Path(path).unlink(missing_ok=True)
        former = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(converse, path, limit=MAXIMUM_BYTES)
        finally:
            os.umask(former)


def ask(folder: Path, request: Mapping[str, object]) -> int | None:
    """Return what the running gateway did; None: none runs. Raises `FedtwinError` with the gateway's own words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line, _short(folder) as path:
        line.settimeout(SECONDS)
        try:
            line.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        line.sendall(json.dumps(request).encode() + b"\n")
        with line.makefile("rb") as stream:
            answer = json.loads(stream.readline() or b"{}")
    if "done" not in answer:
        file, field, expected, found = answer.get("error", ("", "", "an answer of the gateway", "none"))
        raise FedtwinError(file=file, field=field, expected=expected, found=found)
    return int(answer["done"])


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A socket's path may have 107 characters; the folder's own descriptor makes a short one of any (Linux)."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
