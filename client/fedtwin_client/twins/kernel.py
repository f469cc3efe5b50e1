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

from fedtwin_client.twins.block import Block, Floats
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
    order, bounds = arrange_rounds(events.row)
    tables = block.tables
    ordered = _run(
        (bank.state, bank.clock, bank.strikes),
        (events.row, events.time, events.channel, events.value, events.variance),
        (events.jump, events.keep, events.amount),
        (predicted.mean, predicted.variance, predicted.fate),
        (order, bounds),
        (tables.n, tables.m, np.float64(tables.step)),
        (tables.rate, tables.home, tables.noise, tables.low, tables.high, tables.decays, tables.decay_of),
        (tables.term_to, tables.term_a, tables.term_b, tables.term_c, tables.noisy, tables.weights),
    )
    if not ordered:
        raise ValueError("expected each patient's events in the order of time")
    return predicted


@_compiled
def _add_product(to: Floats, one: Floats, other: Floats) -> None:
    for lane in range(LANES):
        to[lane] += one[lane] * other[lane]


@_compiled
def _rescale(u: Floats, row: Floats, column: Floats) -> None:
    for lane in range(LANES):
        u[lane] = u[lane] * row[lane] * column[lane]


@_compiled
def _couple(u: Floats, slope: Floats, later: Floats, column: Floats) -> None:
    for lane in range(LANES):
        u[lane] += slope[lane] * later[lane] * column[lane]


@_compiled
def _cut(row: Floats, low: np.float32, high: np.float32) -> None:
    for lane in range(LANES):
        row[lane] = min(max(row[lane], low), high)


@_compiled
def _lose(h: Floats, rate: np.float32, lost: Floats, phi: Floats) -> None:
    """1 - exp(-rate · h), and that divided by rate."""
    if not rate > _ZERO:
        for lane in range(LANES):
            lost[lane], phi[lane] = _ZERO, h[lane]
        return
    slowness = _ONE / rate
    for lane in range(LANES):
        s = h[lane] * rate * _HALVES
        m = _ONE - s * _T7
        m = _ONE - s * _T6 * m
        m = _ONE - s * _T5 * m
        m = _ONE - s * _T4 * m
        m = _ONE - s * _T3 * m
        m = _ONE - s * _T2 * m
        m = s * m
        for _ in range(DOUBLINGS):
            m = m * (_TWO - m)
        lost[lane] = m
        phi[lane] = m * slowness


@_compiled
def _derive(slope: Floats, phi: Floats, coefficient: np.float32, factor: Floats) -> None:
    for lane in range(LANES):
        slope[lane] = phi[lane] * coefficient * factor[lane]


@_compiled
def _change(change: Floats, coefficient: np.float32, a: Floats, b: Floats) -> None:
    for lane in range(LANES):
        change[lane] += coefficient * a[lane] * b[lane]


