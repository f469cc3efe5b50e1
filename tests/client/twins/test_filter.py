"""The filter against textbook algebra in double precision, and what it promises about order, artefacts and gaps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from fedtwin_client.twins import kernel
from fedtwin_client.twins.block import Block, Channel, State, Term
from fedtwin_client.twins.filter import (
    GATED,
    NEVER,
    ONLY_PREDICT,
    RETURN,
    USED,
    Bank,
    Events,
    apply_events,
    arrange_rounds,
    make_bank,
)
from fedtwin_client.twins.glucose import GLUCOSE
from fedtwin_client.twins.temperature import TEMPERATURE
from tests.client.twins.vital_events import BLOCKS, make_events

Matrix = npt.NDArray[np.float64]


def covariance(block: Block, bank: Bank, patient: int) -> Matrix:
    n, m = block.tables.n, block.tables.m
    upper = np.eye(n)
    packed = iter(bank.state[patient, m + n :].astype(np.float64))
    for j in range(n):
        for i in range(j):
            upper[i, j] = next(packed)
    return np.asarray(upper @ np.diag(bank.state[patient, m : m + n].astype(np.float64)) @ upper.T)


class Textbook:
    """The extended Kalman filter as every book has it: full covariance, numerical Jacobian, Joseph's form."""

    def __init__(self, block: Block) -> None:
        self.block, self.clock = block, NEVER
        self.x = block.prior(1)[0, : block.tables.m].astype(np.float64)
        self.p = covariance(block, make_bank(block, 1), 0)

    def move(self, x: Matrix, h: float) -> Matrix:
        tables = self.block.tables
        change = tables.rate * (tables.home - x)
        extended = np.append(x, 1.0)
        for to, c, a, b in zip(tables.term_to, tables.term_c, tables.term_a, tables.term_b, strict=True):
            change[to] += c * extended[a] * extended[b]
        rate = tables.rate.astype(np.float64)
        phi = np.where(rate > 0, -np.expm1(-rate * h) / np.maximum(rate, 1e-300), h)
        return np.asarray(x + phi * change)

    def advance(self, h: float) -> None:
        n, tables = self.block.tables.n, self.block.tables
        nudge = 1e-6 * np.maximum(1.0, np.abs(self.x[:n]))
        jacobian = np.stack(
            [
                (self.move(self.x + e, h) - self.move(self.x - e, h))[:n] / (2 * e.sum())
                for e in (np.eye(tables.m)[:n] * nudge[:, None])
            ],
            axis=1,
        )
        gained = np.where(tables.rate[:n] > 0, -np.expm1(-2 * tables.rate[:n].astype(np.float64) * h), h)
        self.p = jacobian @ self.p @ jacobian.T + np.diag(tables.noise * gained)
        self.x = self.move(self.x, h)

    def see(self, time: int, channel: int, value: float, variance: float) -> tuple[float, float]:
        minutes = 0.0 if self.clock == NEVER else (time - self.clock) / 60_000
        steps = int(np.ceil(minutes / self.block.step))
        for _ in range(steps):
            self.advance(minutes / steps)
        self.clock = time
        n = self.block.tables.n
        weights = self.block.tables.weights[channel].astype(np.float64)
        mean, spread = float(weights @ self.x[:n]), float(weights @ self.p @ weights + variance)
        if not np.isnan(value):
            gain = self.p @ weights / spread
            kept = np.eye(n) - np.outer(gain, weights)
            self.p = kept @ self.p @ kept.T + variance * np.outer(gain, gain)
            self.x[:n] += gain * (value - mean)
        return mean, spread


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_it_is_the_textbook_filter(block: Block) -> None:
    events = make_events(block, patients=1, count=30, seed=1, artefacts=0.0)
    bank, book = make_bank(block, 1), Textbook(block)
    events.jump[:] = -1
    predicted = apply_events(block, bank, events)
    assert GATED not in predicted.fate
    for k in range(len(events)):
        mean, spread = book.see(
            int(events.time[k]), int(events.channel[k]), float(events.value[k]), float(events.variance[k])
        )
        assert predicted.mean[k] == pytest.approx(mean, rel=2e-4, abs=2e-4)
        assert predicted.variance[k] == pytest.approx(spread, rel=2e-3)
    n = block.tables.n
    scale = np.sqrt(np.diag(book.p))
    assert np.abs(bank.state[0, :n] - book.x[:n]).max() < 1e-2 * scale.max()
    assert np.abs((covariance(block, bank, 0) - book.p) / np.outer(scale, scale)).max() < 5e-3


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_covariance_stays_positive_definite(block: Block) -> None:
    # Readings a million times as precise as the prior, at one instant and hours apart.
    events = make_events(block, patients=3, count=120, seed=2)
    events.variance[:] = events.variance * np.float32(1e-6)
    events.time[40:80] = events.time[40]
    bank = make_bank(block, 3)
    kernel.apply_events(block, bank, events)
    for patient in range(3):
        assert np.linalg.eigvalsh(covariance(block, bank, patient)).min() > 0


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_any_cut_into_batches_and_any_company_gives_the_same_bits(block: Block) -> None:
    events = make_events(block, patients=4, count=40, seed=3)
    together, apart = make_bank(block, 4), make_bank(block, 4)
    kernel.apply_events(block, together, events)
    for patient in range(4):
        own = np.flatnonzero(events.row == patient)
        for part in np.array_split(own, 3):
            kernel.apply_events(block, apart, events.take(part))
    assert np.array_equal(together.state, apart.state)
    assert np.array_equal(together.strikes, apart.strikes)
    assert np.array_equal(together.clock, apart.clock)


