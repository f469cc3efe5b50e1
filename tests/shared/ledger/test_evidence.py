"""What proves an update's charge: an honest one verifies, and each way to fake it is refused under its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.journal import SealedAnswer, Spend, TaskKey
from fedtwin_shared.ledger.encoding import encode_entry, parse_entry
from fedtwin_shared.ledger.entry import Reserve
from fedtwin_shared.ledger.entry import TaskKey as LedgerKey
from fedtwin_shared.ledger.evidence import (
    EvidenceError,
    Expected,
    Fault,
    parse_evidence,
    prove_answer,
    verify_evidence,
)
from fedtwin_shared.ledger.mechanism import PoissonGaussian, Use
from fedtwin_shared.ledger.note import Checkpoint, VerifierKey, format_note, sign_note
from fedtwin_shared.ledger.store import LogWriter, NewEntry
from fedtwin_shared.ledger.study_programme import task_uses
from fedtwin_shared.ledger.witness_client import cosign_checkpoint
from fedtwin_shared.round import Task
from fedtwin_shared.signing import digest
from tests.witnessed import Watch, log_key, make_watch, open_ledger
from tests.world import World, make_world

ENVELOPE, PLAN = b"the signed answer", b"the signed plan"
RUN = "5" * 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer of a hospital, what it says of itself, and who watches."""

    world: World
    watch: Watch
    data: bytes
    second: bytes  # of the next round
    expected: Expected

    def verify(self, data: bytes, *, log: VerifierKey | None = None, required: int = 3) -> Checkpoint:
        log = log or log_key(self.world, "north")
        return verify_evidence(data, self.expected, log=log, witnesses=self.watch.witnesses.keys, required=required)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, world = tmp_path_factory.mktemp("evidence"), make_world()
    watch = make_watch(folder / "witnesses", [log_key(world, "north")])
    study, found = world.study, []
    with open_ledger(folder / "ledger", world, "north", watch) as journal:
        for number in (1, 2):
            key = TaskKey(study=study.digest, run=RUN, round=number, attempt=1, task=Task.TRAIN)
            spend = Spend(steps=study.training.local_steps)
            assert journal.charge(key, spend, limit=Spend(steps=study.planned_steps)) is None
            journal.seal(key, SealedAnswer(plan=digest(PLAN), envelope=ENVELOPE, arrays={}))
            found.append(journal.release(key))
    task = LedgerKey(study=study.digest, run=RUN, round=1, attempt=1, task="train")
    uses = task_uses(study, Task.TRAIN)
    expected = Expected(task=task, uses=uses, plan=digest(PLAN), output=digest(ENVELOPE))
    return Case(world=world, watch=watch, data=found[0], second=found[1], expected=expected)


def test_an_honest_answer_is_proven_by_the_checkpoint_that_holds_its_seal(case: Case) -> None:
    evidence = parse_evidence(case.data)
    assert case.verify(case.data).size == evidence.seal.position + 1
    assert evidence.encode() == case.data


def edit_reserve(**changes: object) -> Callable[[Case], bytes]:
    def edit(case: Case) -> bytes:
        evidence = parse_evidence(case.data)
        entry = parse_entry(evidence.reserve.entry)
        assert isinstance(entry, Reserve)
        other = encode_entry(replace(entry, **changes))  # type: ignore[arg-type]  # fields of an entry
        return replace(evidence, reserve=replace(evidence.reserve, entry=other)).encode()

    return edit


def edit_place(**changes: object) -> Callable[[Case], bytes]:
    def edit(case: Case) -> bytes:
        evidence = parse_evidence(case.data)
        return replace(evidence, seal=replace(evidence.seal, **changes)).encode()  # type: ignore[arg-type]  # its own

    return edit


def swap_in(name: str) -> Callable[[Case], bytes]:
    """The reservation or the seal of the next round, proven under the next round's checkpoint."""

    def edit(case: Case) -> bytes:
        first, second = parse_evidence(case.data), parse_evidence(case.second)
        return replace(first, note=second.note, **{name: getattr(second, name)}).encode()

    return edit


def without_signatures(count: int) -> Callable[[Case], bytes]:
    def edit(case: Case) -> bytes:
        evidence = parse_evidence(case.data)
        lines = evidence.note.splitlines(keepends=True)
        return replace(evidence, note=b"".join(lines[:-count])).encode()

    return edit


def exchange(case: Case) -> bytes:
    evidence = parse_evidence(case.data)
    return replace(evidence, reserve=replace(evidence.reserve, position=evidence.seal.position + 1)).encode()