@_compiled
def _add_noise(tile: Floats, v: Floats, spare: Floats, j: int, m: int, base: int) -> None:
    """One rank-one update; the noise's variance stands in spare[1]."""
    q, share, factor = spare[1], spare[2], spare[3]
    v[:j] = _ZERO
    v[j] = _ONE
    for c in range(j, -1, -1):
        d, vc = tile[m + c], v[c]
        for lane in range(LANES):
            total = d[lane] + q[lane] * vc[lane] * vc[lane]
            part = q[lane] / total
            factor[lane] = part * vc[lane]
            share[lane] = part * d[lane]
            d[lane] = total
        q, share = share, q
        for i in range(c):
            u, vi = tile[base + c * (c - 1) // 2 + i], v[i]
            for lane in range(LANES):
                moved = vi[lane] - vc[lane] * u[lane]
                vi[lane] = moved
                u[lane] += factor[lane] * moved


@_compiled
def _advance(
    tile: Floats,
    was: Floats,
    lost: Floats,
    phi: Floats,
    steep: Floats,
    flat: Floats,
    spare: Floats,
    h: Floats,
    sizes: Any,
    numbers: Any,
    equations: Any,
) -> None:
    """One step of `filter.advance` on all lanes."""
    n, m, _ = sizes
    rate, home, noise, low, high, decays, decay_of = numbers
    term_to, term_a, term_b, term_c, noisy, _ = equations
    base, slope = m + n, spare[0]
    for c in range(len(decays)):
        _lose(h, decays[c], lost[c], phi[c])
    was[:m] = tile[:m]
    was[m] = _ONE
    for i in range(m):
        back, rest, x = rate[i], home[i], tile[i]
        for lane in range(LANES):
            slope[lane] = back * (rest - x[lane])
        for t in range(len(term_to)):
            if term_to[t] == i:
                _change(slope, term_c[t], was[term_a[t]], was[term_b[t]])
        _add_product(x, phi[decay_of[i]], slope)
    for i in range(n):
        own, gone, p = steep[i], lost[decay_of[i]], phi[decay_of[i]]
        for lane in range(LANES):
            own[lane] = _ONE - gone[lane]
        for t in range(len(term_to)):
            for side in range(2):
                j, other = (term_a[t], term_b[t]) if side == 0 else (term_b[t], term_a[t])
                if term_to[t] == i and j == i:
                    _derive(slope, p, term_c[t], was[other])
                    for lane in range(LANES):
                        own[lane] += slope[lane]
        inverse, d = flat[i], tile[m + i]
        for lane in range(LANES):
            most = max(own[lane], _STEEPEST)
            own[lane] = most
            inverse[lane] = _ONE / most
            d[lane] = max(d[lane] * most * most, _SMALLEST)
    for i in range(n):
        own, p = steep[i], phi[decay_of[i]]
        for c in range(i + 1, n):
            _rescale(tile[base + c * (c - 1) // 2 + i], own, flat[c])
        for t in range(len(term_to)):
            for side in range(2):
                j, other = (term_a[t], term_b[t]) if side == 0 else (term_b[t], term_a[t])
                if term_to[t] == i and j != i and j < n:
                    _derive(slope, p, term_c[t], was[other])
                    _add_product(tile[base + j * (j - 1) // 2 + i], slope, flat[j])
                    for c in range(j + 1, n):
                        start = base + c * (c - 1) // 2
                        _couple(tile[start + i], slope, tile[start + j], flat[c])
    for j in noisy:
        gone, q, s = lost[decay_of[j]], spare[1], noise[j]
        if rate[j] > _ZERO:
            for lane in range(LANES):
                q[lane] = s * (gone[lane] * (_TWO - gone[lane]))
        else:
            for lane in range(LANES):
                q[lane] = s * h[lane]
        _add_noise(tile, steep, spare, j, m, base)
    for i in range(n):
        _cut(tile[i], low[i], high[i])


@_compiled
def _expect(tile: Floats, weights: Floats, f: Floats, mean: Floats, spread: Floats, sizes: Any) -> None:
    """Mean and variance of the reading; spread holds the reading's own variance before, f becomes Uᵀ·weights."""
    n, m, _ = sizes
    mean[:] = _ZERO
    f[:n] = weights
    for i in range(n):
        if not weights[i].any():  # adding nothing changes no bit
            continue
        _add_product(mean, weights[i], tile[i])
        for j in range(i + 1, n):
            _add_product(f[j], tile[m + n + j * (j - 1) // 2 + i], weights[i])
    for j in range(n):
        d, g = tile[m + j], f[j]
        for lane in range(LANES):
            spread[lane] += d[lane] * g[lane] * g[lane]


@_compiled
def _update(
    tile: Floats, gains: Floats, f: Floats, alpha: Floats, residual: Floats, p: Floats, sizes: Any, numbers: Any
) -> None:
    """`filter._update`. alpha: the reading's variance; residual and f: 0 where it is not used."""
    n, m, _ = sizes
    low, high = numbers[3], numbers[4]
    for j in range(n):
        d, v, g = tile[m + j], gains[j], f[j]
        for lane in range(LANES):
            v[lane] = d[lane] * g[lane]
            grown = alpha[lane] + g[lane] * v[lane]
            p[lane] = -g[lane] / alpha[lane]
            d[lane] = max(d[lane] * (alpha[lane] / grown), _SMALLEST)
            alpha[lane] = grown
        for i in range(j):
            u, k = tile[m + n + j * (j - 1) // 2 + i], gains[i]
            for lane in range(LANES):
                old = u[lane]
                u[lane] = old + k[lane] * p[lane]
                k[lane] += old * v[lane]
    for lane in range(LANES):
        residual[lane] = residual[lane] / alpha[lane]
    for i in range(n):
        _add_product(tile[i], gains[i], residual)
        _cut(tile[i], low[i], high[i])


@_compiled
def _run(
    bank: Any, readings: Any, jumps: Any, predicted: Any, rounds: Any, sizes: Any, numbers: Any, equations: Any
) -> bool:
    """Round after round, tile after tile; False, and nothing more is done, where a patient's time runs backwards."""
    state, clock, strikes = bank
    row, time, channel, value, variance = readings
    jump, keep, amount = jumps
    out_mean, out_variance, out_fate = predicted
    order, bounds = rounds
    n, m, step = sizes
    all_weights = equations[5]
    width = state.shape[1]
    tile = np.zeros((width, LANES), np.float32)
    was, lost, phi = np.zeros_like(tile[: m + 1]), np.zeros_like(tile[: m + 1]), np.zeros_like(tile[: m + 1])
    steep, f, weights = np.zeros_like(tile[:n]), np.zeros_like(tile[:n]), np.zeros_like(tile[:n])
    spare = np.zeros((4, LANES), np.float32)
    tile[m : m + n] = _ONE  # lanes that no patient has yet are computed, too
    mean, spread, length, h = np.zeros_like(was[0]), np.zeros_like(was[0]), np.zeros_like(was[0]), np.zeros_like(was[0])
    steps = np.zeros(LANES, np.int64)
    for turn in range(len(bounds) - 1):
        for begin in range(bounds[turn], bounds[turn + 1], LANES):
            k = min(LANES, bounds[turn + 1] - begin)
            most = 0
            for lane in range(k):
                e = order[begin + lane]
                before = state[row[e]]
                for w in range(width):
                    tile[w, lane] = before[w]
                minutes = 0.0
                if clock[row[e]] != NEVER:
                    minutes = (time[e] - clock[row[e]]) / MILLISECONDS_PER_MINUTE
                if minutes < 0:
                    return False
                count = int(np.ceil(minutes / step))
                steps[lane], length[lane] = count, np.float32(minutes / max(count, 1))
                most = max(most, count)
                spread[lane] = variance[e]
                for j in range(n):
                    weights[j, lane] = all_weights[channel[e], j]
            for at in range(most):
                for lane in range(k):
                    h[lane] = length[lane] if at < steps[lane] else _ZERO
                h[k:] = _ZERO
                _advance(tile, was, lost, phi, steep, f, spare, h, sizes, numbers, equations)
            for lane in range(k):
                e = order[begin + lane]
                if jump[e] >= 0:
                    tile[jump[e], lane] = keep[e] * tile[jump[e], lane] + amount[e]
            _expect(tile, weights, f, mean, spread, sizes)
            for lane in range(k):
                e = order[begin + lane]
                p, c = row[e], channel[e]
                innovation = value[e] - mean[lane]
                read = not np.isnan(value[e])
                far = read and innovation * innovation > _GATE * spread[lane]
                use = read and (not far or strikes[p, c] + 1 >= RETURN)
                if read:
                    strikes[p, c] = min(strikes[p, c] + 1, RETURN) if far else 0
                out_mean[e], out_variance[e] = mean[lane], spread[lane]
                out_fate[e] = USED if use else (GATED if read else ONLY_PREDICT)
                spare[0, lane] = variance[e] if use else _ONE
                spare[1, lane] = innovation if use else _ZERO
                if not use:
                    for j in range(n):
                        f[j, lane] = _ZERO
            _update(tile, steep, f, spare[0], spare[1], spare[2], sizes, numbers)
            for lane in range(k):
                e = order[begin + lane]
                after = state[row[e]]
                for w in range(width):
                    after[w] = tile[w, lane]
                clock[row[e]] = time[e]
    return True
