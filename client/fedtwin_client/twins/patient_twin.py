"""One patient's twin as a value: what is estimated and how well, what is expected, and what would happen if.

Design note: forecasts and what-ifs are the filter itself, run ahead on a copy. A what-if uses the equations alone,
never a learned model: a model of what happened says nothing of what was not done. Its numbers carry a badge, because
a twin that forecasts well can still be wrong about a treatment: meals and insulin come together, so what each does is
hardly seen in the data (the minimal model here saw half to two thirds of the true effect on independent patients).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.twins.block import Block
from fedtwin_client.twins.channels import (
    BLOCKS,
    GIVEN_CARBOHYDRATE,
    GIVEN_INSULIN,
    NORMAL_90,
    OXYGEN,
    PLACES,
    make_events,
    reading_variance,
    restore,
    transform,
)
from fedtwin_client.twins.filter import NEVER, Bank, Events, apply_events
from fedtwin_shared.signal import SIGNALS

Values = npt.NDArray[np.float64]
MINUTE: Final = 60_000
VERSION: Final = hashlib.sha256("".join(block.version for block in BLOCKS).encode()).hexdigest()[:16]
STALE_PERIODS: Final = 4  # usual periods of a signal after which its newest reading is old

_KINDS: Final = {"carbohydrate": GIVEN_CARBOHYDRATE, "insulin": GIVEN_INSULIN, "oxygen": OXYGEN}
_LIMITS: Final = {"carbohydrate": (0.0, 150.0), "insulin": (0.0, 30.0), "oxygen": (21.0, 100.0)}
_SIGNALS: Final = {
    "carbohydrate": "interstitial_glucose",
    "insulin": "interstitial_glucose",
    "oxygen": "pulse_oximetry",
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Estimate:
    """A number that is never shown without its age and interval.

    middle: median, in the signal's unit; low, high: 90 % interval of what a sensor would read. at: ms UTC.
    age: milliseconds from the newest reading that the block used to the time of asking; None: there is none yet.
    stale: nothing newer than STALE_PERIODS usual periods of the signal.
    """

    signal: str
    at: int
    middle: float
    low: float
    high: float
    age: int | None
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervention:
    """What would be given at `time`, ms UTC. carbohydrate: g; insulin: units under the skin; oxygen: % from then on."""

    kind: Literal["carbohydrate", "insulin", "oxygen"]
    amount: float
    time: int


class Badge(StrEnum):
    """How far a what-if may be believed."""

    VALIDATED = "validated"  # this kind was checked against outcomes of this patient
    UNVALIDATED = "not validated for this patient"
    OUTSIDE = "outside what the twin knows"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WhatIf:
    """A trajectory with the interventions and one without, at the same times; whether to believe it, and why not."""

    done: tuple[Estimate, ...]
    undone: tuple[Estimate, ...]
    badge: Badge
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatientTwin:
    """One patient. banks: of each block, one row. used: signal -> time of its newest reading that counted, ms UTC.

    version: digest of every equation and constant; two twins of one version and the same observations are equal.
    counts: how many observations met each outcome. validated: kinds of intervention checked on this patient.

    - nothing of it changes when it forecasts or simulates
    """

    patient: str
    banks: Mapping[str, Bank]
    used: Mapping[str, int]
    counts: Mapping[str, int]
    validated: frozenset[str] = field(default_factory=frozenset)
    version: str = VERSION

    def forecast(self, signal: str, *, now: int, minutes: Sequence[float]) -> tuple[Estimate, ...]:
        """Return what a sensor of `signal` would read in so many minutes. Raises `KeyError` for one no block reads."""
        bank, block = self._copy(signal)
        return _look_ahead(bank, block, signal, now=now, minutes=minutes, newest=self._newest(block))

    def chance_below(self, signal: str, level: float, *, now: int, minutes: float) -> float:
        """Return the probability that a sensor of `signal` would read below `level` in so many minutes."""
        bank, block = self._copy(signal)
        channel = block.channels[PLACES[SIGNAL_KEYS.index(signal)].channel]
        (ahead,) = _look_ahead(bank, block, signal, now=now, minutes=[minutes], newest=self._newest(block))
        middle, high = (float(transform(channel, value)) for value in (ahead.middle, ahead.high))
        spread = (high - middle) / NORMAL_90
        return NormalDist(middle, max(spread, 1e-9)).cdf(float(transform(channel, level)))

    def simulate(
        self, interventions: Sequence[Intervention], *, now: int, minutes: Sequence[float], signal: str = ""
    ) -> WhatIf:
        """Return what a sensor would read with and without the interventions; all of one block, not before `now`."""
        if not interventions:
            raise ValueError("expected at least one intervention")
        signal = signal or _SIGNALS[interventions[0].kind]
        bank, block = self._copy(signal)
        kinds = np.array([_KINDS[one.kind] for one in interventions], np.int64)
        order = np.argsort([one.time for one in interventions], kind="stable")
        times = np.array([one.time for one in interventions], np.int64)
        amounts = np.array([one.amount for one in interventions], np.float32)
        index, events = make_events(
            BLOCKS.index(block), np.zeros(len(order), np.int64), times[order], kinds[order], amounts[order]
        )
        if len(index) != len(interventions) or times.min() < now:
            raise ValueError(f"expected interventions on the block of {signal} from now on")
        newest = self._newest(block)
        undone = _look_ahead(bank, block, signal, now=now, minutes=minutes, newest=newest)
        done = _look_ahead(bank, block, signal, now=now, minutes=minutes, newest=newest, given=events)
        badge, reasons = self._judge(interventions, undone)
        return WhatIf(done=done, undone=undone, badge=badge, reasons=reasons)

    def _judge(
        self, interventions: Sequence[Intervention], undone: Sequence[Estimate]
    ) -> tuple[Badge, tuple[str, ...]]:
        outside = [
            f"{one.kind} of {one.amount:g} is beyond {_LIMITS[one.kind][0]:g} to {_LIMITS[one.kind][1]:g}"
            for one in interventions
            if not _LIMITS[one.kind][0] <= one.amount <= _LIMITS[one.kind][1]
        ]
        if undone[0].stale:
            outside.append("the newest reading is too old")
        if outside:
            return Badge.OUTSIDE, tuple(outside)
        unchecked = sorted({one.kind for one in interventions} - self.validated)
        if unchecked:
            return Badge.UNVALIDATED, tuple(
                f"the effect of {kind} was not checked on this patient" for kind in unchecked
            )
        return Badge.VALIDATED, ()

    def _newest(self, block: Block) -> int | None:
        times = [self.used[channel.signal] for channel in block.channels if channel.signal in self.used]
        return max(times, default=None)

    def _copy(self, signal: str) -> tuple[Bank, Block]:
        block = BLOCKS[PLACES[SIGNAL_KEYS.index(signal)].block]
        bank = self.banks[block.name]
        return Bank(state=bank.state.copy(), clock=bank.clock.copy(), strikes=bank.strikes.copy()), block


def is_stale(signal: str, age: int | None) -> bool:
    """Return whether a reading of that age, ms, is old for the signal."""
    period = SIGNALS[signal].period
    return age is None or (period is not None and age > STALE_PERIODS * period.total_seconds() * 1000)


def _look_ahead(
    bank: Bank,
    block: Block,
    signal: str,
    *,
    now: int,
    minutes: Sequence[float],
    newest: int | None,
    given: Events | None = None,
) -> tuple[Estimate, ...]:
    place = PLACES[SIGNAL_KEYS.index(signal)]
    channel = block.channels[place.channel]
    start = now if bank.clock[0] == NEVER else max(now, int(bank.clock[0]))
    at = np.array([max(start, now + round(ahead * MINUTE)) for ahead in minutes], np.int64)
    if not (np.diff(at) >= 0).all():
        raise ValueError("expected minutes in increasing order")
    events = Events(
        row=np.zeros(len(at), np.int64),
        time=at,
        channel=np.full(len(at), place.channel, np.int64),
        value=np.full(len(at), np.nan, np.float32),
        variance=np.zeros(len(at), np.float32),
        jump=np.full(len(at), -1, np.int64),
        keep=np.ones(len(at), np.float32),
        amount=np.zeros(len(at), np.float32),
    )
    asked = np.ones(len(at), bool)
    if given is not None:
        joined = Events(
            **{name: np.concatenate([getattr(given, name), getattr(events, name)]) for name in Events.__slots__}
        )
        order = np.argsort(joined.time, kind="stable")
        events, asked = joined.take(order), (np.arange(len(joined)) >= len(given))[order]
    ahead = Bank(state=bank.state.copy(), clock=np.array([start]), strikes=bank.strikes.copy())
    if bank.clock[0] != NEVER:
        ahead.clock[:] = bank.clock
    predicted = apply_events(block, ahead, events)
    mean = predicted.mean[asked].astype(np.float64)
    middle = restore(channel, mean)
    spread = NORMAL_90 * np.sqrt(predicted.variance[asked] + reading_variance(channel, middle))
    age = None if newest is None else max(0, now - newest)
    return tuple(
        Estimate(
            signal=signal,
            at=int(t),
            middle=float(m),
            low=float(low),
            high=float(high),
            age=age,
            stale=is_stale(signal, age),
        )
        for t, m, low, high in zip(
            at, middle, restore(channel, mean - spread), restore(channel, mean + spread), strict=True
        )
    )
