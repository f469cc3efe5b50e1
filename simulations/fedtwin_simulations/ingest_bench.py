"""`fedtwin simulate bench ingest`: what the node's front door takes, each case beside its baseline where it has one.

The node's half runs in this process, the load generator in another one; the sink counts and hands on. Parsers are
measured in processor time, since they wait for nothing; everything with a socket in wall time.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib
import json
import multiprocessing
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import numpy as np
import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion

from fedtwin_client.ingest import fhir, grpc_stream, hl7v2, packed
from fedtwin_client.ingest.broker import GATEWAY, BrokerFiles, find_broker, write_broker
from fedtwin_client.ingest.device import Device, Progress, identity_of
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.ingest_pb2 import Batch, Kind
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.mqtt import Broker, Subscriber
from fedtwin_client.ingest.readings import Draft
from fedtwin_client.ingest.registry import Registry, add_device, write_registry
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_simulations.results import Bench, BenchRow

HL7_GOAL: Final = 100_000
FHIR_GOAL: Final = 300_000
GRPC_GOAL: Final = 150_000
SINGLE_GOAL: Final = 25_000
BATCHED_GOAL: Final = 1_000_000
SAFE_GOAL: Final = 5_000

DEVICE: Final = "device"
TOGETHER: Final = 256
HOST: Final = "localhost"
_PATIENCE: Final = 60.0  # seconds

Say = Callable[[str], None]


def bench_ingest(say: Say) -> Bench:
    """Measure parsers, the gRPC stream and, where mosquitto is installed, MQTT."""
    say("parsers")
    rows = [*time_parsers()]
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        site = make_site(Path(folder))
        say("gRPC stream")
        rows.append(_row("gRPC, mutual TLS, batches of 256, judged and handed on", time_stream(site), GRPC_GOAL))
        if find_broker() is not None:
            say("MQTT through mosquitto with TLS")
            rows += time_broker(site)
    return Bench(bench="ingest", rows=tuple(rows))


def _row(
    case: str, ours: float, goal: float, unit: str = "obs/s", *, baseline: float | None = None, named: str = ""
) -> BenchRow:
    return BenchRow(
        case=case,
        ours=ours,
        baseline=baseline,
        baseline_name=named,
        unit=unit,
        goal=f"at least {goal:,.0f} {unit}",
        holds=ours >= goal,
    )


# Parsers


def time_parsers(number: int = 10_000) -> Iterator[BenchRow]:
    """Yield messages (or resources) a second of processor time, best of five."""
    for results in (1, 6):
        messages = [write_result_message(at, results) for at in range(number)]
        ours = number / _best(partial(_read_hl7, messages))
        theirs = _rate_of("hl7", "parse", [message.decode() for message in messages[:500]])
        case = f"HL7 v2 ORU^R01 with {results} OBX, read to columns"
        yield _row(case, ours, HL7_GOAL, "messages/s", baseline=theirs, named="hl7: parsed to lists" if theirs else "")
    resources = [write_observation(at) for at in range(number)]
    lines = [b"\n".join(resources[at : at + 1000]) for at in range(0, number, 1000)]
    ours = number / _best(lambda: _read_fhir(lines))
    theirs = _validation_rate(resources[:500])
    named = "fhir.resources R4B: validated" if theirs else ""
    yield _row(
        "FHIR Observation, NDJSON, read to columns", ours, FHIR_GOAL, "resources/s", baseline=theirs, named=named
    )


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _read_hl7(messages: Sequence[bytes]) -> None:
    for at in range(0, len(messages), TOGETHER):
        draft = Draft()
        for message in messages[at : at + TOGETHER]:
            hl7v2.read_message(message, draft)
        draft.readings()


def _read_fhir(lines: Sequence[bytes]) -> None:
    for some in lines:
        draft = Draft()
        fhir.read_ndjson(some, draft)
        draft.readings()


def _rate_of(module: str, function: str, texts: Sequence[str]) -> float | None:
    """Return how many texts another library reads a second; None where it is not installed."""
    try:
        parse = getattr(importlib.import_module(module), function)
    except ImportError:
        return None
    return len(texts) / _best(lambda: [parse(text) for text in texts], 3)


def _validation_rate(resources: Sequence[bytes]) -> float | None:
    try:
        kind = importlib.import_module("fhir.resources.R4B.observation").Observation
    except ImportError:
        return None
    return len(resources) / _best(lambda: [kind.model_validate_json(one) for one in resources], 3)


_RESULTS: Final = (
    ("8867-4", "80", "/min"),
    ("9279-1", "16", "/min"),
    ("59408-5", "97", "%"),
    ("8310-5", "36.8", "Cel"),
    ("8480-6", "120", "mm[Hg]"),
    ("8478-0", "90", "mm[Hg]"),
)


def write_result_message(number: int, results: int) -> bytes:
    """Return an ORU^R01 of a bedside monitor with so many OBX, at most six."""
    at = f"2026112212{number // 60 % 60:02d}{number % 60:02d}+0100"
    lines = [
        rf"MSH|^~\&|MONITOR|ICU|NODE|SITE|{at}||ORU^R01^ORU_R01|M{number}|P|2.5.1",
        f"PID|1||p{number % 200}^^^HOSP^MR",
        f"OBR|1|||VITALS|||{at}",
    ]
    for index, (code, value, unit) in enumerate(_RESULTS[:results], 1):
        lines.append(f"OBX|{index}|NM|{code}^x^LN||{value}|{unit}^^UCUM|||||F|||{at}")
    return "\r".join(lines).encode()


def write_observation(number: int) -> bytes:
    """Return a vital sign as FHIR writes it."""
    category = {"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "vital-signs"}
    code = {"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}
    quantity = {"value": 60 + number % 60, "unit": "beats/minute", "code": "/min"}
    return json.dumps(
        {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "category": [{"coding": [category]}],
            "code": {"coding": [code]},
            "subject": {"reference": f"Patient/p{number % 200}"},
            "effectiveDateTime": f"2026-11-22T12:{number // 60 % 60:02d}:{number % 60:02d}+01:00",
            "valueQuantity": {**quantity, "system": "http://unitsofmeasure.org"},
        }
    ).encode()


# A site with certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A folder with an authority, certificates by name, and a registry of one device."""

    folder: Path

    def file(self, name: str) -> Path:
        """Return a file of the site."""
        return self.folder / name

    def tls(self, name: str) -> ssl.SSLContext:
        """Return a client's context with the certificate of that name."""
        context = ssl.create_default_context(cafile=str(self.file("ca.pem")))
        context.load_cert_chain(self.file(f"{name}.pem"), self.file(f"{name}.key"))
        return context


