"""The gateway as a process of its own: a full disk, a kill, a restart, PostgreSQL, and what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest

from fedtwin_client.config import read_directory
from fedtwin_client.forgetting import forget
from fedtwin_client.ingest import mllp
from fedtwin_client.ingest.control import ask
from fedtwin_client.ingest.feed import Feed
from fedtwin_client.ingest.keeping import StoreKeeper
from fedtwin_client.ingest.serving import _Running, run_gateway
from fedtwin_client.ingest.state import FRESH, is_healthy, read_state
from fedtwin_client.store.opening import open_hospital_store
from fedtwin_client.store.store import EntryKind
from fedtwin_client.ward.premises import ENGINE, HOST, Ward, make_ward
from fedtwin_client.ward.series import make_stays
from fedtwin_shared.cli import main
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.supervision import wait_until
from tests.client.premises import make_premises
from tests.client.store.postgresql_server import find_programs, running_server
from tests.contracts.store_contract import batch_of, entry
from tests.world import make_world

PROGRAM = "from fedtwin_shared.cli import main; main()"


@contextlib.contextmanager
def running(ward: Ward) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway that listens; ended, if it still runs, by its id."""
    since = time.time_ns() // 1_000_000
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "client", "gateway", str(ward.hospital.root)])

    def ready() -> bool:
        assert process.poll() is None
        state = read_state(ward.hospital)
        return bool(state and state["running"] and state["started"] > since)

    try:
        wait_until(ready, what="gateway", deadline_seconds=60)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def say(ward: Ward, messages: list[bytes]) -> list[bool]:
    """Send HL7 messages as the engine; whether each was acknowledged."""
    way = ward.ways["hl7"]
    answers = asyncio.run(mllp.send(messages, host=HOST, port=way.port, tls=way.tls(ENGINE), timeout=30))
    return [b"\rMSA|AA|" in answer for answer in answers]


def message(number: int, *, patient: str, results: int = 1) -> bytes:
    now = time.gmtime(time.time() - 86_400 + number)
    at = f"{time.strftime('%Y%m%d%H%M%S', now)}+0000"
    head = rf"MSH|^~\&|E|W|N|S|{at}||ORU^R01^ORU_R01|M{number}|P|2.5.1" + f"\rPID|1||{patient}^^^H^MR\r"
    value = np.random.default_rng(number).uniform(60, 90, results).round(3)
    lines = (
        f"OBX|1|NM|8867-4^x^LN||{one}|/min^^UCUM|||||F|||{at[:14]}.{row:03d}+0000\r" for row, one in enumerate(value)
    )
    return (head + "".join(lines)).encode()


def small_ward(root: Path) -> Ward:
    return make_ward(root, make_stays(4, minutes=1, seed=1), seconds=1, with_broker=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this account may not mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_refuses_and_a_kill_loses_nothing_acknowledged(small_disk: Path) -> None:
    ward = small_ward(small_disk)
    patient = ward.beds["hl7"][0].stay.patient
    filler = small_disk / "filler"
    acknowledged: list[int] = []
    with running(ward) as process:
        sent = 0
        full = False
        while sent < 60 and not full:
            if sent == 10:
                room = os.statvfs(small_disk)
                filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - 150_000)))
            (good,) = say(ward, [message(sent, patient=patient, results=900)])
            acknowledged += [sent] if good else []
            full = not good
            sent += 1
        assert full, "the disk was never full"
        assert len(acknowledged) >= 10
        filler.unlink()
        assert say(ward, [message(sent - 1, patient=patient, results=900)]) == [True]
        acknowledged.append(sent - 1)
        assert say(ward, [message(sent - 1, patient=patient, results=900)]) == [True]  # known, and not kept twice
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with open_hospital_store(ward.hospital) as store:
        assert store.report.whole
        batch = store.read(patient)
        assert len(batch) == 900 * len(acknowledged)


