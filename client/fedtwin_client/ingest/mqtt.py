"""The MQTT subscriber: SenML and packed messages of every device, acknowledged to the broker only once they are safe.

Design note: one thread reads what has come, has it kept in one commit, acknowledges it, and reads on; nothing queues
here, and a slow store is felt by the broker, which holds what it has not been told is safe. While the store cannot keep
anything it waits and tries again. A killed subscriber is sent again what it had not acknowledged, and sequence numbers
say what it has already. Who a device is, is the broker's to say (`broker`): the level of the topic is its certificate's
name. QoS 0 is acknowledged to nobody and may be lost on the way, by its own definition (MQTT 3.1.1 §4.3.1).

The broker's PUBACK tells a device that the broker has a message, and a broker that is killed loses its last second.
What the node has, it says itself: the numbers of what came at QoS 1 go to `fedtwin/<device>/receipts` once they are
safe. A device that must lose nothing keeps its readings until then and sends them again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedtwin_client.ingest import mqtt_packets, packed, senml
from fedtwin_client.ingest.broker import PACKET_BYTES, TOPICS
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, Message
from fedtwin_client.ingest.mqtt_packets import ProtocolError, Publication
from fedtwin_client.ingest.readings import Draft, Readings, join
from fedtwin_client.observation_batch import NO_SEQUENCE

READ_BYTES: Final = 1 << 18
TOGETHER_BYTES: Final = 1 << 21  # what is read before it is kept
RETRY_SECONDS: Final = 0.5
LOOK_SECONDS: Final = 0.5  # between two looks at whether to stop
KEEP_ALIVE: Final = 30
_TOPIC = re.compile(rf"fedtwin/[^/]+/(?:{'|'.join(TOPICS)})")
PATIENCE: Final = 10.0  # seconds for a broker to answer while we connect


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where the broker is; `client` names the session that it keeps for us while we are away."""

    host: str
    port: int
    tls: ssl.SSLContext
    client: str = "fedtwin-gateway"


class Subscriber:
    """Takes every device's messages from `start` to `stop`. Reconnects by itself."""

    def __init__(self, gateway: Gateway, broker: Broker) -> None:
        self._gateway = gateway
        self._broker = broker
        self._stopping = threading.Event()
        self._subscribed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begin; the broker need not be there yet."""
        self._thread.start()

    def is_connected(self) -> bool:
        """Whether the broker is there now."""
        return self._subscribed.is_set()

    def wait_until_subscribed(self, seconds: float) -> bool:
        """Return whether the broker was reached within so many seconds."""
        return self._subscribed.wait(seconds)

    def stop(self) -> None:
        """Finish what is being kept, acknowledge it, and leave; the broker keeps the session."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stopping.is_set():
            # Whatever was not acknowledged is sent again by the next connection.
            try:
                with contextlib.suppress(OSError, ProtocolError), self._connect() as connection:
                    self._subscribed.set()
                    self._read_on(connection)
            except Exception as err:  # a fault of ours must not end this thread: nobody would hear any device again
                _log.error("reading from the broker failed: %s", type(err).__name__)
            self._subscribed.clear()
            self._stopping.wait(RETRY_SECONDS)

    def _connect(self) -> _Connection:
        plain = socket.create_connection((self._broker.host, self._broker.port), timeout=PATIENCE)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(self._broker.tls.wrap_socket(plain, server_hostname=self._broker.host))
        try:
            connection.send(mqtt_packets.write_connect(self._broker.client, clean=False, keep_alive=KEEP_ALIVE))
            mqtt_packets.check_connected(connection.wait())
            topics = [f"fedtwin/+/{topic}" for topic in TOPICS]
            connection.send(mqtt_packets.write_subscribe(1, topics, quality=1))
            connection.wait_for_subscription(1)
        except BaseException:
            connection.close()
            raise
        return connection

    def _read_on(self, connection: _Connection) -> None:
        while not self._stopping.is_set():
            if came := connection.receive():
                self._take(connection, came)
        connection.send(mqtt_packets.DISCONNECT)

    def _take(self, connection: _Connection, came: Sequence[Publication]) -> None:
        """Keep messages, in one commit, and acknowledge them; not, when stopped before they are safe."""
        by_topic: dict[str, list[Publication]] = {}
        for one in came:
            by_topic.setdefault(one.topic, []).append(one)
        if not all(_TOPIC.fullmatch(topic) for topic in by_topic):
            raise ProtocolError("a topic that was not subscribed")
        answers: list[bytes] = []
        devices = [topic.split("/")[1] for topic in by_topic]
        read = [self._read(topic, messages, answers) for topic, messages in by_topic.items()]
        while True:
            registry = self._gateway.registry()
            taken = [
                Message(device=registry.get(device), readings=readings)
                for device, readings in zip(devices, read, strict=True)
            ]
            receipts = self._gateway.take_all(taken)
            if not any(receipt.refused == NOT_STORED for receipt in receipts):
                break
            if self._stopping.wait(RETRY_SECONDS):
                return
            connection.keep_alive()
        for messages, device, readings, receipt in zip(by_topic.values(), devices, read, receipts, strict=True):
            if receipt.refused and receipt.refused != NOT_REGISTERED:
                answers.append(_write_error(device, receipt.refused))
            elif not receipt.refused and any(message.quality for message in messages):
                answers += _write_receipt(device, readings)
        # A crash before this line: sent again, and known by its sequence numbers.
        answers.append(mqtt_packets.write_acknowledgements(one.number for one in came if one.quality))
        connection.send(b"".join(answers))

    def _read(self, topic: str, messages: Sequence[Publication], answers: list[bytes]) -> Readings:
        """Return the readings of one topic's messages; a message that cannot be read is refused by itself."""
        _, device, form = topic.split("/")
        now, draft, parts = self._gateway.now(), Draft(), list[Readings]()
        for message in messages:
            if form == "senml":
                refused = senml.read_message(message.payload, draft, now=now).refused
            else:
                found = packed.read_message(message.payload)
                refused = found if isinstance(found, str) else ""
                if not isinstance(found, str):
                    parts.append(found)
            if refused:
                self._gateway.refuse(refused)
                answers.append(_write_error(device, refused))
        return join(parts) if parts else draft.readings()


