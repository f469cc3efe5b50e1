"""The gateway as a process with its board: what a device sends is acknowledged, stored, and stands on the board."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedtwin_client.ingest import mllp
from fedtwin_client.monitoring.watch_cli import ask_board, read_token
from fedtwin_client.store.opening import open_hospital_store
from fedtwin_client.ward.premises import ENGINE, HOST, make_ward
from fedtwin_client.ward.series import make_stays
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.supervision import wait_until

PROGRAM = "from fedtwin_shared.cli import main; main()"
READINGS = 5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def report(number: int, *, patient: str) -> bytes:
    """A saturation of 80 % now."""
    at = time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() - 600 + 60 * number))
    head = rf"MSH|^~\&|E|W|N|S|{at}+0000||ORU^R01^ORU_R01|M{number}|P|2.5.1" + f"\rPID|1||{patient}^^^H^MR\r"
    return (head + f"OBX|1|NM|59408-5^x^LN||{80 + number % 2}|%^^UCUM|||||F|||{at}+0000\r").encode()


@pytest.mark.slow
def test_what_a_device_sends_stands_on_the_board(tmp_path: Path) -> None:
    ward = make_ward(tmp_path, make_stays(4, minutes=1, seed=1), seconds=1, with_broker=False)
    patient, port = ward.beds["hl7"][0].stay.patient, free_port()
    command = [sys.executable, "-c", PROGRAM, "client", "gateway", str(ward.hospital.root), "--board", str(port)]
    process = subprocess.Popen(command)
    boards: list[dict[str, Any]] = []

    def on_board() -> bool:
        assert process.poll() is None
        try:
            boards.append(ask_board(f"http://{HOST}:{port}", read_token(ward.hospital.root / "board.token")))
        except FedtwinError:
            return False
        return True

    try:
        wait_until(on_board, what="board", deadline_seconds=60)
        assert boards[-1]["lines"] == []
        way = ward.ways["hl7"]
        messages = [report(number, patient=patient) for number in range(READINGS)]

        def kept() -> bool:
            try:
                answers = asyncio.run(mllp.send(messages, host=HOST, port=way.port, tls=way.tls(ENGINE), timeout=30))
            except OSError:  # the board listens before the gateway does
                return False
            return all(b"\rMSA|AA|" in answer for answer in answers)

        wait_until(kept, what="acknowledgements", deadline_seconds=60)
        wait_until(lambda: on_board() and bool(boards[-1]["lines"]), what="patient on the board", deadline_seconds=30)
        (line,) = boards[-1]["lines"]
        assert line["patient"] == patient
        assert line["priority"] == "high"
        assert "oxygen saturation 80 %, below 90" in [alert["words"] for alert in line["alerts"]]
    finally:
        process.terminate()
        process.wait(20)
    with open_hospital_store(ward.hospital) as store:
        assert len(store.read(patient)) == READINGS
