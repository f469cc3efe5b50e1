"""What comes through a real broker with TLS: single samples, batches, and a subscriber that is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from fedtwin_client.ingest import mqtt_packets, packed
from fedtwin_client.ingest.broker import GATEWAY, BrokerFiles, find_broker, write_broker
from fedtwin_client.ingest.mqtt import Broker, Subscriber
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_simulations.ingest_site import DEVICE, HOST, PATIENCE, Site, beside, now, open_gateway, rate_row
from fedtwin_simulations.results import BenchRow

SINGLE_GOAL: Final = 25_000
BATCHED_GOAL: Final = 1_000_000
SAFE_GOAL: Final = 5_000

WINDOW: Final = 500  # messages that the device has on the way
RESTART_SECONDS: Final = 30.0  # that a busy machine may need to start a process
READ_BYTES: Final = 1 << 16


@contextlib.contextmanager
def _broker_running(site: Site) -> Iterator[int]:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = int(free.getsockname()[1])
    files = BrokerFiles(
        authority=site.file("ca.pem"), certificate=site.file(f"{HOST}.pem"), private_key=site.file(f"{HOST}.key")
    )
    settings = write_broker(site.folder / f"broker-{port}", files, host=HOST, port=port)
    if os.geteuid() == 0:  # else it becomes a user who may not read this folder
        settings.write_text(f"{settings.read_text(encoding='utf-8')}user root\n", encoding="utf-8")
    program = find_broker()
    assert program is not None
    process = subprocess.Popen([program, "-c", settings], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def time_broker(site: Site) -> Iterator[BenchRow]:
    """Yield the MQTT cases: single samples, a hundred in a message, and the killed subscriber."""
    yield from _time_subscriber(
        site, "MQTT QoS 0, one SenML sample a message", topic="senml", messages=60_000, samples=1, goal=SINGLE_GOAL
    )
    yield from _time_subscriber(
        site, "MQTT QoS 0, a hundred packed samples", topic="packed", messages=16_000, samples=100, goal=BATCHED_GOAL
    )
    rate, lost = time_killed_subscriber(site)
    yield rate_row("MQTT QoS 1, subscriber killed and restarted in the burst", rate, SAFE_GOAL, "messages/s")
    yield BenchRow(
        case="MQTT QoS 1, subscriber killed and restarted in the burst: lost",
        ours=float(lost),
        baseline=36.0,
        baseline_name="stock mosquitto settings: percent, measured elsewhere",
        unit="messages",
        goal="none",
        holds=lost == 0,
    )


def _time_subscriber(
    site: Site, case: str, *, topic: str, messages: int, samples: int, goal: float
) -> Iterator[BenchRow]:
    """Yield samples a second from the first batch kept to the last, and samples a second of the node's processor."""
    kept: list[tuple[float, float, int]] = []
    gateway = open_gateway(site, lambda batch: kept.append((time.perf_counter(), time.process_time(), len(batch))))
    with _broker_running(site) as port:
        subscriber = Subscriber(gateway, Broker(host=HOST, port=port, tls=site.tls(GATEWAY)))
        subscriber.start()
        try:
            subscriber.wait_until_subscribed(PATIENCE)
            with beside(publish, site, port, topic, messages, samples, 0):
                _wait_for_quiet(lambda: gateway.totals.accepted, messages * samples)
        finally:
            subscriber.stop()
    taken = sum(size for _, _, size in kept[1:])
    wall, processor = kept[-1][0] - kept[0][0], kept[-1][1] - kept[0][1]
    yield rate_row(f"{case}, judged and handed on", taken / wall, goal)
    yield rate_row(f"{case}, of the node's processor time alone", taken / processor, goal)


def _wait_for_quiet(count: Callable[[], int], expected: int, *, quiet: float = 5.0) -> None:
    """Wait for the expected number, or until nothing has come for `quiet` seconds after the first."""
    until, last, seen = time.monotonic() + PATIENCE, time.monotonic(), 0
    while count() < expected and time.monotonic() < until and (seen == 0 or time.monotonic() - last < quiet):
        if count() != seen:
            seen, last = count(), time.monotonic()
        time.sleep(0.02)