FAKES: dict[str, tuple[Fault, Callable[[Case], bytes]]] = {
    "none": (Fault.MISSING, lambda case: b""),
    "nonsense": (Fault.FORM, lambda case: b"{}"),
    "another form": (Fault.FORM, lambda case: case.data + b"\n"),
    "a proof too long": (Fault.FORM, edit_place(proof=(bytes(32),) * 64)),
    "a proof of other hashes": (Fault.FORM, edit_place(proof=(bytes(31),))),
    "an unsigned note": (Fault.CHECKPOINT, without_signatures(5)),
    "the log alone": (Fault.COSIGNATURES, without_signatures(4)),
    "too few witnesses": (Fault.COSIGNATURES, without_signatures(2)),
    "another round's reservation": (Fault.RESERVE, swap_in("reserve")),
    "less than what ran": (Fault.RESERVE, lambda case: edit_reserve(uses=halved(case))(case)),
    "a lower price": (Fault.RESERVE, edit_reserve(price=1)),
    "another round's seal": (Fault.SEAL, swap_in("seal")),
    "a reservation that is in no tree": (Fault.INCLUSION, edit_reserve(salt="0" * 32)),
    "another place": (Fault.INCLUSION, edit_place(position=1)),
    "the seal before the reservation": (Fault.INCLUSION, exchange),
    "no proof": (Fault.INCLUSION, edit_place(proof=())),
}


def halved(case: Case) -> tuple[Use, ...]:
    (use,) = case.expected.uses
    assert isinstance(use.mechanism, PoissonGaussian)
    return (replace(use, mechanism=replace(use.mechanism, noise_multiplier=2 * use.mechanism.noise_multiplier)),)


@pytest.mark.parametrize("fake", FAKES)
def test_what_does_not_hold_is_refused_under_its_own_name(case: Case, fake: str) -> None:
    fault, forge = FAKES[fake]
    with pytest.raises(EvidenceError) as refused:
        case.verify(forge(case))
    assert refused.value.field == fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"plan": digest(b"another plan")}, Fault.SEAL),
        ({"output": digest(b"another answer")}, Fault.SEAL),
        ({"uses": ()}, Fault.RESERVE),
    ],
)
def test_evidence_of_another_answer_is_refused(case: Case, change: dict[str, object], fault: Fault) -> None:
    other = replace(case, expected=replace(case.expected, **change))  # type: ignore[arg-type]  # its own fields
    with pytest.raises(EvidenceError) as refused:
        other.verify(case.data)
    assert refused.value.field == fault


def test_another_hospitals_ledger_proves_nothing(case: Case) -> None:
    with pytest.raises(EvidenceError) as refused:
        case.verify(case.data, log=log_key(case.world, "south"))
    assert refused.value.field == Fault.CHECKPOINT


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_it_can_be_turned(case: Case, place: float, bit: int) -> None:
    data = bytearray(case.data)
    data[int(place * len(data))] ^= 1 << bit
    with pytest.raises(EvidenceError):
        case.verify(bytes(data), required=4)


def test_a_log_proves_only_what_its_checkpoint_holds(case: Case, tmp_path: Path) -> None:
    watch = make_watch(tmp_path / "witnesses", [log_key(case.world, "north")])
    key = TaskKey(study=case.world.study.digest, run=RUN, round=1, attempt=1, task=Task.TRAIN)
    with open_ledger(tmp_path / "ledger", case.world, "north", watch) as journal:
        early = journal.checkpoint()
        assert early is not None
        journal.charge(key, Spend(steps=1), limit=Spend(steps=3))
        journal.seal(key, SealedAnswer(plan=digest(PLAN), envelope=ENVELOPE, arrays={}))
        evidence = parse_evidence(journal.release(key))
    with pytest.raises(EvidenceError) as refused:
        replace(case, watch=watch).verify(replace(evidence, note=early).encode())
    assert refused.value.field == Fault.INCLUSION


def test_a_reservation_after_its_seal_is_none(case: Case, tmp_path: Path) -> None:
    """A log in which the charge was added once the answer was there, and which witnesses saw all the same."""
    evidence, key = parse_evidence(case.data), log_key(case.world, "north")
    watch = make_watch(tmp_path / "witnesses", [key])
    with LogWriter(tmp_path / "ledger.sqlite") as log:
        for kind, proven in (("seal", evidence.seal), ("reserve", evidence.reserve)):
            log.append([NewEntry(key=str(case.expected.task), kind=kind, body=proven.entry)])
        text = Checkpoint(origin=key.name, size=log.size, root=log.root()).text
        note = format_note(text, [sign_note(text, name=key.name, key=case.world.sites["north"])])
        cosigned = cosign_checkpoint(log, note, watch.witnesses.contacts).note
        late = prove_answer(log, str(case.expected.task), cosigned)
    with pytest.raises(EvidenceError, match="before the seal"):
        replace(case, watch=watch).verify(late.encode())
