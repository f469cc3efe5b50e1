"""What every store of observations must do. A subclass gives the fixture `opening`, which opens one store again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import FIRST_TIME, LAST_TIME, ObservationBatch, make_batch
from fedtwin_client.store.block_store import DIRECT, FOLD
from fedtwin_client.store.store import SPAN, Entry, EntryKind, ObservationStore, Receipt

START = 1_700_000_000_000 // SPAN * SPAN  # milliseconds: the beginning of a block
PATIENTS = ("Ada", "Bo", "Çelik ⚕")
DEVICES = ("monitor-1", "pump-2")

Row = tuple[str, str, int, float, str, int, int]
Opening = Callable[[], ObservationStore]


def batch_of(rows: Sequence[Row]) -> ObservationBatch:
    patients, devices = sorted({row[0] for row in rows}), sorted({row[4] for row in rows})
    return make_batch(
        patients=patients,
        devices=devices,
        patient=[patients.index(row[0]) for row in rows],
        signal=[SIGNAL_KEYS.index(row[1]) for row in rows],
        time=[row[2] for row in rows],
        value=[row[3] for row in rows],
        device=[devices.index(row[4]) for row in rows],
        sequence=[row[5] for row in rows],
        quality=[row[6] for row in rows],
    )


def rows_of(batch: ObservationBatch) -> list[Row]:
    columns = (batch.patient, batch.signal, batch.time, batch.value, batch.device, batch.sequence, batch.quality)
    return [
        (batch.patients[patient], SIGNAL_KEYS[signal], time, value, batch.devices[device], sequence, quality)
        for patient, signal, time, value, device, sequence, quality in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def stay(patient: str, *, count: int, first: int = 0, signal: str = "heart_rate", step: int = 1000) -> list[Row]:
    """`count` rows of one signal, `step` milliseconds apart, beginning with number `first`."""
    return [
        (patient, signal, START + number * step, 60 + number % 7 / 2, DEVICES[0], number, 0)
        for number in range(first, first + count)
    ]


def everything(store: ObservationStore) -> list[Row]:
    return sorted(row for batch in store.scan() for row in rows_of(batch))


def entry(patient: str, content: bytes, *, kind: EntryKind = EntryKind.ASIDE, time: int = START) -> Entry:
    return Entry(kind=kind, patient=patient, time=time, content=content)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(PATIENTS),
        st.sampled_from(SIGNAL_KEYS[3:6]),
        st.integers(FIRST_TIME, LAST_TIME) | st.integers(START - SPAN, START + SPAN),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        st.sampled_from(DEVICES),
        st.integers(-1, 2**53 - 1) | st.integers(0, 300),
        st.integers(0, 2),
    ),
    max_size=30,
)
# A store is opened once for all examples of a test: each uses patients' rows on top of what is there.
SHARED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class StoreContract:
    """Run by every implementation, whose test class has a fixture `opening`: what opens its store, empty at first."""

    @pytest.fixture
    def store(self, opening: Opening) -> Iterator[ObservationStore]:
        with opening() as store:
            yield store

    def test_an_empty_store_has_nobody(self, store: ObservationStore) -> None:
        assert store.patients() == ()
        assert len(store.read("Ada")) == 0
        assert everything(store) == []
        assert store.append(batch_of([])) == Receipt(stored=0, refused=0)
        assert store.report.whole

    def test_every_row_comes_back_once_and_in_order(self, store: ObservationStore) -> None:
        told = set[Row]()

        @SHARED
        @given(rows=ROWS)
        def check(rows: list[Row]) -> None:
            assert store.append(batch_of(rows)) == Receipt(stored=len(rows), refused=0)
            told.update(rows)
            assert store.append(batch_of(rows[: len(rows) // 2])).refused == 0  # the same again
            for patient in PATIENTS:
                batch = store.read(patient)
                found = rows_of(batch)
                assert sorted(found) == sorted({row for row in told if row[0] == patient})
                assert np.all(np.diff(batch.time)[np.diff(batch.signal) == 0] >= 0)
                assert len(set(batch.signal.tolist())) == 1 + np.count_nonzero(np.diff(batch.signal)) or not found

        check()
        store.compact()
        assert everything(store) == sorted(told)
        assert store.check().whole

    def test_zero_and_minus_zero_are_one_value(self, store: ObservationStore) -> None:
        row = stay("Ada", count=1)[0]
        for value in (0.0, -0.0):
            store.append(batch_of([(*row[:3], value, *row[4:])]))
        assert [math.copysign(1, found[3]) for found in everything(store)] == [1]

    @pytest.mark.parametrize(
        ("step", "count"),
        [(1, 40), (20, FOLD + 50), *((step, 3 * FOLD + 5) for step in (DIRECT - 1, DIRECT, FOLD, 3 * FOLD))],
    )
    def test_the_size_of_appends_means_nothing(self, opening: Opening, step: int, count: int) -> None:
        rows = stay("Ada", count=count)
        with opening() as store:
            for at in range(0, len(rows), step):
                store.append(batch_of(rows[at : at + step]))
            assert everything(store) == sorted(rows)
        with opening() as store:
            assert everything(store) == sorted(rows)
            assert store.report.rows == len(rows)
            store.compact()
            assert everything(store) == sorted(rows)
            assert store.check().blocks <= 2 + len(rows) // DIRECT

    def test_what_arrives_late_and_out_of_order_finds_its_place(self, store: ObservationStore) -> None:
        rows = stay("Ada", count=4 * DIRECT) + stay("Ada", count=4 * DIRECT, signal="temperature", step=SPAN // 100)
        for at in range(7):
            store.append(batch_of(rows[at::7][::-1]))
        store.compact()
        assert sorted(rows_of(store.read("Ada"))) == sorted(rows)
        times = store.read("Ada").time
        assert len(times) == len(rows)
        assert store.check().whole

    def test_entries_and_progress_are_kept_with_their_batch_and_read_back(self, opening: Opening) -> None:
        kept = [entry("Ada", b"a1"), entry("", b"nobody's"), entry("Bo", b"b1", kind=EntryKind.RECORD)]
        with opening() as store:
            store.append(batch_of(stay("Ada", count=3)), kept, {"monitor-1": b"one", "new": b"two"})
            store.append(batch_of([]), [entry("Ada", b"a2", time=START + 9)], {"monitor-1": b"three"})
        with opening() as store:
            assert [one.content for one in store.entries(EntryKind.ASIDE)] == [b"a1", b"nobody's", b"a2"]
            assert list(store.entries(EntryKind.ASIDE, "Ada")) == [kept[0], entry("Ada", b"a2", time=START + 9)]
            assert list(store.entries(EntryKind.ASIDE, "")) == [kept[1]]
            assert list(store.entries(EntryKind.RECORD, "Bo")) == [kept[2]]
            assert list(store.entries(EntryKind.RECORD, "Ada")) == list(store.entries(EntryKind.ASIDE, "Zoe")) == []
            assert store.progress() == {"monitor-1": b"three", "new": b"two"}
            assert store.drop_entries(EntryKind.ASIDE, START + 9) == 2
            assert [one.content for one in store.entries(EntryKind.ASIDE)] == [b"a2"]
            assert len(list(store.entries(EntryKind.RECORD))) == 1
            assert store.check().whole

    def test_entries_of_a_forgotten_patient_go_and_no_new_ones_come(self, opening: Opening) -> None:
        with opening() as store:
            store.append(batch_of(stay("Bo", count=1)), [entry("Ada", b"a"), entry("Bo", b"b")])
            assert store.forget("Ada")
            assert store.forgotten(["Ada", "Bo", "Zoe"]) == {"Ada"}
            store.append(batch_of([]), [entry("Ada", b"again")])
        with opening() as store:
            assert [one.content for one in store.entries(EntryKind.ASIDE)] == [b"b"]
            assert store.readmit("Ada")
            store.append(batch_of([]), [entry("Ada", b"new")])
            assert [one.content for one in store.entries(EntryKind.ASIDE, "Ada")] == [b"new"]

    def test_a_range_of_time_is_half_open(self, store: ObservationStore) -> None:
        rows = stay("Ada", count=200, step=SPAN // 50) + stay("Bo", count=3)
        store.append(batch_of(rows))
        for since, until in ((START, START + SPAN), (START + 5, START + 2 * SPAN + 1), (START + SPAN, START + SPAN)):
            found = rows_of(store.read("Ada", since=since, until=until))
            assert found == [row for row in rows if row[0] == "Ada" and since <= row[2] < until]
        assert len(store.read("Ada", since=START + SPAN)) == 150
        assert len(store.read("Ada", until=START + SPAN)) == 50

    def test_a_forgotten_patient_is_gone_and_refused_until_readmitted(self, opening: Opening) -> None:
        ada, bo = stay("Ada", count=2 * DIRECT), stay("Bo", count=10)
        with opening() as store:
            store.append(batch_of(ada + bo + stay("Ada", count=3, signal="temperature")))
            assert store.forget("Ada") is True
            assert store.forget("Ada") is False
            assert everything(store) == bo
            assert store.patients() == ("Bo",)
            assert store.append(batch_of(ada + bo)) == Receipt(stored=len(bo), refused=len(ada))
        with opening() as store:
            assert store.append(batch_of(ada)) == Receipt(stored=0, refused=len(ada))
            assert everything(store) == bo
            assert store.readmit("Ada") is True
            assert store.readmit("Ada") is False
            assert store.append(batch_of(ada[:2])) == Receipt(stored=2, refused=0)
            assert rows_of(store.read("Ada")) == ada[:2]
            assert store.check().whole

    def test_a_patient_who_never_came_can_be_forgotten(self, store: ObservationStore) -> None:
        assert store.forget("Ada") is False
        assert store.append(batch_of(stay("Ada", count=2))).refused == 2

    def test_old_blocks_are_dropped_and_no_others(self, store: ObservationStore) -> None:
        rows = stay("Ada", count=200, step=SPAN // 50) + stay("Bo", count=20, step=SPAN // 5)
        store.append(batch_of(rows))
        kept = [row for row in rows if row[2] >= START + 2 * SPAN]
        assert store.drop_before(START + 3 * SPAN - 1) == len(rows) - len(kept)
        assert everything(store) == sorted(kept)
        assert store.drop_before(START + 2 * SPAN) == 0

    def test_whoever_watches_is_told_of_every_change(self, store: ObservationStore) -> None:
        told: list[str] = []
        store.watch(told.append)
        store.append(batch_of(stay("Ada", count=2) + stay("Bo", count=2)))
        assert sorted(told) == ["Ada", "Bo"]
        store.forget("Bo")
        store.drop_before(START)
        assert told[2:] == ["Bo", "Ada"]

    def test_no_report_names_a_patient(self, store: ObservationStore) -> None:
        store.append(batch_of(stay("Ada", count=2)))
        assert "Ada" not in repr(store.check()) + repr(store.read("Ada")) + repr(store)
