"""Whole studies over real processes: nothing leaves unseen, a kill costs nobody anything, one process does the same."""

from __future__ import annotations

import base64
import datetime as dt
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedtwin_client.cohort import form_cohort
from fedtwin_client.reader import read_hospital
from fedtwin_server.config import read_directory
from fedtwin_server.run_store import read_state
from fedtwin_server.runs import read_progress, summarise_run
from fedtwin_shared.certificates import Identity, issue_server_certificate
from fedtwin_shared.documents import read_toml
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.round import Task, UpdateStatement, declared_arrays
from fedtwin_shared.study import Study
from fedtwin_shared.supervision import Command, wait_until
from fedtwin_shared.wire import unpack
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.deployment import (
    Deployment,
    DeploymentError,
    coordinator_running,
    free_ports,
    hospital_commands,
    hospitals_online,
    install,
    run_command,
)
from fedtwin_simulations.one_process import run_study
from fedtwin_simulations.simulated_node import main as approve_in_simulation
from fedtwin_simulations.specification import merge, set_price
from fedtwin_simulations.toml_text import write_toml
from tests.e2e.patterns import found_in, number_forms, text_forms
from tests.e2e.recording_proxy import Recording, recording_proxy
from tests.e2e.whole_world import check_world, processes_under
from tests.simulations.laboratory import study_document, write_small_hospitals

pytestmark = pytest.mark.slow

REAL, SIMULATED = ("city", "coast"), ("university", "valley")
WATCHED = "city"  # the hospital behind the proxy
SEED = 11
STEPS = 300
PUSH_MESSAGES, PUSH_OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The running consortium, and what passed between one hospital and its coordinator."""

    deployment: Deployment
    recording: Recording
    patients: dict[str, tuple[str, ...]]

    def data(self, site: str) -> Path:
        return next(node.directory for node in self.deployment.nodes if node.site == site) / "data"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two real and two simulated hospitals online, the first one behind the proxy."""
    folder = tmp_path_factory.mktemp("consortium")
    sites = (*REAL, *SIMULATED)
    deployment = install(folder, sites, maximum_epsilon=8.0, maximum_delta=1e-3)
    files = write_small_hospitals(folder / "files", patients=60, sites=sites)
    patients = {site: tuple(pd.read_csv(files[site] / "patients.csv")["patient"]) for site in sites}
    for node in deployment.nodes:
        shutil.copytree(files[node.site], node.directory / "data", dirs_exist_ok=True)
    shutil.rmtree(folder / "files")
    logs = folder / "logs"
    with (
        coordinator_running(deployment, logs=logs),
        recorded(deployment, folder / "proxy") as recording,
        hospitals_online(deployment, logs=logs, commands=list(commands(deployment, logs))),
    ):
        yield Stage(deployment=deployment, recording=recording, patients=patients)
    assert processes_under(folder) == {}


def recorded(deployment: Deployment, folder: Path) -> Any:
    """Put a proxy between the watched hospital and the front, with a certificate of the consortium's authority."""
    coordinator, (port,) = read_directory(deployment.coordinator), free_ports(1)
    folder.mkdir()
    identity = Identity(certificate=folder / "proxy.pem", private_key=folder / "proxy.key")
    issue_server_certificate(identity, coordinator.authority, names=("localhost",), now=dt.datetime.now(dt.UTC))
    directory = next(node.directory for node in deployment.nodes if node.site == WATCHED)
    config = directory / "hospital.toml"
    text = config.read_text()
    dialled = f'superlink = "localhost:{deployment.front_port}"'
    assert dialled in text
    config.write_text(text.replace(dialled, f'superlink = "localhost:{port}"'))
    return recording_proxy(
        port,
        ("localhost", deployment.front_port),
        certificate=identity.certificate,
        private_key=identity.private_key,
        authority=coordinator.authority.certificate,
    )


def commands(deployment: Deployment, logs: Path) -> Iterator[Command]:
    nodes = {node.site: node for node in deployment.nodes}
    for command in hospital_commands(deployment, logs):
        if command.name in SIMULATED:
            directory = str(nodes[command.name].directory)
            module = (sys.executable, "-m", "fedtwin_simulations.simulated_node", directory, "--seed", str(SEED))
            yield Command(name=command.name, arguments=module, log_file=command.log_file)
        else:
            yield command


