"""`fedtwin simulate bench private-step`: one whole private step beside one ordinary step of torch's own layers.

Ours: tiles, patients' gradients, clip, integer grid, noise, descent (`PrivateStep`). Theirs: the same architecture in
`nn.LSTM`, `nn.GRU` or `nn.Conv1d` on all windows at once, its backward pass and the same descent, without any privacy.

Both run in one process, alternately, on one thread; a figure is the median of their CPU times. The process is started
with the allocator's settings of a hospital's executor: with glibc's own, torch's large activations are given back to
the kernel and faulted in again at every step, which costs the ordinary step half of its time and flatters every ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from fedtwin_client.networks import build_network
from fedtwin_client.node import KEEP_MEMORY, ONE_THREAD
from fedtwin_client.randomness import KeyStream
from fedtwin_client.training.arithmetic import Arithmetic, available_arithmetic
from fedtwin_client.training.batch import Batch
from fedtwin_client.training.engine import TapedGradients, make_patient_gradients
from fedtwin_client.training.patient_gradients import PatientGradients
from fedtwin_client.training.private_step import PrivateStep
from fedtwin_shared.models import initialise
from fedtwin_shared.signal import SIGNALS
from fedtwin_shared.study import Study
from fedtwin_simulations.results import Bench, BenchRow

STEPS, FEATURES = 48, 32  # hours and features of a window, as in a study of intensive care
TAPS, LAYERS = 3, {"tcn": 3}
REPEATS: Final = 9
MEGABYTE: Final = 2**20
MEMORY_GOAL: Final = 150.0  # MB
MEMORY_PATIENTS, MEMORY_WINDOWS, MEMORY_HIDDEN = 512, 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison. `goal`: largest ratio of CPU times; `cut`: the twin sees only the steps its last one needs."""

    model: str
    hidden: int
    patients: int
    windows: int
    goal: float
    ragged: bool = False
    cut: bool = False

    def describe(self) -> str:
        """Return the case in words."""
        windows = f"up to {self.windows} windows" if self.ragged else f"{self.windows} × {STEPS} h"
        return f"{self.model}, hidden {self.hidden}, {self.patients} patients × {windows}"


CASES: Final = (
    *(Case(model="lstm", hidden=hidden, patients=128, windows=8, goal=1.3) for hidden in (64, 128)),
    *(Case(model="lstm", hidden=hidden, patients=128, windows=1, goal=1.6) for hidden in (64, 128)),
    *(Case(model="lstm", hidden=hidden, patients=128, windows=8, goal=1.1, ragged=True) for hidden in (64, 128)),
    *(Case(model="lstm", hidden=hidden, patients=32, windows=1, goal=2.0) for hidden in (64, 128)),
    *(Case(model="gru", hidden=64, patients=128, windows=windows, goal=1.1) for windows in (8, 1)),
    *(Case(model="tcn", hidden=64, patients=128, windows=windows, goal=1.6) for windows in (8, 1)),
    *(Case(model="tcn", hidden=64, patients=128, windows=windows, goal=1.6, cut=True) for windows in (8, 1)),
)


class Twin(nn.Module):
    """The same architecture in torch's own layers, over [patients, windows, time, features]."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        width, hidden = FEATURES, case.hidden
        if case.model == "tcn":
            widths = [width, *[hidden] * LAYERS["tcn"]]
            self.layers = nn.ModuleList(
                nn.Conv1d(inputs, hidden, TAPS, dilation=2**layer) for layer, inputs in enumerate(widths[:-1])
            )
        else:
            kind = nn.LSTM if case.model == "lstm" else nn.GRU
            self.layers = nn.ModuleList([kind(width, hidden, batch_first=True)])
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logit[patients]."""
        logit = self.head(self._last_state(x.flatten(0, 1))).view(x.shape[:2])
        known = mask.flatten(2).any(dim=2).to(x.dtype)
        found: Tensor = (logit * known).sum(dim=1) / known.sum(dim=1)
        return found

    def _last_state(self, x: Tensor) -> Tensor:
        if self._case.model != "tcn":
            states: Tensor = self.layers[0](x)[0]
            return states[:, -1]
        if self._case.cut:
            x = x[:, -(1 + (TAPS - 1) * sum(2**layer for layer in range(LAYERS["tcn"]))) :]
        x = x.transpose(1, 2)
        for layer, convolution in enumerate(self.layers):
            out = torch.relu(convolution(pad(x, ((TAPS - 1) * 2**layer, 0))))
            x = out if layer == 0 else x + out
        return x[:, :, -1]


def bench_private_step(say: Callable[[str], None]) -> Bench:
    """Measure every case, in processes with the allocator's settings and one thread; say what is measured."""
    rows = [BenchRow(**row) for row in _run_child("--times", say)]
    ours, theirs = (float(_run_child(f"--memory={side}", say)[0]["peak"]) for side in ("ours", "theirs"))
    rows.append(
        BenchRow(
            case=f"peak memory beside the data: lstm, hidden {MEMORY_HIDDEN}, "
            f"{MEMORY_PATIENTS} patients × {MEMORY_WINDOWS} windows",
            ours=ours,
            baseline=theirs,
            baseline_name="nn.LSTM, an ordinary step",
            unit="MB",
            goal=f"at most {MEMORY_GOAL:g} MB",
            holds=ours <= MEMORY_GOAL,
        )
    )
    return Bench(bench="private-step", rows=tuple(rows))


