"""Which block reads which signal, and how a value becomes what the filter updates with, and back.

Design note: in the transformed value a channel is a line in the states and its noise is Gaussian; an interval is made
there and carried back by the same monotone transform, so it never leaves what the signal can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.twins.block import Channel, Floats, Rows
from fedtwin_client.twins.circulation import CIRCULATION
from fedtwin_client.twins.filter import Events
from fedtwin_client.twins.glucose import CARBOHYDRATE, GLUCOSE, INSULIN
from fedtwin_client.twins.respiration import INSPIRED, RESPIRATION
from fedtwin_client.twins.temperature import TEMPERATURE

BLOCKS: Final = (GLUCOSE, CIRCULATION, RESPIRATION, TEMPERATURE)
NORMAL_90: Final = 1.6448536269514722  # 95 % quantile of the normal distribution

# What is given counts as an entry of its own kind, below every signal's number.
GIVEN_CARBOHYDRATE, GIVEN_INSULIN = -1, -2
_JUMPS = {GIVEN_CARBOHYDRATE: (GLUCOSE, CARBOHYDRATE), GIVEN_INSULIN: (GLUCOSE, INSULIN)}
OXYGEN: Final = SIGNAL_KEYS.index("inspired_oxygen")
READ: Final = frozenset(channel.signal for block in BLOCKS for channel in block.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a signal is read: the block's number, and the channel's in it."""

    block: int
    channel: int


PLACES: Final = {
    SIGNAL_KEYS.index(channel.signal): Place(block=b, channel=c)
    for b, block in enumerate(BLOCKS)
    for c, channel in enumerate(block.channels)
}


def transform(channel: Channel, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the transformed value less the offset."""
    cut = np.minimum(np.asarray(value, np.float64), channel.top)
    if channel.transform == "log":
        cut = np.log(cut)
    elif channel.transform == "logit":
        cut = np.log(cut / (100.0 - cut))
    return np.asarray(cut - channel.offset)


def restore(channel: Channel, transformed: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the value in the signal's unit; the inverse of `transform`.

    >>> round(float(restore(RESPIRATION.channels[0], transform(RESPIRATION.channels[0], 93.0))), 6)
    93.0
    """
    found = np.asarray(transformed, np.float64) + channel.offset
    if channel.transform == "log":
        found = np.exp(found)
    elif channel.transform == "logit":
        found = 100.0 / (1.0 + np.exp(-found))
    return np.asarray(found)


def reading_variance(channel: Channel, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the variance of one reading near `value`, of the transformed value: the delta method."""
    cut = np.minimum(np.asarray(value, np.float64), channel.top)
    sd = np.hypot(channel.noise, channel.relative * cut)
    if channel.transform == "log":
        sd = sd / cut
    elif channel.transform == "logit":
        sd = sd * 100.0 / (cut * (100.0 - cut))
    return np.asarray(sd**2)


def make_events(number: int, row: Rows, time: Rows, kind: Rows, value: Floats) -> tuple[Rows, Events]:
    """Return which entries concern block `number`, and its events of them, in the same order.

    kind: number of a signal, or one of the kinds of what is given.
    """
    block = BLOCKS[number]
    channel = np.full(len(row), -1, np.int64)
    transformed, variance = np.full(len(row), np.nan, np.float32), np.ones(len(row), np.float32)
    jump, keep, amount = np.full(len(row), -1, np.int64), np.ones(len(row), np.float32), np.zeros(len(row), np.float32)
    for at, known in enumerate(block.channels):
        mine = kind == SIGNAL_KEYS.index(known.signal)
        channel[mine] = at
        transformed[mine] = transform(known, value[mine])
        variance[mine] = reading_variance(known, value[mine])
    idle = len(block.channels)
    for given, (owner, name) in _JUMPS.items():
        if owner is block:
            mine = kind == given
            channel[mine], jump[mine], amount[mine] = idle, block.names.index(name), value[mine]
    if block is RESPIRATION:
        mine = kind == OXYGEN
        channel[mine], jump[mine], keep[mine] = idle, block.names.index(INSPIRED), 0.0
        amount[mine] = np.log(713.0 * value[mine] / 100.0 - 40 / 0.8)  # as respiration.compute_alveolar
    index = np.flatnonzero(channel >= 0)
    events = Events(
        row=row, time=time, channel=channel, value=transformed, variance=variance, jump=jump, keep=keep, amount=amount
    )
    return index, events.take(index)
