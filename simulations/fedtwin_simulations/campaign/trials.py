"""Runs a campaign's trials, keeps each one that ended in a file of its own, and goes on where it was stopped.

Design note: a trial is a function of the campaign, its case and its seed, and knows nothing of the others: they run in
any order and in any number of processes. A trial that fails stops no other; it is named with its seed and can be run
alone.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError, FedtwinError
from fedtwin_simulations.campaign.attacks import run_inversion, run_membership
from fedtwin_simulations.campaign.learning import run_learning
from fedtwin_simulations.campaign.specification import Campaign, Case, Kind, Measure
from fedtwin_simulations.engine.memory import PROCESS_BYTES, MemoryNeed, check_memory

TRIALS, WORLDS = "trials", "worlds"
WORLD_BYTES = 300 << 20  # simulating a hospital's patients, 1,000 at a time, and reading its files

OnProgress = Callable[[int, int], None]  # trials done, trials in all
RunTrial = Callable[[Campaign, Case, int, Path], dict[str, Any]]

KINDS: Mapping[Kind, RunTrial] = {
    "learning": run_learning,
    "inversion": run_inversion,
    "membership": run_membership,
}


class TrialError(FedtwinError):
    """Trials failed; those that ended are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One case under one seed, and what it found. sites: AUROC of each, None where one class only is present."""

    case: str
    seed: int
    figures: Mapping[Measure, float]
    sites: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """Names the trial on the command line."""
        return name_trial(self.case, self.seed)


def name_trial(case: str, seed: int) -> str:
    """Return `case@seed`."""
    return f"{case}@{seed}"


def parse_trial(campaign: Campaign, name: str) -> tuple[Case, int]:
    """Return the case and seed of `case@seed`, whatever seeds the campaign names. Raises `ConfigurationError`."""
    case, at, seed = name.rpartition("@")
    if not at or not seed.isascii() or not seed.isdigit():
        raise ConfigurationError(field="trial", expected="CASE@SEED", found=repr(name))
    return campaign.case(case), int(seed)


def run_trials(
    campaign: Campaign,
    folder: Path,
    *,
    workers: int = 1,
    on_progress: OnProgress = lambda done, every: None,
    run_trial: RunTrial | None = None,
) -> list[Trial]:
    """Run every trial of the campaign that `folder` does not hold yet, and return all of them in the file's order.

    Raises `ConfigurationError` before anything is run when `folder` holds another campaign or the memory is not there;
    `TrialError` at the end, naming every trial that failed with its seed.

    - what ended before a crash is neither lost nor run again
    - results do not depend on `workers`
    """
    _claim(campaign, folder)
    check_memory(foresee(workers))
    wanted = [(case, seed) for seed in campaign.seeds for case in campaign.cases]
    waiting = [(case, seed) for case, seed in wanted if not _file(folder, case.name, seed).exists()]
    failed: dict[str, Exception] = {}
    done = len(wanted) - len(waiting)
    on_progress(done, len(wanted))
    run = run_trial or KINDS[campaign.kind]
    for case, seed, outcome in _run_each(campaign, folder, waiting, run, workers=workers):
        if isinstance(outcome, Exception):
            failed[name_trial(case.name, seed)] = outcome
        done += 1
        on_progress(done, len(wanted))
    if failed:
        first, err = next(iter(failed.items()))
        raise TrialError(
            field="trials",
            expected=f"every trial to end; run one alone with --trial {first}",
            found=f"{len(failed)} that failed: {', '.join(failed)}; {first}: {type(err).__name__}: {err}",
        ) from err
    return [read_trial(folder, case.name, seed) for case in campaign.cases for seed in campaign.seeds]


def foresee(workers: int) -> MemoryNeed:
    """Return what so many processes of trials take."""
    return MemoryNeed(
        processes=PROCESS_BYTES * (1 + (workers if workers > 1 else 0)),
        sites=0,
        models=0,
        patients=WORLD_BYTES * max(1, workers),
    )


def run_one(campaign: Campaign, case: Case, seed: int, folder: Path, *, run_trial: RunTrial | None = None) -> Trial:
    """Run one trial, whether it was run before or not, and keep what it finds.

    - it gives what the whole campaign gives for it
    """
    began = time.monotonic()
    found = (run_trial or KINDS[campaign.kind])(campaign, case, seed, folder / WORLDS)
    record = {"case": case.name, "seed": seed, **found, "wall_seconds": time.monotonic() - began}
    file = _file(folder, case.name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(_plain(record), indent=1, allow_nan=False).encode())
    return read_trial(folder, case.name, seed)


def read_trial(folder: Path, case: str, seed: int) -> Trial:
    """Return a trial that ended. Raises `ConfigurationError` for a file that is no trial."""
    file = _file(folder, case, seed)
    try:
        record = json.loads(file.read_bytes())
        figures = {name: float("nan") if value is None else float(value) for name, value in record["figures"].items()}
        return Trial(case=record["case"], seed=record["seed"], figures=figures, sites=dict(record["sites"]))
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigurationError(file=file, expected="a finished trial", found=type(err).__name__) from err


def _claim(campaign: Campaign, folder: Path) -> None:
    """Write which campaign the folder is of; a changed file would silently mix old trials with new ones."""
    mark = folder / TRIALS / "campaign"
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        replace_file(mark, campaign.digest.encode())
    elif mark.read_bytes() != campaign.digest.encode():
        raise ConfigurationError(
            file=folder,
            expected=f"a new folder, or one of this very {campaign.name}",
            found="another campaign's trials",
        )


def _file(folder: Path, case: str, seed: int) -> Path:
    return folder / TRIALS / f"{case.replace('/', '-')}@{seed}.json"


def _run_each(
    campaign: Campaign, folder: Path, waiting: Sequence[tuple[Case, int]], run: RunTrial, *, workers: int
) -> Iterator[tuple[Case, int, Trial | Exception]]:
    if workers <= 1:
        for case, seed in waiting:
            yield case, seed, _attempt(campaign, case, seed, folder, run)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(_attempt, campaign, case, seed, folder, run): (case, seed) for case, seed in waiting}
        try:
            for ended in as_completed(running):
                yield (*running[ended], ended.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _attempt(campaign: Campaign, case: Case, seed: int, folder: Path, run: RunTrial) -> Trial | Exception:
    try:
        return run_one(campaign, case, seed, folder, run_trial=run)
    except Exception as err:  # of one trial; the others are no worse for it
        return err


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return None if value != value or value in (float("inf"), float("-inf")) else value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
