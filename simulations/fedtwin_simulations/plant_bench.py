"""How many minutes of patients' lives the plant computes in a second on one core, beside simglucose's pace."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from fedtwin_simulations.plant import glucose
from fedtwin_simulations.plant.circulation import CirculationParameters, CirculationState
from fedtwin_simulations.plant.engine import Array, compile_loop, to_tuple
from fedtwin_simulations.plant.glucose import GlucoseParameters, GlucoseState
from fedtwin_simulations.plant.patient import Population, draw_patients
from fedtwin_simulations.plant.physiology import (
    TICK_MINUTES,
    BodyParameters,
    BodyState,
    Controls,
    Effects,
    advance_vitals,
)
from fedtwin_simulations.plant.respiration import ROOM_AIR, RespirationParameters, RespirationState
from fedtwin_simulations.plant.scenario import NAMES
from fedtwin_simulations.plant.simulate import PARAMETERS, STATES, begin, gather, run
from fedtwin_simulations.results import Bench, BenchRow

PATIENTS, HOURS, REPEATS = 1000, 12, 5
GLUCOSE_GOAL, VITALS_GOAL = 1e6, 3e6  # patient-minutes/s/core
SIMGLUCOSE = 331.0  # patient-minutes/s of simglucose 0.2.11, one patient at a time, measured on a machine like this one

_CIRCULATION, _BREATHING, _BODY, _GLUCOSE = (len(state._fields) for state in STATES)
_HEART, _LUNGS, _FRAME, _ILLNESS, _SUGAR = (len(kind._fields) for kind in PARAMETERS)


def _live_on_sugar(states: Array, parameters: Array, minutes: int) -> None:
    """Glucose after a meal, minute after minute, patient after patient."""
    for i in range(states.shape[0]):
        p = GlucoseParameters(*to_tuple(parameters[i], _SUGAR))
        s = GlucoseState(*to_tuple(states[i], _GLUCOSE))
        meal, none, one = p.weight * 0.0 + 75000.0, p.weight * 0.0, p.weight * 0.0 + 1.0
        s = glucose.eat_and_inject(s, p, meal, none)
        for _ in range(minutes):
            s = glucose.advance(s, p, one, one, 1.0)
        states[i, 0] = s.plasma


def _live_on_oxygen(states: Array, parameters: Array, ticks: int) -> None:
    """Circulation, lungs and body, tick after tick, patient after patient; the waves stand still."""
    for i in range(states.shape[0]):
        p, s = parameters[i], states[i]
        cp = CirculationParameters(*to_tuple(p[:_HEART], _HEART))
        rp = RespirationParameters(*to_tuple(p[_HEART : _HEART + _LUNGS], _LUNGS))
        bp = BodyParameters(*to_tuple(p[_HEART + _LUNGS : _HEART + _LUNGS + _FRAME], _FRAME))
        effects = Effects(*to_tuple(p[_HEART + _LUNGS + _FRAME :], _ILLNESS))
        c = CirculationState(*to_tuple(s[:_CIRCULATION], _CIRCULATION))
        r = RespirationState(*to_tuple(s[_CIRCULATION : _CIRCULATION + _BREATHING], _BREATHING))
        b = BodyState(*to_tuple(s[_CIRCULATION + _BREATHING :], _BODY))
        none = bp.weight * 0.0
        controls = Controls(none, none + ROOM_AIR, none, none, none, none + 1.0, none)
        for tick in range(ticks):
            minute = tick * TICK_MINUTES
            c, r, b = advance_vitals(c, r, b, none + 100.0, cp, rp, bp, effects, controls, minute, TICK_MINUTES)
        s[0] = c.pressure + r.saturation + b.strain


def bench_plant(say: Callable[[str], None]) -> Bench:
    """Measure glucose alone, vital signs alone, and whole patients, compiled and in plain numpy, on one thread."""
    patients = draw_patients(Population(scenarios=dict.fromkeys(NAMES, 1.0)), PATIENTS, np.random.default_rng(0))
    say("compiling")
    glucose_loop, vitals_loop = compile_loop(_live_on_sugar), compile_loop(_live_on_oxygen)
    start, parameters = begin(patients), gather(patients)
    say(f"{PATIENTS} patients, {HOURS} hours, {REPEATS} times each")
    sugar = _time(lambda: glucose_loop(start.state[:, -_GLUCOSE:].copy(), parameters[:, -_SUGAR:], HOURS * 60))
    vitals = _time(lambda: vitals_loop(start.state[:, :-_GLUCOSE].copy(), parameters[:, :-_SUGAR], HOURS * 12))
    together = _time(lambda: run(patients, start, minutes=HOURS * 60, seed=0, every=60))
    plain = _time(lambda: run(patients, start, minutes=HOURS * 60, seed=0, every=60, engine="numpy"))
    return Bench(
        bench="plant",
        rows=(
            _row("glucose, steps of one minute", sugar, SIMGLUCOSE, "simglucose, one patient", GLUCOSE_GOAL),
            _row("vital signs, steps of five minutes", vitals, None, "", VITALS_GOAL),
            _row(
                "whole patients with noise and records, beside plain numpy",
                together,
                plain,
                "plain numpy",
                GLUCOSE_GOAL,
            ),
        ),
    )


def _row(case: str, ours: float, baseline: float | None, name: str, goal: float) -> BenchRow:
    return BenchRow(
        case=case,
        ours=ours,
        baseline=baseline,
        baseline_name=name,
        unit="patient-minutes/s",
        goal=f"at least {goal:,.0f}",
        holds=ours >= goal,
    )


def _time(work: Callable[[], object]) -> float:
    """Return patient-minutes for each second of this process's own time: median, the first one warms up."""
    found = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        work()
        found.append(PATIENTS * HOURS * 60 / (time.process_time() - began))
    return statistics.median(found[1:])
