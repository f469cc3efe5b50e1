"""Chance that can be repeated, for simulations. A hospital cannot construct it: this package is not installed there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping

from fedtwin_client.randomness import KeyStream


class SeededStream(KeyStream):
    """A stream under a given key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        super().__init__()

    def _make_key(self) -> bytes:
        return self._key


class SeededRandomness:
    """Streams that follow from a seed, a site, a fold, a task and how many were asked for that task before.

    A hospital asks once for every task it works on, so the number stands for the round.

    - the same five give the same stream; any other five give an unrelated one: no two folds share noise
    """

    def __init__(self, *, seed: int, site: str, fold: int = 0, asked: Mapping[str, int] | None = None) -> None:
        """asked: how many streams were asked for each task before, where a run goes on."""
        self._seed, self._site, self._fold = seed, site, fold
        self._asked: Counter[str] = Counter(asked)
        self._lock = threading.Lock()

    def stream(self, task: str) -> KeyStream:
        """Return the next stream for `task`."""
        with self._lock:
            number = self._asked[task]
            self._asked[task] += 1
        named = json.dumps([self._seed, self._site, self._fold, task, number])
        return SeededStream(hashlib.sha256(named.encode()).digest())