def make_site(folder: Path) -> Site:
    """Make certificates for the gateway, the server and one device, and register the device."""
    authority = ec.generate_private_key(ec.SECP256R1())
    certificate = _certify("authority", "authority", authority, authority, is_authority=True)
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    for name in (HOST, GATEWAY, DEVICE):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certify(name, "authority", key, authority)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").write_bytes(key.private_bytes(*form))
        if name == DEVICE:
            identity = identity_of(certificate.public_bytes(serialization.Encoding.DER))
            device = Device(id=DEVICE, identity=identity, patients=None, signals=None, rate=1e7, burst=10_000_000)
            write_registry(folder / "devices.json", add_device(Registry(devices={}), device))
    return Site(folder=folder)


def _certify(
    name: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool = False,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.sign(signer, hashes.SHA256())


def _now() -> int:
    return time.time_ns() // 1_000_000


class _Handed:
    """A keeper that hands accepted observations on and knows nothing of before."""

    def __init__(self, hand_on: Callable[[ObservationBatch], None]) -> None:
        self._hand_on = hand_on

    def keep(self, intake: Intake) -> None:
        self._hand_on(intake.batch)

    def progress(self) -> Mapping[str, Progress]:
        return {}

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        return ()


def _open_gateway(site: Site, keep: Callable[[ObservationBatch], None]) -> Gateway:
    return Gateway(site.file("devices.json"), _Handed(keep), clock=_now)


@contextlib.contextmanager
def _beside(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run a load generator in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


# gRPC


def time_stream(site: Site, *, batches: int = 1500) -> float:
    """Return observations a second over one stream, from the first batch taken to the last."""
    times: list[float] = []
    counted = 0

    def keep(batch: ObservationBatch) -> None:
        nonlocal counted
        counted += len(batch)
        times.append(time.perf_counter())

    async def listen() -> None:
        with ThreadPoolExecutor(1) as executor:
            server, port = await grpc_stream.listen(
                _open_gateway(site, keep),
                executor,
                address=f"{HOST}:0",
                authority=site.file("ca.pem").read_bytes(),
                certificate=site.file(f"{HOST}.pem").read_bytes(),
                private_key=site.file(f"{HOST}.key").read_bytes(),
            )
            with _beside(send_batches, site, port, batches):
                until = time.monotonic() + _PATIENCE
                while len(times) < batches and time.monotonic() < until:
                    await asyncio.sleep(0.02)
            await server.stop(None)

    asyncio.run(listen())
    return (counted - TOGETHER) / (times[-1] - times[0])


def send_batches(site: Site, port: int, number: int) -> None:
    """Send so many batches of 256 readings over one stream, and wait for all receipts: the load generator."""
    kinds = [Kind(code=code, unit=unit) for code, _, unit in _RESULTS]
    columns = Batch(
        kinds=kinds,
        time=range(TOGETHER),
        value=[float(_RESULTS[at % 6][1]) for at in range(TOGETHER)],
        patient=[at % 50 for at in range(TOGETHER)],
        kind=[at % 6 for at in range(TOGETHER)],
    )
    patients, base = [f"p{at}" for at in range(50)], _now() - 10_000
    made = []
    for at in range(number):
        batch = Batch(number=at, base_time=base, first_sequence=at * TOGETHER, patients=patients)
        batch.MergeFrom(columns)
        made.append(batch)

    async def send() -> AsyncIterator[Batch]:
        for batch in made:
            yield batch

    async def talk() -> None:
        credentials = grpc.ssl_channel_credentials(
            *(site.file(name).read_bytes() for name in ("ca.pem", f"{DEVICE}.key", f"{DEVICE}.pem"))
        )
        async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
            async for _ in grpc_stream.open_stream(channel, send()):
                pass

    asyncio.run(talk())


# MQTT


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
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), timeout=1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def time_broker(site: Site) -> Iterator[BenchRow]:
    """Yield the MQTT cases: single samples, a hundred in a message, and the killed subscriber."""
    single = _time_subscriber(site, "senml", messages=30_000, samples=1)
    yield _row(
        "MQTT QoS 0, one SenML sample a message, judged and handed on",
        single,
        SINGLE_GOAL,
        "messages/s",
        baseline=1_700,
        named="amqtt, measured elsewhere",
    )
    batched = _time_subscriber(site, "packed", messages=8_000, samples=100)
    yield _row("MQTT QoS 0, a hundred packed samples a message", batched, BATCHED_GOAL)
    rate, lost = time_killed_subscriber(site)
    yield _row("MQTT QoS 1, subscriber killed and restarted in the burst", rate, SAFE_GOAL, "messages/s")
    yield BenchRow(
        case="MQTT QoS 1, subscriber killed and restarted in the burst: lost",
        ours=float(lost),
        baseline=36.0,
        baseline_name="stock mosquitto settings: percent, measured elsewhere",
        unit="messages",
        goal="none",
        holds=lost == 0,
    )


def _time_subscriber(site: Site, topic: str, *, messages: int, samples: int) -> float:
    """Return messages (of one sample) or samples a second, from the first batch kept to the last."""
    kept: list[tuple[float, int]] = []
    gateway = _open_gateway(site, lambda batch: kept.append((time.perf_counter(), len(batch))))
    with _broker_running(site) as port:
        subscriber = Subscriber(gateway, Broker(host=HOST, port=port, tls=site.tls(GATEWAY)))
        subscriber.start()
        try:
            subscriber.wait_until_subscribed(_PATIENCE)
            with _beside(publish, site, port, topic, messages, samples, 0):
                _wait_for_quiet(lambda: gateway.totals.accepted, messages * samples)
        finally:
            subscriber.stop()
    return sum(size for _, size in kept[1:]) / (kept[-1][0] - kept[0][0])


def _wait_for_quiet(count: Callable[[], int], expected: int) -> None:
    """Wait for the expected number, or until nothing has come for five seconds after the first."""
    until, last, seen = time.monotonic() + _PATIENCE, time.monotonic(), 0
    while count() < expected and time.monotonic() < until and (seen == 0 or time.monotonic() - last < 5):
        if count() != seen:
            seen, last = count(), time.monotonic()
        time.sleep(0.02)


def publish(site: Site, port: int, topic: str, messages: int, samples: int, quality_of_service: int) -> None:
    """Publish so many messages as the device and wait until the broker has them: the load generator."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="load")
    client.tls_set_context(site.tls(DEVICE))
    client.max_inflight_messages_set(1000)
    client.connect(HOST, port)
    client.loop_start()
    payloads = [_payload(topic, number, samples, _now() - 1000) for number in range(messages)]
    last = None
    for payload in payloads:
        last = client.publish(f"fedtwin/{DEVICE}/{topic}", payload, qos=quality_of_service)
    if last is not None:
        last.wait_for_publish(_PATIENCE)
    client.disconnect()
    client.loop_stop()


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


def time_killed_subscriber(site: Site, *, messages: int = 20_000) -> tuple[float, int]:
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
            with _beside(publish, site, port, "senml", messages, 1, 1):
                _wait_for(lambda: count() > 0)
                began = time.perf_counter()
                _wait_for(lambda: count() > messages // 3)
                assert first.pid is not None
                os.kill(first.pid, signal.SIGKILL)
                second.start()
                _wait_for_quiet(lambda: len(np.unique(_read_kept(kept))), messages)
                seconds = time.perf_counter() - began
        finally:
            for process in (first, second):
                if process.is_alive():
                    process.kill()
    return messages / seconds, messages - len(np.unique(_read_kept(kept)))


def _read_kept(path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    data = path.read_bytes()
    return np.frombuffer(data[: len(data) // 8 * 8], np.int64)


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


def subscribe(site: Site, port: int) -> None:
    """Keep sequence numbers in a file, synced before they are acknowledged, until killed."""
    with site.file("kept").open("ab") as kept:

        def keep(batch: ObservationBatch) -> None:
            kept.write(batch.sequence.tobytes())
            kept.flush()
            os.fsync(kept.fileno())

        subscriber = Subscriber(_open_gateway(site, keep), Broker(host=HOST, port=port, tls=site.tls(GATEWAY)))
        subscriber.start()
        if subscriber.wait_until_subscribed(_PATIENCE):
            site.file("subscribed").touch()
        signal.pause()
