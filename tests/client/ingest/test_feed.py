"""The feed of accepted observations: in order, never waited for, and told of who was erased."""

from __future__ import annotations

import threading

import numpy as np

from fedtwin_client.ingest import feed
from fedtwin_client.ingest.feed import Feed
from fedtwin_client.observation_batch import ObservationBatch, make_batch


def batch(number: int, size: int = 2) -> ObservationBatch:
    zero = np.zeros(size)
    return make_batch(
        patients=("p",), devices=("d",), patient=zero, signal=zero, time=zero, value=zero + 1, device=zero,
        sequence=number + np.arange(size), quality=zero,
    )  # fmt: skip


class Listener:
    """Remembers what it was told; waits at `gate`, and fails where told to."""

    def __init__(self, *, failing: bool = False) -> None:
        self.told: list[tuple[int, int] | str] = []
        self.gate = threading.Event()
        self.failing = failing

    def receive(self, batch: ObservationBatch, *, missed: int) -> None:
        self.gate.wait(20)
        self.told.append((int(batch.sequence[0]), missed))
        if self.failing:
            raise ValueError

    def forget(self, patient: str) -> None:
        self.told.append(patient)


def test_everybody_is_told_in_order_and_a_fault_of_one_stops_nobody() -> None:
    failing, other = Listener(failing=True), Listener()
    told = Feed([failing, other])
    told.start()
    failing.gate.set()
    other.gate.set()
    told.offer(batch(1))
    told.forget("p")
    told.offer(batch(2))
    told.stop()
    assert failing.told == other.told == [(1, 0), "p", (2, 0)]
    assert told.failures == 2
    assert told.missed == 0


def test_a_slow_subscriber_misses_and_is_told_how_much_and_nobody_waits() -> None:
    slow = Listener()
    told = Feed([slow])
    told.start()
    for number in range(feed.WAITING + 50):  # one is in its hands
        told.offer(batch(number))
    assert told.missed >= 2 * 49
    missed = told.missed
    slow.gate.set()
    told.stop()
    assert sum(one[1] for one in slow.told if isinstance(one, tuple)) == missed
    assert 2 * len(slow.told) + missed == 2 * (feed.WAITING + 50)


def test_what_was_missed_is_told_with_the_next_batch() -> None:
    slow = Listener()
    told = Feed([slow])
    for number in range(feed.WAITING + 3):
        told.offer(batch(number))
    slow.gate.set()
    told.start()
    while len(slow.told) < feed.WAITING:
        threading.Event().wait(0.01)
    told.offer(batch(9999))
    told.stop()
    assert [one[1] for one in slow.told if isinstance(one, tuple)].count(6) == 1


def test_without_subscribers_nothing_waits() -> None:
    told = Feed([])
    told.start()
    for number in range(feed.WAITING + 10):
        told.offer(batch(number))
    told.forget("p")
    told.stop()
    assert told.missed == 0
