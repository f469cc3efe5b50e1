"""The one door: whatever came in by any transport is judged here, kept, and only then remembered as taken.

Design note: the thin stateful shell around `device` and `readings`. `take` returns when everything is safe; a transport
acknowledges after that and not before. Where a sink fails nothing is remembered, the sender is refused and sends again:
what was kept before the failure may then be kept twice, and none is lost. The registry's file is read again when it has
changed, so a revocation holds from the next message on.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from fedtwin_client.ingest.device import NEW, Device, Gap, Progress, check_readings, spend
from fedtwin_client.ingest.readings import Readings, SetAside, believe
from fedtwin_client.ingest.records import Record
from fedtwin_client.ingest.registry import Registry, read_registry
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_client.quarantine import Reason, Verdicts
from fedtwin_shared.errors import FedtwinError

RECENT: Final = 4096  # whole messages of a device that are known again

NOT_REGISTERED: Final = "not registered or revoked"
RATE: Final = "more than the agreed rate, send again later"
NOT_STORED: Final = "could not be stored, send again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sinks:
    """Where everything goes; each is durable when it returns and raises `OSError` or `FedtwinError` when it is not.

    observations: what was accepted. aside: what was not, with reasons. records: a device's id and its records.
    gaps: alarms; they are told, not kept.
    """

    observations: Callable[[ObservationBatch], None]
    aside: Callable[[SetAside], None]
    records: Callable[[str, Sequence[Record]], None]
    gaps: Callable[[Sequence[Gap]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one message: accepted plus set aside is its readings, or it was refused whole with fixed words."""

    accepted: int = 0
    set_aside: int = 0
    records: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Since the start: accepted + set aside + refused = received.

    received: readings, and one for each message that was refused whole; refused: those messages.
    """

    received: int = 0
    accepted: int = 0
    set_aside: int = 0
    refused: int = 0
    records: int = 0


class Gateway:
    """Judges and keeps what devices send. All its methods may be called from any thread."""

    def __init__(self, registry: Path, sinks: Sinks, *, clock: Callable[[], int]) -> None:
        """`registry`: the file of devices. `clock`: milliseconds since 1970 UTC. Raises `ConfigurationError`."""
        self._path = registry
        self._sinks = sinks
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = _stamp(registry)
        self._registry = read_registry(registry)
        self._progress: dict[str, Progress] = {}
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
        with self._lock:
            return dict(self._reasons)

    def now(self) -> int:
        """Milliseconds since 1970 UTC."""
        return self._clock()

    def registry(self) -> Registry:
        """The devices as the file has them now. A file that became unreadable lets nobody in."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            with self._lock:
                self._stamp = stamp
                self._registry = Registry(devices={})
                with contextlib.suppress(FedtwinError):
                    self._registry = read_registry(self._path)
        return self._registry

    def refuse(self, words: str) -> Receipt:
        """Count a message that was refused before it came here."""
        with self._lock:
            self._totals = replace(self._totals, received=self._totals.received + 1, refused=self._totals.refused + 1)
        return Receipt(refused=words)

    def take(
        self, device: Device | None, readings: Readings, records: Sequence[Record] = (), *, digest: bytes = b""
    ) -> Receipt:
        """Keep what one device sent; when this returns without `refused`, it is safe.

        `digest` names the message where the transport repeats messages without numbering readings: the same again is
        set aside as a duplicate, which is no refusal, because its sender only missed our answer.
        """
        if device is None:
            return self.refuse(NOT_REGISTERED)
        with self._lock:
            receipt = self._take(device, readings, records, digest)
        return receipt if not receipt.refused else self.refuse(receipt.refused)

    def _take(self, device: Device, readings: Readings, records: Sequence[Record], digest: bytes) -> Receipt:
        now = self._clock()
        before = self._progress.get(device.id, NEW)
        paid = spend(before, len(readings) + len(records), device, now=now)
        if paid is None:
            return Receipt(refused=RATE)
        recent = self._recent.setdefault(device.id, OrderedDict())
        gaps: Sequence[Gap] = ()
        if digest and digest in recent:
            verdicts, progress = Verdicts(len(readings)), paid
            verdicts.reject(np.ones(len(readings), bool), Reason.DUPLICATE)
            records = ()
        else:
            verdicts, progress, gaps = check_readings(readings, device, paid, now=now)
            records = records if device.state == "active" else ()
        judged = believe(readings, verdicts, device=device.id, shift=device.clock)
        try:
            if len(judged.set_aside):
                self._sinks.aside(judged.set_aside)
            if records:
                self._sinks.records(device.id, records)
            if len(judged.batch):
                self._sinks.observations(judged.batch)
        except (OSError, FedtwinError):
            return Receipt(refused=NOT_STORED)
        # Nothing was remembered up to here: a crash or a failure means that the sender sends again and is believed.
        self._progress[device.id] = progress
        if digest:
            recent[digest] = None
            if len(recent) > RECENT:
                recent.popitem(last=False)
        self._reasons.update(judged.set_aside.counts())
        self._totals = replace(
            self._totals,
            received=self._totals.received + len(readings),
            accepted=self._totals.accepted + len(judged.batch),
            set_aside=self._totals.set_aside + len(judged.set_aside),
            records=self._totals.records + len(records),
        )
        if gaps:
            self._sinks.gaps(gaps)
        return Receipt(accepted=len(judged.batch), set_aside=len(judged.set_aside), records=len(records))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino
