"""Secure aggregation on a real SuperLink: coordinator, SuperNodes and sites as processes on loopback, TLS and all.

    python -m fedtwin_simulations.secure_superlink FOLDER SITE PORT        one site's executor

Design note: the SuperLink, the SuperNodes and the sites' executors are those of a real deployment; only what a site
computes is made up, so that what is timed is the exchange. Every sum is checked.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.directory import create_node_key
from fedtwin_client.secure_round import Compute, SecureRounds
from fedtwin_client.secure_site import SecureSite
from fedtwin_client.secure_store import SqliteInstanceStore
from fedtwin_server.bundle import bundle_digest
from fedtwin_server.control import Control, list_nodes, register_node, run_status, submit_run
from fedtwin_server.secure_rounds import Exchange, SecureCoordinator
from fedtwin_server.superlink import SuperLinkSettings, executor_command, superlink_command, wait_until_superlink_ready
from fedtwin_shared.durable import create_file
from fedtwin_shared.flower_environment import flower_environment
from fedtwin_shared.secagg.message import MESSAGE_TYPE
from fedtwin_shared.secagg.terms import Setup, Step, Terms, smallest_threshold
from fedtwin_shared.signing import create_signing_key, digest, format_public_key, load_signing_key, sign_envelope
from fedtwin_shared.supervision import Command, Supervisor, end_with_parent, stop_on_signals, wait_until
from fedtwin_simulations.deployment import DeploymentError, free_ports, supervised
from fedtwin_simulations.stock_baseline import make_certificates

BUNDLE: Final = Path(__file__).with_name("secure_flower")
CONSORTIUM: Final = "consortium.json"
STUDY, RUN, PLAN = digest(b"benchmark"), "0" * 32, b"plan"
READY_SECONDS: Final = 180.0
ROUND_SECONDS: Final = 60.0


def time_superlink_rounds(
    folder: Path, *, sites: int, length: int, rounds: int, patience_seconds: float = 60.0, kill: str = ""
) -> list[float]:
    """Return seconds of every step over `sites` sites after the first, which has the set-up.

    kill: a site whose processes are killed when the first step is over, in the middle of the second.

    Raises `DeploymentError` for a wrong sum, and when the run ends early or takes too long.

    - when it returns or raises, none of its processes runs
    """
    folder.mkdir(parents=True)
    names = write_consortium(
        folder, sites=sites, length=length, instances=rounds + 1, patience_seconds=patience_seconds
    )
    authority, server = make_certificates(folder)
    port, *runtime_ports = free_ports(1 + sites)
    secret = folder / "executor.secret"
    create_file(secret, secrets.token_bytes(32))
    settings = SuperLinkSettings(
        directory=folder / "superlink",
        port=port,
        certificate=server.certificate,
        private_key=server.private_key,
        certificate_authority=authority.certificate,
        secret_file=secret,
    )
    control = Control(address=settings.address, certificate_authority=authority.certificate, home=folder / "control")
    with supervised([superlink_command(settings), executor_command(settings)]):
        wait_until_superlink_ready(settings, deadline_seconds=READY_SECONDS)
        commands = list[Command]()
        for name, runtime in zip(names, runtime_ports, strict=True):
            public = create_node_key(folder / f"{name}.node", comment=name)
            (folder / f"{name}.pub").write_text(public + "\n", encoding="utf-8")
            register_node(control, folder / f"{name}.pub")
            commands += site_commands(folder, name, settings, runtime)
        with supervised(commands) as processes:
            wait_until(
                lambda: sum(node.online for node in list_nodes(control)) == sites,
                what="sites",
                deadline_seconds=READY_SECONDS,
                interval_seconds=1.0,
            )
            return _run(control, folder, rounds=rounds, after_first=lambda: kill_site(processes, kill))


def kill_site(processes: Supervisor, name: str) -> None:
    """Kill both processes of a site; without a name, nobody's."""
    for child in processes.status():
        if name and child.name.startswith(f"{name}-") and child.process_id is not None:
            os.kill(child.process_id, signal.SIGKILL)