def sign(stage: Stage, name: str, sites: tuple[str, ...], *, epsilon: float | None, **changes: Any) -> Path:
    """Draft and sign a study of `sites`; the signed file."""
    drafted = Path(run_command("server", "study", "draft", stage.deployment.coordinator, name).strip())
    participants = [{"site": site, "patients": 45, "weight": 1.0} for site in sites]
    document = merge(study_document(), {"name": name, "participants": participants, **changes})
    set_price(document, epsilon=epsilon, delta=1e-4)
    roster = read_toml(drafted, Study).roster
    drafted.write_text(write_toml({"format": 1, "roster": roster, **document}), encoding="utf-8")
    run_command("server", "study", "sign", stage.deployment.coordinator, drafted)
    return drafted.with_suffix(".signed.json")


def start(stage: Stage, signed: Path, *, detach: bool = False) -> str:
    said = run_command("server", "study", "start", stage.deployment.coordinator, signed, *["--detach"] * detach)
    return said.splitlines()[0].removeprefix("run ")


def released(stage: Stage, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = stage.deployment.coordinator / "runs" / run / "release"
    with np.load(folder / "model.npz") as archive:
        return {name: archive[name] for name in archive.files}, json.loads((folder / "report.json").read_text())


def test_a_private_study_survives_a_kill_and_nothing_undeclared_leaves(stage: Stage) -> None:
    coordinator = stage.deployment.coordinator
    # So many steps that the kill, half a second into a round, finds the hospitals training.
    training = {"rounds": 4, "local_steps": STEPS, "learning_rate": 0.1, "minimum_sites": 2}
    signed = sign(stage, "private", REAL, epsilon=8.0, training=training, privacy={"spare_rounds": 1})
    for node in stage.deployment.nodes:
        if node.site in REAL:
            run_command("client", "approve", node.directory, signed, "--yes")
    run = start(stage, signed, detach=True)
    folder = coordinator / "runs" / run
    wait_until(lambda: len(read_progress(folder)[0]) >= 1, what="a round", deadline_seconds=90)
    time.sleep(0.5)
    kill_server_app(coordinator)
    directory = read_directory(coordinator)
    wait_until(lambda: summarise_run(directory, run).status == "interrupted", what="kill", deadline_seconds=30)
    assert "finished" in run_command("server", "resume", coordinator, run, seconds=240)

    study = read_toml(signed.with_name("study.toml"), Study)
    _, report = released(stage, run)
    assert report["complete"]
    # The resumed round was answered from the seal: four rounds cost four rounds, although one was asked twice.
    assert report["privacy"]["training_steps"] == 4 * STEPS < study.planned_steps
    assert report["privacy"]["histograms_released"] == 2
    check_traffic(stage, study)
    check_world(stage.deployment, study, report=report, patients=stage.patients)


def kill_server_app(coordinator: Path) -> None:
    for process, command in processes_under(coordinator).items():
        if "flwr-serverapp" in command:
            os.kill(process, signal.SIGKILL)
            return
    raise AssertionError("no ServerApp runs")


def check_traffic(stage: Stage, study: Study) -> None:
    """The decrypted traffic of the watched hospital holds what the study declares, and nothing of a patient."""
    left = stage.recording.up()
    requests = stage.recording.requests()
    assert len(left) > 10_000
    assert {"/v1/fleet/pull-messages", PUSH_MESSAGES, PUSH_OBJECT} <= {request.target for request in requests}
    search_traffic([left, *(request.body for request in requests)], stage.data(WATCHED), study)
    check_messages(requests, study)


def search_traffic(haystacks: list[bytes], data: Path, study: Study) -> None:
    patients = pd.read_csv(data / "patients.csv")
    needles = [form for who in patients["patient"] for form in text_forms(who)]
    observed = pd.read_parquet(data / "observations.parquet")
    for _, values in observed.groupby(["patient", "signal"])["value"]:
        needles += number_forms(values.to_numpy()[:3]) if values.nunique() > 2 else ()
    cohort = form_cohort(read_hospital(data), study, WATCHED)
    for examples in (cohort.train, cohort.test):
        for row in examples.x.reshape(len(examples), -1):
            known = row[row != 0]
            needles += number_forms(known[:2]) if len(known) > 2 else ()
    needles = [needle for needle in needles if len(needle) >= 8]
    assert len(needles) > 5_000
    for haystack in haystacks:
        assert found_in(haystack, needles) == []


def check_messages(requests: list[Any], study: Study) -> None:
    """Take every message that the hospital pushed apart: an envelope, and exactly the declared arrays."""
    objects: dict[str, bytes] = {}
    for request in requests:
        if request.target == PUSH_OBJECT:
            pushed = PushObjectRequest.FromString(request.body)
            objects[pushed.object_id] = pushed.object_content
    declared = [
        {name: tuple(shape) for name, shape in declared_arrays(study, task).items()}
        for task in (Task.TRAIN, Task.EVALUATE)
    ]
    used: set[str] = set()
    answers = 0
    for request in requests:
        if request.target != PUSH_MESSAGES:
            continue
        push = PushMessagesRequest.FromString(request.body)
        assert not any(push.clientapp_runtime_list)  # how long a task took tells how many patients it read
        for tree in push.message_object_trees:
            used |= identities(tree)
            message: Any = inflate_object_from_contents(tree.object_id, dict(objects), keep_object_contents=True)
            assert not message.has_error()
            envelope, arrays = unpack(message.content)
            payload = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
            if arrays:
                assert set(payload) == set(UpdateStatement.model_fields)
                assert {name: array.shape for name, array in arrays.items()} in declared
                answers += 1
            else:  # asked about a study that is not its own
                assert payload["code"] == "study-unknown"
    assert answers >= 6  # four rounds and two evaluations
    assert set(objects) <= used  # nothing was pushed that belongs to no message


def identities(tree: Any) -> set[str]:
    return {tree.object_id, *(one for child in tree.children for one in identities(child))}


def test_the_search_would_find_a_patient_in_the_traffic(stage: Stage) -> None:
    study = read_toml(stage.deployment.coordinator / "studies" / "private" / "study.toml", Study)
    data = stage.data(WATCHED)
    cohort = form_cohort(read_hospital(data), study, WATCHED)
    for leak in (stage.patients[WATCHED][7].encode("utf-16"), cohort.train.x[3].tobytes()):
        with pytest.raises(AssertionError):
            search_traffic([b"before" + leak + b"after"], data, study)


def test_real_processes_and_one_process_agree_bit_for_bit_without_privacy(stage: Stage) -> None:
    changes = {
        "model": {"name": "mlp", "hidden": 6, "seed": 5},
        "training": {"rounds": 3, "local_steps": 2, "learning_rate": 1.0, "minimum_sites": 2},
        "privacy": {"sampling_rate": 0.5},
    }
    signed = sign(stage, "plain", SIMULATED, epsilon=None, **changes)
    study = read_toml(signed.with_name("study.toml"), Study)
    for node in stage.deployment.nodes:
        if node.site in SIMULATED:
            approve_in_simulation([str(node.directory), "--approve", str(signed)])
    run = start(stage, signed)
    parameters, report = released(stage, run)
    state = read_state(stage.deployment.coordinator / "runs" / run)

    consortium = make_consortium(SIMULATED)
    same = study.model_copy(update={"roster": consortium.roster.digest})
    cohorts = {site: form_cohort(read_hospital(stage.data(site)), study, site) for site in SIMULATED}
    outcome = run_study(same, consortium, cohorts, seed=SEED)
    assert digest_parameters(parameters) == digest_parameters(outcome.parameters)
    assert set(state.histograms) == set(outcome.state.histograms) == {2, 3}
    for number, by_site in state.histograms.items():
        for site, counts in by_site.items():
            assert np.array_equal(counts, outcome.state.histograms[number][site])
    assert report["evaluations"] == outcome.report["evaluations"]
    other = run_study(same, consortium, cohorts, seed=SEED + 1)
    assert digest_parameters(other.parameters) != digest_parameters(parameters)  # the seed matters: it draws samples
    check_world(stage.deployment, study, report=report, patients=stage.patients)


def test_a_real_hospital_refuses_a_study_without_privacy(stage: Stage) -> None:
    signed = sign(stage, "careless", REAL, epsilon=None)
    node = next(node for node in stage.deployment.nodes if node.site == WATCHED)
    with pytest.raises(DeploymentError, match="gives patients no protection"):
        run_command("client", "approve", node.directory, signed, "--yes")
