"""Batches into tables of numbers and back."""

from __future__ import annotations

import numpy as np

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, make_batch
from fedtwin_client.store.index import Index
from fedtwin_client.store.rows import DEVICE, QUALITY, SEQUENCE, SIGNAL, TIME, VALUE, Rows, Table


def to_table(batch: ObservationBatch, rows: Rows | slice, index: Index) -> Table:
    """Return these rows of a batch as the store numbers them."""
    signals = np.array([index.signals.numbers[key] for key in SIGNAL_KEYS], np.int64)
    devices = np.array([index.devices.numbers[text] for text in batch.devices], np.int64)
    columns = (
        signals[batch.signal[rows]],
        batch.time[rows],
        (batch.value[rows] + np.float32(0)).view(np.uint32),  # 0 and -0 are one value, so they are one row
        devices[batch.device[rows]],
        batch.sequence[rows],
        batch.quality[rows],
    )
    return np.stack(columns, dtype=np.int64, casting="safe")


def to_batch(patient: str, table: Table, index: Index) -> ObservationBatch:
    """Return one patient's rows as a batch."""
    used = np.flatnonzero(np.bincount(table[DEVICE]))
    place = np.zeros(int(used[-1]) + 1 if len(used) else 1, np.int32)
    place[used] = np.arange(len(used))
    return make_batch(
        patients=(patient,),
        devices=[index.devices.texts[number] for number in used.tolist()],
        patient=np.zeros(table.shape[1], np.int32),
        signal=index.positions[table[SIGNAL]],
        time=table[TIME],
        value=table[VALUE].astype(np.uint32).view(np.float32),
        device=place[table[DEVICE]],
        sequence=table[SEQUENCE],
        quality=table[QUALITY].astype(np.uint8),
    )