def write_consortium(
    folder: Path, *, sites: int, length: int, instances: int, patience_seconds: float = 60.0
) -> list[str]:
    """Write every site's signing key and the terms that all share; the sites' names."""
    names = [f"site-{number:02d}" for number in range(sites)]
    keys = {name: create_signing_key(folder / f"{name}.key") for name in names}
    colluders = max(1, (sites - 1) // 4)
    threshold = smallest_threshold(sites, colluders=colluders)
    terms = {
        "members": [[name, format_public_key(key.public_key())] for name, key in keys.items()],
        "threshold": threshold,
        "dropouts": min(1, sites - threshold),
        "colluders": colluders,
        "instances": instances,
        "largest": 2**41,
    }
    document = {"terms": terms, "length": length, "patience_seconds": patience_seconds}
    (folder / CONSORTIUM).write_text(json.dumps(document), encoding="utf-8")
    return names


def read_consortium(folder: Path) -> tuple[Terms, int]:
    """Return the terms and the vectors' length that `write_consortium` wrote."""
    document = json.loads((folder / CONSORTIUM).read_text(encoding="utf-8"))
    members = tuple((name, key) for name, key in document["terms"].pop("members"))
    return Terms(members=members, **document["terms"]), int(document["length"])


def read_patience(folder: Path) -> float:
    """Return for how many seconds a step waits for a site that does not answer."""
    return float(json.loads((folder / CONSORTIUM).read_text(encoding="utf-8"))["patience_seconds"])


def make_vector(name: str, length: int) -> npt.NDArray[np.int64]:
    """Return a site's made-up vector, always the same one."""
    return np.random.default_rng(list(name.encode())).integers(-(2**40), 2**40, length)


def make_step(instance: int, *, plan: bytes, model: bytes, length: int) -> Step:
    """Return the step of an instance."""
    return Step(instance=instance, round=1, attempt=1, plan=digest(plan), model=digest(model), length=length)


def conduct(folder: Path, exchange: Exchange, *, rounds: int, note: Callable[[bool], None]) -> None:
    """Run one step with a set-up and `rounds` more, and note after each whether its sum was right."""
    terms, length = read_consortium(folder)
    coordinator = SecureCoordinator(terms=terms, study=STUDY, run=RUN, exchange=exchange)
    model = np.random.default_rng(0).bytes(4 * length)  # not zeros: Flower sends equal chunks once
    step = functools.partial(make_step, plan=PLAN, model=model, length=length)
    expected = {name: make_vector(name, length) for name in terms.names}
    for _ in range(rounds + 1):
        found = coordinator.aggregate(make_step=step, plan=PLAN, model=model)
        note(bool(np.array_equal(found.total, np.sum([expected[name] for name in found.survivors], axis=0))))


def site_commands(folder: Path, name: str, settings: SuperLinkSettings, runtime_port: int) -> tuple[Command, Command]:
    """Return the commands of a site's SuperNode and of its executor."""
    transport = (
        *(sys.executable, "-m", "fedtwin_client.supernode", "--superlink", settings.address),
        *("--root-certificates", str(settings.certificate_authority), "--private-key", str(folder / f"{name}.node")),
        *("--runtime-port", str(runtime_port), "--directory", str(folder / name)),
        *("--node-config", f'site="{name}"'),
    )
    executor = (sys.executable, "-m", "fedtwin_simulations.secure_superlink", str(folder), name, str(runtime_port))
    return (
        Command(
            name=f"{name}-transport",
            arguments=transport,
            log_file=folder / "logs" / f"{name}-transport.log",
            environment=flower_environment(folder / name),
        ),
        Command(
            name=f"{name}-executor",
            arguments=executor,
            log_file=folder / "logs" / f"{name}-executor.log",
            environment={**flower_environment(folder / name / "executor"), "OPENBLAS_NUM_THREADS": "1"},
        ),
    )


def run_site(folder: Path, name: str, runtime_port: int) -> None:
    """Answer orders until a signal; main thread only."""
    from fedtwin_client.client_app import make_secure_app
    from fedtwin_client.executor import execute_tasks

    terms, length = read_consortium(folder)
    vector = make_vector(name, length)

    def prepare(setup: Setup, instance: int, plan: bytes, model: bytes) -> tuple[Step, Compute]:
        return make_step(instance, plan=plan, model=model, length=length), lambda: vector

    def find(study: str, run: str, number: int) -> Setup:
        return Setup(terms=terms, study=study, run=run, number=number)

    key = load_signing_key(folder / f"{name}.key")
    rounds = SecureRounds(
        name=name,
        sign=functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=key),
        store=SqliteInstanceStore(folder / name / "secure"),
    )
    site = SecureSite(rounds=rounds, find_setup=find, prepare_step=prepare)
    with stop_on_signals() as stop:
        execute_tasks(
            f"127.0.0.1:{runtime_port}",
            make_secure_app(lambda context: site),
            allowed_bundles=frozenset({bundle_digest(BUNDLE)}),
            refuse=lambda message: message,
            stop=stop,
        )


def _run(control: Control, folder: Path, *, rounds: int, after_first: Callable[[], None]) -> list[float]:
    times = folder / "times"
    times.touch()
    config = {"consortium": str(folder), "rounds": str(rounds), "times": str(times)}
    run = submit_run(control, BUNDLE, config)
    deadline, waiting_for_first = time.monotonic() + READY_SECONDS + ROUND_SECONDS * rounds, True
    while len(lines := times.read_text(encoding="utf-8").split()) <= rounds:
        ended = run_status(control, run)
        if ended.finished and len(times.read_text(encoding="utf-8").split()) <= rounds:
            raise DeploymentError(field="run", expected=f"{rounds + 1} steps", found=f"{len(lines)}: {ended.details}")
        if not time.monotonic() < deadline:
            raise DeploymentError(field="run", expected="its steps in time", found=f"{len(lines)}")
        if lines and waiting_for_first:
            after_first()
            waiting_for_first = False
        time.sleep(0.5)
    if "wrong" in lines:
        raise DeploymentError(field="run", expected="exact sums", found="a wrong one")
    return [after - before for before, after in itertools.pairwise(map(float, lines))]


if __name__ == "__main__":
    end_with_parent()
    run_site(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
