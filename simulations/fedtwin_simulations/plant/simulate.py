"""Runs virtual patients through time, and branches them: the same patient, state and noise, with another treatment.

Design note: the noise of an hour is a function of the seed and the hour alone (Philox: Salmon 2011, SC11), so every
run of the same patients meets the same noise, whatever it started from and whatever was done (common random
numbers). `run` is a pure function: snapshot in, snapshot out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fedtwin_simulations.plant.circulation import CirculationParameters, CirculationState
from fedtwin_simulations.plant.engine import Array, compile_loop, to_tuple
from fedtwin_simulations.plant.glucose import PMOL_PER_UNIT, GlucoseParameters, GlucoseState
from fedtwin_simulations.plant.patient import Patients
from fedtwin_simulations.plant.physiology import (
    SHOCKS,
    TICK_MINUTES,
    BodyParameters,
    BodyState,
    Controls,
    Effects,
    advance_tick,
)
from fedtwin_simulations.plant.respiration import ROOM_AIR, RespirationParameters, RespirationState, desaturate

TICKS = 12  # in an hour
Engine = Literal["compiled", "numpy"]

STATES = (CirculationState, RespirationState, BodyState, GlucoseState)
PARAMETERS = (CirculationParameters, RespirationParameters, BodyParameters, Effects, GlucoseParameters)
COLUMNS = tuple(name for state in STATES for name in state._fields)
"""Names of everything that is recorded: the whole state of the patient."""
PULSE_COMPLIANCE = 1.7  # mL/mmHg within a beat; assumed

_C, _R, _B, _G = (len(state._fields) for state in STATES)
_CP, _RP, _BP, _E, _GP = (len(kind._fields) for kind in PARAMETERS)
_S2, _S3 = _C + _R, _C + _R + _B  # where the body's and glucose's columns begin
_P2, _P3, _P4 = _CP + _RP, _CP + _RP + _BP, _CP + _RP + _BP + _E
_ACTS = len(Controls._fields)
_NEUTRAL = {**dict.fromkeys(Controls._fields, 0.0), "oxygen": ROOM_AIR, "basal": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One thing done to some patients: `amount`[patients] (0 = to whom it is not done) over `minutes`, at one `minute`.

    kind, amount: fluid, mL; oxygen, inspired share above room air; pressor, share of vascular tone; carbohydrate, g;
    insulin, units under the skin; basal, change of the factor on the pump's rate (-1: suspended); treatment, 1/h.
    Fluid, carbohydrate and insulin are total amounts, the others hold for `minutes`.
    """

    kind: Literal["fluid", "oxygen", "pressor", "carbohydrate", "insulin", "basal", "treatment"]
    minute: Array
    amount: Array
    minutes: float = TICK_MINUTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Patients at one minute: `state`[patients, COLUMNS]."""

    minute: int
    state: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What happened: `states`[patients, times, COLUMNS] at `minutes`[times], and the snapshot at the end."""

    minutes: Array
    states: Array
    end: Snapshot

    def __getitem__(self, name: str) -> Array:
        """Return one column of the state[patients, times]."""
        return self.states[:, :, COLUMNS.index(name)]


def read_signals(course: Course, patients: Patients) -> dict[str, Array]:
    """Return what perfect sensors would show[patients, times], by key of the Signal table and in its unit."""
    haemoglobin = 100 * course["haemoglobin"] / course["volume"]
    pulse = course["output"] / course["heart_rate"] / PULSE_COMPLIANCE
    return {
        "heart_rate": course["heart_rate"],
        "mean_pressure": course["pressure"],
        # The mean lies at about two fifths of the pulse: Bos 2007, J Hypertens 25:751.
        "systolic_pressure": course["pressure"] + 0.6 * pulse,
        "respiratory_rate": course["breath_rate"],
        "pulse_oximetry": 100 * course["saturation"],
        "temperature": course["temperature"],
        "lactate": course["lactate"],
        "creatinine": course["creatinine"],
        "glucose": course["plasma"] / patients.glucose.glucose_volume[:, None],
        "hematocrit": 3 * haemoglobin,
        "arterial_carbon_dioxide": course["carbon_dioxide"],
        "arterial_oxygen": desaturate(course["saturation"]),
    }


