"""One scalar extended Kalman update for each event, in U·D·Uᵀ form, on many patients at once; plain numpy.

Design note: the covariance is never held; its factors are: U upper triangular with ones, D diagonal and positive. No
rounding can make U·D·Uᵀ indefinite, and single precision carries what the covariance itself needs double for (Bierman
1977, Factorization Methods for Discrete Sequential Estimation, ch. V and VII).
    time    F is upper triangular (see `block`), so F·U is, too: its columns divided by their diagonal are the new U.
            Noise is one rank-one update for each noisy state (Agee, Turner 1972, in Bierman ch. III.5).
    update  Bierman's, ch. V.3: no division by anything but innovation variances.
The arithmetic is +, -, ×, ÷ on float32 in one order, and a patient's numbers meet no other patient's; so the compiled
`kernel` gives the same bits, and so does any cut into batches.
Gate: an innovation beyond GATE standard deviations is an artefact and changes nothing; where it is the RETURN-th in a
row on its channel it is the patient who changed, and it is believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.twins.block import Block, Floats, Rows, Tables

GATE: Final = 5.0
RETURN: Final = 3
SMALLEST: Final = 1e-20  # of a diagonal element: far below any noise, above underflow
STEEPEST: Final = 0.01  # of a step's contraction: below it float32 would lose the coupling (see Block.step)
DOUBLINGS: Final = 3
NEVER: Final = -(2**62)  # the clock of a patient of whom nothing is known
MILLISECONDS_PER_MINUTE: Final = 60_000.0
ONLY_PREDICT, GATED, USED = 0, 1, 2

Flags = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bank:
    """All patients of one block. state: f32[patients, width]; clock: i64, ms UTC; strikes: u8[patients, channels + 1].

    strikes: innovations of a channel in a row that were beyond the gate.
    """

    state: Floats
    clock: Rows
    strikes: Flags


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Events:
    """What happens to patients, each patient's in the order of time. All of one length.

    row: patient. time: ms UTC. channel: of the block, or the number of channels: only time passes.
    value: transformed value less the channel's offset; NaN: predict it, change nothing. variance: of the reading.
    jump: input that is changed before the reading, or -1; it becomes keep · itself + amount.
    """

    row: Rows
    time: Rows
    channel: Rows
    value: Floats
    variance: Floats
    jump: Rows
    keep: Floats
    amount: Floats

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: Rows) -> Events:
        """Return the events at `index`."""
        return Events(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Predicted:
    """What the twin expected of each event before it: mean and variance of the transformed reading, and what was done.

    fate: ONLY_PREDICT, GATED or USED.
    """

    mean: Floats
    variance: Floats
    fate: Flags


def make_bank(block: Block, count: int) -> Bank:
    """Return patients of whom nothing is known."""
    return Bank(
        state=block.prior(count),
        clock=np.full(count, NEVER, np.int64),
        strikes=np.zeros((count, len(block.channels) + 1), np.uint8),
    )


def arrange_rounds(row: Rows) -> tuple[Rows, Rows]:
    """Return an order of events and the bounds of rounds: no patient is twice in a round, each one's order stays.

    >>> order, bounds = arrange_rounds(np.array([7, 3, 7]))
    >>> order.tolist(), bounds.tolist()
    ([1, 0, 2], [0, 2, 3])
    """
    if (row[1:] > row[:-1]).all():
        return np.arange(len(row)), np.array([0, len(row)], np.int64)
    by_row = np.argsort(row, kind="stable")
    ordered = row[by_row]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    turn = np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
    if len(first) == len(row):
        return by_row, np.array([0, len(row)], np.int64)
    by_turn = np.argsort(turn, kind="stable")
    return by_row[by_turn], np.append(0, np.cumsum(np.bincount(turn)))


def apply_events(block: Block, bank: Bank, events: Events) -> Predicted:
    """Change the bank in place by the events, and return what was expected of each.

    - a patient's bits are the same however events are cut into calls and whoever else is in them
    """
    count = len(events)
    predicted = Predicted(
        mean=np.zeros(count, np.float32), variance=np.zeros(count, np.float32), fate=np.zeros(count, np.uint8)
    )
    order, bounds = arrange_rounds(events.row)
    for begin, end in pairwise(bounds):
        index = order[begin:end]
        if len(index):
            _apply_round(block.tables, bank, events.take(index), predicted, index)
    return predicted


def _apply_round(tables: Tables, bank: Bank, events: Events, predicted: Predicted, index: Rows) -> None:
    n, m = tables.n, tables.m
    tile = np.ascontiguousarray(bank.state[events.row].T)
    x, d, u = tile[:m], tile[m : m + n], tile[m + n :]
    clock = bank.clock[events.row]
    minutes = np.where(clock == NEVER, 0.0, (events.time - clock) / MILLISECONDS_PER_MINUTE)
    if not (minutes >= 0).all():
        raise ValueError("expected each patient's events in the order of time")
    steps = np.ceil(minutes / tables.step)
    length = (minutes / np.maximum(steps, 1)).astype(np.float32)
    with np.errstate(under="ignore"):
        for at in range(int(steps.max(initial=0))):
            advance(tables, x, d, u, np.where(at < steps, length, np.float32(0)))
        for k in np.flatnonzero(events.jump >= 0):
            x[events.jump[k], k] = events.keep[k] * x[events.jump[k], k] + events.amount[k]
        mean, spread, f = _expect(tables, events, x, d, u)
        fate = _judge(bank, events, mean, spread)
        _update(tables, x, d, u, events, mean, f, fate == USED)
    bank.state[events.row] = tile.T
    bank.clock[events.row] = events.time
    predicted.mean[index], predicted.variance[index], predicted.fate[index] = mean, spread, fate


def advance(tables: Tables, x: Floats, d: Floats, u: Floats, h: Floats) -> None:
    """Let h[patients] minutes pass, in one step, in place. x[m, …], d[n, …], u[n (n - 1) / 2, …]."""
    n, one = tables.n, np.float32(1)
    lost = [_lose(h * rate) for rate in tables.decays]
    phi = [m * (one / rate) if rate > 0 else h for m, rate in zip(lost, tables.decays, strict=True)]
    was = np.concatenate([x, np.ones_like(x[:1])])
    for i in range(tables.m):
        change = tables.rate[i] * (tables.home[i] - x[i])
        for t in np.flatnonzero(tables.term_to == i):
            change = change + tables.term_c[t] * was[tables.term_a[t]] * was[tables.term_b[t]]
        x[i] = x[i] + phi[tables.decay_of[i]] * change
    slopes = [
        (int(i), int(j), phi[tables.decay_of[i]] * c * was[x])
        for i, j, c, x in zip(tables.slope_to, tables.slope_by, tables.slope_c, tables.slope_x, strict=True)
    ]
    steep = np.stack([one - lost[tables.decay_of[i]] for i in range(n)])
    for i, _, slope in (entry for entry in slopes if entry[0] == entry[1]):
        steep[i] = steep[i] + slope
    steep = np.maximum(steep, np.float32(STEEPEST))
    flat = one / steep
    for i in range(n):
        d[i] = np.maximum(d[i] * steep[i] * steep[i], np.float32(SMALLEST))
        for c in range(i + 1, n):
            u[_at(i, c)] = u[_at(i, c)] * steep[i] * flat[c]
        for j, slope in ((j, slope) for to, j, slope in slopes if to == i != j):
            u[_at(i, j)] += slope * flat[j]
            for c in range(j + 1, n):
                u[_at(i, c)] += slope * u[_at(j, c)] * flat[c]
    for j in tables.noisy:
        m = lost[tables.decay_of[j]]
        _add_noise(d, u, int(j), tables.noise[j] * (m * (np.float32(2) - m) if tables.rate[j] > 0 else h))
    for i in range(n):
        x[i] = np.minimum(np.maximum(x[i], tables.low[i]), tables.high[i])


def _at(i: int, j: int) -> int:
    """Where U[i, j], i < j, stands in the packed triangle."""
    return j * (j - 1) // 2 + i


def _lose(y: Floats) -> Floats:
    """Return 1 - exp(-y) for 0 <= y <= LONGEST_STEP: Taylor's series of y / 8, doubled three times."""
    s = y * np.float32(1 / 2**DOUBLINGS)
    m = np.float32(1) - s * np.float32(1 / 7)
    for k in (6, 5, 4, 3, 2):
        m = np.float32(1) - s * np.float32(1 / k) * m
    m = s * m
    for _ in range(DOUBLINGS):
        m = m * (np.float32(2) - m)
    return np.asarray(m)


