"""One study in one process, on virtual hospitals or on given folders: what a researcher tries first."""

from __future__ import annotations

import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from fedtwin_shared.documents import check_document
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.study import Study
from fedtwin_simulations.cohorts import read_hospitals
from fedtwin_simulations.comparison import Trial, final_histograms
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.jobs import Job
from fedtwin_simulations.one_process import run_study
from fedtwin_simulations.results import Results, list_versions
from fedtwin_simulations.specification import (
    Experiment,
    MethodEntry,
    Metric,
    Partition,
    list_experiments,
    merge,
    read_experiment,
    set_price,
)
from fedtwin_simulations.summary import describe_policy, summarise
from fedtwin_simulations.virtual_hospitals import list_case_mixes, write_hospitals

TRAINING_SHARE = 0.75  # of a virtual hospital's patients: the nominal number that a study states
METRICS: tuple[Metric, ...] = ("auroc", "auprc", "accuracy", "brier", "calibration_error")


def run_single(study: str, *, sites: int = 4, data: Path | None = None, seed: int = 0) -> Results:
    """Run a study file, or a packaged experiment's study at its demo price, and return its figures.

    data: a folder with one directory of hospital files for each participant; without it, `sites` virtual hospitals take
    the participants' place. Raises `ConfigurationError`, `DataError`, `RunError`.
    """
    began = time.monotonic()
    document = read_document(study)
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as scratch:
        folder = data or Path(scratch)
        if data is None:
            write_hospitals(folder, count=sites, seed=seed)
            document = with_virtual_sites(document, sites)
        names = [part["site"] for part in document["participants"]]
        gathered = read_hospitals({name: folder / name for name in names})
    consortium = make_consortium(names)
    checked = check_document(document | {"roster": consortium.roster.digest}, Study, file=study)
    parts = gathered.parts(checked)
    cohorts = {site: gathered.cohort(checked, site, parts) for site in gathered.sites}
    outcome = run_study(checked, consortium, cohorts, seed=seed)
    private = checked.privacy.mode != "none"
    entry = MethodEntry(
        method="private" if private else "federated", epsilon=checked.privacy.epsilon if private else None
    )
    trial = Trial(
        entry=entry,
        study=checked,
        train=outcome.train,
        test=outcome.test,
        histograms=final_histograms(outcome),
        seconds=outcome.seconds,
    )
    described = Experiment(
        name=checked.name,
        title=checked.question,
        dataset="virtual",
        metrics=METRICS,
        delta=checked.privacy.delta,
        partitions=(Partition(rule="hash", seeds=(seed,)),),
        methods=(entry,),
        study=document,
    )
    return Results(
        study=checked.name,
        versions=list_versions(),
        seeds=(seed,),
        results=summarise(described, {Job(partition=0, method=0, seed=seed, fold=0): trial}),
        seconds=time.monotonic() - began,
        policy=describe_policy(described),
    )


def read_document(study: str) -> dict[str, Any]:
    """Return the study's tables: of a file as they are, of a packaged experiment priced for its demo."""
    if study in list_experiments():
        experiment = read_experiment(study)
        entry = next((one for one in experiment.methods if one.epsilon == experiment.demo_epsilon), None)
        document = merge(experiment.study, entry.changes if entry is not None else {})
        set_price(document, epsilon=experiment.demo_epsilon, delta=experiment.delta)
        return document
    path = Path(study)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        known = ", ".join(list_experiments())
        raise ConfigurationError(
            file=path, expected=f"a study file or one of {known}", found=err.strerror or "none"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigurationError(file=path, expected="TOML", found=str(err)) from err
    parts = document.get("participants")
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "site" in part for part in parts):
        raise ConfigurationError(file=path, field="participants", expected="a list of sites", found="something else")
    return document


def with_virtual_sites(document: dict[str, Any], sites: int) -> dict[str, Any]:
    """Return the study with virtual hospitals as its participants, each weighing as many as it trains on."""
    training = dict(document.get("training", {}))
    training["minimum_sites"] = min(training.get("minimum_sites", 1), sites)
    nominal = {case.site: round(TRAINING_SHARE * case.patients) for case in list_case_mixes(sites)}
    participants = [
        {"site": site, "patients": patients, "weight": float(patients)} for site, patients in nominal.items()
    ]
    return document | {"participants": participants, "training": training}
