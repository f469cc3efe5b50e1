"""The MQTT subscriber: SenML and packed messages of every device, acknowledged to the broker only once they are safe.

Design note: paho's thread only queues; one thread of ours takes whatever has come, device by device, and acknowledges
after the gateway returned. While the store cannot keep anything it waits and tries again, so the broker holds what it
has not been told is safe. A killed subscriber is sent again what it had not acknowledged, and sequence numbers say what
it has already. Who a device is, is the broker's to say (`broker`): the level of the topic is its certificate's name.
QoS 0 is acknowledged to nobody and may be lost on the way, by its own definition (MQTT 3.1.1 §4.3.1).
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fedtwin_client.ingest import packed, senml
from fedtwin_client.ingest.broker import TOPICS
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, Message, Receipt
from fedtwin_client.ingest.readings import Draft, Readings, join

# What may wait here; beyond it paho's thread waits, and the broker with it.
WAITING: Final = 50_000
WAITING_BYTES: Final = 1 << 26
# What is judged and kept together.
TOGETHER: Final = 2000
TOGETHER_BYTES: Final = 1 << 22
RETRY_SECONDS: Final = 0.5
PAUSE_SECONDS: Final = 0.005  # between two looks at an empty queue; what comes in between is taken together
KEEP_ALIVE: Final = 30


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
        self._waiting: deque[paho.MQTTMessage] = deque()
        self._came = 0  # bytes; only paho's thread writes it, and only ours the other
        self._went = 0
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mqtt", daemon=True)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client,
            clean_session=False,
            protocol=paho.MQTTv311,
            manual_ack=True,
        )
        self._client.tls_set_context(broker.tls)
        self._client.on_connect = self._subscribe
        self._client.on_message = self._queue
        self._client.reconnect_delay_set(min_delay=1, max_delay=5)

    def start(self) -> None:
        """Begin; the broker need not be there yet."""
        self._thread.start()
        self._client.connect_async(self._broker.host, self._broker.port, keepalive=KEEP_ALIVE)
        self._client.loop_start()

    def wait_until_subscribed(self, seconds: float) -> bool:
        """Return whether the broker was reached within so many seconds."""
        return self._connected.wait(seconds)

    def stop(self) -> None:
        """Finish what is being kept, acknowledge it, and leave; the broker keeps the session."""
        self._stopping.set()
        self._thread.join()
        self._client.disconnect()
        self._client.loop_stop()

    def _subscribe(
        self,
        client: paho.Client,
        userdata: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if not reason.is_failure:
            client.subscribe([(f"fedtwin/+/{topic}", 1) for topic in TOPICS])
            self._connected.set()

    def _queue(self, client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        while (len(self._waiting) >= WAITING or self._came - self._went >= WAITING_BYTES) and self._running():
            time.sleep(PAUSE_SECONDS)
        self._came += len(message.payload)
        self._waiting.append(message)

    def _running(self) -> bool:
        return not self._stopping.is_set()

    def _work(self) -> None:
        while self._running():
            if not self._waiting:
                self._stopping.wait(PAUSE_SECONDS)
                continue
            by_topic: dict[str, list[paho.MQTTMessage]] = {}
            end = self._went + TOGETHER_BYTES
            for _ in range(min(len(self._waiting), TOGETHER)):
                message = self._waiting.popleft()
                self._went += len(message.payload)
                by_topic.setdefault(message.topic, []).append(message)
                if self._went >= end:
                    break
            if not self._take(by_topic):
                return  # stopped while the store was down: not acknowledged, sent again

    def _take(self, by_topic: Mapping[str, Sequence[paho.MQTTMessage]]) -> bool:
        """Keep messages, in one commit, and acknowledge them; False when stopped before they are safe."""
        devices = [topic.split("/")[1] for topic in by_topic]
        read = [self._read(topic, messages) for topic, messages in by_topic.items()]
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
                return False
        for device, receipt in zip(devices, receipts, strict=True):
            if receipt.refused:
                self._tell(device, receipt)
        for messages in by_topic.values():
            for message in messages:
                # A crash before this line: sent again, and known by its sequence numbers.
                if message.qos:
                    self._client.ack(message.mid, message.qos)
        return True

    def _read(self, topic: str, messages: Sequence[paho.MQTTMessage]) -> Readings:
        """Return the readings of one topic's messages; a message that cannot be read is refused by itself."""
        _, device, form = topic.split("/")
        now, draft, parts = self._gateway.now(), Draft(), list[Readings]()
        for message in messages:
            data = bytes(message.payload)
            if form == "senml":
                refused = senml.read_message(data, draft, now=now).refused
            else:
                found = packed.read_message(data)
                refused = found if isinstance(found, str) else ""
                if not isinstance(found, str):
                    parts.append(found)
            if refused:
                self._tell(device, self._gateway.refuse(refused))
        return join(parts) if parts else draft.readings()

    def _tell(self, device: str, receipt: Receipt) -> None:
        """Tell the sender; somebody who is not registered is told nothing."""
        if receipt.refused != NOT_REGISTERED:
            self._client.publish(f"fedtwin/{device}/errors", json.dumps({"refused": receipt.refused}), qos=0)
