"""How much memory a simulation will need, said before it starts, and refused where the machine does not have it.

Design note: an upper estimate of what grows: everything that is held once for each site (messages, answers, keys), and
the patients of the sites that have their turn. The constants were measured on 64-bit CPython 3.11: a run of 1,000
hospitals was foreseen to take 1.88 GiB and took 1.48.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import parameter_shapes
from fedtwin_shared.round import histogram_shape
from fedtwin_shared.study import Study
from fedtwin_simulations.engine.site_data import BYTES_PER_NUMBER, SiteData

PROCESS_BYTES = 450 << 20  # interpreter, torch, flwr and compiled kernels
SITE_BYTES = 60_000  # keys, roster, participant, message, journal and Python's share of each
MODEL_COPIES = 7  # of every site's model in flight: message, reply, bytes, verified arrays, sealed answer, average
HISTOGRAM_COPIES = 4
PATIENT_COPIES = 4  # of the patients who have their turn: read, gathered, per-step values
MAPPED = Path("/proc/meminfo")
LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Bytes that a simulation takes at most, by what takes them."""

    processes: int
    sites: int
    models: int
    patients: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.processes + self.sites + self.models + self.patients

    def __str__(self) -> str:
        parts = ("processes", "sites", "models", "patients")
        return f"{_say(self.total)} ({', '.join(f'{part} {_say(getattr(self, part))}' for part in parts)})"


def foresee_memory(study: Study, data: SiteData, *, together: int = 1, workers: int = 0) -> MemoryNeed:
    """Return what a run of the study over these sites takes.

    - never less than it takes, where a row of patients is no longer than the study says
    """
    sites, processes = len(data.sites), max(1, workers)
    model = 4 * sum(math.prod(shape) for shape in parameter_shapes(study).values())
    histograms = 8 * math.prod(histogram_shape(study)) * (len(study.evaluation.rounds) + 1) * HISTOGRAM_COPIES
    features = study.features
    row = features.windows * features.steps * len(study.feature_names()) * BYTES_PER_NUMBER
    patients = data.patients_held(study, together)
    gradients = (patients * model) if together > 1 else (64 << 20)  # rows of a step; a tile of the private step
    return MemoryNeed(
        processes=PROCESS_BYTES * (1 + workers),
        sites=sites * SITE_BYTES * (1 + workers),
        models=sites * (model * MODEL_COPIES + histograms),
        patients=processes * (patients * row * PATIENT_COPIES + 2 * gradients),
    )


def check_memory(need: MemoryNeed, *, free: int | None = None) -> None:
    """Raise `ConfigurationError` unless so much is free on this machine, container limits included.

    - where the machine does not say, nothing is refused
    """
    there = free_memory() if free is None else free
    if there is not None and not need.total <= there:
        raise ConfigurationError(
            field="memory", expected=f"{need} free: fewer sites, a smaller model or fewer workers", found=_say(there)
        )


def free_memory() -> int | None:
    """Return the bytes that this process may still take, or None where the machine does not say."""
    found = []
    try:
        rows = (line.split() for line in MAPPED.read_text(encoding="ascii").splitlines())
        found += [int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in LIMITS:
        try:
            found.append(int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return min(found, default=None)


@contextmanager
def watch_memory(*, seconds: float = 0.2) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the most bytes that this process and its children held together, shared ones once.

    Looks every so many `seconds`, in a thread.
    """
    most, stop = _held(), threading.Event()

    def look() -> None:
        nonlocal most
        while not stop.wait(seconds):
            most = max(most, _held())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: max(most, _held())
    finally:
        stop.set()
        watcher.join()


def _held() -> int:
    """Proportional set size of this process and everything below it; 0 where /proc does not tell."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            lines = (process / "smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            for children in process.glob("task/*/children"):
                waiting += [int(one) for one in children.read_text(encoding="ascii").split()]
        except (OSError, ValueError):  # ended meanwhile
            continue
    return total


def _say(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
