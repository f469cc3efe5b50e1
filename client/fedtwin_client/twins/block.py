"""A block of physiology as a table: states, the terms of their equations, and what sensors show of them.

    dx_i/dt = -rate_i · (x_i - home_i) + Σ coefficient · x_a · x_b + noise          time in minutes

Design note: equations are data, so one filter serves every block, and the Jacobian follows from the terms and cannot
disagree with them. States are in the order of a cascade: the equation of a state names itself and later states only.
Then a step's Jacobian is upper triangular, and a covariance that is kept as U·D·Uᵀ stays one without orthogonalising
anything (see `filter`). Compartments, drivers and personal parameters have that order by nature.
A step of h minutes is the exponential Euler method (Hochbruck, Ostermann 2010, Acta Numerica 19:209): the decay is
exact, the terms are constant over the step. A channel's transformed value is linear in the states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from fedtwin_shared.signal import SIGNALS

Transform = Literal["linear", "log", "logit"]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

ONE: Final = "1"  # the factor of a term that has none
LONGEST_STEP: Final = 4.0  # time constants: beyond it a step's Jacobian is nearly singular in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One uncertain number of a patient.

    rate: 1/min of return to `home`; 0 makes it a random walk. noise: standard deviation that the noise alone would
    have in the long run; of a random walk, what it gains in a day. prior: standard deviation, before any observation,
    around the rest that the later states determine.
    low, high: where a value is cut, so that a linearised equation keeps its meaning.
    """

    name: str
    rate: float
    home: float
    noise: float
    prior: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A compartment that is known from what was given: no uncertainty. It decays at `rate` towards `home`."""

    name: str
    rate: float
    home: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """`coefficient` · `a` · `b` in the equation of `to`, per minute; a and b name states, inputs or `ONE`."""

    to: str
    coefficient: float
    a: str = ONE
    b: str = ONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What a sensor of `signal` shows: transform(value) = offset + Σ weights · states + noise.

    noise: standard deviation of one reading in the signal's unit, and `relative` as a share of the value.
    top: values are cut there before a transform that has none (a saturation of 100 %).
    """

    signal: str
    weights: Mapping[str, float]
    transform: Transform = "linear"
    offset: float = 0.0
    noise: float = 0.0
    relative: float = 0.0
    top: float = np.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Part of a twin. step: longest step of the integration, minutes. sources: where equations and constants are from.

    - an equation that names an earlier state, an unknown name, or a signal that the table lacks: `ValueError`
    """

    name: str
    states: tuple[State, ...]
    inputs: tuple[Input, ...]
    terms: tuple[Term, ...]
    channels: tuple[Channel, ...]
    step: float
    sources: tuple[str, ...]
    tables: Tables = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = self.names
        if len(set(order)) != len(order):
            raise ValueError(f"{self.name}: expected different names, found {order}")
        for term in self.terms:
            at = order.index(term.to)
            for factor in {term.a, term.b} - {ONE}:
                if order.index(factor) < at or (at >= len(self.states) and factor == term.to):
                    raise ValueError(f"{self.name}: expected a cascade, found {factor} in the equation of {term.to}")
        for channel in self.channels:
            if channel.signal not in SIGNALS or not set(channel.weights) <= {state.name for state in self.states}:
                raise ValueError(f"{self.name}: expected known names, found channel {channel.signal}")
        if not all(state.noise >= 0 and state.prior > 0 and state.low < state.high for state in self.states):
            raise ValueError(f"{self.name}: expected a spread above 0 and low < high")
        if not self.step > 0 or not all(0 <= self.step * row.rate <= LONGEST_STEP for row in self.rows):
            raise ValueError(f"{self.name}: expected a step of at most {LONGEST_STEP:g} time constants")
        object.__setattr__(self, "tables", _tabulate(self))

    @property
    def rows(self) -> tuple[State | Input, ...]:
        """States, then inputs: the order of everything."""
        return (*self.states, *self.inputs)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows."""
        return tuple(row.name for row in self.rows)

    @property
    def width(self) -> int:
        """Numbers kept of one patient: means, diagonal and the strict upper triangle."""
        n = len(self.states)
        return len(self.names) + n + n * (n - 1) // 2

    def channel_of(self, signal: str) -> int | None:
        """Return the number of the channel of a signal; None where the block does not use it."""
        for at, channel in enumerate(self.channels):
            if channel.signal == signal:
                return at
        return None

    def prior(self, count: int) -> Floats:
        """Return f32[count, width]: patients of whom nothing is known, at rest under the equations."""
        n = len(self.states)
        mean, upper = _rest(self)
        row = [*mean, *(state.prior**2 for state in self.states), *(upper[i, j] for j in range(n) for i in range(j))]
        return np.tile(np.array(row, np.float32), (count, 1))

    @property
    def version(self) -> str:
        """Digest of every number of the block: a state belongs to one version of its equations."""
        content = {name: _plain(getattr(self, name)) for name in ("name", "states", "inputs", "terms", "channels")}
        text = json.dumps({**content, "step": self.step}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """The block as arrays, for the filter. n: states; m: states and inputs; index m is the number one.

    rate, home: [m]. noise: [n] variance, stationary or per minute. low, high: [n]. decays: [d] different rates and
    decay_of: [m] which one is whose. term_to, term_a, term_b, term_c: [terms], by equation. slope_to, slope_by,
    slope_c, slope_x: the terms' derivatives, c · x, of equation `to` by state `by`. noisy: states that have noise.
    weights: [channels + 1, n], the last row all zero for what is only predicted.
    """

    n: int
    m: int
    step: float
    rate: Floats
    home: Floats
    noise: Floats
    low: Floats
    high: Floats
    decays: Floats
    decay_of: Rows
    term_to: Rows
    term_a: Rows
    term_b: Rows
    term_c: Floats
    slope_to: Rows
    slope_by: Rows
    slope_c: Floats
    slope_x: Rows
    noisy: Rows
    weights: Floats


MINUTES_PER_DAY: Final = 1440.0


def _tabulate(block: Block) -> Tables:
    order = {name: at for at, name in enumerate((*block.names, ONE))}
    everything = block.rows
    rate = np.array([row.rate for row in everything], np.float32)
    decays, decay_of = np.unique(rate, return_inverse=True)
    noise = [state.noise**2 / (1.0 if state.rate > 0 else MINUTES_PER_DAY) for state in block.states]
    weights = np.zeros((len(block.channels) + 1, len(block.states)), np.float32)
    for at, channel in enumerate(block.channels):
        for name, weight in channel.weights.items():
            weights[at, order[name]] = weight
    terms = sorted((order[term.to], order[term.a], order[term.b], term.coefficient) for term in block.terms)
    slopes = [(to, by, c, x) for to, a, b, c in terms for by, x in ((a, b), (b, a)) if max(to, by) < len(block.states)]
    return Tables(
        n=len(block.states),
        m=len(everything),
        step=block.step,
        rate=rate,
        home=np.array([row.home for row in everything], np.float32),
        noise=np.array(noise, np.float32),
        low=np.array([state.low for state in block.states], np.float32),
        high=np.array([state.high for state in block.states], np.float32),
        decays=decays,
        decay_of=decay_of.astype(np.int64),
        term_to=np.array([term[0] for term in terms], np.int64),
        term_a=np.array([term[1] for term in terms], np.int64),
        term_b=np.array([term[2] for term in terms], np.int64),
        term_c=np.array([term[3] for term in terms], np.float32),
        slope_to=np.array([slope[0] for slope in slopes], np.int64),
        slope_by=np.array([slope[1] for slope in slopes], np.int64),
        slope_c=np.array([slope[2] for slope in slopes], np.float32),
        slope_x=np.array([slope[3] for slope in slopes], np.int64),
        noisy=np.array([at for at, state in enumerate(block.states) if state.noise > 0], np.int64),
        weights=weights,
    )


def _rest(block: Block) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return each state and input at rest, and how a change of a later state moves it: unit upper triangular."""
    order, n = {name: at for at, name in enumerate((*block.names, ONE))}, len(block.states)
    value: npt.NDArray[np.float64] = np.array([*(row.home for row in block.rows), 1.0], np.float64)
    direct = np.zeros((n, n))
    for i in reversed(range(len(block.names))):
        row = block.rows[i]
        terms = [(term.coefficient, order[term.a], order[term.b]) for term in block.terms if order[term.to] == i]
        returning = row.rate - sum(c * value[b if a == i else a] for c, a, b in terms if i in (a, b))
        if not returning > 0:
            continue  # a random walk starts at its home
        value[i] = (row.rate * row.home + sum(c * value[a] * value[b] for c, a, b in terms if i not in (a, b))) / (
            returning
        )
        for c, a, b in terms:
            for j, other in ((a, b), (b, a)):
                if i < j < n:
                    direct[i, j] += c * value[other] / returning
    return value[:-1], np.asarray(np.linalg.inv(np.eye(n) - direct), np.float64)


def _plain(value: object) -> object:
    return [asdict(row) for row in value] if isinstance(value, tuple) else value