class _Connection:
    """A TLS connection to the broker, read without waiting for more than has come."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._socket = tls
        self._rest = b""
        self._waiting: list[mqtt_packets.Packet] = []
        self._said = self._heard = time.monotonic()

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send everything. Raises `OSError`."""
        if data:
            self._socket.sendall(data)
            self._said = time.monotonic()

    def keep_alive(self) -> None:
        """Tell the broker that we are there, when we have not for a while. Raises `OSError` when it is not."""
        now = time.monotonic()
        if now - self._said > KEEP_ALIVE / 2:
            self.send(mqtt_packets.PING)
        if now - self._heard > 2 * KEEP_ALIVE:
            raise TimeoutError("the broker is silent")

    def wait(self) -> mqtt_packets.Packet:
        """Return the next packet. Raises `OSError` or `ProtocolError`."""
        while not self._waiting:
            self._waiting += self._split(self._socket.recv(READ_BYTES))
        return self._waiting.pop(0)

    def wait_for_subscription(self, number: int) -> None:
        """Wait for the SUBACK; what an older session still owed us may come before it."""
        before = []
        while (packet := self.wait()).kind != mqtt_packets.SUBACK:
            before.append(packet)
        mqtt_packets.check_subscribed(packet, number=number, quality=1)
        self._waiting = [*before, *self._waiting]

    def receive(self) -> list[Publication]:
        """Return what has come, waiting for it a moment at most. Raises `OSError` or `ProtocolError`."""
        packets, self._waiting = self._waiting, []
        size = 0
        wait = LOOK_SECONDS if not packets else 0.0
        while size < TOGETHER_BYTES and (self._socket.pending() or select.select([self._socket], [], [], wait)[0]):
            data = self._socket.recv(READ_BYTES)
            size += len(data)
            packets += self._split(data)
            wait = 0.0
        self.keep_alive()
        return [mqtt_packets.read_publication(one) for one in packets if one.kind == mqtt_packets.PUBLISH]

    def _split(self, data: bytes) -> list[mqtt_packets.Packet]:
        if not data:
            raise ConnectionError("the broker has hung up")
        self._heard = time.monotonic()
        packets, self._rest = mqtt_packets.split_packets(self._rest + data, maximum=PACKET_BYTES)
        return packets


def _write_error(device: str, words: str) -> bytes:
    """Tell the sender; somebody who is not registered is told nothing."""
    return mqtt_packets.write_publication(f"fedtwin/{device}/errors", json.dumps({"refused": words}).encode())


def _write_receipt(device: str, readings: Readings) -> list[bytes]:
    """Tell the sender which of its numbers are safe: ranges, both ends included; nothing where it numbers nothing."""
    numbers = np.unique(readings.sequence[readings.sequence != NO_SEQUENCE])
    if len(numbers) == 0:
        return []
    ends = np.flatnonzero(np.diff(numbers) != 1)
    first, last = numbers[np.concatenate(([0], ends + 1))], numbers[np.concatenate((ends, [len(numbers) - 1]))]
    content: Mapping[str, object] = {"kept": np.stack((first, last), axis=1).tolist()}
    return [mqtt_packets.write_publication(f"fedtwin/{device}/receipts", json.dumps(content).encode())]
