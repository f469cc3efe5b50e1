"""Append and forget in a child process, kill it at a random instant, and see that all it acknowledged is there.

Usage: kill_campaign.py FOLDER KILLS. Prints kills, acknowledged batches and acknowledged erasures.
Batch `n` is of one patient: 1 to 300 rows with the sequence numbers 1000 n and up. A passing patient gets one batch and
is forgotten at the next step. A pipe carries `n` once batch n is acknowledged, -n once its passing patient is erased.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np

from fedtwin_client.observation_batch import ObservationBatch, make_batch
from fedtwin_client.store.block_store import open_store
from fedtwin_client.store.store import ObservationStore

RESIDENTS = 3
FRESH_EVERY = 25  # kills, so that the store that is read after each stays small
NUMBER = struct.Struct("<q")


def size_of(number: int) -> int:
    return random.Random(number).choice((1, 2, 40, 300))


def patient_of(number: int) -> str:
    return f"passing-{number}" if number % 5 == 4 else f"resident-{number % RESIDENTS}"


def batch(number: int) -> ObservationBatch:
    size = size_of(number)
    return make_batch(
        patients=(patient_of(number),),
        devices=("monitor",),
        patient=np.zeros(size),
        signal=np.full(size, 3 + number % 2),
        time=1_700_000_000_000 + np.arange(size) * 1000 + number * 60_000,
        value=np.full(size, 80.0),
        device=np.zeros(size),
        sequence=1000 * number + np.arange(size),
        quality=np.zeros(size),
    )


def work(folder: Path, first: int, told: int) -> None:
    """Append from batch `first` on until killed."""
    store = open_store(folder)
    number = first
    while True:
        store.append(batch(number))
        os.write(told, NUMBER.pack(number))
        if number % 5 == 4:
            store.forget(patient_of(number))
            os.write(told, NUMBER.pack(-number))
        number += 1


def found(store: ObservationStore) -> dict[int, int]:
    """Rows by batch, of every batch that has any."""
    numbers = [read.sequence // 1000 for read in store.scan()]
    values, counts = np.unique(np.concatenate(numbers or [np.empty(0, np.int64)]), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def kill_once(folder: Path, first: int, wait: float) -> list[int]:
    """Return what one child acknowledged before it was killed."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(folder, first, told)
        finally:
            os._exit(1)  # only an error ends the work: nothing may be acknowledged after it
    os.close(told)
    first_bytes = os.read(reading, NUMBER.size)  # it runs; from here on any instant is as good as another
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"
    with os.fdopen(reading, "rb") as pipe:
        content = first_bytes + pipe.read()
    return [number for (number,) in NUMBER.iter_unpack(content)]


def campaign(folder: Path, kills: int) -> tuple[int, int]:
    chance = random.Random(20)
    number = batches = erased = 0
    acknowledged = set[int]()
    for kill in range(kills):
        if kill % FRESH_EVERY == 0:
            shutil.rmtree(folder, ignore_errors=True)
            acknowledged, number = set(), 0
        told = kill_once(folder, number, chance.expovariate(1 / 0.02))
        acknowledged.update(told)
        batches += sum(one >= 0 for one in told)
        erased += sum(one < 0 for one in told)
        with open_store(folder) as store:
            assert store.report.whole, store.report
            rows = found(store)
        for one, count in rows.items():
            assert count == size_of(one), f"batch {one}: {count} of {size_of(one)} rows"
            assert -one not in acknowledged or one == 0, f"batch {one}: erased and still there"
        for one in acknowledged:
            if one >= 0 and one % 5 != 4:
                assert one in rows, f"batch {one} was acknowledged and is lost"
        number = max(1, *rows, *(abs(one) for one in acknowledged)) + 1
    return batches, erased


if __name__ == "__main__":
    print(int(sys.argv[2]), *campaign(Path(sys.argv[1]) / "store", int(sys.argv[2])))
