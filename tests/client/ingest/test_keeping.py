"""The gateway on the real store: one commit, restarts that know what was taken, and a store that comes back."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.ingest.device import NEW, WINDOW, Progress, check_readings
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_STORED, Message
from fedtwin_client.ingest.keeping import StoreKeeper, read_asides, read_progress, read_records, write_progress
from fedtwin_client.ingest.readings import NO_FAULT, SOUND, Draft, Readings
from fedtwin_client.ingest.records import PatientRecord
from fedtwin_client.ingest.registry import Registry, add_device, write_registry
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_client.quarantine import Reason
from fedtwin_client.store.block_store import BlockStore, open_store
from fedtwin_client.store.store import StoreError
from tests.client.ingest.bedside import NOW, make_device

MONITOR = make_device("monitor", b"a", frozenset({"Ada", "Bo"}))
RECORD = PatientRecord(patient="Ada", identifiers=(("s", "1"),), sex="female", born="", deceased=False, active=True)


def readings(*numbers: int, patient: str = "Ada", value: float = 80.0) -> Readings:
    draft = Draft()
    for number in numbers:
        draft.rows.append((patient, ("heart_rate", "/min"), NOW - 1000 + number, value, number, SOUND, NO_FAULT))
    return draft.readings()


def open_gateway(folder: Path, keeper: StoreKeeper) -> Gateway:
    registry = folder / "devices.json"
    if not registry.exists():
        write_registry(registry, add_device(Registry(devices={}), MONITOR))
    return Gateway(registry, keeper, clock=lambda: NOW)


def keep_in(folder: Path) -> StoreKeeper:
    return StoreKeeper(lambda check: open_store(folder / "store", check=check))


def test_a_restart_knows_what_was_taken(tmp_path: Path) -> None:
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    assert gateway.take(MONITOR, readings(0, 1, 3)).accepted == 3
    keeper.close()
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    receipt = gateway.take(MONITOR, readings(0, 1, 2, 3, 4))
    assert (receipt.accepted, receipt.duplicate) == (2, 3)
    assert sorted(keeper.store().read("Ada").sequence.tolist()) == [0, 1, 2, 3, 4]
    keeper.close()


def test_what_is_set_aside_and_what_is_no_observation_is_kept_and_goes_with_its_patient(tmp_path: Path) -> None:
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    gateway.take(MONITOR, readings(0, value=900.0), [RECORD])
    gateway.take(MONITOR, readings(1, patient="Zoe"))
    gateway.take(MONITOR, readings(2, patient=""))
    store = keeper.store()
    asides = {(patient, one.reason, one.sequence) for patient, one in read_asides(store)}
    assert asides == {
        ("Ada", Reason.IMPLAUSIBLE, 0),
        ("Zoe", Reason.FOREIGN_PATIENT, 1),
        ("", Reason.PATIENT_MISSING, 2),
    }
    assert [one.value for _, one in read_asides(store, "Ada")] == [900.0]
    assert list(read_records(store)) == [(NOW, RECORD)]
    with gateway.hold():
        store.forget("Ada")
    assert list(read_records(store)) == []
    assert {patient for patient, _ in read_asides(store)} == {"Zoe", ""}
    receipt = gateway.take(MONITOR, readings(3, 4), [RECORD])
    assert (receipt.forgotten, receipt.accepted, receipt.records) == (2, 0, 0)
    totals = gateway.totals
    assert (totals.received, totals.accepted, totals.set_aside, totals.refused) == (5, 0, 3, 2)
    assert len(store.read("Ada")) == 0
    keeper.close()


class Unsteady:
    """Opens a store whose next commits fail, as after a lost server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.down = folder, False

    def open(self, check: bool) -> BlockStore:
        if self.down:
            raise StoreError(expected="a database that answers", found="none")
        return open_store(self.folder / "store", check=check)


def test_a_store_that_broke_is_opened_again(tmp_path: Path) -> None:
    unsteady = Unsteady(tmp_path)
    keeper = StoreKeeper(unsteady.open)
    gateway = open_gateway(tmp_path, keeper)
    gateway.take(MONITOR, readings(0))
    keeper.store()._database.broken = True
    unsteady.down = True
    assert gateway.take(MONITOR, readings(1)).refused == NOT_STORED
    assert not keeper.is_well()
    unsteady.down = False
    assert gateway.take(MONITOR, readings(0, 1)).accepted == 1
    assert keeper.openings == 2
    keeper.close()


def test_whoever_waits_is_kept_together_and_answered_each(tmp_path: Path) -> None:
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    receipts: list[int] = []
    with gateway.hold():
        threads = [
            threading.Thread(
                target=lambda number=number: receipts.append(gateway.take(MONITOR, readings(number)).accepted)
            )
            for number in range(20)
        ]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(10)
    assert receipts == [1] * 20
    assert gateway.totals.accepted == 20
    assert gateway.totals.commits < 20
    assert len(keeper.store().read("Ada")) == 20
    keeper.close()


def test_a_repetition_inside_one_commit_is_known(tmp_path: Path) -> None:
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    same = [Message(device=MONITOR, readings=readings(0, 1), digest=b"m")] * 2
    first, second = gateway.take_all(same)
    third, fourth = gateway.take_all([Message(device=MONITOR, readings=readings(1, 2))] * 2)
    assert [one.accepted for one in (first, second, third, fourth)] == [2, 0, 1, 0]
    assert [one.duplicate for one in (first, second, third, fourth)] == [0, 2, 1, 2]
    keeper.close()


def test_a_fault_of_ours_refuses_everybody_who_waited(tmp_path: Path) -> None:
    class Faulty(StoreKeeper):
        def keep(self, intake: object) -> None:
            raise ZeroDivisionError

    keeper = Faulty(lambda check: open_store(tmp_path / "store", check=check))
    gateway = open_gateway(tmp_path, keeper)
    outcomes: list[str] = []

    def take(number: int) -> None:
        try:
            outcomes.append(gateway.take(MONITOR, readings(number)).refused)
        except ZeroDivisionError:
            outcomes.append("raised")

    with gateway.hold():
        threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while len(gateway._waiting) < 3:
            threading.Event().wait(0.01)
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == [NOT_STORED, NOT_STORED, "raised"]
    keeper.close()


@given(batches=st.lists(st.lists(st.integers(0, 3 * WINDOW), min_size=1, max_size=8), max_size=8))
def test_progress_survives_being_written(batches: list[list[int]]) -> None:
    progress: Progress = NEW
    for numbers in batches:
        _, progress, _ = check_readings(readings(*numbers), MONITOR, progress, now=NOW + 10**6)
    again = read_progress(write_progress(progress))
    assert (again.highest, again.seen, again.latest) == (progress.highest, progress.seen, progress.latest)


def test_batches_are_joined_in_order(tmp_path: Path) -> None:
    kept: list[ObservationBatch] = []
    keeper = keep_in(tmp_path)
    gateway = open_gateway(tmp_path, keeper)
    gateway._on_kept = kept.append
    gateway.take_all([Message(device=MONITOR, readings=one) for one in (readings(0), readings(1, 2, patient="Bo"))])
    (batch,) = kept
    assert [batch.patients[index] for index in batch.patient] == ["Ada", "Bo", "Bo"]
    assert np.array_equal(batch.sequence, [0, 1, 2])
    keeper.close()
