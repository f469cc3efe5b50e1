"""Four hospitals and a coordinator on this machine: real processes, one private study, then its comparisons.

Design note: the private study is run by the commands that hospital IT and a consortium type, and each hospital has only
its own directory. Everything that compares (pooled, alone, without privacy, other prices, exact scores) is made
afterwards in one process from the same files: no real consortium could do that, and no real hospital would admit it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedtwin_server.run_store import read_state
from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.study import Study
from fedtwin_simulations.comparison import Trial
from fedtwin_simulations.deployment import (
    Deployment,
    DeploymentError,
    at_once,
    coordinator_running,
    follow_study,
    hospitals_online,
    install,
    read_release,
    run_command,
)
from fedtwin_simulations.experiment import Laboratory, OnProgress, run_jobs
from fedtwin_simulations.jobs import Job, list_jobs
from fedtwin_simulations.ledgers import KEEPERS, PINNED, begin_ledgers, export_ledgers, witnesses_running
from fedtwin_simulations.one_process import score_exactly
from fedtwin_simulations.report import Course, write_page
from fedtwin_simulations.results import Results, list_versions, write_json
from fedtwin_simulations.sources import write_hospitals
from fedtwin_simulations.specification import Experiment, MethodEntry, Partition, merge, set_price
from fedtwin_simulations.summary import describe_policy, list_references, summarise
from fedtwin_simulations.toml_text import write_toml

MARKER = ".fedtwin-demo"  # only a folder that holds this file is emptied
REPORT_JSON, REPORT_PAGE = "report.json", "report.html"
SEED = 0
LIFETIME_SHARE = (
    2.0  # of the demo's price: what a patient may ever spend; the filter over studies is dearer than a plan
)
REFUSED_SHARE = 4.0  # of the demo's price: what the study asks for that hospitals refuse

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRun:
    """The private study as it was really run, and where the coordinator keeps it."""

    study: Study
    folder: Path
    course: Course


def run_demo(
    experiment: Experiment,
    *,
    data: Path | None,
    output: Path,
    workers: int = 1,
    say: Say = lambda line: None,
    on_progress: OnProgress = lambda done, every: None,
) -> Results:
    """Run the whole demo into the folder `output` and return its results, which also lie there as JSON and as a page.

    Raises `ConfigurationError` for a folder that holds something else, and what a command reports that fails.

    - when it returns or raises, none of its processes runs
    """
    began = time.monotonic()
    compared = as_demo(experiment)
    empty_folder(output)
    deployment = install(
        output,
        experiment.sites,
        maximum_epsilon=experiment.demo_epsilon,
        maximum_delta=experiment.delta,
        say=say,
    )
    say("patients: into each hospital's own directory")
    place_patients(experiment, data, deployment)
    real = run_real_study(compared, deployment, output=output, say=say)
    say("comparisons, in one process: simulation only")
    laboratory = Laboratory(compared, {node.site: node.directory / "data" for node in deployment.nodes}, data=None)
    jobs = list_jobs(compared)
    deployed = next(job for job in jobs if compared.methods[job.method].epsilon == compared.demo_epsilon)
    others = [job for job in jobs if job != deployed]
    trials = run_jobs(laboratory, others, workers=workers, on_progress=on_progress)
    trials[deployed] = score_real_run(laboratory, deployed, real)
    results = Results(
        study=experiment.name,
        versions=list_versions(),
        seeds=(SEED,),
        results=summarise(compared, {job: trials[job] for job in jobs}),
        seconds=time.monotonic() - began,
        references=list_references(compared, trials, data=data),
        policy=(*describe_policy(compared), _describe_real_run(compared)),
    )
    (output / REPORT_JSON).write_text(write_json(results), encoding="utf-8")
    page = write_page(results, real.course, title=experiment.title, metric=experiment.metrics[0])
    (output / REPORT_PAGE).write_text(page, encoding="utf-8")
    return results


def as_demo(experiment: Experiment) -> Experiment:
    """Return the experiment's primary methods on the split that real hospitals use; the one to run draws a curve.

    Raises `ConfigurationError` when no method has the price of the demo: real hospitals each add their own noise.
    """
    partition = Partition(rule="hash", seeds=(SEED,))
    primary = tuple(entry for entry in experiment.methods if entry.primary and entry.noise != "distributed")
    if all(entry.epsilon != experiment.demo_epsilon for entry in primary):
        raise ConfigurationError(
            file=f"experiment {experiment.name}",
            field="demo_epsilon",
            expected="the price of a primary method with each site's own noise",
            found=f"{experiment.demo_epsilon:g}",
        )
    methods = tuple(_with_curve(experiment, one) if one.epsilon == experiment.demo_epsilon else one for one in primary)
    return experiment.model_copy(
        update={"partitions": (partition,), "methods": methods, "references": (), "policy": ()}
    )


def _with_curve(experiment: Experiment, entry: MethodEntry) -> MethodEntry:
    """Return the method with a model evaluated on the way, so that there is a curve; its price stays the same."""
    document = merge(experiment.study, entry.changes)
    rounds = document["training"]["rounds"]
    if document.get("evaluation", {}).get("rounds") or rounds < 3:
        return entry
    changes = merge(entry.changes, {"evaluation": {"rounds": [rounds // 3, 2 * rounds // 3]}})
    return entry.model_copy(update={"changes": changes})


def empty_folder(output: Path) -> None:
    """Make `output` an empty folder of ours.

    Raises `ConfigurationError` when it holds anything that is not an earlier demo's.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / MARKER).exists())):
        raise ConfigurationError(file=output, expected="a new folder, or one of an earlier demo", found="another one")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).touch()


