"""The filter compiled: the same arithmetic as `filter`, in the same order, on tiles of patients that fit the cache.

Design note: a tile is transposed, so that every operation is one loop over LANES patients that LLVM vectorises; the
loops over states are outside. Events of a round are in the order of patients, which makes memory sequential: a
random order costs sorting, not cache misses. No fast-math: float32 results are `filter`'s bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np

from fedtwin_client.twins.block import Block, Floats, Rows
from fedtwin_client.twins.filter import (
    DOUBLINGS,
    GATE,
    GATED,
    MILLISECONDS_PER_MINUTE,
    NEVER,
    ONLY_PREDICT,
    RETURN,
    SMALLEST,
    STEEPEST,
    USED,
    Bank,
    Events,
    Predicted,
    arrange_rounds,
)

LANES: Final = 128
SPARSE: Final = 8  # with fewer events than a patient in so many has, comparing is cheaper than counting
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_HALVES = np.float32(1 / 2**DOUBLINGS)
_T2, _T3, _T4, _T5, _T6, _T7 = (np.float32(1 / k) for k in (2, 3, 4, 5, 6, 7))
_GATE, _SMALLEST, _STEEPEST = np.float32(GATE * GATE), np.float32(SMALLEST), np.float32(STEEPEST)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile; kept on disk, in a folder named by a digest of every source it is made of, where one can be written."""
    folder: Path = Path(__file__).parent
    config: Any = numba.config
    sources = hashlib.sha256(b"".join((folder / name).read_bytes() for name in ("filter.py", "kernel.py"))).hexdigest()
    former, config.CACHE_DIR = config.CACHE_DIR, str(folder / "__pycache__" / sources[:16])
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]  # numba has no types
    except RuntimeError:  # no folder for a cache, as in a read-only container
        return numba.njit(**options)(function)  # type: ignore[no-any-return]  # numba has no types
    finally:
        config.CACHE_DIR = former


def apply_events(block: Block, bank: Bank, events: Events) -> Predicted:
    """Change the bank in place by the events, and return what was expected of each; as `filter.apply_events`."""
    count = len(events)
    predicted = Predicted(
        mean=np.zeros(count, np.float32), variance=np.zeros(count, np.float32), fate=np.zeros(count, np.uint8)
    )
    order, bounds = _arrange(events.row, len(bank.clock))
    tables = block.tables
    ordered = _run(
        (bank.state, bank.clock, bank.strikes),
        (events.row, events.time, events.channel, events.value, events.variance),
        (events.jump, events.keep, events.amount),
        (predicted.mean, predicted.variance, predicted.fate),
        (order, bounds),
        (tables.n, tables.m, np.float64(tables.step)),
        (tables.rate, tables.home, tables.noise, tables.low, tables.high, tables.decays, tables.decay_of),
        (
            *(tables.term_to, tables.term_a, tables.term_b, tables.term_c),
            *(tables.slope_to, tables.slope_by, tables.slope_c, tables.slope_x, tables.noisy),
        ),
        tables.weights,
    )
    if not ordered:
        raise ValueError("expected each patient's events in the order of time")
    return predicted


def _arrange(row: Rows, patients: int) -> tuple[Rows, Rows]:
    """As `filter.arrange_rounds`; many events are ordered by counting, which costs no comparisons."""
    if len(row) * SPARSE < patients:
        return arrange_rounds(row)
    order, turn = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    _count_rows(row, np.zeros(patients + 1, np.int64), order, turn)
    if turn.max(initial=0) == 0:
        return order, np.array([0, len(row)], np.int64)
    by_turn = np.argsort(turn, kind="stable")
    return order[by_turn], np.append(0, np.cumsum(np.bincount(turn)))


@_compiled
def _count_rows(row: Rows, next_of: Rows, order: Rows, turn: Rows) -> None:
    """Counting sort by patient; turn: how many earlier events the patient has, in that order."""
    for e in range(len(row)):
        next_of[row[e] + 1] += 1
    for p in range(1, len(next_of)):
        next_of[p] += next_of[p - 1]
    for e in range(len(row)):
        order[next_of[row[e]]] = e
        next_of[row[e]] += 1
    for at in range(len(row)):
        again = at > 0 and row[order[at]] == row[order[at - 1]]
        turn[at] = turn[at - 1] + 1 if again else 0


# Everything below happens in one workspace t[rows, LANES]; `to`, `one` … are numbers of rows.


@_compiled
def _add_product(t: Floats, to: int, one: int, other: int) -> None:
    r_to, r_one, r_other = t[to], t[one], t[other]
    for lane in range(LANES):
        r_to[lane] += r_one[lane] * r_other[lane]