def _add_noise(d: Floats, u: Floats, j: int, q: Floats) -> None:
    """U·D·Uᵀ + q·e_j·e_jᵀ, Agee and Turner's rank-one update."""
    v = [np.zeros_like(q) for _ in range(j)] + [np.ones_like(q)]
    for k in range(j, -1, -1):
        total = d[k] + q * v[k] * v[k]
        share = q / total
        factor = share * v[k]
        for i in range(k):
            v[i] = v[i] - v[k] * u[_at(i, k)]
            u[_at(i, k)] = u[_at(i, k)] + factor * v[i]
        q = share * d[k]
        d[k] = total


def _expect(tables: Tables, events: Events, x: Floats, d: Floats, u: Floats) -> tuple[Floats, Floats, list[Floats]]:
    """Return mean and variance of each reading, and Uᵀ times the weights of its channel."""
    weights, f = tables.weights[events.channel].T, []
    mean, spread = np.zeros_like(events.value), events.variance.copy()
    for j in range(tables.n):
        mean = mean + weights[j] * x[j]
        g = weights[j].copy()
        for i in range(j):
            g = g + u[_at(i, j)] * weights[i]
        spread = spread + d[j] * g * g
        f.append(g)
    return mean, spread, f


def _judge(bank: Bank, events: Events, mean: Floats, spread: Floats) -> Flags:
    """Return the fate of each reading, and keep the strikes."""
    innovation = events.value - mean
    read = ~np.isnan(events.value)
    far = read & (innovation * innovation > np.float32(GATE * GATE) * spread)
    strikes = bank.strikes[events.row, events.channel]
    use = read & (~far | (strikes + 1 >= RETURN))
    counted = np.where(far, np.minimum(strikes + 1, RETURN), 0)
    bank.strikes[events.row, events.channel] = np.where(read, counted, strikes).astype(np.uint8)
    return np.where(use, USED, np.where(read, GATED, ONLY_PREDICT)).astype(np.uint8)


def _update(
    tables: Tables,
    x: Floats,
    d: Floats,
    u: Floats,
    events: Events,
    mean: Floats,
    f: list[Floats],
    use: npt.NDArray[np.bool_],
) -> None:
    """Bierman's update; where a reading is not used it is the identity, bit for bit."""
    alpha = np.where(use, events.variance, np.float32(1))
    gains: list[Floats] = []
    for j in range(tables.n):
        g = np.where(use, f[j], np.float32(0))
        v = d[j] * g
        grown = alpha + g * v
        p = -g / alpha
        d[j] = np.maximum(d[j] * (alpha / grown), np.float32(SMALLEST))
        for i in range(j):
            old = u[_at(i, j)].copy()
            u[_at(i, j)] = old + gains[i] * p
            gains[i] = gains[i] + old * v
        gains.append(v)
        alpha = grown
    residual = np.where(use, events.value - mean, np.float32(0)) / alpha
    for i in range(tables.n):
        x[i] = np.minimum(np.maximum(x[i] + gains[i] * residual, tables.low[i]), tables.high[i])
