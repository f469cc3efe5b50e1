"""The journal of a hospital keeps the contract, survives crashes and failing disks, and never forgets a charge."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtwin_client.file_journal import ANSWERS, LINES, FileJournal, LocalDisk, read_spending
from fedtwin_client.journal import Journal, JournalError, Spend
from fedtwin_shared.round import Arrays, RefusalCode
from tests.client.setting import Ward, make_setting
from tests.contracts.journal_contract import LIMIT, STUDY, JournalContract, answer, assert_same, key
from tests.world import make_world

Answer = tuple[bytes, Arrays, bytes]


class TestFileJournal(JournalContract):
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Iterator[Journal]:
        with FileJournal(tmp_path / "journal") as journal:
            yield journal


def open_again(folder: Path) -> Spend:
    with FileJournal(folder) as journal:
        return journal.charged(STUDY)


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with FileJournal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.seal(key(), answer())
        journal.charge(key(round_=2), Spend(steps=4), limit=LIMIT)
    with FileJournal(tmp_path) as journal:
        assert journal.charged(STUDY) == Spend(steps=7)
        assert_same(journal.sealed(key()), answer())
        assert journal.sealed(key(round_=2)) is None
        assert journal.charge(key(round_=2), Spend(steps=1), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT
        journal.seal(key(round_=2), answer(2))
        assert_same(journal.sealed(key()), answer())
        assert_same(journal.sealed(key(round_=2)), answer(2))


def test_a_second_process_gets_a_clear_error(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedtwin_client.file_journal import FileJournal\n"
        "FileJournal(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with FileJournal(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode != 0
        assert "expected no other process with this journal, found one that runs" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_spending_is_read_while_the_hospital_runs(tmp_path: Path) -> None:
    assert read_spending(tmp_path) == {}
    with FileJournal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        assert read_spending(tmp_path) == {STUDY: Spend(steps=3)}


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with FileJournal(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for name in (LINES, ANSWERS):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def two_charges(folder: Path) -> bytes:
    with FileJournal(folder) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.charge(key(round_=2), Spend(steps=4), limit=LIMIT)
    return (folder / LINES).read_bytes()


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path: Path) -> None:
    content = two_charges(tmp_path)
    first = content.index(b"\n") + 1
    for length in range(first, len(content)):
        (tmp_path / LINES).write_bytes(content[:length])
        assert read_spending(tmp_path)[STUDY] == Spend(steps=3)
        assert open_again(tmp_path) == Spend(steps=3)
        assert (tmp_path / LINES).read_bytes() == content[:first]
    with FileJournal(tmp_path) as journal:
        assert journal.charge(key(round_=2), Spend(steps=4), limit=LIMIT) is None
    assert (tmp_path / LINES).read_bytes() == content


def test_any_other_damage_closes_the_journal(tmp_path: Path) -> None:
    content = two_charges(tmp_path)
    first = content.index(b"\n") + 1
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(0, len(content) - 1, 7)]
    dropped_charge = content[first:]
    assert content[:first] + dropped_charge == content
    for damaged in (*flipped, content + content, b"\n" + content):
        (tmp_path / LINES).write_bytes(damaged)
        with pytest.raises(JournalError):
            FileJournal(tmp_path)
        with pytest.raises(JournalError):
            read_spending(tmp_path)
    (tmp_path / LINES).write_bytes(content)
    assert open_again(tmp_path) == Spend(steps=7)  # a failed opening leaves no lock behind


def test_a_damaged_answer_counts_as_not_sealed(tmp_path: Path) -> None:
    with FileJournal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.seal(key(), answer())
    data = bytearray((tmp_path / ANSWERS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / ANSWERS).write_bytes(data)
    with FileJournal(tmp_path) as journal:
        assert journal.sealed(key()) is None
        assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT


class FailingDisk(LocalDisk):
    """Fails at the n-th call of one kind, before or after the call took effect, or half-way through."""

    def __init__(self, kind: str, number: int, *, effect: str) -> None:
        self.kind, self.left, self.effect = kind, number, effect

    def append(self, descriptor: int, data: bytes) -> None:
        if self._fails("append"):
            super().append(descriptor, {"none": b"", "half": data[: len(data) // 2], "all": data}[self.effect])
            raise OSError(28, "No space left on device")
        super().append(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if self._fails("sync"):
            if self.effect == "all":
                super().sync(descriptor)
            raise OSError(5, "Input/output error")
        super().sync(descriptor)

    def _fails(self, kind: str) -> bool:
        if kind == self.kind:
            self.left -= 1
        return kind == self.kind and self.left == 0


def refuse_to_go_on(journal: FileJournal) -> None:
    assert journal.broken
    with pytest.raises(JournalError):
        journal.charge(key(round_=9), Spend(steps=1), limit=LIMIT)


@pytest.mark.parametrize(
    ("kind", "effect", "persisted"),
    [("append", "none", False), ("append", "half", False), ("append", "all", True), ("sync", "all", True)],
)
def test_a_failed_charge_is_an_error_whether_it_persisted_or_not(
    tmp_path: Path, kind: str, effect: str, persisted: bool
) -> None:
    with FileJournal(tmp_path, disk=FailingDisk(kind, 1, effect=effect)) as journal:
        with pytest.raises(JournalError):
            journal.charge(key(), Spend(steps=3), limit=LIMIT)
        refuse_to_go_on(journal)
    assert open_again(tmp_path) == Spend(steps=3 if persisted else 0)


@pytest.mark.parametrize("effect", ["none", "half", "all"])
@pytest.mark.parametrize(("kind", "number"), [("append", 2), ("append", 3), ("sync", 2), ("sync", 3)])
def test_a_failed_seal_is_an_error_whether_it_persisted_or_not(
    tmp_path: Path, kind: str, number: int, effect: str
) -> None:
    with FileJournal(tmp_path, disk=FailingDisk(kind, number, effect=effect)) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        with pytest.raises(JournalError):
            journal.seal(key(), answer())
        refuse_to_go_on(journal)
    with FileJournal(tmp_path) as journal:
        assert journal.charged(STUDY) == Spend(steps=3)
        if (kind, number, effect) in {
            ("append", 3, "all"),
            ("sync", 3, "none"),
            ("sync", 3, "half"),
            ("sync", 3, "all"),
        }:
            assert_same(journal.sealed(key()), answer())  # failed but persisted
        else:
            assert journal.sealed(key()) is None  # failed and not persisted
        assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT


class DeadlyDisk(LocalDisk):
    """Kills its own process at one call: before it, half-way through it, or after it."""

    def __init__(self, kind: str, number: int, effect: str) -> None:
        self.kind, self.left, self.effect = kind, number, effect

    def append(self, descriptor: int, data: bytes) -> None:
        if self._is_here("append"):
            super().append(descriptor, {"none": b"", "half": data[: len(data) // 2], "all": data}[self.effect])
            die()
        super().append(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if self._is_here("sync"):
            super().sync(descriptor)
            die()
        super().sync(descriptor)

    def _is_here(self, kind: str) -> bool:
        if kind == self.kind:
            self.left -= 1
        return kind == self.kind and self.left == 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# Where the process is killed: call of the disk, and what it still did; then what must be true of one training step.
POINTS = {
    "before the charge": (("append", 1, "none"), Spend(), False),
    "half of the charge": (("append", 1, "half"), Spend(), False),
    "charge not synced": (("append", 1, "all"), Spend(steps=1), False),
    "charge durable": (("sync", 1, "all"), Spend(steps=1), False),
    "during training": (None, Spend(steps=1), False),
    "before the seal": (("append", 2, "none"), Spend(steps=1), False),
    "half of the answer": (("append", 2, "half"), Spend(steps=1), False),
    "answer not pointed to": (("sync", 2, "all"), Spend(steps=1), False),
    "half of the seal": (("append", 3, "half"), Spend(steps=1), False),
    "seal not synced": (("append", 3, "all"), Spend(steps=1), True),
    "seal durable": (("sync", 3, "all"), Spend(steps=1), True),
}


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_at_any_point_no_more_is_touched_than_charged(tmp_path: Path, point: str) -> None:
    place, charged, is_sealed = POINTS[point]
    touched, world = tmp_path / "touched", make_world()

    def touch() -> None:
        with touched.open("ab") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        if place is None:
            die()

    plan = make_setting(world).plan()

    def run(disk: LocalDisk | None) -> tuple[Spend, Answer]:
        with FileJournal(tmp_path / "journal", disk=disk) as journal:
            setting = make_setting(world, journal=journal, ward=Ward(before_training=touch))
            return journal.charged(world.study.digest), setting.hospital.answer(plan, setting.model())

    child = os.fork()
    if child == 0:
        run(DeadlyDisk(*place) if place else None)
        os._exit(1)  # it should be dead
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL

    trained_before = touched.stat().st_size if touched.exists() else 0
    assert trained_before <= charged.steps
    found, (envelope, arrays, _) = run(None)
    assert found == charged
    if charged == Spend():  # nothing was spent: the same attempt is trained now
        assert touched.stat().st_size == 1
        assert arrays
    else:
        trained_after = touched.stat().st_size if touched.exists() else 0
        assert trained_after == trained_before  # never a second time
        assert bool(arrays) == is_sealed
        assert (b"refusal" in envelope) != is_sealed
        assert run(None)[1][0] == envelope