def place_patients(experiment: Experiment, data: Path | None, deployment: Deployment) -> None:
    """Write every hospital's files into its own directory."""
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        write_hospitals(experiment.dataset, data, Path(folder))
        for node in deployment.nodes:
            for file in (Path(folder) / node.site).iterdir():
                shutil.move(file, node.directory / "data" / file.name)


def run_real_study(experiment: Experiment, deployment: Deployment, *, output: Path, say: Say) -> RealRun:
    """Run the private study over real processes, from its draft to its release and the auditor's bundle."""
    logs = output / "logs"
    with coordinator_running(deployment, logs=logs):
        say("coordinator: started; the study is drafted, signed and approved")
        signed = sign_study_file(experiment, deployment)
        at_once(lambda node: run_command("client", "approve", node.directory, signed, "--yes"), deployment.nodes)
        say(f"hospitals {', '.join(node.site for node in deployment.nodes)}: approved the study")
        say(f"privacy ledgers: begun; {1 + KEEPERS} witnesses")
        ledgers = begin_ledgers(deployment, epsilon=LIFETIME_SHARE * experiment.demo_epsilon, delta=experiment.delta)
        refused = show_refusal(experiment, deployment, say=say)
        say("hospitals: starting")
        with witnesses_running(ledgers.witnesses, logs=logs):
            with hospitals_online(deployment, logs=logs, say=say):
                began = time.monotonic()
                run = follow_study(deployment, signed, say=say)
                seconds = time.monotonic() - began
            bundle = export_ledgers(deployment, ledgers, output, documents=[signed, refused])
            say(f"for an auditor: fedtwin audit verify {bundle} --keys {bundle.with_name(PINNED)}")
    study = read_toml(signed.with_name("study.toml"), Study)
    _, report = read_release(deployment, run)
    course = Course(study=study, report=report, seconds=seconds, nodes=1 + len(deployment.nodes))
    return RealRun(study=study, folder=deployment.coordinator / "runs" / run, course=course)


def show_refusal(experiment: Experiment, deployment: Deployment, *, say: Say) -> Path:
    """Ask a hospital for more than its policy allows, and return the signed study that it refused.

    Raises `DeploymentError` where it does not refuse.

    - it refuses before it reads any data, and its ledger holds that it did
    """
    excess = REFUSED_SHARE * experiment.demo_epsilon
    signed = sign_study_file(experiment, deployment, name=f"{experiment.study['name']}-excess", epsilon=excess)
    node = deployment.nodes[0]
    try:
        run_command("client", "approve", node.directory, signed, "--yes")
    except DeploymentError as err:
        say(f"hospital {node.site}: refused a study at ε = {excess:g}: {err.found.rpartition(': ')[2]}")
        return signed
    raise DeploymentError(field="policy", expected=f"{node.site} to refuse a study at ε = {excess:g}", found="approval")


def sign_study_file(
    experiment: Experiment, deployment: Deployment, *, name: str = "", epsilon: float | None = None
) -> Path:
    """Draft the experiment's study for the coordinator's roster, sign it, and return the file.

    name, epsilon: the experiment's own, and its demo price, unless given.
    """
    entry = next(entry for entry in experiment.methods if entry.epsilon == experiment.demo_epsilon)
    name = name or experiment.study["name"]
    drafted = Path(run_command("server", "study", "draft", deployment.coordinator, name).strip())
    roster = tomllib.loads(drafted.read_text(encoding="utf-8"))["roster"]
    document = merge(experiment.study, {**entry.changes, "name": name})
    set_price(document, epsilon=entry.epsilon if epsilon is None else epsilon, delta=experiment.delta)
    drafted.write_text(write_toml({"format": 1, "roster": roster, **document}), encoding="utf-8")
    run_command("server", "study", "sign", deployment.coordinator, drafted)
    return drafted.with_suffix(".signed.json")


def score_real_run(laboratory: Laboratory, job: Job, real: RealRun) -> Trial:
    """Return the deployed model's exact scores at every hospital, and the histograms that hospitals released."""
    with np.load(real.folder / "release" / "model.npz") as stored:
        parameters = {name: stored[name] for name in stored.files}
    parts = laboratory.parts(job.partition, job.seed)[job.fold]
    cohorts = {site: laboratory.gathered.cohort(real.study, site, parts) for site in laboratory.gathered.sites}
    released = read_state(real.folder).histograms[real.study.training.rounds]
    return Trial(
        entry=laboratory.experiment.methods[job.method],
        study=real.study,
        train={site: score_exactly(real.study, parameters, cohort.train) for site, cohort in cohorts.items()},
        test={site: score_exactly(real.study, parameters, cohort.test) for site, cohort in cohorts.items()},
        histograms={site: counts[0] for site, counts in released.items()},
        seconds=real.course.seconds,
    )


def _describe_real_run(experiment: Experiment) -> str:
    return (
        f"ε = {experiment.demo_epsilon:g} was run by real processes, each hospital with its own directory and noise "
        "from its operating system; every other row was run in one process from the same files. Who is held out "
        "follows from the patient's own id. That the experiment's settings were chosen is not charged."
    )