def _run_child(argument: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    say(f"private step {argument}: allocator and threads as at a hospital")
    done = subprocess.run(
        [sys.executable, "-m", "fedtwin_simulations.private_step_bench", argument],
        env={**os.environ, **KEEP_MEMORY, **ONE_THREAD},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def measure_times() -> list[BenchRow]:
    """Return a row for each case with the engine that training chooses, and one for each other engine."""
    rows = [measure_case(case, None) for case in CASES]
    return rows + [measure_case(CASES[0], arithmetic) for arithmetic in available_arithmetic()[1:]]


def measure_case(case: Case, arithmetic: Arithmetic | None, *, repeats: int = REPEATS) -> BenchRow:
    """Return the medians of one case; `arithmetic` None is what training would choose."""
    batch = make_batch(case)
    ours, engine = make_private_step(case, arithmetic)
    theirs = make_ordinary_step(Twin(case))
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        for name, step in (("ours", ours), ("theirs", theirs)):
            began = time.process_time()
            step(batch)
            if repeat > 0:  # the first one makes the buffers
                times[name].append(1000 * (time.process_time() - began))
    mine, other = statistics.median(times["ours"]), statistics.median(times["theirs"])
    layer = {"lstm": "nn.LSTM", "gru": "nn.GRU", "tcn": "nn.Conv1d"}[case.model]
    return BenchRow(
        case=f"{case.describe()}; engine {engine}",
        ours=mine,
        baseline=other,
        baseline_name=layer + " on padding too" * case.ragged + " on the steps that count" * case.cut,
        unit="ms CPU",
        goal=f"ratio at most {case.goal:g}" if arithmetic is None else "none: another engine",
        holds=arithmetic is not None or mine <= case.goal * other,
    )


def make_batch(case: Case) -> Batch:
    """Return made-up patients; with `ragged`, of one window up to all, evenly."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.patients, case.windows, STEPS, FEATURES)
    lengths = 1 + torch.arange(case.patients) % case.windows if case.ragged else torch.full(shape[:1], case.windows)
    known = torch.arange(case.windows) < lengths[:, None]
    mask = known[:, :, None, None].expand(shape).contiguous()
    x = torch.randn(shape, generator=generator) * mask
    return Batch(x=x, mask=mask, y=(torch.rand(case.patients, generator=generator) < 0.3).float())


def make_private_step(case: Case, arithmetic: Arithmetic | None) -> tuple[Callable[[Batch], None], str]:
    """Return the production step for this case, and its engine's name."""
    study = make_study(case)
    network = build_network(study, initialise(study))

    def choose(network: nn.Module, positive_weight: float) -> PatientGradients:
        if arithmetic is None:
            return make_patient_gradients(network, positive_weight)
        return TapedGradients(network, positive_weight, arithmetic)

    step = PrivateStep(
        network,
        torch.optim.SGD(network.parameters(), lr=1e-3),
        make_gradients=choose,
        clip=1.0,
        noise_multiplier=1.0,
        expected_batch=case.patients,
        positive_weight=1.0,
        stream=KeyStream(),
        before_descent=lambda: None,
    )
    return step, step.engine


def make_ordinary_step(twin: Twin) -> Callable[[Batch], None]:
    """Return an ordinary step of torch's own layers."""
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        logit = twin(batch.x, batch.mask)
        torch.autograd.backward(binary_cross_entropy_with_logits(logit, batch.y))
        optimizer.step()

    return step


def make_study(case: Case) -> Study:
    """Return a study with the case's model and shape."""
    signals = list(SIGNALS)[: FEATURES // 4]
    statistics_of = ("mean", "min", "max", "last")
    document: Mapping[str, object] = {
        "name": "bench",
        "version": 1,
        "question": "How long does a step take?",
        "outcome": "deteriorated",
        "roster": "0" * 64,
        "participants": [{"site": "north", "patients": case.patients}],
        "cohort": {"minimum_patients": 1},
        "features": {
            "window_hours": float(STEPS),
            "windows": case.windows,
            "step_hours": 1.0,
            "series": [{"signal": signal, "statistics": statistics_of} for signal in signals],
        },
        "model": {"name": case.model, "hidden": case.hidden, "layers": LAYERS.get(case.model, 1), "kernel": TAPS},
        "training": {"rounds": 1, "learning_rate": 1e-3, "minimum_sites": 1},
        "privacy": {"epsilon": 1e300, "delta": 1e-5, "noise_multiplier": 1.0},
        "evaluation": {"noise_multiplier": 1.0},
    }
    return Study.model_validate(document)


def measure_memory(side: str) -> float:
    """Return MB by which two steps raise the process' peak above what it was with the data and the model there.

    Two steps of four patients before that load what is loaded at first use.
    """
    torch.set_num_threads(1)
    case = Case(model="lstm", hidden=MEMORY_HIDDEN, patients=MEMORY_PATIENTS, windows=MEMORY_WINDOWS, goal=1.0)
    batch = make_batch(case)
    few = batch.take(torch.arange(4))

    def make(case: Case) -> Callable[[Batch], None]:
        return (
            make_private_step(case, available_arithmetic()[0])[0] if side == "ours" else make_ordinary_step(Twin(case))
        )

    warm, step = make(Case(model="lstm", hidden=MEMORY_HIDDEN, patients=4, windows=8, goal=1.0)), make(case)
    for _ in range(2):
        warm(few)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step(batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MEGABYTE


def main() -> None:
    """Print one measurement as JSON: what the child processes of `bench_private_step` run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--memory", choices=("ours", "theirs"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.times:
        print(json.dumps([asdict(row) for row in measure_times()]))
    else:
        print(json.dumps([{"peak": measure_memory(chosen.memory)}]))


if __name__ == "__main__":
    main()
