"""A made-up hospital with a gateway, a broker where there is one, and a device for each bed, on this machine alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.directory import Answers, create_directory
from fedtwin_client.ingest.broker import find_broker
from fedtwin_client.ingest.device import Device, identity_of
from fedtwin_client.ingest.installation import FOLDER, Doors, install_gateway, issue_device
from fedtwin_client.ingest.registry import FILE, Registry, add_device, read_registry, write_registry
from fedtwin_client.ward.senders import Bed, Way
from fedtwin_client.ward.series import Stay
from fedtwin_shared.certificates import Identity, create_authority
from fedtwin_shared.signing import create_signing_key, format_public_key

HOST: Final = "localhost"
ENGINE, RECORDS, RECORDS_KEY = "hl7-engine", "record-system", "the record system's key, which is no secret here"
WAYS: Final = ("mqtt", "grpc", "hl7", "fhir")
FORMAT_SIZE: Final = {"mqtt": 12, "grpc": 24, "hl7": 6, "fhir": 12}  # rows of one message
DAY: Final = 86_400_000  # milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """The hospital, where each way in is, and the beds of each; no broker: no beds come by MQTT."""

    hospital: HospitalDirectory
    ways: dict[str, Way]
    beds: dict[str, list[Bed]]
    broker: Path | None

    @property
    def all_beds(self) -> list[Bed]:
        """Every bed."""
        return [bed for beds in self.beds.values() for bed in beds]


def make_ward(root: Path, stays: Sequence[Stay], *, seconds: float, with_broker: bool = True) -> Ward:
    """Make the hospital in `root`, a new folder; every stay's device sends it in so many seconds, from now on."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.now(UTC)
    authority = Identity(certificate=root / "coordinator.pem", private_key=root / "coordinator.key")
    create_authority(authority, name="nobody's coordinator", now=now)
    key = create_signing_key(root / "coordinator-signing.key").public_key()
    until = now.date() + timedelta(days=365)
    answers = Answers(name="ward", superlink=f"{HOST}:9", coordinator_key=format_public_key(key), valid_until=until)
    create_directory(root / "hospital", answers, authority=authority.certificate)
    program = find_broker() if with_broker else None
    mllp, fhir, grpc, mqtt = _free_ports(4)
    broker = "" if program is None else f"{HOST}:{mqtt}"
    doors = Doors(names=(HOST, "127.0.0.1"), listen="127.0.0.1", mllp=mllp, fhir=fhir, grpc=grpc, broker=broker)
    install_gateway(read_directory(root / "hospital"), doors, now=now)
    hospital = read_directory(root / "hospital")
    devices = root / "devices"
    ports = {"mqtt": mqtt, "grpc": grpc, "hl7": mllp, "fhir": fhir}
    ways = {way: Way(host=HOST, port=ports[way], folder=devices) for way in WAYS if way != "mqtt" or program}
    beds = _make_beds(stays, tuple(ways), seconds=seconds)
    _register(hospital, beds, devices)
    return Ward(hospital=hospital, ways=ways, beds=beds, broker=program)


def broker_settings(ward: Ward) -> Path:
    """Return the file that the broker is started with."""
    return ward.hospital.root / FOLDER / "broker" / "mosquitto.conf"


def _make_beds(stays: Sequence[Stay], ways: Sequence[str], *, seconds: float) -> dict[str, list[Bed]]:
    beds: dict[str, list[Bed]] = {way: [] for way in ways}
    for number, stay in enumerate(stays):
        way = ways[number % len(ways)]
        begin = time.time_ns() // 1_000_000 - int(stay.offset.max()) - DAY
        device = f"bed-{number:03d}{'' if number // len(ways) % 2 else 'x'}"  # half of them send SenML, half packed
        bed = Bed(device=device, stay=stay, begin=begin, size=FORMAT_SIZE[way], seconds=seconds, started=0.0)
        beds[way].append(bed)
    return beds


def _register(hospital: HospitalDirectory, beds: dict[str, list[Bed]], devices: Path) -> None:
    now, registry = datetime.now(UTC), read_registry(hospital.node / FILE)
    for way, several in beds.items():
        for bed in several if way in ("mqtt", "grpc") else ():
            der = issue_device(hospital, bed.device, devices, now=now)
            registry = _add(registry, bed.device, identity_of(der), [bed])
    engine = issue_device(hospital, ENGINE, devices, now=now)
    registry = _add(registry, ENGINE, identity_of(engine), beds["hl7"])
    registry = _add(registry, RECORDS, identity_of(RECORDS_KEY.encode()), beds["fhir"])
    write_registry(hospital.node / FILE, registry)


def _add(registry: Registry, name: str, identity: str, beds: Sequence[Bed]) -> Registry:
    patients = frozenset(bed.stay.patient for bed in beds)
    device = Device(
        id=name, identity=identity, patients=patients, signals=None, rate=1e6, burst=1_000_000, oldest=400 * 86_400
    )
    return add_device(registry, device)


def _free_ports(count: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(door.getsockname()[1]) for door in doors]
    for door in doors:
        door.close()
    return ports