@_compiled
def _add_scaled_product(t: Floats, to: int, factor: np.float32, one: int, other: int) -> None:
    r_to, r_one, r_other = t[to], t[one], t[other]
    for lane in range(LANES):
        r_to[lane] += factor * r_one[lane] * r_other[lane]


@_compiled
def _add_triple(t: Floats, to: int, one: int, other: int, third: int) -> None:
    r_to, r_one, r_other, r_third = t[to], t[one], t[other], t[third]
    for lane in range(LANES):
        r_to[lane] += r_one[lane] * r_other[lane] * r_third[lane]


@_compiled
def _rescale(t: Floats, to: int, one: int, other: int) -> None:
    r_to, r_one, r_other = t[to], t[one], t[other]
    for lane in range(LANES):
        r_to[lane] = r_to[lane] * r_one[lane] * r_other[lane]


@_compiled
def _cut(t: Floats, to: int, low: np.float32, high: np.float32) -> None:
    row = t[to]
    for lane in range(LANES):
        row[lane] = min(max(row[lane], low), high)


@_compiled
def _lose(t: Floats, h: int, rate: np.float32, lost: int, phi: int) -> None:
    """1 - exp(-rate · h), and that divided by rate."""
    r_h, r_lost, r_phi = t[h], t[lost], t[phi]
    slowness = _ONE / rate if rate > _ZERO else _ZERO
    for lane in range(LANES):
        s = r_h[lane] * rate * _HALVES
        m = _ONE - s * _T7
        m = _ONE - s * _T6 * m
        m = _ONE - s * _T5 * m
        m = _ONE - s * _T4 * m
        m = _ONE - s * _T3 * m
        m = _ONE - s * _T2 * m
        m = s * m
        for _ in range(DOUBLINGS):
            m = m * (_TWO - m)
        r_lost[lane] = m
        r_phi[lane] = m * slowness
    if not rate > _ZERO:
        for lane in range(LANES):
            r_phi[lane] = r_h[lane]


@_compiled
def _move_means(t: Floats, was: int, phi: int, spare: int, m: int, numbers: Any, equations: Any) -> None:
    rate, home, _, _, _, _, decay_of = numbers
    term_to, term_a, term_b, term_c, _, _, _, _, _ = equations
    t[was : was + m] = t[:m]
    t[was + m] = _ONE
    at = 0
    for i in range(m):
        back, rest, change, x = rate[i], home[i], t[spare], t[i]
        for lane in range(LANES):
            change[lane] = back * (rest - x[lane])
        while at < len(term_to) and term_to[at] == i:
            _add_scaled_product(t, spare, term_c[at], was + term_a[at], was + term_b[at])
            at += 1
        _add_product(t, i, phi + decay_of[i], spare)


@_compiled
def _flatten(t: Floats, steep: int, flat: int, d: int) -> None:
    """The diagonal of a step's Jacobian into D, and what divides a column."""
    r_steep, r_flat, r_d = t[steep], t[flat], t[d]
    for lane in range(LANES):
        most = max(r_steep[lane], _STEEPEST)
        r_steep[lane] = most
        r_flat[lane] = _ONE / most
        r_d[lane] = max(r_d[lane] * most * most, _SMALLEST)


@_compiled
def _derive(t: Floats, to: int, phi: int, coefficient: np.float32, factor: int) -> None:
    r_to, r_phi, r_factor = t[to], t[phi], t[factor]
    for lane in range(LANES):
        r_to[lane] = r_phi[lane] * coefficient * r_factor[lane]


@_compiled
def _add(t: Floats, to: int, one: int) -> None:
    r_to, r_one = t[to], t[one]
    for lane in range(LANES):
        r_to[lane] += r_one[lane]


