"""Accepted observations to whoever subscribed, without ingest ever waiting for them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from typing import Final

from fedtwin_client.ingest.intake import Subscriber
from fedtwin_client.observation_batch import ObservationBatch

WAITING: Final = 256  # batches that wait for slow subscribers; what is beyond is missed, and counted

_log = logging.getLogger(__name__)


class Feed:
    """Hands batches on, on a thread of its own, from `start` to `stop`.

    - `offer` never waits, whatever subscribers do
    - a subscriber that raises is told of the next batch all the same
    """

    def __init__(self, subscribers: Sequence[Subscriber]) -> None:
        self._subscribers = tuple(subscribers)
        self._queue: queue.Queue[ObservationBatch | str | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._lock = threading.Lock()
        self._missed = 0
        self.missed = 0  # observations since the start
        self.failures = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Hand on what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def offer(self, batch: ObservationBatch) -> None:
        """Hand on a batch, unless too many wait."""
        if not self._subscribers:
            return
        try:
            self._queue.put_nowait(batch)
        except queue.Full:
            with self._lock:
                self._missed += len(batch)
                self.missed += len(batch)

    def forget(self, patient: str) -> None:
        """Tell that a patient was erased; behind every batch that was offered before."""
        if self._subscribers:
            self._queue.put(patient)

    def _work(self) -> None:
        while (found := self._queue.get()) is not None:
            missed = 0
            if isinstance(found, ObservationBatch):
                with self._lock:
                    missed, self._missed = self._missed, 0
            for subscriber in self._subscribers:
                try:
                    if isinstance(found, ObservationBatch):
                        subscriber.receive(found, missed=missed)
                    else:
                        subscriber.forget(found)
                except Exception as err:
                    self.failures += 1
                    _log.error("a subscriber failed: %s", type(err).__name__)