def begin(patients: Patients) -> Snapshot:
    """Return everybody at rest at minute 0, before anything has happened."""
    state = np.stack([column for group in patients.rest for column in group], axis=1)
    return Snapshot(minute=0, state=np.ascontiguousarray(state, dtype=np.float64))


def run(
    patients: Patients,
    start: Snapshot,
    *,
    minutes: int,
    seed: int | Sequence[int],
    acts: Sequence[Act] = (),
    every: int = 60,
    engine: Engine = "compiled",
    noise: float = 1.0,
    substeps: int = 1,
) -> Course:
    """Return the next `minutes` of everybody after `start`, recorded `every` so many minutes from `start` on.

    minutes, every: multiples of 5. noise: factor on the shocks. substeps: of a tick, for vital signs and glucose.

    - a run in two parts gives the same bits as one run, and a branch without a further act the same bits as the trunk
    - an act changes nothing before its minute, and no other patient
    - the engines agree to 1e-9 relative
    """
    tick = int(TICK_MINUTES)
    for name, value in (("minutes", minutes), ("every", every), ("start.minute", start.minute)):
        if value % tick or value < 0 or (name == "every" and not value):
            raise ValueError(f"expected {name} in multiples of {tick}, found {value}")
    parameters = gather(patients)
    states = start.state.copy()
    records = np.empty((len(patients), minutes // every + 1, states.shape[1]))
    records[:, 0] = states
    first, last = start.minute // tick, (start.minute + minutes) // tick
    advance = _advance_compiled if engine == "compiled" else _advance_numpy
    at = first
    while at < last:
        until = min(last, (at // TICKS + 1) * TICKS)
        shocks = noise * draw_shocks(seed, at // TICKS, len(patients))[at % TICKS : at % TICKS + until - at]
        controls = schedule(patients, acts, at, until)
        advance(states, _Stretch(parameters, controls, shocks, at, first, every // tick, substeps), records)
        at = until
    return Course(
        minutes=np.arange(start.minute, start.minute + minutes + 1, every, dtype=np.float64)[: records.shape[1]],
        states=records,
        end=Snapshot(minute=start.minute + minutes, state=states),
    )


def draw_shocks(seed: int | Sequence[int], hour: int, count: int) -> Array:
    """Return standard normal shocks[ticks, SHOCKS, patients] of one hour."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*np.atleast_1d(seed), hour])))
    return generator.standard_normal((TICKS, SHOCKS, count))


def gather(patients: Patients) -> Array:
    """Return all parameters[patients, columns] in the order of PARAMETERS."""
    groups = (patients.circulation, patients.respiration, patients.body, patients.effects, patients.glucose)
    return np.ascontiguousarray(np.stack([column for group in groups for column in group], axis=1), dtype=np.float64)


def schedule(patients: Patients, acts: Sequence[Act], first: int, last: int) -> Array:
    """Return the controls[ticks, fields, patients] of the ticks first … last - 1."""
    controls = np.empty((last - first, _ACTS, len(patients)))
    controls[:] = np.array(list(_NEUTRAL.values()))[None, :, None]
    for act in acts:
        if not _concerns(act, first, last):
            continue
        field = Controls._fields.index(act.kind)
        begins = np.floor(act.minute / TICK_MINUTES)
        once = act.kind in ("carbohydrate", "insulin")
        length = 1.0 if once else max(1.0, np.ceil(act.minutes / TICK_MINUTES))
        for tick in range(first, last):
            on = (begins <= tick) & (tick < begins + length)
            scale = _SCALE[act.kind] / (length * TICK_MINUTES if act.kind == "fluid" else 1.0)
            controls[tick - first, field] += np.where(on, act.amount * scale, 0.0)
    return controls


def _concerns(act: Act, first: int, last: int) -> bool:
    """Whether the act may touch any of these ticks; most do not."""
    begins, ends = float(np.min(act.minute)), float(np.max(act.minute)) + max(act.minutes, TICK_MINUTES)
    return begins < last * TICK_MINUTES and ends >= (first - 1) * TICK_MINUTES


_SCALE = {
    "fluid": 1.0,
    "oxygen": 1.0,
    "pressor": 1.0,
    "carbohydrate": 1000.0,
    "insulin": PMOL_PER_UNIT,
    "basal": 1.0,
    "treatment": 1.0 / 60.0,
}


class _Stretch(NamedTuple):
    """Some ticks in a row and what acts in them: parameters[patients, columns], controls, shocks[ticks, …, patients].

    tick: the first one; first: the one with which recording began; every: ticks between two records.
    """

    parameters: Array
    controls: Array
    shocks: Array
    tick: int
    first: int
    every: int
    substeps: int


def _advance_numpy(states: Array, stretch: _Stretch, records: Array) -> None:
    """Advance everybody tick by tick, the equations applied to arrays over patients."""
    parameters, controls, shocks, tick, first, every, substeps = stretch
    p = parameters.T
    cp, rp = CirculationParameters(*p[:_CP]), RespirationParameters(*p[_CP : _CP + _RP])
    bp, effects = BodyParameters(*p[_P2 : _P2 + _BP]), Effects(*p[_P3 : _P3 + _E])
    gp = GlucoseParameters(*p[_P4:])
    s = states.T
    c, r = CirculationState(*s[:_C].copy()), RespirationState(*s[_C : _C + _R].copy())
    b, g = BodyState(*s[_S2 : _S2 + _B].copy()), GlucoseState(*s[_S3:].copy())
    for one in range(len(controls)):
        done, z = Controls(*controls[one]), shocks[one]
        minute = (tick + one) * TICK_MINUTES
        c, r, b, g = advance_tick(c, r, b, g, cp, rp, bp, effects, gp, done, z[0], z[1], z[2], z[3], minute, substeps)
        if (tick + one + 1 - first) % every == 0:
            records[:, (tick + one + 1 - first) // every] = np.stack([*c, *r, *b, *g], axis=1)
    states[:] = np.stack([*c, *r, *b, *g], axis=1)


def _loop(states: Array, stretch: _Stretch, records: Array) -> None:
    """Advance patient after patient: the same equations on numbers, in machine code."""
    parameters, controls, shocks, tick, first, every, substeps = stretch
    for i in range(states.shape[0]):
        p, s = parameters[i], states[i]
        cp = CirculationParameters(*to_tuple(p[:_CP], _CP))
        rp = RespirationParameters(*to_tuple(p[_CP : _CP + _RP], _RP))
        bp = BodyParameters(*to_tuple(p[_P2 : _P2 + _BP], _BP))
        effects = Effects(*to_tuple(p[_P3 : _P3 + _E], _E))
        gp = GlucoseParameters(*to_tuple(p[_P4:], _GP))
        c = CirculationState(*to_tuple(s[:_C], _C))
        r = RespirationState(*to_tuple(s[_C : _C + _R], _R))
        b = BodyState(*to_tuple(s[_S2 : _S2 + _B], _B))
        g = GlucoseState(*to_tuple(s[_S3:], _G))
        for one in range(controls.shape[0]):
            done = Controls(*to_tuple(controls[one, :, i], _ACTS))
            z = shocks[one, :, i]
            minute = (tick + one) * TICK_MINUTES
            c, r, b, g = advance_tick(
                c, r, b, g, cp, rp, bp, effects, gp, done, z[0], z[1], z[2], z[3], minute, substeps
            )
            ended = tick + one + 1 - first
            if ended % every == 0 or one == controls.shape[0] - 1:
                k = 0
                for value in c:
                    s[k] = value
                    k += 1
                for value in r:
                    s[k] = value
                    k += 1
                for value in b:
                    s[k] = value
                    k += 1
                for value in g:
                    s[k] = value
                    k += 1
                if ended % every == 0:
                    records[i, ended // every] = s


_advance_compiled = compile_loop(_loop)
