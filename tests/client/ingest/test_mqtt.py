"""MQTT through a real mosquitto with TLS: nobody speaks for another, and a killed subscriber loses nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fedtwin_client.ingest import packed
from fedtwin_client.ingest.broker import BrokerFiles, find_broker, write_broker
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.mqtt import Broker, Subscriber
from tests.client.ingest.bedside import NOW, Authority, Certified, Kept, make_device, make_gateway

MOSQUITTO = find_broker()
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
BURST = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """A running broker, its folder, and who is certified."""

    folder: Path
    port: int
    authority: Authority
    names: dict[str, Certified]

    def tls(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(self.names[name].certificate, self.names[name].private_key)
        return context

    @contextlib.contextmanager
    def device(self, name: str, version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv311) -> Iterator[paho.Client]:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"test-{name}", protocol=version)
        client.tls_set_context(self.tls(name))
        client.max_inflight_messages_set(200)
        client.connect("localhost", self.port)
        client.loop_start()
        try:
            yield client
        finally:
            client.disconnect()
            client.loop_stop()


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    authority = Authority(tmp_path / "tls")
    names = {name: authority.certify(name) for name in ("localhost", "gateway", "a", "b")}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    files = BrokerFiles(
        authority=authority.certificate,
        certificate=names["localhost"].certificate,
        private_key=names["localhost"].private_key,
    )
    settings = write_broker(tmp_path / "broker", files, host="localhost", port=port)
    with settings.open("a") as more:
        more.write("user root\n")  # a test's folder is its owner's alone
    assert MOSQUITTO is not None
    process = subprocess.Popen([MOSQUITTO, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        assert wait(lambda: answers(port))
        yield Ward(folder=tmp_path, port=port, authority=authority, names=names)
    finally:
        process.terminate()
        process.wait(10)


def sample(number: int) -> bytes:
    time_of = NOW / 1000 - 10
    return json.dumps([{"n": "p1/heart_rate", "u": "/min", "v": 80, "bt": time_of, "sq": number}]).encode()


@pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
def test_a_device_is_heard_as_itself_only(ward: Ward, version: MQTTProtocolVersion) -> None:
    kept = Kept()
    patients = frozenset({"p1"})
    gateway = make_gateway(ward.folder, kept, make_device("a", b"a", patients), make_device("b", b"b", patients))
    subscriber = Subscriber(gateway, Broker(host="localhost", port=ward.port, tls=ward.tls("gateway")))
    subscriber.start()
    told: list[tuple[str, bytes]] = []
    heard = threading.Event()
    try:
        assert subscriber.wait_until_subscribed(10)
        with ward.device("a", version) as device:
            device.on_message = lambda client, userdata, message: told.append((message.topic, bytes(message.payload)))
            device.on_subscribe = lambda *ignored: heard.set()
            device.subscribe([("fedtwin/a/errors", 0), ("fedtwin/a/receipts", 0)])
            assert heard.wait(10)
            batch = packed.write_message(
                patients=["p1", "p2"],
                kinds=[("heart_rate", "/min")],
                base=NOW - 5000,
                time=[0, 1],
                value=[81, 82],
                patient=[0, 1],
                kind=[0, 0],
                first=1,
            )
            device.publish("fedtwin/b/senml", sample(0), qos=1)  # as somebody else: the broker lets nobody hear it
            device.publish("fedtwin/a/senml", sample(0), qos=1)
            device.publish("fedtwin/a/senml", b"nonsense", qos=1)
            device.publish("fedtwin/a/packed", batch, qos=1).wait_for_publish(10)
            assert wait(lambda: gateway.totals.received == 4)
            assert wait(lambda: ("fedtwin/a/errors", b'{"refused": "message unreadable"}') in told)

            def receipts() -> set[int]:
                """Every number that was said to be safe."""
                ranges = [json.loads(content)["kept"] for topic, content in told if topic == "fedtwin/a/receipts"]
                return {number for some in ranges for first, last in some for number in range(first, last + 1)}

            assert wait(lambda: receipts() == {0, 1, 2})
    finally:
        subscriber.stop()
    assert kept.values() == [80, 81]
    assert {batch.devices for batch in kept.batches} == {("a",)}
    totals = gateway.totals
    assert (totals.accepted, totals.set_aside, totals.refused) == (2, 1, 1)  # p2 is not the device's


def test_whoever_shows_no_certificate_is_not_let_in(ward: Ward) -> None:
    context = ssl.create_default_context(cafile=str(ward.authority.certificate))
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="nobody")
    client.tls_set_context(context)
    connected: list[bool] = []
    client.on_connect = lambda *ignored: connected.append(True)
    with contextlib.suppress(OSError):
        client.connect("localhost", ward.port)
        for _ in range(10):
            client.loop(0.05)
    assert connected == []


def test_while_the_store_is_down_nothing_is_acknowledged_and_later_nothing_is_missing(ward: Ward) -> None:
    kept = Kept(broken=True)
    gateway = make_gateway(ward.folder, kept, make_device("a", b"a"))
    subscriber = Subscriber(gateway, Broker(host="localhost", port=ward.port, tls=ward.tls("gateway")))
    subscriber.start()
    try:
        assert subscriber.wait_until_subscribed(10)
        with ward.device("a") as device:
            for number in range(50):
                device.publish("fedtwin/a/senml", sample(number), qos=1)
            assert wait(lambda: gateway.totals.refused > 0)
            kept.broken = False
            assert wait(lambda: len(kept.values()) == 50)
    finally:
        subscriber.stop()


class Faulty(Kept):
    """Fails once as only a fault of our own could."""

    def keep(self, intake: Intake) -> None:
        if not self.broken:
            self.broken = True
            raise ZeroDivisionError
        self.broken = False
        super().keep(intake)
        self.broken = True


def test_a_fault_of_ours_is_a_lost_connection_and_no_lost_message(ward: Ward) -> None:
    kept = Faulty()
    gateway = make_gateway(ward.folder, kept, make_device("a", b"a"))
    subscriber = Subscriber(gateway, Broker(host="localhost", port=ward.port, tls=ward.tls("gateway")))
    subscriber.start()
    try:
        assert subscriber.wait_until_subscribed(10)
        with ward.device("a") as device:
            device.publish("fedtwin/a/senml", sample(0), qos=1).wait_for_publish(10)
            assert wait(lambda: kept.values() == [80])
    finally:
        subscriber.stop()


def start_subscriber(ward: Ward) -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("subscriber_process.py")
    return subprocess.Popen([sys.executable, program, ward.folder, str(ward.port)])


def count_kept(ward: Ward) -> int:
    path = ward.folder / "kept"
    return path.stat().st_size // 8 if path.exists() else 0


@pytest.mark.slow
def test_a_subscriber_killed_in_the_middle_of_a_burst_loses_nothing(ward: Ward) -> None:
    make_gateway(ward.folder, Kept(), make_device("a", b"a"))
    first = start_subscriber(ward)
    second: subprocess.Popen[bytes] | None = None
    try:
        with ward.device("a") as device:
            device.publish("fedtwin/a/senml", sample(0), qos=1)
            # Its session begins when it subscribes; what was published before that is nobody's.
            assert wait(lambda: device.publish("fedtwin/a/senml", sample(0), qos=1).rc == 0 and count_kept(ward) > 0)
            sent = [device.publish("fedtwin/a/senml", sample(number), qos=1) for number in range(1, BURST)]
            assert wait(lambda: count_kept(ward) > BURST // 10)
            first.send_signal(signal.SIGKILL)
            first.wait(10)
            at_kill = count_kept(ward)
            for one in sent:
                one.wait_for_publish(20)
            second = start_subscriber(ward)

            def everything() -> bool:
                data = (ward.folder / "kept").read_bytes()
                found = np.frombuffer(data[: len(data) // 8 * 8], np.int64)
                return set(found.tolist()) == set(range(BURST))

            assert wait(everything, 30)
        assert at_kill < BURST
    finally:
        for process in (first, second):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(10)
