"""Rounds of the coordinator's own app with real hospitals behind it: an update counts only where a ledger proves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedtwin_server.errors import RunError
from fedtwin_server.run_store import FileRunStore, MemoryRunStore
from fedtwin_server.server_app import Run, conduct
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.ledger.evidence import Fault
from fedtwin_shared.ledger.witnesses import Witnesses
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import Task
from fedtwin_shared.signing import parse_canonical
from fedtwin_shared.wire import pack, unpack
from tests.client.setting import SITE, make_setting
from tests.server.consortium import Node, SilentGrid, StillClock, honest, start
from tests.witnessed import Watch, log_key, make_watch, open_ledger
from tests.world import World, make_world


@pytest.fixture
def world() -> World:
    return make_world(sites=("north", "south"), training={"rounds": 2, "learning_rate": 1.0, "minimum_sites": 1})


@pytest.fixture
def watch(tmp_path: Path, world: World) -> Watch:
    return make_watch(tmp_path / "witnesses", [log_key(world, SITE)])


def make_run(world: World, watch: Watch, clock: StillClock, folder: Path) -> Run:
    signed = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    store = FileRunStore(folder)
    store.save(start(world))
    return Run(
        signed=signed,
        key=world.coordinator,
        store=store,
        witnesses=watch.witnesses,
        clock=clock,
        sleep=clock.sleep,
    )


def test_an_update_counts_only_with_its_reservation_in_a_witnessed_ledger(
    tmp_path: Path, world: World, watch: Watch
) -> None:
    clock = StillClock()
    run = make_run(world, watch, clock, tmp_path / "run")
    with open_ledger(tmp_path / "ledger", world, SITE, watch) as journal:
        setting = make_setting(world, journal=journal)

        def north(message: Message) -> RecordDict:
            return pack(*setting.hospital.answer(*unpack(message.content)))

        # South signs as well as north does, and charges nobody.
        nodes = {1: Node(behaviour=north), 2: Node(behaviour=honest(world, "south"))}
        state = conduct(run, SilentGrid(nodes, clock))
    assert [record.sites for record in state.history] == [(SITE,)] * len(state.history)
    assert all(record.errors == {Fault.MISSING.value: 1} and record.unverified == 1 for record in state.history)
    kept = sorted(file.name for file in (tmp_path / "run" / "evidence").iterdir())
    assert kept == ["evaluate-2-1.json", "train-1-1.json", "train-2-1.json"]
    report = json.loads((tmp_path / "run" / "release" / "report.json").read_text(encoding="utf-8"))
    assert report["proof"] == {"asked": True, "witnesses": list(watch.names), "required": 3, "updates": 3, "proven": 3}
    found = parse_canonical((tmp_path / "run" / "evidence" / "train-1-1.json").read_bytes())
    assert isinstance(found, dict)
    assert set(found) == {SITE}


def test_a_hospital_cannot_prove_one_round_by_another(tmp_path: Path, world: World, watch: Watch) -> None:
    clock = StillClock()
    run = make_run(world, watch, clock, tmp_path / "run")
    with open_ledger(tmp_path / "ledger", world, SITE, watch) as journal:
        setting = make_setting(world, journal=journal)
        first: list[bytes] = []

        def cheat(message: Message) -> RecordDict:
            envelope, arrays, evidence = setting.hospital.answer(*unpack(message.content))
            first.append(evidence)
            return pack(envelope, arrays, first[0])

        with pytest.raises(RunError):
            conduct(run, SilentGrid({1: Node(behaviour=cheat)}, clock))
    failed = FileRunStore.load(run.store).failed if isinstance(run.store, FileRunStore) else None
    assert failed is not None
    assert (failed.task, failed.round, failed.errors) == (Task.TRAIN, 2, {Fault.RESERVE.value: 1})


def test_witnesses_that_come_back_let_the_run_go_on(tmp_path: Path, world: World, watch: Watch) -> None:
    clock = StillClock()
    run = make_run(world, watch, clock, tmp_path / "run")
    with open_ledger(tmp_path / "ledger", world, SITE, watch) as journal:
        setting = make_setting(world, journal=journal)

        def behaviour(message: Message) -> RecordDict:
            return pack(*setting.hospital.answer(*unpack(message.content)))

        watch.away = set(watch.names)
        with pytest.raises(RunError):
            conduct(run, SilentGrid({1: Node(behaviour=behaviour)}, clock))
        trained = setting.ward.trained
        watch.away = set()
        state = conduct(run, SilentGrid({1: Node(behaviour=behaviour)}, clock))
    assert trained == 1
    assert setting.ward.trained == 2  # the sealed answer of round 1, then round 2
    assert [record.attempt for record in state.history] == [1, 1, 1]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class KilledAtRelease(FileRunStore):
    """The coordinator dies when all rounds are done and nothing is released."""

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        raise Killed


@pytest.mark.parametrize("proven", [False, True])
def test_a_run_ends_with_the_witnesses_that_it_began_with(
    tmp_path: Path, world: World, watch: Watch, proven: bool
) -> None:
    clock, folder = StillClock(), tmp_path / "run"
    run = make_run(world, watch, clock, folder)
    run.store.close()
    with open_ledger(tmp_path / "ledger", world, SITE, watch) as journal:
        setting = make_setting(world, journal=journal)

        def north(message: Message) -> RecordDict:
            return pack(*setting.hospital.answer(*unpack(message.content)))

        nodes = {1: Node(behaviour=north)}
        began = watch.witnesses if proven else None
        with KilledAtRelease(folder) as store, pytest.raises(Killed):
            conduct(replace(run, witnesses=began, store=store), SilentGrid(nodes, clock))
        fewer = Witnesses(contacts=watch.witnesses.contacts, faulty=0)
        for other in (None, fewer) if proven else (watch.witnesses,):
            with FileRunStore(folder) as again, pytest.raises(RunError, match="as the run began"):
                conduct(replace(run, witnesses=other, store=again), SilentGrid(nodes, clock))
        assert not (folder / "release").exists()
        if proven:
            (folder / "evidence" / "train-2-1.json").unlink()
        with FileRunStore(folder) as again:
            conduct(replace(run, witnesses=began, store=again), SilentGrid(nodes, clock))
    report = json.loads((folder / "release" / "report.json").read_text(encoding="utf-8"))["proof"]
    assert report["asked"] == proven
    assert not proven or (report["updates"], report["proven"]) == (3, 2)  # what is not kept is not claimed


def test_a_simulation_asks_for_no_proof(world: World) -> None:
    clock = StillClock()
    signed = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    run = Run(signed=signed, key=world.coordinator, store=MemoryRunStore(start(world)), clock=clock, sleep=clock.sleep)
    state = conduct(run, SilentGrid({1: Node(behaviour=honest(world, "south"))}, clock))
    assert isinstance(run.store, MemoryRunStore)
    assert run.store.released is not None
    assert run.store.released[1]["proof"] == {"asked": False}
    assert [record.sites for record in state.history] == [("south",)] * 3