def publish(site: Site, port: int, topic: str, messages: int, samples: int, quality: int) -> None:
    """Publish so many messages as the device and wait until the broker has them: the load generator.

    It is made beforehand and only sent here, so that the generator is not what is measured.
    """
    name, base = f"fedtwin/{DEVICE}/{topic}", now() - 1000
    packets = [
        mqtt_packets.write_publication(
            name, _payload(topic, number, samples, base), quality=quality, number=number % 65_535 + 1
        )
        for number in range(messages)
    ]
    plain = socket.create_connection((HOST, port), timeout=PATIENCE)
    with site.tls(DEVICE).wrap_socket(plain, server_hostname=HOST) as door:
        door.sendall(mqtt_packets.write_connect("load", clean=True, keep_alive=600))
        door.recv(4)
        at = waiting = 0
        rest = b""
        while at < messages or waiting:
            some = packets[at : at + (WINDOW - waiting if quality else WINDOW)]
            door.sendall(b"".join(some))
            at += len(some)
            waiting += len(some) if quality else 0
            if waiting:
                answers, rest = mqtt_packets.split_packets(rest + door.recv(READ_BYTES), maximum=READ_BYTES)
                waiting -= sum(answer.kind == mqtt_packets.PUBACK for answer in answers)
        door.sendall(mqtt_packets.PING)  # answered once everything before it has been read
        door.recv(READ_BYTES)
        door.sendall(mqtt_packets.DISCONNECT)


def _payload(topic: str, number: int, samples: int, base: int) -> bytes:
    if topic == "senml":
        return b'[{"n":"p1/heart_rate","u":"/min","v":80,"bt":%.3f,"sq":%d}]' % (base / 1000, number)
    return packed.write_message(
        patients=["p1"],
        kinds=[("heart_rate", "/min")],
        base=base,
        time=np.arange(samples),
        value=np.full(samples, 80.0),
        patient=np.zeros(samples),
        kind=np.zeros(samples),
        first=number * samples,
    )


def time_killed_subscriber(site: Site, *, messages: int = 60_000) -> tuple[float, int]:
    """Return messages a second from the first kept to the last, kill and restart included, and how many were lost."""
    context = multiprocessing.get_context("spawn")
    kept = site.file("kept")
    kept.unlink(missing_ok=True)

    def count() -> int:
        return kept.stat().st_size // 8 if kept.exists() else 0

    with _broker_running(site) as port:
        first = context.Process(target=subscribe, args=(site, port), daemon=True)
        first.start()
        _wait_for(site.file("subscribed").exists)
        second = context.Process(target=subscribe, args=(site, port), daemon=True)
        try:
            with beside(publish, site, port, "senml", messages, 1, 1):
                _wait_for(lambda: count() > 0)
                began = time.perf_counter()
                _wait_for(lambda: count() > messages // 3)
                assert first.pid is not None
                os.kill(first.pid, signal.SIGKILL)
                second.start()
                _wait_for_quiet(lambda: _count_kept(kept, messages), messages, quiet=RESTART_SECONDS)
                seconds = time.perf_counter() - began
        finally:
            for process in (first, second):
                if process.is_alive():
                    process.kill()
    return messages / seconds, messages - len(np.unique(_read_kept(kept)))


def _count_kept(path: Path, expected: int) -> int:
    """Return how many different numbers were kept; before there can be enough, how many in all."""
    rows = path.stat().st_size // 8
    return rows if rows < expected else len(np.unique(_read_kept(path)))


def _read_kept(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    data = path.read_bytes()
    return np.frombuffer(data[: len(data) // 8 * 8], np.int64)


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


def subscribe(site: Site, port: int) -> None:
    """Keep sequence numbers in a file, synced before they are acknowledged, until killed."""
    with site.file("kept").open("ab") as kept:

        def keep(batch: ObservationBatch) -> None:
            kept.write(batch.sequence.tobytes())
            kept.flush()
            os.fsync(kept.fileno())

        subscriber = Subscriber(open_gateway(site, keep), Broker(host=HOST, port=port, tls=site.tls(GATEWAY)))
        subscriber.start()
        if subscriber.wait_until_subscribed(PATIENCE):
            site.file("subscribed").touch()
        signal.pause()
