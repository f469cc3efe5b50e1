"""The rim as real processes: TLS, node authentication, our front, launcher and executor, with apps that are toys."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedtwin_server.control import list_nodes, run_status, stop_run, submit_run
from fedtwin_server.errors import ControlError
from fedtwin_server.front import FLEET_PATHS
from fedtwin_shared.supervision import Supervisor, wait_until
from tests.e2e.rim import Rim, running_rim
from tests.e2e.toy_site import SECRET

pytestmark = pytest.mark.slow

NODES = 2
ROUNDS = 10
STOCK_SECONDS = 6.2  # a round of stock Flower on an idle machine: two of its polls


@pytest.fixture(scope="module")
def rim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rim]:
    with running_rim(tmp_path_factory.mktemp("rim"), nodes=NODES, poll_seconds=0.1) as running:
        yield running


def process_id(supervisor: Supervisor, name: str) -> int:
    found = {status.name: status.process_id for status in supervisor.status()}[name]
    assert found is not None
    return found


def test_rounds_are_answered_by_every_site_and_quickly(rim: Rim, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = rim.run(rounds=ROUNDS, nodes=NODES)
    assert [sorted(str(reply["double"]) for reply in each.replies) for each in rounds] == [
        [str(2 * number)] * NODES for number in range(ROUNDS)
    ]
    assert len({reply["node"] for reply in rounds[0].replies}) == NODES
    seconds = [each.seconds for each in rounds]
    with capsys.disabled():
        print(f"\n{NODES} sites: median {statistics.median(seconds):.2f} s a round, worst {max(seconds):.2f} s")
    assert statistics.median(seconds) < STOCK_SECONDS / 2


def test_control_and_runtime_are_refused_from_outside_while_fleet_works(rim: Rim) -> None:
    outside = f"https://{rim.front_address}"
    inside = f"https://{rim.superlink.address}"
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    with httpx.Client(verify=str(rim.identity.certificate_authority), headers=headers, trust_env=False) as client:
        for path in (
            "/v1/control/list-nodes",
            "/v1/control/start-run",
            "/v1/control/register-node",
            "/v1/runtime/acquire-task",
            "/v1/runtime/pull-task-input",
            "/v1/fleet/register-node",
            "/docs",
            "/openapi.json",
        ):
            assert client.post(outside + path, content=b"").status_code == 404, path
        # On loopback the Control API answers anybody, which is why it is not outside.
        assert client.post(inside + "/v1/control/list-nodes", content=b"").status_code == 200
        # The Runtime API gives tasks to nobody without the executor's secret.
        assert client.post(inside + "/v1/runtime/acquire-task", content=b"").status_code == 401
        for fleet_path in sorted(FLEET_PATHS):  # reaches the SuperLink, which knows no such node
            assert client.post(outside + fleet_path.decode(), content=b"").status_code == 401, fleet_path
        assert client.get(outside + "/health").status_code == 200
    assert all(node.online for node in list_nodes(rim.control))


def test_an_error_at_a_site_says_nothing_of_its_cause_anywhere(rim: Rim) -> None:
    (failed,) = rim.run(rounds=1, nodes=NODES, first=-1)
    assert [(reply["error"], reply["reason"]) for reply in failed.replies] == [
        (2, "The site could not complete the task.")
    ] * NODES
    written = b"".join(path.read_bytes() for path in rim.directory.rglob("*") if path.is_file())
    assert SECRET.encode() not in written


def test_a_hostile_bundle_runs_nothing_and_is_answered_with_a_refusal(rim: Rim, tmp_path: Path) -> None:
    marker, hostile = tmp_path / "ran", tmp_path / "toy"
    shutil.copytree(rim.bundle, hostile)
    package = hostile / "fedtwin_client"
    package.mkdir()
    for name in ("__init__.py", "client_app.py", "executor.py"):
        (package / name).write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\napp = None\n")
    (answered,) = rim.run(rounds=1, nodes=NODES, bundle=hostile)
    assert [reply["refusal"] for reply in answered.replies] == ["unknown-bundle"] * NODES
    assert not marker.exists()
    for number in range(NODES):  # Flower would have unpacked it into its home
        home = rim.directory / f"site{number}"
        assert not (home / "apps").exists()
        assert not [path for path in home.rglob("*") if path.name in ("pyproject.toml", "fedtwin_client")]
        assert (home / "records").read_text().splitlines()[-1].startswith("refused")


def test_the_time_that_a_site_took_is_reported_as_zero(rim: Rim) -> None:
    with sqlite3.connect(f"file:{rim.superlink.database}?mode=ro", uri=True) as database:
        reported = database.execute("SELECT clientapp_runtime, bytes_recv FROM run").fetchall()
    assert reported
    assert [runtime for runtime, _ in reported] == [0.0] * len(reported)
    assert all(received > 0 for _, received in reported)  # replies did come


def test_success_is_what_the_answer_says_and_not_an_exit_code(rim: Rim) -> None:
    with pytest.raises(ControlError, match="expected success"):  # `flwr run` exits with 0 here
        submit_run(rim.control, rim.bundle, {"no-such-key": "1"})
    with pytest.raises(ControlError):
        run_status(rim.control, 12345)
    run_id = submit_run(rim.control, rim.bundle, {"rounds": "1", "nodes": str(NODES + 1)})  # waits for a third site
    assert not run_status(rim.control, run_id).finished
    stop_run(rim.control, run_id)
    rim.wait_for_end(run_id, deadline_seconds=30)
    assert run_status(rim.control, run_id).status == "finished:stopped"
    assert not run_status(rim.control, run_id).completed


def test_a_killed_supernode_is_back_in_seconds_and_the_executor_finds_it(rim: Rim) -> None:
    site = rim.sites[0]
    executor, killed = process_id(site, "executor"), process_id(site, "supernode")
    os.kill(killed, signal.SIGKILL)
    before = time.monotonic()

    def back() -> bool:
        site.step()
        log = (rim.directory / "site0" / "supernode.log").read_text()
        return log.count("SuperNode ID:") >= 2

    wait_until(back, what="SuperNode", deadline_seconds=60, interval_seconds=0.1)
    seconds = time.monotonic() - before
    (answered,) = rim.run(rounds=1, nodes=NODES, first=3)
    assert sorted(str(reply["double"]) for reply in answered.replies) == ["6"] * NODES
    assert process_id(site, "executor") == executor
    # Without signing off, Flower refuses a restarted SuperNode until the killed one has been silent for a minute.
    assert site.status()[0].starts == 2, (rim.directory / "site0" / "supernode.log").read_text()
    assert seconds < 30
