"""A hospital whose ledger is witnessed: nothing leaves unseen, and what waits costs nothing more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedtwin_client.journal import JournalError, Spend
from fedtwin_client.ledger_journal import LEDGER, LedgerJournal
from fedtwin_shared.ledger.account import Phase
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import Entry, Refusal, Release, Seal
from fedtwin_shared.ledger.evidence import parse_evidence
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.round import Refusal as SignedRefusal
from fedtwin_shared.round import RefusalCode, SiteUpdate, Task, verify_answer
from fedtwin_shared.signing import digest
from tests.client.setting import POLICY, SITE, Setting, make_setting
from tests.witnessed import Watch, log_key, make_watch, open_ledger
from tests.world import World, make_world


@dataclass(kw_only=True)
class Witnessed:
    """A hospital with its ledger open, and those who watch it."""

    setting: Setting
    journal: LedgerJournal
    watch: Watch
    folder: Path

    def answer(self, plan: bytes) -> tuple[SiteUpdate | SignedRefusal, bytes]:
        envelope, arrays, evidence = self.setting.hospital.answer(plan, self.setting.model())
        world = self.setting.world
        found = verify_answer(envelope, arrays, plan=plan, task=Task.TRAIN, study=world.study, roster=world.roster)
        return found, evidence

    def entries(self) -> list[Entry]:
        return read_entries(self.folder)


def read_entries(folder: Path) -> list[Entry]:
    with LogReader(folder / LEDGER) as log:
        return [parse_entry(data) for data in log.entries()]


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def watch(tmp_path: Path, world: World) -> Watch:
    return make_watch(tmp_path / "witnesses", [log_key(world, SITE)])


@pytest.fixture
def witnessed(tmp_path: Path, world: World, watch: Watch) -> Iterator[Witnessed]:
    folder = tmp_path / "ledger"
    with open_ledger(folder, world, SITE, watch) as journal:
        yield Witnessed(setting=make_setting(world, journal=journal), journal=journal, watch=watch, folder=folder)


def test_an_answer_leaves_with_the_checkpoint_that_its_release_names(witnessed: Witnessed) -> None:
    plan = witnessed.setting.plan()
    answer, evidence = witnessed.answer(plan)
    assert isinstance(answer, SiteUpdate)
    *_, seal, release = witnessed.entries()
    assert isinstance(seal, Seal)
    assert isinstance(release, Release)
    proven = parse_evidence(evidence)
    assert release.checkpoint == proven.seal.position + 1
    again, same = witnessed.answer(plan)
    assert isinstance(again, SiteUpdate)
    assert parse_evidence(same).seal == proven.seal
    assert witnessed.setting.ward.trained == 1


def test_one_witness_of_four_may_be_away(witnessed: Witnessed) -> None:
    witnessed.watch.away = {witnessed.watch.names[2]}
    answer, evidence = witnessed.answer(witnessed.setting.plan())
    assert isinstance(answer, SiteUpdate)
    assert evidence


def test_an_answer_that_too_few_witnesses_have_seen_waits(witnessed: Witnessed) -> None:
    setting, plan = witnessed.setting, witnessed.setting.plan()
    witnessed.watch.away = set(witnessed.watch.names[:2])
    for _ in range(2):
        answer, evidence = witnessed.answer(plan)
        assert isinstance(answer, SignedRefusal)
        assert answer.code is RefusalCode.WITNESSES_AWAY
        assert evidence == b""
    assert [task.phase for task in witnessed.journal.state.tasks.values()] == [Phase.SEALED]
    assert not witnessed.journal.broken
    witnessed.watch.away = set()
    answer, evidence = witnessed.answer(plan)
    assert isinstance(answer, SiteUpdate)
    assert evidence
    assert [task.phase for task in witnessed.journal.state.tasks.values()] == [Phase.RELEASED]
    # It was trained once, and paid once.
    assert setting.ward.trained == 1
    assert witnessed.journal.charged(setting.world.study.digest) == Spend(
        steps=setting.world.study.training.local_steps
    )


def test_a_waiting_answer_outlives_the_process(
    tmp_path: Path, world: World, watch: Watch, witnessed: Witnessed
) -> None:
    plan = witnessed.setting.plan()
    watch.away = set(watch.names)
    witnessed.answer(plan)
    witnessed.journal.close()
    watch.away = set()
    with open_ledger(tmp_path / "ledger", world, SITE, watch) as journal:
        after = make_setting(world, journal=journal)
        _, arrays, evidence = after.hospital.answer(plan, after.model())
        assert arrays
        assert evidence
        assert after.ward.trained == 0


def test_a_restored_backup_answers_nothing_and_is_caught_by_its_witnesses(
    tmp_path: Path, world: World, watch: Watch, witnessed: Witnessed
) -> None:
    ledger, backup = tmp_path / "ledger", tmp_path / "backup"
    witnessed.answer(witnessed.setting.plan())
    witnessed.journal.close()
    shutil.copytree(ledger, backup)
    with open_ledger(ledger, world, SITE, watch) as journal:
        later = make_setting(world, journal=journal)
        later.hospital.answer(later.plan(round=2), later.model())
    with open_ledger(backup, world, SITE, watch) as journal:
        # Alone it is a sound ledger: nothing in it says that there was more.
        restored = make_setting(world, journal=journal)
        _, arrays, evidence = restored.hospital.answer(restored.plan(round=2), restored.model())
        assert (arrays, evidence) == ({}, b"")
        assert journal.broken
        with pytest.raises(JournalError, match="earlier failed write"):
            journal.checkpoint()
    with open_ledger(backup, world, SITE, watch) as journal, pytest.raises(JournalError, match="witness"):
        journal.checkpoint()
    assert all(store.evidence() for store in watch.stores)


def test_every_refusal_is_an_entry_once(witnessed: Witnessed) -> None:
    setting = witnessed.setting
    bad = setting.plan(round=9)
    for _ in range(3):
        witnessed.answer(bad)
    setting.hospital.refuse(b"another bundle's message", RefusalCode.BUNDLE_UNKNOWN)
    refused = [(entry.plan, entry.code) for entry in witnessed.entries() if isinstance(entry, Refusal)]
    assert refused == [
        (digest(bad), RefusalCode.PLAN_UNVERIFIED.value),
        (digest(b"another bundle's message"), RefusalCode.BUNDLE_UNKNOWN.value),
    ]


@pytest.mark.parametrize("noise", [0.12, 0.02])
def test_a_study_that_no_budget_can_pay_is_refused_before_data_is_read(tmp_path: Path, noise: float) -> None:
    dear = make_world(privacy={"epsilon": 50_000.0, "delta": 1e-5, "noise_multiplier": noise})
    generous = POLICY.model_copy(update={"maximum_epsilon": 50_000.0, "minimum_noise": 0.01})
    with open_ledger(tmp_path, make_world(), SITE, None, asks=dear.study) as journal:
        setting = make_setting(dear, journal=journal, policy=generous)
        setting.hospital.prepare(dear.study.digest)
        _, arrays, _ = setting.hospital.answer(setting.plan(), setting.model())
        assert not journal.broken
        (refusal,) = [entry for entry in read_entries(tmp_path) if isinstance(entry, Refusal)]
    assert refusal.code == (RefusalCode.BUDGET_SPENT if noise > 0.1 else RefusalCode.POLICY).value
    assert arrays == {}
    assert (setting.ward.loaded, setting.ward.trained) == (0, 0)
