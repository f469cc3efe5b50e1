"""HTTP/1.1 as uvicorn speaks it, with a deadline for every request's headers.

Design note: uvicorn waits for ever for the first request of a connection, and for the rest of one that has begun, so a
few hundred silent connections from anywhere would be all that the front has. Here a connection whose headers are not
complete in time is closed.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS: Final = 10.0  # a SuperNode sends its 1 KiB of headers at once


class PromptProtocol(H11Protocol):
    """One connection of the front.

    - a connection that sends nothing, or half a request's headers, is closed after `header_seconds`
    - a request whose headers are complete is not touched, however long it takes
    """

    header_seconds: ClassVar[float] = HEADER_SECONDS
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Start the first deadline."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the deadline when headers are complete; start it when a further request has begun without."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop()
        elif self._deadline is None and before.response_complete:  # without a cycle, a deadline runs
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