def reading(value: float, *, minute: int, channel: int = 0, variance: float = 0.02) -> Events:
    return Events(
        row=np.array([0]),
        time=np.array([minute * 60_000]),
        channel=np.array([channel]),
        value=np.array([value], np.float32),
        variance=np.array([variance], np.float32),
        jump=np.array([-1]),
        keep=np.ones(1, np.float32),
        amount=np.zeros(1, np.float32),
    )


def test_an_artefact_changes_nothing_and_a_patient_who_changed_is_believed() -> None:
    bank = make_bank(TEMPERATURE, 1)
    for hour in range(6):
        apply_events(TEMPERATURE, bank, reading(37.0, minute=60 * hour))
    quiet = make_bank(TEMPERATURE, 1)
    for field in ("state", "clock", "strikes"):
        getattr(quiet, field)[:] = getattr(bank, field)
    assert apply_events(TEMPERATURE, bank, reading(30.0, minute=361)).fate == GATED
    apply_events(TEMPERATURE, quiet, reading(np.nan, minute=361))
    assert np.array_equal(bank.state, quiet.state)  # only time has passed
    fates = [int(apply_events(TEMPERATURE, bank, reading(30.0, minute=361 + k)).fate[0]) for k in range(1, RETURN)]
    assert fates == [GATED] * (RETURN - 2) + [USED]


def test_without_readings_the_twin_returns_to_what_is_known_of_everybody() -> None:
    bank = make_bank(TEMPERATURE, 1)
    apply_events(TEMPERATURE, bank, reading(39.5, minute=0))
    later = apply_events(TEMPERATURE, bank, reading(np.nan, minute=60 * 24 * 60))
    assert later.fate == ONLY_PREDICT
    assert later.mean[0] == pytest.approx(36.8, abs=0.01)
    # fever and own set point wander independently: 0.5² + 0.25², plus the reading's own noise
    assert later.variance[0] == pytest.approx(0.5**2 + 0.25**2 + 0.02, rel=0.05)


def test_time_never_runs_backwards() -> None:
    bank = make_bank(TEMPERATURE, 1)
    apply_events(TEMPERATURE, bank, reading(37.0, minute=5))
    with pytest.raises(ValueError, match="order of time"):
        apply_events(TEMPERATURE, bank, reading(37.0, minute=4))


def test_rounds_keep_each_patient_in_order() -> None:
    row = np.random.default_rng(0).integers(0, 20, 200)
    order, bounds = arrange_rounds(row)
    assert sorted(order) == list(range(200))
    for begin, end in pairwise(bounds):
        assert len(set(row[order[begin:end]])) == end - begin
    for patient in range(20):
        assert np.all(np.diff([k for k in order if row[k] == patient]) > 0)


def test_insulin_lowers_and_carbohydrate_raises_glucose() -> None:
    def glucose_after(jump: str, amount: float, minutes: int) -> float:
        bank = make_bank(GLUCOSE, 1)
        apply_events(GLUCOSE, bank, reading(140.0, minute=0, variance=1.0))
        given = reading(np.nan, minute=1)
        given.jump[:], given.amount[:] = GLUCOSE.names.index(jump), amount
        apply_events(GLUCOSE, bank, given)
        return float(apply_events(GLUCOSE, bank, reading(np.nan, minute=minutes)).mean[0])

    alone = glucose_after("depot", 0.0, 120)
    # A unit: 1,800 ÷ 30 to 300 units a day. 20 g need two units, and share is 0.4 of them.
    assert 6 < alone - glucose_after("depot", 1.0, 120) < 60
    assert 8 < glucose_after("stomach", 20.0, 60) - alone < 120


def test_a_block_that_is_no_cascade_is_refused() -> None:
    def state(name: str) -> State:
        return State(name=name, rate=0.1, home=0.0, noise=1.0, prior=1.0, low=-9, high=9)

    def block(term: Term, step: float = 5.0, signal: str = "glucose") -> Block:
        return Block(
            name="two",
            states=(state("first"), state("second")),
            inputs=(),
            terms=(term,),
            channels=(Channel(signal=signal, weights={"first": 1.0}),),
            step=step,
            sources=(),
        )

    forwards = Term(to="first", coefficient=1.0, a="second")
    assert block(forwards).version != block(forwards, step=4.0).version
    with pytest.raises(ValueError, match="cascade"):
        block(Term(to="second", coefficient=1.0, a="first"))
    with pytest.raises(ValueError, match="time constants"):
        block(forwards, step=100.0)
    with pytest.raises(ValueError, match="channel"):
        block(forwards, signal="mood")
