"""A device or feed that may speak, for whom and about what, and what it has said so far.

Design note: nobody is believed because of where they are. A device is known by its certificate or its key, and what it
says of itself counts for nothing. Everything here is record -> record: the shell keeps the newest `Progress`, and keeps
it only once the observations that it speaks of are safe, so that what was lost on the way is no duplicate when it comes
again. Times are milliseconds since 1970 UTC and passed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedtwin_client.ingest.readings import NO_FAULT, Readings, signals_of
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason, Verdicts

EARLY: Final = 60_000  # milliseconds that a device's clock may be ahead of ours
WINDOW: Final = 4096  # sequence numbers over which messages may arrive out of order

State = Literal["active", "quarantined", "revoked"]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One registered device or feed.

    identity: SHA-256, hex, of its certificate in DER or of its key. patients, signals: what it may speak for, None for
    all of them. rate: readings a second; burst: readings at once. oldest: seconds that a reading may lie back, so that
    what was stored can be forwarded. clock: milliseconds to add to its times. zone: of an HL7 feed that names none.
    """

    id: str
    identity: str
    patients: frozenset[str] | None
    signals: frozenset[str] | None
    rate: float = 1000.0
    burst: int = 10_000
    oldest: int = 31 * 86_400
    clock: int = 0
    zone: str = ""
    state: State = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a device has sent so far.

    highest: largest sequence number taken, -1 for none. seen: bit i says that `highest` - i was taken. latest: newest
    time of a reading. tokens: readings that it may send now, at time `filled`; None: it has not begun.
    """

    highest: int = -1
    seen: int = 0
    latest: int = -(2**53)
    tokens: float | None = None
    filled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """An alarm: the numbers `first` to `last`, both included, have not come (yet)."""

    device: str
    first: int
    last: int


NEW: Final = Progress()


def identity_of(secret: bytes) -> str:
    """Return the identity of whoever shows a certificate (DER) or a key.

    >>> identity_of(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(secret).hexdigest()


def spend(progress: Progress, readings: int, device: Device, *, now: int) -> Progress | None:
    """Return the progress with so many readings taken from the token bucket, None when it holds too few.

    - over any time t no more than burst + rate · t readings are let through, beyond the last message
    - a message larger than the burst passes when the bucket is full, and is paid off
    - a clock that goes back fills nothing
    """
    tokens = float(device.burst) if progress.tokens is None else progress.tokens
    elapsed = max(now - progress.filled, 0) / 1000 if progress.tokens is not None else 0.0
    tokens = min(tokens + elapsed * device.rate, float(device.burst))
    if not tokens >= min(readings, device.burst):
        return None
    return replace(progress, tokens=tokens - readings, filled=max(now, progress.filled))


def check_readings(
    readings: Readings, device: Device, progress: Progress, *, now: int, forgotten: Flags | None = None
) -> tuple[Verdicts, Progress, tuple[Gap, ...]]:
    """Return what the registry says against each reading, the device's progress after them, and new gaps.

    forgotten: bool[readings], of patients who were erased; that comes before every other reason.

    - a reading for a patient or of a signal that is not the device's is set aside
    - a sequence number is taken once; one from before the window is `replayed`
    - a time further ahead than `EARLY`, or back than the device's `oldest`, is set aside, after its clock is corrected
    """
    verdicts = Verdicts(len(readings))
    if forgotten is not None:
        verdicts.reject(forgotten, Reason.PATIENT_FORGOTTEN)
    everything = np.ones(len(readings), bool)
    if device.state != "active":
        verdicts.reject(everything, Reason.DEVICE_QUARANTINED)
        return verdicts, progress, ()
    if device.patients is not None:
        own = np.array([name in device.patients or not name for name in readings.patients] + [True])
        verdicts.reject(~own[readings.patient], Reason.FOREIGN_PATIENT)
    if device.signals is not None:
        # An unknown code has its own reason.
        known = np.array([*(key in device.signals for key in SIGNAL_KEYS), True])
        verdicts.reject(~known[signals_of(readings)], Reason.FOREIGN_SIGNAL)
    timed = readings.fault == NO_FAULT
    time = readings.time + device.clock
    verdicts.reject(timed & (time > now + EARLY), Reason.FUTURE_TIME)
    verdicts.reject(timed & (time < now - device.oldest * 1000), Reason.OLD_TIME)
    current = verdicts.accepted & timed
    progress, duplicate, replayed, gaps = _follow(readings.sequence, time, progress, device.id, current)
    verdicts.reject(duplicate, Reason.DUPLICATE)
    verdicts.reject(replayed, Reason.REPLAYED)
    return verdicts, progress, gaps


def _follow(
    sequence: npt.NDArray[np.int64], time: npt.NDArray[np.int64], progress: Progress, device: str, current: Flags
) -> tuple[Progress, Flags, Flags, tuple[Gap, ...]]:
    """Take sequence numbers in the order in which they came."""
    duplicate, replayed = np.zeros(len(sequence), bool), np.zeros(len(sequence), bool)
    numbered = np.flatnonzero(sequence != NO_SEQUENCE)
    if len(numbered) == 0:
        return progress, duplicate, replayed, ()
    numbers = sequence[numbered]
    latest = int(time[current].max()) if current.any() else progress.latest
    first, last = int(numbers[0]), int(numbers[-1])
    highest, seen = progress.highest, progress.seen
    if first == 0 and current[numbered[0]] and int(time[numbered[0]]) > progress.latest:
        highest, seen = -1, 0  # it was switched off and numbers from the beginning
    gaps: list[Gap] = []
    if first > highest and bool((np.diff(numbers) == 1).all()):  # as it nearly always is
        if first > highest + 1 and highest >= 0:
            gaps.append(Gap(device=device, first=highest + 1, last=first - 1))
        seen = (seen << min(last - highest, WINDOW)) | _after(first, last)
        highest = last
    else:
        for row, number in zip(numbered.tolist(), numbers.tolist(), strict=True):
            if number > highest:
                if number > highest + 1 and highest >= 0:
                    gaps.append(Gap(device=device, first=highest + 1, last=number - 1))
                seen = (seen << min(number - highest, WINDOW)) | 1
                seen &= _MASK
                highest = number
            elif highest - number >= WINDOW:
                replayed[row] = True
            elif seen >> (highest - number) & 1:
                duplicate[row] = True
            else:
                seen |= 1 << (highest - number)
    after = replace(progress, highest=highest, seen=seen & _MASK, latest=max(latest, progress.latest))
    return after, duplicate, replayed, tuple(gaps)


_MASK: Final = (1 << WINDOW) - 1


def _after(first: int, last: int) -> int:
    """Return the bits of the numbers `first` to `last`, counted back from `last`."""
    return (1 << min(last - first + 1, WINDOW)) - 1


def missing(progress: Progress) -> int:
    """Return how many numbers inside the window have not come."""
    span = min(progress.highest + 1, WINDOW)
    return span - progress.seen.bit_count() if progress.seen.bit_length() <= span else 0


def estimate_clock(samples: Sequence[tuple[int, int]]) -> int:
    """Return the milliseconds to add to a device's times, from (its time, our time of arrival) of fresh readings.

    A reading can only be late, so the least late one bounds the offset from above (the one-way form of the minimum
    filter of RFC 5905 §10). Raises `ValueError` without samples.
    """
    return min(arrived - sent for sent, arrived in samples)