@pytest.mark.slow
@pytest.mark.skipif(find_programs() is None, reason="postgresql is not installed")
def test_in_postgresql_by_a_configuration_key_and_a_patient_is_forgotten_while_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = find_programs()
    assert programs is not None
    ward = small_ward(tmp_path)
    with running_server(programs) as conninfo:
        file = ward.hospital.config_file
        file.write_text(file.read_text().replace("[store]", f'[store]\npostgresql = "{conninfo}"'))
        hospital = read_directory(ward.hospital.root)
        one, other = (bed.stay.patient for bed in (ward.beds["hl7"][0], ward.beds["fhir"][0]))
        with running(ward) as process:
            assert say(ward, [message(number, patient=one) for number in range(5)]) == [True] * 5
            assert say(ward, [message(5, patient=other)]) == [True]  # set aside: not the engine's patient
            with pytest.raises(ConfigurationError, match="no other gateway"):
                run_gateway(hospital)
            asked = [sys.executable, "-m", "fedtwin_client.ingest.state", str(hospital.root)]
            assert subprocess.run(asked, check=False).returncode == 0
            with psycopg.connect(conninfo, autocommit=True) as connection:  # a server that was restarted
                others = "pid != pg_backend_pid() AND backend_type = 'client backend'"
                connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode())
            assert say(ward, [message(6, patient=one)]) == [False]  # its sender keeps it, and sends it again
            assert say(ward, [message(6, patient=one)]) == [True]
            assert forget(hospital, [one]) == 1
            assert say(ward, [message(9, patient=one)]) == [True]  # answered, and nothing of it is kept
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        with pytest.raises(SystemExit):
            main(["client", "status", str(hospital.root)])
        shown = " ".join(capsys.readouterr().out.split())
        assert "received 9 = accepted 6 + set aside 1 + known already 0 + refused 2" in shown
        assert one not in shown
        with open_hospital_store(hospital) as store:
            assert len(store.read(one)) == 0
            assert one not in store.patients()
            assert store.report.whole


def test_a_hospital_without_the_table_has_no_gateway(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="gateway: expected this table"):
        run_gateway(make_premises(tmp_path / "north", make_world()))


def test_what_is_older_than_agreed_is_dropped_and_nothing_younger(tmp_path: Path) -> None:
    ward = small_ward(tmp_path)
    settings = ward.hospital.config.gateway
    assert settings is not None
    short = settings.model_copy(update={"keep_days": 2, "keep_aside_days": 1})
    keeper = StoreKeeper(lambda check: open_hospital_store(ward.hospital, check=check))
    try:
        running = _Running(ward.hospital, short, keeper, Feed([]))
        now = time.time_ns() // 1_000_000
        ages = (1, 20, 60, 100)  # hours
        rows = [("Ada", "heart_rate", now - age * 3_600_000, 60.0, "monitor", age, 0) for age in ages]
        asides = [entry("Ada", bytes((age,)), time=now - age * 3_600_000) for age in (1, 30)]
        store = keeper.store()
        store.append(batch_of(rows), asides)
        running._drop_old()
        assert sorted(store.read("Ada").sequence.tolist()) == [1, 20]
        assert [one.content for one in store.entries(EntryKind.ASIDE)] == [b"\x01"]
    finally:
        keeper.close()


def test_a_state_that_is_old_or_without_its_store_is_not_healthy() -> None:
    well = {"running": True, "written": 1000, "store": True, "broker": None}
    assert is_healthy(well, now=1000 + FRESH)
    assert not is_healthy(well, now=1001 + FRESH)
    assert not is_healthy(None, now=1000)
    for change in ({"running": False}, {"store": False}, {"broker": False}):
        assert not is_healthy({**well, **change}, now=1000)


def test_nobody_answers_where_no_gateway_runs(tmp_path: Path) -> None:
    assert ask(tmp_path / "node", {"forget": ["p"]}) is None
    deep = tmp_path / ("x" * 120)  # a socket's path may not be this long; the folder's descriptor makes it short
    assert ask(deep, {"forget": ["p"]}) is None
