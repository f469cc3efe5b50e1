"""The one door: whatever came in by any transport is judged here, kept, and only then remembered as taken.

Design note: the thin stateful shell around `device` and `readings`. `take` returns when everything is safe; a transport
acknowledges after that and not before. Of several threads that wait, the first one keeps what all of them brought, in
one commit of the store. Where that fails nothing is remembered, every sender is refused and sends again. How far each
device has come is kept in the same commit, so a restart knows a repetition as well. The registry's file is read again
when it has changed, so a revocation holds from the next message on.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from fedtwin_client.ingest.device import NEW, Device, Gap, Progress, check_readings, spend
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, RATE, Intake, Keeper, Message, Receipt, Totals
from fedtwin_client.ingest.readings import Readings, SetAside, believe
from fedtwin_client.ingest.records import Record
from fedtwin_client.ingest.registry import Registry, read_registry
from fedtwin_client.observation_batch import ObservationBatch, join_batches
from fedtwin_client.quarantine import REASONS, Reason, Verdicts
from fedtwin_shared.errors import FedtwinError

RECENT: Final = 4096  # whole messages of a device that are known again, until a restart
TOGETHER: Final = 200_000  # readings of one commit, beyond the last message

_NOT_KEPT: Final = (REASONS.index(Reason.DUPLICATE), REASONS.index(Reason.PATIENT_FORGOTTEN))


@dataclass(slots=True)
class _Waiting:
    """Messages of one caller, and what became of them once that is known."""

    messages: Sequence[Message]
    receipts: list[Receipt] | None = None


@dataclass(slots=True)
class _Commit:
    """What a commit would keep and change; nothing of it counts before it is kept."""

    now: int
    forgotten: Collection[str]
    progress: dict[str, Progress] = field(default_factory=dict)
    digests: dict[str, dict[bytes, None]] = field(default_factory=dict)
    batches: list[ObservationBatch] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    reasons: Counter[Reason] = field(default_factory=Counter)


class Gateway:
    """Judges and keeps what devices send. All its methods may be called from any thread.

    - a message is acknowledged once it is kept, and never before
    - what was kept is a duplicate when it comes again, also after a restart, where its readings are numbered
    """

    def __init__(
        self,
        registry: Path,
        keeper: Keeper,
        *,
        clock: Callable[[], int],
        on_kept: Callable[[ObservationBatch], None] = lambda batch: None,
        on_gaps: Callable[[Sequence[Gap]], None] = lambda gaps: None,
    ) -> None:
        """`registry`: the file of devices. `clock`: milliseconds since 1970 UTC. Raises `FedtwinError`."""
        self._path, self._keeper, self._clock = registry, keeper, clock
        self._on_kept, self._on_gaps = on_kept, on_gaps
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._stamp = _stamp(registry)
        self._registry = read_registry(registry)
        self._progress = dict(keeper.progress())
        self._recent: dict[str, OrderedDict[bytes, None]] = {}
        self._totals = Totals()
        self._reasons: Counter[Reason] = Counter()

    @property
    def totals(self) -> Totals:
        """What was counted so far."""
        return self._totals

    @property
    def reasons(self) -> Mapping[Reason, int]:
        """How often each reason was given so far."""
        with self._counting:
            return dict(self._reasons)

    def now(self) -> int:
        """Milliseconds since 1970 UTC."""
        return self._clock()

    def registry(self) -> Registry:
        """The devices as the file has them now. A file that became unreadable lets nobody in."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            with self._counting:
                self._stamp = stamp
                self._registry = Registry(devices={})
                with contextlib.suppress(FedtwinError):
                    self._registry = read_registry(self._path)
        return self._registry

    def refuse(self, words: str) -> Receipt:
        """Count a message that was refused before it came here."""
        self._count([Receipt(refused=words)])
        return Receipt(refused=words)

    def take(
        self, device: Device | None, readings: Readings, records: Sequence[Record] = (), *, digest: bytes = b""
    ) -> Receipt:
        """Keep one message (see `Message`); when this returns without `refused`, it is safe."""
        return self.take_all([Message(device=device, readings=readings, records=records, digest=digest)])[0]

    def take_all(self, messages: Sequence[Message]) -> list[Receipt]:
        """Keep messages, together with whatever other threads bring meanwhile; a receipt for each, in order."""
        if not messages:
            return []
        mine = _Waiting(messages)
        self._waiting.append(mine)
        with self._lock:
            while mine.receipts is None:
                self._lead()
        return mine.receipts

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep nothing meanwhile: whatever comes waits."""
        with self._lock:
            yield

    def _lead(self) -> None:
        """Keep what waits, in the order in which it came; the lock is held."""
        group, rows = list[_Waiting](), 0
        while self._waiting and rows < TOGETHER:
            group.append(self._waiting.popleft())
            rows += sum(len(message.readings) for message in group[-1].messages)
        receipts = [Receipt(refused=NOT_STORED) for one in group for _ in one.messages]
        try:
            receipts = self._keep_all([message for one in group for message in one.messages])
        finally:  # also after a fault of ours: nobody waits for ever, and nobody is told that it is safe
            self._count(receipts)
            answers = iter(receipts)
            for one in group:
                one.receipts = [next(answers) for _ in one.messages]

    def _keep_all(self, messages: Sequence[Message]) -> list[Receipt]:
        failed = [Receipt(refused=NOT_STORED if message.device else NOT_REGISTERED) for message in messages]
        try:
            ids = {patient for message in messages for patient in message.readings.patients}
            ids |= {record.patient for message in messages for record in message.records}
            commit = _Commit(now=self._clock(), forgotten=self._keeper.forgotten(ids))
            receipts = [self._judge(message, commit) for message in messages]
            batch = join_batches(commit.batches)
            if something := bool(len(batch) or commit.aside or commit.records):
                intake = Intake(
                    batch=batch,
                    aside=commit.aside,
                    records=commit.records,
                    progress=commit.progress,
                    time=commit.now,
                )
                self._keeper.keep(intake)
        except (OSError, FedtwinError):
            return failed
        # Nothing was remembered up to here: a crash or a failure means that the sender sends again and is believed.
        self._remember(commit, kept=something)
        if len(batch):
            self._on_kept(batch)
        if commit.gaps:
            self._on_gaps(commit.gaps)
        return receipts

    def _judge(self, message: Message, commit: _Commit) -> Receipt:
        """Add to the commit what one message brings."""
        device, readings, records = message.device, message.readings, message.records
        if device is None:
            return Receipt(refused=NOT_REGISTERED)
        before = commit.progress.get(device.id) or self._progress.get(device.id, NEW)
        paid = spend(before, len(readings) + len(records), device, now=commit.now)
        if paid is None:
            return Receipt(refused=RATE)
        forgotten = None
        if commit.forgotten:
            forgotten = np.array([*(one in commit.forgotten for one in readings.patients), False])[readings.patient]
        if message.digest and self._is_known(device.id, message.digest, commit):
            verdicts, progress, gaps = Verdicts(len(readings)), paid, tuple[Gap, ...]()
            verdicts.reject(np.ones(len(readings), bool), Reason.DUPLICATE)
            records = ()
        else:
            verdicts, progress, gaps = check_readings(readings, device, paid, now=commit.now, forgotten=forgotten)
            records = [one for one in records if device.state == "active" and one.patient not in commit.forgotten]
        judged = believe(readings, verdicts, device=device.id, shift=device.clock)
        commit.progress[device.id] = progress
        if message.digest:
            commit.digests.setdefault(device.id, {})[message.digest] = None
        found = judged.set_aside.counts()
        duplicate, erased = found.get(Reason.DUPLICATE, 0), found.get(Reason.PATIENT_FORGOTTEN, 0)
        aside = _without(judged.set_aside, _NOT_KEPT) if duplicate or erased else judged.set_aside
        if len(judged.batch):
            commit.batches.append(judged.batch)
        if len(aside):
            commit.aside.append(aside)
        commit.records += records
        commit.gaps += gaps
        commit.reasons.update(found)
        return Receipt(
            accepted=len(judged.batch),
            set_aside=len(aside),
            duplicate=duplicate,
            forgotten=erased,
            records=len(records),
        )

    def _is_known(self, device: str, digest: bytes, commit: _Commit) -> bool:
        return digest in self._recent.get(device, ()) or digest in commit.digests.get(device, ())

    def _remember(self, commit: _Commit, *, kept: bool) -> None:
        self._progress.update(commit.progress)
        for device, digests in commit.digests.items():
            recent = self._recent.setdefault(device, OrderedDict())
            recent.update(digests)
            while len(recent) > RECENT:
                recent.popitem(last=False)
        with self._counting:
            self._reasons.update(commit.reasons)
            self._totals = replace(self._totals, commits=self._totals.commits + kept)

    def _count(self, receipts: Sequence[Receipt]) -> None:
        accepted, aside = sum(one.accepted for one in receipts), sum(one.set_aside for one in receipts)
        duplicate, records = sum(one.duplicate for one in receipts), sum(one.records for one in receipts)
        refused = sum(one.forgotten + bool(one.refused) for one in receipts)
        with self._counting:
            total = self._totals
            self._totals = replace(
                total,
                received=total.received + accepted + aside + duplicate + refused,
                accepted=total.accepted + accepted,
                set_aside=total.set_aside + aside,
                duplicate=total.duplicate + duplicate,
                refused=total.refused + refused,
                records=total.records + records,
            )


def _without(aside: SetAside, reasons: Sequence[int]) -> SetAside:
    kept = ~np.isin(aside.reason, reasons)
    return replace(aside, row=aside.row[kept], reason=aside.reason[kept])


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
