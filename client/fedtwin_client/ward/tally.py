"""What was acknowledged, compared reading by reading with what the store has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedtwin_client.ingest.codes import SIGNAL_OF_CODE
from fedtwin_client.ingest.keeping import read_asides
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.store.opening import open_hospital_store
from fedtwin_client.store.store import ObservationStore
from fedtwin_client.ward.premises import Ward
from fedtwin_client.ward.senders import Bed


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One way in. stored, aside: of what was acknowledged; lost is what neither has. rows: of the store, at most sent.

    repeated: rows that the store has more than once, which would be a repetition taken for new.
    """

    way: str
    beds: int
    sent: int
    acknowledged: int
    stored: int
    aside: int
    lost: int
    repeated: int


def tally_ward(ward: Ward, *, erased: Bed, exported: int) -> tuple[tuple[Tally, ...], bool]:
    """Return a tally of each way in, and whether the store is whole. The erased bed counts as it was exported."""
    with open_hospital_store(ward.hospital) as store:
        tallies = tuple(_tally(store, way, beds, erased, exported) for way, beds in ward.beds.items())
        return tallies, store.report.whole


def _tally(store: ObservationStore, way: str, beds: list[Bed], erased: Bed, exported: int) -> Tally:
    stored = aside = lost = repeated = 0
    for bed in beds:
        if bed is erased:
            stored += exported
            lost += int(bed.kept.sum()) - exported
            continue
        batch = store.read(bed.stay.patient)
        have = {
            (signal, time): value
            for signal, time, value in zip(
                batch.signal.tolist(), batch.time.tolist(), batch.value.tolist(), strict=True
            )
        }
        repeated += len(batch) - len(have)
        put_aside = {
            (SIGNAL_KEYS.index(SIGNAL_OF_CODE[one.code]), one.time) for _, one in read_asides(store, bed.stay.patient)
        }
        for row in np.flatnonzero(bed.kept).tolist():
            key = (int(bed.stay.signal[row]), bed.begin + int(bed.stay.offset[row]))
            if have.get(key) == float(bed.stay.value[row]):
                stored += 1
            elif key in put_aside:
                aside += 1
            else:
                lost += 1
    return Tally(
        way=way,
        beds=len(beds),
        sent=sum(len(bed.stay) for bed in beds),
        acknowledged=sum(int(bed.kept.sum()) for bed in beds),
        stored=stored,
        aside=aside,
        lost=lost,
        repeated=repeated,
    )