@_compiled
def _move_factors(
    t: Floats, was: int, lost: int, phi: int, steep: int, flat: int, spare: int, sizes: Any, numbers: Any, slopes: Any
) -> None:
    n, m, _ = sizes
    decay_of = numbers[6]
    slope_to, slope_by, slope_c, slope_x = slopes
    base = m + n
    for i in range(n):
        own, gone = t[steep + i], t[lost + decay_of[i]]
        for lane in range(LANES):
            own[lane] = _ONE - gone[lane]
    for at in range(len(slope_to)):
        i = slope_to[at]
        if slope_by[at] == i:
            _derive(t, spare, phi + decay_of[i], slope_c[at], was + slope_x[at])
            _add(t, steep + i, spare)
    for i in range(n):
        _flatten(t, steep + i, flat + i, m + i)
    at = 0
    for i in range(n):
        for c in range(i + 1, n):
            _rescale(t, base + c * (c - 1) // 2 + i, steep + i, flat + c)
        while at < len(slope_to) and slope_to[at] == i:
            j = slope_by[at]
            if j != i:
                _derive(t, spare, phi + decay_of[i], slope_c[at], was + slope_x[at])
                _add_product(t, base + j * (j - 1) // 2 + i, spare, flat + j)
                for c in range(j + 1, n):
                    start = base + c * (c - 1) // 2
                    _add_triple(t, start + i, spare, start + j, flat + c)
            at += 1


@_compiled
def _gain_variance(t: Floats, d: int, v: int, q: int, factor: int) -> None:
    r_d, r_v, r_q, r_factor = t[d], t[v], t[q], t[factor]
    for lane in range(LANES):
        total = r_d[lane] + r_q[lane] * r_v[lane] * r_v[lane]
        share = r_q[lane] / total
        r_factor[lane] = share * r_v[lane]
        r_q[lane] = share * r_d[lane]
        r_d[lane] = total


@_compiled
def _mix(t: Floats, u: int, v: int, later: int, factor: int) -> None:
    r_u, r_v, r_later, r_factor = t[u], t[v], t[later], t[factor]
    for lane in range(LANES):
        moved = r_v[lane] - r_later[lane] * r_u[lane]
        r_v[lane] = moved
        r_u[lane] += r_factor[lane] * moved


@_compiled
def _add_noise(t: Floats, j: int, v: int, q: int, sizes: Any) -> None:
    """`filter._add_noise` by the variance in row q; q + 1 and rows from v on are overwritten."""
    n, m, _ = sizes
    t[v : v + j] = _ZERO
    t[v + j] = _ONE
    for c in range(j, -1, -1):
        _gain_variance(t, m + c, v + c, q, q + 1)
        for i in range(c):
            _mix(t, m + n + c * (c - 1) // 2 + i, v + i, v + c, q + 1)


@_compiled
def _advance(t: Floats, h: int, free: int, sizes: Any, numbers: Any, equations: Any) -> None:
    """One step of `filter.advance` on all lanes; rows from `free` on are overwritten."""
    n, m, _ = sizes
    rate, _, noise, low, high, decays, decay_of = numbers
    _, _, _, _, slope_to, slope_by, slope_c, slope_x, noisy = equations
    lost, phi = free, free + len(decays)
    was = phi + len(decays)
    steep, flat, spare = was + m + 1, was + m + 1 + n, was + m + 1 + 2 * n
    for c in range(len(decays)):
        _lose(t, h, decays[c], lost + c, phi + c)
    _move_means(t, was, phi, spare, m, numbers, equations)
    _move_factors(t, was, lost, phi, steep, flat, spare, sizes, numbers, (slope_to, slope_by, slope_c, slope_x))
    for j in noisy:
        gone, q, minutes, s = t[lost + decay_of[j]], t[spare], t[h], noise[j]
        for lane in range(LANES):
            q[lane] = s * (gone[lane] * (_TWO - gone[lane]))
        if not rate[j] > _ZERO:
            for lane in range(LANES):
                q[lane] = s * minutes[lane]
        _add_noise(t, j, steep, spare, sizes)
    for i in range(n):
        _cut(t, i, low[i], high[i])


@_compiled
def _expect(t: Floats, weights: int, f: int, mean: int, spread: int, sizes: Any) -> None:
    """Mean and variance of the reading; spread holds the reading's own variance before, f becomes Uᵀ · weights."""
    n, m, _ = sizes
    t[mean] = _ZERO
    t[f : f + n] = t[weights : weights + n]
    for i in range(n):
        if not t[weights + i].any():  # adding nothing changes no bit
            continue
        _add_product(t, mean, weights + i, i)
        for j in range(i + 1, n):
            _add_product(t, f + j, m + n + j * (j - 1) // 2 + i, weights + i)
    for j in range(n):
        _add_triple(t, spread, m + j, f + j, f + j)


@_compiled
def _lose_variance(t: Floats, d: int, v: int, f: int, alpha: int, p: int) -> None:
    r_d, r_v, r_f, r_alpha, r_p = t[d], t[v], t[f], t[alpha], t[p]
    for lane in range(LANES):
        seen = r_d[lane] * r_f[lane]
        grown = r_alpha[lane] + r_f[lane] * seen
        r_p[lane] = -r_f[lane] / r_alpha[lane]
        r_d[lane] = max(r_d[lane] * (r_alpha[lane] / grown), _SMALLEST)
        r_v[lane] = seen
        r_alpha[lane] = grown


@_compiled
def _learn(t: Floats, u: int, gain: int, p: int, v: int) -> None:
    r_u, r_gain, r_p, r_v = t[u], t[gain], t[p], t[v]
    for lane in range(LANES):
        old, before = r_u[lane], r_gain[lane]
        r_u[lane] = old + before * r_p[lane]
        r_gain[lane] = before + old * r_v[lane]


@_compiled
def _update(t: Floats, gain: int, f: int, alpha: int, residual: int, p: int, sizes: Any, numbers: Any) -> None:
    """`filter._update`. alpha: the reading's variance; residual and f: 0 where it is not used."""
    n, m, _ = sizes
    low, high = numbers[3], numbers[4]
    for j in range(n):
        _lose_variance(t, m + j, gain + j, f + j, alpha, p)
        for i in range(j):
            _learn(t, m + n + j * (j - 1) // 2 + i, gain + i, p, gain + j)
    r_residual, r_alpha = t[residual], t[alpha]
    for lane in range(LANES):
        r_residual[lane] = r_residual[lane] / r_alpha[lane]
    for i in range(n):
        _add_product(t, i, gain + i, residual)
        _cut(t, i, low[i], high[i])


@_compiled
def _load(t: Floats, lane: int, state: Floats) -> None:
    for w in range(len(state)):
        t[w, lane] = state[w]


@_compiled
def _save(t: Floats, lane: int, state: Floats) -> None:
    for w in range(len(state)):
        state[w] = t[w, lane]


@_compiled
def _run(
    bank: Any,
    readings: Any,
    jumps: Any,
    predicted: Any,
    rounds: Any,
    sizes: Any,
    numbers: Any,
    equations: Any,
    all_weights: Floats,
) -> bool:
    """Round after round, tile after tile; False, and nothing more is done, where a patient's time runs backwards."""
    state, clock, strikes = bank
    row, time, channel, value, variance = readings
    jump, keep, amount = jumps
    out_mean, out_variance, out_fate = predicted
    order, bounds = rounds
    n, m, step = sizes
    weights = state.shape[1]
    f = weights + n
    mean, spread, h, alpha, residual, free = f + n, f + n + 1, f + n + 2, f + n + 3, f + n + 4, f + n + 5
    t = np.zeros((free + 2 * len(numbers[5]) + m + 3 + 2 * n, LANES), np.float32)
    t[m : m + n] = _ONE  # lanes that no patient has yet are computed, too
    steps, length = np.zeros(LANES, np.int64), np.zeros(LANES, np.float32)
    for turn in range(len(bounds) - 1):
        for begin in range(bounds[turn], bounds[turn + 1], LANES):
            k = min(LANES, bounds[turn + 1] - begin)
            most = 0
            steps[:] = 0
            for lane in range(k):
                e = order[begin + lane]
                _load(t, lane, state[row[e]])
                minutes = 0.0
                if clock[row[e]] != NEVER:
                    minutes = (time[e] - clock[row[e]]) / MILLISECONDS_PER_MINUTE
                if minutes < 0:
                    return False
                count = int(np.ceil(minutes / step))
                steps[lane], length[lane] = count, np.float32(minutes / max(count, 1))
                most = max(most, count)
                t[spread, lane] = variance[e]
                for j in range(n):
                    t[weights + j, lane] = all_weights[channel[e], j]
            for at in range(most):
                for lane in range(LANES):
                    t[h, lane] = length[lane] if at < steps[lane] else _ZERO
                _advance(t, h, free, sizes, numbers, equations)
            for lane in range(k):
                e = order[begin + lane]
                if jump[e] >= 0:
                    t[jump[e], lane] = keep[e] * t[jump[e], lane] + amount[e]
            _expect(t, weights, f, mean, spread, sizes)
            for lane in range(k):
                e = order[begin + lane]
                p, c = row[e], channel[e]
                expected, expected_variance = t[mean, lane], t[spread, lane]
                innovation = value[e] - expected
                read = not np.isnan(value[e])
                far = read and innovation * innovation > _GATE * expected_variance
                use = read and (not far or strikes[p, c] + 1 >= RETURN)
                if read:
                    strikes[p, c] = min(strikes[p, c] + 1, RETURN) if far else 0
                out_mean[e], out_variance[e] = expected, expected_variance
                out_fate[e] = USED if use else (GATED if read else ONLY_PREDICT)
                t[alpha, lane] = variance[e] if use else _ONE
                t[residual, lane] = innovation if use else _ZERO
                if not use:
                    for j in range(n):
                        t[f + j, lane] = _ZERO
            _update(t, free, f, alpha, residual, free + n, sizes, numbers)
            for lane in range(k):
                e = order[begin + lane]
                _save(t, lane, state[row[e]])
                clock[row[e]] = time[e]
    return True
