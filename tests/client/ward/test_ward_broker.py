"""A real broker with the settings that `gateway-init` writes: who is revoked is not let in any more."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtwin_client.ingest import mqtt_packets
from fedtwin_client.ward.premises import Ward, broker_settings, make_ward
from fedtwin_client.ward.series import make_stays
from fedtwin_shared.cli import main
from fedtwin_shared.supervision import wait_until
from tests.client.ingest.test_mqtt import MOSQUITTO, answers

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


@contextlib.contextmanager
def broker_running(ward: Ward) -> Iterator[subprocess.Popen[bytes]]:
    settings = broker_settings(ward)
    with settings.open("a") as more:
        more.write("user root\n")  # a test's folder is its owner's alone
    assert MOSQUITTO is not None
    process = subprocess.Popen([MOSQUITTO, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(ward.ways["mqtt"].port), what="broker", deadline_seconds=10)
        yield process
    finally:
        process.terminate()
        process.wait(10)


def is_let_in(ward: Ward, device: str) -> bool:
    way = ward.ways["mqtt"]
    try:
        with (
            socket.create_connection((way.host, way.port), timeout=5) as plain,
            way.tls(device).wrap_socket(plain, server_hostname=way.host) as door,
        ):
            door.sendall(mqtt_packets.write_connect(device, clean=True, keep_alive=60))
            packets, _ = mqtt_packets.split_packets(door.recv(100), maximum=100)
            mqtt_packets.check_connected(packets[0])
    except (OSError, IndexError, mqtt_packets.ProtocolError):
        return False
    return True


def test_a_revoked_device_is_shut_out_once_the_broker_reads_its_list_again(tmp_path: Path) -> None:
    ward = make_ward(tmp_path, make_stays(8, minutes=1, seed=1), seconds=1)
    revoked, other = (bed.device for bed in ward.beds["mqtt"])
    with broker_running(ward) as process:
        assert is_let_in(ward, revoked)
        with pytest.raises(SystemExit) as ended:
            main(["client", "device", "revoke", str(ward.hospital.root), revoked])
        assert not ended.value.code
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        wait_until(lambda: not is_let_in(ward, revoked), what="the list", deadline_seconds=10)
        assert is_let_in(ward, other)
